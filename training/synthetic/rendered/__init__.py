"""The rendered world: people made of free parts, with every attribute known."""
