# Ref: S. Chen et al., "WINA: Weight Informed Neuron Activation for Accelerating Large Language
#      Model Inference", 2025
# Id: arXiv:2505.19427

"""WINA's rotation of a Llama-like model, in float64.

WINA's choice of activations is the best one where the columns of the matrix are orthogonal. The
singular vectors of a matrix make them so: each layer turns its residual stream into those of its
key matrix, then into those of its gate matrix. The model computes the same, at the price of two
dense products of width x width a layer, which are part of every cost here. Ternary matrices do not
survive it: it is for models that keep float or integer masters.

Weights have shape (rows, columns); a rotation ``Q`` turns row vectors, ``x @ Q``.
"""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from host.files.llama2c import Llama2cFile

__all__ = ["MATRICES", "Llama", "LlamaLayer", "fold_gains", "forward",
           "linear_products", "read_llama2c", "rotate"]

#: Matrices of a layer by the list of activations that they share.
MATRICES = {"mix_in": ("query", "key", "value"), "mix_out": ("output",),
            "ffn_in": ("gate", "up"), "ffn_hidden": ("down",)}

Vector = NDArray[np.float64]


# Array of a llama2.c file, by field of LlamaLayer.
_ARRAYS = {"mix_gain": "attn_norm", "query": "attn_q", "key": "attn_k", "value": "attn_v",
           "output": "attn_output", "ffn_gain": "ffn_norm", "gate": "ffn_gate", "up": "ffn_up",
           "down": "ffn_down"}


@dataclasses.dataclass(frozen=True, eq=False)
class LlamaLayer:
    """One layer.

    Attributes
    ----------
    mix_gain, ffn_gain : array, shape (width,)
        Of the RMSNorm in front of attention and FFN.
    query, output : array, shape (width, width)
    key, value : array, shape (kv_heads * head width, width)
    gate, up : array, shape (ffn_width, width)
    down : array, shape (width, ffn_width)
    mix_rotation, ffn_rotation : array, shape (width, width), optional
        What the residual stream is multiplied by where the output of attention and FFN is added.
    """

    mix_gain: Vector
    query: Vector
    key: Vector
    value: Vector
    output: Vector
    ffn_gain: Vector
    gate: Vector
    up: Vector
    down: Vector
    mix_rotation: Vector | None = None
    ffn_rotation: Vector | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Llama:
    """A Llama-like model.

    Attributes
    ----------
    embedding, head : array, shape (vocabulary, width)
        The same array, if they are tied.
    layers : tuple of LlamaLayer
    gain : array, shape (width,)
        Of the last RMSNorm.
    heads, kv_heads : int
        Heads of the queries, and of keys and values, which ``heads / kv_heads`` queries share.
    epsilon, base : float
        Of RMSNorm, and of the rotary embedding.
    """

    embedding: Vector
    head: Vector
    layers: tuple[LlamaLayer, ...]
    gain: Vector
    heads: int
    kv_heads: int
    epsilon: float = 1e-5
    base: float = 10000.0


def _norm(x: Vector, gain: Vector, epsilon: float) -> Vector:
    return x / np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + epsilon) * gain


