"""The SDRAM controller against a chip that checks every command, for several chips and ports."""

import dataclasses
import random
from collections.abc import Iterable

import cocotb
from amaranth import *
from amaranth.lib import io, wiring
from amaranth.lib.wiring import In, Out
from cocotb.triggers import ClockCycles, RisingEdge

from hw.boards.sdram_pins import SdramPins
from hw.memory.port import port_signature
from hw.memory.sdram import REFRESHES, SdramController, counters_layout
from hw.memory.sdram_chip import SdramChip
from hw.memory.sdram_runs import READ_RUN
from sim.resets import hold_inputs, resets_in_mid_work
from sim.sdram import SdramModel, sdram_bus_layout
from sim.streams import StreamSink, StreamSource, start
from sim.timing.units import sdram_cycles, sdram_share

#: Transfers that the controller's queue of data holds.
QUEUE = 512


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """A chip, a clock and a port."""

    chip: SdramChip
    clock_hz: int
    port_bytes: int
    pin_cycles: int = 2

    @property
    def address_width(self) -> int:
        """Bits that reach the whole chip."""
        return (self.chip.memory_bytes - 1).bit_length()

    @property
    def columns(self) -> int:
        """Columns of a transfer."""
        return self.port_bytes // self.chip.column_bytes

    @property
    def row_bytes(self) -> int:
        """Bytes of a row of one bank."""
        return self.chip.columns * self.chip.column_bytes


def _chip(**fields) -> SdramChip:
    """Return a chip with few rows, and with a window of refreshes as short, but no denser."""
    return SdramChip(**{"rows": 16, "refresh_rows": 32, "refresh_us": 250, "power_up_us": 1}
                     | fields)


MEMORIES = {
    "x16": Memory(chip=_chip(), clock_hz=80_000_000, port_bytes=4),
    "fast": Memory(chip=_chip(cas_latency=3), clock_hz=133_000_000, port_bytes=4),
    "narrow": Memory(chip=_chip(columns=1024), clock_hz=100_000_000, port_bytes=2, pin_cycles=1),
    "wide": Memory(chip=_chip(columns=1024, cas_latency=3), clock_hz=125_000_000, port_bytes=8,
                   pin_cycles=3),
    "x32": Memory(chip=_chip(data_bits=32, columns=256), clock_hz=60_000_000, port_bytes=4),
    # Timings in another order than those of real chips, rows shorter than the longest run.
    "slow": Memory(chip=_chip(data_bits=32, columns=256, t_rp_ns=60, t_rcd_ns=50, t_wr_ns=55,
                              t_rfc_ns=30, t_ras_ns=250, t_rc_ns=260, t_rrd_ns=110, t_mrd_cycles=7),
                   clock_hz=100_000_000, port_bytes=32),
}


class Bench(wiring.Component):
    """Controllers side by side, each with the registers of its pins."""

    def __init__(self):
        members = {}
        for name, memory in MEMORIES.items():
            members |= {
                f"port_{name}": In(port_signature(address_width=memory.address_width,
                                                  port_bytes=memory.port_bytes)),
                f"counters_{name}": Out(counters_layout()),
                f"{name}_bus": Out(sdram_bus_layout(memory.chip)),
                f"{name}_dq": In(memory.chip.data_bits),
            }
        super().__init__(members)

    def elaborate(self, platform):
        """Put the units side by side."""
        m = Module()
        for name, memory in MEMORIES.items():
            m.submodules[name] = controller = SdramController(
                chip=memory.chip, clock_hz=memory.clock_hz, address_width=memory.address_width,
                port_bytes=memory.port_bytes, target="generic", pin_cycles=memory.pin_cycles)
            widths = {"cs": 1, "ras": 1, "cas": 1, "we": 1, "clk_en": 1, "ba": 2,
                      "a": memory.chip.address_bits, "dqm": memory.chip.column_bytes}
            resource = _Resource()
            for pin, width in widths.items():
                setattr(resource, pin, io.SimulationPort(
                    "o", width, name=f"{name}_{pin}", invert=pin in ("cs", "ras", "cas", "we")))
            resource.dq = io.SimulationPort("io", memory.chip.data_bits, name=f"{name}_dq")
            m.submodules[f"{name}_pins"] = pins = SdramPins(chip=memory.chip, resource=resource)
            wiring.connect(m, wiring.flipped(getattr(self, f"port_{name}")), controller.port)
            wiring.connect(m, controller.pins, pins.pins)
            bus = getattr(self, f"{name}_bus")
            m.d.comb += [
                getattr(self, f"counters_{name}").eq(controller.counters),
                resource.dq.i.eq(getattr(self, f"{name}_dq")),
                bus.cs_n.eq(resource.cs.o), bus.ras_n.eq(resource.ras.o),
                bus.cas_n.eq(resource.cas.o), bus.we_n.eq(resource.we.o),
                bus.cke.eq(resource.clk_en.o), bus.dqm.eq(resource.dqm.o),
                bus.ba.eq(resource.ba.o), bus.a.eq(resource.a.o),
                bus.dq.eq(resource.dq.o), bus.dq_oe.eq(resource.dq.oe[0]),
            ]
        return m


class _Resource:
    """Pins by the names of amaranth-boards."""

    dq: io.SimulationPort


DUTS = {"all": Bench}


