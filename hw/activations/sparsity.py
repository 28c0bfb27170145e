# Ref: S. Chen et al., "WINA: Weight Informed Neuron Activation for Accelerating Large Language
#      Model Inference", 2025
# Id: arXiv:2505.19427

"""The mask between quantizer and list: keeps the entries with the largest scores."""

from amaranth import *
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for, exact_log2

from hw.common.pipeline import Pipeline
from hw.config import AcceleratorConfig
from hw.engine.loop_nest import entry_layout
from hw.isa import FIELDS
from hw.vector.memory import address_width, read_signature

__all__ = ["SparsityPolicy", "command_layout"]

NORM_BITS = 16
MAGNITUDE_BITS = 7      # of a code, which is at most 127
PRODUCT_BITS = NORM_BITS + MAGNITUDE_BITS
SCORE_BITS = PRODUCT_BITS + MAGNITUDE_BITS
DIGIT_BITS = 4
DIGITS = -(-SCORE_BITS // DIGIT_BITS)
BINS = 1 << DIGIT_BITS


def command_layout(config: AcceleratorConfig) -> data.StructLayout:
    """Layout of a command.

    ``largest``: the ``keep`` largest are kept, 1 or more; else those above ``threshold``. ``norms``
    is the address of the first word of the norms, 0 for norms that are all one.
    """
    return data.StructLayout({"largest": 1, "norms": address_width(config),
                              "keep": FIELDS["constant"], "threshold": SCORE_BITS})


class SparsityPolicy(wiring.Component):
    """Keeps the entries of a list whose scores are the largest, or above a threshold.

    .. code-block:: text

        score = value**2 * norm[index]        norms are 16-bit integers in the vector memory
        kept = sim.golden.wina.keep_largest(scores, keep), but none with score 0
        kept = sim.golden.wina.keep_above(scores, threshold)

    A list without a command passes as it is, a cycle later. Scores are sums of shifted values, one
    a cycle. Above a threshold, entries leave a few cycles after they came. For the largest, all
    entries are stored. While they come, the lengths of their scores in digits of 4 bits are
    counted: so the length of the score that is the last one to be kept is known at the list's end.
    Passes over the scores, ``lanes`` a cycle, then find its digits from the top down; they stop as
    soon as what has the digits so far is kept whole. In the end the scores are walked once more.
    :func:`sim.timing.units.select_cycles` has the exact formula.

    Parameters
    ----------
    config : AcceleratorConfig
    lanes : int
        Scores that a pass looks at in a cycle, a power of two and at least 2.

    Members
    -------
    i_commands : In(stream) of :func:`command_layout`
        For the list whose first entry comes next.
    i_entries : In(stream) of :func:`hw.engine.loop_nest.entry_layout`
        Lists of up to ``list_depth`` entries, with a command no value is -128; then ``end``.
    o_entries : Out(stream) of :func:`hw.engine.loop_nest.entry_layout`
        What is kept, in the same order; then ``end``, whose index says nothing.
    read : Out(:func:`hw.vector.memory.read_signature`)
        For a port of the vector memory that nothing else reads meanwhile.
    active : Out(1)
        A clock matters: see :attr:`hw.accelerator.Accelerator.active`.

    Raises
    ------
    ValueError
        If the vector lanes are no power of two: they divide indices.
    """

    i_commands: stream.Interface
    i_entries: stream.Interface
    o_entries: stream.Interface
    read: wiring.PureInterface
    active: Signal

    def __init__(self, config: AcceleratorConfig, *, lanes: int = 8):
        if config.vector_lanes & (config.vector_lanes - 1):
            raise ValueError(f"Vector lane count of a sparsity policy must be a power of two, not "
                             f"{config.vector_lanes}")
        self.config = config
        self.lanes = lanes
        entry = entry_layout(config.engine)
        super().__init__({
            "i_commands": In(stream.Signature(command_layout(config))),
            "i_entries": In(stream.Signature(entry)),
            "o_entries": Out(stream.Signature(entry)),
            "read": Out(read_signature(config)), "active": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        depth, lanes = self.config.list_depth, self.lanes
        below = exact_log2(lanes)
        rows = -(-depth // lanes)
        given, leaving = self.i_entries, self.o_entries
        command = Signal(self.i_commands.payload.shape(), reset_less=True)
        enable = Signal()                       # the output takes an entry
        m.d.comb += enable.eq(leaving.ready | ~leaving.valid)

        coming = Signal()                       # entries of a list with a command
        at = self._scores(m, command, enable, given.valid & given.ready & coming)

        # Scores in banks, so that a row of them is read at once; their entries one at a time.
        taking, emitting = Signal(), Signal()
        count = Signal(range(depth + 1))        # of entries that are stored
        stored = Signal()
        m.d.comb += stored.eq(taking & enable & at.valid & ~at.end & at.score.any())
        with m.If(stored):
            m.d.sync += count.eq(count + 1)
        row = Signal(range(rows + 1))           # that is read
        row_at_end = Signal()
        advance = Signal()                      # rows go on
        scores = []
        for lane in range(lanes):
            bank = memory.Memory(shape=SCORE_BITS, depth=rows, init=[])
            m.submodules[f"bank_{lane}"] = bank
            write, read = bank.write_port(), bank.read_port()
            m.d.comb += [
                write.en.eq(stored & (count[:below] == lane)),
                write.addr.eq(count[below:]),
                write.data.eq(at.score),
                read.en.eq(advance),
                read.addr.eq(row),
            ]
            score = Signal(SCORE_BITS, name=f"score_{lane}", reset_less=True)
            with m.If(advance):
                m.d.sync += score.eq(read.data)
            scores.append(score)
        kept = data.StructLayout({"index": len(given.p.index), "value": given.p.value.shape()})
        m.submodules.entries = entries = memory.Memory(shape=kept, depth=depth, init=[])
        entry_write, entry_read = entries.write_port(), entries.read_port()
        m.d.comb += [
            entry_write.en.eq(stored),
            entry_write.addr.eq(count),
            entry_write.data.index.eq(at.index),
            entry_write.data.value.eq(at.value),
        ]

        # The row at the end of three registers: address, memory, difference to the bound. The
        # digits of the bound that are not found yet are zero, so a score that has all others has a
        # difference with nothing but these.
        bound = Signal(DIGITS * DIGIT_BITS)
        digit = Signal(range(DIGITS))           # that is looked for
        walking = Signal()
        steps = Signal(3)
        compared = Signal(range(rows + 1))      # row of the differences
        row_count = Signal(range(rows + 1))
        tail = Signal(lanes)                    # lanes of the last row
        m.d.comb += [
            row_count.eq((count + (lanes - 1)) >> below),
            tail.eq(Cat((count[:below] == 0) | (count[:below] > lane) for lane in range(lanes))),
            row_at_end.eq(row == row_count),
        ]
        with m.If(advance):
            m.d.sync += [
                steps.eq(Cat(walking & ~row_at_end, steps)),
                row.eq(row + (walking & ~row_at_end)),
                compared.eq(compared + steps[-1]),
            ]
        whole = Signal()
        m.d.comb += whole.eq((compared + 1)[:len(compared)] != row_count)
        least, equal, digits = Signal(lanes), Signal(lanes), []
        for lane, score in enumerate(scores):
            difference = Signal(SCORE_BITS + 1, name=f"difference_{lane}", reset_less=True)
            with m.If(advance):
                m.d.sync += difference.eq(score - bound[:SCORE_BITS])
            padded = Cat(difference[:-1], C(0, DIGITS * DIGIT_BITS - SCORE_BITS))
            nothing = Cat(~padded.word_select(k, DIGIT_BITS).any() | (~emitting & (digit >= k))
                          for k in range(DIGITS)).all()
            m.d.comb += [
                least[lane].eq(~difference[-1] & (whole | tail[lane])),
                equal[lane].eq(least[lane] & nothing),
            ]
            digits.append(padded.word_select(digit, DIGIT_BITS))

        # One histogram for each lane, in which that of the lengths has only the first.
        clearing, scanning, lengths = Signal(), Signal(), Signal()
        bin_ = Signal(range(BINS), init=BINS - 1)
        length = Signal(range(DIGITS))
        for k in range(DIGITS):
            with m.If(at.score[k * DIGIT_BITS:(k + 1) * DIGIT_BITS].any()):
                m.d.comb += length.eq(k)
        counts = []
        for lane in range(lanes):
            width = bits_for(rows) if lane else bits_for(depth)
            m.submodules[f"histogram_{lane}"] = histogram = memory.Memory(
                shape=width, depth=BINS, init=[])
            write, read = histogram.write_port(), histogram.read_port(domain="comb")
            counted, value = Signal(name=f"counted_{lane}"), Signal(DIGIT_BITS, name=f"bin_{lane}")
            m.d.sync += [
                counted.eq(steps[-1] & equal[lane] & ~emitting),
                value.eq(digits[lane]),
            ]
            if lane == 0:
                with m.If(taking):
                    m.d.sync += [counted.eq(stored), value.eq(length)]
            m.d.comb += [
                read.addr.eq(Mux(scanning, bin_, value)),
                write.addr.eq(read.addr),
                write.data.eq(Mux(scanning, 0, read.data + 1)),
                write.en.eq(scanning | counted),
            ]
            counts.append(read.data)

        # The bins from the top, until there are as many as are missing; all are cleared.
        sums = [counts[k:k + 2] for k in range(0, lanes, 2)]
        pairs = [Signal(bits_for(depth), name=f"pair_{k}", reset_less=True)
                 for k in range(len(sums))]
        total = Signal(bits_for(depth), reset_less=True)
        bins = [Signal.like(bin_, name=f"bin_of_{k}", reset_less=True) for k in ("pairs", "total")]
        summed = Signal(2)
        missing = Signal(FIELDS["constant"], reset_less=True)
        found, exact = Signal(), Signal()
        last_bin = Signal.like(bin_)
        m.d.sync += [
            *(pair.eq(sum(terms)) for pair, terms in zip(pairs, sums, strict=True)),
            total.eq(sum(pairs)),
            bins[0].eq(bin_),
            bins[1].eq(bins[0]),
            summed.eq(Cat(scanning & ~clearing, summed)),
        ]
        with m.If(summed[-1] & ~found):
            with m.If(total >= missing):
                m.d.sync += [found.eq(1), exact.eq(total == missing), last_bin.eq(bins[1])]
            with m.Else():
                m.d.sync += missing.eq(missing - total)
        with m.If(scanning):
            m.d.sync += bin_.eq(bin_ - 1)

        # Kept entries of a row leave one by one; those equal to the bound until none is missing.
        pending = Signal(lanes + 1)             # and the list's end
        ties = Signal(lanes, reset_less=True)
        pending_row = Signal(range(rows), reset_less=True)
        rest = Signal(lanes + 1)
        first = Signal(range(lanes))
        tie, free, at_end = Signal(), Signal(), Signal()
        looked_up, end = Signal(), Signal()
        for k in reversed(range(lanes)):
            with m.If(pending[k]):
                m.d.comb += [first.eq(k), tie.eq(ties[k])]
        m.d.comb += [
            rest.eq(Cat(pending[k] & pending[:k].any() for k in range(lanes + 1))),
            free.eq((rest == 0) & (enable | (pending == 0))),
            at_end.eq(emitting & free & row_at_end & ~steps.any()),
            advance.eq(~emitting | free),
            entry_read.addr.eq(Cat(first, pending_row)),
            entry_read.en.eq(enable),
        ]
        with m.If(enable):
            m.d.sync += [
                pending.eq(rest),
                looked_up.eq(pending.any() & (~tie | (missing != 0))),
                end.eq(pending[-1]),
            ]
            with m.If(tie & (missing != 0)):
                m.d.sync += missing.eq(missing - 1)
        with m.If(emitting & free):
            m.d.sync += [
                pending.eq(Mux(steps[-1], least, 0)),
                ties.eq(equal),
            ]
            with m.If(steps[-1]):
                m.d.sync += pending_row.eq(compared)
            with m.If(at_end):
                m.d.sync += pending[-1].eq(1)

        passing, thresholding = Signal(), Signal()
        with m.If(enable):
            m.d.sync += [
                leaving.valid.eq(Mux(passing, given.valid, Mux(
                    thresholding, at.valid & (at.end | (at.score > command.threshold)),
                    looked_up))),
                leaving.p.index.eq(Mux(passing, given.p.index, Mux(
                    thresholding, at.index, entry_read.data.index))),
                leaving.p.value.eq(Mux(passing, given.p.value, Mux(
                    thresholding, at.value, entry_read.data.value))),
                leaving.p.end.eq(Mux(passing, given.p.end, Mux(thresholding, at.end, end))),
            ]

        m.d.comb += given.ready.eq(enable & (passing | coming))
        with m.If(coming & given.ready & given.valid & given.p.end):
            m.d.sync += coming.eq(0)
        ends = at.valid & at.end & enable       # the list's end has its place among the scores

        with m.FSM() as fsm:
            m.d.comb += self.active.eq(~fsm.ongoing("IDLE") | self.i_commands.valid
                                       | given.valid | leaving.valid)
            # Histograms may hold anything after a reset.
            with m.State("CLEAR"):
                m.d.comb += [clearing.eq(1), scanning.eq(1)]
                with m.If(bin_ == 0):
                    m.next = "IDLE"
            with m.State("IDLE"):
                m.d.comb += [
                    self.i_commands.ready.eq(1),
                    passing.eq(~self.i_commands.valid),
                ]
                m.d.sync += [
                    command.eq(self.i_commands.p),
                    missing.eq(self.i_commands.p.keep),
                    count.eq(0),
                    bound.eq(0),
                    lengths.eq(1),
                    bin_.eq(DIGITS - 1),
                ]
                with m.If(self.i_commands.valid):
                    m.d.sync += coming.eq(1)
                    m.next = "THRESHOLD"
                    with m.If(self.i_commands.p.largest):
                        m.next = "TAKE"
            with m.State("THRESHOLD"):
                m.d.comb += thresholding.eq(1)
                with m.If(ends):
                    m.next = "IDLE"
            with m.State("TAKE"):
                m.d.comb += taking.eq(1)
                m.d.sync += found.eq(0)
                with m.If(ends):
                    m.next = "SCAN"
            with m.State("SCAN"):
                m.d.comb += scanning.eq(1)
                with m.If(bin_ == 0):
                    m.next = "SUM"
            with m.State("SUM"):
                m.d.sync += [row.eq(0), compared.eq(0)]
                with m.If(~summed.any()):
                    bin_index = Mux(lengths, last_bin[:len(digit)], digit)
                    for k in range(DIGITS):
                        with m.If(found & (bin_index == k)):
                            m.d.sync += bound.word_select(k, DIGIT_BITS).eq(
                                Mux(lengths, exact, last_bin))
                    m.d.sync += [
                        digit.eq(bin_index - ~lengths),
                        lengths.eq(0),
                        found.eq(0),
                        bin_.eq(BINS - 1),
                    ]
                    m.next = "TOP_K"
                    with m.If(found & ~exact & (lengths | (digit != 0))):
                        m.next = "PASS"
            with m.State("PASS"):
                m.d.comb += walking.eq(1)
                with m.If(row_at_end & ~steps.any()):
                    m.next = "SCAN"
            with m.State("TOP_K"):
                m.d.comb += [walking.eq(1), emitting.eq(1)]
                with m.If(at_end):
                    m.next = "END"
            with m.State("END"):
                with m.If(enable & looked_up & end):
                    m.next = "IDLE"
        return m

    def _scores(self, m, command, enable, valid):
        """Score entries; each comes out with its ``score``, some steps later.

        Norms that are all one have the magnitude itself as score where only the order counts: it
        has fewer digits than its square.
        """
        lanes = exact_log2(self.config.vector_lanes)
        given = self.i_entries.p
        one = Signal()
        m.d.sync += one.eq(command.norms == 0)
        m.d.comb += [
            self.read.enable.eq(enable & valid & ~given.end),
            self.read.address.eq(command.norms + given.index[lanes:]),
        ]
        pipeline = Pipeline(m, enable=enable, valid=valid)
        at = pipeline.step(index=given.index, value=given.value, end=given.end)
        at = pipeline.step(index=at.index, value=at.value, end=at.end)

        # While the output waits, the next norm displaces the one that memory delivers.
        norm, waiting = Signal(NORM_BITS), Signal(NORM_BITS, reset_less=True)
        waits = Signal()
        m.d.sync += waits.eq(~enable)
        with m.If(~waits):
            m.d.sync += waiting.eq(norm)
        m.d.comb += norm.eq(Mux(waits, waiting, self.read.data[at.index[:lanes]]))
        magnitude = Mux(at.value[-1], -at.value, at.value)[:MAGNITUDE_BITS]
        at = pipeline.step(index=at.index, value=at.value, end=at.end, magnitude=magnitude,
                           product=Mux(one, 1, norm))
        for width, factor in ((PRODUCT_BITS, at.magnitude), (SCORE_BITS, None)):
            if factor is None:
                factor = Mux(one & command.largest, 1, at.magnitude)
            terms = [Mux(factor[k], at.product, 0) for k in range(MAGNITUDE_BITS)]
            step = 1
            while len(terms) > 1:
                pairs = [terms[k:k + 2] for k in range(0, len(terms), 2)]
                terms = [pair[0] + (pair[1] << step) if pair[1:] else pair[0] for pair in pairs]
                step *= 2
                at = pipeline.step(index=at.index, value=at.value, end=at.end,
                                   magnitude=at.magnitude,
                                   **{f"term_{k}": term for k, term in enumerate(terms)})
                terms = [getattr(at, f"term_{k}") for k in range(len(terms))]
            at.product = terms[0][:width]
        at.score = at.product
        return at
