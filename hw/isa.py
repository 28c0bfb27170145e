"""The instruction set, as plain data: for dispatch, golden machine, compiler and disassembler.

One token is one pass over a program. Instructions are coarse: each works on a whole vector or a
whole matrix. docs/machine.md says how they overlap; ``sim.golden.machine`` executes them, bit for
bit. This module imports no Amaranth.
"""

import dataclasses
import enum

from hw.config import INDEX_BITS

__all__ = ["ADDRESSED", "ATTENTION", "BATCH_FIELDS", "FIELDS", "FUNCTIONS", "MASKED",
           "INSTRUCTION_BYTES", "REGISTERS", "USED", "Batch", "Fault", "Function", "Instruction",
           "MemoryFailure", "Opcode", "decode", "decode_known", "disassemble", "encode"]

#: Bytes of an instruction in a program.
INSTRUCTION_BYTES = 16

#: Scalar registers, each a bf16 number times a power of two. Register 0 is always 1.
REGISTERS = 16

#: Fields of an instruction with their widths in bits, from bit 0 up.
FIELDS = {"opcode": 5, "function": 5, "count": INDEX_BITS, "target": 16, "a": 16, "b": 16,
          "constant": 16, "address": 32}


class Opcode(enum.IntEnum):
    """What an instruction does.

    ``v[x]`` is the vector of ``count`` bf16 elements from element x of the vector memory, ``r[x]``
    a scalar register, ``memory`` the bytes behind the memory port. Q and S are those of
    docs/numerics.md, section 6. Products queue up: WRITE_BACK and TOP_K take rows of the oldest
    one, until it has none left.
    """

    #: The pass over the program ends. Prefetch goes on at the start of the program, or, if
    #: ``constant`` is 1, waits for the next pass, which may begin anywhere.
    STOP = 0x01
    #: ``v[target] = memory[address]``.
    LOAD = 0x02
    #: ``memory[address] = v[a]``.
    STORE = 0x03
    #: ``v[target] = memory[address + position * 2 * count]``.
    LOAD_AT = 0x04
    #: ``memory[address + position * bytes] = v[a]``, as ``function`` says, or ``v[a]`` and ``v[b]``
    #: of half the count each, if ``b`` is not 0. Cache ``constant`` of
    #: :attr:`AcceleratorConfig.caches` remembers the largest element; caches whose values are not
    #: mixed may share one.
    KV_APPEND = 0x05
    #: The list becomes one entry: the column of the token's number, with activation 1.
    TOKEN = 0x08
    #: The list becomes ``Q(v[a])``, and ``r[target] = 2**k``; NONZERO writes no register.
    #: KEEP_TOP_K and KEEP_ABOVE look at the vector of integers ``v[b]``, norms of the columns: 1 if
    #: ``b`` is 0. With DENSE, ``constant`` may say that the list is that of a :class:`Batch`.
    QUANTIZE = 0x09
    #: A product is queued: the list times the matrix of ``a`` rows, ``count`` columns and ``b``
    #: planes whose packed columns, or rows, begin at ``address``. A matrix with fewer rows than
    #: lanes, or more than accumulators, is several. ``target`` is the number of vectors in a list
    #: of a batch, 0 or 1 otherwise; the product then has ``a`` rows for each, vector by vector.
    MATMUL = 0x0A
    #: ``v[target] = function(S(product, constant * r[a] * r[b]))``, of the product's next
    #: ``count`` rows. A product by row is taken whole; only the listed elements are written.
    WRITE_BACK = 0x0B
    #: The largest of the ``count`` integers that are left of the product are delivered to the
    #: host, with the scalar ``constant * r[a] * r[b]`` that makes logits of them.
    TOP_K = 0x0C
    #: ``v[target] = function(v[a], v[b])``, element by element.
    VECTOR = 0x10
    #: ``r[target] = 1 / sqrt(sum of squares of v[a])``, 0 for a zero vector.
    NORM = 0x11
    #: The keys up to the position, from ``address`` on, are scored with ``target`` heads of
    #: ``constant`` elements each, ``count`` together: those of ``v[a]``, or their first halves in
    #: ``v[a]`` and their second ones in ``v[b]``, if ``b`` is not 0.
    QK = 0x18
    #: ``v[target]`` is what the heads that were scored last make of the values from ``address``
    #: on, appended to cache ``a``; ``count`` and ``constant`` are those of the QK.
    PV = 0x19


