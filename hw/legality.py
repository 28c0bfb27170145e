"""Which fields of an instruction are legal: one table for the decoder and the golden machine.

docs/machine.md has the faults in words. What an instruction depends on beside its own fields is
:mod:`hw.order`.
"""

from hw.config import AcceleratorConfig
from hw.isa import ATTENTION, FIELDS, FUNCTIONS, MASKED, REGISTERS, Function, Opcode

__all__ = ["CACHE_BYTES", "CACHE_FORMATS", "HALVED", "REGISTERS_READ", "REGISTERS_WRITTEN",
           "SECOND_VECTOR", "VECTORS", "functions", "matrix_limits", "opcodes", "product_rows",
           "register_range"]

#: Fields that hold where a vector begins in the vector memory. ``b`` of QUANTIZE and VECTOR is one
#: with functions of :data:`SECOND_VECTOR` only, that of :data:`HALVED` if it is not 0.
VECTORS = {
    Opcode.LOAD: ("target",),
    Opcode.STORE: ("a",),
    Opcode.LOAD_AT: ("target",),
    Opcode.KV_APPEND: ("a", "b"),
    Opcode.QUANTIZE: ("a", "b"),
    Opcode.WRITE_BACK: ("target",),
    Opcode.VECTOR: ("target", "a", "b"),
    Opcode.NORM: ("a",),
    Opcode.QK: ("a", "b"),
    Opcode.PV: ("target",),
}

#: Functions whose ``b`` is a vector.
SECOND_VECTOR = (Function.ADD, Function.SUBTRACT, Function.LMUL, *MASKED)

#: Opcodes whose vector lies in two halves, at ``a`` and ``b``, if ``b`` is not 0.
HALVED = (Opcode.KV_APPEND, Opcode.QK)

#: Fields that name a scalar register to be read: any of them.
REGISTERS_READ = {Opcode.WRITE_BACK: ("a", "b"), Opcode.TOP_K: ("a", "b")}

#: Fields that name a scalar register to be written, and functions that write none: register 0 is
#: always 1.
REGISTERS_WRITTEN = {Opcode.NORM: ("target", ()), Opcode.QUANTIZE: ("target", (Function.NONZERO,))}

#: Format of a cache by function, and bytes of an element.
CACHE_FORMATS = {Function.BF16: "bf16", Function.E4M3: "e4m3"}
CACHE_BYTES = {Function.BF16: 2, Function.E4M3: 1}


def opcodes(config: AcceleratorConfig) -> list[Opcode]:
    """Return the opcodes that a configuration executes: without a context none of attention."""
    return [opcode for opcode in Opcode if config.context or opcode not in ATTENTION]


def functions(config: AcceleratorConfig) -> dict[Opcode, tuple[Function, ...]]:
    """Return the functions of each opcode that has some."""
    return {opcode: tuple(function for function in found
                          if CACHE_FORMATS.get(function, "bf16") in config.cache_formats
                          and (config.masks or function not in MASKED))
            for opcode, found in FUNCTIONS.items() if opcode in opcodes(config)}


def register_range(*, written: bool) -> range:
    """Return the scalar registers that can be read, or written."""
    return range(int(written), REGISTERS)


def matrix_limits(config: AcceleratorConfig, function: Function) -> dict[str, int]:
    """Return the largest legal value of each field of MATMUL that is a size; the least is 1.

    Parameters
    ----------
    config : AcceleratorConfig
    function : Function
        BY_COLUMN or BY_ROW.

    Returns
    -------
    dict
        ``a``: rows; ``b``: planes; ``count``: columns.
    """
    engine = config.engine
    rows, columns = engine.max_rows, engine.max_columns
    if function == Function.BY_ROW:
        rows, columns = columns, engine.row_columns
    return {name: min(limit, 2 ** FIELDS[name] - 1) for name, limit in (
        ("a", rows), ("b", engine.max_planes), ("count", columns))}


def product_rows(config: AcceleratorConfig) -> int:
    """Return the rows of the largest product, those of all its vectors: a field counts them."""
    return min(config.engine.max_rows, 2 ** FIELDS["a"] - 1)
