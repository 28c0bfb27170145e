"""Small models for the host's tests."""

from sim.tiny_model import tiny_model, tiny_vocabulary

__all__ = ["tiny_model", "tiny_vocabulary"]
