"""The golden machine: executes programs of :mod:`hw.isa` in NumPy, bit for bit.

It is the definition of what an instruction does; docs/machine.md says when. Numbers come from the
functions that :mod:`sim.golden.evaluate` uses, so that there is one truth for machine and model.

The hardware trusts the compiler in many things. The machine does not: what the hardware answers
with a fault is a :class:`MachineFault` here, and what it would answer with an undefined number, or
not at all, is a :class:`HazardError`.
"""

import dataclasses
import functools
import math
from collections import deque
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from hw.config import AcceleratorConfig
from hw.formats.minifloat import bf16
from hw.isa import (
    ADDRESSED,
    ATTENTION,
    INSTRUCTION_BYTES,
    MASKED,
    REGISTERS,
    Batch,
    Fault,
    Function,
    Instruction,
    MemoryFailure,
    Opcode,
    decode_known,
)
from hw.legality import (
    CACHE_BYTES,
    CACHE_FORMATS,
    HALVED,
    REGISTERS_READ,
    REGISTERS_WRITTEN,
    SECOND_VECTOR,
    VECTORS,
    functions,
    matrix_limits,
    opcodes,
    product_rows,
    register_range,
)
from hw.order import Order, OrderError
from sim.golden.arithmetic import ARITHMETICS, Bf16Arithmetic
from sim.golden.attention import from_cache, mix, scores, to_cache
from sim.golden.bf16 import add, subtract, to_float32
from sim.golden.dequantize import scale
from sim.golden.evaluate import ExactProducts
from sim.golden.list_counts import ListCounts
from sim.golden.lmul import exact_product, lmul
from sim.golden.quantizer import quantize
from sim.golden.top_k import largest_rows
from sim.golden.trits import combine_planes, unpack_words
from sim.golden.twell import pack
from sim.golden.wina import keep_above, keep_largest
from sim.golden.wina import scores as mask_scores

__all__ = ["TopKResult", "Emission", "HazardError", "Machine", "MachineFault"]

_LMUL = ARITHMETICS["lmul"]
assert isinstance(_LMUL, Bf16Arithmetic)

_FUNCTIONS: dict[Function, Callable[..., NDArray[np.uint16]]] = {
    Function.ADD: add,
    Function.SUBTRACT: subtract,
    Function.LMUL: lambda x, y: lmul(bf16, x, y),
    Function.COPY: lambda x: x,
    Function.RELU: _LMUL.relu,
    Function.SIGMOID_OF_NEGATIVE: _LMUL.sigmoid_of_negative,
    Function.SILU: _LMUL.silu,
}
_BINARY = (Function.ADD, Function.SUBTRACT, Function.LMUL)


class MachineFault(Exception):
    """The accelerator stopped.

    Attributes
    ----------
    fault : Fault
    instruction : int
        Index of the instruction that it stopped at.
    sentence : str
        What is wrong, for people.
    """

    def __init__(self, fault: Fault, instruction: int, failure: MemoryFailure | None = None):
        self.fault = fault
        self.instruction = instruction
        self.sentence = failure.sentence if failure else fault.sentence
        super().__init__(f"Instruction {instruction}: {self.sentence}")


class HazardError(Exception):
    """A program relies on what no instruction has defined; the hardware would not notice."""


@dataclasses.dataclass(frozen=True, eq=False)
class TopKResult:
    """What one TOP_K delivers. Logits are ``values * scale``.

    Attributes
    ----------
    rows : int array
        The largest, of equal ones the first, first.
    values : int array
        Their integers.
    number : int
        bf16 number of the scalar, as bits.
    exponent : int
        Exponent of two of the scalar.
    """

    rows: NDArray[np.int64]
    values: NDArray[np.int32]
    number: int
    exponent: int

    @property
    def scale(self) -> float:
        """The scalar; exact."""
        number = float(to_float32(np.array(self.number, np.uint16)))
        return math.ldexp(number, self.exponent)


