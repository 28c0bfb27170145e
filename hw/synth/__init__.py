"""Synthesis: size and clock of units."""
