"""Trit decoder: the logic of every packing, proved equal to its table code by code."""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.check import one_of, positive_int
from hw.formats.trits import PACKINGS

__all__ = ["TritDecoder"]


def _zeros_of_triple(state, signs):
    """Zero flags of the three trits of `3in5`; ``state`` is (s1, s0) as two bits, low bit first."""
    s0, s1 = state
    b0, b1, b2 = signs
    return [
        s0 & (~s1 | b2),
        Mux(s1, ~s0, s0 & b0),
        Mux(s1, s0 | b1, s0 & b0 & b1),
    ]


class TritDecoder(wiring.Component):
    """Zero and sign flags of the trits of one weight word. Combinational.

    The sign that comes with a zero trit is arbitrary: :mod:`hw.formats.trits` says why that is what
    makes decoding cheap. On ECP5 ``5in8`` takes 13 LUT4 for five trits.

    Parameters
    ----------
    packing : str
        Key of :data:`hw.formats.trits.PACKINGS`.
    lanes : int
        Trits in a word; the trits of the last code that have no lane are dropped.

    Members
    -------
    codes : In(ceil(lanes / trits) * bits)
        Packed codes, code 0 in the lowest bits.
    nonzero : Out(lanes)
        Whether the trit of each lane is not zero.
    negative : Out(lanes)
        Whether it is -1, if it is not zero.

    Raises
    ------
    ValueError
        If ``packing`` is unknown or ``lanes`` is not a positive integer.
    """

    codes: Signal
    nonzero: Signal
    negative: Signal

    def __init__(self, *, packing: str, lanes: int):
        one_of("Trit packing", packing, PACKINGS)
        self.packing = PACKINGS[packing]
        self.lanes = positive_int("Lane count", lanes)
        self.code_count = -(-lanes // self.packing.trits)
        super().__init__({
            "codes": In(self.code_count * self.packing.bits),
            "nonzero": Out(lanes),
            "negative": Out(lanes),
        })

    def elaborate(self, platform):
        m = Module()
        decode = {"1in2": self._decode_1in2, "3in5": self._decode_3in5,
                  "5in8": self._decode_5in8}[self.packing.name]
        zeros, signs = [], []
        for k in range(self.code_count):
            zero, sign = decode(m, self.codes.word_select(k, self.packing.bits), k)
            zeros += zero
            signs += sign
        m.d.comb += [
            self.nonzero.eq(~Cat(zeros[:self.lanes])),
            self.negative.eq(Cat(signs[:self.lanes])),
        ]
        return m

    def _decode_1in2(self, m, code, k):
        return [code[0]], [code[1]]

    def _decode_3in5(self, m, code, k):
        return _zeros_of_triple(code[3:5], code[:3]), list(code[:3])

    def _decode_5in8(self, m, code, k):
        b0, b1, b2, s0, s1, p0, p1, p2 = code
        # An escape code has no zero-pair of its own: trits 3 and 4 are zero, the pair's bits are
        # the signs of trits 0 to 2, and the state's high bit lies where it is not needed.
        escape = Signal(name=f"escape_{k}", attrs={"keep": 1})
        signs = Signal(3, name=f"signs_{k}", attrs={"keep": 1})
        state = Signal(2, name=f"state_{k}", attrs={"keep": 1})
        m.d.comb += [
            escape.eq(s1 & b2 & Mux(s0, b0, b1)),
            signs.eq(Mux(escape, code[5:8], code[:3])),
            state.eq(Cat(s0, Mux(escape, Mux(s0, b1, b0), s1))),
        ]
        zeros = [*_zeros_of_triple(state, signs), escape | (p2 & ~p0), escape | (p2 & p0)]
        return zeros, [*signs, Mux(p2, p1, p0), p1]
