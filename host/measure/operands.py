"""Operands of one layer of a model, as the golden machine computes with them.

``hw.energy`` measures units with them; :class:`hw.energy.operands.Recorded` says what there is.
"""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from host.models.base import LanguageModel
from hw.energy.operands import Recorded
from sim.golden.arithmetic import ARITHMETICS, Arithmetic
from sim.golden.evaluate import ExactProducts, GoldenLM, model_matrices
from sim.golden.graph import Kind, Value
from sim.golden.wina import column_norms

__all__ = ["record_operands"]

#: Tokens whose vectors are recorded: the last ones; of the products, the last token's alone.
_TOKENS = 4
#: Rows of the matrix: a multiple of the trits of every packing.
_ROWS = 60


class _Listening(GoldenLM):
    """Keeps what steps of one part multiply and quantize."""

    def __init__(self, model: LanguageModel, arithmetic: Arithmetic, part: str):
        listening = copy.copy(arithmetic)
        listening.multiply = self._multiply
        super().__init__(model, listening, ExactProducts(model_matrices(model)))
        self._plain = arithmetic.multiply
        self._part = part
        self._now = False
        self.factors: list[tuple[NDArray, NDArray]] = []
        self.quantized: dict[str, NDArray] = {}
        self.codes: dict[str, NDArray] = {}

    def _multiply(self, x: NDArray, y: NDArray) -> NDArray:
        if self._now:
            x, y = np.broadcast_arrays(x, y)
            self.factors.append((x[-1], y[-1]))
        return self._plain(x, y)

    def execute(self, steps: Sequence[Value], values: dict[Value, Any], tokens: NDArray,
                state: Any) -> None:
        """Execute steps one by one."""
        for step in steps:
            here = step.part == self._part
            self._now = here and step.kind in (Kind.MULTIPLY, Kind.RECURRENCE)
            before = len(self.factors)
            if here and step.kind is Kind.CODES:
                self.quantized[step.name] = values[step.operands[0]][-_TOKENS:]
            super().execute([step], values, tokens, state)
            if here and step.kind is Kind.CODES:
                self.codes[step.name] = values[step].values[-_TOKENS:]
            del self.factors[before:-1]         # a recurrence multiplies token by token


def record_operands(model: LanguageModel, tokens: Sequence[int], layer: int) -> Recorded:
    """Run a ternary MatMul-free model and record one layer's operands.

    Parameters
    ----------
    model : LanguageModel
    tokens : sequence of int
        A text, from the token that documents begin with on.
    layer : int
    """
    part = f"blk.{layer}"
    found = {}
    for name in ("lmul", "exact_float32"):
        lm = found[name] = _Listening(model, ARITHMETICS[name], part)
        lm.forward(np.array([tokens]), lm.start())
    operands = {name: [np.concatenate(side) for side in zip(*lm.factors, strict=True)]
                for name, lm in found.items()}
    matrices = model.network().lists()[f"{part}.ffn_in"]
    up = next(matrix for matrix in matrices if matrix.name == f"{part}.ffn_up")
    machine = found["lmul"]
    return Recorded(
        lmul_x=operands["lmul"][0], lmul_y=operands["lmul"][1],
        float_x=operands["exact_float32"][0], float_y=operands["exact_float32"][1],
        vectors=machine.quantized["ffn_in"], codes=machine.codes["ffn_in"],
        hidden=machine.quantized["ffn_hidden"],
        trits=np.asarray(up.weights[:_ROWS], np.int8),
        norms=column_norms([matrix.weights for matrix in matrices]))
