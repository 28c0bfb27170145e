# Ref: Lattice, "ECP5 and ECP5-5G sysCLOCK PLL/DLL Design and Usage Guide" (FPGA-TN-02200), dynamic
# phase adjustment

"""Steps of the phase of the SDRAM's clock, which the host asks for."""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

__all__ = ["HALF_STEP_CYCLES", "PhaseStepper", "steps_layout"]

#: Cycles of a pulse, and of the pause before it: more than the 4 cycles of the
#: PLL's oscillator that it needs, whatever this clock.
HALF_STEP_CYCLES = 8


def steps_layout() -> data.StructLayout:
    """Layout of a request: ``steps`` of an eighth of the oscillator's cycle, later or ``back``."""
    return data.StructLayout({"steps": 8, "back": 1})


class PhaseStepper(wiring.Component):
    """Turns a number of steps into pulses for a PLL of ECP5.

    The next request is accepted when all steps of the one before are done. 0 steps are none.

    Members
    -------
    i : In(stream) of :func:`steps_layout`
    step : Out(1)
        Inverted, for PHASESTEP: the phase moves when it rises. Low at rest.
    back : Out(1)
        For PHASEDIR: earlier. It changes while ``step`` is low and stays for the whole pulse.
    """

    i: stream.Interface
    step: Signal
    back: Signal

    def __init__(self):
        super().__init__({"i": In(stream.Signature(steps_layout())),
                          "step": Out(1), "back": Out(1)})

    def elaborate(self, platform):
        m = Module()
        remaining = Signal.like(self.i.p.steps)
        timer = Signal(range(HALF_STEP_CYCLES))
        with m.If(timer != 0):
            m.d.sync += timer.eq(timer - 1)
        with m.FSM():
            with m.State("REST"):
                m.d.comb += self.i.ready.eq(1)
                m.d.sync += [remaining.eq(self.i.p.steps), self.back.eq(self.i.p.back),
                             timer.eq(HALF_STEP_CYCLES - 1)]
                with m.If(self.i.valid & (self.i.p.steps != 0)):
                    m.next = "PAUSE"
            with m.State("PAUSE"):
                with m.If(timer == 0):
                    m.d.sync += [self.step.eq(1), timer.eq(HALF_STEP_CYCLES - 1)]
                    m.next = "PULSE"
            with m.State("PULSE"):
                with m.If(timer == 0):
                    m.d.sync += [self.step.eq(0), timer.eq(HALF_STEP_CYCLES - 1),
                                 remaining.eq(remaining - 1)]
                    m.next = "PAUSE"
                    with m.If(remaining == 1):
                        m.next = "REST"
        return m
