"""What an accelerator delivers, as one stream for the link."""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.config import AcceleratorConfig
from hw.control.dispatch import fault_layout
from hw.isa import FIELDS
from hw.link.protocol import Answer
from hw.output.top_k import top_k_layout
from hw.output.writeback import scalar_layout

__all__ = ["Answers", "answer_layout"]


def answer_layout(config: AcceleratorConfig) -> data.StructLayout:
    """Layout of a :class:`hw.link.protocol.Answer`."""
    width = max(config.engine.accumulator_width, len(Signal(scalar_layout()).exponent))
    return data.StructLayout({"kind": range(len(Answer)), "index": FIELDS["a"],
                              "value": signed(width), "last": 1})


class Answers(wiring.Component):
    """Joins the largest integers, the scale behind them, and the fault.

    A fault of the memory is three transfers, any other one is one.

    Parameters
    ----------
    config : AcceleratorConfig

    Members
    -------
    i_top_k, i_scale, i_faults : In(stream)
        ``o_top_k``, ``o_scale`` and ``o_faults`` of the accelerator, which delivers from one at a
        time.
    o : Out(stream) of :func:`answer_layout`
    """

    i_top_k: stream.Interface
    i_scale: stream.Interface
    i_faults: stream.Interface
    o: stream.Interface

    def __init__(self, config: AcceleratorConfig):
        super().__init__({
            "i_top_k": In(stream.Signature(top_k_layout(config))),
            "i_scale": In(stream.Signature(scalar_layout())),
            "i_faults": In(stream.Signature(fault_layout(config))),
            "o": Out(stream.Signature(answer_layout(config))),
        })

    def elaborate(self, platform):
        m = Module()
        top_k, scale, fault = self.i_top_k, self.i_scale, self.i_faults
        told = Signal(2)                        # halves of the address at which the memory failed
        second_half = Signal()
        m.d.comb += second_half.eq(fault.valid & fault.p.response[1] & ~told[1])
        with m.If(fault.valid & self.o.ready):
            m.d.sync += told.eq(Mux(second_half, told + 1, 0))
        m.d.comb += [
            self.o.valid.eq(top_k.valid | scale.valid | fault.valid),
            top_k.ready.eq(self.o.ready),
            scale.ready.eq(self.o.ready),
            fault.ready.eq(self.o.ready & ~second_half),
            self.o.p.last.eq(~top_k.valid & ~second_half),
        ]
        for source, kind, index, value in (
                (top_k, Answer.TOP_K, top_k.p.index, top_k.p.value),
                (scale, Answer.SCALE, scale.p.number, scale.p.exponent),
                (fault, Answer.FAULT, fault.p.instruction, fault.p.fault)):
            with m.If(source.valid):
                m.d.comb += [self.o.p.kind.eq(kind), self.o.p.index.eq(index),
                             self.o.p.value.eq(value)]
        half = FIELDS["a"]
        with m.If(second_half):
            m.d.comb += [
                self.o.p.kind.eq(Answer.ERROR),
                self.o.p.index.eq(Mux(told[0], fault.p.address[half:], fault.p.address[:half])),
                self.o.p.value.eq(Cat(fault.p.response, fault.p.write, C(0, 1))),
            ]
        return m