def _rope(x: Vector, base: float) -> Vector:
    """Turn neighbouring pairs of each head, shape (tokens, heads, head width)."""
    tokens, _, width = x.shape
    angles = np.arange(tokens)[:, np.newaxis] * base ** (-np.arange(0, width, 2) / width)
    pairs = x.reshape(*x.shape[:-1], width // 2, 2).copy().view(np.complex128)[..., 0]
    turned = pairs * np.exp(1j * angles)[:, np.newaxis]
    return turned[..., np.newaxis].view(np.float64).reshape(x.shape)


def _attend(query: Vector, key: Vector, value: Vector) -> Vector:
    """Causal attention, shapes (tokens, heads, head width); heads of key and value are shared."""
    tokens, heads, width = query.shape
    key, value = (np.repeat(array, heads // array.shape[1], axis=1) for array in (key, value))
    scores = np.einsum("qhw,khw->hqk", query, key) / np.sqrt(width)
    scores[:, np.triu(np.ones((tokens, tokens), bool), 1)] = -np.inf
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.einsum("hqk,khw->qhw", weights, value).reshape(tokens, -1)


def forward(model: Llama, tokens: NDArray[np.integer],
            mask: Callable[[int, str, Vector], Vector] = lambda layer, name, x: x) -> Vector:
    """Logits behind each of ``tokens``, shape (tokens, vocabulary).

    Parameters
    ----------
    model : Llama
    tokens : integer array, shape (tokens,)
    mask : callable
        What is put in place of the activations of a list, a key of :data:`MATRICES`.
    """
    x = model.embedding[tokens]

    def split(array: Vector, heads: int) -> Vector:
        return array.reshape(len(tokens), heads, -1)

    for index, layer in enumerate(model.layers):
        u = mask(index, "mix_in", _norm(x, layer.mix_gain, model.epsilon))
        mixed = _attend(_rope(split(u @ layer.query.T, model.heads), model.base),
                        _rope(split(u @ layer.key.T, model.kv_heads), model.base),
                        split(u @ layer.value.T, model.kv_heads))
        if layer.mix_rotation is not None:
            x = x @ layer.mix_rotation
        x = x + mask(index, "mix_out", mixed) @ layer.output.T
        u = mask(index, "ffn_in", _norm(x, layer.ffn_gain, model.epsilon))
        opened = u @ layer.gate.T
        hidden = opened / (1 + np.exp(-opened)) * (u @ layer.up.T)
        if layer.ffn_rotation is not None:
            x = x @ layer.ffn_rotation
        x = x + mask(index, "ffn_hidden", hidden) @ layer.down.T
    return _norm(x, model.gain, model.epsilon) @ model.head.T


def fold_gains(model: Llama) -> Llama:
    """Multiply the gains of the norms into the matrices behind them; all gains become 1.

    The head gets the last one, and with it an array of its own: it is tied no longer. Nothing is
    subtracted from the embedding: that would be right for LayerNorm only.
    """
    one = np.ones_like(model.gain)
    layers = tuple(dataclasses.replace(
        layer, mix_gain=one, ffn_gain=one, query=layer.query * layer.mix_gain,
        key=layer.key * layer.mix_gain, value=layer.value * layer.mix_gain,
        gate=layer.gate * layer.ffn_gain, up=layer.up * layer.ffn_gain) for layer in model.layers)
    return dataclasses.replace(model, layers=layers, gain=one, head=model.head * model.gain)


def _singular_vectors(matrix: Vector) -> Vector:
    """Rotation that makes the columns of ``matrix`` orthogonal, the longest first."""
    return np.linalg.svd(matrix, full_matrices=True)[2].T


def rotate(model: Llama) -> Llama:
    """Turn the residual stream so that key and gate matrices have orthogonal columns.

    The result computes the same, with one rotation of the residual stream for each key and mask
    matrix but the first. A mask works best on the lists in front of those two matrices.
    """
    model = fold_gains(model)
    now = _singular_vectors(model.layers[0].key)
    embedding = model.embedding @ now
    layers = []
    for index, layer in enumerate(model.layers):
        middle = _singular_vectors(layer.gate)
        last = index + 1 == len(model.layers)
        after = middle if last else _singular_vectors(model.layers[index + 1].key)
        layers.append(dataclasses.replace(
            layer, query=layer.query @ now, key=layer.key @ now, value=layer.value @ now,
            mix_rotation=now.T @ middle, output=middle.T @ layer.output,
            gate=layer.gate @ middle, up=layer.up @ middle,
            ffn_rotation=None if last else middle.T @ after, down=after.T @ layer.down))
        now = after
    return dataclasses.replace(model, embedding=embedding, layers=tuple(layers),
                               head=model.head @ now)


def linear_products(model: Llama, kept: dict[str, float] | None = None) -> float:
    """Count the products that the matrices of the layers take for a token, rotations included.

    Parameters
    ----------
    model : Llama
    kept : dict, optional
        Share of the activations that each list keeps; by default all of them. Rotations keep all.
    """
    products = 0.0
    for layer in model.layers:
        products += sum((1.0 if kept is None else kept[name]) * getattr(layer, matrix).size
                        for name, matrices in MATRICES.items() for matrix in matrices)
        products += sum(rotation.size for rotation in (layer.mix_rotation, layer.ffn_rotation)
                        if rotation is not None)
    return products


def read_llama2c(path: str | os.PathLike) -> Llama:
    """Read a model in the format of llama2.c.

    Raises
    ------
    ModelFileError
        If it cannot be read.
    """
    file = Llama2cFile(Path(path))
    arrays = {name: array.astype(np.float64) for name, array in file.arrays.items()}
    tied = file.arrays["head"] is file.arrays["embedding"]
    layers = tuple(LlamaLayer(**{field: arrays[name][index] for field, name in _ARRAYS.items()})
                   for index in range(file.layers))
    return Llama(arrays["embedding"], arrays["embedding" if tied else "head"], layers,
                 arrays["norm"], file.heads, file.kv_heads)
