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
from hw.memory.sdram import SdramController, counters_layout
from hw.memory.sdram_chip import READ_RUN, REFRESHES, SdramChip, refresh_interval
from sim.resets import hold_inputs, resets_in_mid_work
from sim.sdram import SdramModel, sdram_bus_layout
from sim.streams import StreamSink, StreamSource, cycle, start
from sim.timing.units import sdram_cycles, sdram_refresh_cycles, sdram_share

#: Transfers that the controller's queue of data holds.
QUEUE = 512



@dataclasses.dataclass(frozen=True, kw_only=True)
class Setup:
    """A chip, a clock and a port, whose addresses reach the chip or a bit less or more."""

    chip: SdramChip
    clock_hz: int
    port_bytes: int
    address_width: int
    pin_cycles: int = 2

    @property
    def columns(self) -> int:
        """Columns of a transfer."""
        return self.port_bytes // self.chip.column_bytes

    @property
    def row_bytes(self) -> int:
        """Bytes of a row of one bank."""
        return self.chip.columns * self.chip.column_bytes

    @property
    def size(self) -> int:
        """Bytes that are reached."""
        return min(self.chip.memory_bytes, 2 ** self.address_width)


def _chip(**fields) -> SdramChip:
    """Return a chip with few rows. Its window of refreshes is as short as its rows are few.

    The window of those that do not say otherwise asks for a refresh as often as that of real chips.
    """
    return SdramChip(**{"rows": 16, "refresh_rows": 32, "refresh_us": 250, "power_up_us": 1}
                     | fields)


SETUPS = {
    "x16": Setup(chip=_chip(), clock_hz=80_000_000, port_bytes=4, address_width=16),
    "fast": Setup(chip=_chip(cas_latency=3), clock_hz=133_000_000, port_bytes=4, address_width=15),
    "narrow": Setup(chip=_chip(columns=1024, refresh_us=60), clock_hz=100_000_000, port_bytes=2,
                    address_width=18, pin_cycles=1),
    "wide": Setup(chip=_chip(columns=1024, cas_latency=3, t_rcd_ns=40, refresh_us=80),
                  clock_hz=125_000_000, port_bytes=8, address_width=17, pin_cycles=3),
    "x32": Setup(chip=_chip(data_bits=32, columns=256, refresh_us=100), clock_hz=60_000_000,
                 port_bytes=4, address_width=16),
    # Timings in another order than those of real chips, rows shorter than the longest run.
    "slow": Setup(chip=_chip(data_bits=32, columns=256, t_rp_ns=60, t_rcd_ns=50, t_wr_ns=55,
                             t_rfc_ns=30, t_ras_ns=250, t_rc_ns=260, t_rrd_ns=110, t_mrd_cycles=7,
                             refresh_us=125),
                  clock_hz=100_000_000, port_bytes=32, address_width=17),
}


