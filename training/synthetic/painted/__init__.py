"""The painted world: faces drawn from their attributes, quick enough for tests and ablations."""
