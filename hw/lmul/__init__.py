"""L-Mul: a product as one integer addition."""
