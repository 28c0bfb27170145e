"""The compiler: a language model becomes a program and an image of its weights.

A :class:`sim.golden.network.Network` is what the program computes, docs/machine.md the machine it
runs on.

**Order.** Execution goes through the program once, but multiplying and reading weights run beside
it. So all products of one list are queued before the first of them is drained: the engine
multiplies the next matrix while this one's results are worked on, and weights are read ahead of
both. Every other step of the network is executed as soon as what it needs is there, in the
network's order: before the first product is queued, behind it, or behind a drain.

**Products.** A dense matrix is read as one stream. Of a list that leaves columns out, each column
is read with all transfers of the port that it touches; so the rows of all matrices of such a list
are divided into products whose columns are whole transfers.

**Places.** Elements of a vector lie in the order that instructions want, filled up with zeros to
whole words and transfers; rows and columns of matrices, and constants, follow. Heads that are
turned have all their first halves in front of their second ones, so that a VECTOR turns all heads
at once; other heads lie one behind the other.

**Vector memory.** Its first word is zero from power-up on and never written. From it, a new
sequence clears the state: each copy doubles what is zero. A vector keeps its place until it has
been read for the last time; a step may write its result over an operand that nobody reads again.

**Vocabulary.** A field of an instruction and an index of a list name so many tokens; a larger
vocabulary is divided into ranges. All ranges share the columns of the embedding: a column holds the
vectors of one token of each, one below the other. They are drained one after the other, each times
a NORM that is 1 for the range of the token and 0 for all others, and added up. A pass is told the
range by where it begins (:attr:`host.image.Program.ranges`); the vector that the NORMs look at has
a word for each range, and one in front of them that is moved into one of these.

**Sparsity.** A list that leaves out what is zero changes no result. In a gated network, a row of
the up projection counts only where its gate is not zero: it is walked by row, for a list of the
gates that are alive, and drained into a place of its own, which holds finite numbers from the
clearing on; so what is not drained is multiplied by a zero. Only lists of a gate file lose
something.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from host.device import DeviceError, pack_matrix, planes_needed, row_bounds
from host.evaluate import GateMap
from host.image import Image, Part, Program
from host.model import LanguageModel, Vocabulary
from hw.config import TILE, CoreConfig
from hw.isa import FIELDS, REGISTERS, Batch, Function, Instruction, Opcode
from hw.order import OrderError, check_order
from sim.golden.bf16 import from_float
from sim.golden.model import ARITHMETICS
from sim.golden.network import VECTORS, Kind, Value
from sim.golden.schedule import TokenCycles
from sim.golden.trits import pack_words, planes
from sim.golden.wina import Gate

__all__ = ["CONTEXT", "CompileError", "PlaneCount", "compile_fitted", "compile_model", "losses",
           "planes_of"]

# Scalar registers: 0 is always 1, this one belongs to the list, the rest hold norms. A list of a
# token has no exponent: there it says whether the token is of a range.
_EXPONENT = 1

# A bf16 number whose NORM is 1, and not only nearly: L-Mul makes more of a square than it is.
_MARK = 0x3F7C

# Rows of a product, and columns, that a field of an instruction holds.
_FIELD = 2 ** FIELDS["count"] - 1


class CompileError(DeviceError):
    """A model does not fit a configuration; the message is one sentence."""


@dataclasses.dataclass(frozen=True, eq=False)
class _Rows:
    """Rows of a step's matrix; ``first`` is the first of them.

    Attributes
    ----------
    matrix : integer array, shape (rows, columns)
        All of them, laid out.
    trits : int array, shape (rows,)
        Elements of each row that are not there to fill up.
    """

    step: Value
    matrix: NDArray[np.integer]
    trits: NDArray[np.int64]
    first: int
    count: int

    @property
    def name(self) -> str:
        """Name of the matrix, with the rows unless these are all."""
        name = self.step.weights.name
        whole = self.count == len(self.matrix)
        return name if whole else f"{name}[{self.first}:{self.end}]"

    @property
    def end(self) -> int:
        """The row behind the last one."""
        return self.first + self.count

    @property
    def last(self) -> bool:
        """Whether no row of the matrix is behind them."""
        return self.end == len(self.matrix)

    @property
    def weights(self) -> NDArray[np.integer]:
        """These rows of the matrix."""
        return self.matrix[self.first:self.end]

    @property
    def elements(self) -> int:
        """Elements of these rows that are not there to fill up."""
        return int(self.trits[self.first:self.end].sum())


@dataclasses.dataclass(frozen=True)
class _Product:
    """Rows of one matrix, or of several that share a list, that are multiplied at once."""

    name: str
    address: int
    parts: tuple[_Rows, ...]
    columns: int
    planes: int

    @property
    def rows(self) -> int:
        """Rows of all parts."""
        return sum(part.count for part in self.parts)


@dataclasses.dataclass(frozen=True)
class _Action:
    """What is done next: a step, or a product is queued, or rows of the oldest one are taken.

    Attributes
    ----------
    step : Value
        Of a product that is queued: that of its first rows.
    product : _Product, optional
        That is queued.
    part : _Rows, optional
        That is taken.
    live : Value, optional
        Of a product by row: the vector whose elements that are not zero are its rows.
    """

    step: Value
    product: _Product | None = None
    part: _Rows | None = None
    live: Value | None = None


def _name(rows: Sequence[_Rows]) -> str:
    return " + ".join(part.name for part in rows)


def _split(rows: Sequence[_Rows], count: int) -> tuple[list[_Rows], list[_Rows]]:
    """Divide rows into the first ``count`` and the others."""
    first, rest = [], []
    for part in rows:
        taken = min(count, part.count)
        count -= taken
        if taken:
            first.append(dataclasses.replace(part, count=taken))
        if taken < part.count:
            rest.append(dataclasses.replace(part, first=part.first + taken,
                                            count=part.count - taken))
    return first, rest


def _bf16(value: float) -> int:
    return int(from_float(np.array(value, np.float64)))


class _Memory:
    """The image: packed matrices and vectors, one after the other."""

    def __init__(self, config: CoreConfig):
        self._config = config
        self._data = bytearray()
        self.parts: list[Part] = []
        self.room = 0                           # bytes of caches

    def by_column(self, rows: Sequence[_Rows], *, token: bool = False) -> list[_Product]:
        """Pack rows, one below the other; pack_matrix proves that no accumulator overflows."""
        engine, count = self._config.engine, sum(part.count for part in rows)
        if count > _FIELD < engine.max_rows:        # accumulators are a power of two
            depth = 2 ** ((_FIELD // engine.lanes).bit_length() - 1)
            engine = dataclasses.replace(engine, accumulator_depth=depth)
        packed = pack_matrix(_name(rows), np.concatenate([part.weights for part in rows]), engine,
                             token=token)
        products, rest = [], [*rows]
        for _, count, image in packed.blocks:
            parts, rest = _split(rest, count)
            address = self._add(_name(parts), "trits", image.tobytes(),
                                sum(part.elements for part in parts) * packed.planes)
            products.append(_Product(_name(parts), address, tuple(parts), packed.columns,
                                     packed.planes))
        return products

    def by_row(self, rows: _Rows) -> list[_Product]:
        """Pack a matrix to be walked by row: its rows are stored as columns are."""
        engine, weights = self._config.engine, rows.weights
        packed = pack_matrix(rows.name, weights, engine)    # which proves that no sum overflows
        image = pack_words(planes(weights.T, packed.planes), engine)
        address = self._add(rows.name, "trits", image.tobytes(), rows.elements * packed.planes)
        return [_Product(rows.name, address, (rows,), packed.columns, packed.planes)]

    def vector(self, name: str, values: NDArray[np.uint16]) -> int:
        """Place a vector of bf16 numbers; return its address."""
        return self._add(name, "vector", values.astype("<u2").tobytes(), 0)

    def cache(self, name: str, size: int) -> int:
        """Leave room behind all parts; return its address."""
        address = len(self._data) + self.room
        self.room += size
        self._check(name)
        return address

    def _add(self, name, kind, data, trits):
        assert not self.room
        port = self._config.port_bytes
        address = len(self._data)
        self._data += data
        self._data += bytes(-len(data) % port)
        self._check(name)
        self.parts.append(Part(name, kind, address, len(data), trits))
        return address

    def _check(self, name: str) -> None:
        end = len(self._data) + self.room
        if end > self._config.memory_bytes:
            raise CompileError(f"Image must have at most {self._config.memory_bytes} bytes for an "
                               f"address width of {self._config.address_width}, but {name} ends "
                               f"at byte {end}")

    def bytes(self) -> bytes:
        """Return the memory from address 0."""
        return bytes(self._data)


class _Vectors:
    """Vector memory, given out in places of whole words; the first word is zero."""

    def __init__(self, config: CoreConfig):
        self._config = config
        self.table: dict[str, tuple[int, int]] = {}
        self._free: list[tuple[int, int]] = []
        self._end = 0
        self.take("zero", config.vector_lanes)

    def take(self, name: str, count: int) -> int:
        """Find a place of ``count`` elements that is free, or add one of this name."""
        for place in self._free:
            if place[1] == count:
                self._free.remove(place)
                return place[0]
        first, self._end = self._end, self._end + count
        number = sum(known.partition("#")[0] == name for known in self.table)
        self.table[f"{name}#{number + 1}" if number else name] = first, count
        return first

    def free(self, first: int, count: int) -> None:
        """Give a place back."""
        self._free.append((first, count))
        self._free.sort()

    def check(self, least: str = "") -> None:
        """Check that there are no more places than memory; ``least`` says that more may come."""
        if self._end > self._config.vector_depth:
            raise CompileError(f"Vectors must fit {self._config.vector_depth} elements of vector "
                               f"memory, but the model needs {least}{self._end}")


#: Steps whose vectors lie as those of their operands.
_ELEMENTWISE = (Kind.ADD, Kind.SUBTRACT, Kind.MULTIPLY, Kind.RELU, Kind.SILU,
                Kind.SIGMOID_OF_NEGATIVE, Kind.RECURRENCE, Kind.ROTATE)


class _Layout:
    """Where each element of each vector lies.

    Vectors that are added or multiplied lie alike: so a layout belongs to all that are connected
    that way.
    """

    def __init__(self, steps: Sequence[Value], config: CoreConfig):
        # A vector fills whole words of the vector memory, and whole transfers of the port.
        self.unit = math.lcm(config.vector_lanes, max(1, config.port_bytes // 2))
        self._parents: dict[Value, Value] = {}
        self._orders: dict[Value, tuple[str, int]] = {}
        self._known: dict[Value, NDArray[np.int64]] = {}
        for step in steps:
            if step.kind in _ELEMENTWISE:
                for operand in step.operands[:1 if step.kind is Kind.ROTATE else None]:
                    one, other = self._root(operand), self._root(step)
                    if one is not other:
                        self._parents[one] = other
        for step in steps:
            if step.kind is Kind.ROTATE:
                self._order(step, "halves", step.heads)
        for step in steps:
            if step.kind is not Kind.ATTEND:
                continue
            query, *cached = step.operands
            key, value = (append.operands[0] for append in cached)
            # Scores do not depend on the order, if queries and keys have the same.
            order, _ = self._orders.get(self._root(query), ("heads", 0))
            self._order(query, order, step.heads)
            self._order(key, order, cached[0].heads)
            self._order(value, "heads", cached[1].heads)
            self._order(step, "heads", step.heads)

    def _root(self, value: Value) -> Value:
        while value in self._parents:
            value = self._parents[value]
        return value

    def _order(self, value: Value, order: str, heads: int) -> None:
        wanted = order, heads
        if self._orders.setdefault(self._root(value), wanted) != wanted:
            raise CompileError(f"Vector {value.label} would have to lie in two orders at once")

    def halves(self, value: Value) -> bool:
        """Whether all first halves of heads lie in front of all second ones."""
        return self._orders[self._root(value)][0] == "halves"

    def half(self, elements: int) -> int:
        """Places of half a head of ``elements``."""
        return -(-elements // (2 * self.unit)) * self.unit

    def __call__(self, value: Value) -> NDArray[np.int64]:
        """Return the number of the element in each place of a vector, -1 where a zero fills up."""
        if value not in self._known:
            order, heads = self._orders.get(self._root(value), ("halves", 0))
            self._known[value] = self._places(value.elements, order, heads)
        return self._known[value]

    def _places(self, elements: int, order: str, heads: int) -> NDArray[np.int64]:
        if not heads:
            size = -(-elements // self.unit) * self.unit
            return np.where(np.arange(size) < elements, np.arange(size), -1)
        size = elements // heads
        half = self.half(size)
        # By head, half and place; a head that is not turned is one piece.
        places = np.full((heads, 2 * half), -1, np.int64)
        numbers = np.arange(elements).reshape(heads, size)
        if order == "heads":
            places[:, :size] = numbers
            return places.reshape(-1)
        for first, part in zip((0, half), np.split(numbers, 2, axis=1), strict=True):
            places[:, first:first + size // 2] = part
        return places.reshape(heads, 2, half).transpose(1, 0, 2).reshape(-1)


def _lay(values: NDArray, places: NDArray[np.int64], axis: int = 0) -> NDArray:
    """Put values into their places, and zeros where there is none."""
    if len(places) == values.shape[axis] and (places == np.arange(len(places))).all():
        return values
    laid = np.take(values, places, axis)
    np.moveaxis(laid, axis, 0)[places < 0] = 0
    return laid


_LMUL = ARITHMETICS["lmul"]

_CACHE_FUNCTIONS = {"bf16": Function.BF16, "e4m3": Function.E4M3}

#: Function of a step that is one VECTOR.
_FUNCTIONS = {Kind.ADD: Function.ADD, Kind.SUBTRACT: Function.SUBTRACT,
              Kind.MULTIPLY: Function.LMUL, Kind.RELU: Function.RELU, Kind.SILU: Function.SILU,
              Kind.SIGMOID_OF_NEGATIVE: Function.SIGMOID_OF_NEGATIVE}


class _Compiler:
    """Writes the program of one model."""

    def __init__(self, model: LanguageModel, config: CoreConfig, sparse: bool,
                 gates: GateMap | None, prefill: int):
        self._model = model
        self._config = config
        self._sparse = sparse
        self._gates = dict(gates or {})
        self._prefill = prefill
        # Tokens of each range of the vocabulary, the last one may have fewer; and its first one.
        self._tokens = _range_tokens(model, config)
        self._ranges = range(0, model.vocab, self._tokens)
        self._table = 0                         # address of the marks that tell ranges apart
        self._marks = self._none = 0            # places: of the token's, and of none
        self._batch = 1                         # vectors of the lists that are made
        self._slot = 0                          # ... and the one that is worked on
        self._normed: tuple[Value, int] | None = None   # what the last register is the norm of
        self._norms: dict[bytes, int] = {}
        self._readers: dict[Value, list[Value]] = {}
        self._placed: set[Value] = set()        # whose matrices are in memory
        self._fused: dict[Value, Value] = {}    # linear step to the ReLU of it
        self._live: dict[Value, Value] = {}     # linear step by row to the gate of its rows
        self._rows = 0                          # place of the results by row
        self._memory = _Memory(config)
        self._vectors = _Vectors(config)
        self._layout = _Layout(model.network().steps, config)
        self._heads: dict[Value, int] = {}      # POSITION: heads that are turned by it
        self._caches: dict[Value, int] = {}     # APPEND: its first cache
        self._products: dict[Value, list[_Product]] = {}
        self._addresses: dict[Value, int] = {}
        self._places: dict[Value, int] = {}
        self._registers: dict[Value, int] = {}
        self._instructions: list[Instruction] = []
        self._notes: list[str] = []
        self._where = ""

    def compile(self) -> Image:
        steps = self._model.network().steps
        self._find(steps)
        for step in steps:
            self._place(step)
        # A walk by row is of one vector.
        columns = {step: self._memory.by_column([self._matrix(step)]) for step in self._live
                   } if self._prefill > 1 else {}
        if len(self._ranges) > 1:
            # One mark: what begins so many words in front of it has it there.
            count = len(self._ranges)
            marks = np.zeros((2 * count + 1, self._layout.unit), np.uint16)
            marks[count, 0] = _MARK
            self._table = self._memory.vector("ranges", marks.reshape(-1))
        self._reserve(steps)
        states = [step for step in steps if step.kind is Kind.RECURRENCE]
        size = sum(map(self._size, states))
        first = self._vectors.take("states", size) if size else 0
        self._where = "new sequence"
        cleared = [(first, size, "state")]
        if self._live:
            count = max(map(self._size, self._live))
            self._rows = self._vectors.take("rows", count)
            cleared.append((self._rows, count, "rows"))
        for place in cleared:
            self._clear(*place)
        if self._caches and not self._instructions:
            # A sequence begins at instruction 0, every other token behind it.
            count = self._config.vector_lanes
            self._clear(self._vectors.take("nothing", count), count, "nothing")
        for step in states:
            self._places[step], first = first, first + self._size(step)
        body = len(self._instructions)
        starts = self._choose() if len(self._ranges) > 1 else []
        actions = [action for phase in self._phases(steps) for action in self._order(phase)]
        last = {operand: index for index, action in enumerate(actions) if action.product is None
                for operand in action.step.operands}
        for index, action in enumerate(actions):
            self._where = action.step.part
            self._act(action, {operand for operand in action.step.operands
                               if last[operand] == index and operand not in states})
        self._where = "head"
        self._stop("the token is done")
        begins: tuple[int, ...] = ()
        if self._prefill > 1:
            self._live = {}
            self._products |= columns
            begins = self._read_prompt(steps, cleared)
        ranges = tuple(zip(self._ranges, starts, self._announce(), strict=True)) if starts else ()

        self._vectors.check()
        depth = self._config.program_depth
        if len(self._instructions) > depth:
            raise CompileError(f"Program must have at most {depth} instructions, "
                               f"not {len(self._instructions)}")
        heads = tuple((part.first, part.count) for product in self._products[steps[-1]]
                      for part in product.parts)
        program = Program(tuple(self._instructions), tuple(self._notes), body, heads,
                          self._vectors.table, begins, ranges)
        try:
            check_order(self._config, program.instructions, program.starts)
        except OrderError as error:
            raise CompileError(f"Program would wait for ever: {error}") from None
        words = self._model.vocabulary
        return Image(self._config, self._model.name, self._model.vocab, program,
                     tuple(self._memory.parts), self._memory.bytes(),
                     words if isinstance(words, Vocabulary) else None,
                     context=self._context(steps), room=self._memory.room)

    def _stop(self, note: str) -> None:
        # Where passes begin at several places, fetching waits for the next one.
        waits = self._prefill > 1 or len(self._ranges) > 1
        self._emit(Opcode.STOP, note, constant=int(waits))

    # Ranges of the vocabulary.

    def _choose(self) -> list[int]:
        """Write where a token of each range begins; return that, the first range first.

        A pass moves the mark in front of all ranges to the one where it begins: what comes behind
        that finds nothing to move. It is moved to the first range by looking at both.
        """
        count = (len(self._ranges) + 1) * self._layout.unit
        self._marks = self._vectors.take("range", count)
        self._none = self._vectors.take("no range", count)
        starts = []
        for index, first in reversed([*enumerate(self._ranges)]):
            self._where = f"token from {first}"
            starts.append(len(self._instructions))
            if index:
                place, count = self._mark(index)[0], self._config.vector_lanes
                self._vector(Function.ADD, f"it is of range {index}, unless another was announced",
                             place, place, self._marks, count=count)
                self._vector(Function.COPY, "... and of no other", self._marks, 0, count=count)
        return starts[::-1]

    def _mark(self, index: int) -> tuple[int, int]:
        """Find the elements of which one is not zero if the token is of a range: first, count."""
        unit = self._layout.unit
        return self._marks + (1 + index if index else 0) * unit, unit if index else 2 * unit

    def _announce(self) -> Iterator[int]:
        """Write the passes that precede a token at instruction 0; yield where each begins.

        They move the mark already, and load what it is at the beginning of all other passes.
        """
        words, unit = len(self._ranges) + 1, self._layout.unit
        for index, first in enumerate(self._ranges):
            yield len(self._instructions)
            self._where = f"new sequence, token from {first}"
            for target, word, note in ((self._none, 0, "no range"),
                                       (self._marks, 1 + index, f"range {index}")):
                self._emit(Opcode.LOAD, note, target=target, count=words * unit,
                           address=self._table + (words - 1 - word) * 2 * unit)
            self._stop("the range is known")

    def _take_ranges(self, part: _Rows) -> None:
        """Take rows of the embedding, which has all ranges one below the other, and add them up."""
        step, size = part.step, self._size(part.step)
        if step not in self._places:
            self._places[step] = self._vectors.take(step.name, size)
        other = self._vectors.take("other range", size)
        for index in range(part.first // size, -(-part.end // size)):
            first, end = max(part.first - index * size, 0), min(part.end - index * size, size)
            target, (place, count) = self._places[step] + first, self._mark(index)
            self._emit(Opcode.NORM, f"1 for a token of range {index}, 0 for others",
                       target=_EXPONENT, a=place, count=count)
            self._emit(Opcode.DRAIN, f"{step.name} of range {index} = {part.name}",
                       function=Function.COPY, target=other + first if index else target,
                       b=_EXPONENT, count=end - first, constant=_bf16(step.weights.scale))
            if index:
                self._vector(Function.ADD, f"{step.name} = that of all ranges", target, target,
                             other + first, count=end - first)
        self._vectors.free(other, size)
        if part.last:
            self._vector(Function.COPY, "the next token is of no range yet", self._marks,
                         self._none, count=(len(self._ranges) + 1) * self._layout.unit)

    # The prompt.

    def _read_prompt(self, steps: Sequence[Value],
                     cleared: Sequence[tuple[int, int, str]]) -> tuple[int, ...]:
        """Write the passes that read tokens of a prompt together; return where they begin.

        A pass for each token but the last one keeps its vector; that of the last one goes through
        the model with all of them. What leads to logits and to no state is only done for it.
        """
        first, *_ = steps
        needed = {step for step in steps if step.kind is Kind.RECURRENCE}
        for step in reversed(steps):
            if step in needed:
                needed.update(step.operands)
        # A list is one of a batch for all that is multiplied by it.
        needed.update(step for step in steps if step.matrix is not None and step.operands
                      and step.operands[0] in needed)
        self._batch = self._prefill
        slots: list[dict[Value, int]] = [
            {step: place for step, place in self._places.items()
             if step.kind is Kind.RECURRENCE} for _ in range(self._batch)]
        self._where = "new prompt"
        begins = [len(self._instructions)]
        for place in cleared:
            self._clear(*place)
        for slot in range(self._batch):
            begins.append(len(self._instructions))
            self._where = f"token {slot} of the prompt"
            self._places = slots[slot]
            self._emit(Opcode.TOKEN, "the list is the token's column")
            for product in self._products[first]:
                self._queue(product)
                self._take(product.parts[0])
            if slot < self._batch - 1:
                self._stop("the next token is read")

        actions = [action for phase in self._phases(steps) for action in self._order(phase)
                   if action.step is not first]
        parts_of = {id(action.product.parts[0]): action.product.parts for action in actions
                    if action.product is not None}
        last: dict[Value, int] = {}
        for index, action in enumerate(actions):
            if action.product is None:
                for operand in action.step.operands:
                    last[operand] = index
                    if operand.kind is Kind.NORM:       # it is computed where it is needed
                        last[operand.operands[0]] = index
        for index, action in enumerate(actions):
            step = action.step
            self._where = f"{step.part}, prompt"
            self._batch = self._prefill if step in needed else 1
            if action.product is not None:
                self._queue(action.product)
                continue
            # Rows come vector by vector, so those of all parts are taken with the first.
            parts: tuple[_Rows | None, ...] = (None,)
            if action.part is not None:
                parts = parts_of.get(id(action.part), ())
            dying = {operand for operand in last if last[operand] == index}
            constants = {operand for operand in dying if operand.kind is Kind.CONSTANT}
            for slot, places in enumerate(slots):
                self._slot, self._places = slot, places
                if slot >= self._prefill - self._batch:
                    for part in parts:
                        self._compute_slot(step, part, dying - constants)
                self._free(dying - constants)
            # All have the same ones.
            if step.kind is Kind.CONSTANT:
                for places in slots:
                    places[step] = slots[-1][step]
            for operand in constants:
                first_place, *_ = [places.pop(operand) for places in slots]
                self._vectors.free(first_place, self._size(operand))
        self._where = "prompt"
        self._stop("the tokens are read")
        return tuple(begins)

    def _free(self, operands: set[Value]) -> None:
        for operand in operands:
            if operand.kind in VECTORS and operand in self._places:
                self._vectors.free(self._places.pop(operand), self._size(operand))

    def _compute_slot(self, step: Value, part: _Rows | None, dying: set[Value]) -> None:
        """Write a step, or take rows, of one of the vectors of a batch."""
        if part is not None:
            self._take(part)
        elif step.kind is Kind.CONSTANT:
            if self._slot == self._prefill - 1:         # one for all
                self._compute(step, dying)
        elif step.kind is Kind.RECURRENCE:
            # The next token changes the state, so that this one keeps a copy.
            state = self._places[step]
            self._recur(step, dying)
            self._places[step] = self._vectors.take(step.name, self._size(step))
            self._vector(Function.COPY, f"{step.name} of this token", self._places[step], state,
                         count=self._size(step))
        elif step.kind is not Kind.NORM:
            self._compute(step, dying)

    def _norm(self, norm: Value) -> int:
        """Return the register of a norm; prompts have one, and each norm is computed anew."""
        if norm in self._registers:
            return self._registers[norm]
        register = REGISTERS - 1
        if self._normed != (norm, self._slot):
            self._normed = norm, self._slot
            vector, = norm.operands
            self._emit(Opcode.NORM, norm.formula, target=register, a=self._places[vector],
                       count=self._size(vector))
        return register

    def _queue(self, product: _Product, function: Function = Function.BY_COLUMN) -> None:
        step = product.parts[0].step
        batch = self._batch if step.kind is not Kind.EMBEDDING else 1
        batch *= self._vectors_of(step)
        self._emit(Opcode.MATMUL, product.name, function=function, a=product.rows,
                   b=product.planes, count=product.columns, address=product.address,
                   target=batch if batch > 1 else 0)

    def _size(self, step: Value) -> int:
        """Elements of a vector with those that fill it up."""
        if step.kind is Kind.POSITION:
            return self._heads[step] * self._layout.half(2 * step.elements)
        return len(self._layout(step))

    def _context(self, steps: Sequence[Value]) -> int:
        """Tokens of a sequence at most, 0 if there is no limit."""
        known = [step.context for step in steps if step.kind is Kind.APPEND]
        return min(*known, self._config.context) if known else 0

    def _matrix(self, step: Value) -> _Rows:
        """Lay out all rows of a step's matrix."""
        weights = step.weights.weights
        filled = np.ones(len(weights), np.int64)
        vectors = self._vectors_of(step)
        if step.kind is not Kind.HEAD and vectors == 1:
            weights = _lay(weights, self._layout(step))
            filled = (self._layout(step) >= 0).astype(np.int64)
        filled *= step.weights.weights.shape[1]
        if step.kind is Kind.EMBEDDING and len(self._ranges) > 1:
            weights, filled = self._below(weights, self._layout(step) >= 0)
        if vectors > 1:
            weights = self._transposed(step, vectors)
        elif step.operands:
            weights = _lay(weights, self._layout(step.operands[0].operands[0]), axis=1)
        return _Rows(step, weights, filled, 0, len(weights))

    @staticmethod
    def _vectors_of(step: Value) -> int:
        """Vectors that a step's matrix is multiplied by: more than one in a chain of tensors."""
        return step.operands[0].vectors if step.kind is Kind.LINEAR else 1

    def _transposed(self, step: Value, vectors: int) -> NDArray[np.integer]:
        """Lay out a matrix that is multiplied by several vectors, read across one vector.

        Elements have to lie in order, so that the first ``vectors`` of them are the first column.
        """
        config, name, weights = self._config, step.weights.name, step.weights.weights
        most = config.engine.max_batch
        if self._prefill > 1:
            raise CompileError(f"Matrix {name} is multiplied by {vectors} vectors at once, so that "
                               f"prompts must be read token by token")
        if vectors & (vectors - 1) or vectors > most:
            raise CompileError(f"Matrix {name} must be multiplied by a power of two of vectors up "
                               f"to {most} (engine field max_batch), not {vectors}")
        rows = config.engine.lanes * (config.engine.accumulator_depth // vectors)
        if len(weights) % self._layout.unit or len(weights) > rows:
            raise CompileError(f"Matrix {name} must have a multiple of {self._layout.unit} rows up "
                               f"to {rows} for {vectors} vectors, not {len(weights)}")
        source = step.operands[0].operands[0]
        for vector in (source, step):
            places = self._layout(vector)
            if (places[:vector.elements] != np.arange(vector.elements)).any():
                raise CompileError(f"Vector {vector.label} must lie in order to be a matrix of "
                                   f"{vectors} columns, but its heads are turned or filled up")
        # What fills up the vector are columns of zeros.
        columns = len(self._layout(source)) // vectors
        return np.pad(weights, ((0, 0), (0, columns - weights.shape[1])))

    def _below(self, weights: NDArray[np.integer],
               filled: NDArray[np.bool_]) -> tuple[NDArray[np.integer], NDArray[np.int64]]:
        """Put the columns of all ranges one below the other.

        Parameters
        ----------
        weights : integer array, shape (rows, tokens)
        filled : bool array, shape (rows,)
            Rows that are not there to fill up.

        Returns
        -------
        tuple of array
            The matrix, and the weights of each of its rows.
        """
        parts = [weights[:, first:first + self._tokens] for first in self._ranges]
        parts[-1] = np.pad(parts[-1], ((0, 0), (0, self._tokens - parts[-1].shape[1])))
        tokens = [min(self._tokens, self._model.vocab - first) for first in self._ranges]
        return np.concatenate(parts), np.concatenate([count * filled.astype(np.int64)
                                                      for count in tokens])

    def _reserve(self, steps: Sequence[Value]) -> None:
        """Find places of the caches, behind all that has contents."""
        config, context = self._config, self._context(steps)
        values = {step.operands[2] for step in steps if step.kind is Kind.ATTEND}
        # Nobody asks for the largest key: all keys share a cache.
        count = 1
        for step in steps:
            if step.kind is not Kind.APPEND:
                continue
            if step.cache not in config.cache_formats:
                raise CompileError(f"Cache of {step.label} must be one of "
                                   f"{', '.join(config.cache_formats)} for this configuration, "
                                   f"not {step.cache}")
            self._addresses[step] = self._memory.cache(
                step.label, step.heads * context * self._vector_bytes(step))
            self._caches[step] = count if step in values else 0
            count += step.heads if step in values else 0
        if self._caches and count > config.caches:
            raise CompileError(f"Configuration field caches must be at least {count} for model "
                               f"{self._model.name}, not {config.caches}")

    def _head_size(self, step: Value) -> int:
        """Elements of a head with those that fill it up."""
        return 2 * self._layout.half(step.elements // step.heads)

    def _vector_bytes(self, step: Value) -> int:
        """Bytes of a vector in one of the caches of an APPEND."""
        return self._head_size(step) * (2 if step.cache == "bf16" else 1)

    def _find(self, steps: Sequence[Value]) -> None:
        """Find what a drain does beside scaling, and what is walked by row."""
        readers = self._readers
        for step in steps:
            for operand in step.operands:
                readers.setdefault(operand, []).append(step)
            if step.kind is Kind.ROTATE:
                for operand in step.operands[1:]:
                    self._heads[operand] = max(self._heads.get(operand, 0), step.heads)
        for step in steps:
            if step.kind is Kind.RELU and step.operands[0].kind is Kind.LINEAR and (
                    len(readers[step.operands[0]]) == 1):
                self._fused[step.operands[0]] = step
        engine = self._config.engine
        for step in steps:
            if step.kind is not Kind.LINEAR or not self._sparse or len(readers[step]) != 1:
                continue
            product, = readers[step]
            codes = step.operands[0]
            for live in product.operands:
                if (product.kind is Kind.MULTIPLY and live in self._fused.values()
                        and live.operands[0].operands[0] is codes
                        and self._size(codes.operands[0]) <= engine.row_columns):
                    self._live[step] = live

    def _place(self, step: Value) -> None:
        """Put what a step needs of the model into the memory."""
        if step in self._placed:
            pass
        elif step in self._live:
            self._products[step] = self._memory.by_row(self._matrix(step))
        elif step.matrix is not None:
            for rows in self._shared(step):
                products = self._memory.by_column(rows, token=step.kind is Kind.EMBEDDING)
                self._products.setdefault(rows[0].step, []).extend(products)
                self._placed.update(part.step for part in rows)
        elif step.kind is Kind.CODES:
            gate = self._gates.get(step.label)
            if gate is not None and (gate.norms != 1).any():
                norms = _lay(gate.norms, self._layout(step.operands[0]))
                data = norms.tobytes()
                if data not in self._norms:
                    self._norms[data] = self._memory.vector(f"{step.label}.norms", norms)
                self._addresses[step] = self._norms[data]
        elif step.constant is not None:
            values = (_LMUL.factor if step.factor else from_float)(step.constant)
            if step.kind is Kind.POSITION:
                half = self._layout.half(2 * step.elements)
                values = np.pad(values[:self._config.context],
                                ((0, 0), (0, half - step.elements))).reshape(-1)
            else:
                values = _lay(values, self._layout(step))
            self._addresses[step] = self._memory.vector(step.label, values)

    def _leaves_out(self, codes: Value) -> bool:
        """Whether a list does not name all columns."""
        return codes.label in self._gates or (codes.sparse and self._sparse and codes.vectors == 1)

    def _shared(self, step: Value) -> Iterator[list[_Rows]]:
        """Divide the rows of all matrices that share the list of ``step`` into products.

        A product has all rows of the matrix that it begins in, and as many of the next ones as it
        takes for whole transfers: results should not come later than they must.
        """
        engine = self._config.engine
        steps = [step]
        if step.kind is Kind.LINEAR and self._leaves_out(step.operands[0]):
            steps = [reader for reader in self._readers[step.operands[0]]
                     if reader.kind is Kind.LINEAR and reader not in self._live]
        counts = {planes_needed(int(np.abs(item.weights.weights).max())) for item in steps}
        if len(steps) == 1 or len(counts) > 1:
            yield [self._matrix(step)]
            return
        size = counts.pop() * engine.word_bytes
        unit = engine.lanes * engine.port_bytes // math.gcd(engine.port_bytes, size)
        rest = [self._matrix(item) for item in steps]
        while rest:
            count = rest[0].count
            whole = -(-count // unit) * unit
            rows, rest = _split(rest, whole if whole <= engine.max_rows else count)
            yield rows

    # Order.

    @staticmethod
    def _phases(steps: Sequence[Value]) -> Iterator[list[Value]]:
        """Divide the steps at those that make a list."""
        phase: list[Value] = []
        for step in steps:
            if step.kind in (Kind.EMBEDDING, Kind.CODES) and phase:
                yield phase
                phase = []
            phase.append(step)
        yield phase

    def _order(self, phase: list[Value]) -> Iterator[_Action]:
        """Queue the products of one list as early as the queue allows; take each when it is there.

        Never more than ``product_depth`` wait to be taken: a MATMUL waits for nothing that comes
        behind it.
        """
        source, *others = phase
        by_row = [step for step in phase if step in self._live]
        missing = {step for step in phase if step.matrix is not None}
        products = [product for step in phase if step not in self._live
                    for product in self._products.get(step, ())]
        for step in phase:
            if step in missing and step is not source and step.operands[0] is not source:
                raise CompileError(f"Network must multiply {step.weights.name} by "
                                   f"{step.operands[0].name} before it makes the next codes")
        waiting = [step for step in others if step not in missing]

        def ready() -> Iterator[_Action]:
            """Yield the steps that miss nothing any more."""
            late = {*missing}
            for step in waiting.copy():
                if late.isdisjoint(step.operands):
                    waiting.remove(step)
                    yield _Action(step)
                else:
                    late.add(step)

        ahead = self._config.product_depth
        if source not in missing:
            yield _Action(source)
        if not products:
            yield from ready()
        def queue(product: _Product) -> _Action:
            step = product.parts[0].step
            return _Action(step, product, live=self._live.get(step))

        for index, product in enumerate(products[:ahead]):
            yield queue(product)
            if index == 0:
                yield from ready()
        for index, product in enumerate(products):
            for part in product.parts:
                yield _Action(part.step, part=part)
                if part is product.parts[-1] and index + ahead < len(products):
                    yield queue(products[index + ahead])
                if part.last:
                    missing.remove(part.step)
                    yield from ready()
        # Their list replaces that of the columns, whose products have all been queued.
        for step in by_row:
            product, = self._products[step]
            yield queue(product)
            yield _Action(step, part=product.parts[0])
            missing.remove(step)
            yield from ready()

    # Instructions.

    def _act(self, action: _Action, dying: set[Value]) -> None:
        """Write the instructions of an action; nobody reads the ``dying`` vectors after it."""
        step, product = action.step, action.product
        if product is not None:
            if step.kind is Kind.EMBEDDING and product is self._products[step][0]:
                self._emit(Opcode.TOKEN, "the list is the token's column")
            function = Function.BY_COLUMN
            if action.live is not None:
                function = Function.BY_ROW
                self._check_list(self._size(action.live))
                self._emit(Opcode.PACK, f"rows of {step.name}: {action.live.name} is not zero",
                           function=Function.NONZERO, a=self._places[action.live],
                           count=self._size(action.live))
            self._queue(product, function)
        elif action.part is not None:
            self._take(action.part)
        else:
            self._compute(step, dying)
        for operand in dying:
            if operand.kind in VECTORS and operand in self._places and operand not in self._live:
                self._vectors.free(self._places.pop(operand), self._size(operand))
            self._registers.pop(operand, None)

    def _take(self, part: _Rows) -> None:
        """Take rows of the oldest product from the queue."""
        step = part.step
        if step.kind is Kind.EMBEDDING and len(self._ranges) > 1:
            self._take_ranges(part)
            return
        scale, exponent, norm = step.weights.scale, 0, 0
        if step.kind is Kind.HEAD:
            scale = self._model.logit_scales["lmul"]
        if step.operands:
            exponent = _EXPONENT + self._slot
        if len(step.operands) > 1:
            norm = self._norm(step.operands[1])
            scale *= math.sqrt(step.operands[1].elements)
        scaled = {"a": exponent, "b": norm, "count": part.count, "constant": _bf16(scale)}
        if step.kind is Kind.HEAD:
            self._emit(Opcode.EMIT, f"the largest of {part.name}", **scaled)
            return
        drained = self._fused.get(step, step)
        if step in self._live:
            self._places[step] = self._rows
        elif drained not in self._places:
            self._places[drained] = self._vectors.take(drained.name, self._size(step))
        relu, note = drained is not step, part.name
        vectors, rows = self._vectors_of(step), len(part.matrix)
        if part.count == rows:                  # so that all vectors lie one behind the other
            scaled["count"] *= vectors
            vectors = 1
        for vector in range(vectors):
            if vectors > 1:
                note = f"{part.name} of vector {vector}"
            self._emit(Opcode.DRAIN, f"{drained.name} = {'relu of ' * relu}{note}",
                       function=Function.RELU if relu else Function.COPY,
                       target=self._places[drained] + vector * rows + part.first, **scaled)

    def _compute(self, step: Value, dying: set[Value]) -> None:
        """Write the instructions of a step without a matrix."""
        places = [self._places.get(operand, 0) for operand in step.operands]
        match step.kind:
            case Kind.CODES:
                self._pack(step, places[0])
            case Kind.NORM:
                free = set(range(_EXPONENT + 1, REGISTERS)) - set(self._registers.values())
                if not free:
                    raise CompileError(f"{step.part}: at most {REGISTERS - 2} norms can wait to "
                                       f"be used, but {step.name} is one more")
                self._registers[step] = min(free)
                self._emit(Opcode.NORM, step.formula, target=min(free), a=places[0],
                           count=self._size(step.operands[0]))
            case Kind.CONSTANT:
                self._places[step] = self._vectors.take(step.name, self._size(step))
                self._emit(Opcode.LOAD, step.name, target=self._places[step],
                           count=self._size(step), address=self._addresses[step])
            case Kind.POSITION:
                self._look_up(step)
            case Kind.ROTATE:
                self._rotate(step, dying)
            case Kind.APPEND:
                self._append(step, places[0])
            case Kind.ATTEND:
                self._attend(step)
            case Kind.RECURRENCE:
                self._recur(step, dying)
            case Kind.RELU if step in self._fused.values():
                pass                            # its product was drained that way
            case _:
                self._places[step] = self._target(step, dying)
                note = step.formula if step.name == step.formula else \
                    f"{step.name} = {step.formula}"
                self._vector(_FUNCTIONS[step.kind], note, self._places[step], *places,
                             count=self._size(step))

    def _look_up(self, step: Value) -> None:
        """Load the position's row of a table, and repeat it for each head."""
        half, size = self._layout.half(2 * step.elements), self._size(step)
        place = self._places[step] = self._vectors.take(step.name, size)
        self._emit(Opcode.LOAD_AT, step.formula, target=place, count=half,
                   address=self._addresses[step])
        done = half
        while done < size:
            count = min(done, size - done)
            self._vector(Function.COPY, f"{step.name} of the next heads", place + done, place,
                         count=count)
            done += count

    def _rotate(self, step: Value, dying: set[Value]) -> None:
        """Turn all heads at once: ``a cos - b sin`` in front of ``b cos + a sin``."""
        x, *turns = step.operands
        source, (cosine, sine) = self._places[x], (self._places[turn] for turn in turns)
        size = self._size(step)
        count = size // 2
        if x in dying:
            dying.remove(x)
            target = self._places.pop(x)
        else:
            target = self._vectors.take(step.name, size)
        self._places[step] = target
        a, b = (self._vectors.take("turned", count) for _ in range(2))
        for function, note, *places in (
                (Function.LMUL, "a sin", a, source, sine),
                (Function.LMUL, "b sin", b, source + count, sine),
                (Function.LMUL, "a cos", target, source, cosine),
                (Function.SUBTRACT, "a cos - b sin", target, target, b),
                (Function.LMUL, "b cos", target + count, source + count, cosine),
                (Function.ADD, "b cos + a sin", target + count, target + count, a)):
            self._vector(function, f"{step.name}: {note}", *places, count=count)
        for place in (a, b):
            self._vectors.free(place, count)

    def _append(self, step: Value, place: int) -> None:
        """Write the heads of a vector into the caches."""
        size, halves = self._head_size(step), self._layout.halves(step.operands[0])
        half = size // 2
        for head in range(step.heads):
            fields = {"a": place + head * size}
            if halves:
                fields = {"a": place + head * half, "b": place + (step.heads + head) * half}
            self._emit(Opcode.APPEND, f"{step.name} of head {head}",
                       function=_CACHE_FUNCTIONS[step.cache], count=size,
                       constant=self._caches[step] + (head if self._caches[step] else 0),
                       address=self._cache(step, head), **fields)

    def _cache(self, step: Value, head: int) -> int:
        """Address of the cache of a head."""
        context = self._context(self._model.network().steps)
        return self._addresses[step] + head * context * self._vector_bytes(step)

    def _attend(self, step: Value) -> None:
        """Score keys and mix values, for as many heads at once as share them and have room."""
        query, keys, values = step.operands
        if values.cache != keys.cache:
            raise CompileError(f"Caches of {keys.label} and {values.label} must have one format")
        size, place = self._head_size(step), self._places[query]
        half, halves = size // 2, self._layout.halves(query)
        if size > self._config.head_elements:
            raise CompileError(f"Configuration field head_elements must be at least {size} for "
                               f"model {self._model.name}, not {self._config.head_elements}")
        target = self._places[step] = self._vectors.take(step.name, self._size(step))
        group = step.heads // keys.heads
        for first in range(0, step.heads, group):
            cache = first // group
            for head in range(first, first + group, self._config.group):
                heads = min(self._config.group, first + group - head)
                fields = {"function": _CACHE_FUNCTIONS[keys.cache], "count": heads * size,
                          "constant": size}
                queries = {"a": place + head * size}
                if halves:
                    queries = {"a": place + head * half, "b": place + (step.heads + head) * half}
                which = f"heads {head} to {head + heads - 1}" if heads > 1 else f"head {head}"
                self._emit(Opcode.SCORE, f"{keys.name} by {query.name}, {which}", target=heads,
                           address=self._cache(keys, cache), **queries, **fields)
                self._emit(Opcode.MIX, f"{step.name}: {values.name} mixed, {which}",
                           target=target + head * size, a=self._caches[values] + cache,
                           address=self._cache(values, cache), **fields)

    def _target(self, step: Value, dying: set[Value]) -> int:
        """Choose where a step writes: over an operand that nobody reads again, if there is one."""
        for operand in step.operands:
            if operand in dying and operand not in self._live:
                dying.remove(operand)
                return self._places.pop(operand)
        return self._vectors.take(step.name, self._size(step))

    def _check_list(self, elements: int) -> None:
        if elements > self._config.list_depth:
            raise CompileError(f"List must have at most {self._config.list_depth} entries, but "
                               f"{self._where} packs {elements}")

    def _pack(self, step: Value, place: int) -> None:
        vector, = step.operands
        count = self._size(vector)
        self._check_list(count)
        note, gate = f"{step.name} = {step.formula}", self._gates.get(step.label)
        fields = {"target": _EXPONENT + self._slot, "a": place, "count": count}
        if step.vectors > 1:
            part = Batch(log2=step.vectors.bit_length() - 1, across=True)
            self._emit(Opcode.PACK, f"{note}, {step.vectors} vectors across", **fields,
                       function=Function.DENSE, constant=part.constant)
        elif self._batch > 1:
            self._check_list(count * self._batch)
            part = Batch(log2=self._batch.bit_length() - 1, slot=self._slot)
            self._emit(Opcode.PACK, f"{note}, token {self._slot}", **fields,
                       function=Function.DENSE, constant=part.constant)
        elif gate is None:
            sparse = self._leaves_out(step)
            self._emit(Opcode.PACK, note, **fields,
                       function=Function.SPARSE if sparse else Function.DENSE)
        else:
            self._pack_gated(step, gate, note, fields)

    def _pack_gated(self, step: Value, gate: Gate, note: str, fields: dict[str, int]) -> None:
        if (gate.norms != 1).any():
            count = fields["count"]
            fields["b"] = self._vectors.take("norms", count)
            self._emit(Opcode.LOAD, f"column norms of {step.name}", target=fields["b"],
                       count=count, address=self._addresses[step])
            self._vectors.free(fields["b"], count)
        if gate.threshold is None:
            self._emit(Opcode.PACK, f"{note}, {gate.keep} of them", **fields,
                       function=Function.TOP_K, constant=gate.keep)
        else:
            self._emit(Opcode.PACK, f"{note}, above {gate.threshold}", **fields,
                       function=Function.THRESHOLD, address=gate.threshold)

    def _recur(self, step: Value, dying: set[Value]) -> None:
        """Update a state; the difference is written over the candidate if nobody reads it again."""
        update, candidate = step.operands
        state, count = self._places[step], self._size(step)
        change = self._places[candidate]
        if candidate not in dying:
            change = self._vectors.take("change", count)
            self._vectors.free(change, count)
        z, c, h = update.name, candidate.name, step.name
        self._vector(Function.SUBTRACT, f"{c} - {h}", change, self._places[candidate], state,
                     count=count)
        self._vector(Function.LMUL, f"{z} ({c} - {h})", change, self._places[update], change,
                     count=count)
        self._vector(Function.ADD, f"{h} = {step.formula}", state, state, change, count=count)

    def _clear(self, first: int, count: int, what: str) -> None:
        done = 0
        while done < count:
            source = first if done else 0
            size = min(done or self._config.vector_lanes, count - done)
            self._vector(Function.COPY, f"{what} {done}.. = 0", first + done, source, count=size)
            done += size

    def _vector(self, function: Function, note: str, target: int, a: int, b: int = 0, *,
                count: int) -> None:
        self._emit(Opcode.VECTOR, note, function=function, target=target, a=a, b=b, count=count)

    def _emit(self, opcode: Opcode, note: str, **fields: int) -> None:
        try:
            self._instructions.append(Instruction(opcode=opcode, **fields))
        except ValueError as error:
            self._vectors.check("at least ")
            raise CompileError(f"{self._where}: {error}") from None
        self._notes.append(f"{self._where}: {note}")


def compile_model(model: LanguageModel, config: CoreConfig, *, sparse: bool = False,
                  gates: GateMap | None = None, prefill: int = 1) -> Image:
    """Compile a model for a configuration.

    Parameters
    ----------
    model : LanguageModel
    config : CoreConfig
    sparse : bool
        Leave out what is zero of the lists where that pays: their columns cannot be read ahead.
        Where the engine walks by row, rows of an up projection whose gate is zero are left out too.
        No result changes.
    gates : mapping of str to Gate, optional
        Of lists, by label: which of their entries are kept. Results change.
    prefill : int
        Tokens of a prompt that are read together, a power of two; each weight is read once for
        them. No result changes. Only for models without attention.

    Raises
    ------
    DeviceError
        If the model does not fit, or a row of a matrix could overflow an accumulator.
    """
    if "lmul" not in model.logit_scales:
        raise CompileError(f"Model {model.name} must have a logit scale for arithmetic 'lmul'; "
                           f"find it with 'python -m host evaluate --fit'")
    steps = model.network().steps
    if not config.context and any(step.kind is Kind.APPEND for step in steps):
        raise CompileError(f"Model {model.name} needs attention: configuration field context must "
                           f"be a number of tokens, not 0")
    # What fills a vector up stays zero under all functions but this one.
    unit = math.lcm(config.vector_lanes, max(1, config.port_bytes // 2))
    for step in steps:
        if step.kind is Kind.SIGMOID_OF_NEGATIVE and step.elements % unit:
            raise CompileError(f"Model {model.name} must have a width that is a multiple of {unit} "
                               f"for this configuration, not {step.elements}")
    _check_prefill(model, config, gates, prefill)
    return _Compiler(model, config, sparse, gates, prefill).compile()


def _most_tokens(config: CoreConfig) -> int:
    """Count the tokens that a field of an instruction and an index of a list can name."""
    return min(_FIELD, config.engine.max_columns)


def _range_tokens(model: LanguageModel, config: CoreConfig) -> int:
    """Count the tokens of a range of the vocabulary: all, if a product can have so many columns."""
    return -(-model.vocab // -(-model.vocab // _most_tokens(config)))


def _check_prefill(model: LanguageModel, config: CoreConfig, gates: GateMap | None,
                   prefill: int) -> None:
    most = min(config.engine.max_batch, REGISTERS // 2)
    if not 1 <= prefill <= most or prefill & (prefill - 1):
        raise CompileError(f"Tokens of a prompt that are read together must be a power of two up "
                           f"to {most}, not {prefill}")
    if prefill == 1:
        return
    if _range_tokens(model, config) < model.vocab:
        raise CompileError(f"Model {model.name} must have at most {_most_tokens(config)} tokens "
                           f"for prompts that are read together, not {model.vocab}")
    if gates:
        raise CompileError("Gates leave out entries of each token's list, so that tokens of a "
                           "prompt cannot be read together (try without one of the two)")
    for step in model.network():
        if step.kind is Kind.APPEND:
            raise CompileError(f"Model {model.name} has attention, whose prompts are read token by "
                               f"token")
        if step.kind is Kind.LINEAR:
            rows = config.engine.max_rows // prefill
            if len(step.weights.weights) > rows:
                raise CompileError(f"Matrix {step.weights.name} must have at most {rows} rows for "
                                   f"{prefill} tokens at once (engine field accumulator_depth), "
                                   f"not {len(step.weights.weights)}")


#: Tokens of a sequence at most, where nobody says how many.
CONTEXT = 2048


def compile_fitted(model: LanguageModel, base: CoreConfig, *, sparse: bool = False,
                   gates: GateMap | None = None, prefill: int = 1) -> Image:
    """Compile for a core that is as large as it must be, if ``base`` may be too small.

    That is so for a transformer, and for prompts that are read several tokens at once.

    The core has attention for the model's context, or :data:`CONTEXT` tokens if that is longer,
    unless ``base`` says how many. Its accumulators hold the sums of the longest rows.

    Parameters
    ----------
    model : LanguageModel
    base : CoreConfig
        Its memories and lists are the smallest that the core may have.
    sparse, gates, prefill
        As :func:`compile_model` takes them.

    Raises
    ------
    DeviceError
        As :func:`compile_model` does, or if no core can have such heads.
    """
    steps = model.network().steps
    attends = [step for step in steps if step.kind is Kind.ATTEND]
    layout = _Layout(steps, base)
    longest = max(len(layout(step.operands[0])) for step in steps if step.kind is Kind.CODES)
    fields: dict[str, Any] = {
        "list_depth": max(base.list_depth, -(-longest * prefill // TILE) * TILE)}
    if not attends:
        if prefill == 1:
            return compile_model(model, base, sparse=sparse, gates=gates)
        return _compile_fitted(model, base, fields, sparse, gates, prefill)
    keys = [step.operands[1] for step in attends]
    context = base.context or 2 ** (min(key.context for key in keys) - 1).bit_length()
    group = max(step.heads // key.heads for step, key in zip(attends, keys, strict=True))
    group = min(group, 16)
    width = max(base.engine.accumulator_width, min(_accumulator_width(steps, base), 32))
    fields |= {
        "engine": dataclasses.replace(base.engine, accumulator_width=width),
        "context": max(2, context if base.context else min(context, CONTEXT)),
        "group": group, "attention_heads": min(group, base.attention_heads),
        "head_elements": max(2 * layout.half(step.elements // step.heads) for step in attends),
        "caches": 1 + sum(step.operands[2].heads for step in attends)}
    return _compile_fitted(model, base, fields, sparse, gates, prefill)


def _accumulator_width(steps: Sequence[Value], config: CoreConfig) -> int:
    """Bits that hold every product of the matrices, as pack_matrix wants them."""
    most = max(int(row_bounds(step.weights.weights, config.engine).max())
               for step in steps if step.kind in (Kind.LINEAR, Kind.HEAD))
    return most.bit_length() + 1


def _compile_fitted(model: LanguageModel, base: CoreConfig, fields: dict[str, Any], sparse: bool,
                    gates: GateMap | None, prefill: int) -> Image:
    """Compile for ``base`` with some ``fields``, and with memories that are large enough."""
    try:
        # Fields of an instruction hold elements in 16 bits.
        largest = dataclasses.replace(base, **fields, program_depth=2 ** 16,
                                      vector_depth=2 ** 16 - 2 ** 16 % base.vector_lanes)
    except ValueError as error:
        raise CompileError(f"Model {model.name}: {error}") from None
    image = compile_model(model, largest, sparse=sparse, gates=gates, prefill=prefill)
    program = image.program
    end = sum(size for _, size in program.vectors.values())
    depth = 2 ** (len(program.instructions) - 1).bit_length()
    return dataclasses.replace(image, config=dataclasses.replace(
        largest, program_depth=max(base.program_depth, depth),
        vector_depth=max(base.vector_depth, end)))


@dataclasses.dataclass(frozen=True)
class PlaneCount:
    """Matrices of one number of trit planes.

    Attributes
    ----------
    products : int
        A matrix with more rows than accumulators is several.
    weights : int
    bytes : int
        In memory, with padding.
    token_bytes : int
        Read for a token by dense lists; of the embedding only a column is.
    """

    products: int = 0
    weights: int = 0
    bytes: int = 0
    token_bytes: int = 0


def planes_of(image: Image) -> dict[int, PlaneCount]:
    """Sum up the matrices of an image by the number of their trit planes, fewest first."""
    parts = {part.address: part for part in image.parts}
    found: dict[int, PlaneCount] = {}
    opens = Opcode.TOKEN
    for instruction in image.program.instructions:
        if instruction.opcode in (Opcode.TOKEN, Opcode.PACK):
            opens = instruction.opcode
        if instruction.opcode is not Opcode.MATMUL:
            continue
        part, planes = parts[instruction.address], instruction.b
        before = found.get(planes, PlaneCount())
        read = part.bytes // (instruction.count if opens is Opcode.TOKEN else 1)
        found[planes] = PlaneCount(
            before.products + 1, before.weights + part.trits // planes,
            before.bytes + part.bytes, before.token_bytes + read)
    return dict(sorted(found.items()))


def losses(image: Image, cost: TokenCycles) -> list[tuple[str, float]]:
    """Say where the port's bits go that are of no use: reason and share, largest first.

    Useful are weights, and keys and values.

    Parameters
    ----------
    image : Image
    cost : TokenCycles
        Of the image's program.
    """
    config, program = image.config, image.program
    peak = 8 * config.port_bytes * cost.cycles * (1 - cost.refresh)
    vectors = sum(16 * instruction.count for instruction in program.token()
                  if instruction.opcode in (Opcode.LOAD, Opcode.STORE, Opcode.LOAD_AT))
    moved = 8 * config.port_bytes * cost.transfers
    shares = {"padding of weight words and columns": (moved - vectors - cost.useful_bits) / peak,
              "vectors of constants": vectors / peak}
    for instruction, note, idle in zip(program.instructions, program.notes, cost.idle.tolist(),
                                       strict=True):
        what = re.sub(r"blk\.\d+[.:] *|(, heads \d+ to| of head|, head) \d+", "", note)
        reason = f"port idle during {instruction.opcode.name}, {what}"
        shares[reason] = shares.get(reason, 0.0) + idle / cost.cycles
    return sorted(shares.items(), key=lambda item: -item[1])
