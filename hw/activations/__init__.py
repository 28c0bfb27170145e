"""Activations: quantizer, sparsity policies, sparse vectors."""
