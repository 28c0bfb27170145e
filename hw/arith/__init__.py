"""Arithmetic units: L-Mul, bf16 addition, tables, reductions."""
