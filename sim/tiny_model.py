"""A small random model for tests of the host, and for boards that are simulated whole."""

import numpy as np

from host.files.tensors import TernaryMatrix, to_bf16
from host.models.mmfreelm import Layer, TernaryLM
from host.text.tokenizer import byte_symbols
from host.text.vocabulary import Vocabulary

__all__ = ["tiny_model", "tiny_vocabulary"]


def tiny_vocabulary() -> Vocabulary:
    """All bytes, two merges and the end of a document: 259 tokens."""
    return Vocabulary(tokens=("<|endoftext|>", *byte_symbols(), "th", "the"),
                      merges=("t h", "th e"), end_of_document=0)


def tiny_model(*, width: int = 256, ffn_width: int = 512, layers: int = 2,
               seed: int = 5) -> TernaryLM:
    """Make a random model of the smallest width that a file can hold."""
    rng = np.random.default_rng(seed)
    vocabulary = tiny_vocabulary()

    def matrix(rows: int, columns: int) -> TernaryMatrix:
        return TernaryMatrix(rng.integers(-1, 2, (rows, columns), dtype=np.int8),
                             to_bf16(rng.uniform(0.01, 0.1)))

    def layer() -> Layer:
        bias = np.array([to_bf16(value) for value in rng.uniform(0, 4, width)], np.float32)
        return Layer(forget=matrix(width, width), candidate=matrix(width, width),
                     gate=matrix(width, width), output=matrix(width, width),
                     ffn_gate=matrix(ffn_width, width), ffn_up=matrix(ffn_width, width),
                     ffn_down=matrix(width, ffn_width), forget_bias=bias)

    return TernaryLM(
        name="tiny",
        embedding=rng.integers(-13, 14, (len(vocabulary.tokens), width), dtype=np.int8),
        embedding_scale=to_bf16(0.07), layers=tuple(layer() for _ in range(layers)),
        logit_scales={"lmul": to_bf16(0.011), "float": to_bf16(0.01)}, vocabulary=vocabulary,
        metadata={"license": "Apache-2.0", "datasets": ("first", "second")})