class Function(enum.IntEnum):
    """Variants of QUANTIZE, MATMUL, WRITE_BACK and VECTOR, and formats of caches."""

    #: QUANTIZE: every element becomes an entry, and weights may be read before the list is known.
    DENSE = 0x01
    #: QUANTIZE: zeros are left out, and only listed columns are read.
    SPARSE = 0x02
    #: QUANTIZE: the elements that are not zero, each with activation 1: rows that are wanted.
    NONZERO = 0x03
    #: QUANTIZE: SPARSE, but only the ``constant`` entries with the largest scores.
    KEEP_TOP_K = 0x04
    #: QUANTIZE: SPARSE, but only entries with scores above ``address``.
    KEEP_ABOVE = 0x05
    #: MATMUL: the listed columns, each times its activation.
    BY_COLUMN = 0x08
    #: MATMUL: the listed rows, times the activations of the newest DENSE or masked list.
    BY_ROW = 0x09
    #: VECTOR, of ``a`` and ``b``.
    ADD = 0x10
    SUBTRACT = 0x11
    LMUL = 0x12
    #: VECTOR, of ``a`` alone; the first two also WRITE_BACK.
    COPY = 0x14
    RELU = 0x15
    #: ``1 / (1 + exp(a))``: the share of the state that is replaced.
    SIGMOID_OF_NEGATIVE = 0x16
    SILU = 0x17
    #: KV_APPEND, QK and PV: elements of a cache.
    BF16 = 0x18
    E4M3 = 0x19


#: Fields that each opcode uses beside ``opcode``; all others must be zero.
USED = {
    Opcode.STOP: ("constant",),
    Opcode.LOAD: ("target", "count", "address"),
    Opcode.STORE: ("a", "count", "address"),
    Opcode.LOAD_AT: ("target", "count", "address"),
    Opcode.KV_APPEND: ("function", "a", "b", "count", "constant", "address"),
    Opcode.TOKEN: (),
    Opcode.QUANTIZE: ("function", "target", "a", "b", "count", "constant", "address"),
    Opcode.MATMUL: ("function", "target", "a", "b", "count", "address"),
    Opcode.WRITE_BACK: ("function", "target", "a", "b", "count", "constant"),
    Opcode.TOP_K: ("a", "b", "count", "constant"),
    Opcode.VECTOR: ("function", "target", "a", "b", "count"),
    Opcode.NORM: ("target", "a", "count"),
    Opcode.QK: ("function", "target", "a", "b", "count", "constant", "address"),
    Opcode.PV: ("function", "target", "a", "count", "constant", "address"),
}

#: Functions that each opcode with a ``function`` field takes.
FUNCTIONS = {
    Opcode.QUANTIZE: (Function.DENSE, Function.SPARSE, Function.NONZERO, Function.KEEP_TOP_K,
                      Function.KEEP_ABOVE),
    Opcode.MATMUL: (Function.BY_COLUMN, Function.BY_ROW),
    Opcode.WRITE_BACK: (Function.COPY, Function.RELU),
    Opcode.VECTOR: (Function.ADD, Function.SUBTRACT, Function.LMUL, Function.COPY, Function.RELU,
                    Function.SIGMOID_OF_NEGATIVE, Function.SILU),
    Opcode.KV_APPEND: (Function.BF16, Function.E4M3),
    Opcode.QK: (Function.BF16, Function.E4M3),
    Opcode.PV: (Function.BF16, Function.E4M3),
}

