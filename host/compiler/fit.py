"""Which shapes of a language model fit a board's accelerator, and what a token of each costs."""

import dataclasses
import importlib.metadata
import platform
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from host.compiler.compile import compile_model
from host.compiler.errors import CompileError
from host.models.base import LanguageModel
from host.models.mmfreelm import Layer, TernaryLM, TernaryMatrix
from host.text.vocabulary import Vocabulary
from hw.boards.board import AcceleratorBoard
from hw.records import write_record
from sim.golden.machine import Machine
from sim.timing.memory import memory_timing
from sim.timing.program import token_cycles

__all__ = ["Fit", "ModelFit", "Shape", "fit", "fit_model", "largest", "write_fits"]

_HEAD_PLANES = 3        # trit planes of embedding and head


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """Shape of a MatMul-free language model; the head has the embedding's matrix."""

    width: int
    layers: int
    ffn_width: int
    vocab: int

    @property
    def trits(self) -> int:
        """Trits of all matrices; the embedding's count twice, as :class:`Fit` says."""
        layer = self.width * (4 * self.width + 3 * self.ffn_width)
        return self.layers * layer + 2 * _HEAD_PLANES * self.vocab * self.width

    def model(self) -> TernaryLM:
        """Make a random model of this shape, which is compiled as any other."""
        rng = np.random.default_rng(0)

        def matrix(rows: int, columns: int) -> TernaryMatrix:
            return TernaryMatrix(rng.integers(-1, 2, (rows, columns), dtype=np.int8), 1.0)

        width, ffn = self.width, self.ffn_width
        layers = tuple(Layer(
            forget=matrix(width, width), candidate=matrix(width, width), gate=matrix(width, width),
            output=matrix(width, width), ffn_gate=matrix(ffn, width), ffn_up=matrix(ffn, width),
            ffn_down=matrix(width, ffn), forget_bias=np.zeros(width, np.float32))
            for _ in range(self.layers))
        return TernaryLM(
            name=f"shape {width} x {self.layers}",
            # Three trit planes.
            embedding=rng.integers(-13, 14, (self.vocab, width), dtype=np.int8),
            embedding_scale=1.0, layers=layers, logit_scales={"lmul": 1.0},
            vocabulary=Vocabulary(tuple(map(str, range(self.vocab))), (), 0))


@dataclasses.dataclass(frozen=True)
class Fit:
    """A shape on a board.

    Attributes
    ----------
    shape : Shape
    trits : int
        Of all matrices; the embedding's count twice, for they lie there by columns and by rows.
    bytes, left : int
        Of the memory, used and not.
    instructions, elements : int
        Of the program, and of the vector memory.
    cycles : float
        Of a token in steady state, derived.
    limit : str
        What binds.
    tokens_per_second : float
        At the board's clock, derived.
    """

    shape: Shape
    trits: int
    bytes: int
    left: int
    instructions: int
    elements: int
    cycles: float
    limit: str
    tokens_per_second: float


def fit(board: AcceleratorBoard, shape: Shape) -> Fit:
    """Compile a model of this shape for a board.

    Raises
    ------
    CompileError
        If it does not fit: the first thing that is too small.
    """
    config = board.config
    # Before a large model is made: 5 trits take 8 bits at least.
    if shape.trits / 5 > config.memory_bytes:
        raise CompileError(f"Image must have at most {config.memory_bytes} bytes for board "
                           f"{board.name}, but its {shape.trits:,} trits alone have "
                           f"{shape.trits // 5:,}")
    image = compile_model(shape.model(), config)
    latency, refresh = memory_timing(board)
    cost = token_cycles(config, image.program.instructions, image.program.body,
                        latency=latency, refresh=refresh)
    return Fit(
        shape=shape, trits=sum(part.trits for part in image.parts), bytes=len(image.memory),
        left=config.memory_bytes - len(image.memory),
        instructions=len(image.program.instructions),
        elements=sum(count for _, count in image.program.vectors.values()),
        cycles=cost.cycles, limit=cost.limit, tokens_per_second=board.clock_hz / cost.cycles)


@dataclasses.dataclass(frozen=True)
class ModelFit:
    """A model on a board.

    Attributes
    ----------
    bytes, left : int
        Of the memory, used by the image and its caches, and not.
    cycles : float
        Of a token, derived from the lists that tokens of a text had.
    limit : str
        What binds.
    tokens_per_second : float
        At the board's clock, derived.
    """

    bytes: int
    left: int
    cycles: float
    limit: str
    tokens_per_second: float


def fit_model(board: AcceleratorBoard, model: LanguageModel, tokens: Sequence[int]) -> ModelFit:
    """Compile a model for a board, and derive what a token costs where zeros are left out.

    Parameters
    ----------
    board : AcceleratorBoard
    model : LanguageModel
    tokens : sequence of int
        A text that the golden machine reads, for what its lists hold; the first token of a
        sequence is not counted.

    Raises
    ------
    CompileError
        If the model does not fit: the first thing that is too small.
    """
    config = board.config
    image = compile_model(model, config, sparse=True)
    latency, refresh = memory_timing(board)
    program = image.program
    machine = Machine(config, program.encoded(), image.contents())
    costs = []
    for index, token in enumerate(tokens):
        machine.lists.clear()
        machine.run(token, program.start(new=index == 0))
        costs.append(token_cycles(config, program.instructions, program.body, latency=latency,
                                  refresh=refresh, lists=machine.list_counts(), position=index))
    cycles = float(np.mean([cost.cycles for cost in costs[1:]]))
    return ModelFit(image.memory_bytes, config.memory_bytes - image.memory_bytes, cycles,
                    costs[-1].limit, board.clock_hz / cycles)


def largest(board: AcceleratorBoard, shape: Shape) -> Fit:
    """Find the most layers that fit, the rest of the shape as given.

    Raises
    ------
    CompileError
        If not even one layer fits.
    """
    found = fit(board, dataclasses.replace(shape, layers=1))
    while True:
        try:
            found = fit(board, dataclasses.replace(shape, layers=found.shape.layers + 1))
        except CompileError:
            return found


def write_fits(path: Path, command: str, board: AcceleratorBoard, fits: Sequence[Fit]) -> None:
    """Write shapes as the JSON that the tables of the docs are made from."""
    rows = [{"board": board.name, **dataclasses.asdict(found.shape),
             "trits": found.trits, "bytes": found.bytes, "bytes_left": found.left,
             "cycles": round(found.cycles), "limit": found.limit,
             "tokens_per_second": round(found.tokens_per_second)} for found in fits]
    write_record(
        path, maker="host fit", command=command,
        versions={"python": platform.python_version(),
                  "numpy": importlib.metadata.version("numpy")},
        configuration={"board": board.name, "clock_hz": board.clock_hz,
                       **dataclasses.asdict(board.config)}, rows=rows)
