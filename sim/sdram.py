# Ref: ISSI, "IS42S16160G data sheet", command truth table and AC characteristics

"""An SDR SDRAM for cocotb benches, which asserts every rule of its data sheet.

The rules are checked in nanoseconds against the fields of :class:`hw.memory.sdram_chip.SdramChip`,
not against the cycles that the controller makes of them.
"""

import random
from collections import deque
from typing import Any

import cocotb
from amaranth.lib import data
from cocotb.triggers import RisingEdge

from hw.memory.sdram_chip import SdramChip

__all__ = ["SdramModel", "sdram_bus_layout"]

#: AUTO REFRESH commands that an initialization must have.
_INITIAL_REFRESHES = 8
#: Commands by the pins RAS#, CAS# and WE#.
_COMMANDS = {0b000: "LOAD MODE REGISTER", 0b001: "AUTO REFRESH", 0b010: "PRECHARGE",
             0b011: "ACTIVE", 0b100: "WRITE", 0b101: "READ", 0b110: "BURST TERMINATE"}
_NOP = 0b111
_A10 = 1 << 10
#: Bits of the bus by :func:`sdram_bus_layout`.
_CKE, _DRIVES, _DQM_AT = 1 << 4, 1 << 5, 6


def sdram_bus_layout(chip: SdramChip) -> data.StructLayout:
    """Layout of what the chip sees of its pins, packed so that a bench reads it at once."""
    return data.StructLayout({
        "cs_n": 1, "we_n": 1, "cas_n": 1, "ras_n": 1, "cke": 1, "dq_oe": 1,
        "dqm": chip.column_bytes, "ba": 2, "a": chip.address_bits, "dq": chip.data_bits})


#: Chips that a controller has initialized since the simulation began: they have power.
_INITIALIZED: set[str] = set()


class _Bank:
    """What a bank has open, and when it got the last commands of each kind, in nanoseconds."""

    def __init__(self):
        self.row: int | None = None
        self.active = self.precharge = self.write = float("-inf")