#: Opcodes of a configuration with a context; they depend on the position in the sequence.
ATTENTION = (Opcode.LOAD_AT, Opcode.KV_APPEND, Opcode.QK, Opcode.PV)

#: Functions of QUANTIZE that pass the list through the mask.
MASKED = (Function.KEEP_TOP_K, Function.KEEP_ABOVE)

#: Opcodes whose ``address`` is one of the memory.
ADDRESSED = (Opcode.LOAD, Opcode.STORE, Opcode.MATMUL, *ATTENTION)


#: Parts of a DENSE QUANTIZE's ``constant`` with their widths in bits, from bit 0 up; what is above
#: them is zero.
BATCH_FIELDS = {"log2": 3, "across": 1, "slot": 7}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """A list of several vectors, which products with it multiply in one pass over their weights.

    Attributes
    ----------
    log2 : int
        Logarithm of the number of vectors; 0 is a list as ever.
    slot : int
        The packed vector becomes this one of them. They are packed from 0 on, one after the other;
        behind the last one the list is complete.
    across : bool
        The packed vector is all of them: element e is in column ``e // vectors`` of vector
        ``e % vectors``.
    """

    log2: int = 0
    slot: int = 0
    across: bool = False

    @property
    def vectors(self) -> int:
        """Number of vectors."""
        return 1 << self.log2

    @property
    def last(self) -> bool:
        """Whether the list is complete with this QUANTIZE."""
        return self.across or self.slot == self.vectors - 1

    @property
    def constant(self) -> int:
        """The field of QUANTIZE."""
        value, shift = 0, 0
        for name, width in BATCH_FIELDS.items():
            value |= int(getattr(self, name)) << shift
            shift += width
        return value

    @classmethod
    def of(cls, constant: int) -> "Batch":
        """Take the field of QUANTIZE apart; what is above its parts is left out."""
        values = {}
        for name, width in BATCH_FIELDS.items():
            values[name] = constant & (2 ** width - 1)
            constant >>= width
        return cls(log2=values["log2"], slot=values["slot"], across=bool(values["across"]))


class Fault(enum.IntEnum):
    """Why the accelerator stopped; the driver turns it into a sentence."""

    NONE = 0
    OPCODE = 1
    FUNCTION = 2
    VECTOR_ADDRESS = 3
    REGISTER = 4
    MEMORY_ADDRESS = 5
    MATRIX = 6
    NOT_FINITE = 7
    NO_PRODUCT = 8
    CONTEXT = 9
    HEADS = 10
    BATCH = 11
    MEMORY = 12

    @property
    def sentence(self) -> str:
        """What is wrong, for people."""
        return _SENTENCES[self]


_SENTENCES = {
    Fault.NONE: "nothing is wrong",
    Fault.OPCODE: "the opcode is none, or the program has no STOP",
    Fault.FUNCTION: "the function is none of this opcode",
    Fault.VECTOR_ADDRESS: "a vector is empty, not aligned to the vector lanes, ends beyond the "
                          "vector memory, or is longer than the list that it becomes",
    Fault.REGISTER: "a scalar register is beyond the last one, or register 0 is written",
    Fault.MEMORY_ADDRESS: "an address is not aligned to the memory port, or beyond the memory",
    Fault.MATRIX: "a matrix has more rows, columns or planes than the engine takes, or none",
    Fault.NOT_FINITE: "a vector to be packed, appended or scored holds an infinity or a NaN",
    Fault.NO_PRODUCT: "a product is taken that was not queued or has fewer rows left, or rows of "
                      "it are left that a TOP_K, or the WRITE_BACK of a product by row, does not "
                      "take",
    Fault.CONTEXT: "the sequence is longer than the context",
    Fault.HEADS: "heads are none or more than the group, have more elements than attention takes "
                 "or do not fill words and transfers, or a cache is beyond the last one",
    Fault.BATCH: "a batch is none that the engine takes, is longer than the list, has more rows "
                 "than accumulators, does not fill words, or is walked by row",
    Fault.MEMORY: "the memory answered with an error",
}

