"""The energy of a token: operations that the golden machine counts, times energy of each.

The energy of an operation is measured on netlists (``python -m hw.energy``), that of a byte of
memory is published. docs/energy.md says what is left out.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from host.files.image import Image
from host.models.base import LanguageModel
from hw.formats.minifloat import FORMATS
from hw.isa import MASKED, Function, Opcode
from sim.golden.graph import Kind
from sim.golden.machine import Machine

__all__ = ["ARITHMETICS", "MEMORIES", "Arithmetic", "Memory", "Operations", "claim_summary",
           "count_operations", "matrix_weights", "token_claims", "token_parts",
           "unit_claims"]


@dataclasses.dataclass(frozen=True)
class Memory:
    """A memory whose energy is published.

    Attributes
    ----------
    picojoules : float
        A byte.
    source : str
    """

    picojoules: float
    source: str


_HOROWITZ = "M. Horowitz, Computing's Energy Problem, ISSCC 2014: 45 nm, 0.9 V"
#: By where data lie: weights in DRAM, sums and vectors in SRAM.
MEMORIES = {
    "DRAM": Memory(640 / 4, "S. Han et al., EIE, ISCA 2016, table 1: 45 nm, 640 pJ for 32 bits"),
    "SRAM": Memory(10 / 8, f"{_HOROWITZ}, 10 pJ for 64 bits of 8 KB"),
}


@dataclasses.dataclass(frozen=True)
class Operations:
    """Operations of a token in the mean of some, as the golden machine executes a program.

    Attributes
    ----------
    trits : float
        Trits that were multiplied: those of listed columns and rows.
    quantized, selected : float
        Elements that were quantized, and entries that went through a mask.
    products, squares, sums, scaled : float
        Element-wise products; products of norms, each added up; element-wise sums; rows that were
        scaled.
    loaded : float
        Numbers of two bytes that were read from memory, beside matrices.
    elements : float
        Reads and writes of an element of the vector memory.
    """

    trits: float
    quantized: float
    selected: float
    products: float
    squares: float
    sums: float
    scaled: float
    loaded: float
    elements: float


def matrix_weights(model: LanguageModel) -> tuple[int, int]:
    """Weights that each token is multiplied by, and weights of the row that it is embedded by."""
    multiplied = sum(step.weights.shape[0] * step.weights.shape[1] * step.operands[0].vectors
                     for step in model.network() if step.kind in (Kind.LINEAR, Kind.HEAD))
    embedded = sum(step.elements for step in model.network() if step.kind is Kind.EMBEDDING)
    return multiplied, embedded


def count_operations(image: Image, tokens: Sequence[int]) -> Operations:
    """Execute a program for some tokens on the golden machine, and count.

    Parameters
    ----------
    image : Image
        A compiled model; what attention does is not counted.
    tokens : sequence of int
        The first one begins a text and is not counted.
    """
    program = image.program
    machine = Machine(image.config, program.encoded(), image.contents())
    machine.run(tokens[0])
    trits, lists = machine.trits, {index: tuple(made) for index, made in machine.lists.items()}
    rows = machine.rows[0]
    for token in tokens[1:]:
        machine.run(token, program.body)
    count = len(tokens) - 1
    found = dict.fromkeys((field.name for field in dataclasses.fields(Operations)), 0.0)
    found["trits"] = (machine.trits - trits) / count
    by_row = False
    for index, instruction in enumerate(program.instructions[program.body:], program.body):
        elements = instruction.count
        match instruction.opcode:
            case Opcode.QUANTIZE:
                found["elements"] += elements if instruction.function == Function.NONZERO \
                    else 2 * elements       # once for its largest magnitude
                found["quantized"] += elements
                if instruction.function in MASKED:
                    found["selected"] += (machine.lists[index][1] - lists[index][1]) / count
            case Opcode.MATMUL:
                by_row = instruction.function == Function.BY_ROW
            case Opcode.WRITE_BACK if not by_row:
                found["scaled"] += elements
                found["elements"] += elements
            case Opcode.VECTOR:
                paired = instruction.function in (Function.ADD, Function.SUBTRACT, Function.LMUL)
                found["elements"] += (3 if paired else 2) * elements
                if instruction.function == Function.LMUL:
                    found["products"] += elements
                elif paired:
                    found["sums"] += elements
            case Opcode.NORM:
                found["squares"] += elements
                found["elements"] += elements
            case Opcode.LOAD:
                found["loaded"] += elements
                found["elements"] += elements
    listed = (machine.rows[0] - rows) / count
    found["scaled"] += listed
    found["elements"] += listed
    return Operations(**found)


@dataclasses.dataclass(frozen=True)
class Arithmetic:
    """What a machine computes with: names of ``hw.energy.units.UNITS``, and bytes.

    Attributes
    ----------
    multiply_add, product, square, sum : str
        Units for matrices, for element-wise products, for norms and for element-wise sums.
    weight_bytes : float
        Bytes of a weight in DRAM; 0 for trits, five of which are a byte.
    sum_bytes : int
        Bytes of an accumulator in SRAM, read and written for each weight.
    quantized : bool
        Matrices are multiplied by int8, so that vectors are quantized and products scaled.
    """

    multiply_add: str
    product: str
    square: str
    sum: str
    weight_bytes: float
    sum_bytes: int
    quantized: bool

    @property
    def units(self) -> tuple[str, ...]:
        """Every unit that a token may need."""
        return (self.multiply_add, self.product, self.square, self.sum,
                *(("quantizer", "exact-bf16") if self.quantized else ()),
                *(("decoder-5in8", "sparsity-policy") if self.ternary else ()))

    @property
    def ternary(self) -> bool:
        """Weights are trits, and operations those of the machine."""
        return not self.weight_bytes


_TERNARY = Arithmetic("ternary-lane", "vector-lane", "dot-lmul-fixed-bf16", "add-bf16", 0, 3, True)
#: Arithmetics of the table, by their names; those of trits differ in their programs.
ARITHMETICS = {
    "exact fp16": Arithmetic("dot-exact-fp16", "exact-fp16", "dot-exact-fp16", "add-fp32", 2, 4,
                             False),
    "exact int8": Arithmetic("dot-int8", "exact-bf16", "dot-exact-bf16", "add-bf16", 1, 3, True),
    "L-Mul bf16": Arithmetic("dot-lmul-bf16", "lmul-bf16", "dot-lmul-bf16", "add-bf16", 2, 4,
                             False),
    "ternary": _TERNARY, "ternary, sparse": _TERNARY, "ternary, masked": _TERNARY,
    "ternary, compressed": _TERNARY,
}


def token_parts(arithmetic: Arithmetic, operations: Operations, weights: tuple[int, int],
                energies: Mapping[str, float]) -> Iterator[tuple[str, float, float, str]]:
    """List what a token's energy consists of.

    Parameters
    ----------
    arithmetic : Arithmetic
    operations : Operations
    weights : tuple of int
        Of :func:`matrix_weights`.
    energies : mapping of str to float
        pJ an operation of each unit.

    Yields
    ------
    part, count, picojoules, kind
    """
    multiplied, embedded = weights
    ternary = arithmetic.ternary
    multiply_adds = operations.trits if ternary else multiplied
    measured = [("matrices", multiply_adds, arithmetic.multiply_add)]
    if ternary:
        measured.append(("decoding of trits", operations.trits / 5, "decoder-5in8"))
    if arithmetic.quantized:
        measured += [("quantizer", operations.quantized, "quantizer"),
                     ("scaling of rows", operations.scaled, "exact-bf16")]
    if ternary:
        measured.append(("selection", operations.selected, "sparsity-policy"))
    measured += [("element-wise products", operations.products, arithmetic.product),
                 ("norms", operations.squares, arithmetic.square),
                 ("element-wise sums", operations.sums, arithmetic.sum)]
    for part, count, unit in measured:
        if count:
            yield part, count, count * energies[unit], "measured, counted"
    weight_bytes = (operations.trits / 5 if ternary
                    else (multiplied + embedded) * arithmetic.weight_bytes)
    for part, count, memory in (
            ("weights from DRAM", weight_bytes + 2 * operations.loaded, "DRAM"),
            ("sums in SRAM", 2 * arithmetic.sum_bytes * multiply_adds, "SRAM"),
            ("vectors in SRAM", 2 * operations.elements, "SRAM")):
        yield part, count, count * MEMORIES[memory].picojoules, "published, counted"


# Claims.

def _comparisons() -> Iterator[tuple[str, str, str, str, str]]:
    """Yield a claim, its format, what was claimed, and two units: what is saved, by what."""
    for fmt in FORMATS:
        yield ("L-Mul instead of a product", fmt, "95 % (L-Mul, of fp32)", f"exact-{fmt}",
               f"lmul-{fmt}")
    for fmt in ("e4m3", "bf16"):
        yield ("the same, pipelined units", fmt, "", f"exact-pipelined-{fmt}",
               f"lmul-pipelined-{fmt}")
    for fmt in ("e4m3", "fp16", "bf16", "fp32"):
        yield ("L-Mul instead of a multiply-add", fmt, "80 % (L-Mul)", f"dot-exact-{fmt}",
               f"dot-lmul-{fmt}")
    yield "integer sum instead of a product", "fp32", "37 times (L-Mul)", "exact-fp32", "add-int32"
    for fmt, unit in (("fp16", "dot-exact-fp16"), ("bf16", "dot-exact-bf16"),
                      ("int8", "dot-int8"), ("int4", "dot-int4")):
        yield ("ternary lane instead of a multiply-add", fmt,
               "50 times (MatMul-free LM, of a system)" if fmt == "fp16" else "", unit,
               "ternary-lane")


def _saved(before: Mapping[str, Any], after: Mapping[str, Any], field: str,
           name: str) -> dict[str, float]:
    return {f"ratio{name}": round(before[field] / after[field], 2),
            f"saved{name}_percent": round(100 * (1 - after[field] / before[field]), 1)}


def unit_claims(rows: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, object]]:
    """Compare measured units with what papers claim.

    Parameters
    ----------
    rows : sequence of mapping
        Of docs/results/energy.json.

    Yields
    ------
    dict
        ``ratio_logic`` and ``saved_logic_percent`` of the logic alone; ``ratio`` and
        ``saved_percent`` with registers, clock and leakage.
    """
    best = {(row["library"], row["operands"], row["name"]): row for row in rows if row["best"]}
    for library, operands in dict.fromkeys((library, operands) for library, operands, _ in best):
        for claim, fmt, claimed, before, after in _comparisons():
            pair = best[library, operands, before], best[library, operands, after]
            yield {"kind": "unit", "claim": claim, "format": fmt, "claimed": claimed,
                   "library": library, "operands": operands,
                   **_saved(*pair, "picojoules_logic", "_logic"),
                   **_saved(*pair, "picojoules", "")}


#: What is claimed of whole tokens or models, and the arithmetics that show it.
_TOKENS = (
    ("L-Mul in every product", "80 % (L-Mul)", "exact fp16", "L-Mul bf16"),
    ("ternary weights", "50 times (MatMul-free LM, of a system)", "exact fp16", "ternary"),
    ("ternary weights", "", "exact int8", "ternary"),
    ("zeros left out", "12 to 17 % (TwELL, on H100)", "ternary", "ternary, sparse"),
    ("half of the trits masked", "no energy (WINA)", "ternary", "ternary, masked"),
    ("tensor chains", "44 to 51 % (CompactifAI, on V100S)", "ternary", "ternary, compressed"),
)


def token_claims(rows: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, object]]:
    """Compare the tokens of two arithmetics with what papers claim.

    Parameters
    ----------
    rows : sequence of mapping
        Of docs/results/token_energy.json.

    Yields
    ------
    dict
        ``ratio_measured`` and ``saved_measured_percent`` of the parts that were measured,
        ``ratio`` and ``saved_percent`` with the memories whose energy is published.
    """
    sums: dict[tuple[str, str, str], dict[str, float]] = {}
    for row in rows:
        both = sums.setdefault((row["model"], row["library"], row["arithmetic"]),
                               {"measured": 0.0, "all": 0.0})
        both["measured"] += row["picojoules"] if row["kind"].startswith("measured") else 0
        both["all"] += row["picojoules"]
    for model, library in dict.fromkeys((model, library) for model, library, _ in sums):
        for claim, claimed, before, after in _TOKENS:
            first, second = (sums.get((model, library, name)) for name in (before, after))
            if first and second:
                yield {"kind": "token", "model": model, "claim": claim, "claimed": claimed,
                       "before": before, "after": after, "library": library,
                       **_saved(first, second, "measured", "_measured"),
                       **_saved(first, second, "all", "")}


@dataclasses.dataclass(frozen=True)
class _Summary:
    """A line of the summary: the range of a field over the claims that have some values."""

    claim: str
    claimed: str
    condition: str
    where: Mapping[str, str]
    field: str

    def row(self, claims: Sequence[Mapping[str, Any]]) -> dict[str, object]:
        found = [claim[self.field] for claim in claims
                 if all(claim.get(key) == value for key, value in self.where.items())]
        unit, digits = (" %", 0) if self.field.endswith("percent") else (" times", 1)
        least, most = (f"{value:.{digits}f}" for value in (min(found), max(found)))
        return {"kind": "summary", "claim": self.claim, "claimed": self.claimed,
                "measured": f"{least if least == most else f'{least} to {most}'}{unit}",
                "condition": self.condition}


def _lmul_summaries() -> Iterator[_Summary]:
    for fmt in ("fp32", "bf16", "e4m3", "e5m2"):
        for field, condition in (("saved_logic_percent", "logic alone"),
                                 ("saved_percent", "with registers and clock")):
            yield _Summary("energy of a product that L-Mul saves", "95 %", f"{fmt}, {condition}",
                           {"claim": "L-Mul instead of a product", "format": fmt}, field)
    for fmt in ("fp32", "bf16", "e4m3"):
        yield _Summary("energy of a dot product that L-Mul saves", "80 %",
                       f"{fmt}, sums in fp32, with registers and clock",
                       {"claim": "L-Mul instead of a multiply-add", "format": fmt},
                       "saved_percent")
    yield _Summary("energy of an fp32 product over that of an int32 sum", "37 times", "logic alone",
                   {"claim": "integer sum instead of a product"}, "ratio_logic")


_MEASURED, _ALL = "the shipped model, without memories", "the shipped model, with memories"
_SUMMARIES = (
    *_lmul_summaries(),
    *(_Summary("energy of a multiply-add over that of a ternary lane",
               "50 times, of a system" if fmt == "fp16" else "",
               f"{fmt} with {sums} sums, with registers and clock",
               {"claim": "ternary lane instead of a multiply-add", "format": fmt}, "ratio")
      for fmt, sums in (("fp16", "fp32"), ("int8", "24-bit"), ("int4", "24-bit"))),
    *(_Summary("energy of a token in fp16 over that of a ternary one", "50 times, of a system",
               condition,
               {"claim": "ternary weights", "model": "tally-stories", "before": "exact fp16"},
               field)
      for field, condition in (("ratio_measured", _MEASURED), ("ratio", _ALL))),
    *(_Summary("energy of a token that skipping zeros saves (TwELL)", "12 to 17 %", condition,
               {"claim": "zeros left out", "model": "tally-stories"}, field)
      for field, condition in (("saved_measured_percent", _MEASURED), ("saved_percent", _ALL))),
    *(_Summary("energy of a token that masking half of the trits saves (WINA)",
               "no energy claimed", condition,
               {"claim": "half of the trits masked", "model": "tally-stories"}, field)
      for field, condition in (("saved_measured_percent", _MEASURED), ("saved_percent", _ALL))),
    *(_Summary("energy of a token that tensor chains save (CompactifAI)", "44 to 51 %, of a GPU",
               f"stories260K at a quarter of its bytes, {condition} memories, no attention",
               {"claim": "tensor chains"}, field)
      for field, condition in (("saved_measured_percent", "without"), ("saved_percent", "with"))),
)


def claim_summary(claims: Sequence[Mapping[str, Any]]) -> list[dict[str, object]]:
    """Say what is left of each claim, in ranges over libraries and kinds of operands.

    Parameters
    ----------
    claims : sequence of mapping
        Of :func:`unit_claims` and :func:`token_claims`.

    Returns
    -------
    list of dict
        ``claim``, ``claimed``, ``measured``, ``condition``; without claims that nothing belongs to.
    """
    return [summary.row(claims) for summary in _SUMMARIES
            if any(all(claim.get(key) == value for key, value in summary.where.items())
                   for claim in claims)]
