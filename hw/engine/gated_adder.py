"""An adder with a gate in front of one addend, which costs no table on ECP5."""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.check import one_of, positive_int
from hw.config import TARGETS
from hw.engine.carry import ADD_GATED, carry_chain

__all__ = ["GatedAdder"]


class GatedAdder(wiring.Component):
    """``total = base + (addend if gate else 0)``, modulo ``2**width``. Combinational.

    With target ``ecp5`` a bit is half a carry cell.

    Parameters
    ----------
    width : int
        Bits of the addends.
    target : str
        One of :data:`hw.config.TARGETS`.

    Members
    -------
    base, addend : In(width)
    gate : In(1)
    total : Out(width)
    """

    base: Signal
    addend: Signal
    gate: Signal
    total: Signal

    def __init__(self, *, width: int, target: str):
        self.width = positive_int("Addend width", width)
        self.target = one_of("Target", target, TARGETS)
        super().__init__({"base": In(width), "addend": In(width), "gate": In(1),
                          "total": Out(width)})

    def elaborate(self, platform):
        m = Module()
        if self.target == "ecp5":
            carry_chain(m, [(ADD_GATED, self.base[k], self.addend[k], self.gate, Const(0),
                             self.total[k]) for k in range(self.width)])
        else:
            m.d.comb += self.total.eq(self.base + Mux(self.gate, self.addend, 0))
        return m