#: Responses of AXI that are errors.
_RESPONSES = {2: "SLVERR", 3: "DECERR"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryFailure:
    """What is behind a fault MEMORY.

    Attributes
    ----------
    write : bool
        Whether a write failed, not a read.
    address : int
        Of the transfer that was read, or of the first one of the burst that was written.
    response : int
        2 is SLVERR, 3 is DECERR.
    """

    write: bool
    address: int
    response: int

    @property
    def sentence(self) -> str:
        """What is wrong, for people."""
        operation = "write to" if self.write else "read of"
        response = _RESPONSES.get(self.response, str(self.response))
        return f"the memory answered a {operation} address {self.address:#x} with {response}"



@dataclasses.dataclass(frozen=True, kw_only=True)
class Instruction:
    """One instruction; the fields are those of :data:`FIELDS`."""

    opcode: Opcode
    function: int = 0
    count: int = 0
    target: int = 0
    a: int = 0
    b: int = 0
    constant: int = 0
    address: int = 0

    def __post_init__(self):
        for name, width in FIELDS.items():
            value = getattr(self, name)
            if not 0 <= value < 2 ** width:
                raise ValueError(f"Field {name} of {self.opcode.name} must be in "
                                 f"0..{2 ** width - 1}, not {value}")
            if value and name != "opcode" and name not in USED[self.opcode]:
                raise ValueError(f"Field {name} of {self.opcode.name} must be 0, not {value}")


def encode(instruction: Instruction) -> bytes:
    """Return the :data:`INSTRUCTION_BYTES` of an instruction, little endian."""
    word, shift = 0, 0
    for name, width in FIELDS.items():
        word |= int(getattr(instruction, name)) << shift
        shift += width
    return word.to_bytes(INSTRUCTION_BYTES, "little")


def decode(data: bytes) -> Instruction:
    """Return the instruction of :data:`INSTRUCTION_BYTES` bytes.

    Raises
    ------
    ValueError
        If the opcode is none, or a field is set that the opcode does not use.
    """
    if len(data) != INSTRUCTION_BYTES:
        raise ValueError(f"Instruction must have {INSTRUCTION_BYTES} bytes, not {len(data)}")
    word = int.from_bytes(data, "little")
    values = {}
    for name, width in FIELDS.items():
        values[name] = word & (2 ** width - 1)
        word >>= width
    opcode = values.pop("opcode")
    if opcode not in set(Opcode):
        raise ValueError(f"Opcode must be one of {', '.join(f'{code:#04x}' for code in Opcode)}, "
                         f"not {opcode:#04x}")
    return Instruction(opcode=Opcode(opcode), **values)


def decode_known(data: bytes) -> Instruction | None:
    """Return the instruction as :func:`decode` does, None if its opcode is none."""
    known = data[0] % 2 ** FIELDS["opcode"] in set(Opcode)
    return decode(data) if known else None


def disassemble(instruction: Instruction) -> str:
    """Return one line of text, as ``VECTOR     LMUL target=768 a=512 b=256 count=256``."""
    parts = [f"{instruction.opcode.name:10}"]
    for name in USED[instruction.opcode]:
        value = getattr(instruction, name)
        if name == "function":
            known = value in FUNCTIONS[instruction.opcode]
            parts.append(Function(value).name if known else f"function={value:#04x}")
        elif name in ("b", "constant", "address") and not value and (
                instruction.opcode is Opcode.QUANTIZE):
            continue                        # only a masked list, or one of a batch, has them
        elif not value and (instruction.opcode, name) in ((Opcode.MATMUL, "target"),
                                                          (Opcode.STOP, "constant")):
            continue                        # no batch; no other place to begin
        elif name in ("constant", "address"):
            parts.append(f"{name}={value:#x}")
        else:
            parts.append(f"{name}={value}")
    return " ".join(parts).rstrip()
