"""The adder of one lane: accumulator plus or minus the activation."""

from typing import Any

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.common.check import one_of, positive_int
from hw.config import TARGETS

__all__ = ["LaneAdder"]

# CCU2C, one half: S = LUT4(A, B, C, D) ^ carry; the carry goes on where LUT4 is 1, and is replaced
# by LUT2(A, B) where it is 0. LUT2 is the table's part with C = D = 0.
# A = stored, B = held, C = operand, D = negative: LUT4 = (A | B) ^ (C ^ D), so LUT2 = A | B, which
# is the carry where both addends are equal.
_ADD = 0xE11E
# A = negative, B = 0, C = 1: LUT4 = 0 whatever A is, so the carry becomes LUT2 = A.
_CARRY_IN = 0x000A


class LaneAdder(wiring.Component):
    """``total = (stored | held) + (-operand if negative else operand)``, modulo ``2**width``.

    Combinational. At most one of ``stored`` and ``held`` is not zero, so that the choice between
    them costs no multiplexer. With target ``ecp5`` one bit is one half of a carry cell and nothing
    else, ``width + 1`` halves in all.

    Parameters
    ----------
    width : int
        Bits of the accumulator.
    target : str
        One of :data:`hw.config.TARGETS`.

    Members
    -------
    stored, held : In(width)
        The accumulator, from block RAM or from the lane's register.
    operand : In(width)
        The activation, sign-extended.
    negative : In(1)
        Subtract instead of add.
    total : Out(width)
    """

    stored: Signal
    held: Signal
    operand: Signal
    negative: Signal
    total: Signal

    def __init__(self, *, width: int, target: str):
        self.width = positive_int("Accumulator width", width)
        self.target = one_of("Target", target, TARGETS)
        super().__init__({
            "stored": In(width), "held": In(width), "operand": In(width), "negative": In(1),
            "total": Out(width),
        })

    def elaborate(self, platform):
        m = Module()
        if self.target == "ecp5":
            self._carry_cells(m)
        else:
            addend = self.operand ^ self.negative.replicate(self.width)
            # The lowest bit makes the carry; synthesis sees one adder.
            total = Cat(1, self.stored | self.held) + Cat(self.negative, addend)
            m.d.comb += self.total.eq(total[1:])
        return m

    def _carry_cells(self, m):
        halves: list[tuple[Any, ...]] = [
            (_CARRY_IN, self.negative, Const(0), Const(1), Const(0), Signal(name="unused"))]
        halves += [(_ADD, self.stored[k], self.held[k], self.operand[k], self.negative,
                    self.total[k]) for k in range(self.width)]
        if len(halves) % 2:
            halves.append((0, *[Const(0)] * 4, Signal(name="unused_high")))
        carry: Value = Const(0)
        for k in range(0, len(halves), 2):
            ports: dict[str, Any] = {}
            for half in (0, 1):
                init, a, b, c, d, s = halves[k + half]
                ports |= {f"p_INIT{half}": Const(init, 16), f"p_INJECT1_{half}": "NO",
                          f"i_A{half}": a, f"i_B{half}": b, f"i_C{half}": c, f"i_D{half}": d,
                          f"o_S{half}": s}
            carry_out = Signal(name=f"carry_{k + 1}")
            m.submodules[f"bits_{k}"] = Instance("CCU2C", i_CIN=carry, o_COUT=carry_out, **ports)
            carry = carry_out
