"""A register of which synthesis must not make one with its equals."""

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.check import one_of, positive_int
from hw.config import TARGETS

__all__ = ["RegisterCopy"]


class RegisterCopy(wiring.Component):
    """``output`` is ``input`` one cycle later, in flip-flops of its own.

    For values that reach all lanes: wires limit the clock, so each group of lanes has its copy.
    Yosys merges equal registers whatever the attributes of their signals say; only flip-flops that
    are instantiated stay, so target ``generic`` leaves the choice to synthesis.

    Parameters
    ----------
    width : int
    target : str
        One of :data:`hw.config.TARGETS`.

    Members
    -------
    input : In(width)
    output : Out(width)
    """

    input: Signal
    output: Signal

    def __init__(self, *, width: int, target: str):
        self.width = positive_int("Register width", width)
        self.target = one_of("Target", target, TARGETS)
        super().__init__({"input": In(width), "output": Out(width)})

    def elaborate(self, platform):
        m = Module()
        if self.target == "ecp5":
            for bit in range(self.width):
                m.submodules[f"bit_{bit}"] = Instance(
                    "TRELLIS_FF", a_keep=1, p_GSR="DISABLED", p_CEMUX="1", p_CLKMUX="CLK",
                    p_LSRMUX="LSR", p_REGSET="RESET", i_CLK=ClockSignal(), i_LSR=Const(0),
                    i_DI=self.input[bit], o_Q=self.output[bit])
        else:
            m.d.sync += self.output.eq(self.input)
        return m
