# Ref: ISSI, "IS42S16160G data sheet", commands, initialization and timing diagrams

"""An SDR SDRAM behind the memory port."""

from types import SimpleNamespace

from amaranth import *
from amaranth.lib import data, enum, memory, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from hw.check import one_of, positive_int
from hw.common.block_ram import BlockRam
from hw.common.stream import accepted, connect_stream
from hw.config import TARGETS
from hw.memory.port import check_port_bytes, port_signature
from hw.memory.sdram_chip import (
    READ_RUN,
    REFRESHES,
    SdramChip,
    columns_per_transfer,
    refresh_interval,
)
from hw.memory.sdram_runs import RunCutter, run_layout

__all__ = ["COUNTER_BITS", "SdramController", "counters_layout", "pins_signature"]

#: AUTO REFRESH commands of the initialization.
_INITIAL_REFRESHES = 8

#: Bits of a counter.
COUNTER_BITS = 32

#: Cycles in which nobody drives the data bus, between a read and a write: in one of them the chip
#: still lets go, the other is for a clock that reaches the chip later than the data do.
_TURNAROUND = 2

#: Transfers that the queue of data holds, a block RAM.
_QUEUE = 512


class _Command(enum.Enum, shape=unsigned(3)):
    """Pins RAS#, CAS# and WE#, in this order from the lowest bit on."""

    MODE = 0b000
    REFRESH = 0b100
    PRECHARGE = 0b010
    ACTIVE = 0b110
    WRITE = 0b001
    READ = 0b101
    NOP = 0b111


def pins_signature(chip: SdramChip) -> wiring.Signature:
    """Build the controller's side of what the pins' registers take and give."""
    return wiring.Signature({
        "cke": Out(1), "cs_n": Out(1), "ras_n": Out(1), "cas_n": Out(1), "we_n": Out(1),
        "ba": Out(exact_log2(chip.banks)), "a": Out(chip.address_bits),
        "dqm": Out(chip.column_bytes),
        "dq_o": Out(chip.data_bits), "dq_oe": Out(1), "dq_i": In(chip.data_bits),
    })


def counters_layout() -> data.StructLayout:
    """Layout of the counters, which wrap around: their differences are what counts.

    ``cycles`` of the clock; ``transfers`` that were read from the chip or written to it; ``waits``,
    cycles in which a read or a write was under way and the data bus carried none of its data;
    ``refreshes`` of a row of each bank.
    """
    names = ("cycles", "transfers", "waits", "refreshes")
    return data.StructLayout(dict.fromkeys(names, COUNTER_BITS))


