"""What random programs must have in them: opcodes, their variants, and fields at their edges."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping

from hw.config import AcceleratorConfig
from hw.isa import FUNCTIONS, MASKED, Batch, Function, Instruction, Opcode, decode
from hw.order import Order
from sim.golden.machine import Machine
from sim.programs.random import Case

__all__ = ["features", "missing_features"]


@dataclasses.dataclass(frozen=True)
class _Place:
    """An instruction, what is known in front of it, and what its list held on average."""

    config: AcceleratorConfig
    order: Order
    before: Instruction | None
    instruction: Instruction
    found: float = 1.0
    kept: float = 1.0

    @property
    def words(self) -> int:
        """Words of the vector."""
        return self.instruction.count // self.config.vector_lanes

    @property
    def batch(self) -> Batch:
        """The batch of a DENSE QUANTIZE, one vector otherwise."""
        dense = (self.instruction.opcode is Opcode.QUANTIZE
                 and self.instruction.function == Function.DENSE)
        return Batch.of(self.instruction.constant) if dense else Batch()

    @property
    def loaded_before(self) -> bool:
        """Whether a LOAD stands just before."""
        return self.before is not None and self.before.opcode in (Opcode.LOAD, Opcode.LOAD_AT)

    @property
    def largest(self) -> bool:
        """Whether the vector fills the vector memory, or all but its first word."""
        return self.instruction.count >= self.config.vector_depth - self.config.vector_lanes

    @property
    def part(self) -> bool:
        """Whether a WRITE_BACK leaves rows."""
        return self.instruction.count < self.order.products[0].rows

    @property
    def by_row(self) -> bool:
        """Whether a MATMUL, or the product that is taken, is by row."""
        if self.instruction.opcode is Opcode.MATMUL:
            return self.instruction.function == Function.BY_ROW
        return self.order.products[0].by_row


_Test = Callable[[_Place], bool]

#: Of each opcode, features by name, beside its functions.
_FEATURES: Mapping[Opcode, Mapping[str, _Test]] = {
    Opcode.LOAD: {
        "one word": lambda at: at.words == 1,
        "all of the vector memory": lambda at: at.largest,
        "behind queued products": lambda at: bool(at.order.products),
        "up to the end of memory": lambda at: (at.instruction.address + 2 * at.instruction.count
                                               == at.config.memory_bytes)},
    Opcode.STORE: {
        "one word": lambda at: at.words == 1,
        "of the zero word": lambda at: at.instruction.a == 0,
        "behind queued products": lambda at: bool(at.order.products)},
    Opcode.LOAD_AT: {"behind queued products": lambda at: bool(at.order.products)},
    Opcode.VECTOR: {
        "one word": lambda at: at.words == 1,
        "in place": lambda at: at.instruction.target == at.instruction.a,
        "twice the same": lambda at: at.instruction.a == at.instruction.b != 0,
        "half of the vector memory": lambda at: at.words == (at.config.vector_depth
                                                             // at.config.vector_lanes // 2)},
    Opcode.NORM: {"one word": lambda at: at.words == 1,
                  "all of the vector memory": lambda at: at.largest},
    Opcode.TOKEN: {"behind queued products": lambda at: bool(at.order.products)},
    Opcode.QUANTIZE: {
        "one word": lambda at: at.words == 1,
        "all of the list": lambda at: at.instruction.count == at.config.list_depth,
        "behind queued products": lambda at: bool(at.order.products),
        "an empty list": lambda at: at.kept == 0,
        "all zero": lambda at: at.found == 0 and at.instruction.function != Function.NONZERO,
        "masked, beside a LOAD": lambda at: (at.instruction.function in MASKED
                                             and at.loaded_before),
        "masked, with norms": lambda at: at.instruction.function in MASKED and at.instruction.b > 0,
        "KEEP_TOP_K of one": lambda at: (at.instruction.function == Function.KEEP_TOP_K
                                         and at.instruction.constant == 1),
        "KEEP_TOP_K of more than there are": lambda at: (
            at.instruction.function == Function.KEEP_TOP_K
            and at.instruction.constant > at.instruction.count),
        "masked, some left out": lambda at: (at.instruction.function in MASKED
                                             and at.kept < at.found)},
    Opcode.MATMUL: {
        "one row": lambda at: at.instruction.a == 1 and not at.by_row,
        "rows fill the lanes": lambda at: (at.instruction.a == at.config.engine.lanes
                                           and not at.by_row),
        "one row more than lanes": lambda at: (at.instruction.a == at.config.engine.lanes + 1
                                               and not at.by_row),
        "all accumulators": lambda at: (at.instruction.a == at.config.engine.max_rows
                                        and not at.by_row),
        "most planes": lambda at: at.instruction.b == at.config.engine.max_planes,
        "most columns": lambda at: at.instruction.count == at.config.engine.max_columns,
        "of a token": lambda at: at.order.newest is not None and at.order.newest.columns == 0,
        "back to back": lambda at: at.before is not None and at.before.opcode is Opcode.MATMUL,
        "fills the queue": lambda at: len(at.order.products) == at.config.product_depth - 1,
        "of a list that other products have": lambda at: any(
            product.made_of is at.order.newest for product in at.order.products)},
    Opcode.WRITE_BACK: {
        "a part": lambda at: at.part,
        "by row": lambda at: at.by_row,
        "whole": lambda at: not at.part and not at.by_row},
    Opcode.TOP_K: {
        "fewer rows than are delivered": lambda at: at.instruction.count < at.config.top_k,
        "one row": lambda at: at.instruction.count == 1,
        "all rows of a product": lambda at: (at.before is not None
                                             and at.before.opcode is Opcode.MATMUL)},
    Opcode.KV_APPEND: {"two parts": lambda at: at.instruction.b > 0,
                       "widest head": lambda at: at.instruction.count == at.config.head_elements},
    Opcode.QK: {"two parts": lambda at: at.instruction.b > 0,
                "one head": lambda at: at.instruction.target == 1,
                "the whole group": lambda at: at.instruction.target == at.config.group,
                "behind queued products": lambda at: bool(at.order.products)},
    Opcode.PV: {"behind queued products": lambda at: bool(at.order.products)},
    Opcode.STOP: {"that waits": lambda at: at.instruction.constant == 1,
                  "that does not": lambda at: at.instruction.constant == 0},
}

#: What some configurations cannot have: (opcode, feature) to whether this one can.
_POSSIBLE: Mapping[tuple[Opcode, str], Callable[[AcceleratorConfig], bool]] = {
    (Opcode.TOP_K, "fewer rows than are delivered"): lambda config: config.top_k > 1,
    # Larger than the matrices that are drawn.
    (Opcode.MATMUL, "all accumulators"): lambda config: config.engine.max_rows <= 512,
    (Opcode.MATMUL, "most columns"): lambda config: config.engine.max_columns <= 2048,
    (Opcode.WRITE_BACK, "by row"): lambda config: config.engine.row_columns > 0,
}

#: Features of whole cases.
_PASSES = ("begin at 0 alone", "begin elsewhere", "a new sequence", "with stalls",
           "with refreshes")


def _wanted(config: AcceleratorConfig) -> set[str]:
    """Return the features that cases of a configuration must have."""
    attention = (Opcode.LOAD_AT, Opcode.KV_APPEND, Opcode.QK, Opcode.PV)
    wanted = {f"passes: {name}" for name in _PASSES}
    for opcode in Opcode:
        if opcode in attention and not config.context:
            continue
        wanted.add(opcode.name)
        wanted |= {f"{opcode.name} {function.name}" for function in FUNCTIONS.get(opcode, ())
                   if (function is not Function.BY_ROW or config.engine.row_columns)
                   and (function is not Function.E4M3 or "e4m3" in config.cache_formats)}
        wanted |= {f"{opcode.name}: {name}" for name in _FEATURES[opcode]
                   if _POSSIBLE.get((opcode, name), lambda config: True)(config)}
    if config.context:
        wanted.add("passes: up to the end of the context")
    for log2 in range(1, config.engine.max_batch.bit_length()):
        wanted |= {f"QUANTIZE: {1 << log2} vectors across",
                   f"QUANTIZE: {1 << log2} vectors in slots", f"MATMUL: a batch of {1 << log2}"}
    return wanted


def features(case: Case, machine: Machine) -> Counter[str]:
    """Count what a legal case has in it, instruction by instruction.

    Parameters
    ----------
    case : Case
    machine : Machine
        That has run it.
    """
    seen: Counter[str] = Counter()
    counts = machine.list_counts()
    order, before = Order(case.config), None
    for index, instruction in enumerate(map(decode, case.program)):
        kept = counts.get(index)
        at = _Place(case.config, order, before, instruction,
                    *((kept.found, kept.kept) if kept else ()))
        opcode = instruction.opcode
        seen[opcode.name] += 1
        if opcode in FUNCTIONS:
            seen[f"{opcode.name} {Function(instruction.function).name}"] += 1
        seen.update(f"{opcode.name}: {name}" for name, test in _FEATURES[opcode].items()
                    if test(at))
        if at.batch.log2 and at.batch.last:
            seen[f"QUANTIZE: {at.batch.vectors} vectors "
                 f"{'across' if at.batch.across else 'in slots'}"] += 1
        if opcode is Opcode.MATMUL and instruction.target > 1:
            seen[f"MATMUL: a batch of {instruction.target}"] += 1
        order.step(instruction)
        before = instruction
        if opcode is Opcode.STOP:
            order = Order(case.config)
    starts = [start for _, start in case.passes]
    position = longest = 0
    for start in starts:
        position = position + 1 if start else 0
        longest = max(longest, position)
    seen.update(f"passes: {name}" for name, has in zip(_PASSES, (
        not any(starts), any(starts), 0 in starts[1:], case.timing.stall > 0,
        case.timing.refresh > 0), strict=True) if has)
    if case.config.context and longest == case.config.context - 1:
        seen["passes: up to the end of the context"] += 1
    return seen


def missing_features(configuration: AcceleratorConfig, seen: Counter[str]) -> list[str]:
    """Return the features that cases of a configuration must have, and these have not."""
    return sorted(_wanted(configuration) - set(+seen))
