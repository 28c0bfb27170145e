"""Random programs for the accelerator, legal by construction, and the memory they work on.

A :class:`RandomProgram` keeps what docs/machine.md makes the next instruction depend on: what
:class:`hw.order.Order` knows, registers, caches and what lies where in memory. It draws only
instructions that are legal there. Values are not known to it: a vector that turns out not to be
finite where it must be is loaded anew in front of the instruction.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from hw.config import AcceleratorConfig, EngineConfig
from hw.formats.minifloat import bf16
from hw.isa import (
    FUNCTIONS,
    MASKED,
    REGISTERS,
    Batch,
    Fault,
    Function,
    Instruction,
    Opcode,
    encode,
)
from hw.order import RESULT_ROOM, ListShape, Order
from sim.golden.bf16 import from_float
from sim.golden.machine import HazardError, Machine, MachineFault
from sim.golden.trits import pack_words, planes

__all__ = ["CONFIGURATIONS", "Case", "Timing", "Writer", "random_case"]

CONFIGURATIONS = {
    "small": AcceleratorConfig(
        engine=EngineConfig(lanes=8, result_lanes=4, accumulator_width=20, accumulator_depth=16,
                            max_planes=3, max_batch=4, index_width=9, port_bytes=4,
                            row_columns=64),
        vector_depth=1024, program_depth=512, list_depth=64, queue_words=32, top_k=3,
        address_width=16),
    # A word of the vector memory is one transfer, and a weight word is smaller than one.
    "equal": AcceleratorConfig(
        engine=EngineConfig(lanes=16, result_lanes=4, accumulator_width=24, accumulator_depth=8,
                            max_planes=2, max_batch=2, index_width=8, packing="1in2",
                            port_bytes=8),
        vector_depth=1024, program_depth=512, list_depth=128, queue_words=64, top_k=1,
        address_width=16),
    # Heads take turns; weight words and vectors of caches share the queue.
    "attention": AcceleratorConfig(
        engine=EngineConfig(lanes=8, result_lanes=4, accumulator_width=24, accumulator_depth=16,
                            max_planes=3, max_batch=1, index_width=9, port_bytes=4,
                            row_columns=64),
        vector_depth=1024, program_depth=512, list_depth=64, queue_words=32, top_k=3,
        address_width=16, context=8, head_elements=16, group=3, attention_heads=2,
        attention_elements=2, caches=5),
    # Lists of two tiles; products with more results than the engine's queue of them has room for.
    "wide": AcceleratorConfig(
        engine=EngineConfig(lanes=16, result_lanes=8, accumulator_width=24, accumulator_depth=64,
                            max_planes=2, max_batch=4, index_width=12, port_bytes=8,
                            row_columns=256),
        vector_depth=2048, program_depth=256, list_depth=512, product_depth=3, queue_words=64,
        top_k=4, address_width=17, context=16, head_elements=16, group=2, attention_heads=1,
        attention_elements=4, caches=3),
}

#: Bytes of the largest matrix that is drawn: many small ones tell more than one large one.
_MATRIX_BYTES = 6144


class Writer:
    """Writes a program and the memory it works on, by the rules of docs/machine.md."""

    def __init__(self, config: AcceleratorConfig, seed: int | Sequence[int]):
        self.config = config
        self.rng = np.random.default_rng(seed)
        self.program: list[Instruction] = []
        self.memory = bytearray()

    def add(self, opcode: Opcode, **fields: int) -> None:
        """Add an instruction."""
        self.program.append(Instruction(opcode=opcode, **fields))

    def place(self, data: bytes) -> int:
        """Place bytes in memory; return their address."""
        port, address = self.config.port_bytes, len(self.memory)
        self.memory += data + bytes(-len(data) % port)
        return address

    def matrix(self, rows: int, columns: int, count: int) -> int:
        """Place a random matrix of ``count`` planes."""
        limit = (3 ** count - 1) // 2
        weights = self.rng.integers(-limit, limit + 1, (rows, columns))
        return self.place(pack_words(planes(weights, count), self.config.engine).tobytes())

    def vector(self, count: int) -> int:
        """Place a vector of numbers of all sizes, zeros among them."""
        values = self.rng.normal(size=count) * 2.0 ** self.rng.integers(-4, 5, count)
        values[self.rng.random(count) < 0.3] = 0
        return self.place(from_float(values).astype("<u2").tobytes())

    def contents(self) -> bytes:
        """Return the memory, with some room behind it."""
        return bytes(self.memory) + bytes(64)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timing:
    """When memory and streams move: arguments of ``VerilatedAccelerator.set_timing``."""

    latency: int = 1
    refresh: float = 0.0
    stall: float = 0.0
    seed: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A program with all that its results depend on.

    Attributes
    ----------
    configuration : str
        Key of :data:`CONFIGURATIONS`.
    program : tuple of bytes
        Encoded instructions, which may be illegal.
    memory : bytes
        All bytes that addresses reach.
    passes : tuple of (int, int)
        Token and first instruction of each pass.
    timing : Timing
    """

    configuration: str
    program: tuple[bytes, ...]
    memory: bytes
    passes: tuple[tuple[int, int], ...]
    timing: Timing = Timing()

    @property
    def config(self) -> AcceleratorConfig:
        """The configuration."""
        return CONFIGURATIONS[self.configuration]

    def machine(self) -> Machine:
        """Return a golden machine that has run nothing."""
        return Machine(self.config, b"".join(self.program), self.memory)


