"""``tally experiment rotation``: WINA against TEAL on rotated and ternary weights."""

import argparse
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from host.cli.experiment import common
from host.cli.experiment.common import command_line, print_row, versions
from host.compress.masks import METHODS
from host.compress.rotation import (
    MATRICES,
    Llama,
    fold_gains,
    forward,
    linear_products,
    read_llama2c,
    rotate,
)
from host.measure.compare import log_softmax
from hw.records import write_record

NAME = "rotation"
HELP = "measure WINA against TEAL on float, rotated and ternary weights"
DESCRIPTION = ("Measure WINA against TEAL on float weights, rotated ones and ternary ones, and "
               "write docs/results/wina_rotation.json.")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("model", type=Path, metavar="MODEL.bin", help="model file of llama2.c")


#: Text that a Llama-like model reads: sampled from the model itself, which it predicts best.
_SAMPLES, _SAMPLE_TOKENS = 4, 160

_TRANSFORMS = {"float": fold_gains, "ternary": lambda model: _ternary(fold_gains(model)),
               "float, rotated": rotate}


def _ternary(model: Llama) -> Llama:
    """Round each matrix to trits times the mean of its magnitudes."""
    def rounded(weights: NDArray) -> NDArray:
        scale = np.abs(weights).mean()
        return scale * np.clip(np.rint(weights / scale), -1, 1)

    return dataclasses.replace(model, layers=tuple(
        dataclasses.replace(layer, **{name: rounded(getattr(layer, name))
                                      for names in MATRICES.values() for name in names})
        for layer in model.layers))


def _sample(model: Llama, seed: int) -> NDArray[np.int64]:
    """Text that a model writes; token 1 begins it."""
    rng = np.random.default_rng(seed)
    tokens = [1]
    while len(tokens) < _SAMPLE_TOKENS:
        logits = forward(model, np.array(tokens))[-1]
        shares = np.exp(logits - logits.max())
        tokens.append(int(rng.choice(len(shares), p=shares / shares.sum())))
    return np.array(tokens)


def _keep_float(x: NDArray, norms: NDArray | float, keep: int) -> NDArray:
    """Keep the ``keep`` largest ``|x| * norm`` of each row."""
    found = np.abs(x) * norms
    least = np.partition(found, found.shape[1] - keep, axis=1)[:, found.shape[1] - keep]
    return np.where(found >= least[:, np.newaxis], x, 0.0)


class _RotationText:
    """A model reading a text, and what masks do to it.

    Parameters
    ----------
    model : Llama
    texts : sequence of token arrays
    """

    def __init__(self, model: Llama, texts: Sequence[NDArray[np.int64]]):
        self._model, self._texts = model, texts
        inputs: dict[tuple[int, str], list[NDArray]] = {}

        def record(layer: int, name: str, x: NDArray) -> NDArray:
            inputs.setdefault((layer, name), []).append(x)
            return x

        self._dense = [log_softmax(forward(model, text, record), np.float64) for text in texts]
        self._inputs = {key: np.concatenate(found) for key, found in inputs.items()}

    def _stacked(self, layer: int, names: Sequence[str]) -> NDArray:
        return np.concatenate([getattr(self._model.layers[layer], name) for name in names])

    def spread(self, names: Sequence[str]) -> float:
        """Coefficient of variation of the column norms, in the mean of the layers."""
        norms = [np.linalg.norm(self._stacked(layer, names), axis=0)
                 for layer in range(len(self._model.layers))]
        return float(np.mean([array.std() / array.mean() for array in norms]))

    def error(self, method: str, sparsity: float, name: str, names: Sequence[str]) -> float:
        """Relative error of the product of the matrices ``names`` behind a mask for them."""
        errors = []
        for layer in range(len(self._model.layers)):
            matrix, x = self._stacked(layer, names), self._inputs[layer, name]
            norms = np.linalg.norm(matrix, axis=0) if method == "wina" else 1.0
            masked = _keep_float(x, norms, x.shape[1] - round(sparsity * x.shape[1]))
            errors.append(np.linalg.norm((x - masked) @ matrix.T) / np.linalg.norm(x @ matrix.T))
        return float(np.mean(errors))

    def divergence(self, method: str, sparsity: float) -> float:
        """Kullback-Leibler divergence from the model without masks, in bits a token."""
        def mask(layer: int, name: str, x: NDArray) -> NDArray:
            norms = (np.linalg.norm(self._stacked(layer, MATRICES[name]), axis=0)
                     if method == "wina" else 1.0)
            return _keep_float(x, norms, x.shape[1] - round(sparsity * x.shape[1]))

        total = 0.0
        for text, dense in zip(self._texts, self._dense, strict=True):
            masked = log_softmax(forward(self._model, text, mask), np.float64)
            total += float((np.exp(dense) * (dense - masked)).sum())
        return total / math.log(2) / sum(map(len, self._texts))


def run(console: Console, options: argparse.Namespace) -> int:
    """Measure, print the rows and write the record."""
    model = read_llama2c(options.model)
    texts = [_sample(model, seed) for seed in range(_SAMPLES)]
    rows = []
    for weights, transform in _TRANSFORMS.items():
        changed = transform(model)
        text = _RotationText(changed, texts)
        for sparsity in common.SPARSITIES:
            for method in METHODS:
                share = linear_products(changed, dict.fromkeys(MATRICES, 1 - sparsity))
                rows.append({
                    "model": options.model.stem, "weights": weights, "method": method,
                    "sparsity": sparsity,
                    "spread_key": round(text.spread(["key"]), 4),
                    "spread_gate": round(text.spread(["gate"]), 4),
                    "error_key": round(text.error(method, sparsity, "mix_in", ["key"]), 4),
                    "error_gate": round(text.error(method, sparsity, "ffn_in", ["gate"]), 4),
                    "error_mix_in": round(text.error(method, sparsity, "mix_in",
                                                     MATRICES["mix_in"]), 4),
                    "error_ffn_in": round(text.error(method, sparsity, "ffn_in",
                                                     MATRICES["ffn_in"]), 4),
                    "divergence": round(text.divergence(method, sparsity), 5),
                    "products": round(share / linear_products(model), 4)})
                print_row(rows[-1])
    write_record("wina_rotation", maker=f"host experiment {NAME}", command=command_line(),
                 versions=versions(),
                 configuration={"model": options.model.stem, "samples": _SAMPLES,
                                "tokens_per_sample": _SAMPLE_TOKENS}, rows=rows)
    return 0
