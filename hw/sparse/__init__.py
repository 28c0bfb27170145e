"""Which entries of a list are worth reading their columns for."""
