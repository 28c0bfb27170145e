# Ref: ISSI, "IS42S16160G data sheet"; Winbond, "W9825G6KH data sheet"; Alliance Memory, "AS4C32M16"

"""SDR SDRAM chips as plain data. The host and the table of boards read it too."""

import dataclasses

from hw.check import one_of, positive_int

__all__ = ["READ_RUN", "REFRESHES", "WRITE_RUN", "SdramChip", "SdramCycles",
           "columns_per_transfer", "refresh_interval"]

#: Transfers of the longest run that the controller reads, and of the longest that it writes. The
#: first bounds how long a refresh waits, the second is what is gathered before it is written.
READ_RUN, WRITE_RUN = 64, 8

#: AUTO REFRESH commands that follow one another: the rows are closed and opened again once for all.
REFRESHES = 4

_BANKS = 4

#: Fastest clock at CAS latency 2 of every speed grade.
_LATENCY_2_HZ = 100_000_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class SdramCycles:
    """Timings of a chip in whole clock cycles; between two commands unless it says otherwise.

    Attributes
    ----------
    t_rp : int
        PRECHARGE to ACTIVE or AUTO REFRESH.
    t_rcd : int
        ACTIVE to READ or WRITE of the same bank.
    t_wr : int
        Last data written to PRECHARGE; at least 2.
    t_rfc : int
        AUTO REFRESH to AUTO REFRESH or ACTIVE.
    t_ras : int
        ACTIVE to PRECHARGE of the same bank.
    t_rc : int
        ACTIVE to ACTIVE of the same bank.
    t_rrd : int
        ACTIVE to ACTIVE of another bank.
    t_mrd : int
        LOAD MODE REGISTER to anything.
    power_up : int
        Power-up to the first command.
    refresh_window : int
        Cycles in which all rows must be refreshed; rounded down, the others are rounded up.
    """

    t_rp: int
    t_rcd: int
    t_wr: int
    t_rfc: int
    t_ras: int
    t_rc: int
    t_rrd: int
    t_mrd: int
    power_up: int
    refresh_window: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class SdramChip:
    """Geometry and timings of a chip with four banks.

    The timings by default are the worst of the chips that boards carry: IS42S16160G, W9825G6KH,
    AS4C16M16, MT48LC16M16 (512 columns) and AS4C32M16 (1,024).

    Attributes
    ----------
    data_bits : int
        Width of the data bus: 16 or 32.
    rows : int
        Rows of a bank, a power of two.
    columns : int
        Columns of a row: 256, 512 or 1,024.
    cas_latency : int
        2 or 3; 2 permits a clock of at most 100 MHz.
    max_clock_hz : int
        Fastest clock of the speed grade, at CAS latency 3: 133 or 143 MHz as a rule.
    t_rp_ns, t_rcd_ns, t_wr_ns, t_rfc_ns, t_ras_ns, t_rc_ns, t_rrd_ns : int
        As in :class:`SdramCycles`.
    t_mrd_cycles : int
    refresh_rows, refresh_us : int
        So many AUTO REFRESH commands are due in so long, whenever it begins.
    power_up_us : int

    Raises
    ------
    ValueError
        If a field is not a positive integer, or not one of those that chips have.
    """

    data_bits: int = 16
    rows: int = 8192
    columns: int = 512
    cas_latency: int = 2
    max_clock_hz: int = 143_000_000
    t_rp_ns: int = 20
    t_rcd_ns: int = 20
    t_wr_ns: int = 20
    t_rfc_ns: int = 70
    t_ras_ns: int = 45
    t_rc_ns: int = 65
    t_rrd_ns: int = 15
    t_mrd_cycles: int = 2
    refresh_rows: int = 8192
    refresh_us: int = 64_000
    power_up_us: int = 200

    def __post_init__(self):
        for field in dataclasses.fields(self):
            positive_int(f"SDRAM field {field.name}", getattr(self, field.name))
        one_of("SDRAM data width", self.data_bits, (16, 32))
        one_of("SDRAM column count", self.columns, (256, 512, 1024))
        one_of("CAS latency", self.cas_latency, (2, 3))
        if self.rows & (self.rows - 1):
            raise ValueError(f"SDRAM row count must be a power of two, not {self.rows}")

    @property
    def banks(self) -> int:
        """Banks of the chip."""
        return _BANKS

    @property
    def column_bytes(self) -> int:
        """Bytes of a column: the width of the data bus."""
        return self.data_bits // 8

    @property
    def memory_bytes(self) -> int:
        """Bytes of the whole chip."""
        return self.banks * self.rows * self.columns * self.column_bytes

    @property
    def address_bits(self) -> int:
        """Address pins beside those of the bank; A10 is one of them."""
        return max(11, (self.rows - 1).bit_length())

    def cycles(self, clock_hz: int) -> SdramCycles:
        """Turn the timings into whole cycles of a clock.

        Parameters
        ----------
        clock_hz : int

        Raises
        ------
        ValueError
            If the chip cannot run at this clock with its CAS latency.
        """
        positive_int("SDRAM clock", clock_hz)
        most = self.max_clock_hz
        if self.cas_latency == 2:
            most = min(most, _LATENCY_2_HZ)
        if clock_hz > most:
            hint = "; use CAS latency 3" if clock_hz <= self.max_clock_hz else ""
            raise ValueError(f"SDRAM clock must be at most {most} Hz at CAS latency "
                             f"{self.cas_latency}, not {clock_hz}{hint}")

        def up(nanoseconds: int) -> int:
            return -(-nanoseconds * clock_hz // 10**9)

        return SdramCycles(
            t_rp=up(self.t_rp_ns), t_rcd=up(self.t_rcd_ns), t_wr=max(2, up(self.t_wr_ns)),
            t_rfc=up(self.t_rfc_ns), t_ras=up(self.t_ras_ns), t_rc=up(self.t_rc_ns),
            t_rrd=up(self.t_rrd_ns), t_mrd=self.t_mrd_cycles,
            power_up=up(1000 * self.power_up_us),
            refresh_window=self.refresh_us * clock_hz // 10**6)


def columns_per_transfer(chip: SdramChip, port_bytes: int) -> int:
    """Columns of a transfer of the memory port, which are a burst of the chip.

    Raises
    ------
    ValueError
        If the chip has no burst of that length.
    """
    if port_bytes not in (chip.column_bytes * length for length in (1, 2, 4, 8)):
        raise ValueError(f"Port byte count must be 1, 2, 4 or 8 times the SDRAM's "
                         f"{chip.column_bytes}, not {port_bytes}")
    return port_bytes // chip.column_bytes


def refresh_interval(chip: SdramChip, clock_hz: int, port_bytes: int) -> int:
    """Cycles from one group of :data:`REFRESHES` refreshes to the next.

    A group waits for at most three runs and for the opening of a row, so that two of them may be
    so much farther apart; all groups of a window together are still in time.

    Raises
    ------
    ValueError
        If no time is left between the groups.
    """
    cycles = chip.cycles(clock_hz)
    columns = columns_per_transfer(chip, port_bytes)
    group = cycles.t_rp + REFRESHES * cycles.t_rfc
    # 64 cycles: from stage to stage, and from a read to a write or back.
    delay = (3 * min(READ_RUN * columns, chip.columns) + group + cycles.t_ras + cycles.t_rc
             + cycles.t_rcd + cycles.t_wr + cycles.t_rrd + 64)
    groups = -(-chip.refresh_rows // REFRESHES)
    interval = (cycles.refresh_window - delay) // groups
    if interval <= delay:
        raise ValueError(f"SDRAM clock must be faster than {clock_hz} Hz to refresh "
                         f"{chip.refresh_rows} rows in {chip.refresh_us} us")
    return interval
