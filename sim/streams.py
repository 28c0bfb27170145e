"""Ends of streams for cocotb benches, with random stalls."""

import random
from collections.abc import Iterable
from typing import Any

from cocotb.clock import Clock
from cocotb.simtime import get_sim_time
from cocotb.triggers import RisingEdge

__all__ = ["CLOCK_NS", "StreamSink", "StreamSource", "cycle", "start"]

#: Clock period of every bench.
CLOCK_NS = 10


def cycle() -> int:
    """Return the number of clock periods since the start of the simulation."""
    return int(get_sim_time("ns") // CLOCK_NS)      # edges lie in the middle of a period


async def start(dut: Any) -> None:
    """Start the clock of ``dut`` and reset it for one cycle."""
    Clock(dut.clk, CLOCK_NS, unit="ns").start(start_high=False)
    dut.rst.value = 1
    await RisingEdge(dut.clk)
    await RisingEdge(dut.clk)
    dut.rst.value = 0


class StreamSource:
    """Drive stream ``name`` of ``dut``, holding ``valid`` and ``payload`` until accepted.

    Parameters
    ----------
    shape : amaranth layout
        ``component.NAME.payload.shape()``; it packs the payload, so no bench knows a bit offset.
    stall : float
        Probability of a cycle without ``valid`` before a transfer.
    """

    def __init__(self, dut: Any, name: str, shape: Any, *, stall: float = 0.0, seed: int = 0):
        self._clk, self._shape = dut.clk, shape
        self._valid, self._ready = dut[f"{name}__valid"], dut[f"{name}__ready"]
        self._payload = dut[f"{name}__payload"]
        self._stall, self._random = stall, random.Random(seed)
        #: Cycle of the first and of the latest transfer, as :func:`cycle` counts; -1 before.
        self.first_cycle = -1
        self.last_cycle = -1
        self._valid.value = 0
        self._payload.value = 0

    async def send(self, payloads: Iterable[Any]) -> None:
        """Send each of ``payloads`` in order; an int is taken as the packed bits."""
        for payload in payloads:
            while self._random.random() < self._stall:
                await RisingEdge(self._clk)
            if not isinstance(payload, int):
                payload = self._shape.const(payload).as_bits()
            self._payload.value = payload
            self._valid.value = 1
            await RisingEdge(self._clk)
            while not self._ready.value:
                await RisingEdge(self._clk)
            self.last_cycle = cycle()
            if self.first_cycle < 0:
                self.first_cycle = self.last_cycle
            self._valid.value = 0


class StreamSink:
    """Take transfers from stream ``name`` of ``dut``."""

    def __init__(self, dut: Any, name: str, shape: Any, *, stall: float = 0.0, seed: int = 1):
        self._clk, self._shape = dut.clk, shape
        self._valid, self._ready = dut[f"{name}__valid"], dut[f"{name}__ready"]
        self._payload = dut[f"{name}__payload"]
        self._stall, self._random = stall, random.Random(seed)
        self.first_cycle = -1
        self.last_cycle = -1
        self._ready.value = 0

    async def receive(self, count: int) -> list[Any]:
        """Wait for ``count`` payloads and return them in order."""
        received: list[Any] = []
        while len(received) < count:
            ready = int(self._random.random() >= self._stall)
            self._ready.value = ready
            await RisingEdge(self._clk)
            if ready and self._valid.value:
                received.append(self._shape.from_bits(self._payload.value.to_unsigned()))
                self.last_cycle = cycle()
                if self.first_cycle < 0:
                    self.first_cycle = self.last_cycle
        self._ready.value = 0
        return received