@dataclasses.dataclass(frozen=True, eq=False)
class Emission(TopKResult):
    """What one TOP_K delivers, and what the hardware does not: all integers of the product.

    Attributes
    ----------
    integers : int32 array
    """

    integers: NDArray[np.int32]


@dataclasses.dataclass(frozen=True)
class _Register:
    number: int
    exponent: int


@dataclasses.dataclass(frozen=True, eq=False)
class _List:
    """The list as a dense vector; ``columns`` are a QUANTIZE's elements, 0 after a TOKEN.

    ``listed`` are the indices of the hardware's entries: a DENSE one lists zeros too. ``found``
    are their number before a mask. A list of a batch has more than one of ``vectors``.
    """

    activations: NDArray[np.int8]
    columns: int
    listed: NDArray[np.int64]
    found: int
    vectors: int = 1


@dataclasses.dataclass(frozen=True, eq=False)
class _Product:
    """Rows of a product that were not taken; by row, ``listed`` are the rows that it has."""

    integers: NDArray[np.int32]
    listed: NDArray[np.int64] | None = None


_ONE = _Register(bf16.one, 0)


class Machine:
    """An accelerator: program, vector memory, registers, list, product queue and memory.

    Parameters
    ----------
    config : AcceleratorConfig
    program : bytes
        Encoded instructions.
    memory : bytes
        Memory from address 0, as far as anybody may look at it.

    Attributes
    ----------
    vectors : uint16 array
        Vector memory; it is zero from power-up on.
    memory : uint8 array
    registers : list
    position : int
        Position of the token in its sequence; at most the context.
    fault : MachineFault or None
        What stopped the accelerator, until :meth:`reset`.
    executed : int
        Instructions executed so far.
    trits : int
        Trits of matrices that were multiplied so far: those of listed columns.
    skipped : int
        Trits that were not: those of columns, or rows, that a list left out.
    rows : list of two int
        Rows that were listed of all products by row, and rows that these have.
    lists : dict of int to list of three int
        By the index of a QUANTIZE: lists that it made so far, their entries before a mask, and
        those behind it.
    """

    def __init__(self, config: AcceleratorConfig, program: bytes, memory: bytes):
        if len(program) > config.program_depth * INSTRUCTION_BYTES:
            raise ValueError(f"Program must have at most {config.program_depth} instructions, "
                             f"not {len(program) // INSTRUCTION_BYTES}")
        self.config = config
        self._program = [decode_known(program[k:k + INSTRUCTION_BYTES])
                         for k in range(0, len(program), INSTRUCTION_BYTES)]
        self.memory = np.frombuffer(memory, np.uint8).copy()
        self.vectors = np.zeros(config.vector_depth, np.uint16)
        # The first word is zero and stays it; all others must be written before they are read.
        self._written = np.zeros(config.vector_depth, bool)
        self._written[:config.vector_lanes] = True
        # With the end of each matrix in memory.
        self._matrices: dict[tuple[int, int, int, int, bool], tuple[int, ExactProducts]] = {}
        self.executed = 0
        self.trits = 0
        self.skipped = 0
        self.rows = [0, 0]
        if len({instruction.constant for instruction in self._program
                if instruction is not None and instruction.opcode is Opcode.STOP}) > 1:
            raise ValueError("Program must not have both STOPs that wait and STOPs that do not")
        self.lists: dict[int, list[int]] = {}
        self.reset()

    def reset(self) -> None:
        """Start the accelerator again: vector memory and memory stay as they are."""
        self.registers: list[_Register | None] = [_ONE] + [None] * (REGISTERS - 1)
        self._list: _List | None = None
        self._by_row: NDArray[np.int8] | None = None        # of the newest DENSE or masked list
        self._slots: list[NDArray[np.int8]] = []            # of a batch that is not complete
        self._order = Order(self.config)
        self._products: deque[_Product] = deque()
        self.position = 0
        self._bounds: dict[int, tuple[int, int]] = {}       # of each cache: position, field
        self._scored: NDArray[np.int32] | None = None
        self.fault: MachineFault | None = None

    def run(self, token: int, start: int = 0) -> list[Emission]:
        """Make one pass over the program.

        Parameters
        ----------
        token : int
        start : int
            Instruction to begin at. At 0 a sequence begins: the position is 0, else it is one more
            than in the pass before.

        Raises
        ------
        MachineFault
            Where the hardware faults. The checks come in the order of the faults' numbers.
        HazardError
            Where the hardware would deliver anything, or wait for ever.
        """
        if self.fault is not None:
            raise self.fault
        emissions: list[Emission] = []
        self._order.begin()
        self.position = min(self.position + 1, self.config.context) if start else 0
        self._scored = None
        index = start
        while True:
            instruction = self._program[index] if index < len(self._program) else None
            try:
                fault = Fault.OPCODE if instruction is None else self._check(instruction)
                if fault is not Fault.NONE or instruction is None:
                    self.fault = MachineFault(fault, index)
                    raise self.fault
                self.executed += 1
                with np.errstate(invalid="ignore", over="ignore"):
                    emission = self._execute(instruction, token)
            except (HazardError, OrderError) as error:
                raise HazardError(f"Instruction {index}: {error}") from None
            if instruction.opcode is Opcode.STOP:
                return emissions
            if emission is not None:
                emissions.append(emission)
            if instruction.opcode is Opcode.QUANTIZE and self._list is not None:
                counts = 1, self._list.found, len(self._list.listed)
                self.lists[index] = [sum(pair) for pair in zip(
                    counts, self.lists.get(index, (0, 0, 0)), strict=True)]
            index += 1

    def list_counts(self) -> dict[int, ListCounts]:
        """Return the mean entries of the lists so far, by the index of their QUANTIZE."""
        return {index: ListCounts(found / made, kept / made)
                for index, (made, found, kept) in self.lists.items()}

    # Faults.

    def _check(self, instruction: Instruction) -> Fault:
        """Return what the hardware would stop with before it executes the instruction."""
        config, opcode, count = self.config, instruction.opcode, instruction.count
        if opcode not in opcodes(config):
            return Fault.OPCODE
        if instruction.function not in functions(config).get(opcode, (0,)):
            return Fault.FUNCTION
        if opcode in HALVED and instruction.b:
            if count % 2:
                return Fault.VECTOR_ADDRESS
            count //= 2
        for first in self._vectors_of(instruction):
            if (count == 0 or first % config.vector_lanes or count % config.vector_lanes
                    or first + count > config.vector_depth):
                return Fault.VECTOR_ADDRESS
        if opcode is Opcode.QUANTIZE and count > config.list_depth:
            return Fault.VECTOR_ADDRESS
        written, without = REGISTERS_WRITTEN.get(opcode, ("", ()))
        if written and instruction.function not in without and (
                getattr(instruction, written) not in register_range(written=True)):
            return Fault.REGISTER
        if any(getattr(instruction, name) not in register_range(written=False)
               for name in REGISTERS_READ.get(opcode, ())):
            return Fault.REGISTER
        if opcode in ADDRESSED and (instruction.address % config.port_bytes
                                          or self._end(instruction) > config.memory_bytes):
            return Fault.MEMORY_ADDRESS
        if opcode is Opcode.MATMUL:
            limits = matrix_limits(config, Function(instruction.function))
            if not all(0 < getattr(instruction, name) <= limit for name, limit in limits.items()):
                return Fault.MATRIX
        if opcode in ATTENTION and self.position >= config.context:
            return Fault.CONTEXT
        if opcode in ATTENTION and not self._heads_fit(instruction):
            return Fault.HEADS
        if not self._batch_fits(instruction):
            return Fault.BATCH
        if opcode in (Opcode.WRITE_BACK, Opcode.TOP_K) and not self._order.takes(instruction):
            return Fault.NO_PRODUCT
        # What breaks the order has no result, whatever the vectors hold.
        self._order.step(instruction)
        if (opcode in (Opcode.KV_APPEND, Opcode.QK)
                or (opcode is Opcode.QUANTIZE and instruction.function != Function.NONZERO)):
            vector = self._two_parts(instruction)
            if ((vector & bf16.infinity) == bf16.infinity).any():
                return Fault.NOT_FINITE
        return Fault.NONE

    def _heads_fit(self, instruction: Instruction) -> bool:
        """Tell whether the heads and the cache of an instruction are some that there can be."""
        config, opcode = self.config, instruction.opcode
        if opcode is Opcode.LOAD_AT:
            return True
        elements = instruction.count if opcode is Opcode.KV_APPEND else instruction.constant
        if opcode is Opcode.QK and not 0 < instruction.target <= config.group:
            return False
        cache = {Opcode.KV_APPEND: instruction.constant, Opcode.PV: instruction.a}.get(opcode, 0)
        # Of each vector that is read or written on its own.
        halves = 2 if opcode is Opcode.QK and instruction.b else 1
        return (0 < elements <= config.head_elements and cache < config.caches
                and elements % (halves * config.vector_lanes) == 0
                and elements * CACHE_BYTES[Function(instruction.function)]
                % config.port_bytes == 0)

    def _batch_fits(self, instruction: Instruction) -> bool:
        """Tell whether the engine takes the batch of an instruction."""
        engine, count = self.config.engine, instruction.count
        if instruction.opcode is Opcode.MATMUL and instruction.target > 1:
            batch = instruction.target
            return (batch <= engine.max_batch and batch & (batch - 1) == 0
                    and instruction.function == Function.BY_COLUMN
                    and instruction.a % self.config.vector_lanes == 0
                    and engine.groups(instruction.a) * batch <= engine.accumulator_depth
                    and instruction.a * batch <= product_rows(self.config))
        if (instruction.opcode is Opcode.QUANTIZE and instruction.function == Function.DENSE
                and instruction.constant):
            part = Batch.of(instruction.constant)
            fits = part.constant == instruction.constant and 1 < part.vectors <= engine.max_batch
            if part.across:
                return fits and part.slot == 0 and count % part.vectors == 0
            return (fits and part.slot < part.vectors
                    and count * part.vectors <= self.config.list_depth)
        return True

    def _two_parts(self, instruction: Instruction) -> NDArray[np.uint16]:
        """Return ``v[a]``, or its halves in ``v[a]`` and ``v[b]``."""
        a, b, count = instruction.a, instruction.b, instruction.count
        if not b or instruction.opcode is Opcode.QUANTIZE:
            return self._view(a, count)
        return np.concatenate([self._view(first, count // 2) for first in (a, b)])

    def _vectors_of(self, instruction: Instruction) -> list[int]:
        """Return where each vector begins that the instruction reads or writes."""
        opcode = instruction.opcode
        second = (instruction.b > 0 if opcode in HALVED
                  else instruction.function in SECOND_VECTOR)
        return [getattr(instruction, name) for name in VECTORS.get(opcode, ())
                if name != "b" or second]

    def _end(self, instruction: Instruction) -> int:
        """Return the address behind the last byte that the instruction can reach."""
        if instruction.opcode is Opcode.MATMUL:
            columns, rows = instruction.count, instruction.a
            if instruction.function == Function.BY_ROW:
                columns, rows = rows, columns
            return instruction.address + columns * self.config.engine.column_bytes(
                rows, instruction.b)
        if instruction.opcode in ATTENTION:
            return instruction.address + (self.position + 1) * self._vector_bytes(instruction)
        return instruction.address + 2 * instruction.count

    @staticmethod
    def _vector_bytes(instruction: Instruction) -> int:
        """Return the bytes of a vector at each position."""
        if instruction.opcode is Opcode.LOAD_AT:
            return 2 * instruction.count
        appends = instruction.opcode is Opcode.KV_APPEND
        return (CACHE_BYTES[Function(instruction.function)]
                * (instruction.count if appends else instruction.constant))

    # Instructions.

    def _execute(self, instruction: Instruction, token: int) -> Emission | None:
        """Execute an instruction that has no fault."""
        target, a, count = instruction.target, instruction.a, instruction.count
        match instruction.opcode:
            case Opcode.LOAD:
                self._write(target, self._bytes(instruction).view("<u2"))
            case Opcode.STORE:
                self._store(instruction.address, self._read(a, count))
            case Opcode.LOAD_AT:
                self._write(target, self._bytes(instruction)[-2 * count:].view("<u2"))
            case Opcode.KV_APPEND:
                self._append(instruction)
            case Opcode.QK:
                self._score(instruction)
            case Opcode.PV:
                self._mix(instruction)
            case Opcode.TOKEN:
                activations = np.zeros(token + 1, np.int8)
                activations[token] = 1
                self._list = _List(activations, 0, np.array([token]), 1)
            case Opcode.QUANTIZE:
                self._pack(instruction)
            case Opcode.MATMUL:
                self._queue(instruction)
            case Opcode.WRITE_BACK:
                self._drain(instruction)
            case Opcode.TOP_K:
                return self._best(self._scalar(instruction), self._products.popleft().integers)
            case Opcode.VECTOR:
                self._vector(instruction)
            case Opcode.NORM:
                vector = self._read(a, count)
                self.registers[target] = _Register(int(_LMUL.inverse_norm(vector)), 0)
        return None

    def _store(self, address: int, values: NDArray) -> None:
        """Write numbers to memory, and forget the matrices that they change."""
        stored = values.astype(values.dtype.newbyteorder("<")).view(np.uint8)
        end = address + len(stored)
        if end > len(self.memory):
            raise HazardError(f"Memory up to byte {end} is used, but only {len(self.memory)} are "
                              f"defined")
        self.memory[address:end] = stored
        self._matrices = {key: matrix for key, matrix in self._matrices.items()
                          if matrix[0] <= address or key[0] >= end}

    def _append(self, instruction: Instruction) -> None:
        vector = np.concatenate([self._read(first, instruction.count // (1 + bool(instruction.b)))
                                 for first in self._vectors_of(instruction)])
        cached = to_cache(vector, CACHE_FORMATS[Function(instruction.function)])
        size = self._vector_bytes(instruction)
        self._store(instruction.address + self.position * size, cached)
        field = int((from_cache(cached) & np.uint16(bf16.magnitude_mask)).max()
                    ) >> bf16.mantissa_bits
        if self.position:
            before = self._bounds.get(instruction.constant)
            if before is None or before[0] < self.position - 1:
                raise HazardError(f"Cache {instruction.constant} got no vector at position "
                                  f"{self.position - 1}")
            field = max(field, before[1])
        self._bounds[instruction.constant] = self.position, field

    def _cached(self, instruction: Instruction) -> NDArray[np.uint16]:
        """Return the vectors of a cache up to the position."""
        size = CACHE_BYTES[Function(instruction.function)]
        found = from_cache(self._bytes(instruction).view("<u2" if size == 2 else np.uint8))
        if ((found & bf16.infinity) == bf16.infinity).any():
            raise HazardError("A cache holds an infinity or a NaN")
        return found.reshape(self.position + 1, instruction.constant)

    def _score(self, instruction: Instruction) -> None:
        heads, elements = instruction.target, instruction.constant
        halves = 2 if instruction.b else 1
        q = np.concatenate([
            self._read(first, instruction.count // halves).reshape(heads, elements // halves)
            for first in self._vectors_of(instruction)], axis=1)
        self._scored = scores(q, self._cached(instruction))

    def _mix(self, instruction: Instruction) -> None:
        assert self._scored is not None         # the order says so
        position, bound = self._bounds.get(instruction.a, (-1, 0))
        if position != self.position:
            raise HazardError(f"Cache {instruction.a} is mixed, but nothing was appended to it at "
                              f"position {self.position}")
        mixed = mix(self._scored, self._cached(instruction), bound,
                    accumulator_width=self.config.engine.accumulator_width)
        self._write(instruction.target, mixed.vectors.reshape(-1))

    def _pack_batch(self, instruction: Instruction, part: Batch) -> None:
        """Make a list of a batch, or a part of one."""
        codes = quantize(self._read(instruction.a, instruction.count))
        values = codes.values
        self.registers[instruction.target] = _Register(bf16.one, int(codes.exponents))
        if part.across:
            vectors = values.reshape(-1, part.vectors).T
        else:
            self._slots.append(values)
            if not part.last:
                return
            vectors, self._slots = np.stack(self._slots), []
        self._by_row = None
        count = vectors.shape[1]
        self._list = _List(vectors, count, np.arange(count), count, part.vectors)

    def _pack(self, instruction: Instruction) -> None:
        if instruction.function == Function.DENSE and instruction.constant:
            self._pack_batch(instruction, Batch.of(instruction.constant))
            return
        vector, function = self._read(instruction.a, instruction.count), instruction.function
        if function == Function.NONZERO:
            live = (vector & bf16.infinity) != 0        # subnormal numbers are zero
            rows = np.flatnonzero(live)
            self._list = _List(live.astype(np.int8), len(vector), rows, len(rows))
            return
        codes = quantize(vector)
        values = codes.values
        found = len(values) if function == Function.DENSE else np.count_nonzero(values)
        if function in MASKED:
            norms = np.ones(len(values), np.uint16)
            if instruction.b:
                norms = self._read(instruction.b, len(values))
            weights = mask_scores(values, norms)
            if function == Function.KEEP_ABOVE:
                kept = keep_above(weights, instruction.address)
            else:
                kept = keep_largest(weights, min(instruction.constant, len(values)))
            # An entry with score 0 is none.
            values = np.where(kept & (weights > 0), values, np.int8(0))
        if function != Function.SPARSE:
            self._by_row = values
        # Entries leave as the tiles have them.
        listed = np.arange(len(values)) if function == Function.DENSE else pack(values).columns
        self._list = _List(values, len(values), listed, int(found))
        self.registers[instruction.target] = _Register(bf16.one, int(codes.exponents))

    def _drain(self, instruction: Instruction) -> None:
        factor = self._scalar(instruction)
        product = self._products.popleft()
        integers, left = np.split(product.integers, [instruction.count])
        if len(left):
            self._products.appendleft(_Product(left))
        numbers = scale(integers[np.newaxis], np.array([factor.number], np.uint16),
                        np.array([factor.exponent], np.int32))[0]
        if instruction.function == Function.RELU:
            numbers = _LMUL.relu(numbers)
        if product.listed is not None:
            listed = product.listed
            self._check_target(instruction.target)
            self.vectors[instruction.target + listed] = numbers[listed]
            self._written[instruction.target + listed] = True
        else:
            self._write(instruction.target, numbers)

    def _vector(self, instruction: Instruction) -> None:
        target, count = instruction.target, instruction.count
        operands = [instruction.a]
        if instruction.function in _BINARY:
            operands.append(instruction.b)
        for first in operands:
            if first != target and abs(first - target) < count:
                raise HazardError(f"The vector at {target} must be one of its operands or apart "
                                  f"from them, but {first} overlaps it")
        function = _FUNCTIONS[Function(instruction.function)]
        self._write(target, function(*(self._read(first, count) for first in operands)))

    def _queue(self, instruction: Instruction) -> None:
        """Multiply at once: the list of now is the one that the engine will take."""
        assert self._list is not None           # the order says so
        by_row = instruction.function == Function.BY_ROW
        # What the list names: columns, or rows.
        columns = instruction.a if by_row else instruction.count
        vectors = self._list.vectors
        activations: NDArray[np.int8] = np.zeros((vectors, columns), np.int8)
        given = self._list.activations.reshape(vectors, -1)
        if given.shape[1] > columns:
            raise HazardError(f"The token must be below {columns}, not {given.shape[1] - 1}")
        activations[:, :given.shape[1]] = given
        count = len(self._list.listed)
        each = instruction.b * (instruction.count if by_row else instruction.a)
        self.trits += count * each
        if self._list.columns:
            self.skipped += (columns - count) * each
        if by_row:
            self.rows = [self.rows[0] + count, self.rows[1] + columns]
        listed = None
        if by_row:
            assert self._by_row is not None
            listed, activations = self._list.listed, self._by_row[np.newaxis]
        # Vector by vector.
        product = self._matrix(instruction)("", activations).reshape(-1)
        # Like the adders, sums wrap around; the compiler proves that none does.
        half = 1 << (self.config.engine.accumulator_width - 1)
        self._products.append(_Product(((product + half) & (2 * half - 1)) - half, listed))

    def _matrix(self, instruction: Instruction) -> ExactProducts:
        """Unpack the matrix of a MATMUL, once."""
        rows, columns, planes = instruction.a, instruction.count, instruction.b
        by_row = instruction.function == Function.BY_ROW
        key = instruction.address, rows, columns, planes, by_row
        if key not in self._matrices:
            engine = self.config.engine
            if by_row:
                rows, columns = columns, rows
            image = self._bytes(instruction).reshape(columns, planes, engine.groups(rows),
                                                     engine.word_bytes)
            weights = combine_planes(unpack_words(image, rows, engine))
            self._matrices[key] = (self._end(instruction), ExactProducts(
                {"": weights.T if by_row else weights}))
        return self._matrices[key][1]

    def _scalar(self, instruction: Instruction) -> _Register:
        """Return ``constant * r[a] * r[b]``, rounded after each product."""
        number, exponent = instruction.constant, 0
        for index in (instruction.a, instruction.b):
            register = self.registers[index]
            if register is None:
                raise HazardError(f"Register {index} is read, but was never written")
            number = _product(number, register.number)
            exponent += register.exponent
        return _Register(number, exponent)

    def _best(self, factor: _Register, product: NDArray[np.int32]) -> Emission:
        rows = largest_rows(product, self.config.top_k)
        return Emission(rows, product[rows], factor.number, factor.exponent, product)

    # Vector memory and memory.

    def _view(self, first: int, count: int) -> NDArray[np.uint16]:
        return self.vectors[first:first + count]

    def _read(self, first: int, count: int) -> NDArray[np.uint16]:
        unknown = np.flatnonzero(~self._written[first:first + count])
        if unknown.size:
            raise HazardError(f"Element {first + int(unknown[0])} is read, but was never written")
        return self._view(first, count)

    def _write(self, first: int, values: NDArray[np.uint16]) -> None:
        self._check_target(first)
        self._view(first, len(values))[:] = values
        self._written[first:first + len(values)] = True

    def _check_target(self, first: int) -> None:
        if first < self.config.vector_lanes:
            raise HazardError("The first word is written, but must stay zero")

    def _bytes(self, instruction: Instruction) -> NDArray[np.uint8]:
        end = self._end(instruction)
        if end > len(self.memory):
            raise HazardError(f"Memory up to byte {end} is used, but only {len(self.memory)} are "
                              f"defined")
        return self.memory[instruction.address:end]


@functools.cache
def _product(x: int, y: int) -> int:
    """Return the product of two bf16 numbers, rounded once."""
    return int(exact_product(bf16, *np.array([x, y], np.uint16)[:, np.newaxis])[0])
