"""Weights in and out: Show-o, face encoders, upcycling into experts."""
