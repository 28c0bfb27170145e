"""The adder that takes an activation from one trit plane to the next."""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.common.check import one_of, positive_int
from hw.config import TARGETS
from hw.ternary.carry import ADD_TWICE, carry_chain

__all__ = ["Tripler"]


class Tripler(wiring.Component):
    """``total = 3 * operand if triple else operand``, modulo ``2**width``. Combinational.

    With target ``ecp5`` the choice costs no table: a bit is half a carry cell. The path through
    it leads from the memory of operands back into it within a cycle.

    Parameters
    ----------
    width : int
        Bits of the operand.
    target : str
        One of :data:`hw.config.TARGETS`.

    Members
    -------
    operand : In(width)
    triple : In(1)
    total : Out(width)
    """

    operand: Signal
    triple: Signal
    total: Signal

    def __init__(self, *, width: int, target: str):
        self.width = positive_int("Operand width", width)
        self.target = one_of("Target", target, TARGETS)
        super().__init__({"operand": In(width), "triple": In(1), "total": Out(width)})

    def elaborate(self, platform):
        m = Module()
        twice = Cat(0, self.operand)[:self.width]
        if self.target == "ecp5":
            carry_chain(m, [(ADD_TWICE, self.operand[k], twice[k], self.triple, Const(0),
                             self.total[k]) for k in range(self.width)])
        else:
            m.d.comb += self.total.eq(self.operand + Mux(self.triple, twice, 0))
        return m
