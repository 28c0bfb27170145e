"""The table of proofs, which the tests and ``python -m sim prove`` share."""

import dataclasses
from collections.abc import Callable

from amaranth import *

from sim.formal import axi4, axi_lite, lists, streams
from sim.formal.solver import prove

__all__ = ["PROOFS", "Proof", "Spec"]


class Spec(Elaboratable):
    """What a function puts into a module: a unit, its neighbours, and what is asserted."""

    def __init__(self, build: Callable[..., None], **options):
        self._build = build
        self._options = options

    def elaborate(self, platform):
        """Build it."""
        m = Module()
        self._build(m, **self._options)
        return m


@dataclasses.dataclass(frozen=True)
class Proof:
    """A proof of one function's assertions.

    Attributes
    ----------
    unit : str
        Class that is proved.
    build : callable
        Puts the unit and what is asserted of it into a module.
    properties : tuple of str
        What is asserted, in words: a row of the record each.
    mode : str
        One of :data:`sim.formal.solver.MODES`.
    depth : int
        Cycles of ``bounded`` and ``induction``; 0 for ``invariant``, which is for ever.
    slow : bool
        Left out of the default tests.
    """

    unit: str
    build: Callable[..., None]
    properties: tuple[str, ...]
    mode: str = "invariant"
    depth: int = 0
    slow: bool = False

    @property
    def name(self) -> str:
        """Name of the function."""
        return self.build.__name__

    def run(self, *, seconds: int = 600) -> None:
        """Prove it, or raise :exc:`sim.formal.solver.ProofFailed`."""
        prove(Spec(self.build), mode=self.mode, depth=self.depth, seconds=seconds)


_STABLE = "what is offered stays offered and the same until it is taken"
_ORDER = "no transfer is lost, doubled, changed or overtaken"


def _within(what: str, cycles: int) -> str:
    return f"{what} within {cycles} cycles, with fair neighbours"


PROOFS: tuple[Proof, ...] = (
    Proof("StreamBuffer", streams.stream_buffer, (
        _STABLE, _ORDER, _within("an input is taken", 4), _within("an output leaves", 3))),
    Proof("StreamQueue", streams.stream_queue, (
        _STABLE, _ORDER, _within("an input is taken", 5), _within("an output leaves", 5))),
    Proof("Answers", streams.answers, (
        _STABLE, _ORDER, _within("an input is taken", 3), _within("a fault is taken", 9))),
    Proof("LMul", streams.lmul_e4m3, (
        _STABLE, _ORDER, "the product of every pair of e4m3 is that of docs/numerics.md",
        _within("an input is taken", 2))),
    Proof("ExactMultiplier", streams.exact_multiplier, (
        _STABLE, _ORDER, _within("an input is taken", 2))),
    Proof("LMulDot", streams.lmul_dot, (
        _STABLE, _ORDER, _within("an input is taken", 2))),
    Proof("Bf16Adder", streams.bf16_adder, (
        _STABLE, _ORDER, _within("an input is taken", 2))),
    Proof("ScaleUnit", streams.scale_unit, (
        _STABLE, _ORDER, _within("an input is taken", 2))),
    Proof("BlockRamMemory", streams.block_ram_memory, (
        _STABLE, _ORDER, "a read finds what was written", _within("an input is taken", 12),
        _within("an output leaves", 4))),
    Proof("SharedPort", streams.shared_port, (
        _STABLE, _ORDER, "each transfer goes to who asked for it",
        "no burst of writes is broken by another's",
        _within("a write of the accelerator is taken", 5),
        _within("a write of the host is taken, between the accelerator's,", 3),
        _within("a read of the accelerator is taken", 8),
        _within("a read of the host is taken, while the accelerator asks for none,", 24))),
    Proof("TopK", streams.top_k, (
        _STABLE, "as many integers come as there are, the last one marked",
        _within("a command is taken", 40))),
    Proof("ReadEngine", streams.read_engine, (
        _STABLE, "each transfer of a vector that is read leaves once and in order",
        "no more is read than the queue takes"), mode="bounded", depth=36),
    Proof("ReadEngine", streams.read_engine_progress, (
        _within("a fetch of a vector is taken", 40),), mode="bounded", depth=56, slow=True),
    Proof("TernaryEngine", streams.engine, (_STABLE,)),
    Proof("ResultQueue", streams.result_queue, (
        _STABLE, _ORDER, _within("an output leaves", 8)), mode="bounded", depth=12),
    Proof("ResultQueue", streams.result_queue_progress, (
        _STABLE, _within("there is room", 24))),
    Proof("Gearbox", streams.gearbox_collect, (
        "each byte of a product comes out once and in order",), mode="bounded", depth=14),
    Proof("Gearbox", streams.gearbox_collect_progress, (
        _STABLE, _within("an input is taken", 12))),
    Proof("Gearbox", streams.gearbox_extract, (
        "each byte of a product comes out once and in order",), mode="bounded", depth=14),
    Proof("Gearbox", streams.gearbox_extract_progress, (
        _STABLE, _within("an input is taken", 12))),
    Proof("UartReceiver", streams.uart_receiver, (_STABLE,)),
    Proof("UartTransmitter", streams.uart_line, (
        "each byte comes out of the receiver once and in order", _within("a byte is taken", 51),
        _within("a byte is received", 58)), mode="bounded", depth=68),
    Proof("FrameReceiver", streams.frame_receiver, (_STABLE, "a byte is always taken")),
    Proof("FrameTransmitter", streams.frame_transmitter, (
        _STABLE, _within("a byte is taken", 40))),
    Proof("Axi4Master", axi4.axi4_rules, (
        _STABLE, "no burst crosses a page", "length, size, type and strobes are legal",
        "an answer of a write is always taken")),
    Proof("Axi4Master", axi4.reads, (
        "bursts ask for each transfer of a read once and in order",
        "data that are read come back once and in order",
        _within("a burst is asked for", 6)), mode="bounded", depth=11),
    Proof("Axi4Master", axi4.writes, (
        "each transfer is written once, in order and where its address says",),
        mode="bounded", depth=11),
    Proof("Axi4Master", axi4.write_lengths, (
        "the last transfer of a burst, and no other, is marked",
        "no data come before the burst's address is offered"), mode="bounded", depth=11),
    Proof("Axi4Master", axi4.read_after_write, (
        "no read is asked for while a write before it is unanswered",), mode="bounded", depth=16),
    Proof("Axi4Master", axi4.write_progress, (
        _within("a write is taken", 12),), mode="bounded", depth=20),
    Proof("AxiLiteSubordinate", axi_lite.lite_writes, (
        _STABLE, "each write reaches the registers once, with its own address and data",
        "a write is answered as its register says, and nothing else is",
        "a write waits for nothing but the answer before it")),
    Proof("AxiLiteSubordinate", axi_lite.lite_reads, (
        _STABLE, "a read is answered as its register says, and nothing else is",
        "a read is answered within 3 cycles, whatever the registers do")),
    Proof("SparseVectorMemory", lists.list_slots, ("no tile overflows",), mode="induction",
          depth=2),
    Proof("SparseVectorMemory", lists.list_order, (
        _STABLE, "no entry of a list is lost"), mode="bounded", depth=16),
    Proof("Quantizer", lists.quantizer_codes, (
        _STABLE, "no code of a list is lost"), mode="bounded", depth=28),
)
