"""The ternary engine: from the weight port to integer results."""