class SdramModel:
    """The chip at the other end of the pins, which takes commands at every rising clock edge.

    Data that it drives are random outside of the cycle in which they are valid, and so are cells
    that were never written. Each violation is an ``AssertionError`` that names command, time and
    rule.

    Parameters
    ----------
    dut : handle
        Of the bench; ``dut.rst`` says that the controller is reset.
    name : str
        Its output ``NAME_bus`` is of :func:`sdram_bus_layout`, its input ``NAME_dq`` is the data
        that the chip drives.
    chip : SdramChip
    clock_hz : int
        What the bench's clock stands for.
    burst : int
        Columns of a burst that the mode register must ask for.
    lead : int
        Cycles by which data come earlier than at an edge of the chip's clock: what the phase of
        that clock makes of them; below 0 they come later.

    Attributes
    ----------
    refreshes : int
        AUTO REFRESH commands since the initialization.
    columns : int
        Columns that were read or written.
    commands : dict of str to int
        How often each command came.
    """

    def __init__(self, dut: Any, name: str, chip: SdramChip, *, clock_hz: int, burst: int,
                 lead: int = 0, seed: int = 0):
        self._dut, self._chip, self._burst, self._lead = dut, chip, burst, lead
        self._name = name
        self._bus, self._dq = dut[f"{name}_bus"], dut[f"{name}_dq"]
        self._period = 1e9 / clock_hz
        self._random = random.Random(seed)
        self._layout = sdram_bus_layout(chip)
        self._cells: dict[tuple[int, int, int], int] = {}
        self._edge = 0
        self._banks = [_Bank() for _ in range(chip.banks)]
        #: Data by the edge at which the controller may take them, and edges at which nobody else
        #: may drive the bus.
        self._valid: dict[int, int] = {}
        self._driven: set[int] = set()
        self._writing: tuple[int, int, int, int] | None = None  # bank, row, column, columns done
        self._reading: tuple[int, int] | None = None            # bank, last edge that drives
        self.refreshes = self.columns = 0
        self.commands: dict[str, int] = dict.fromkeys(_COMMANDS.values(), 0)
        self._last_refresh = self._last_mode = self._last_active = float("-inf")
        self._begin()
        self._task = cocotb.start_soon(self._run())

    @property
    def initialized(self) -> bool:
        """Whether the mode register was loaded since the latest reset."""
        return self._mode is not None

    def stop(self) -> None:
        """Take no more commands."""
        self._task.cancel()

    @property
    def _now(self) -> float:
        return self._edge * self._period

    def _begin(self) -> None:
        """Expect an initialization; banks stay as they are."""
        self._powered = float("-inf") if self._name in _INITIALIZED else self._now
        self._initial: list[str] = []
        self._mode: int | None = None
        self._refreshed: deque[float] = deque(maxlen=self._chip.refresh_rows)
        self._deadline = float("inf")

    async def _run(self) -> None:
        clk, rst, bus = self._dut.clk, self._dut.rst, self._bus
        bank_at, address_at, word_at = (self._layout[name].offset for name in ("ba", "a", "dq"))
        lanes = (1 << self._chip.column_bytes) - 1
        rows = (1 << self._chip.address_bits) - 1
        reset = resets = False
        while True:
            await RisingEdge(clk)
            self._edge += 1
            # What was commanded before a reset is still in the pins' registers behind it.
            if reset and not resets:
                self._begin()
            reset, resets = resets, bool(rst.value)
            reset = reset or resets
            bits = int(bus.value)
            assert bits & _CKE, self._say("clock", "CKE is low")
            drives, masked = bits & _DRIVES, bits >> _DQM_AT & lanes
            assert not drives or self._driven.isdisjoint((self._edge, self._edge - 1)), (
                self._say("data", "chip and controller drive the data bus"))
            if not bits & 1 and (bits >> 1 & 7) != _NOP:
                self._take(_COMMANDS[bits >> 1 & 7], bits >> bank_at & 3, bits >> address_at & rows)
            if self._writing:
                self._write(drives, masked, bits >> word_at)
            if masked:                          # DQM takes two cycles in a READ
                self._valid.pop(self._edge + 2, None)
            assert self._now <= self._deadline, self._say(
                "AUTO REFRESH", f"fewer than {self._chip.refresh_rows} in "
                f"{self._chip.refresh_us} us")
            # Any word, but for what the controller can take at the next edge.
            word = self._valid.pop(self._edge + 1 + self._lead, None)
            if word is None:
                word = self._random.getrandbits(self._chip.data_bits)
            self._dq.value = word
            self._driven.discard(self._edge - 2)

    def _say(self, command: str, rule: str) -> str:
        return f"{command} at {self._now:.1f} ns (edge {self._edge}): {rule}"

    def _after(self, command: str, rule: str, since: float, least: float) -> None:
        """Assert that ``least`` nanoseconds have passed since another command."""
        # Times are multiples of a period in floating point.
        assert self._now - since >= least - 1e-3, self._say(
            command, f"{rule} is {least:g} ns, not {self._now - since:.1f}")

    def _take(self, command: str, bank: int, address: int) -> None:
        chip, its = self._chip, self._banks[bank]
        self.commands[command] += 1
        self._after(command, "tMRD", self._last_mode, chip.t_mrd_cycles * self._period)
        self._after(command, "tRFC", self._last_refresh, chip.t_rfc_ns)
        if self._mode is None:
            self._initialize(command, address)
        match command:
            case "LOAD MODE REGISTER":
                self._all_closed(command)
                assert bank == 0, self._say(command, "bank bits are not 0")
                length = {1: 0, 2: 1, 4: 2, 8: 3}[self._burst]
                assert address == chip.cas_latency << 4 | length, self._say(
                    command, f"mode is {address:#x}")
                self._mode, self._last_mode = address, self._now
                _INITIALIZED.add(self._name)
                self._refreshed.clear()
                self._refresh_by_now()
            case "AUTO REFRESH":
                self._all_closed(command)
                for each in self._banks:
                    self._after(command, "tRP", each.precharge, chip.t_rp_ns)
                    self._after(command, "tRC", each.active, chip.t_rc_ns)
                self._last_refresh = self._now
                if self._mode is not None:
                    self._refresh_by_now()
                    self.refreshes += 1
            case "ACTIVE":
                assert self._mode is not None, self._say(command, "no mode was loaded")
                assert its.row is None, self._say(command, f"bank {bank} is open")
                assert address < chip.rows, self._say(command, f"row {address} does not exist")
                self._after(command, "tRP", its.precharge, chip.t_rp_ns)
                self._after(command, "tRC", its.active, chip.t_rc_ns)
                self._after(command, "tRRD", self._last_active, chip.t_rrd_ns)
                its.row, its.active, self._last_active = address, self._now, self._now
            case "PRECHARGE":
                for number, each in enumerate(self._banks):
                    if address & _A10 or number == bank:
                        self._close(command, number, each)
            case "READ" | "WRITE":
                self._column(command, bank, address)
            case _:
                raise AssertionError(self._say(command, "is not used"))

    def _initialize(self, command: str, address: int) -> None:
        """Check the order of an initialization: PRECHARGE of all, refreshes, mode."""
        if not self._initial:
            self._after(command, "power-up wait", self._powered, 1000 * self._chip.power_up_us)
            assert command == "PRECHARGE", self._say(command, "does not begin an initialization")
            assert address & _A10, self._say(command, "is not of all banks in an initialization")
        elif command == "LOAD MODE REGISTER":
            count = self._initial.count("AUTO REFRESH")
            assert count >= _INITIAL_REFRESHES, self._say(
                command, f"only {count} refreshes in an initialization")
        else:
            assert command == "AUTO REFRESH", self._say(command, "within an initialization")
        self._initial.append(command)

    def _refresh_by_now(self) -> None:
        """Note a refresh: in every window, whenever it begins, there must be so many."""
        self._refreshed.append(self._now)
        # So many back, or the end of the initialization.
        self._deadline = self._refreshed[0] + 1000 * self._chip.refresh_us

    def _all_closed(self, command: str) -> None:
        for number, each in enumerate(self._banks):
            assert each.row is None, self._say(command, f"bank {number} is open")

    def _close(self, command: str, number: int, its: _Bank) -> None:
        if its.row is None:
            return
        self._after(command, "tRAS", its.active, self._chip.t_ras_ns)
        self._after(command, "tWR", its.write, self._chip.t_wr_ns)
        self._after(command, "tWR", its.write, 2 * self._period)
        assert not (self._writing and self._writing[0] == number), self._say(
            command, "cuts a WRITE off")
        # A PRECHARGE ends a READ as many cycles later as the CAS latency is.
        if self._reading and self._reading[0] == number:
            assert self._edge + self._chip.cas_latency > self._reading[1], self._say(
                command, "cuts a READ off")
        its.row, its.precharge = None, self._now

    def _column(self, command: str, bank: int, address: int) -> None:
        chip, its = self._chip, self._banks[bank]
        assert its.row is not None, self._say(command, f"bank {bank} has no open row")
        assert not address & _A10, self._say(command, "auto precharge is not used")
        column = address & ~_A10
        assert column < chip.columns, self._say(command, f"column {column} does not exist")
        assert column % self._burst == 0, self._say(command, f"a burst wraps at column {column}")
        self._after(command, "tRCD", its.active, chip.t_rcd_ns)
        assert self._writing is None, self._say(command, "cuts a WRITE off")
        latency = chip.cas_latency
        assert command == "WRITE" or not self._reading or (
            self._edge + latency > self._reading[1]), self._say(command, "cuts a READ off")
        self.columns += self._burst
        if command == "WRITE":
            self._writing = (bank, its.row, column, 0)
            return
        first = self._edge + latency
        for k in range(self._burst):
            cell = (bank, its.row, column + k)
            if cell not in self._cells:
                self._cells[cell] = self._random.getrandbits(chip.data_bits)
            self._valid[first + k] = self._cells[cell]
            self._driven.add(first + k)
        self._reading = (bank, first + self._burst - 1)

    def _write(self, drives: int, masked: int, word: int) -> None:
        assert self._writing
        bank, row, column, done = self._writing
        lanes = sum(0xFF << 8 * lane for lane in range(self._chip.column_bytes)
                    if not masked >> lane & 1)
        # A reset in the midst of a burst masks the rest of it.
        assert drives or not lanes, self._say("WRITE", "nobody drives the data bus")
        cell = (bank, row, column + done)
        if lanes:
            old = self._cells.get(cell)
            if old is None:
                old = self._random.getrandbits(self._chip.data_bits)
            self._cells[cell] = old & ~lanes | word & lanes
            self._banks[bank].write = self._now
        done += 1
        self._writing = None if done == self._burst else (bank, row, column, done)