class Bench(wiring.Component):
    """Controllers side by side, each with the registers of its pins."""

    def __init__(self):
        members = {}
        for name, setup in SETUPS.items():
            members |= {
                f"port_{name}": In(port_signature(address_width=setup.address_width,
                                                  port_bytes=setup.port_bytes)),
                f"counters_{name}": Out(counters_layout()),
                f"{name}_bus": Out(sdram_bus_layout(setup.chip)),
                f"{name}_dq": In(setup.chip.data_bits),
            }
        super().__init__(members)

    def elaborate(self, platform):
        """Put the units side by side."""
        m = Module()
        for name, setup in SETUPS.items():
            m.submodules[name] = controller = SdramController(
                chip=setup.chip, clock_hz=setup.clock_hz, address_width=setup.address_width,
                port_bytes=setup.port_bytes, target="generic", pin_cycles=setup.pin_cycles)
            widths = {"cs": 1, "ras": 1, "cas": 1, "we": 1, "clk_en": 1, "ba": 2,
                      "a": setup.chip.address_bits, "dqm": setup.chip.column_bytes}
            resource = _Resource()
            for pin, width in widths.items():
                setattr(resource, pin, io.SimulationPort(
                    "o", width, name=f"{name}_{pin}", invert=pin in ("cs", "ras", "cas", "we")))
            resource.dq = io.SimulationPort("io", setup.chip.data_bits, name=f"{name}_dq")
            m.submodules[f"{name}_pins"] = pins = SdramPins(chip=setup.chip, resource=resource)
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
        self.setup = SETUPS[name]
        self.bytes = self.setup.port_bytes
        self.rng = random.Random(seed)
        self.contents = bytearray(self.setup.size)
        self.written = bytearray(self.setup.size)      # 1 where it was written
        spec = port_signature(address_width=self.setup.address_width,
                              port_bytes=self.bytes).create()
        self.reads = StreamSource(dut, f"port_{name}__reads", spec.reads.payload.shape(),
                                  stall=stall, seed=seed)
        self.data = StreamSink(dut, f"port_{name}__data", spec.data.payload.shape(), stall=stall,
                               seed=seed + 1)
        self.write_shape = spec.writes.payload.shape()
        self.writes = StreamSource(dut, f"port_{name}__writes", self.write_shape, stall=stall,
                                   seed=seed + 2)

    async def write(self, address: int, transfers: int, *, last: bool = True) -> None:
        """Write a burst of random bytes, or without ``last`` the beginning of one."""
        text = self.rng.randbytes(transfers * self.bytes)
        self.contents[address:address + len(text)] = text
        self.written[address:address + len(text)] = bytes([1]) * len(text)
        await self.writes.send(
            {"address": address + k, "last": last and k + self.bytes == len(text),
             "data": int.from_bytes(text[k:k + self.bytes], "little")}
            for k in range(0, len(text), self.bytes))

    async def ask(self, bursts: Iterable[tuple[int, int]]) -> None:
        """Ask for {address, transfers}."""
        await self.reads.send({"address": address, "transfers": count}
                              for address, count in bursts)

    async def take(self, bursts: Iterable[tuple[int, int]]) -> None:
        """Take what was asked for, and compare what was written before."""
        places = [(address + k * self.bytes) % self.setup.size
                  for address, count in bursts for k in range(count)]
        for place, transfer in zip(places, await self.data.receive(len(places)), strict=True):
            if self.written[place]:
                expected = self.contents[place:place + self.bytes]
                assert transfer.data.to_bytes(self.bytes, "little") == expected, hex(place)

    async def read(self, bursts: list[tuple[int, int]]) -> None:
        """Ask for bursts and take them meanwhile."""
        taking = cocotb.start_soon(self.take(bursts))
        await self.ask(bursts)
        await taking

    def burst(self, longest: int, *, half: int = -1) -> tuple[int, int]:
        """Choose a burst: often in few rows, so that a bank has another one open, or across ends.

        Parameters
        ----------
        longest : int
            Transfers.
        half : int
            Half of the memory in which it lies; below 0 it may be anywhere.
        """
        size = self.setup.size if half < 0 else self.setup.size // 2
        count = self.rng.choice((1, 1, 2, 7, 8, 9, self.rng.randint(1, longest)))
        rows = size // self.setup.row_bytes
        row = self.rng.choice((0, 1, 4, 5, self.rng.randrange(rows))) % rows
        place = row * self.setup.row_bytes // self.bytes
        if self.rng.random() < 0.4:
            place -= self.rng.randint(0, count)
        else:
            place += self.rng.randrange(self.setup.row_bytes // self.bytes)
        place = min(max(place, 0), size // self.bytes - count)
        return max(half, 0) * size + place * self.bytes, count

    async def exercise(self, rounds: int) -> None:
        """Write bursts in one half, and read those of the round before in the other meanwhile."""
        before: list[tuple[int, int]] = []
        for number in range(rounds):
            bursts = [self.burst(60, half=number % 2) for _ in range(self.rng.randint(1, 6))]
            reading = cocotb.start_soon(self.read(before + [
                self.burst(256, half=1 - number % 2) for _ in range(self.rng.randint(0, 3))]))
            for burst in bursts:
                await self.write(*burst)
            await reading
            # The last one first: it was accepted just now.
            await self.read([bursts[-1]])
            before = bursts


def model(dut, name, *, seed=0) -> SdramModel:
    """Start the chip behind a port."""
    setup = SETUPS[name]
    return SdramModel(dut, name, setup.chip, clock_hz=setup.clock_hz, burst=setup.columns,
                      lead=2 - setup.pin_cycles, seed=seed)


async def begin(dut) -> None:
    """Hold all inputs, so that a unit that is not under test sees nothing, and reset."""
    hold_inputs(dut, DUTS["all"]())
    await start(dut)


def _counters(dut, name):
    return counters_layout().from_bits(dut[f"counters_{name}"].value.to_unsigned())


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def power_up(dut):
    """Initialize all chips behind their power-up wait: the first test, as that is waited once."""
    await begin(dut)
    chips = [model(dut, name) for name in SETUPS]
    while not all(chip.initialized for chip in chips):
        await RisingEdge(dut.clk)
    for chip in chips:
        chip.stop()


@cocotb.test(timeout_time=2, timeout_unit="ms")
@cocotb.parametrize(name=list(SETUPS), stall=[0.0, 0.3])
async def keeps_what_is_written(dut, name, stall):
    """Random bursts of any length, reads and writes at once, with and without stalls."""
    await begin(dut)
    chip = model(dut, name)
    port = Port(dut, name, stall=stall, seed=len(name))
    await port.exercise(10)
    # Bits of an address above the chip's are ignored.
    if 2 ** port.setup.address_width > port.setup.size:
        burst = port.burst(30)
        await port.write(*burst)
        await port.read([(burst[0] + port.setup.size, burst[1])])
    assert chip.commands["ACTIVE"] > 20
    assert chip.columns == port.setup.columns * _counters(dut, name).transfers


@cocotb.test(timeout_time=2, timeout_unit="ms")
@cocotb.parametrize(name=["narrow", "wide"])
async def refreshes_are_in_time(dut, name):
    """Read and write without a pause; the chip checks every window of refreshes."""
    await begin(dut)
    chip = model(dut, name)
    port = Port(dut, name, seed=11)

    async def read():
        while True:
            await port.read([port.burst(256, half=0) for _ in range(10)])

    async def write():
        while True:
            await port.write(*port.burst(256, half=1))

    tasks = [cocotb.start_soon(task()) for task in (read, write)]
    cycles = 3 * port.setup.chip.cycles(port.setup.clock_hz).refresh_window // 2
    await ClockCycles(dut.clk, cycles)
    for task in tasks:
        task.cancel()
    counters = _counters(dut, name)
    assert chip.refreshes >= port.setup.chip.refresh_rows + REFRESHES
    # Two cycles pass from the controller to the chip.
    assert chip.refreshes <= counters.refreshes - 8 <= chip.refreshes + REFRESHES
    assert counters.waits < counters.cycles


async def _stream(dut, chip, name, burst, columns):
    """Read {burst} transfers at a time; return cycles as counted and as the formula says."""
    setup = SETUPS[name]
    port = Port(dut, name, seed=3)
    # Behind the first group of refreshes, so that no other one is under way.
    while chip.refreshes < REFRESHES:
        await ClockCycles(dut.clk, 1)
    await ClockCycles(dut.clk, 40)
    # From the middle of a row on; at the chip's end its first row follows.
    place = 3 * setup.row_bytes // 2
    count = -(-columns // setup.columns // burst)
    bursts = [((place + k * burst * port.bytes) % setup.size, burst) for k in range(count)]
    refreshes, rows = chip.refreshes, chip.commands["ACTIVE"] + chip.commands["PRECHARGE"]
    before = _counters(dut, name)
    await port.read(bursts)
    rows = chip.commands["ACTIVE"] + chip.commands["PRECHARGE"] - rows
    refreshes = chip.refreshes - refreshes
    after = _counters(dut, name)
    moved = after.transfers - before.transfers
    assert moved == count * burst
    taken = port.data.last_cycle - port.reads.first_cycle + 1
    groups = refreshes // REFRESHES
    # A group comes late by less than an interval.
    assert abs(taken / refresh_interval(setup.chip, setup.clock_hz, setup.port_bytes) - groups) < 2
    # Each row is opened once, and once more behind each group, which closes all at once.
    crossed = moved * setup.columns // setup.chip.columns + 1
    assert rows <= 2 * (1 + crossed + groups)
    formula = sdram_cycles(setup.chip, setup.clock_hz, moved, port_bytes=setup.port_bytes,
                           pin_cycles=setup.pin_cycles, refresh_groups=groups,
                           row_commands=rows)
    # The first data move some cycles after their read was asked for, and the last data are on
    # their way for others; whatever else the data bus does not carry is waited for.
    on_the_way = setup.chip.cas_latency + setup.pin_cycles + 6
    assert after.waits - before.waits == formula - moved * setup.columns - on_the_way
    return taken, formula, moved * setup.columns / taken


@cocotb.test(timeout_time=2, timeout_unit="ms")
@cocotb.parametrize((("name", "burst"), [
    (name, burst) for name, setup in SETUPS.items() for burst in (256, 64, 17)
    if burst >= 64 or setup.columns > 1]))
async def cycles_equal_formula(dut, name, burst):
    """Stream reads from consecutive places, refreshes included."""
    await begin(dut)
    taken, formula, _ = await _stream(dut, model(dut, name), name, burst, 4500)
    assert taken == formula


@cocotb.test(timeout_time=2, timeout_unit="ms")
@cocotb.parametrize(name=["x16", "fast"])
async def streams_use_the_bus(dut, name):
    """Bursts of 64 transfers, over four or five groups of refreshes as often as real chips'."""
    await begin(dut)
    chip = model(dut, name)
    taken, formula, share = await _stream(dut, chip, name, 64, 10_000 if name == "x16" else 17_000)
    dut._log.info(f"{name}: {100 * share:.2f} % of the bus, {chip.refreshes} refreshes")
    assert taken == formula
    assert chip.refreshes >= 4 * REFRESHES
    assert share >= 0.97
    setup = SETUPS[name]
    expected = sdram_share(setup.chip, setup.clock_hz, port_bytes=setup.port_bytes)
    # A group of refreshes more or less falls into the time.
    group = sdram_refresh_cycles(setup.chip, setup.clock_hz, port_bytes=setup.port_bytes)
    assert abs(share - expected) <= (group + 30) / taken


@cocotb.test(timeout_time=2, timeout_unit="ms")
@cocotb.parametrize(first=[1, 64, 100, 256])
async def nobody_takes_what_is_read(dut, first, name="narrow"):
    """No more is read than the queue holds, whatever comes first; writes go on; all is there."""
    await begin(dut)
    chip = model(dut, name)
    port = Port(dut, name, seed=first)
    for place in range(0, 3 * 256 * port.bytes, 256 * port.bytes):
        await port.write(place, 256)
    await ClockCycles(dut.clk, 200)             # all is in the chip
    columns = chip.columns
    bursts = [(port.bytes, first), *((64 * port.bytes * k, 64) for k in range(12))]
    asking = cocotb.start_soon(port.ask(bursts))
    await ClockCycles(dut.clk, 1500)
    read = (chip.columns - columns) // port.setup.columns
    # Another run of 64 has no room.
    assert QUEUE - READ_RUN < read <= QUEUE
    assert not asking.done()
    # A burst that pauses in its midst, again and again, does not keep refreshes waiting.
    count, refreshes, began = 200, chip.refreshes, cycle()
    port.writes = StreamSource(dut, f"port_{name}__writes", port.write_shape, stall=0.9)
    await port.write(3 * 256 * port.bytes, count)
    groups = (cycle() - began) // refresh_interval(port.setup.chip, port.setup.clock_hz,
                                                   port.bytes)
    assert groups >= 2
    assert chip.refreshes - refreshes >= (groups - 1) * REFRESHES
    await ClockCycles(dut.clk, 100)
    assert (chip.columns - columns) // port.setup.columns == read + count
    await port.take(bursts)
    await port.read([(3 * 256 * port.bytes, count)])


@cocotb.test(timeout_time=2, timeout_unit="ms")
async def reads_find_transfers_of_a_burst_that_goes_on(dut, name="x16"):
    """Read in the midst of a burst, and find the transfers that were accepted before."""
    await begin(dut)
    model(dut, name)
    port = Port(dut, name)
    for begun in (1, 5, 7, 8, 13):
        place = 64 * begun * port.bytes
        await port.write(place, 20)             # what must not be found
        await port.write(place, begun, last=False)
        reading = cocotb.start_soon(port.read([(place, begun)]))
        await ClockCycles(dut.clk, 60)
        await port.write(place + begun * port.bytes, 20 - begun)
        await reading


@cocotb.test(timeout_time=4, timeout_unit="ms")
@cocotb.parametrize(name=["x16", "narrow", "slow"])
async def resets(dut, name):
    """Reset with rows open, bursts under way and data owed; the chip keeps its power and bytes."""
    await begin(dut)
    model(dut, name)
    first = Port(dut, name)
    await first.write(0, 40)
    await first.read([(0, 40)])                 # it is in the chip

    async def use(stall, seed):
        port = Port(dut, name, stall=stall, seed=seed)
        port.contents[:] = first.contents
        port.written[:] = first.written
        row = port.setup.row_bytes
        bursts = [(row * k, count) for k, count in ((1, 17), (2, 40), (5, 3), (6, 1))]
        for burst in bursts:
            await port.write(*burst)
        await port.read([*bursts, (0, 40), *bursts[::-1]])

    await resets_in_mid_work(dut, DUTS["all"](), lambda seed: use(0.2, seed), lambda: use(0.0, 3),
                             resets=8)
