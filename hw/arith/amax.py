"""The largest magnitude of a vector."""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from hw.common.word import word_layout
from hw.config import AcceleratorConfig
from hw.formats.minifloat import bf16

__all__ = ["Amax"]


class Amax(wiring.Component):
    """Largest magnitude of all elements since ``clear``; infinity and NaN are the largest of all.

    A word's elements are in ``largest`` ``latency`` cycles later.

    Parameters
    ----------
    config : AcceleratorConfig

    Members
    -------
    clear : In(1)
        Start again at zero; no word may be under way.
    valid : In(1)
    word : In(word_layout)
    largest : Out(15)
    """

    clear: Signal
    valid: Signal
    word: Signal
    largest: Signal

    def __init__(self, config: AcceleratorConfig):
        self.latency = ceil_log2(config.vector_lanes) + 1
        super().__init__({"clear": In(1), "valid": In(1), "word": In(word_layout(config)),
                          "largest": Out(bf16.magnitude_width)})

    def elaborate(self, platform):
        m = Module()
        # Invalid words count as zero, so that nothing else has to go along with them.
        values = [self.word[lane][:-1] for lane in range(len(self.word))]
        enables = [self.valid]
        for level in range(self.latency - 1):
            enable = Signal(name=f"valid_{level}")
            m.d.sync += enable.eq(enables[-1])
            enables.append(enable)
            pairs = [values[k:k + 2] for k in range(0, len(values), 2)]
            values = []
            for k, pair in enumerate(pairs):
                value = Signal(bf16.magnitude_width, name=f"largest_{level}_{k}", reset_less=True)
                m.d.sync += value.eq(Mux(pair[0] > pair[-1], pair[0], pair[-1]))
                values.append(value)
        with m.If(self.clear):
            m.d.sync += self.largest.eq(0)
        with m.Elif(enables[-1] & (values[0] > self.largest)):
            m.d.sync += self.largest.eq(values[0])
        return m
