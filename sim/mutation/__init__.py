"""Mutants: the hardware broken in many small ways, and which bench notices."""