class SdramController(wiring.Component):
    """A memory of SDR SDRAM, for streams of reads and writes.

    A transfer is a burst of the chip, of 1 to 8 columns. An address is row, bank, column, byte from
    its highest bit on, so that consecutive rows lie in different banks; bits above the chip's are
    ignored. The contents are undefined until they are written. There are no errors.

    **Scheduling.** The port's bursts are cut into runs of one row
    (:class:`hw.memory.sdram_runs.RunCutter`). Three stages hold a run each: the first has its row
    opened, the second waits, and the third moves a transfer every burst of the chip. While it does,
    the free command slots close and open the rows of the runs behind; with transfers of one column
    there is no free slot, and each such command takes one. A row stays open until another one
    of its bank is asked for, or a refresh is due.

    **Refresh.** Every :func:`hw.memory.sdram_chip.refresh_interval` cycles no more runs are begun;
    behind those under way all rows are closed, four rows of each bank are refreshed, and work goes
    on.

    **Reset.** The chip may be in any state, with power. It is initialized again: all rows closed, 8
    refreshes, mode register, and before that the power-up wait unless the chip was initialized
    since configuration. What it holds stays, but for the burst that was being written.

    **Reads.** No run is read without room for its data, so the chip is never asked for what nobody
    takes: the port may keep its data waiting for any time, and writes go on meanwhile.

    Cycles: :func:`sim.timing.units.sdram_cycles`.

    Parameters
    ----------
    chip : SdramChip
    clock_hz : int
        Of the component and of the chip.
    address_width : int
        Bits of an address at the port.
    port_bytes : int
        Bytes of a transfer, a power of two: 1, 2, 4 or 8 times the chip's width.
    target : str
        One of :data:`hw.config.TARGETS`.
    pin_cycles : int
        Cycles from a command on ``pins`` to the chip, and of its data back to ``pins.dq_i``, beside
        the CAS latency: 2 with a register each way and a clock that is inverted at the chip.

    Members
    -------
    port : In of :func:`hw.memory.port.port_signature`
        Everything that leaves depends on registers only.
    pins : Out of :func:`pins_signature`
        All outputs are registers; ``dq_i`` goes into registers.
    counters : Out of :func:`counters_layout`
    refreshing : Out(1)
        A row of each bank is refreshed.

    Raises
    ------
    ValueError
        If the chip has no burst as long as a transfer, cannot run at this clock, or has no time for
        its refreshes, or if a number is not positive.
    """

    port: wiring.PureInterface
    pins: wiring.PureInterface
    refreshing: Signal

    def __init__(self, *, chip: SdramChip, clock_hz: int, address_width: int, port_bytes: int,
                 target: str, pin_cycles: int = 2):
        self.chip = chip
        self.port_bytes = check_port_bytes(port_bytes)
        one_of("Target", target, TARGETS)
        self.target = target
        self.columns = columns_per_transfer(chip, port_bytes)
        self.cycles = chip.cycles(clock_hz)
        self.pin_cycles = positive_int("Pin cycle count", pin_cycles)
        self._interval = refresh_interval(chip, clock_hz, port_bytes)
        self._address_width = positive_int("Address width", address_width)
        super().__init__({
            "port": In(port_signature(address_width=address_width, port_bytes=port_bytes)),
            "pins": Out(pins_signature(chip)),
            "counters": Out(counters_layout()),
            "refreshing": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.cutter = cutter = RunCutter(
            self.chip, address_width=self._address_width, port_bytes=self.port_bytes)
        connect_stream(m, wiring.flipped(self.port.reads), cutter.reads)
        connect_stream(m, wiring.flipped(self.port.writes), cutter.writes)
        m.submodules.queue = queue = _DataQueue(width=8 * self.port_bytes, target=self.target)
        connect_stream(m, queue.o, wiring.flipped(self.port.data))
        m.d.comb += [
            cutter.room.eq(queue.room),
            queue.reserve.eq(accepted(cutter.o) & ~cutter.o.p.write),
            queue.transfers.eq(cutter.o.p.transfers),
        ]
        banks = self._banks(m)
        opener = self._open(m, cutter.o, banks)
        streamer = self._stream(m, opener, banks)
        maintenance = self._maintain(m, opener, streamer, banks)
        self._command(m, opener, streamer, maintenance)
        self._move(m, streamer, cutter, queue)
        self._count(m, cutter, opener, streamer, maintenance)
        m.d.sync += self.refreshing.eq(maintenance.refresh)
        return m

    def _banks(self, m):
        """Which rows are open, and for how long each bank may not be closed yet."""
        t, columns = self.cycles, self.columns
        # From a command to the PRECHARGE of its bank. What is left of t_ras behind the first READ
        # or WRITE is at most that behind t_rcd. Two cycles pass anyway.
        since_active = max(t.t_ras, t.t_rc - t.t_rp)
        since_read = max(columns, since_active - t.t_rcd)
        since_write = max(columns - 1 + t.t_wr, since_active - t.t_rcd)
        holds = [max(0, cycles - 2) for cycles in (since_active, since_read, since_write)]
        banks = SimpleNamespace(
            open=Signal(self.chip.banks, name="open"),
            held=Signal(self.chip.banks, name="held"),
            activated=Signal(self.chip.banks, name="activated"),    # these three: one at most
            read=Signal(self.chip.banks, name="read_bank"),
            written=Signal(self.chip.banks, name="written_bank"))
        for bank in range(self.chip.banks):
            hold = Signal(range(max(holds) + 1), name=f"hold_{bank}")
            m.d.comb += banks.held[bank].eq(hold.any())
            for event, cycles in zip((banks.activated, banks.read, banks.written), holds,
                                     strict=True):
                with m.If(event[bank]):
                    m.d.sync += hold.eq(cycles)
            with m.If(hold.any() & ~(banks.activated | banks.read | banks.written)[bank]):
                m.d.sync += hold.eq(hold - 1)
        return banks

    def _open(self, m, runs, banks):
        """First stage: opens the row of a run. Second stage: the run waits."""
        t = self.cycles
        shape = run_layout(self.chip, self.port_bytes)
        m.submodules.rows = rows = memory.Memory(shape=len(runs.p.row), depth=self.chip.banks,
                                                 init=[], attrs={"ram_style": "distributed"})
        read_port, write_port = rows.read_port(domain="comb"), rows.write_port()
        opener = SimpleNamespace(
            run=Signal(shape, name="opening", reset_less=True),     # first stage
            next=Signal(shape, name="next", reset_less=True),       # second stage
            next_valid=Signal(name="next_valid"),
            next_taken=Signal(name="next_taken"),
            used=Signal(name="used"),           # a run ahead is of the first stage's bank
            pause=Signal(name="pause", init=1),  # no run is begun
            parked=Signal(name="parked"),       # the first stage is empty
            request=Signal(name="open_request"),
            precharge=Signal(name="precharge"),
            grant=Signal(name="open_grant"))
        run = opener.run
        row = Signal(len(run.row), reset_less=True)     # that is open in the run's bank
        is_open = Signal(reset_less=True)
        bank = Signal(self.chip.banks)          # of the run, one bit for each
        # From an ACTIVE two cycles pass to the second stage and to the third, and four to the next.
        opened = max(0, t.t_rcd - 3, t.t_rrd - 4)
        timer = Signal(range(max(t.t_rp, opened + 1)))
        m.d.comb += [
            bank.eq(1 << run.bank),
            read_port.addr.eq(runs.p.bank),
            write_port.addr.eq(run.bank),
            write_port.data.eq(run.row),
            write_port.en.eq(opener.grant & ~opener.precharge),
            banks.activated.eq(Mux(write_port.en, bank, 0)),
        ]
        with m.If(timer != 0):
            m.d.sync += timer.eq(timer - 1)
        with m.If(opener.next_taken):
            m.d.sync += opener.next_valid.eq(0)
        with m.FSM():
            with m.State("EMPTY"):
                m.d.comb += [opener.parked.eq(1), runs.ready.eq(~opener.pause)]
                m.d.sync += [run.eq(runs.p), row.eq(read_port.data),
                             is_open.eq((banks.open & (1 << runs.p.bank)).any())]
                with m.If(accepted(runs)):
                    m.next = "COMPARE"
            with m.State("COMPARE"):
                with m.If(~is_open):
                    m.next = "ACTIVE"
                with m.Elif(row == run.row):
                    m.next = "OPEN"
                with m.Else():
                    m.next = "OTHER"
            with m.State("OTHER"):              # another row is open
                with m.If(~opener.used & ~(banks.held & bank).any()):
                    m.next = "PRECHARGE"
            with m.State("PRECHARGE"):
                m.d.comb += [opener.request.eq(1), opener.precharge.eq(1)]
                with m.If(opener.grant):
                    m.d.sync += [banks.open.eq(banks.open & ~bank), timer.eq(t.t_rp - 1)]
                    m.next = "ACTIVE"
            with m.State("ACTIVE"):
                m.d.comb += opener.request.eq(timer == 0)
                with m.If(opener.grant):
                    m.d.sync += [banks.open.eq(banks.open | bank), timer.eq(opened)]
                    m.next = "OPEN"
            with m.State("OPEN"):
                with m.If((timer == 0) & ~opener.next_valid):
                    m.d.sync += [opener.next.eq(run), opener.next_valid.eq(1)]
                    m.next = "EMPTY"
        return opener

    def _stream(self, m, opener, banks):
        """Third stage: a READ or WRITE for each transfer of a run."""
        streamer = SimpleNamespace(
            run=Signal.like(opener.run, name="streamed", reset_less=True),
            busy=Signal(name="streaming"),
            slot=Signal(range(self.columns), name="slot"),  # columns that are left of the transfer
            issue=Signal(name="issue"), read=Signal(name="read"), write=Signal(name="write"))
        run = streamer.run
        last = Signal(name="last_transfer", reset_less=True)
        # From a READ to a WRITE: CAS latency, data, and the cycles in which nobody drives the bus.
        turn_cycles = self.chip.cas_latency + self.columns + _TURNAROUND
        turn = Signal(range(turn_cycles))
        turning = Signal()                      # turn is not 0
        load = Signal()
        # With transfers of one column no command slot is free: the first stage's commands go first.
        blocked = opener.request if self.columns == 1 else C(0)
        m.d.comb += [
            streamer.issue.eq(streamer.busy & (streamer.slot == 0) & ~blocked
                              & ~(run.write & turning)),
            load.eq(opener.next_valid & (~streamer.busy | (streamer.issue & last))),
            opener.next_taken.eq(load),
            opener.used.eq((streamer.busy & (run.bank == opener.run.bank))
                           | (opener.next_valid & (opener.next.bank == opener.run.bank))),
            opener.grant.eq(opener.request & ~streamer.issue),
            streamer.read.eq(streamer.issue & ~run.write),
            streamer.write.eq(streamer.issue & run.write),
            banks.read.eq(Mux(streamer.read, 1 << run.bank, 0)),
            banks.written.eq(Mux(streamer.write, 1 << run.bank, 0)),
        ]
        with m.If(turning):
            m.d.sync += [turn.eq(turn - 1), turning.eq(turn != 1)]
        with m.If(streamer.read):
            m.d.sync += [turn.eq(turn_cycles - 1), turning.eq(1)]
        with m.If(streamer.slot != 0):
            m.d.sync += streamer.slot.eq(streamer.slot - 1)
        with m.If(streamer.issue):
            m.d.sync += [
                streamer.slot.eq(self.columns - 1),
                run.column.eq(run.column + 1),
                run.transfers.eq(run.transfers - 1),
                last.eq(run.transfers == 2),
                streamer.busy.eq(~last),
            ]
        with m.If(load):
            m.d.sync += [run.eq(opener.next), last.eq(opener.next.transfers == 1),
                         streamer.busy.eq(1)]
        return streamer

    def _maintain(self, m, opener, streamer, banks):
        """Initialize the chip, and refresh it when that is due."""
        t = self.cycles
        maintenance = SimpleNamespace(
            request=Signal(name="maintenance_request"),
            command=Signal(_Command, name="maintenance_command"),
            refresh=Signal(name="refresh"),
            initialized=Signal(name="initialized"))
        # From the end of a pause two cycles pass to COMPARE, one more to an ACTIVE.
        refreshed, loaded = max(0, t.t_rfc - 4), max(0, t.t_mrd - 4)
        timer = Signal(range(max(t.power_up, t.t_rp, t.t_rfc, t.t_mrd)), name="maintenance_timer",
                       init=t.power_up - 1)
        remaining = Signal(range(_INITIAL_REFRESHES), init=_INITIAL_REFRESHES - 1)
        # A reset finds the chip with power: rows must not wait for their refresh through another
        # power-up wait. What was under way at the reset ends before the first command.
        powered = Signal(reset_less=True)
        settled = max(t.t_ras, t.t_rc, t.t_rp, t.t_rfc, t.t_mrd, self.columns + t.t_wr) + 2
        over = Signal(init=int(t.power_up == 1))    # the timer is 0
        due = Signal(range(self._interval), init=self._interval - 1)

        def wait(cycles):
            return [timer.eq(cycles), over.eq(int(cycles == 0))]

        with m.If(~over):
            m.d.sync += [timer.eq(timer - 1), over.eq(timer == 1)]
        m.d.sync += due.eq(due - 1)
        with m.If(due == 0):
            m.d.sync += [due.eq(self._interval - 1), opener.pause.eq(1)]
        with m.FSM():
            with m.State("POWER_UP"):
                with m.If(over | (powered & (timer == max(0, t.power_up - 1 - settled)))):
                    m.next = "PRECHARGE"
            with m.State("WORK"):
                m.d.sync += remaining.eq(REFRESHES - 1)
                with m.If(opener.pause & opener.parked & ~opener.next_valid & ~streamer.busy
                          & ~banks.held.any()):
                    m.next = "PRECHARGE"
            with m.State("PRECHARGE"):
                m.d.comb += [maintenance.request.eq(1),
                             maintenance.command.eq(_Command.PRECHARGE)]
                m.d.sync += [banks.open.eq(0), *wait(t.t_rp - 1)]
                m.next = "REFRESH"
            with m.State("REFRESH"):
                m.d.comb += [maintenance.request.eq(over), maintenance.refresh.eq(over),
                             maintenance.command.eq(_Command.REFRESH)]
                with m.If(over):
                    m.d.sync += [remaining.eq(remaining - 1), *wait(t.t_rfc - 1)]
                    with m.If(remaining == 0):
                        with m.If(maintenance.initialized):
                            m.d.sync += wait(refreshed)
                            m.next = "END"
                        with m.Else():
                            m.next = "MODE"
            with m.State("MODE"):
                m.d.comb += [maintenance.request.eq(over),
                             maintenance.command.eq(_Command.MODE)]
                with m.If(over):
                    m.d.sync += wait(loaded)
                    m.next = "END"
            with m.State("END"):
                with m.If(over):
                    m.d.sync += [opener.pause.eq(0), maintenance.initialized.eq(1), powered.eq(1)]
                    m.next = "WORK"
        return maintenance

    def _command(self, m, opener, streamer, maintenance):
        """Set the registers of the command pins; at most one of the three has a command."""
        pins, columns = self.pins, self.columns
        command = Signal(_Command, init=_Command.NOP)
        nothing, masked = Signal(init=1), Signal(init=1)
        column = Cat(C(0, exact_log2(columns)), streamer.run.column)
        all_banks = 1 << 10                     # A10
        mode = exact_log2(columns) | self.chip.cas_latency << 4
        m.d.comb += [
            # A reset that dropped CKE would stop the chip's clock in the midst of a burst.
            pins.cke.eq(1),
            pins.cs_n.eq(nothing),
            Cat(pins.ras_n, pins.cas_n, pins.we_n).eq(command),
            pins.dqm.eq(masked.replicate(len(pins.dqm))),
        ]
        m.d.sync += [
            nothing.eq(~(streamer.issue | opener.request | maintenance.request)),
            # A burst that a reset has cut off goes on in the chip.
            masked.eq(~maintenance.initialized),
        ]
        with m.If(streamer.issue):
            m.d.sync += [
                command.eq(Mux(streamer.run.write, _Command.WRITE, _Command.READ)),
                pins.ba.eq(streamer.run.bank), pins.a.eq(column),
            ]
        with m.Elif(maintenance.request):
            m.d.sync += [
                command.eq(maintenance.command), pins.ba.eq(0),
                pins.a.eq(Mux(maintenance.command == _Command.PRECHARGE, all_banks, mode)),
            ]
        with m.Else():
            m.d.sync += [
                command.eq(Mux(opener.precharge, _Command.PRECHARGE, _Command.ACTIVE)),
                pins.ba.eq(opener.run.bank), pins.a.eq(opener.run.row),
            ]
            with m.If(opener.precharge):
                m.d.sync += pins.a[10].eq(0)    # of this bank alone

    def _move(self, m, streamer, cutter, queue):
        """Move data of writes to the pins, and of reads from them to the queue."""
        pins, width, columns = self.pins, self.chip.data_bits, self.columns
        word = Signal(8 * self.port_bytes, name="written_word", reset_less=True)
        m.d.comb += [pins.dq_o.eq(word[:width]), cutter.next_write.eq(streamer.write)]
        m.d.sync += word.eq(word >> width)
        with m.If(streamer.slot == 0):
            m.d.sync += pins.dq_oe.eq(streamer.write)
        with m.If(streamer.write):
            m.d.sync += word.eq(cutter.write_data)

        # From a READ its command's register, the pins, the CAS latency and the other columns.
        coming = Signal(1 + self.pin_cycles + self.chip.cas_latency + columns)
        read_word = Signal(8 * self.port_bytes, reset_less=True)
        m.d.sync += [coming.eq(Cat(streamer.read, coming)),
                     read_word.eq(Cat(read_word, pins.dq_i)[width:])]
        m.d.comb += [queue.write.eq(coming[-1]), queue.data.eq(read_word)]

    def _count(self, m, cutter, opener, streamer, maintenance):
        """Count what happened, a cycle later."""
        events = Signal(4)
        m.d.sync += events.eq(Cat(
            1, streamer.issue,
            (cutter.waiting | ~opener.parked | opener.next_valid | streamer.busy)
            & ~(streamer.issue | (streamer.slot != 0)),
            maintenance.refresh))
        for event, name in zip(events, counters_layout().members, strict=True):
            counter = getattr(self.counters, name)
            m.d.sync += counter.eq(counter + event)


class _DataQueue(wiring.Component):
    """A queue in block RAM for what is read; a run's places are reserved before it is begun."""

    reserve: Signal     # places for so many transfers
    transfers: Signal
    room: Signal        # for another run, three cycles after a reservation
    data: Signal
    write: Signal
    o: stream.Interface

    def __init__(self, *, width: int, target: str):
        self._target = target
        super().__init__({
            "reserve": In(1), "transfers": In(range(READ_RUN + 1)), "room": Out(1),
            "data": In(width), "write": In(1),
            "o": Out(stream.Signature(data.StructLayout({"data": width}))),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.ram = ram = BlockRam(width=len(self.data), depth=_QUEUE, target=self._target)
        free = Signal(range(_QUEUE + 1), init=_QUEUE)
        returned = Signal()
        reserved = Signal.like(self.transfers)
        written = Signal(exact_log2(_QUEUE) + 1)    # a bit more, to tell full from empty
        fetched = Signal.like(written)
        stored = Signal()
        looked_up = Signal()                    # first stage of the RAM's read holds a transfer
        m.d.comb += [
            stored.eq(fetched != written),
            ram.write_address.eq(written),
            ram.write_data.eq(self.data),
            ram.write.eq(self.write),
            ram.write_mask.eq(1),
            ram.read_address.eq(fetched),
            ram.output_enable.eq(~self.o.valid | self.o.ready),
            ram.read_enable.eq(~looked_up | ram.output_enable),
            self.o.payload.eq(ram.read_data),
        ]
        m.d.sync += [
            returned.eq(accepted(self.o)),
            reserved.eq(Mux(self.reserve, self.transfers, 0)),
            free.eq(free + returned - reserved),
            self.room.eq(free >= READ_RUN),
            written.eq(written + self.write),
        ]
        with m.If(ram.output_enable):
            m.d.sync += self.o.valid.eq(looked_up)
        with m.If(ram.read_enable):
            m.d.sync += [looked_up.eq(stored), fetched.eq(fetched + stored)]
        return m
