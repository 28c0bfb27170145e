# amaranth: UnusedElaboratable=no

import pytest
from amaranth import *
from amaranth.lib import io, wiring

from hw.boards.sdram_pins import SdramClock, SdramPins
from hw.memory.sdram import SdramController
from hw.memory.sdram_chip import REFRESHES, SdramChip, columns_per_transfer, refresh_interval
from sim.timing.units import sdram_cycles, sdram_refresh_cycles, sdram_share

CHIP = SdramChip()
FAST = SdramChip(cas_latency=3)


def test_timings_are_rounded_to_whole_cycles():
    cycles = CHIP.cycles(80_000_000)            # of 12.5 ns
    assert (cycles.t_rp, cycles.t_rcd, cycles.t_wr, cycles.t_rfc) == (2, 2, 2, 6)
    assert (cycles.t_ras, cycles.t_rc, cycles.t_rrd, cycles.t_mrd) == (4, 6, 2, 2)
    assert (cycles.power_up, cycles.refresh_window) == (16_000, 5_120_000)
    cycles = FAST.cycles(133_000_000)           # of 7.52 ns
    assert (cycles.t_rp, cycles.t_rcd, cycles.t_wr, cycles.t_rfc) == (3, 3, 3, 10)
    assert (cycles.t_ras, cycles.t_rc, cycles.t_rrd) == (6, 9, 2)
    # A clock of which they are multiples; a slow one, on which a write still takes two.
    assert CHIP.cycles(100_000_000).t_rp == 2
    assert CHIP.cycles(1_000_000).t_wr == 2
    assert CHIP.cycles(1_000_000).t_rfc == 1


def test_geometry():
    assert CHIP.memory_bytes == 32 * 2**20
    assert SdramChip(columns=1024).memory_bytes == 64 * 2**20
    assert SdramChip(data_bits=32, rows=2048, columns=256).memory_bytes == 8 * 2**20
    assert (CHIP.address_bits, SdramChip(rows=2048).address_bits) == (13, 11)
    assert [columns_per_transfer(CHIP, size) for size in (2, 4, 8, 16)] == [1, 2, 4, 8]


def test_all_rows_are_refreshed_in_time():
    for chip, clock_hz in ((CHIP, 80_000_000), (FAST, 133_000_000)):
        interval = refresh_interval(chip, clock_hz, 4)
        groups = chip.refresh_rows // REFRESHES
        longest = 3 * 64 * 2                    # runs that a group may wait for
        assert groups * interval + longest < 0.064 * clock_hz
        assert groups * interval > 0.999 * 0.064 * clock_hz


def test_streams_use_the_bus():
    assert 0.98 < sdram_share(CHIP, 80_000_000, port_bytes=4) < 0.99
    assert 0.98 < sdram_share(FAST, 133_000_000, port_bytes=4) < 0.99
    # One refresh: rows closed (2), four refreshes of 6, a row opened and its first data.
    assert sdram_refresh_cycles(CHIP, 80_000_000, port_bytes=4) == 2 + 4 * 6 + 3
    assert (sdram_cycles(CHIP, 80_000_000, 100, port_bytes=4, refresh_groups=1)
            - sdram_cycles(CHIP, 80_000_000, 100, port_bytes=4)) == 29


