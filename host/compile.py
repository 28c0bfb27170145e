"""The compiler: a ternary language model becomes a program and an image of its weights.

docs/numerics.md, section 6, is what the program computes, docs/machine.md the machine it runs on.

**Order.** Execution goes through the program once, but multiplying and reading weights run beside
it. So all products of one list are queued before the first of them is drained: the engine
multiplies the next matrix while this one's results are worked on, and weights are read ahead of
both. What remains on the way from one list to the next is as little as the model allows: norms are
computed after their list is queued, and the forget bias is loaded between two products of one list,
where nothing waits for it but the port.

**Vector memory.** Its first word is zero from power-up on and never written. From it, a new
sequence clears the state: each copy doubles what is zero.
"""

import dataclasses
import math
import re
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from host.device import DeviceError, pack_matrix
from host.image import Image, Part, Program
from host.model import TernaryLM, TernaryMatrix
from hw.config import CoreConfig
from hw.isa import Function, Instruction, Opcode
from sim.golden.bf16 import from_float
from sim.golden.schedule import TokenCycles

__all__ = ["CompileError", "compile_model", "losses"]

# Scalar registers; 0 is always 1.
_EXPONENT, _NORM, _STATE_NORM = 1, 2, 3


class CompileError(DeviceError):
    """A model does not fit a configuration; the message is one sentence."""


@dataclasses.dataclass(frozen=True)
class _Product:
    """Rows of a matrix that are one product; ``first`` is the first of them."""

    name: str
    address: int
    first: int
    rows: int
    columns: int
    planes: int


@dataclasses.dataclass(frozen=True)
class _Use:
    """A matrix, where its product goes and how it is scaled, and what is computed once it is there.

    Without a target, the product goes to the host.
    """

    name: str
    products: list[_Product]
    target: int | None
    constant: int
    exponent: int
    norm: int
    then: Callable[[], None] = lambda: None


def _bf16(value: float) -> int:
    return int(from_float(np.array(value, np.float64)))


class _Memory:
    """The image: packed matrices and vectors, one after the other."""

    def __init__(self, config: CoreConfig):
        self._config = config
        self._data = bytearray()
        self.parts: list[Part] = []

    def matrix(self, name: str, weights: NDArray[np.integer]) -> list[_Product]:
        """Pack a matrix; pack_matrix proves that no accumulator overflows."""
        packed = pack_matrix(name, weights, self._config.engine)
        products = []
        for first, rows, image in packed.blocks:
            part = name if len(packed.blocks) == 1 else f"{name}[{first}:{first + rows}]"
            address = self._add(part, "trits", image.tobytes(),
                                rows * packed.columns * packed.planes)
            products.append(_Product(part, address, first, rows, packed.columns, packed.planes))
        return products

    def vector(self, name: str, values: NDArray[np.uint16]) -> int:
        """Place a vector of bf16 numbers; return its address."""
        return self._add(name, "vector", values.astype("<u2").tobytes(), 0)

    def _add(self, name, kind, data, trits):
        port = self._config.port_bytes
        address = len(self._data)
        self._data += data
        self._data += bytes(-len(data) % port)
        if len(self._data) > self._config.memory_bytes:
            raise CompileError(f"Image must have at most {self._config.memory_bytes} bytes for an "
                               f"address width of {self._config.address_width}, but {name} ends "
                               f"at byte {len(self._data)}")
        self.parts.append(Part(name, kind, address, len(data), trits))
        return address

    def bytes(self) -> bytes:
        """Return the memory from address 0."""
        return bytes(self._data)


class _Vectors:
    """Vector memory, given out in words; the first one is zero."""

    def __init__(self, config: CoreConfig):
        self._config = config
        self.table: dict[str, tuple[int, int]] = {"zero": (0, config.vector_lanes)}
        self._end = config.vector_lanes

    def __call__(self, name: str, count: int) -> int:
        first, self._end = self._end, self._end + count
        self.table[name] = first, count
        return first

    def check(self) -> None:
        if self._end > self._config.vector_depth:
            raise CompileError(f"Vectors must fit {self._config.vector_depth} elements of vector "
                               f"memory, but the model needs {self._end}")


