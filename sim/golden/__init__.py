"""NumPy golden models, bit-exact: one module a unit."""