@dataclasses.dataclass
class _Cache:
    """Keys and values of a group of heads, and which of them the pass has appended."""

    number: int
    elements: int
    formats: tuple[Function, Function]
    addresses: tuple[int, int]
    appended: int = 0


class RandomProgram(Writer):
    """Draws a program; :func:`random_case` makes a case of it.

    Parameters
    ----------
    config : AcceleratorConfig
    seed : int
    length : int
        Instructions of the body, about.
    """

    def __init__(self, config: AcceleratorConfig, seed: int | Sequence[int], length: int):
        super().__init__(config, seed)
        rng, lanes = self.rng, config.vector_lanes
        self.lanes, self.words = lanes, config.vector_depth // lanes
        # What is stored comes first: the vector memory at the end of each pass, and other vectors.
        self.stored = 2 * 2 * config.vector_depth
        self.memory += bytes(self.stored)
        self._tail = b""                        # what lies at the end of the memory
        self._order = Order(config)
        self._known = [0]                       # registers that were written
        self._caches: list[_Cache] = []
        self._matrices: dict[tuple[int, int, int], int] = {}    # by rows, columns and planes
        self.most_columns = 2 ** int(rng.integers(1, config.engine.index_width + 1))
        self.waits = bool(rng.integers(2))
        kinds = ["whole", "body"] + ["entries"] * self.waits
        self.kind = str(rng.choice(kinds))
        self.starts = [0]
        getattr(self, f"_write_{self.kind}")(length)

    def add(self, opcode: Opcode, **fields: int) -> None:
        """Add an instruction that the order allows."""
        super().add(opcode, **fields)
        self._order.step(self.program[-1])

    # Programs.

    def _write_whole(self, length: int) -> None:
        """Write a program whose passes begin at the first instruction."""
        self._fill()
        self._section(length)

    def _write_body(self, length: int) -> None:
        """Write a prologue, and a body at which passes of a sequence begin.

        Behind STOPs that do not wait, prefetch walks the prologue before each pass, so that it
        reads no memory.
        """
        if self.waits:
            self._fill()
        else:
            # Only the first word is known, and to be zero.
            for first in range(1, self.words, max(1, self.words // 8)):
                self.add(Opcode.VECTOR, function=Function.COPY, target=first * self.lanes, a=0,
                         count=self.lanes)
        self.starts.append(len(self.program))
        self._fill()
        self._section(length)

    def _write_entries(self, length: int) -> None:
        """Write several sections at which passes begin, each with a STOP that waits."""
        self._fill()
        sections = int(self.rng.integers(2, 5))
        known: list[int] = []
        for _ in range(sections):
            # The passes before are not known: only what the first one has made is.
            self._order = Order(self.config)
            self._section(length // sections, alone=True)
            self.starts.append(len(self.program))
            known = known or self._known
            self._known = list(known)
        self.starts.pop()

    def passes(self) -> tuple[tuple[int, int], ...]:
        """Draw tokens, and where their passes begin."""
        rng, context = self.rng, self.config.context or 8
        starts = [0]
        if self.kind == "body":
            most = context - 1 if self._caches and rng.integers(2) else 2
            starts += [self.starts[1]] * self._pick(most, rng.integers(1, most + 1))
            starts += [0, self.starts[1]][:int(rng.integers(3))]    # a new sequence
        else:
            others = self.starts[1:] or [0]
            starts += rng.choice(others, int(rng.integers(0, min(4, context)))).tolist()
        tokens = rng.choice([0, self.most_columns - 1, int(rng.integers(self.most_columns))],
                            len(starts))
        return tuple((int(token), int(start)) for token, start in
                     zip(tokens, starts, strict=True))

    def _fill(self) -> None:
        """Load the whole vector memory, in some parts."""
        first = 1
        while first < self.words:
            count = min(self.words - first, self._size(self.words))
            if self.rng.integers(2):
                count = self.words - first
            self.add(Opcode.LOAD, target=first * self.lanes, count=count * self.lanes,
                     address=self._constant(count * self.lanes))
            first += count

    def _section(self, length: int, *, alone: bool = False) -> None:
        """Write a body: instructions, the vector memory stored, and a STOP."""
        if self.config.context and not alone:
            self._plan_caches()
        end = len(self.program) + max(4, length)
        while len(self.program) < min(end, self.config.program_depth - 40 - 4 * len(self._caches)):
            self._step(alone)
        while self._order.products:
            self._take()
        for cache in self._caches:
            while cache.appended < 2:
                self._append(cache)
        first = 0
        while first < self.words:
            count = min(self.words - first, max(self.words // 2, self._size(self.words)))
            self.add(Opcode.STORE, a=first * self.lanes, count=count * self.lanes,
                     address=2 * first * self.lanes)
            first += count
        self.add(Opcode.STOP, constant=int(self.waits))

    def _step(self, alone: bool) -> None:
        """Add an instruction, or some that belong together."""
        config = self.config
        choices: list[tuple[float, Callable[[], object]]] = [
            (2, self._load), (1, self._store), (3, self._vector), (1, self._norm),
            (3, self._pack), (0.7, self._token), (4, self._multiply)]
        if self._order.products:
            full = len(self._order.products) == config.product_depth
            choices.append((12 if full else 4, self._take))
        if config.engine.row_columns:
            choices.append((1.5, self._rows))
        if config.engine.max_batch > 1:
            choices.append((1, self._pack_batch))
        if config.context:
            choices.append((0.7, self._load_at))
            choices += [(2.5 * any(cache.appended for cache in self._caches), self._score),
                        (5.0 * (self._order.heads > 0), self._mix)]
            open_ = [cache for cache in self._caches if cache.appended < 2]
            if open_ and not alone:
                choices.append((2.5, lambda: self._append(open_[0])))
        weights = np.array([weight for weight, _ in choices])
        choices[int(self.rng.choice(len(choices), p=weights / weights.sum()))][1]()

    # Sizes and places.

    def _pick(self, *values: int | np.int64) -> int:
        return int(values[int(self.rng.integers(len(values)))])

    def _size(self, most: int) -> int:
        """Draw a number from 1 to ``most``: extremes, powers of two, their neighbours, others."""
        rng = self.rng
        power = 1 << int(rng.integers(most.bit_length()))
        kinds = [1, 2, most, power, power + 1, power - 1, int(rng.integers(1, most + 1)),
                 int(rng.integers(1, most + 1))]
        return min(max(int(rng.choice(kinds)), 1), most)

    def _short(self, most: int) -> int:
        """Draw a size as :meth:`_size`, seldom a large one."""
        return self._size(most if self.rng.integers(6) == 0 else min(most, 8))

    def _source(self, count: int) -> int:
        """Draw where a vector is read: anywhere, at the zero word, or at the end."""
        rng, last = self.rng, self.words - count // self.lanes
        return self.lanes * int(rng.choice([0, last, *rng.integers(0, last + 1, 4)]))

    def _target(self, count: int) -> int:
        rng, last = self.rng, self.words - count // self.lanes
        return self.lanes * int(rng.choice([1, last, *rng.integers(1, last + 1, 4)]))

    def _allocate(self, data: bytes) -> int | None:
        """Place bytes behind the others, or at the end of the memory; None without room."""
        data += bytes(-len(data) % self.config.port_bytes)
        if len(self.memory) + len(data) + len(self._tail) > self.config.memory_bytes:
            return None
        if self.rng.integers(8) == 0:
            self._tail = data + self._tail
            return self.config.memory_bytes - len(self._tail)
        return self.place(data)

    def contents(self) -> bytes:
        """Return the memory, as large as addresses reach."""
        room = self.config.memory_bytes - len(self._tail)
        return bytes(self.memory).ljust(room, b"\0") + self._tail

    def _constant(self, count: int, kind: str = "") -> int:
        """Place a vector, or find memory that is there: an address."""
        rng = self.rng
        kind = kind or str(rng.choice(
            ["normal", "normal", "small", "zero", "extreme", "sparse", "any", "again", "again"]))
        if kind == "again" and 2 * count <= len(self.memory):
            step = self.config.port_bytes
            return step * int(rng.integers((len(self.memory) - 2 * count) // step + 1))
        values = self._values(count, kind)
        address = self._allocate(values.astype("<u2").tobytes())
        return 0 if address is None else address

    def _values(self, count: int, kind: str) -> NDArray[np.uint16]:
        rng = self.rng
        if kind == "zero":
            return np.zeros(count, np.uint16)
        if kind == "any":                       # infinities and NaNs among them
            return rng.integers(0, 2 ** 16, count).astype(np.uint16)
        if kind == "extreme":
            largest = bf16.infinity - 1
            return rng.choice([0, 0x8000, largest, 0x8000 | largest, 0x0080, 0x8080, 0x007F, 1,
                               bf16.one, bf16.infinity], count).astype(np.uint16)
        values = rng.normal(size=count) * 2.0 ** rng.integers(-4, 5, count)
        if kind == "small":
            values = rng.integers(-3, 4, count).astype(float)
        values[rng.random(count) < (0.9 if kind == "sparse" else 0.3)] = 0
        return from_float(values)

    # Instructions.

    def _load(self) -> None:
        if not self._may_wait():
            return
        count = self.lanes * self._short(self.words - 1)
        self.add(Opcode.LOAD, target=self._target(count), count=count,
                 address=self._constant(count))

    def _load_at(self) -> None:
        if not self._may_wait():
            return
        count = self.lanes * self._short(16)
        whole = count * self.config.context
        address = self._constant(whole)
        if address + 2 * whole <= self.config.memory_bytes:
            self.add(Opcode.LOAD_AT, target=self._target(count), count=count, address=address)

    def _store(self) -> None:
        count = self.lanes * self._short(self.words)
        step = self.config.port_bytes
        address = step * int(self.rng.integers((self.stored - 2 * count) // step + 1))
        self.add(Opcode.STORE, a=self._source(count), count=count, address=address)

    def _vector(self) -> None:
        rng = self.rng
        function = int(rng.choice(FUNCTIONS[Opcode.VECTOR]))
        count = self.lanes * self._short(self.words // 2)
        binary = function < Function.COPY
        for _ in range(8):
            a, b, target = self._source(count), self._source(count), self._target(count)
            if rng.integers(3) == 0:
                target = a if a else target
            if binary and rng.integers(6) == 0:
                b = a
            operands = [a, b] if binary else [a]
            if all(first == target or abs(first - target) >= count for first in operands):
                self.add(Opcode.VECTOR, function=function, target=target, a=a,
                         b=b if binary else 0, count=count)
                return

    def _norm(self) -> None:
        count = self.lanes * self._short(self.words)
        self.add(Opcode.NORM, target=self._write_register(), a=self._source(count), count=count)

    def _write_register(self) -> int:
        register = int(self.rng.integers(1, REGISTERS))
        if register not in self._known:
            self._known.append(register)
        return register

    def _scalar(self) -> dict[str, int]:
        rng = self.rng
        constant = self._pick(bf16.one, 0, rng.integers(0x3C00, 0x4000),
                              rng.integers(0x3E00, 0x4000), rng.integers(0x8000, 0xC000),
                              rng.integers(bf16.infinity))
        return {"a": int(rng.choice(self._known)), "b": int(rng.choice([0, *self._known])),
                "constant": constant}

    # Lists.

    def _token(self) -> None:
        if not self._may_list():
            return
        self.add(Opcode.TOKEN)

    def _pack(self, function: int = 0, most: int = 0) -> None:
        rng = self.rng
        function = function or int(rng.choice(FUNCTIONS[Opcode.QUANTIZE]))
        codes = function in (Function.DENSE, *MASKED)
        by_row = any(product.by_row for product in self._order.products)
        if not self._may_list() or (codes and by_row):
            return
        count = self.lanes * self._short((most or self.config.list_depth) // self.lanes)
        place, fields = self._source(count), {}
        if function in MASKED:
            before = self.program[-1] if self.program else None
            if before is not None and before.opcode in (Opcode.LOAD, Opcode.LOAD_AT) and (
                    place < before.target + before.count and before.target < place + count):
                return                          # what is packed is being loaded
            norms = self._source(count) if rng.integers(2) else 0
            fields["b"] = norms
            if rng.integers(2) and self._may_wait():
                self._load_before(place, norms, count)
        if function == Function.KEEP_TOP_K:
            fields["constant"] = int(rng.choice([1, max(1, count // 2), count, count + 1,
                                                 2 ** 16 - 1, self._size(count)]))
        if function == Function.KEEP_ABOVE:
            fields["address"] = self._pick(0, 1, 1000, 2 ** 30 - 1, rng.integers(2 ** 28))
        if function != Function.NONZERO:
            fields["target"] = self._write_register()
        self.add(Opcode.QUANTIZE, function=function, a=place, count=count, **fields)

    def _load_before(self, place: int, norms: int, count: int) -> None:
        """Load norms, or another vector, apart from the one that a masked QUANTIZE reads next."""
        size = count if norms else self.lanes * self._short(16)
        for target in (norms or self._target(size), self._target(size)):
            if target and (target + size <= place or place + count <= target):
                self.add(Opcode.LOAD, target=target, count=size, address=self._constant(size))
                return

    def _pack_batch(self) -> None:
        rng, config, lanes = self.rng, self.config, self.lanes
        if not self._may_list() or any(product.by_row for product in self._order.products):
            return
        log2 = int(rng.integers(1, config.engine.max_batch.bit_length()))
        across = bool(rng.integers(2))
        most, unit = config.list_depth, math.lcm(lanes, 1 << log2)
        if not across:
            most, unit = most >> log2, lanes
        count = unit * self._short(most // unit)
        for slot in range(1 if across else 1 << log2):
            part = Batch(log2=log2, slot=slot, across=across)
            if slot and rng.integers(4) == 0:   # something between, but no list
                (self._vector if rng.integers(2) else self._load)()
            self.add(Opcode.QUANTIZE, function=Function.DENSE, target=self._write_register(),
                     a=self._source(count), count=count, constant=part.constant)

    # Products.

    def _may_wait(self) -> bool:
        """Tell whether all products that are queued will be multiplied without being taken."""
        return self._order.waiting_results() <= RESULT_ROOM

    def _may_list(self) -> bool:
        """Tell whether a list can be made before a product is taken."""
        return self._order.waiting_results(before_list=True) <= RESULT_ROOM

    def _matrix(self, rows: int, columns: int) -> dict[str, int] | None:
        """Place a matrix, or find one: its planes and its address."""
        rng, engine = self.rng, self.config.engine
        count = self._pick(1, engine.max_planes, rng.integers(1, engine.max_planes + 1))
        size = columns * engine.column_bytes(rows, count)
        if size > _MATRIX_BYTES:
            return None
        key = rows, columns, count
        if key in self._matrices and rng.integers(2):
            return {"b": count, "address": self._matrices[key]}
        limit = (3 ** count - 1) // 2
        kind = rng.integers(4)
        if kind == 0:
            weights = rng.choice([-limit, limit], (rows, columns))
        else:
            weights = rng.integers(-limit, limit + 1, (rows, columns))
            weights[rng.random((rows, columns)) < (0.0, 0.5, 1.0)[kind - 1]] = 0
        data = pack_words(planes(weights, count), engine).tobytes()
        address = self._allocate(data)
        if address is None:
            return None
        self._matrices[key] = address
        return {"b": count, "address": address}

    def _multiply(self) -> None:
        """Queue products of the newest list."""
        rng, config, engine = self.rng, self.config, self.config.engine
        newest = self._order.newest
        if newest is None:
            return
        columns, batch = newest.columns or self.most_columns, newest.vectors
        for _ in range(int(rng.choice([1, 1, 2, config.product_depth]))):
            if len(self._order.products) == config.product_depth:
                return
            limit = engine.max_rows // batch
            if batch > 1:
                rows = self.lanes * self._size(limit // self.lanes)
            else:
                rows = int(rng.choice([self._size(limit), self._size(4 * engine.lanes),
                                       engine.lanes, engine.lanes + 1, limit]))
                rows = min(rows, limit)
            matrix = self._matrix(rows, columns)
            if matrix is None:
                rows = self.lanes
                matrix = self._matrix(rows, columns)
            if matrix is None:
                return
            self.add(Opcode.MATMUL, function=Function.BY_COLUMN, a=rows, count=columns, **matrix,
                     target=batch if batch > 1 else int(rng.integers(2)))

    def _rows(self) -> None:
        """Queue products by row, of lists that are there or are made for them."""
        rng, config, lanes = self.rng, self.config, self.lanes
        if rng.integers(3):
            if not any(product.by_row for product in self._order.products):
                self._pack(int(rng.choice((Function.DENSE, *MASKED))), config.engine.row_columns)
            if rng.integers(4) or self._order.newest is None:
                self._pack(int(rng.choice((Function.NONZERO, Function.SPARSE, *MASKED,
                                           Function.DENSE))))
            elif rng.integers(2):
                self._token()
        newest: ListShape | None = self._order.newest
        columns = self._order.by_row
        if (newest is None or newest.vectors > 1
                or not 0 < columns <= config.engine.row_columns):
            return
        rows = newest.columns or max(lanes, self.most_columns)
        if rows > (self.words - 1) * lanes:     # they are drained at once
            return
        for _ in range(int(rng.integers(1, 3))):
            matrix = self._matrix(columns, rows)
            if matrix is None or len(self._order.products) == config.product_depth:
                return
            self.add(Opcode.MATMUL, function=Function.BY_ROW, a=rows, count=columns, **matrix)

    def _take(self) -> None:
        """WriteBack some rows of the oldest product, or all, or have the largest delivered."""
        rng, product = self.rng, self._order.products[0]
        room = (self.words - 1) * self.lanes
        function = int(rng.choice(FUNCTIONS[Opcode.WRITE_BACK]))
        if product.by_row:
            self.add(Opcode.WRITE_BACK, function=function, target=self._target(product.rows),
                     count=product.rows, **self._scalar())
            return
        if product.rows <= room and product.rows % self.lanes == 0 and rng.integers(3) == 0:
            count = product.rows
        elif product.rows > self.lanes and rng.integers(3) == 0:
            count = self.lanes * self._size(min(product.rows - 1, room) // self.lanes)
        else:
            self.add(Opcode.TOP_K, count=product.rows, **self._scalar())
            return
        self.add(Opcode.WRITE_BACK, function=function, target=self._target(count), count=count,
                 **self._scalar())

    # Attention.

    def _plan_caches(self) -> None:
        """Find room for some caches; each pass appends to all of them."""
        rng, config, lanes = self.rng, self.config, self.lanes
        formats = [function for function in FUNCTIONS[Opcode.KV_APPEND]
                   if function is Function.BF16 or "e4m3" in config.cache_formats]
        for number in range(int(rng.integers(0, config.caches))):
            chosen = [formats[int(rng.integers(len(formats)))] for _ in range(2)]
            unit = max(math.lcm(lanes, config.port_bytes if function is Function.E4M3
                                else config.port_bytes // 2) for function in chosen)
            elements = unit * self._size(config.head_elements // unit)
            places = [self._allocate(bytes(2 * elements * config.context)) for _ in range(2)]
            if places[0] is not None and places[1] is not None:
                self._caches.append(_Cache(number, elements, (chosen[0], chosen[1]),
                                           (places[0], places[1])))

    def _two_parts(self, count: int, divisible: bool) -> tuple[int, int]:
        """Draw where a vector is read, in one part or in two: the second part's place, or 0."""
        second = self._source(count // 2) if divisible and self.rng.integers(2) else 0
        return self._source(count // 2 if second else count), second

    def _append(self, cache: _Cache) -> None:
        """Append the pass' keys, or behind them its values."""
        values = cache.appended
        half = cache.elements // 2
        a, b = self._two_parts(cache.elements, half % self.lanes == 0)
        self.add(Opcode.KV_APPEND, function=cache.formats[values], a=a, b=b, count=cache.elements,
                 # Nobody asks for the largest key: they share a number.
                 constant=cache.number if values else self.config.caches - 1,
                 address=cache.addresses[values])
        cache.appended += 1

    def _score(self) -> None:
        rng = self.rng
        ready = [cache for cache in self._caches if cache.appended]
        if not ready or not self._may_wait():
            return
        cache = ready[int(rng.integers(len(ready)))]
        heads, elements = int(rng.integers(1, self.config.group + 1)), cache.elements
        count = heads * elements
        if count > self.config.vector_depth:
            return
        a, b = self._two_parts(count, elements % (2 * self.lanes) == 0)
        self.add(Opcode.QK, function=cache.formats[0], target=heads, a=a, b=b, count=count,
                 constant=elements, address=cache.addresses[0])

    def _mix(self) -> None:
        heads, elements = self._order.heads, self._order.elements
        if not heads or not self._may_wait():
            return
        ready = [cache for cache in self._caches
                 if cache.appended == 2 and cache.elements == elements]
        if not ready:
            return
        cache = ready[int(self.rng.integers(len(ready)))]
        count = heads * elements
        self.add(Opcode.PV, function=cache.formats[1], target=self._target(count),
                 a=cache.number, count=count, constant=elements, address=cache.addresses[1])


def _repair(config: AcceleratorConfig, program: list[Instruction], starts: list[int], index: int,
              address: int) -> None:
    """Load a finite vector in front of instruction ``index``, whose vector is not finite."""
    instruction = program[index]
    count, firsts = instruction.count, [instruction.a]
    if instruction.opcode is not Opcode.QUANTIZE and instruction.b:
        count //= 2
        firsts.append(instruction.b)
    added = []
    for first in firsts:
        begin = max(first, config.vector_lanes)     # the first word is zero
        if begin < first + count:
            added.append(Instruction(opcode=Opcode.LOAD, target=begin, count=first + count - begin,
                                     address=address))
    at = index
    if instruction.opcode is Opcode.QUANTIZE and instruction.function in MASKED:
        # It would begin beside the LOAD just before it, as it may beside the one that is there.
        if program[index - 1].opcode in (Opcode.LOAD, Opcode.LOAD_AT):
            at -= 1
        else:
            added.append(Instruction(opcode=Opcode.VECTOR, function=Function.COPY,
                                     target=added[0].target, a=added[0].target,
                                     count=config.vector_lanes))
    program[at:at] = added
    starts[:] = [start + len(added) * (start > at) for start in starts]


def random_case(configuration: str, seed: int | tuple[int, ...], *, length: int = 30) -> Case:
    """Draw a legal case.

    Parameters
    ----------
    configuration : str
        Key of :data:`CONFIGURATIONS`.
    seed : int or tuple of int
    length : int
        Instructions of its body, about.
    """
    seeds = (seed,) if isinstance(seed, int) else seed
    return next(case for attempt in itertools.count()
                if (case := _finite_case(configuration, (*seeds, attempt), length)) is not None)


def _finite_case(configuration: str, seed: tuple[int, ...], length: int) -> Case | None:
    """Draw a case; None if what makes it finite is not legal in one of its places."""
    config = CONFIGURATIONS[configuration]
    drawn = RandomProgram(config, seed, length)
    rng = drawn.rng
    passes = drawn.passes()
    tokens, starts = [token for token, _ in passes], [start for _, start in passes]
    timing = Timing(latency=int(rng.choice([1, 2, 7, 20])),
                    refresh=float(rng.choice([0.0, 0.0, 0.01, 0.2])),
                    stall=int(rng.choice([0, 0, 26, 64, 128])) / 256,
                    seed=int(rng.integers(2 ** 32)))
    finite = drawn._constant(config.vector_depth, "small")
    program, memory, drawn_length = drawn.program, drawn.contents(), len(drawn.program)
    while True:
        case = Case(configuration=configuration, program=tuple(map(encode, program)),
                    memory=memory, passes=tuple(zip(tokens, starts, strict=True)), timing=timing)
        machine = case.machine()
        try:
            for one in case.passes:
                machine.run(*one)
            return case
        except MachineFault as found:
            if found.fault is not Fault.NOT_FINITE:
                raise
            _repair(config, program, starts, found.instruction, finite)
        except HazardError:
            # A LOAD waits for products that were queued before it.
            if len(program) == drawn_length:
                raise
            return None
        if len(program) > config.program_depth:
            return None
