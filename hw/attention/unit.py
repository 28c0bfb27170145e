# Ref: H. Luo, W. Sun, "Addition is All You Need for Energy-efficient Language Models", 2024
# Id: arXiv:2410.00907, attention with L-Mul in place of both products

"""Attention: scores of keys, and values mixed by the softmax of the scores."""

from types import SimpleNamespace

from amaranth import *
from amaranth.lib import data, fifo, memory, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for, ceil_log2, exact_log2

from hw.arith.lmul import wide_product
from hw.attention.rows import RowSource
from hw.attention.tables import (
    FACTOR_BASE,
    FRACTION,
    SCORE_BOUND,
    SCORE_GUARD,
    SCORE_WIDTH,
    WEIGHT_BITS,
    WINDOW,
    reciprocal_words,
    weight_words,
)
from hw.common.pipeline import Pipeline
from hw.config import AcceleratorConfig
from hw.engine.result_queue import result_layout
from hw.formats.minifloat import bf16
from hw.memory.port import transfer_layout
from hw.vector.memory import READ_LATENCY, address_width, read_signature

__all__ = ["AttentionUnit", "answer_layout", "attention_layout"]

_BITS = bf16.mantissa_bits
_FACTOR_WIDTH = 8               # of the table's second column
_AMOUNT_WIDTH = 9               # ... and its first
_QUEUE_DEPTH = 16               # weights of tokens that wait for their values


