"""The quantizer: QUANTIZE of the instruction set. A vector becomes a list of int8 codes."""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.arith.amax import Amax
from hw.common.pipeline import Pipeline
from hw.config import AcceleratorConfig
from hw.engine.loop_nest import entry_layout
from hw.formats.minifloat import bf16
from hw.vector.memory import READ_LATENCY, address_width, read_signature

__all__ = ["Quantizer"]

_BITS = bf16.mantissa_bits
#: 2**k counts units of an int8 code: k is the exponent of the largest element, less 6.
_EXPONENT = bf16.bias + 6


class Quantizer(wiring.Component):
    """Quantizes a vector of the vector memory and makes a list of it.

    .. code-block:: text

        2**o_results.exponent, entries = sim.golden.quantizer.quantize(v[a])
        entries = 1 for each element that is not zero       with `nonzero`

    The vector is read twice: for its largest magnitude a word a cycle, which ``nonzero`` does not
    need; then a word for as many cycles as it has entries, and for one if it has none.
    :mod:`sim.timing.units` has the exact formula.

    Parameters
    ----------
    config : AcceleratorConfig

    Members
    -------
    i_commands : In(stream) of {sparse: 1, nonzero: 1, a, words}
        One QUANTIZE: address of the first word, and the number of words, at least 1. ``nonzero`` is
        ``sparse`` too.
    o_entries : Out(stream) of :func:`hw.engine.loop_nest.entry_layout`
        An entry for each element, in ascending order; without those of code 0 if ``sparse``. The
        last one has ``end``, the number of elements as index, and value 0.
    o_results : Out(stream) of {exponent: signed(10), fault: 1}
        One for each command, after its last entry was accepted. ``fault``: an element is infinite
        or NaN, and there are no entries; never with ``nonzero``, whose exponent says nothing. The
        next command is accepted after it was delivered.
    read : Out(:func:`hw.vector.memory.read_signature`)
        For ``VectorMemory.reads_0`` or ``reads_1``.
    active : Out(1)
        A clock matters: see :attr:`hw.accelerator.Accelerator.active`.
    """

    i_commands: stream.Interface
    o_entries: stream.Interface
    o_results: stream.Interface
    read: wiring.PureInterface
    active: Signal

    def __init__(self, config: AcceleratorConfig):
        self.config = config
        address = address_width(config)
        super().__init__({
            "i_commands": In(stream.Signature(data.StructLayout(
                {"sparse": 1, "nonzero": 1, "a": address, "words": address + 1}))),
            "o_entries": Out(stream.Signature(entry_layout(config.engine))),
            "o_results": Out(stream.Signature(data.StructLayout(
                {"exponent": signed(10), "fault": 1}))),
            "read": Out(read_signature(config)), "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config
        lanes = config.vector_lanes
        command = Signal(self.i_commands.payload.shape(), reset_less=True)
        address, remaining = Signal.like(command.a), Signal.like(command.words)
        m.submodules.largest = largest = Amax(config)
        m.d.comb += [
            self.read.address.eq(address),
            largest.word.eq(self.read.data),
        ]
        with m.If(self.read.enable):
            m.d.sync += [
                address.eq(address + 1),
                remaining.eq(remaining - 1),
            ]

        looking = Signal()              # first pass, a word is read
        flags = Signal(READ_LATENCY + largest.latency)
        m.d.sync += flags.eq(Cat(looking, flags))
        m.d.comb += largest.valid.eq(flags[READ_LATENCY - 1])

        # The exponent field of 2**(k + 6), which no element reaches after rounding to 7 bits; 0 for
        # a zero vector.
        magnitude = largest.largest
        zero = magnitude < bf16.smallest_normal
        top = Signal(bf16.exponent_bits, reset_less=True)
        fault = Signal()
        m.d.sync += [
            top.eq((magnitude + 1) >> _BITS),
            fault.eq(magnitude >= bf16.infinity),
        ]

        # Second pass. A code is zero up to half a unit, 2**(k - 1): the number whose exponent field
        # is `least` and whose mantissa is 0, which is even. Subnormal numbers are zero too.
        least = Signal(bf16.exponent_bits, reset_less=True)
        normal = Signal()                       # every normal number has a code
        m.d.sync += [
            least.eq(Mux(normal, 1, top - _BITS)),
            normal.eq(command.nonzero | (top <= _BITS)),
        ]

        def has_code(x):
            fraction, exponent = x[:_BITS], x[_BITS:bf16.magnitude_width]
            return Cat(fraction.any() | normal, exponent) >= Cat(C(1, 1), least)

        # The words on their way: one that memory read, one that it delivers, which the next one
        # displaces, and one that had to wait.
        coming = Signal(2)
        waits = Signal()
        waiting = Signal(self.read.data.shape(), reset_less=True)
        word = Signal.like(waiting)             # whose elements leave
        pending = Signal(lanes + 1)             # elements that have not left; the end of the list
        rest = Signal(lanes + 1)                # behind the first of them
        base = Signal(config.engine.index_width, reset_less=True)   # index of its first element
        read_next, load, load_end = Signal(), Signal(), Signal()
        free, ending = Signal(), Signal()
        entries = self.o_entries
        enable = Signal()
        found = Mux(waits, waiting, self.read.data.as_value())
        m.d.comb += [
            enable.eq(entries.ready | ~entries.valid),
            rest.eq(Cat(pending[k] & pending[:k].any() for k in range(lanes + 1))),
            free.eq((rest == 0) & (enable | (pending == 0))),
            load.eq(free & (waits | coming[1])),
            load_end.eq(free & ending & ~coming.any() & ~waits),
            read_next.eq(load | ~(coming.all() | (waits & coming.any()))),
        ]
        m.d.sync += [
            coming.eq(Cat(self.read.enable & ~looking,
                          coming[0] | (coming[1] & (waits | ~load)))),
            waits.eq((waits & ~load) | (coming.all() & (waits | ~load))),
        ]
        with m.If(~waits | load):
            m.d.sync += waiting.eq(self.read.data)
        with m.If(load):
            m.d.sync += [
                word.eq(found),
                pending.eq(Cat(~command.sparse | has_code(found.word_select(lane, bf16.width))
                               for lane in range(lanes))),
            ]
        with m.Elif(load_end):
            m.d.sync += pending.eq(1 << lanes)
        with m.Elif(enable):
            m.d.sync += pending.eq(rest)
        with m.If(load | load_end):
            m.d.sync += base.eq(base + lanes)

        lane = Signal(range(lanes))
        for k in reversed(range(lanes)):
            with m.If(pending[k]):
                m.d.comb += lane.eq(k)
        pipeline = Pipeline(m, enable=enable, valid=pending.any())
        at = pipeline.step(index=(base + lane)[:len(base)], end=pending[-1],
                           x=word.as_value().word_select(lane, bf16.width))

        # x / 2**k is the significand, shifted down by one place and by the distance of its exponent
        # from the top; rounded to nearest even.
        exponent = at.x[_BITS:bf16.magnitude_width]
        at = pipeline.step(index=at.index, end=at.end, sign=at.x[-1], distance=top - exponent,
                           significand=Cat(at.x[:_BITS], C(1)), zero=~exponent.any() | at.end)
        shifted = Cat(C(0, _BITS), at.significand) >> at.distance[:3]
        at = pipeline.step(
            index=at.index, end=at.end, sign=at.sign, quotient=shifted[_BITS + 1:],
            up=shifted[_BITS] & (shifted[:_BITS].any() | shifted[_BITS + 1]),
            zero=at.zero | at.distance[3:].any())
        at = pipeline.step(index=at.index, end=at.end, sign=at.sign,
                           code=Mux(at.zero, 0, at.quotient + at.up), one=command.nonzero & ~at.end)
        with m.If(enable):
            m.d.sync += [
                entries.valid.eq(at.valid),
                entries.p.index.eq(at.index),
                entries.p.value.eq(Mux(at.one, 1, Mux(at.sign, -at.code, at.code))),
                entries.p.end.eq(at.end),
            ]

        result = self.o_results
        with m.FSM() as fsm:
            m.d.comb += self.active.eq(~fsm.ongoing("IDLE") | self.i_commands.valid)
            with m.State("IDLE"):
                m.d.comb += [
                    self.i_commands.ready.eq(1),
                    largest.clear.eq(1),
                ]
                m.d.sync += [
                    command.eq(self.i_commands.p),
                    address.eq(self.i_commands.p.a),
                    remaining.eq(self.i_commands.p.words),
                    base.eq(-lanes),
                ]
                with m.If(self.i_commands.valid):
                    m.next = "LOOK"
                    with m.If(self.i_commands.p.nonzero):
                        m.next = "CODES"
            with m.State("LOOK"):
                m.d.comb += [
                    looking.eq(1),
                    self.read.enable.eq(1),
                ]
                with m.If(remaining == 1):
                    m.next = "LARGEST"
            with m.State("LARGEST"):
                m.d.sync += [
                    address.eq(command.a),
                    remaining.eq(command.words),
                ]
                with m.If(~flags.any()):
                    m.next = "CODES"
            with m.State("CODES"):
                # `nonzero` comes at once: what was found of the vector before may still be there.
                unable = fault & ~command.nonzero
                m.d.sync += [
                    result.p.exponent.eq(Mux(zero, 0, top - _EXPONENT)),
                    result.p.fault.eq(unable),
                ]
                m.d.comb += [
                    self.read.enable.eq(read_next & (remaining != 0) & ~unable),
                    ending.eq((remaining == 0) & ~unable),
                ]
                with m.If(unable):
                    m.d.sync += result.valid.eq(1)
                    m.next = "RESULT"
                with m.Elif(load_end):
                    m.next = "END"
            with m.State("END"):
                with m.If(entries.valid & entries.ready & entries.p.end):
                    m.d.sync += result.valid.eq(1)
                    m.next = "RESULT"
            with m.State("RESULT"):
                with m.If(result.ready):
                    m.d.sync += result.valid.eq(0)
                    m.next = "IDLE"
        return m