class Port:
    """A user of a port, and what was written by it."""

    def __init__(self, dut, name, *, stall=0.0, seed=0):
        self.memory = MEMORIES[name]
        self.bytes = self.memory.port_bytes
        self.rng = random.Random(seed)
        self.contents = bytearray(self.memory.chip.memory_bytes)
        self.written = bytearray(self.memory.chip.memory_bytes)     # 1 where it was written
        spec = port_signature(address_width=self.memory.address_width,
                              port_bytes=self.bytes).create()
        self.reads = StreamSource(dut, f"port_{name}__reads", spec.reads.payload.shape(),
                                  stall=stall, seed=seed)
        self.data = StreamSink(dut, f"port_{name}__data", spec.data.payload.shape(), stall=stall,
                               seed=seed + 1)
        self.writes = StreamSource(dut, f"port_{name}__writes", spec.writes.payload.shape(),
                                   stall=stall, seed=seed + 2)

    def note(self, address: int, text: bytes) -> None:
        """Note what is being written."""
        self.contents[address:address + len(text)] = text
        self.written[address:address + len(text)] = bytes([1]) * len(text)

    async def write(self, address: int, transfers: int) -> None:
        """Write a burst of random bytes."""
        text = self.rng.randbytes(transfers * self.bytes)
        self.note(address, text)
        await self.writes.send(
            {"address": address + k, "last": k + self.bytes == len(text),
             "data": int.from_bytes(text[k:k + self.bytes], "little")}
            for k in range(0, len(text), self.bytes))

    async def take(self, bursts: Iterable[tuple[int, int]]) -> None:
        """Take what is read of {address, transfers}, and compare what was written before."""
        places = [(address + k * self.bytes) for address, count in bursts for k in range(count)]
        for place, transfer in zip(places, await self.data.receive(len(places)), strict=True):
            if self.written[place]:
                expected = self.contents[place:place + self.bytes]
                assert transfer.data.to_bytes(self.bytes, "little") == expected, hex(place)

    async def ask(self, bursts: Iterable[tuple[int, int]]) -> None:
        """Ask for {address, transfers}."""
        await self.reads.send({"address": address, "transfers": count}
                              for address, count in bursts)

    async def read(self, bursts: list[tuple[int, int]]) -> None:
        """Ask for bursts and take them meanwhile."""
        taking = cocotb.start_soon(self.take(bursts))
        await self.ask(bursts)
        await taking

    def burst(self, longest: int) -> tuple[int, int]:
        """Choose a burst that fits the chip: often in few rows of few banks, or across an end."""
        count = self.rng.choice((1, 2, 7, 8, 9, self.rng.randint(1, longest)))
        row = self.rng.randrange(6 if self.rng.random() < 0.7
                                 else self.memory.chip.memory_bytes // self.memory.row_bytes)
        place = row * self.memory.row_bytes // self.bytes
        if self.rng.random() < 0.4:
            place -= self.rng.randint(0, count)
        else:
            place += self.rng.randrange(self.memory.row_bytes // self.bytes)
        end = self.memory.chip.memory_bytes // self.bytes - count
        return min(max(place, 0), end) * self.bytes, count

    async def exercise(self, rounds: int) -> None:
        """Write some bursts, then read them and others at once."""
        for _ in range(rounds):
            bursts = [self.burst(60) for _ in range(self.rng.randint(1, 5))]
            for burst in bursts:
                await self.write(*burst)
            others = [self.burst(self.rng.choice((10, 256)))
                      for _ in range(self.rng.randint(0, 5))]
            # The last one first: it was written just now.
            await self.read([bursts[-1], *self.rng.sample(bursts, len(bursts)), *others])


def model(dut, name, *, seed=0) -> SdramModel:
    """Start the chip behind a port."""
    memory = MEMORIES[name]
    return SdramModel(dut, name, memory.chip, clock_hz=memory.clock_hz, burst=memory.columns,
                      lead=2 - memory.pin_cycles, seed=seed)


async def begin(dut) -> None:
    """Hold all inputs, so that a unit that is not under test sees nothing, and reset."""
    hold_inputs(dut, DUTS["all"]())
    await start(dut)


@cocotb.test(timeout_time=2, timeout_unit="ms")
@cocotb.parametrize(name=list(MEMORIES), stall=[0.0, 0.3])
async def keeps_what_is_written(dut, name, stall):
    """Random bursts of any length, reads that follow writes, with and without stalls."""
    await begin(dut)
    chip = model(dut, name)
    port = Port(dut, name, stall=stall, seed=len(name))
    await port.exercise(12)
    assert chip.refreshes and chip.commands["ACTIVE"] > 20


def _counters(dut, name):
    return counters_layout().from_bits(dut[f"counters_{name}"].value.to_unsigned())


@cocotb.test(timeout_time=5, timeout_unit="ms")
@cocotb.parametrize(name=list(MEMORIES), burst=[256, 64, 17])
async def cycles_equal_formula(dut, name, burst):
    """A stream of reads from consecutive places, refreshes included; what the counters say."""
    await begin(dut)
    chip, memory = model(dut, name), MEMORIES[name]
    port = Port(dut, name, seed=3)
    await port.read([(0, 1)])                   # it is initialized
    port.reads.first_cycle = -1
    # From the middle of a row on, and at the end from the chip's last row to its first one.
    place = 3 * memory.row_bytes // 2
    count = max(2, min(9000 // memory.columns, 4 * 9000) // burst)
    size = memory.chip.memory_bytes
    bursts = [((place + k * burst * port.bytes) % size, burst) for k in range(count)]
    refreshed, before = chip.refreshes, _counters(dut, name)
    await port.read(bursts)
    groups = (chip.refreshes - refreshed) // REFRESHES
    after = _counters(dut, name)
    taken = port.data.last_cycle - port.reads.first_cycle + 1
    dut._log.info(f"FORMULA {name} {burst} {count} taken {taken} groups {groups}")
    assert taken == sdram_cycles(memory.chip, memory.clock_hz, [burst] * count,
                                 port_bytes=memory.port_bytes, pin_cycles=memory.pin_cycles,
                                 refresh_groups=groups)
    assert (after.transfers - before.transfers) % 2**32 == count * burst