def attention_layout(config: AcceleratorConfig) -> data.StructLayout:
    """Layout of a command: scores of keys, or with ``pv`` a mixture of values.

    ``tokens`` vectors follow, of e4m3 or bf16 numbers. With scores come the ``heads`` that share
    the keys, the ``words`` of a vector of each, and the address of the first: vectors follow one
    another from ``a``, or with ``split`` their first halves from ``a`` and the second ones from
    ``b``. A mixture is of the heads that were scored before, and has ``bound``, the exponent field
    that no value exceeds.
    """
    address = address_width(config)
    return data.StructLayout({
        "pv": 1, "e4m3": 1, "tokens": bits_for(config.context), "bound": bf16.exponent_bits,
        "heads": bits_for(config.group), "split": 1, "a": address, "b": address,
        "words": bits_for(config.head_elements // config.vector_lanes)})


def answer_layout() -> data.StructLayout:
    """Layout of an answer: the scalar of a head's integers; ``fault``: a query is not finite."""
    return data.StructLayout({"number": bf16.width, "exponent": signed(10), "fault": 1})


class AttentionUnit(wiring.Component):
    """Scores of the keys of a cache, and its values mixed by the softmax of the scores.

    .. code-block:: text

        found = scores(q, keys)                                 (sim.golden.attention)
        o_results, o_answers = mix(found, values, bound)        integers, numbers and exponents

    ``attention_heads`` times ``attention_elements`` lanes, each an L-Mul product that is shifted
    into a sum of integers, serve both. For scores the lanes of a head are added up, and the score
    is stored; for a mixture each lane adds to a sum of its own. The vectors of the cache are read
    once each, a row of ``attention_elements`` at a time, which is multiplied with
    ``attention_heads`` heads in a cycle. So a vector takes as many cycles as it has transfers, or
    rows times blocks of heads, whichever are more. Cycles:
    :func:`sim.timing.units.qk_cycles` and :func:`sim.timing.units.pv_cycles`.

    Parameters
    ----------
    config : AcceleratorConfig
        With a ``context``.

    Members
    -------
    i_commands : In(stream) of :func:`attention_layout`
        Accepted when the one before has given its last answer, and its results.
    i_vectors : In(stream) of :func:`hw.memory.port.transfer_layout`
        Keys or values of the command.
    o_answers : Out(stream) of :func:`answer_layout`
        For scores one, when they are stored, or with ``fault`` as soon as the queries are loaded:
        then no vector was taken.
        For a mixture one for each head, before its results.
    o_results : Out(stream) of :func:`hw.engine.result_queue.result_layout`
        Integers of each head, ``last`` with its last transfer.
    read : Out(:func:`hw.vector.memory.read_signature`)
        Queries.

    Raises
    ------
    ValueError
        If the configuration has no context, or the vector lanes are no power of two.
    """

    i_commands: stream.Interface
    i_vectors: stream.Interface
    o_answers: stream.Interface
    o_results: stream.Interface
    read: wiring.PureInterface

    def __init__(self, config: AcceleratorConfig):
        if not config.context:
            raise ValueError("Attention needs a configuration with a context")
        if config.vector_lanes & (config.vector_lanes - 1):
            raise ValueError(f"Vector lane count of attention must be a power of two, "
                             f"not {config.vector_lanes}")
        self.config = config
        #: Turns that the largest group takes, and rows of the widest head.
        self.head_blocks = -(-config.group // config.attention_heads)
        self.rows = config.head_elements // config.attention_elements
        super().__init__({
            "i_commands": In(stream.Signature(attention_layout(config))),
            "i_vectors": In(stream.Signature(transfer_layout(config.port_bytes))),
            "o_answers": Out(stream.Signature(answer_layout())),
            "o_results": Out(stream.Signature(result_layout(config.engine))),
            "read": Out(read_signature(config)),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config
        command = Signal(attention_layout(config), reset_less=True)
        # The heads that were scored last.
        shape = SimpleNamespace(
            heads=Signal.like(command.heads), words=Signal.like(command.words),
            last_head_block=Signal(range(max(2, self.head_blocks)), reset_less=True))
        heads = []
        for head in range(config.group):
            table = memory.Memory(shape=signed(SCORE_WIDTH), depth=config.context, init=[],
                                  attrs={"no_rw_check": 1})
            m.submodules[f"scores_{head}"] = table
            heads.append(SimpleNamespace(
                scores=table, largest=Signal(signed(SCORE_WIDTH), name=f"largest_{head}",
                                             reset_less=True)))
        m.submodules.source = source = RowSource(config)
        walk = self._walk(m, command, shape, source)
        queries = self._queries(m, command, shape, walk)
        weights = self._weights(m, command, walk, heads)
        lanes = self._lanes(m, command, walk, source, queries, weights)
        scored = self._scores(m, command, shape, lanes, heads)
        out = SimpleNamespace(
            head_block=Signal(range(max(2, self.head_blocks))),
            row=Signal(range(max(2, self.rows))),
            slot=Signal(range(max(2, config.attention_heads))), valid=Signal(),
            octaves=Signal(range(exact_log2(config.context) + 1)))
        self._deliver(m, command, shape, out, self._sums(m, command, walk, lanes, out))
        mixed = lanes.at.valid & lanes.at.final & command.pv
        self._control(m, command, shape, walk, queries, weights, out, scored, mixed)
        return m

    def _table_address(self, row: Value, head_block: Value) -> Value:
        """Join row and block of heads to an address."""
        return Cat(row, head_block) if self.head_blocks > 1 else Value.cast(row)

    def _walk(self, m, command, shape, source):
        """Step through tokens, their rows, and blocks of heads for each row."""
        ratio = exact_log2(self.config.vector_lanes // self.config.attention_elements)
        walk = SimpleNamespace(
            begin=Signal(), on=Signal(), remaining=Signal.like(command.tokens),
            ready=Signal(), step=Signal(),
            head_block=Signal(range(max(2, self.head_blocks))),
            row=Signal(range(max(2, self.rows))),
            first_row=Signal(), last_row=Signal(), first_token=Signal(), token_ends=Signal(),
            final=Signal())
        last_head_block, last_token, unfinished, wanted = Signal(), Signal(), Signal(), Signal()
        m.d.comb += [
            last_head_block.eq(walk.head_block == shape.last_head_block),
            last_token.eq(walk.remaining == 1),
            walk.first_row.eq(walk.row == 0),
            walk.last_row.eq(walk.row + 1 == shape.words << ratio),
            walk.step.eq(walk.on & source.valid & walk.ready),
            walk.token_ends.eq(source.take & walk.last_row),
            walk.final.eq(walk.token_ends & last_token),
            # What comes behind the last row belongs to the next command.
            unfinished.eq((walk.remaining != 0) & ~(source.valid & walk.last_row & last_token)),
            wanted.eq(walk.on & unfinished),
            source.e4m3.eq(command.e4m3),
            source.take.eq(walk.step & last_head_block),
            source.i.p.eq(self.i_vectors.p),
            source.i.valid.eq(self.i_vectors.valid & wanted),
            self.i_vectors.ready.eq(source.i.ready & wanted),
        ]
        with m.If(walk.step):
            m.d.sync += walk.head_block.eq(Mux(last_head_block, 0, walk.head_block + 1))
        with m.If(source.take):
            m.d.sync += walk.row.eq(Mux(walk.last_row, 0, walk.row + 1))
        with m.If(walk.token_ends):
            m.d.sync += [walk.remaining.eq(walk.remaining - 1), walk.first_token.eq(0)]
        return walk

    def _queries(self, m, command, shape, walk):
        """Load the heads' vectors, each into the memory of its slot in a block of heads."""
        config = self.config
        lanes, slots = config.vector_lanes, config.attention_heads
        words = config.head_elements // lanes
        queries = SimpleNamespace(loading=Signal(), loaded=Signal(), fault=Signal(), rows=[])
        word = Signal(range(max(2, words)))     # that is asked for, of a head
        head = Signal.like(shape.heads)
        slot = Signal(range(max(2, slots)))
        head_block = Signal.like(walk.head_block)
        second, asking = Signal(), Signal()
        m.d.comb += [
            second.eq(command.split & (word >= command.words >> 1)),
            self.read.enable.eq(queries.loading & asking),
            self.read.address.eq(Mux(second, command.b, command.a)),
        ]
        with m.If(~queries.loading):
            m.d.sync += [word.eq(0), head.eq(1), slot.eq(0), head_block.eq(0), asking.eq(1)]
        with m.Elif(asking):
            m.d.sync += [
                word.eq(word + 1),
                shape.last_head_block.eq(head_block),
                shape.heads.eq(command.heads),
                shape.words.eq(command.words),
            ]
            with m.If(second):
                m.d.sync += command.b.eq(command.b + 1)
            with m.Else():
                m.d.sync += command.a.eq(command.a + 1)
            with m.If(word + 1 == command.words):
                m.d.sync += [word.eq(0), head.eq(head + 1), slot.eq(slot + 1),
                             asking.eq(head != command.heads)]
                with m.If(slot == slots - 1):
                    m.d.sync += [slot.eq(0), head_block.eq(head_block + 1)]

        reads = Pipeline(m, enable=C(1), valid=self.read.enable)
        at = reads.step(table_address=self._table_address(word, head_block), slot=slot)
        coming = at.valid
        for _ in range(READ_LATENCY - 1):
            at = reads.step(table_address=at.table_address, slot=at.slot)
            coming |= at.valid
        m.d.comb += queries.loaded.eq(queries.loading & ~asking & ~coming)
        with m.If(walk.begin):
            m.d.sync += queries.fault.eq(0)
        with m.Elif(at.valid & Cat(element[_BITS:-1].all() for element in self.read.data).any()):
            m.d.sync += queries.fault.eq(1)

        below = exact_log2(lanes // config.attention_elements)
        row_word = Signal.like(word)
        m.d.comb += row_word.eq(walk.row >> below)
        for k in range(slots):
            # LUT RAM: a row is looked up in the cycle in which it is needed.
            table = memory.Memory(shape=bf16.width * lanes, depth=2 ** len(at.table_address),
                                  init=[], attrs={"ram_style": "distributed"})
            m.submodules[f"queries_{k}"] = table
            write, read = table.write_port(), table.read_port(domain="comb")
            m.d.comb += [
                write.en.eq(at.valid & (at.slot == k)),
                write.addr.eq(at.table_address),
                write.data.eq(self.read.data),
                read.addr.eq(self._table_address(row_word, walk.head_block)),
            ]
            queries.rows.append(read.data.word_select(
                walk.row[:below], bf16.width * config.attention_elements))
        return queries

    def _weights(self, m, command, walk, heads):
        """Turn scores into weights, ahead of their values, and add them up."""
        config = self.config
        octaves_width = exact_log2(config.context)
        weights = SimpleNamespace(totals=[], now=[])
        remaining = Signal.like(command.tokens)      # tokens whose scores are not yet asked for
        m.submodules.weights = queue = fifo.SyncFIFO(
            width=len(heads) * bf16.magnitude_width, depth=_QUEUE_DEPTH)
        token = Signal(range(config.context))
        room = Signal(range(_QUEUE_DEPTH + 1), init=_QUEUE_DEPTH)
        requests = Signal()
        m.d.comb += [
            requests.eq(walk.on & command.pv & (remaining != 0) & (room != 0)),
            walk.ready.eq(~command.pv | queue.r_rdy),
            queue.r_en.eq(walk.token_ends & command.pv),
        ]
        m.d.sync += room.eq(room - requests + queue.r_en)
        with m.If(walk.begin):
            m.d.sync += [token.eq(0), remaining.eq(self.i_commands.p.tokens)]
        with m.Elif(requests):
            m.d.sync += [token.eq(token + 1), remaining.eq(remaining - 1)]

        words = weight_words()
        factors = []
        for head, its in enumerate(heads):
            table = memory.Memory(
                shape=_AMOUNT_WIDTH + _FACTOR_WIDTH, depth=len(words),
                init=[amount | factor << _AMOUNT_WIDTH for amount, factor in words],
                attrs={"rom_style": "logic"})
            m.submodules[f"powers_{head}"] = table
            read, powers = its.scores.read_port(), table.read_port(domain="comb")
            pipeline = Pipeline(m, enable=C(1), valid=requests)
            m.d.comb += [read.addr.eq(token), read.en.eq(1)]
            at = pipeline.step(first=token == 0)
            at = pipeline.step(first=at.first, found=read.data)
            at = pipeline.step(first=at.first, below=(its.largest - at.found)[:SCORE_WIDTH])
            m.d.comb += powers.addr.eq(at.below[:FRACTION])
            octaves = at.below[FRACTION:]
            at = pipeline.step(
                first=at.first, zero=octaves >= WEIGHT_BITS,
                octaves=octaves[:bits_for(WEIGHT_BITS - 1)],
                amount=powers.data[:_AMOUNT_WIDTH], factor=powers.data[_AMOUNT_WIDTH:])
            field = (FACTOR_BASE >> _BITS) + at.factor[_BITS:] - at.octaves
            aligned = Cat(C(0, WEIGHT_BITS - _AMOUNT_WIDTH + 1), at.amount)
            at = pipeline.step(
                first=at.first, octaves=at.octaves[:3],
                factor=Mux(at.zero, 0, Cat(at.factor[:_BITS], field[:bf16.exponent_bits])),
                amount=Mux(at.zero, 0, aligned >> Cat(C(0, 3), at.octaves[3:])))
            factors.append(at.factor)
            if head == 0:
                m.d.comb += queue.w_en.eq(at.valid)
            at = pipeline.step(first=at.first, amount=at.amount >> at.octaves)
            total = Signal(WEIGHT_BITS + 1 + octaves_width, name=f"weights_{head}",
                           reset_less=True)
            with m.If(at.valid):
                m.d.sync += total.eq(Mux(at.first, 0, total) + at.amount)
            weights.totals.append(total)
        m.d.comb += queue.w_data.eq(Cat(factors))
        slots = config.attention_heads
        given = [queue.r_data.word_select(head, bf16.magnitude_width)
                 for head in range(len(heads))]
        given += [C(0, bf16.magnitude_width)] * (slots * self.head_blocks - len(heads))
        for slot in range(slots):
            weights.now.append(Array(given[slot::slots])[walk.head_block] if self.head_blocks > 1
                               else given[slot])
        return weights

    def _lanes(self, m, command, walk, source, queries, weights):
        """Multiply, and shift products into the sums' fixed point: six steps."""
        count, slots = self.config.attention_elements, self.config.attention_heads
        bound = Mux(command.pv, command.bound, C(SCORE_BOUND, bf16.exponent_bits))
        along = Pipeline(m, enable=C(1), valid=walk.step)
        at = walk
        for _ in range(6):
            at = along.step(**_along(at))
        lanes = SimpleNamespace(at=at, terms=[], signs=[])
        for slot in range(slots):
            for k in range(count):
                of_query = queries.rows[slot].word_select(k, bf16.width)
                pipeline = Pipeline(m, enable=C(1), valid=walk.step)
                at = pipeline.step(x=Mux(command.pv, Cat(weights.now[slot], C(0, 1)), of_query),
                                   y=source.row[k])
                at = wide_product(pipeline, bf16, at.x, at.y, constant=bf16.constant(),
                                  specials=False)
                at = pipeline.step(
                    sign=at.sign, shift=(bound - at.result[_BITS:].as_signed())[:11].as_signed(),
                    significand=Mux(at.zero, 0, Cat(at.result[:_BITS], C(1))))
                # Above the bound it is as large as can be; beyond the window nothing is left.
                aligned = Cat(C(0, WINDOW - _BITS - 1), at.significand)
                within = Mux(at.shift[:-1] >= WINDOW, 0, aligned >> Cat(C(0, 3), at.shift[3:5]))
                at = pipeline.step(
                    sign=at.sign, amount=Mux(at.shift[-1], 0, at.shift[:3]),
                    term=Mux(at.shift[-1], at.significand[-1].replicate(WINDOW), within))
                term = at.term >> at.amount
                at = pipeline.step(sign=at.sign, term=Mux(at.sign, ~term, term))
                # The sign is also the one that completes the negation.
                lanes.terms.append(Cat(at.term, at.sign).as_signed())
                lanes.signs.append(at.sign)
        return lanes

    def _scores(self, m, command, shape, lanes, heads):
        """Add up the lanes of each head, over its rows, and store the rounded sum."""
        config = self.config
        count, slots = config.attention_elements, config.attention_heads
        width = WINDOW + ceil_log2(config.head_elements) + 1
        levels = exact_log2(count)
        along = Pipeline(m, enable=C(1), valid=lanes.at.valid & ~command.pv)
        at = lanes.at
        adds = at.valid & ~command.pv
        for _ in range(levels):
            at = along.step(**_along(at))
            adds = at.valid
        summed = along.step(**_along(at))
        rounded = along.step(**_along(summed))
        scores = []
        for slot in range(slots):
            values = lanes.terms[slot * count:(slot + 1) * count]
            signs = lanes.signs[slot * count:(slot + 1) * count]
            # Each of the additions, one for each term, takes one sign.
            for level in range(levels):
                sums = []
                for k in range(0, len(values), 2):
                    total = Signal(signed(len(values[k]) + 1), name=f"sum_{slot}_{level}_{k}",
                                   reset_less=True)
                    m.d.sync += total.eq(_plus(values[k], values[k + 1], signs[k // 2]))
                    sums.append(total)
                later = []
                for k, sign in enumerate(signs[len(sums):]):
                    delayed = Signal(name=f"sign_{slot}_{level}_{k}", reset_less=True)
                    m.d.sync += delayed.eq(sign)
                    later.append(delayed)
                values, signs = sums, later
            kept = [Signal(signed(width), name=f"total_{slot}_{head_block}", reset_less=True)
                    for head_block in range(self.head_blocks)]
            base = Mux(at.first_row, 0, Array(kept)[at.head_block] if self.head_blocks > 1
                       else kept[0])
            total = Signal(signed(width), name=f"total_{slot}")
            newest = Signal(signed(width), name=f"newest_{slot}", reset_less=True)
            m.d.comb += total.eq(_plus(base, values[0], signs[0]))
            m.d.sync += newest.eq(total)
            for head_block in range(self.head_blocks):
                with m.If(adds & (at.head_block == head_block)):
                    m.d.sync += kept[head_block].eq(total)
            whole = (newest + (1 << (SCORE_GUARD - 1)))[SCORE_GUARD:]
            beyond = whole[SCORE_WIDTH - 1:]        # all like the sign, if the score fits
            fits = beyond.all() | ~beyond.any()
            score = Signal(signed(SCORE_WIDTH), name=f"score_{slot}", reset_less=True)
            m.d.sync += score.eq(Mux(
                fits, whole[:SCORE_WIDTH],
                Cat((~whole[-1]).replicate(SCORE_WIDTH - 1), whole[-1])).as_signed())
            scores.append(score)

        token = Signal(range(config.context))
        stores, last = Signal(), Signal()
        m.d.comb += [
            stores.eq(rounded.valid & rounded.last_row),
            last.eq(stores & (rounded.head_block == shape.last_head_block)),
        ]
        with m.If(last):
            m.d.sync += token.eq(Mux(rounded.final, 0, token + 1))
        for head, its in enumerate(heads):
            head_block, slot = divmod(head, slots)
            own = stores & (rounded.head_block == head_block)
            write = its.scores.write_port()
            m.d.comb += [write.en.eq(own), write.addr.eq(token), write.data.eq(scores[slot])]
            with m.If(own & (rounded.first_token | (scores[slot] > its.largest))):
                m.d.sync += its.largest.eq(scores[slot])
        return last & rounded.final

    def _sums(self, m, command, walk, lanes, out):
        """Add weighted values, each lane to a sum of its own for each row and block of heads."""
        width = WINDOW + exact_log2(self.config.context) + 1
        at = lanes.at
        sums = []
        for k, (term, sign) in enumerate(zip(lanes.terms, lanes.signs, strict=True)):
            # LUT RAM: a sum is read, added to and written in a cycle.
            table_address = self._table_address(at.row, at.head_block)
            table = memory.Memory(shape=signed(width), depth=2 ** len(table_address), init=[],
                                  attrs={"ram_style": "distributed"})
            m.submodules[f"sums_{k}"] = table
            write, read = table.write_port(), table.read_port(domain="comb")
            m.d.comb += [
                read.addr.eq(Mux(walk.on, table_address,
                                 self._table_address(out.row, out.head_block))),
                write.addr.eq(table_address),
                write.data.eq(_plus(Mux(at.first_token, 0, read.data), term, sign)),
                write.en.eq(at.valid & command.pv),
            ]
            sums.append(read.data)
        return sums

    def _deliver(self, m, command, shape, out, sums):
        """Shift a row of a head's sums down, and join rows to a transfer."""
        config = self.config
        count, slots = config.attention_elements, config.attention_heads
        width = config.engine.accumulator_width
        parts = config.vector_lanes // count
        flow = Signal()
        results = self.o_results
        last_row = out.row + 1 == shape.words * parts
        m.d.comb += flow.eq(~results.valid | results.ready)
        with m.If(out.valid & flow):
            m.d.sync += out.row.eq(Mux(last_row, 0, out.row + 1))
            with m.If(last_row):
                m.d.sync += out.valid.eq(0)
        # What no accumulator of the engine holds is cut off.
        cut = max(0, WINDOW + 3 - width)
        of_slot = [Array(sums[k::count])[out.slot] if slots > 1 else sums[k] for k in range(count)]
        pipeline = Pipeline(m, enable=flow, valid=out.valid)
        at = pipeline.step(part=out.row[:exact_log2(parts)], last=last_row,
                           row=Cat(value[cut:] for value in of_slot))
        bits = len(at.row) // count

        def shifted(row, amount, kept):
            return Cat((row.word_select(k, len(row) // count).as_signed() >> amount)[:kept]
                       for k in range(count))
        at = pipeline.step(part=at.part, last=at.last,
                           row=shifted(at.row, Cat(C(0, 2), out.octaves[2:]), bits))
        at = pipeline.step(part=at.part, last=at.last, row=shifted(at.row, out.octaves[:2], bits))
        values = [at.row.word_select(k, bits).as_signed() for k in range(count)]
        whole = at.part == parts - 1 if parts > 1 else C(1)
        with m.If(flow):
            m.d.sync += [results.valid.eq(at.valid & whole), results.p.last.eq(at.last)]
            with m.If(at.valid):
                kept = [results.p.values[k] for k in range(count, config.vector_lanes)]
                m.d.sync += [register.eq(value) for register, value in zip(
                    results.p.values, [*kept, *values], strict=True)]

    def _control(self, m, command, shape, walk, queries, weights, out, scored, mixed):
        config = self.config
        turned = exact_log2(config.context)
        total = Signal(len(weights.totals[0]), reset_less=True)
        head = Signal.like(shape.heads)
        remaining = Signal(range(max(2, turned)))    # shifts
        rounded = Signal(_BITS + 1, reset_less=True)
        rest = len(total) - 1 - _BITS
        up = total[rest - 1] & (total[:rest - 1].any() | total[rest])
        m.submodules.reciprocals = table = memory.Memory(
            shape=_BITS, depth=1 << _BITS, init=reciprocal_words())
        reciprocal = table.read_port()
        # One over 2**n is a power of two, one over anything else has an exponent less.
        mantissa = rounded[:_BITS]
        field = bf16.bias - out.octaves - rounded[-1] - mantissa.any()
        cut = max(0, WINDOW + 3 - config.engine.accumulator_width)
        answer = self.o_answers.p
        m.d.comb += [
            reciprocal.addr.eq(mantissa),
            answer.number.eq(Cat(reciprocal.data, field[:bf16.exponent_bits], C(0, 1))),
            answer.exponent.eq(out.octaves + command.bound + (cut + 1 - bf16.bias - WINDOW)),
            answer.fault.eq(queries.fault & ~command.pv),
        ]
        with m.FSM():
            with m.State("IDLE"):
                given = self.i_commands.p
                m.d.comb += [self.i_commands.ready.eq(1), walk.begin.eq(1)]
                m.d.sync += [command.eq(given), walk.remaining.eq(given.tokens),
                             walk.first_token.eq(1)]
                with m.If(self.i_commands.valid):
                    m.next = "LOAD"
                    with m.If(given.pv):
                        m.next = "WALK"
            with m.State("LOAD"):
                m.d.comb += queries.loading.eq(1)
                with m.If(queries.loaded):
                    m.next = "WALK"
                    with m.If(queries.fault):
                        m.next = "QK_DONE"
            with m.State("WALK"):
                m.d.comb += walk.on.eq(1)
                m.d.sync += [head.eq(0), out.slot.eq(0), out.head_block.eq(0)]
                with m.If(scored):
                    m.next = "QK_DONE"
                with m.If(mixed):
                    m.next = "TOTAL"
            with m.State("QK_DONE"):
                m.d.comb += self.o_answers.valid.eq(1)
                with m.If(self.o_answers.ready):
                    m.next = "IDLE"

            # Of each head: the leading one of the sum of its weights goes up, bit by bit.
            with m.State("TOTAL"):
                m.d.sync += [total.eq(Array(weights.totals)[head]), out.octaves.eq(turned),
                             remaining.eq(turned - 1)]
                m.next = "SHIFT"
            with m.State("SHIFT"):
                m.d.sync += remaining.eq(remaining - 1)
                with m.If(~total[-1]):
                    m.d.sync += [total.eq(total << 1), out.octaves.eq(out.octaves - 1)]
                with m.If(remaining == 0):
                    m.next = "ROUND"
            with m.State("ROUND"):
                m.d.sync += rounded.eq(total[rest:-1] + up)
                m.next = "LOOK_UP"
            with m.State("LOOK_UP"):
                m.next = "PV_DONE"
            with m.State("PV_DONE"):
                m.d.comb += self.o_answers.valid.eq(1)
                with m.If(self.o_answers.ready):
                    m.d.sync += out.valid.eq(1)
                    m.next = "DELIVER"
            with m.State("DELIVER"):
                with m.If(self.o_results.valid & self.o_results.ready & self.o_results.p.last):
                    m.d.sync += [head.eq(head + 1), out.slot.eq(out.slot + 1)]
                    with m.If(out.slot == config.attention_heads - 1):
                        m.d.sync += [out.slot.eq(0), out.head_block.eq(out.head_block + 1)]
                    m.next = "TOTAL"
                    with m.If(head + 1 == shape.heads):
                        m.next = "IDLE"


def _along(at: SimpleNamespace) -> dict[str, Value]:
    """Return what a step of the walk takes along."""
    return {name: getattr(at, name)
            for name in ("head_block", "row", "first_row", "last_row", "first_token", "final")}


def _plus(a: Value, b: Value, carry: Value) -> Value:
    """Add two signed values and a bit with one adder."""
    return (Cat(carry, a).as_signed() + Cat(carry, b).as_signed()) >> 1
