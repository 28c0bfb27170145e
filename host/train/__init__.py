"""Training of the language model: PyTorch, an optional extra. ``python -m host train --help``."""
