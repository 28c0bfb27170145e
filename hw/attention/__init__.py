"""Attention: L-Mul scores and mixtures over a cache of keys and values behind the memory port."""