class _Compiler:
    """Writes the program of one model."""

    def __init__(self, model: TernaryLM, config: CoreConfig, sparse: bool):
        self._model = model
        self._config = config
        self._hidden_list = Function.SPARSE if sparse else Function.DENSE
        self._root = math.sqrt(model.width)
        self._memory = _Memory(config)
        self._vectors = _Vectors(config)
        self._instructions: list[Instruction] = []
        self._notes: list[str] = []
        self._where = ""

    def compile(self) -> Image:
        model = self._model
        vectors, width, ffn = self._vectors, model.width, model.ffn_width
        self._x = vectors("x", width)
        self._states = vectors("states", width * len(model.layers))
        self._bias = vectors("forget_bias", width)
        self._update = vectors("update", width)
        self._candidate = vectors("candidate", width)
        self._gate = vectors("gate", width)
        self._hidden = vectors("ffn_gate", ffn)
        self._up = vectors("ffn_up", ffn)
        vectors.check()

        self._where = "new sequence"
        self._clear(self._states, width * len(model.layers))
        body = len(self._instructions)
        self._where = "embedding"
        self._embed()
        for index in range(len(model.layers)):
            self._where = f"blk.{index}"
            self._mix(index)
            self._feed_forward(index)
        self._where = "head"
        heads = self._head()
        self._emit(Opcode.STOP, "the token is done")

        depth = self._config.program_depth
        if len(self._instructions) > depth:
            raise CompileError(f"Program must have at most {depth} instructions, "
                               f"not {len(self._instructions)}")
        program = Program(tuple(self._instructions), tuple(self._notes), body, heads,
                          vectors.table)
        return Image(self._config, model.name, model.vocab, program,
                     tuple(self._memory.parts), self._memory.bytes(), model.vocabulary)

    # One instruction each.

    def _emit(self, opcode: Opcode, note: str, **fields: int) -> None:
        try:
            self._instructions.append(Instruction(opcode=opcode, **fields))
        except ValueError as error:
            raise CompileError(f"{self._where}: {error}") from None
        self._notes.append(f"{self._where}: {note}")

    def _vector(self, function: Function, note: str, target: int, a: int, b: int = 0, *,
                count: int) -> None:
        self._emit(Opcode.VECTOR, note, function=function, target=target, a=a, b=b, count=count)

    def _pack(self, note: str, a: int, count: int, function: Function = Function.DENSE) -> None:
        if count > self._config.list_depth:
            raise CompileError(f"List must have at most {self._config.list_depth} entries, but "
                               f"{self._where} packs {count}")
        self._emit(Opcode.PACK, note, function=function, target=_EXPONENT, a=a, count=count)

    def _norm(self, note: str, target: int, a: int) -> None:
        self._emit(Opcode.NORM, note, target=target, a=a, count=self._model.width)

    # Products.

    def _multiply(self, *uses: _Use, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Queue the products of one list as early as the queue allows; drain each when it is there.

        ``meanwhile`` is what execution does once the first is queued. Never more than
        ``product_depth`` wait to be drained: a MATMUL waits for nothing that comes behind it.
        """
        products = [(use, product) for use in uses for product in use.products]
        ahead = self._config.product_depth
        self._matmul(products[0][1])
        meanwhile()
        for _, product in products[1:ahead]:
            self._matmul(product)
        for index, (use, product) in enumerate(products):
            scaled = {"a": use.exponent, "b": use.norm, "count": product.rows,
                      "constant": use.constant}
            if use.target is None:
                self._emit(Opcode.EMIT, f"the largest of {product.name}", **scaled)
            else:
                self._emit(Opcode.DRAIN, f"{use.name} = {product.name}",
                           target=use.target + product.first, **scaled)
            if index + ahead < len(products):
                self._matmul(products[index + ahead][1])
            if product is use.products[-1]:
                use.then()

    def _matmul(self, product: _Product) -> None:
        self._emit(Opcode.MATMUL, product.name, a=product.rows, b=product.planes,
                   count=product.columns, address=product.address)

    def _use(self, field: str, index: int, target: str, norm: int,
             then: Callable[[], None] = lambda: None) -> _Use:
        """Place a matrix of a layer in the memory, to be drained into the vector ``target``."""
        matrix: TernaryMatrix = getattr(self._model.layers[index], field)
        scale = matrix.scale * (self._root if norm else 1)
        return _Use(target, self._memory.matrix(f"blk.{index}.{field}", matrix.trits),
                    self._vectors.table[target][0], _bf16(scale), _EXPONENT, norm, then)

    # Parts of the program.

    def _clear(self, first: int, count: int) -> None:
        done = 0
        while done < count:
            source = first if done else 0
            size = min(done or self._config.vector_lanes, count - done)
            self._vector(Function.COPY, f"state {done}.. = 0", first + done, source, count=size)
            done += size

    def _embed(self) -> None:
        model = self._model
        self._emit(Opcode.TOKEN, "the list is the token's column")
        self._multiply(_Use("x", self._memory.matrix("embedding", model.embedding.T), self._x,
                            _bf16(model.embedding_scale), exponent=0, norm=0))

    def _mix(self, index: int) -> None:
        """Token mixer: the MLGRU."""
        width = self._model.width
        x, bias, update = self._x, self._bias, self._update
        candidate, gate = self._candidate, self._gate
        state = self._states + index * width

        def forget_is_there() -> None:
            self._vector(Function.ADD, "a = forget + bias", update, update, bias, count=width)
            self._vector(Function.SIGMOID_OF_NEGATIVE, "z = 1 - sigmoid(a)", update, update,
                         count=width)

        def candidate_is_there() -> None:
            self._vector(Function.SILU, "c = silu(candidate)", candidate, candidate, count=width)
            self._vector(Function.SUBTRACT, "c - h", candidate, candidate, state, count=width)
            self._vector(Function.LMUL, "z (c - h)", candidate, update, candidate, count=width)
            self._vector(Function.ADD, "h = h + z (c - h)", state, state, candidate, count=width)
            self._norm("1 / |h|", _STATE_NORM, state)

        def gate_is_there() -> None:
            self._vector(Function.SILU, "g = silu(gate)", gate, gate, count=width)
            self._vector(Function.LMUL, "o = h g", gate, state, gate, count=width)

        forget = self._use("forget", index, "update", _NORM, forget_is_there)
        address = self._memory.vector(f"blk.{index}.forget_bias",
                                      from_float(self._model.layers[index].forget_bias))

        def norm_and_bias() -> None:
            self._norm("1 / |x|", _NORM, x)
            self._emit(Opcode.LOAD, "forget bias", target=bias, count=width, address=address)

        self._pack("Q(x)", x, width)
        self._multiply(forget,
                       self._use("candidate", index, "candidate", _NORM, candidate_is_there),
                       self._use("gate", index, "gate", _NORM, gate_is_there),
                       meanwhile=norm_and_bias)
        self._pack("Q(o)", gate, width)
        self._multiply(self._use("output", index, "gate", _STATE_NORM))
        self._vector(Function.ADD, "x = x + output", x, x, gate, count=width)

    def _feed_forward(self, index: int) -> None:
        """Channel mixer: the gated network."""
        width, count = self._model.width, self._model.ffn_width
        x, hidden, up = self._x, self._hidden, self._up
        self._pack("Q(x)", x, width)
        self._multiply(
            self._use("ffn_gate", index, "ffn_gate", _NORM,
                      lambda: self._vector(Function.RELU, "relu(gate)", hidden, hidden,
                                           count=count)),
            self._use("ffn_up", index, "ffn_up", _NORM,
                      lambda: self._vector(Function.LMUL, "y = up relu(gate)", up, up, hidden,
                                           count=count)),
            meanwhile=lambda: self._norm("1 / |x|", _NORM, x))
        self._pack("Q(y)", up, count, self._hidden_list)
        self._multiply(self._use("ffn_down", index, "gate", norm=0))
        self._vector(Function.ADD, "x = x + down", x, x, self._gate, count=width)

    def _head(self) -> tuple[tuple[int, int], ...]:
        model = self._model
        self._pack("Q(x)", self._x, model.width)
        head = _Use("logits", self._memory.matrix("head", model.embedding), None,
                    _bf16(model.logit_scales["lmul"] * self._root), _EXPONENT, _NORM)
        self._multiply(head, meanwhile=lambda: self._norm("1 / |x|", _NORM, self._x))
        return tuple((product.first, product.rows) for product in head.products)


def compile_model(model: TernaryLM, config: CoreConfig, *, sparse: bool = False) -> Image:
    """Compile a model for a configuration.

    Parameters
    ----------
    model : TernaryLM
    config : CoreConfig
    sparse : bool
        Read only the columns of ``ffn_down`` whose activation is not zero. They cannot be read
        ahead: it pays where few are left.

    Raises
    ------
    DeviceError
        If the model does not fit, or a row of a matrix could overflow an accumulator.
    """
    if "lmul" not in model.logit_scales:
        raise CompileError(f"Model {model.name} must have a logit scale for arithmetic 'lmul'; "
                           f"find it with 'python -m host evaluate --fit'")
    # A vector fills whole words of the vector memory, and whole transfers of the port.
    unit = math.lcm(config.vector_lanes, max(1, config.port_bytes // 2))
    for what, value in (("width", model.width), ("FFN width", model.ffn_width)):
        if value % unit:
            raise CompileError(f"Model {model.name} must have a {what} that is a multiple of "
                               f"{unit} for this configuration, not {value}")
    return _Compiler(model, config, sparse).compile()


def losses(image: Image, cost: TokenCycles) -> list[tuple[str, float]]:
    """Say where the port's bits go that carry no useful weights: reason and share, largest first.

    Parameters
    ----------
    image : Image
    cost : TokenCycles
        Of the image's program.
    """
    config, program = image.config, image.program
    peak = 8 * config.port_bytes * cost.cycles * (1 - cost.refresh)
    vectors = sum(16 * instruction.count for instruction in program.instructions[program.body:]
                  if instruction.opcode in (Opcode.LOAD, Opcode.STORE))
    moved = 8 * config.port_bytes * cost.transfers
    shares = {"padding of weight words and columns": (moved - vectors - cost.useful_bits) / peak,
              "vectors of constants": vectors / peak}
    for instruction, note, idle in zip(program.instructions, program.notes, cost.idle.tolist(),
                                       strict=True):
        what = re.sub(r"blk\.\d+[.:] *", "", note)
        reason = f"port idle during {instruction.opcode.name}, {what}"
        shares[reason] = shares.get(reason, 0.0) + idle / cost.cycles
    return sorted(shares.items(), key=lambda item: -item[1])
