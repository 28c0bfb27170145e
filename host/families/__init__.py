"""Families of models: one module each, called like the architecture that it reads."""
