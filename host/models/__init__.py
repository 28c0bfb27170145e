"""Families of language models, and what they are made of."""
