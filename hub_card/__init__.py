"""Models on the Hub: their repositories, cards and code."""

LAYOUTS = ("transformers", "diffusers")  # what a model's repositories are for; here, where `--help` finds it at once
