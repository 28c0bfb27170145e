"""What is proved of lists: neither quantizer nor sparse vector memory loses an entry."""

from amaranth import *
from amaranth.asserts import AnyConst, AnySeq
from amaranth.hdl import Assert, Assume

from hw.activations.quantizer import Quantizer
from hw.activations.sparse_vector import SparseVectorMemory
from hw.config import AcceleratorConfig, EngineConfig
from hw.formats.minifloat import bf16
from sim.formal.monitors import accept, assert_stable, offer

__all__ = ["list_order", "list_slots", "quantizer_codes"]

_CONFIG = AcceleratorConfig(
    engine=EngineConfig(lanes=2, result_lanes=2, index_width=4, port_bytes=1, max_planes=1,
                        accumulator_depth=2, max_batch=1),
    vector_depth=8, list_depth=4, product_depth=1)


def _list(m: Module) -> SparseVectorMemory:
    """Build the list memory; what it may be given is said in it."""
    m.submodules.list = unit = SparseVectorMemory(_CONFIG, tile=2)
    for stream in (unit.i_entries, unit.i_products):
        offer(m, stream)
    for stream in (unit.o_jobs, unit.o_entries):
        accept(m, stream)
    return unit


def list_slots(m: Module) -> None:
    """Every entry goes into the next slot of its own tile, and there are enough of them."""
    m.d.comb += Assume(~ResetSignal())
    _list(m)


def list_order(m: Module, *, never: bool = False) -> None:
    """Entry ``position`` of list ``number`` comes out of the first product, if that is of the list.

    Values and jobs only pass; so small ones do. With ``never`` it says that no list ends.
    """
    m.d.comb += Assume(~ResetSignal())
    unit = _list(m)
    for stream in (unit.o_jobs, unit.o_entries):
        assert_stable(m, stream)
    given, left, products = unit.i_entries, unit.o_entries, unit.i_products
    number, position = Signal(), Signal(2)
    m.d.comb += [number.eq(AnyConst(1)), position.eq(AnyConst(2))]
    m.d.comb += Assume((products.p.as_value() == 0) & (given.p.value[1:] == 0))

    lists, accepted = Signal(2), Signal(3)                  # lists that are whole; entries since
    entry, length = Signal.like(given.p), Signal(3)
    with m.If(given.valid & given.ready):
        m.d.sync += accepted.eq(accepted + 1)
        with m.If((lists == number) & (accepted == position)):
            m.d.sync += entry.eq(given.p)
        with m.If(given.p.end):
            m.d.sync += [lists.eq(lists + 1), accepted.eq(0)]
            with m.If(lists == number):
                m.d.sync += length.eq(accepted)
    m.d.comb += Assume(lists < 3)
    # A product is of a list that is whole, and the newest.
    m.d.comb += Assume(~products.valid | ((lists != 0) & (accepted == 0) & ~given.valid))
    queued, ours = Signal(), Signal()
    with m.If(products.valid & products.ready & ~queued):
        m.d.sync += [queued.eq(1), ours.eq(lists == number + 1)]

    walked, delivered = Signal(), Signal(3)
    with m.If(left.valid & left.ready & ours & ~walked):
        m.d.sync += [delivered.eq(delivered + 1), walked.eq(left.p.end)]
        m.d.comb += Assert(left.p.end == (delivered == length))
        if never:
            m.d.comb += Assert(~left.p.end)
        with m.If((delivered == position) & ~left.p.end):
            m.d.comb += Assert((left.p.index == entry.index) & (left.p.value == entry.value))


def quantizer_codes(m: Module, *, never: bool = False) -> None:
    """Three words of anything become a sparse list: no code is lost, and none is zero.

    With ``never`` it says that no list ends.
    """
    m.d.comb += Assume(~ResetSignal())
    m.submodules.quantizer = quantizer = Quantizer(_CONFIG)
    lanes, words = _CONFIG.vector_lanes, 3
    # The largest magnitude, half a unit of it, the next one above that, and zero.
    kinds = Array([0x3F80, 0x3C00, 0x3C01, 0])
    magnitudes = [Signal(bf16.magnitude_width, name=f"x_{k}") for k in range(words * lanes)]
    m.d.comb += [magnitude.eq(kinds[AnyConst(2)]) for magnitude in magnitudes]
    elements = Signal(words * lanes * bf16.width)
    m.d.comb += elements.eq(Cat(Cat(magnitude, C(0)) for magnitude in magnitudes))
    read, delivered = Signal.like(quantizer.read.data), Signal.like(quantizer.read.data)
    with m.If(quantizer.read.enable):
        m.d.sync += read.eq(elements.word_select(quantizer.read.address, lanes * bf16.width))
        m.d.comb += Assert(quantizer.read.address < words)
    m.d.sync += delivered.eq(read)
    m.d.comb += quantizer.read.data.eq(delivered)

    given, left = quantizer.i_commands, quantizer.o_entries
    begun = Signal()
    m.d.comb += [
        given.valid.eq(~begun),
        given.p.sparse.eq(1),
        given.p.words.eq(words),
        left.ready.eq(AnySeq(1)),
    ]
    m.d.sync += begun.eq(begun | given.ready)
    assert_stable(m, left)

    element = Signal(range(words * lanes))
    m.d.comb += element.eq(AnyConst(len(element)))
    chosen = elements.word_select(element, bf16.width)
    # Half a unit is a whole one where nothing is larger.
    largest = Cat(magnitude == kinds[0] for magnitude in magnitudes).any()
    has_code = Mux(largest, (chosen == kinds[0]) | (chosen == kinds[2]), chosen != 0)

    seen, last, ended = Signal(), Signal(signed(6), init=-1), Signal()
    with m.If(left.valid & left.ready):
        m.d.sync += [last.eq(left.p.index), seen.eq(seen | (left.p.index == element)),
                     ended.eq(left.p.end)]
        m.d.comb += [Assert(~ended), Assert(left.p.index > last)]
        if never:
            m.d.comb += Assert(~left.p.end)
        with m.If(left.p.end):
            m.d.comb += [Assert(left.p.index == words * lanes), Assert(seen == has_code)]
        with m.Else():
            m.d.comb += [Assert(left.p.index < words * lanes), Assert(left.p.value != 0)]
