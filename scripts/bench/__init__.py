"""Measurements, each a program of its own; what two of them need is shared as modules."""
