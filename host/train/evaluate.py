"""Bits per byte of a network, and how many of its FFN's hidden elements are not zero."""

import dataclasses
import math

import numpy as np
import torch
import torch.nn.functional as F

from host.train.data import Documents
from host.train.network import Network, Sites, head

__all__ = ["ARITHMETICS", "Evaluation", "evaluate", "fit_logit_constant"]

#: ``quantized`` is the network as trained; ``float`` never quantizes an activation.
ARITHMETICS = {"quantized": Sites(quantize=True), "float": Sites(quantize=False)}

_LENGTH = 512
_BATCH = 16
_GRID = np.linspace(0.7, 1.2, 21)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Result of :func:`evaluate`.

    Attributes
    ----------
    bits_per_byte : tuple of float
        For each logit constant.
    density : tuple of float
        Share of non-zero codes in each layer's FFN hidden vector.
    """

    bits_per_byte: tuple[float, ...]
    density: tuple[float, ...]


@torch.no_grad()
def evaluate(network: Network, documents: Documents, sites: Sites, end: int,
             constants: tuple[float, ...]) -> Evaluation:
    """Measure in float32, each document from the zero state, its end-of-document token included.

    Parameters
    ----------
    network : Network
    documents : Documents
    sites : Sites
    end : int
        End-of-document token, which every document's first token is predicted from.
    constants : tuple of float
        Factors on the logits to measure with.
    """
    device = network.embedding.device
    parts = sorted(documents.split(), key=len, reverse=True)
    nats = torch.zeros(len(constants), dtype=torch.float64, device=device)
    nonzero = torch.zeros(network.shape.layers, dtype=torch.float64, device=device)
    for first in range(0, len(parts), _BATCH):
        batch = parts[first:first + _BATCH]
        columns = -(-len(batch[0]) // _LENGTH) * _LENGTH
        rows = np.full((len(batch), columns + 1), end, np.int64)
        for row, part in zip(rows, batch, strict=True):
            row[1:len(part) + 1] = part
        tokens = torch.from_numpy(rows).to(device)
        lengths = torch.tensor([len(part) for part in batch], device=device)
        states = torch.zeros(network.shape.layers, len(batch), network.shape.width, device=device)
        for start in range(0, columns, _LENGTH):
            chunk = tokens[:, start:start + _LENGTH]
            keep = (chunk != end).float()
            x, embedding, scale, states, hidden, _ = network(chunk, keep, states, sites)
            logits = head(x, embedding, scale, sites)
            targets = tokens[:, start + 1:start + _LENGTH + 1]
            valid = torch.arange(start, start + _LENGTH, device=device) < lengths[:, None]
            for index, constant in enumerate(constants):
                losses = F.cross_entropy((logits * constant).transpose(1, 2), targets,
                                         reduction="none")
                nats[index] += losses[valid].double().sum()
            nonzero += torch.stack([(codes[valid] != 0).double().mean(-1).sum()
                                    for codes in hidden])
    bits = (nats / math.log(2) / documents.size).tolist()
    return Evaluation(tuple(bits), tuple((nonzero / len(documents.tokens)).tolist()))


def fit_logit_constant(network: Network, documents: Documents, sites: Sites, end: int) -> float:
    """Find the factor on the logits that is best on ``documents``: a parabola through a grid."""
    bits = np.array(evaluate(network, documents, sites, end, tuple(_GRID)).bits_per_byte)
    best = int(np.clip(bits.argmin(), 1, len(_GRID) - 2))
    below, here, above = bits[best - 1:best + 2]
    offset = 0.5 * (below - above) / (below - 2 * here + above)
    return float(_GRID[best] + offset * (_GRID[1] - _GRID[0]))
