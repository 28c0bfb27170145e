"""The other end of an AXI4 bus for cocotb benches: cocotbext-axi's memory, and the bus's rules."""

import random
from collections import deque
from collections.abc import Iterator
from typing import Any

import cocotb
from cocotb.triggers import RisingEdge
from cocotbext.axi import AxiBus, AxiRam

from hw.memory.axi4 import WRITE_TRANSFERS

__all__ = ["DECERR", "LATENCY", "SLVERR", "Rules", "Subordinate", "pauses"]

OKAY, SLVERR, DECERR = 0, 2, 3


def pauses(rng: random.Random, share: float) -> Iterator[bool]:
    """Pause in stretches of one to six cycles, ``share`` of the time."""
    while True:
        paused = rng.random() < share
        yield from [paused] * rng.randint(1, 6)

#: Cycles from a read's address to its first data, in a memory of cocotbext-axi that does not pause.
LATENCY = 2


class Subordinate:
    """A memory of cocotbext-axi whose channels pause, and which fails where it is told to.

    Parameters
    ----------
    prefix : str
        Of the bus's signals, without the underscore before their names.
    size : int
        Bytes of the memory.
    stall : float
        Share of the time in which each of the five channels pauses.
    clock, reset : handle, optional
        Without them ``clk`` and ``rst``.
    active_high : bool
        Of the reset.

    Attributes
    ----------
    ram : AxiRam
    channels : dict of str to stream
        ``aw``, ``w``, ``b``, ``ar`` and ``r`` of cocotbext-axi.
    read_failures, write_failures : dict of int to int
        Responses by the number of a transfer on R, and of a burst on B.
    sent : dict of str to int
        Transfers on R and on B that were answered so far; some may still wait for their channel.
    """

    def __init__(self, dut: Any, prefix: str, size: int, *, stall: float = 0.0, seed: int = 0,
                 clock: Any = None, reset: Any = None, active_high: bool = True):
        bus = AxiBus.from_prefix(dut, prefix)
        self.ram = AxiRam(bus, dut.clk if clock is None else clock,
                          dut.rst if reset is None else reset, active_high, size=size)
        for half in (self.ram.write_if, self.ram.read_if):
            half.log.setLevel("WARNING")
        self.read_failures: dict[int, int] = {}
        self.write_failures: dict[int, int] = {}
        self.sent = {"r": 0, "b": 0}
        self.channels = {
            "aw": self.ram.write_if.aw_channel, "w": self.ram.write_if.w_channel,
            "b": self.ram.write_if.b_channel, "ar": self.ram.read_if.ar_channel,
            "r": self.ram.read_if.r_channel}
        for channel in self.channels.values():  # as much under way as the manager likes
            channel.queue_occupancy_limit = 0
        self._fail("r", self.read_failures)
        self._fail("b", self.write_failures)
        self.pause(stall, seed)

    def pause(self, stall: float, seed: int = 0) -> None:
        """Let channels pause; without a share, none does from now on."""
        for number, channel in enumerate(self.channels.values()):
            channel.clear_pause_generator()
            channel.pause = False
            if stall:
                channel.set_pause_generator(pauses(random.Random(5 * seed + number), stall))

    def _fail(self, name: str, failures: dict[int, int]) -> None:
        """Answer on channel ``name`` as ``failures`` says."""
        channel = self.channels[name]
        send = channel.send

        async def wrapped(transaction: Any) -> None:
            setattr(transaction, f"{name}resp", failures.get(self.sent[name], OKAY))
            self.sent[name] += 1
            await send(transaction)

        channel.send = wrapped


