"""Weights in and out: Show-o, face encoders, upcycling into experts."""

UPCYCLE_METHODS = ("none", "full-shared", "split")  # here, where `--help` finds it at once
