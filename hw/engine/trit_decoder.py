"""Trit decoder: the logic of every packing, proved equal to its table code by code."""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.check import one_of, positive_int
from hw.config import TARGETS
from hw.formats.trits import PACKINGS

__all__ = ["TritDecoder"]


# Functions of one LUT4 each, of Amaranth values or of ints, whose lowest bit counts.

def _either(select, when_set, when_clear):
    return (select & when_set) | (~select & when_clear)


def _may_escape(s1, s0, b0, b1):
    """Whether a code with b2 set is an escape code."""
    return s1 & _either(s0, b0, b1)


def _may_lower(s1, s0, b0, b1):
    """Whether the state of a code with b2 set, an escape code's, has a high bit other than s1.

    It is the bit, b1 or b0, that does not make the code an escape code.
    """
    return s1 & (b0 ^ b1) & _either(s0, b0, b1)


def _high_state(s1, may_lower, b2):
    return s1 & ~(may_lower & b2)


def _sign(may_escape, b2, p, b):
    return _either(may_escape & b2, p, b)


def _sign_2(may_escape, b2, p2):
    return b2 & (~may_escape | p2)


def _nonzero_0(s0, s1, b2):
    return ~(s0 & (~s1 | b2))


def _nonzero_1(s0, s1, b0):
    return ~_either(s1, ~s0, s0 & b0)


def _nonzero_2(s0, s1, b0, b1):
    return ~_either(s1, s0 | b1, s0 & b0 & b1)


def _nonzero_3(may_escape, b2, p0, p2):
    return ~((may_escape & b2) | (p2 & ~p0))


def _nonzero_4(may_escape, b2, p0, p2):
    return ~((may_escape & b2) | (p2 & p0))


class TritDecoder(wiring.Component):
    """Zero and sign flags of the trits of one weight word. Combinational.

    The sign that comes with a zero trit is arbitrary: :mod:`hw.formats.trits` says why that is what
    makes decoding cheap. On ECP5 ``5in8`` takes 12 LUT4 for five trits.

    Parameters
    ----------
    packing : str
        Key of :data:`hw.formats.trits.PACKINGS`.
    lanes : int
        Trits in a word; the trits of the last code that have no lane are dropped.
    target : str
        One of :data:`hw.config.TARGETS`. On ``ecp5`` the LUT4 of ``5in8`` are instantiated:
        synthesis, which looks for short paths first, makes 15 of the 12.

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
        If ``packing`` or ``target`` is unknown, or ``lanes`` is not a positive integer.
    """

    codes: Signal
    nonzero: Signal
    negative: Signal

    def __init__(self, *, packing: str, lanes: int, target: str = "generic"):
        one_of("Trit packing", packing, PACKINGS)
        self.packing = PACKINGS[packing]
        self.lanes = positive_int("Lane count", lanes)
        self.target = one_of("Target", target, TARGETS)
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
        nonzero, signs = [], []
        for k in range(self.code_count):
            nonzero_of_code, signs_of_code = decode(
                m, self.codes.word_select(k, self.packing.bits), k)
            nonzero += nonzero_of_code
            signs += signs_of_code
        m.d.comb += [
            self.nonzero.eq(Cat(nonzero[:self.lanes])),
            self.negative.eq(Cat(signs[:self.lanes])),
        ]
        return m

    def _decode_1in2(self, m, code, k):
        return [~code[0]], [code[1]]

    def _decode_3in5(self, m, code, k):
        b0, b1, b2, s0, s1 = code
        return ([_nonzero_0(s0, s1, b2), _nonzero_1(s0, s1, b0), _nonzero_2(s0, s1, b0, b1)],
                [b0, b1, b2])

    def _decode_5in8(self, m, code, k):
        def lut(name, function, *inputs):
            output = Signal(name=f"{name}_{k}")
            if self.target == "ecp5":
                table = sum((function(*((row >> bit) & 1 for bit in range(len(inputs)))) & 1) << row
                            for row in range(1 << len(inputs)))
                # An input that the function has not is 0, so the table's other rows do not matter.
                ports = {f"i_{port}": value for port, value in
                         zip("ABCD", [*inputs, *[Const(0)] * (4 - len(inputs))], strict=True)}
                m.submodules[f"{name}_{k}"] = Instance("LUT4", p_INIT=Const(table, 16),
                                                       o_Z=output, **ports)
            else:
                m.d.comb += output.eq(function(*inputs))
            return output

        b0, b1, b2, s0, s1, p0, p1, p2 = code
        # An escape code has no zero-pair of its own: trits 3 and 4 are zero, the pair's bits are
        # the signs of trits 0 to 2, and the state's high bit lies where it is not needed. No path
        # has more than three LUT4.
        may_escape = lut("may_escape", _may_escape, s1, s0, b0, b1)
        may_lower = lut("may_lower", _may_lower, s1, s0, b0, b1)
        high = lut("high", _high_state, s1, may_lower, b2)
        n0 = lut("sign_0", _sign, may_escape, b2, p0, b0)
        n1 = lut("sign_1", _sign, may_escape, b2, p1, b1)
        n2 = lut("sign_2", _sign_2, may_escape, b2, p2)
        nonzero = [lut("nonzero_0", _nonzero_0, s0, high, n2),
                   lut("nonzero_1", _nonzero_1, s0, high, n0),
                   lut("nonzero_2", _nonzero_2, s0, high, n0, n1),
                   lut("nonzero_3", _nonzero_3, may_escape, b2, p0, p2),
                   lut("nonzero_4", _nonzero_4, may_escape, b2, p0, p2)]
        return nonzero, [n0, n1, n2, lut("sign_3", _either, p2, p1, p0), p1]