class Rules:
    """Checks what a manager must keep of the bus, cycle by cycle.

    Parameters
    ----------
    prefix : str
        As of :class:`Subordinate`.
    width : int
        Bytes of a transfer.
    clock, reset, active_high
        As of :class:`Subordinate`.

    Attributes
    ----------
    owed : dict of str to deque
        Lengths of the bursts whose addresses were offered on AW and accepted on AR, and whose
        transfers have not come yet.
    unanswered : int
        Bursts on AW without an answer.
    read_addresses : list of int
        Of each transfer that was asked for on AR.
    write_addresses : list of int
        Of each burst on AW.
    """

    def __init__(self, dut: Any, prefix: str, width: int, *, clock: Any = None, reset: Any = None,
                 active_high: bool = True):
        self._dut, self._prefix, self._width = dut, prefix, width
        self._clock = dut.clk if clock is None else clock
        self._reset = dut.rst if reset is None else reset
        self._in_reset = int(active_high)
        self._signals: dict[str, Any] = {}
        self._waiting: dict[str, tuple[int, ...]] = {}
        self.owed: dict[str, deque[int]] = {"aw": deque(), "ar": deque()}
        self.unanswered = 0
        self.read_addresses: list[int] = []
        self.write_addresses: list[int] = []
        self._task = cocotb.start_soon(self._run())

    def stop(self) -> None:
        """End it; nothing may be under way."""
        assert not any((self.unanswered, *self.owed.values(), self._waiting))
        self._task.cancel()

    def _get(self, *names: str) -> tuple[int, ...]:
        for name in names:
            if name not in self._signals:
                self._signals[name] = self._dut[f"{self._prefix}_{name}"]
        return tuple(int(self._signals[name].value) for name in names)

    def _moves(self, channel: str, *names: str) -> tuple[bool, bool, tuple[int, ...]]:
        """Return whether something is newly offered, whether it is accepted, and what it is."""
        valid, ready = self._get(f"{channel}valid", f"{channel}ready")
        payload = self._get(*names) if valid else ()
        waited = channel in self._waiting
        if waited:
            assert valid, f"{channel}valid fell before it was accepted"
            assert payload == self._waiting.pop(channel), f"{channel} changed while it was offered"
        if valid and not ready:
            self._waiting[channel] = payload
        return bool(valid and not waited), bool(valid and ready), payload

    async def _run(self) -> None:
        resets = 0                              # cycles of a reset
        while True:
            await RisingEdge(self._clock)
            if self._reset.value == self._in_reset:
                # Subordinate and manager are reset together, and owe nothing afterwards.
                resets += 1
                self._waiting.clear()
                for lengths in self.owed.values():
                    lengths.clear()
                self.unanswered = 0
                if resets > 1:
                    assert self._get("awvalid", "wvalid", "arvalid") == (0, 0, 0), "in reset"
                continue
            resets = 0
            for channel in ("aw", "ar"):
                names = [channel + name for name in ("addr", "len", "size", "burst", "cache",
                                                     "prot")]
                offered, accepted, payload = self._moves(channel, *names)
                if offered:
                    address, length, size, burst, cache, prot = payload
                    assert (1 << size, burst, cache, prot) == (self._width, 1, 3, 0)
                    assert address % self._width == 0
                    end = address + (length + 1) * self._width - 1
                    assert address // 4096 == end // 4096, "a burst crosses 4 KiB"
                    assert channel == "ar" or length < WRITE_TRANSFERS
                    if channel == "ar":
                        self.read_addresses += range(address, end + 1, self._width)
                    else:
                        self.write_addresses.append(address)
                        self.unanswered += 1
                if offered if channel == "aw" else accepted:
                    self.owed[channel].append(payload[1] + 1)
            offered, accepted, payload = self._moves("w", "wdata", "wstrb", "wlast")
            if offered:
                assert self.owed["aw"], "data without an address"
                assert payload[1] == 2 ** self._width - 1
                assert payload[2] == (self.owed["aw"][0] == 1), "wlast"
            if accepted:
                self._take("aw")
            if all(self._get("rvalid", "rready")):
                self._take("ar")
            assert self._get("bready") == (1,)
            self.unanswered -= self._get("bvalid")[0]

    def _take(self, channel: str) -> None:
        self.owed[channel][0] -= 1
        if self.owed[channel][0] == 0:
            self.owed[channel].popleft()
