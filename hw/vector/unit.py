"""The vector unit: VECTOR and NORM of the instruction set, over the vector memory."""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.arith.amax import Amax
from hw.arith.bf16_add import LATENCY as ADDER_LATENCY
from hw.arith.bf16_add import Bf16Adder
from hw.config import AcceleratorConfig
from hw.formats.minifloat import bf16
from hw.isa import Function
from hw.vector.lane import (
    FUNCTION_LATENCY,
    PRODUCT_LATENCY,
    WIDE_LATENCY,
    FunctionLanes,
    LMulLane,
)
from hw.vector.memory import (
    READ_LATENCY,
    address_width,
    read_signature,
    write_signature,
)
from hw.vector.norm import SquareSum

__all__ = ["VectorUnit", "command_layout"]

_BITS = bf16.mantissa_bits


def command_layout(config: AcceleratorConfig) -> data.StructLayout:
    """Layout of a command; ``target``, ``a``, ``b`` and ``words`` count words, not elements."""
    address = address_width(config)
    return data.StructLayout({"norm": 1, "function": 8, "target": address, "a": address,
                              "b": address, "words": address + 1})


class VectorUnit(wiring.Component):
    """Element by element functions of vectors, and the reciprocal square root of their squares.

    .. code-block:: text

        VECTOR  v[target] = function(v[a], v[b])
        NORM    o_results.number = rsqrt(lmul_dot(v[a], v[a]))  (sim.golden.function_table, .lmul)

    A word a cycle, and NORM reads its vector twice; :mod:`sim.timing.units` has the exact
    formulas. The target may be one of the operands, but may not overlap them otherwise: words are
    written while later ones are read.

    Parameters
    ----------
    config : AcceleratorConfig

    Members
    -------
    i_commands : In(stream) of {norm: 1, function: 8, target, a, b, words}
        One instruction: NORM of ``a`` if ``norm``, else VECTOR. Addresses are those of words;
        ``words`` is at least 1 and everything lies in the memory.
    o_results : Out(stream) of {number: 16}
        One for each command, when it is done: after the last word was written. The number is NORM's
        result, and 0 for VECTOR. The next command is accepted after it was delivered.
    read_0, read_1 : Out(:func:`hw.vector.memory.read_signature`)
        For ``VectorMemory.reads_0`` and ``reads_1``.
    write : Out(:func:`hw.vector.memory.write_signature`)
    active : Out(1)
        A clock matters: see :attr:`hw.accelerator.Accelerator.active`.
    """

    i_commands: stream.Interface
    o_results: stream.Interface
    read_0: wiring.PureInterface
    read_1: wiring.PureInterface
    write: wiring.PureInterface
    active: Signal

    def __init__(self, config: AcceleratorConfig):
        self.config = config
        super().__init__({
            "i_commands": In(stream.Signature(command_layout(config))),
            "o_results": Out(stream.Signature(data.StructLayout({"number": bf16.width}))),
            "read_0": Out(read_signature(config)), "read_1": Out(read_signature(config)),
            "write": Out(write_signature(config)), "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config
        command = Signal(command_layout(config), reset_less=True)
        read, second = Signal(), Signal()
        address, remaining = Signal.like(command.a), Signal.like(command.words)

        # valid[k] and last[k] are flags of the word whose address was given k cycles ago. The first
        # pass of NORM has no last one.
        m.submodules.squares = squares = SquareSum(config)
        m.submodules.largest = largest = Amax(config)
        stages = READ_LATENCY + max(ADDER_LATENCY, squares.latency)
        valid: list[Value] = [read]
        last: list[Value] = [read & (remaining == 1) & (second | ~command.norm)]
        for k in range(stages):
            flags = Signal(2, name=f"flags_{k + 1}")
            m.d.sync += flags.eq(Cat(valid[-1], last[-1]))
            valid.append(flags[0])
            last.append(flags[1])

        m.d.comb += [
            self.read_0.enable.eq(read),
            self.read_0.address.eq(address),
            self.read_1.enable.eq(read),
            self.read_1.address.eq(Mux(command.norm, address, command.b)),
            self.write.address.eq(command.target),
            self.write.mask.eq(~0),
        ]
        with m.If(read):
            m.d.sync += [
                address.eq(address + 1),
                command.b.eq(command.b + 1),
                remaining.eq(remaining - 1),
            ]
        with m.If(self.write.enable):
            m.d.sync += command.target.eq(command.target + 1)
        # A register, for thousands of clock enables: the first word reaches the lanes two cycles
        # after the command was taken, and the sums are cleared before that.
        busy, working = Signal(), Signal()
        m.d.sync += working.eq(busy)
        self._lanes(m, command, valid, squares, working)

        magnitude = largest.largest
        bound = Signal(signed(10), reset_less=True)
        m.d.sync += bound.eq((2 * magnitude - bf16.constant()) >> _BITS)
        m.d.comb += [
            largest.word.eq(self.read_0.data),
            largest.valid.eq(valid[READ_LATENCY] & ~second),
            largest.clear.eq(~working),
            squares.clear.eq(~working),
            squares.bound.eq(bound),
            squares.valid.eq(valid[READ_LATENCY + WIDE_LATENCY] & second),
            squares.start.eq(last[READ_LATENCY + squares.latency] & second),
        ]

        result = self.o_results
        with m.FSM() as fsm:
            m.d.comb += [
                busy.eq(~fsm.ongoing("IDLE")),
                self.active.eq(Cat(busy, working, self.i_commands.valid, valid, last).any()),
            ]
            with m.State("IDLE"):
                m.d.comb += self.i_commands.ready.eq(1)
                m.d.sync += [
                    command.eq(self.i_commands.p),
                    address.eq(self.i_commands.p.a),
                    remaining.eq(self.i_commands.p.words),
                    second.eq(0),
                ]
                with m.If(self.i_commands.valid):
                    m.next = "READ"
            with m.State("READ"):
                m.d.comb += read.eq(1)
                with m.If(remaining == 1):
                    with m.If(~command.norm):
                        m.next = "VECTOR"
                    with m.Elif(second):
                        m.next = "SQUARES"
                    with m.Else():
                        m.next = "LARGEST"
            with m.State("VECTOR"):
                m.d.sync += result.p.number.eq(0)
                with m.If(last[READ_LATENCY + ADDER_LATENCY]):
                    m.d.sync += result.valid.eq(1)
                    m.next = "RESULT"
            with m.State("LARGEST"):
                # The vector again, once the first pass has left the lanes. The bound is ready
                # a cycle after the largest magnitude, long before the first square needs it.
                m.d.sync += [
                    address.eq(command.a),
                    remaining.eq(command.words),
                ]
                stage = READ_LATENCY + max(WIDE_LATENCY, largest.latency - 1)
                with m.If(~Cat(valid[1:stage]).any()):
                    m.d.sync += second.eq(1)
                    m.next = "READ"
            with m.State("SQUARES"):
                with m.If(last[READ_LATENCY + squares.latency]):
                    m.next = "ROOT"
            with m.State("ROOT"):
                # The squares of an infinity or a NaN are that, whatever the others are.
                m.d.sync += result.p.number.eq(
                    Mux(magnitude > bf16.infinity, bf16.nan,
                        Mux(magnitude == bf16.infinity, 0, squares.root)))
                with m.If(squares.done):
                    m.d.sync += result.valid.eq(1)
                    m.next = "RESULT"
            with m.State("RESULT"):
                with m.If(result.ready):
                    m.d.sync += result.valid.eq(0)
                    m.next = "IDLE"
        return m

    def _lanes(self, m, command, valid, squares, working):
        """Join the lanes; their registers only move while there is work."""
        lanes = self.config.vector_lanes
        function = command.function
        subtract, add, multiply = (Signal(name=name) for name in ("subtract", "add", "multiply"))
        m.d.sync += [
            subtract.eq(function == Function.SUBTRACT),
            add.eq((function == Function.ADD) | (function == Function.SUBTRACT)),
            multiply.eq(function == Function.LMUL),
        ]
        for first in range(0, lanes, 2):
            pair = range(first, min(first + 2, lanes))
            functions = FunctionLanes(len(pair), target=self.config.engine.target)
            m.submodules[f"functions_{first}"] = EnableInserter(working)(functions)
            m.d.comb += functions.function.eq(function)
            for k, lane in enumerate(pair):
                x, y = self.read_0.data[lane], self.read_1.data[lane]
                adder, lmul = Bf16Adder(), LMulLane()
                m.submodules[f"adder_{lane}"] = EnableInserter(working)(adder)
                m.submodules[f"lmul_{lane}"] = EnableInserter(working)(lmul)
                m.d.comb += [
                    functions.arguments[k].eq(x),
                    lmul.x.eq(x),
                    lmul.y.eq(y),
                    adder.i.p.x.eq(x),
                    adder.i.p.y.eq(y),
                    adder.i.p.subtract.eq(subtract),
                    adder.o.ready.eq(1),
                    self.write.data[lane].eq(Mux(add, adder.o.p.sum, Mux(
                        multiply, lmul.product, functions.results[k]))),
                    squares.wides[lane].eq(lmul.wide),
                    squares.zeros[lane].eq(lmul.zero),
                ]
        written = Mux(add, valid[READ_LATENCY + ADDER_LATENCY], Mux(
            multiply, valid[READ_LATENCY + PRODUCT_LATENCY],
            valid[READ_LATENCY + FUNCTION_LATENCY]))
        m.d.comb += self.write.enable.eq(written & ~command.norm)
