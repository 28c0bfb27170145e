"""The gearbox: bytes of the weight port to weight words of any size."""

import math

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from hw.common.block_ram import BlockRam
from hw.config import GEARBOX_DEPTH, EngineConfig
from hw.engine.engine import word_layout

__all__ = ["Gearbox", "port_layout"]


def port_layout(config: EngineConfig) -> data.StructLayout:
    """Layout of a transfer of the weight port.

    ``last`` marks the last transfer of a product. If whole words fit into the padding behind the
    product, ``spare`` says how many bytes of padding that transfer has; otherwise it has no bits.
    """
    wide = config.port_bytes > config.word_bytes
    return data.StructLayout({
        "data": 8 * config.port_bytes,
        "last": 1,
        "spare": range(config.port_bytes if wide else 1),
    })


class _Queue(wiring.Component):
    """A queue in block RAM.

    Members
    -------
    room : Out(1)
        There is a place.
    reserve : In(1)
        Take a place; only while ``room``.
    write : In(1)
        Put ``data`` into the place that was reserved first.
    data : In(width)
    o : Out(stream) of width bits
        Three cycles after ``write``, at the earliest.
    """

    room: Signal
    reserve: Signal
    write: Signal
    data: Signal
    o: stream.Interface

    def __init__(self, *, width: int, target: str):
        self._target = target
        super().__init__({
            "room": Out(1), "reserve": In(1), "write": In(1), "data": In(width),
            "o": Out(stream.Signature(width)),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.ram = ram = BlockRam(width=len(self.data), depth=GEARBOX_DEPTH,
                                          target=self._target)
        address = ceil_log2(GEARBOX_DEPTH)
        reserved = Signal(address, init=1)      # one ahead: the queue is never quite full
        written = Signal(address)
        fetched = Signal(address)
        looked_up = Signal()                    # first stage of the RAM's read holds a row
        m.d.comb += [
            self.room.eq(reserved != fetched),
            ram.write_address.eq(written),
            ram.write_data.eq(self.data),
            ram.write.eq(self.write),
            ram.write_mask.eq(1),
            ram.read_address.eq(fetched),
            ram.output_enable.eq(~self.o.valid | self.o.ready),
            ram.read_enable.eq(~looked_up | ram.output_enable),
            self.o.payload.eq(ram.read_data),
        ]
        m.d.sync += [reserved.eq(reserved + self.reserve), written.eq(written + self.write)]
        with m.If(ram.output_enable):
            m.d.sync += self.o.valid.eq(looked_up)
        with m.If(ram.read_enable):
            m.d.sync += [
                looked_up.eq(fetched != written),
                fetched.eq(fetched + (fetched != written)),
            ]
        return m


class Gearbox(wiring.Component):
    """Cuts the weight port's bytes into weight words, and queues them ahead of their use.

    .. code-block:: text

        codes of word k = bytes [k * word_bytes, (k + 1) * word_bytes) of a product's transfers

    The next product begins with the next transfer. While nothing waits, either the port or the
    words move in every cycle: a transfer a cycle if ``port_bytes < word_bytes``, else a word a
    cycle. The queue holds ``GEARBOX_DEPTH - 1`` words, or transfers if these are the larger.
    ``i.ready`` depends on registers only. Cycles: :func:`sim.timing.units.gearbox_cycles`.

    Bytes move in **granules**, the largest power of two that divides both sizes: a transfer has
    ``p`` of them, a power of two, and a word has ``w``. There is one barrel rotator, of ``p``
    granules. With ``p < w`` it stands before the queue: a transfer is rotated to where its bytes
    belong in the word, and what belongs to the next word lies in the same rotation, ``w`` granules
    off. With ``p >= w`` it stands behind the queue, and cuts a word from two transfers.

    Parameters
    ----------
    config : EngineConfig

    Members
    -------
    i : In(stream) of :func:`port_layout`
        Transfers of the weight port.
    o : Out(stream) of {codes: 8 * word_bytes}
        Weight words.
    """

    i: stream.Interface
    o: stream.Interface

    def __init__(self, config: EngineConfig):
        self.config = config
        super().__init__({
            "i": In(stream.Signature(port_layout(config))),
            "o": Out(stream.Signature(word_layout(config))),
        })

    def elaborate(self, platform):
        m = Module()
        granule = math.gcd(self.config.port_bytes, self.config.word_bytes)
        p, w = self.config.port_bytes // granule, self.config.word_bytes // granule
        if p < w:
            self._collect(m, p, w, 8 * granule)
        else:
            self._extract(m, p, w, 8 * granule)
        return m

    def _collect(self, m, p, w, bits):
        m.submodules.queue = queue = _Queue(width=w * bits, target=self.config.target)
        transfer = Signal()
        filled = Signal(range(w))               # granules that the word under way has
        complete = Signal()
        m.d.comb += [
            self.i.ready.eq(queue.room),
            transfer.eq(self.i.valid & self.i.ready),
            complete.eq(filled >= w - p),
            queue.reserve.eq(transfer & complete),
        ]
        with m.If(transfer):
            m.d.sync += filled.eq(filled + Mux(complete, p - w, p))
            with m.If(self.i.p.last):
                m.d.sync += filled.eq(0)

        # The rotator: granule k comes out as granule (filled + k) % p, one level a cycle.
        granules: list[Value] = [self.i.p.data.word_select(k, bits) for k in range(p)]
        stage: Value = Cat(transfer, complete, filled)
        for level in range(ceil_log2(p)):
            rotated = [Signal(bits, name=f"rotated_{level}_{k}", reset_less=True) for k in range(p)]
            for k in range(p):
                m.d.sync += rotated[k].eq(Mux(stage[2 + level], granules[(k - 2 ** level) % p],
                                              granules[k]))
            next_stage = Signal(len(stage), name=f"stage_{level}")
            m.d.sync += next_stage.eq(stage)
            granules, stage = [*rotated], next_stage

        # A completing transfer writes the end of one word and the beginning of the next. What the
        # beginning overwrites moves on to ``earlier``, and the word is joined in the next cycle.
        arrives, completes, filled_before = stage[0], stage[1], stage[2:]
        ends = Signal()
        m.d.sync += ends.eq(arrives & completes)
        word: list[Value] = []
        for j in range(w):
            current = Signal(bits, name=f"current_{j}", reset_less=True)
            held = Signal(name=f"held_{j}")     # the word has this granule already
            m.d.comb += held.eq(filled_before > j)
            with m.If(arrives & ~held):
                m.d.sync += current.eq(granules[j % p])
            if j >= p - 1:                      # no beginning reaches here
                word.append(current)
                continue
            with m.If(arrives & completes & held):
                m.d.sync += current.eq(granules[(j + w) % p])
            earlier = Signal(bits, name=f"earlier_{j}", reset_less=True)
            m.d.sync += earlier.eq(current)
            if j < w - p:                       # no end reaches here
                word.append(earlier)
                continue
            was_held = Signal(name=f"was_held_{j}", reset_less=True)
            m.d.sync += was_held.eq(held)
            word.append(Mux(was_held, earlier, current))
        m.d.comb += [queue.write.eq(ends), queue.data.eq(Cat(word))]

        m.d.comb += [
            self.o.valid.eq(queue.o.valid),
            self.o.p.codes.eq(queue.o.payload),
            queue.o.ready.eq(self.o.ready),
        ]

    def _extract(self, m, p, w, bits):
        levels = ceil_log2(p)
        row = data.StructLayout({
            "granules": data.ArrayLayout(bits, p),
            "last": 1,
            "end": levels,                      # granules of the product in its last row, modulo p
        })
        m.submodules.queue = queue = _Queue(width=row.size, target=self.config.target)
        incoming = data.View(row, Signal(row.size, name="incoming"))
        m.d.comb += [
            incoming.granules.as_value().eq(self.i.p.data),
            incoming.last.eq(self.i.p.last),
            incoming.end.eq(-self.i.p.spare[ceil_log2(bits // 8):]),
            self.i.ready.eq(queue.room),
            queue.reserve.eq(self.i.valid & self.i.ready),
            queue.write.eq(queue.reserve),
            queue.data.eq(incoming),
        ]

        # A word begins at granule ``begin`` of one row and may end in the following one.
        fetched = data.View(row, queue.o.payload)
        current, following = (data.View(row, Signal(row.size, name=name, reset_less=True))
                              for name in ("current", "following"))
        have_current, have_following = Signal(), Signal()
        begin = Signal(levels)
        stop = Signal(levels + 1)
        move = Signal()
        cut = Signal()
        straddles, ends = Signal(), Signal()
        drop_one, drop_both = Signal(), Signal()
        load_current, load_following = Signal(), Signal()
        m.d.comb += [
            stop.eq(begin + w),
            move.eq(~self.o.valid | self.o.ready),
            straddles.eq(stop > p),
            ends.eq(Mux(straddles, following.last & (stop[:levels] == following.end),
                        (stop == p) | (current.last & (stop[:levels] == current.end)))),
            cut.eq(move & have_current & (~straddles | have_following)),
            drop_both.eq(cut & straddles & ends),
            drop_one.eq(cut & (straddles ^ ends)),
            load_current.eq(~have_current | drop_both | (drop_one & ~have_following)),
            load_following.eq(~load_current & (drop_one | ~have_following)),
            queue.o.ready.eq(load_current | load_following),
        ]
        with m.If(cut):
            m.d.sync += begin.eq(Mux(ends, 0, stop))
        with m.If(load_current):
            m.d.sync += [current.eq(fetched), have_current.eq(queue.o.valid),
                         have_following.eq(0)]
        with m.If(load_following):
            m.d.sync += [following.eq(fetched), have_following.eq(queue.o.valid)]
            with m.If(drop_one):
                m.d.sync += current.eq(following)

        # The rotator: granule (begin + k) % p comes out as granule k, one level a cycle.
        granules: list[Value] = [Mux(begin > k, following.granules[k], current.granules[k])
                                 for k in range(p)]
        stage: Value = Cat(cut, begin)
        for level in range(levels + 1):
            rotated = [Signal(bits, name=f"rotated_{level}_{k}", reset_less=True) for k in range(p)]
            next_stage = Signal(len(stage), name=f"stage_{level}")
            with m.If(move):
                m.d.sync += next_stage.eq(stage)
                for k in range(p):
                    if level == 0:              # the first stage only joins the two rows
                        m.d.sync += rotated[k].eq(granules[k])
                    else:
                        step = 2 ** (level - 1)
                        m.d.sync += rotated[k].eq(Mux(stage[level], granules[(k + step) % p],
                                                      granules[k]))
            granules, stage = [*rotated], next_stage
        m.d.comb += [self.o.valid.eq(stage[0]), self.o.p.codes.eq(Cat(granules[:w]))]
