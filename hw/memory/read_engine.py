"""Prefetch: what the program will need is read ahead, in its order, and queued."""

import dataclasses
import math

from amaranth import *
from amaranth.lib import data, enum, fifo, memory, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for, ceil_log2, exact_log2

from hw.common.block_ram import BlockRam
from hw.config import BURST_TRANSFERS, AcceleratorConfig
from hw.engine.gearbox import port_layout
from hw.isa import Function
from hw.legality import matrix_limits
from hw.memory.port import (
    check_port_bytes,
    read_layout,
    transfer_layout,
)

__all__ = ["ReadEngine", "Kind", "burst_transfers", "fetch_layout", "list_column_layout",
           "vector_layout"]

#: Reads that are sent and have not left the queue.
PIECE_DEPTH = 32

#: Bits of a digit in which columns are counted; a table holds a column's multiples by one digit.
_DIGIT = 4


class Kind(enum.Enum, shape=unsigned(2)):
    """What a fetch is."""

    WHOLE = 0b00            #: a matrix, for the gearbox
    COLUMNS = 0b01          #: the listed columns of a matrix, for the gearbox
    VECTOR = 0b10           #: a vector, for LOAD
    CACHE = 0b11            #: vectors of a cache, for attention; without a context as VECTOR


def _count_width(config: AcceleratorConfig) -> int:
    # A vector counts its words.
    columns = matrix_limits(config, Function.BY_COLUMN)["count"]
    return bits_for(max(columns, config.vector_depth // config.vector_lanes, config.context))


def fetch_layout(config: AcceleratorConfig) -> data.StructLayout:
    """Layout of a fetch: ``count`` columns, words or vectors of ``size`` bytes each.

    ``address`` is a multiple of ``port_bytes``. COLUMNS ignores ``count``.
    """
    engine = config.engine
    column = engine.accumulator_depth * engine.max_planes * engine.word_bytes
    if config.context:
        column = max(column, 2 * config.head_elements)
    return data.StructLayout({
        "kind": Kind,
        "address": config.address_width,
        "size": bits_for(max(column, 2 * config.vector_lanes)),
        "count": _count_width(config),
    })


def list_column_layout(config: AcceleratorConfig) -> data.StructLayout:
    """Layout of a listed column; the one behind the last has ``end``, and no index."""
    return data.StructLayout({"index": config.engine.index_width, "end": 1})


def vector_layout(config: AcceleratorConfig) -> data.StructLayout:
    """Layout of a transfer of a vector."""
    return data.StructLayout({"data": 8 * config.port_bytes, "last": 1})


def burst_transfers(config: AcceleratorConfig) -> int:
    """Transfers of the longest read: four of them fit the queue."""
    return min(BURST_TRANSFERS, max(1, config.queue_words // 4))


@dataclasses.dataclass(frozen=True, eq=False)
class _Extents:
    """Extents of bytes on their way: ``end`` is that of a list, ``flow`` lets the next one come."""

    valid: Signal
    end: Signal
    extent: Signal
    flow: Signal


class ReadEngine(wiring.Component):
    """Reads matrices, listed columns and vectors, in the order of the fetches.

    A read is sent when the queue has room for all of it; so the memory never waits for the queue.
    What is in the queue leaves in order: a vector behind a matrix waits for the matrix.

    A column begins at ``address + index * size``, which need not be the beginning of a transfer.
    There is no multiplier: 16 cycles make a table of ``size`` times each hexadecimal digit, and a
    product is a sum of entries, one column a cycle. Columns are read one by one, each with all
    transfers that it touches, and joined: the bytes before and behind are dropped.

    The next fetch is accepted when all reads of the one before it are known, though not yet sent.
    Cycles: :func:`sim.timing.units.fetch_cycles`.

    Parameters
    ----------
    config : AcceleratorConfig

    Members
    -------
    i_fetches : In(stream) of :func:`fetch_layout`
    i_columns : In(stream) of :func:`list_column_layout`
        The list of each fetch of kind COLUMNS.
    o_reads, i_data : Out(stream), In(stream)
        ``reads`` and ``data`` of :func:`hw.memory.port.port_signature`; ``i_data`` is always ready.
    o_weights : Out(stream) of :func:`hw.engine.gearbox.port_layout`
        Bytes of the products, one product after the other. ``last`` marks the last transfer of a
        matrix, and that of listed columns if there is padding behind them: without padding the
        gearbox is where it began.
    o_vector : Out(stream) of :func:`vector_layout`
        Bytes of the vectors.
    o_cache : Out(stream) of :func:`hw.memory.port.transfer_layout`
        Bytes of the vectors of caches; only with a context.

    Raises
    ------
    ValueError
        If the engine's ``port_bytes`` is not a power of two.
    """

    i_fetches: stream.Interface
    i_columns: stream.Interface
    o_reads: stream.Interface
    i_data: stream.Interface
    o_weights: stream.Interface
    o_vector: stream.Interface
    o_cache: stream.Interface

    def __init__(self, config: AcceleratorConfig):
        self.config = config
        check_port_bytes(config.port_bytes)
        super().__init__({
            "i_fetches": In(stream.Signature(fetch_layout(config))),
            "i_columns": In(stream.Signature(list_column_layout(config))),
            "o_reads": Out(stream.Signature(read_layout(config.address_width))),
            "i_data": In(stream.Signature(transfer_layout(config.port_bytes))),
            "o_weights": Out(stream.Signature(port_layout(config.engine))),
            "o_vector": Out(stream.Signature(vector_layout(config))),
        } | ({"o_cache": Out(stream.Signature(transfer_layout(config.port_bytes)))}
             if config.context else {}))
        # Bytes move in granules, the largest power of two that divides a transfer and a word.
        self._granule = math.gcd(config.port_bytes, config.engine.word_bytes)
        self._granules = config.port_bytes // self._granule

    def elaborate(self, platform):
        m = Module()
        granules = range(self._granules)
        # One read, or the end of a list: ``low`` and ``high`` are where its bytes begin in its
        # first transfer and end in its last, the latter modulo a transfer.
        piece = data.StructLayout({
            "transfers": bits_for(BURST_TRANSFERS), "low": granules, "high": granules,
            "last": 1, "end": 1, "vector": 1,
        } | ({"cache": 1} if self.config.context else {}))
        m.submodules.pieces = pieces = fifo.SyncFIFO(width=piece.size, depth=PIECE_DEPTH)
        freed = Signal()                        # a transfer has left the queue's RAM
        extent = self._extents(m)
        self._send(m, extent, pieces, piece, freed)
        self._deliver(m, pieces, piece, freed)
        return m

    def _extents(self, m):
        """Turn fetches and columns into extents of bytes: a small pipeline behind the table."""
        fetch = Signal(fetch_layout(self.config))
        digits = -(-_count_width(self.config) // _DIGIT)
        m.submodules.table = table = memory.Memory(
            shape=len(fetch.size) + _DIGIT, depth=2 ** _DIGIT, init=[])
        write_port = table.write_port()
        entry = Signal(_DIGIT)
        multiple = Signal(table.shape)
        walking = Signal()                      # else the table is written, or nothing is under way
        filling = Signal()
        by_column = Signal()
        number = Signal(_DIGIT * digits)
        end, given, flow = Signal(), Signal(), Signal()
        stages = [Signal(name=f"stage_{k}") for k in range(3)]
        ends = [Signal(name=f"end_{k}") for k in range(3)]
        m.d.comb += [
            self.i_fetches.ready.eq(~walking & ~filling & ~Cat(stages).any()),
            write_port.en.eq(filling),
            write_port.addr.eq(entry),
            write_port.data.eq(multiple),
            by_column.eq(fetch.kind == Kind.COLUMNS),
            number.eq(Mux(by_column, self.i_columns.p.index, fetch.count)),
            end.eq(by_column & self.i_columns.p.end),
            given.eq(walking & (~by_column | self.i_columns.valid)),
            self.i_columns.ready.eq(walking & by_column & flow),
        ]
        with m.If(self.i_fetches.valid & self.i_fetches.ready):
            m.d.sync += [fetch.eq(self.i_fetches.p), filling.eq(1), entry.eq(0), multiple.eq(0)]
        with m.If(filling):
            m.d.sync += [entry.eq(entry + 1), multiple.eq(multiple + fetch.size)]
            with m.If(entry.all()):
                m.d.sync += [filling.eq(0), walking.eq(1)]
        with m.If(given & flow & (end | ~by_column)):
            m.d.sync += walking.eq(0)

        # Products, added in pairs; then where the extent begins and how long it is.
        terms: list[Value] = []
        for k in range(digits):
            read_port = table.read_port(domain="comb")
            m.d.comb += read_port.addr.eq(number.word_select(k, _DIGIT))
            terms.append(read_port.data)
        pairs = []
        for k in range(0, digits, 2):
            pair = Signal(len(fetch.size) + 2 * _DIGIT, name=f"pair_{k}", reset_less=True)
            joined = terms[k] if k + 1 == digits else terms[k] + (terms[k + 1] << _DIGIT)
            with m.If(flow):
                m.d.sync += pair.eq(joined)
            pairs.append(pair)
        product = Signal(len(fetch.size) + _DIGIT * digits, reset_less=True)
        total: Value = pairs[0]
        for k, pair in enumerate(pairs[1:], start=1):
            total = total + (pair << (2 * _DIGIT * k))
        extent = Signal(data.StructLayout({
            "begin": self.config.address_width, "size": len(product), "by_column": 1, "vector": 1}
            | ({"cache": 1} if self.config.context else {})), reset_less=True)
        with m.If(flow):
            m.d.sync += [
                Cat(stages).eq(Cat(given, stages)),
                Cat(ends).eq(Cat(end, ends)),
                product.eq(total),
                extent.begin.eq(fetch.address + Mux(by_column, product, 0)),
                extent.size.eq(Mux(by_column, fetch.size, product)),
                extent.by_column.eq(by_column),
                extent.vector.eq(fetch.kind.as_value()[1]),
            ]
            if self.config.context:
                m.d.sync += extent.cache.eq(fetch.kind == Kind.CACHE)
        return _Extents(valid=stages[-1], end=ends[-1], extent=extent, flow=flow)

    def _send(self, m, extents, pieces, piece, freed):
        """Cut extents into reads of up to a burst, and send each when the queue has room for it."""
        below = exact_log2(self.config.port_bytes)
        unit = exact_log2(self._granule)
        burst = burst_transfers(self.config)
        extent = extents.extent

        held = Signal()                         # an extent that is being cut
        row = Signal(self.config.address_width - below)
        touched = Signal(len(extent.size) + 1)
        remaining = Signal(len(extent.size) + 1 - below)
        longer = Signal()                       # more remains than a burst
        first, unfinished, cut = Signal(), Signal(), Signal()
        transfers = Signal.like(remaining)           # of the extent that comes next
        rest = Signal(piece)                    # what all its pieces have in common
        taken = Signal()
        request = Signal(piece)                 # the piece that is to be sent
        ready, sent = Signal(), Signal()
        m.d.comb += [
            extents.flow.eq(~extents.valid | taken),
            touched.eq(extent.begin[:below] + extent.size),
            transfers.eq((touched + self.config.port_bytes - 1) >> below),
            unfinished.eq(longer & ~rest.end),
            cut.eq(held & (~ready | sent)),
            taken.eq(extents.valid & (~held | (cut & ~unfinished))),
        ]
        with m.If(taken):
            m.d.sync += [
                held.eq(1),
                first.eq(1),
                row.eq(extent.begin[below:]),
                remaining.eq(transfers),
                longer.eq(transfers > burst),
                rest.low.eq(extent.begin[unit:below]),
                rest.high.eq(touched[unit:below]),
                rest.last.eq(~extent.by_column),
                rest.vector.eq(extent.vector),
                rest.end.eq(extents.end),
            ]
            if self.config.context:
                m.d.sync += rest.cache.eq(extent.cache)
        with m.Elif(cut):
            m.d.sync += [held.eq(unfinished), first.eq(0), remaining.eq(remaining - burst),
                         row.eq(row + burst), longer.eq(remaining > 2 * burst)]

        # A place in the queue is taken when the read is sent, and free when its transfer leaves.
        free = Signal(range(self.config.queue_words + 1), init=self.config.queue_words)
        reads = self.o_reads
        allowed = Signal()
        with m.If(cut):
            m.d.sync += [
                ready.eq(1),
                reads.p.address.eq(Cat(C(0, below), row)),
                request.transfers.eq(Mux(rest.end, 0, Mux(unfinished, burst, remaining))),
                request.low.eq(Mux(first, rest.low, 0)),
                request.high.eq(Mux(unfinished, 0, rest.high)),
                request.last.eq(rest.last & ~unfinished),
                request.end.eq(rest.end),
                request.vector.eq(rest.vector),
            ]
            if self.config.context:
                m.d.sync += request.cache.eq(rest.cache)
        with m.Elif(sent):
            m.d.sync += ready.eq(0)
        m.d.comb += [
            allowed.eq(ready & pieces.w_rdy & (free >= request.transfers)),
            reads.valid.eq(allowed & ~request.end),
            reads.p.transfers.eq(request.transfers),
            sent.eq(allowed & (reads.ready | request.end)),
            pieces.w_en.eq(sent),
            pieces.w_data.eq(request),
        ]
        m.d.sync += free.eq(free - Mux(sent, request.transfers, 0) + freed)

    def _deliver(self, m, pieces, piece, freed):
        """Queue what comes, and deliver it piece by piece."""
        count = self._granules
        bits = 8 * self._granule
        words = self.config.queue_words
        m.submodules.queue = queue = BlockRam(width=8 * self.config.port_bytes, depth=words,
                                              target="generic")
        address = ceil_log2(words)
        written = Signal(address + 1)
        fetched = Signal(address + 1)
        looked_up, queued = Signal(), Signal()  # the two stages of the RAM's read hold a transfer
        consume = Signal()
        m.d.comb += [
            self.i_data.ready.eq(1),
            queue.write_address.eq(written[:address]),
            queue.write_data.eq(self.i_data.p.data),
            queue.write.eq(self.i_data.valid),
            queue.write_mask.eq(1),
            queue.read_address.eq(fetched[:address]),
            queue.output_enable.eq(~queued | consume),
            queue.read_enable.eq(~looked_up | queue.output_enable),
            freed.eq(queue.read_enable & (fetched != written)),
        ]
        m.d.sync += [written.eq(written + self.i_data.valid), fetched.eq(fetched + freed)]
        with m.If(queue.output_enable):
            m.d.sync += queued.eq(looked_up)
        with m.If(queue.read_enable):
            m.d.sync += looked_up.eq(fetched != written)

        # The piece that the oldest transfer belongs to.
        current = Signal(piece)
        have, first, final, done = Signal(), Signal(), Signal(), Signal()
        join, finish, move = Signal(), Signal(), Signal()
        of_cache: Value = C(0)
        attended: Value = C(0)
        if self.config.context:
            of_cache = current.cache
            attended = self.o_cache.valid & self.o_cache.ready
            m.d.comb += [
                self.o_cache.valid.eq(have & of_cache & queued),
                self.o_cache.p.data.eq(queue.read_data),
            ]
        m.d.comb += [
            final.eq(current.transfers == 1),
            move.eq(~self.o_weights.valid | self.o_weights.ready),
            join.eq(have & ~current.vector & ~current.end & queued & move),
            finish.eq(have & current.end & move),
            self.o_vector.valid.eq(have & current.vector & queued & ~of_cache),
            self.o_vector.p.data.eq(queue.read_data),
            self.o_vector.p.last.eq(final & current.last),
            consume.eq(join | (self.o_vector.valid & self.o_vector.ready) | attended),
            done.eq(finish | (consume & final)),
            pieces.r_en.eq(~have | done),
        ]
        with m.If(consume):
            m.d.sync += [current.transfers.eq(current.transfers - 1), first.eq(0)]
        with m.If(pieces.r_en):
            m.d.sync += [current.eq(pieces.r_data), have.eq(pieces.r_rdy), first.eq(1)]

        # Joining, first stage: granule k of the transfer goes to place (k + shift) % count.
        filled = Signal(range(count))           # granules of the output that are there
        low = Signal.like(current.low)
        amount = Signal(range(count + 1))
        total = Signal(range(2 * count))
        shift = Signal.like(filled)
        last = Signal()
        m.d.comb += [
            low.eq(Mux(first, current.low, 0)),
            amount.eq(Mux(final & (current.high != 0), current.high, count) - low),
            total.eq(filled + Mux(join, amount, 0)),
            shift.eq(filled - low),
            last.eq(finish | (final & current.last)),
        ]
        granules: list[Value] = [queue.read_data.word_select(k, bits) for k in range(count)]
        for level in range(ceil_log2(count)):
            granules = [Mux(shift[level], granules[(k - 2 ** level) % count], granules[k])
                        for k in range(count)]
        placed = [Signal(bits, name=f"placed_{k}", reset_less=True) for k in range(count)]
        joins, emits = Signal(), Signal()
        before = Signal.like(filled)
        is_last = Signal()
        spare = Signal.like(self.o_weights.p.spare)
        with m.If(move):
            m.d.sync += [
                *(place.eq(granule) for place, granule in zip(placed, granules, strict=True)),
                joins.eq(join),
                emits.eq(Mux(finish, filled != 0, join & ((total >= count) | last))),
                before.eq(filled),
                is_last.eq(last),
                spare.eq(-total << exact_log2(self._granule)),
            ]
            with m.If(join | finish):
                m.d.sync += filled.eq(Mux(last, 0, total))

        # Second stage: what was held of the output, and what is new.
        output = []
        for k in range(count):
            held = Signal(bits, name=f"held_{k}", reset_less=True)
            new = Signal(name=f"new_{k}")
            m.d.comb += new.eq(before <= k)
            with m.If(move & joins & (new | emits)):
                m.d.sync += held.eq(placed[k])
            output.append(Mux(new, placed[k], held))
        with m.If(move):
            m.d.sync += [
                self.o_weights.valid.eq(emits),
                self.o_weights.p.data.eq(Cat(output)),
                self.o_weights.p.last.eq(is_last),
                self.o_weights.p.spare.eq(spare),
            ]
