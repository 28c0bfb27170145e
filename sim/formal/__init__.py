"""Formal proofs of the units: what is assumed of their neighbours, and what is proved."""
