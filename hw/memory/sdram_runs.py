"""Cutting the bursts of the memory port into runs, each within a row of an SDRAM."""

from amaranth import *
from amaranth.lib import data, fifo, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for, exact_log2

from hw.memory.port import read_layout, write_layout
from hw.memory.sdram_chip import READ_RUN, WRITE_RUN, SdramChip, columns_per_transfer

__all__ = ["RunCutter", "run_layout"]


def run_layout(chip: SdramChip, port_bytes: int) -> data.StructLayout:
    """Layout of a run: ``transfers`` of one row, from ``column`` on; columns count transfers."""
    columns = chip.columns // columns_per_transfer(chip, port_bytes)
    return data.StructLayout({
        "write": 1,
        "column": exact_log2(columns),
        "bank": exact_log2(chip.banks),
        "row": exact_log2(chip.rows),
        "transfers": bits_for(READ_RUN),
    })


class RunCutter(wiring.Component):
    """Bursts of reads and of writes in, runs out, which end at multiples of their greatest length.

    A run that is written leaves when all its data are in the queue, a run that is read when there
    is room for all its data: so each can be carried out without waiting for the user of the port.
    Runs that are written go first. A read waits until every transfer that was accepted before it
    has left in a run. Consecutive rows lie in different banks: an address is row, bank, column,
    byte, from its highest bit on; bits above the chip's are ignored.

    Parameters
    ----------
    chip : SdramChip
    address_width : int
    port_bytes : int

    Members
    -------
    reads : In(stream) of :func:`hw.memory.port.read_layout`
    writes : In(stream) of :func:`hw.memory.port.write_layout`
        ``ready`` of both depends on registers only.
    room : In(1)
        There is room for the data of another read. It counts a run that was taken from the third
        cycle after that on.
    o : Out(stream) of :func:`run_layout`
    write_data : Out(8 * port_bytes)
        Data of the oldest transfer that is to be written.
    next_write : In(1)
        They are taken.
    waiting : Out(1)
        Something was accepted that has not left in a run.
    """

    reads: stream.Interface
    writes: stream.Interface
    room: Signal
    o: stream.Interface
    write_data: Signal
    next_write: Signal
    waiting: Signal

    def __init__(self, chip: SdramChip, *, address_width: int, port_bytes: int):
        self._place = data.StructLayout({
            name: field.width for name, field in run_layout(chip, port_bytes)
            if name in ("column", "bank", "row")})
        self._below = exact_log2(port_bytes)
        super().__init__({
            "reads": In(stream.Signature(read_layout(address_width))),
            "writes": In(stream.Signature(write_layout(address_width, port_bytes))),
            "room": In(1),
            "o": Out(stream.Signature(run_layout(chip, port_bytes))),
            "write_data": Out(8 * port_bytes),
            "next_write": In(1),
            "waiting": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        written, write_offered, writing = self._write(m)
        read, read_offered, reading = self._read(m)
        m.d.comb += [
            self.o.valid.eq(write_offered | (read_offered & ~writing & self.room)),
            self.o.p.eq(Mux(write_offered, written, read)),
            self.waiting.eq(reading | writing),
        ]
        taken = Signal()
        m.d.comb += taken.eq(self.o.valid & self.o.ready)
        with m.If(taken & write_offered):
            m.d.sync += write_offered.eq(0)
        with m.If(taken & ~write_offered):
            m.d.sync += read_offered.eq(0)
        return m

    def _transfer(self, address):
        """Return the place of an address in the chip, which may have more bits or fewer."""
        return Cat(address[self._below:], C(0, self._place.size))[:self._place.size]

    def _run(self, m, name, place, transfers, *, write):
        run = Signal(self.o.payload.shape(), name=name)
        m.d.comb += [run.write.eq(write), run.transfers.eq(transfers)]
        m.d.comb += [getattr(run, field).eq(getattr(place, field)) for field, _ in self._place]
        return run

    def _write(self, m):
        """Return the run that was gathered, whether it is whole, and whether anything waits."""
        writes = self.writes
        m.submodules.queue = queue = fifo.SyncFIFO(width=len(self.write_data), depth=2 * WRITE_RUN)
        count = Signal(range(WRITE_RUN))        # transfers of the run that has begun
        begin = Signal(self._place, name="write_place", reset_less=True)
        transfers = Signal(range(WRITE_RUN + 1), name="write_transfers", reset_less=True)
        offered = Signal(name="write_offered")
        place = Signal.like(begin, name="write_transfer")
        taken, closes = Signal(name="write_taken"), Signal()
        m.d.comb += [
            writes.ready.eq(queue.w_rdy & ~offered),
            taken.eq(writes.valid & writes.ready),
            place.eq(self._transfer(writes.p.address)),
            # A row has at least 32 transfers, so none holds a part of a run.
            closes.eq(writes.p.last | place.column[:exact_log2(WRITE_RUN)].all()),
            queue.w_en.eq(taken),
            queue.w_data.eq(writes.p.data),
            queue.r_en.eq(self.next_write),
            self.write_data.eq(queue.r_data),
        ]
        with m.If(taken):
            m.d.sync += [count.eq(Mux(closes, 0, count + 1)), offered.eq(closes),
                         transfers.eq(count + 1)]
            with m.If(count == 0):
                m.d.sync += begin.eq(place)
        run = self._run(m, "written", begin, transfers, write=1)
        return run, offered, offered | (count != 0)

    def _read(self, m):
        """Return the next run of the burst, whether it was cut, and whether there is a burst."""
        reads = self.reads
        block = min(READ_RUN, 2 ** len(self.o.p.column))
        place = Signal(self._place, name="read_place", reset_less=True)
        remaining = Signal.like(reads.p.transfers, reset_less=True)
        busy = Signal(name="reading")
        # A run takes two cycles to be cut: room in its block, and then the lesser of two.
        room = Signal(range(block + 1), reset_less=True)
        rest = Signal(reset_less=True)          # some of the burst lies behind the block
        looked_at, cut = Signal(), Signal()
        offered = Signal(name="read_offered")
        transfers = Signal(range(block + 1), name="read_transfers", reset_less=True)
        to_end = Signal.like(room)
        m.d.comb += [
            reads.ready.eq(~busy),
            to_end.eq(block - place.column[:exact_log2(block)]),
        ]
        m.d.sync += [
            room.eq(to_end), rest.eq(remaining > to_end),
            looked_at.eq(busy & ~looked_at & ~cut),
        ]
        with m.If(looked_at):
            m.d.sync += [cut.eq(1), offered.eq(1), transfers.eq(Mux(rest, room, remaining))]
        # Where a burst goes on, the next block begins.
        left = Signal(name="read_left")
        m.d.comb += left.eq(cut & ~offered)
        with m.If(left):
            blocks = place.as_value()[exact_log2(block):]
            m.d.sync += [
                cut.eq(0), busy.eq(rest), remaining.eq(remaining - room),
                place.eq(Cat(C(0, exact_log2(block)), blocks + 1)),
            ]
        with m.If(reads.valid & reads.ready):
            m.d.sync += [busy.eq(1), place.eq(self._transfer(reads.p.address)),
                         remaining.eq(reads.p.transfers)]
        run = self._run(m, "read", place, transfers, write=0)
        return run, offered, busy
