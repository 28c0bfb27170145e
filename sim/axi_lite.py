"""The manager's end of AXI4-Lite for cocotb benches: cocotbext-axi's, and the bus's rules."""

import random
from typing import Any

import cocotb
from cocotb.triggers import RisingEdge
from cocotbext.axi import AxiLiteBus, AxiLiteMaster

from hw.link.registers import REGISTERS
from sim.axi4 import pauses

__all__ = ["LiteRules", "RegisterPort"]


class RegisterPort:
    """Registers by name, over a manager of cocotbext-axi whose five channels pause on their own.

    Parameters
    ----------
    prefix : str
        Of the bus's signals, without the underscore before their names.
    clock, reset : handle
    active_high : bool
        Of the reset.
    stall : float
        Share of the time in which each channel pauses.

    Attributes
    ----------
    master : AxiLiteMaster
    accesses : int
        Reads and writes that were answered.
    """

    def __init__(self, dut: Any, prefix: str, clock: Any, reset: Any, *, active_high: bool = True,
                 stall: float = 0.0, seed: int = 0):
        self.master = AxiLiteMaster(AxiLiteBus.from_prefix(dut, prefix), clock, reset, active_high)
        self.accesses = 0
        write, read = self.master.write_if, self.master.read_if
        for half in (write, read):
            half.log.setLevel("WARNING")
        for number, channel in enumerate((write.aw_channel, write.w_channel, write.b_channel,
                                          read.ar_channel, read.r_channel)):
            if stall:
                channel.set_pause_generator(pauses(random.Random(5 * seed + number + 100), stall))

    async def write_word(self, address: int, data: int) -> int:
        """Write a whole word and return the response."""
        answer = await self.master.write(address, data.to_bytes(4, "little"))
        self.accesses += 1
        return int(answer.resp)

    async def read_word(self, address: int) -> tuple[int, int]:
        """Read a word; return data and response."""
        answer = await self.master.read(address, 4)
        self.accesses += 1
        return int.from_bytes(answer.data, "little"), int(answer.resp)

    async def write_strobes(self, address: int, data: int, strobe: int) -> int:
        """Write with any strobes, nothing else being under way, and return the response."""
        half = self.master.write_if
        await half.aw_channel.send(half.aw_channel._transaction_obj(awaddr=address, awprot=0))
        await half.w_channel.send(half.w_channel._transaction_obj(wdata=data, wstrb=strobe))
        self.accesses += 1
        return int((await half.b_channel.recv()).bresp)

    async def write(self, name: str, **fields: int) -> None:
        """Write a register, which must take it."""
        response = await self.try_write(name, **fields)
        assert response == 0, f"{name} {fields} was answered with {response}"

    async def try_write(self, name: str, **fields: int) -> int:
        """Write a register and return the response."""
        register = REGISTERS[name]
        return await self.write_word(register.address, register.pack(**fields))

    async def read(self, name: str) -> dict[str, int]:
        """Read the fields of a register."""
        register = REGISTERS[name]
        word, response = await self.read_word(register.address)
        assert response == 0, f"{name} was answered with {response}"
        assert word & ~register.mask == 0, f"{name} has bits outside of its fields: {word:#x}"
        return register.unpack(word)


class LiteRules:
    """Checks what a subordinate must keep of the bus, cycle by cycle, and that it never hangs.

    Parameters
    ----------
    prefix : str
        As of :class:`RegisterPort`.
    longest : int
        Cycles within which an access must be answered, while no answer waits to be taken.
    """

    def __init__(self, dut: Any, prefix: str, *, longest: int):
        self._dut, self._prefix, self._longest = dut, prefix, longest
        self._signals: dict[str, Any] = {}
        self._task = cocotb.start_soon(self._run())

    def _get(self, *names: str) -> tuple[int, ...]:
        for name in names:
            if name not in self._signals:
                self._signals[name] = self._dut[f"{self._prefix}_{name}"]
        return tuple(int(self._signals[name].value) for name in names)

    async def _run(self) -> None:
        owed = {"aw": 0, "w": 0, "ar": 0}
        offered: dict[str, tuple[int, ...]] = {}
        waited = {"b": 0, "r": 0}
        while True:
            await RisingEdge(self._dut.clk)
            if self._dut.rst.value:
                owed, offered, waited = dict.fromkeys(owed, 0), {}, dict.fromkeys(waited, 0)
                continue
            for channel, asked, names in (("b", ("aw", "w"), ("bresp",)),
                                          ("r", ("ar",), ("rdata", "rresp"))):
                valid, ready = self._get(f"{channel}valid", f"{channel}ready")
                waited[channel] += 1
                if not all(owed[one] for one in asked) or valid:
                    waited[channel] = 0
                assert waited[channel] <= self._longest, f"no answer on {channel}"
                before = offered.pop(channel, None)
                if valid:
                    payload = self._get(*names)
                    assert all(owed[one] for one in asked), f"{channel}valid was not asked for"
                    assert before in (None, payload), f"{channel} changed while it was offered"
                    if ready:
                        for one in asked:
                            owed[one] -= 1
                    else:
                        offered[channel] = payload
                else:
                    assert before is None, f"{channel}valid fell before it was accepted"
            for channel in owed:
                owed[channel] += all(self._get(f"{channel}valid", f"{channel}ready"))