@pytest.mark.parametrize(("fields", "message"), [
    ({"data_bits": 8}, "SDRAM data width must be one of 16, 32, not 8"),
    ({"columns": 500}, "SDRAM column count must be one of 256, 512, 1024, not 500"),
    ({"cas_latency": 1}, "CAS latency must be one of 2, 3, not 1"),
    ({"rows": 5000}, "SDRAM row count must be a power of two, not 5000"),
    ({"t_rp_ns": 0}, "SDRAM field t_rp_ns must be a positive integer, not 0"),
    ({"t_rcd_ns": 17.5}, "SDRAM field t_rcd_ns must be a positive integer, not 17.5"),
])
def test_chips_are_checked(fields, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        SdramChip(**fields)


@pytest.mark.parametrize(("chip", "clock_hz", "message"), [
    (CHIP, 100_000_001, "SDRAM clock must be at most 100000000 Hz at CAS latency 2, not 100000001; "
                        "use CAS latency 3"),
    (CHIP, 150_000_000, "SDRAM clock must be at most 100000000 Hz at CAS latency 2, not 150000000"),
    (FAST, 150_000_000, "SDRAM clock must be at most 143000000 Hz at CAS latency 3, not 150000000"),
    (SdramChip(cas_latency=3, max_clock_hz=133_000_000), 143_000_000,
     "SDRAM clock must be at most 133000000 Hz at CAS latency 3, not 143000000"),
    (CHIP, 0, "SDRAM clock must be a positive integer, not 0"),
])
def test_clocks_are_checked(chip, clock_hz, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        chip.cycles(clock_hz)


@pytest.mark.parametrize(("arguments", "message"), [
    ({"port_bytes": 3}, "Port byte count must be a power of two, not 3"),
    ({"port_bytes": 1}, "Port byte count must be 1, 2, 4 or 8 times the SDRAM's 2, not 1"),
    ({"port_bytes": 32}, "Port byte count must be 1, 2, 4 or 8 times the SDRAM's 2, not 32"),
    ({"clock_hz": 133_000_000}, "SDRAM clock must be at most 100000000 Hz at CAS latency 2, not "
                                "133000000; use CAS latency 3"),
    ({"clock_hz": 5_000_000}, "SDRAM clock must be faster than 5000000 Hz to refresh 8192 rows in "
                              "64000 us"),
    ({"address_width": 0}, "Address width must be a positive integer, not 0"),
    ({"pin_cycles": 0}, "Pin cycle count must be a positive integer, not 0"),
    ({"target": "asic"}, "Target must be one of 'generic', 'ecp5', not 'asic'"),
])
def test_controllers_are_checked(arguments, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        SdramController(**{"chip": CHIP, "clock_hz": 80_000_000, "address_width": 25,
                           "port_bytes": 4, "target": "generic"} | arguments)


class _Resource:
    def __init__(self, *, a: int, dq: int):
        self.a = io.SimulationPort("o", a)
        self.dq = io.SimulationPort("io", dq)


@pytest.mark.parametrize(("widths", "message"), [
    ({"a": 13, "dq": 32}, "SDRAM data pins must be 16, not 32"),
    ({"a": 12, "dq": 16}, "SDRAM address pins must be at least 13, not 12"),
])
def test_pins_are_checked(widths, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        SdramPins(chip=CHIP, resource=_Resource(**widths))


class _Top(Elaboratable):
    def elaborate(self, platform):
        m = Module()
        resource = platform.request("sdram", 0, dir="-")
        m.submodules.controller = controller = SdramController(
            chip=CHIP, clock_hz=25_000_000, address_width=25, port_bytes=4, target="ecp5")
        m.submodules.pins = pins = SdramPins(chip=CHIP, resource=resource)
        m.submodules.clock = SdramClock(resource=resource)
        wiring.connect(m, controller.pins, pins.pins)
        return m


def test_pins_of_a_board_are_registers_of_its_cells():
    ulx3s = pytest.importorskip("amaranth_boards.ulx3s")
    platform = ulx3s.ULX3S_85F_Platform()
    text = platform.prepare(_Top(), do_program=False).files["top.il"]
    text = text if isinstance(text, str) else text.decode()
    # Command, address, bank, mask, clock enable: each with its output enable, as has the clock.
    outputs = 4 + 13 + 2 + 2 + 1
    assert text.count("cell \\OFS1P3DX") == 2 * (outputs + 16) + 1
    assert text.count("cell \\IFS1P3DX") == 16
    assert text.count("cell \\ODDRX1F") == 1
