"""Steps of a clock's phase: so many pulses as were asked for, each long enough."""

import random

import cocotb
from cocotb.triggers import RisingEdge

from hw.boards.phase_stepper import HALF_STEP_CYCLES, PhaseStepper, steps_layout
from sim.resets import cancelled_tasks, hold_inputs
from sim.streams import StreamSource, start

DUTS = {"all": PhaseStepper}


async def begin(dut) -> None:
    """Reset, with all inputs idle."""
    hold_inputs(dut, DUTS["all"]())
    await start(dut)
    await RisingEdge(dut.clk)


class Pll:
    """Counts the steps, and asserts how long the pulses are and what stays meanwhile."""

    def __init__(self, dut):
        self.phase = 0
        self._dut = dut
        cocotb.start_soon(self._run())

    async def _run(self) -> None:
        level, since, back_since, back = 0, HALF_STEP_CYCLES, HALF_STEP_CYCLES, 0
        while True:
            await RisingEdge(self._dut.clk)
            since, back_since = since + 1, back_since + 1
            if int(self._dut.back.value) != back:
                assert not level, "the direction changes in a step"
                back, back_since = 1 - back, 0
            if int(self._dut.step.value) != level:
                assert since >= HALF_STEP_CYCLES, f"a half of a step has {since} cycles"
                level, since = 1 - level, 0
                if level:
                    assert back_since >= HALF_STEP_CYCLES - 1, "the direction comes with the step"
                    self.phase += -1 if back else 1


@cocotb.test(timeout_time=20, timeout_unit="ms")
@cocotb.parametrize(stall=[0.0, 0.9])
async def steps(dut, stall):
    """Do as many steps as each request has, in its direction, 0 and 255 among them."""
    await begin(dut)
    pll, rng, wanted = Pll(dut), random.Random(5), 0
    source = StreamSource(dut, "i", steps_layout(), stall=stall)
    for count in (1, 0, 255, 0, 1, 2, *(rng.randrange(12) for _ in range(40))):
        back = rng.randrange(2)
        await source.send([{"steps": count, "back": back}])
        wanted += -count if back else count
        # The next request is accepted behind the last step.
        await source.send([{"steps": 0, "back": rng.randrange(2)}])
        assert pll.phase == wanted
    assert not dut.step.value


@cocotb.test(timeout_time=20, timeout_unit="ms")
async def resets(dut):
    """Reset in the midst of steps: the rest of them is dropped, and the next request is whole."""
    await begin(dut)
    rng = random.Random(6)
    source = StreamSource(dut, "i", steps_layout())
    for _ in range(20):
        await source.send([{"steps": 9, "back": 1}])
        for _ in range(rng.randrange(1, 8 * HALF_STEP_CYCLES)):
            await RisingEdge(dut.clk)
        dut.rst.value = 1
        await RisingEdge(dut.clk)
        dut.rst.value = 0
        for _ in range(2 * HALF_STEP_CYCLES):
            await RisingEdge(dut.clk)
            assert not dut.step.value, "a step goes on behind a reset"
        with cancelled_tasks():
            pll = Pll(dut)
            await source.send([{"steps": 3, "back": 0}, {"steps": 0, "back": 0}])
        assert pll.phase == 3
        assert not dut.step.value
