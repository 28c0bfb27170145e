"""Resets in the middle of a bench's work: nothing from before one may appear after it."""

import contextlib
import random
from collections.abc import Callable, Coroutine, Iterator, Mapping
from types import MappingProxyType
from typing import Any
from unittest import mock

import cocotb
from amaranth.lib.wiring import In
from cocotb.triggers import ClockCycles, RisingEdge

from sim.streams import cycle

__all__ = ["cancelled_tasks", "hold_inputs", "resets_in_mid_work"]

#: Cycles in which no output stream may offer anything: more than any unit has stages.
_QUIET_CYCLES = 40
#: Cycles through a synchronizer, and one more.
_LINE_CYCLES = 4


def hold_inputs(dut: Any, spec: Any, idle: Mapping[str, int] = MappingProxyType({})) -> None:
    """Set every input of ``dut``, whose component is ``spec``, to 0 or to its value in ``idle``."""
    for path, member, _ in spec.signature.flatten(spec):
        if member.flow is In:
            name = "__".join(map(str, path))
            dut[name].value = idle.get(name, 0)


@contextlib.contextmanager
def cancelled_tasks() -> Iterator[None]:
    """Cancel every task that was started meanwhile, at the end."""
    start_soon, tasks = cocotb.start_soon, []

    def collect(coroutine):
        tasks.append(start_soon(coroutine))
        return tasks[-1]

    with mock.patch.object(cocotb, "start_soon", collect):
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()


async def _quiet(dut: Any, spec: Any) -> None:
    """Assert that no output stream offers a transfer."""
    valids = [name for path, member, _ in spec.signature.flatten(spec)
              for name in ["__".join(map(str, path))]
              if member.flow is not In and name.endswith("valid")]
    for _ in range(_QUIET_CYCLES):
        await RisingEdge(dut.clk)
        for name in valids:
            assert not dut[name].value, f"{name} is high though nothing was asked for"


async def resets_in_mid_work(dut: Any, spec: Any, work: Callable[[int], Coroutine],
                             *fresh: Callable[[], Coroutine], resets: int, seed: int = 1,
                             idle: Mapping[str, int] = MappingProxyType({})) -> None:
    """Cut work off by resets at random times; what follows each is as if there had been none.

    The bench drops all that it does itself, tasks of memories and other neighbours with their
    answers as well. Its inputs stay as they are, valid transfers too, to the end of the reset, and
    are idle then. Fresh work must take as many cycles as after a reset that cuts nothing off,
    unless it follows a while in which nothing happens.

    Parameters
    ----------
    dut : handle
        Its clock runs, and it has just been reset.
    spec : Component
        What ``dut`` is made of: its ports.
    work : function of a seed
        Returns a coroutine that works and compares, all streams in use; the numbers and stalls
        depend on the seed.
    fresh : functions
        Each returns a coroutine that works and compares, the same in each call; they take turns.
    resets : int
        How often the work is cut off.
    idle : mapping
        Inputs that are not 0 when idle: lines that are not synchronous. They are idle some cycles
        before each reset, for what synchronizes them has none.

    Raises
    ------
    AssertionError
        If anything is left over, or fresh work takes another time.
    """
    rng = random.Random(seed)

    async def timed(function: Callable[..., Coroutine], *arguments: int) -> int:
        begin = cycle()
        with cancelled_tasks():
            await function(*arguments)
        hold_inputs(dut, spec, idle)
        return cycle() - begin

    async def reset() -> None:
        for name, value in idle.items():
            dut[name].value = value
        if idle:
            await ClockCycles(dut.clk, _LINE_CYCLES)
        dut.rst.value = 1
        await ClockCycles(dut.clk, rng.choice((1, 1, 2, 7)))
        dut.rst.value = 0
        hold_inputs(dut, spec, idle)
        await RisingEdge(dut.clk)               # outputs are those after the reset

    hold_inputs(dut, spec, idle)
    expected = []
    for begin in fresh:
        await reset()
        expected.append(await timed(begin))
        await _quiet(dut, spec)
    await reset()
    longest = await timed(work, rng.randrange(1 << 30))
    for number in range(resets):
        with cancelled_tasks():
            cocotb.start_soon(work(rng.randrange(1 << 30)))
            await ClockCycles(dut.clk, rng.randint(1, longest))
        await reset()
        turn = number % len(fresh)
        if rng.random() < 0.3:
            await _quiet(dut, spec)
            await timed(fresh[turn])
        else:
            taken = await timed(fresh[turn])
            assert taken == expected[turn], f"{taken} cycles after a reset, not {expected[turn]}"
        await _quiet(dut, spec)
