"""The walk by row: an activation for each lane, and the sum of a row's products."""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from hw.common.block_ram import LUT_DEPTH, BlockRam
from hw.config import EngineConfig
from hw.engine.dot_tree import RowTree
from hw.engine.gated_adder import GatedAdder
from hw.engine.loop_nest import row_operation_layout
from hw.engine.result_queue import row_result_layout

__all__ = ["RowSums", "activation_layout"]

# Bits of a byte and of a word of a block RAM: a byte has its own write enable.
_BYTE_WIDTH = 9
_WORD_WIDTH = 36


def activation_layout(config: EngineConfig) -> data.StructLayout:
    """Layout of an activation for the walk by row, and its column.

    With ``all`` it is that of all columns that share a word with this one.
    """
    return data.StructLayout({
        "index": range(config.row_columns),
        "value": signed(config.activation_width),
        "all": 1,
    })


class _ActivationMemory(wiring.Component):
    """Activations, written one by one or a word at once, read for all lanes at once.

    Members
    -------
    i : In(stream) of :func:`activation_layout`
        Always taken; written two cycles later.
    group : In
        Word to be read.
    values : array of Out, one for each lane
        What it holds, two cycles later.
    """

    i: stream.Interface
    group: Signal
    values: list[Signal]

    def __init__(self, config: EngineConfig):
        self.config = config
        super().__init__({
            "i": In(stream.Signature(activation_layout(config))),
            "group": In(range(config.row_columns // config.lanes)),
            "values": Out(signed(config.activation_width)).array(config.lanes),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config
        # As many lanes as fit share a block RAM, a power of two.
        field_width = -(-config.activation_width // _BYTE_WIDTH) * _BYTE_WIDTH
        most = max(1, _WORD_WIDTH // field_width)
        fields = min(config.lanes, 1 << (most.bit_length() - 1))
        lane_bits, field_bits = exact_log2(config.lanes), exact_log2(fields)

        index = self.i.p.index
        group = Signal.like(self.group, name="written_group", reset_less=True)
        value = Signal(field_width, reset_less=True)
        mask = Signal(fields, reset_less=True)
        m.d.comb += self.i.ready.eq(1)
        m.d.sync += [
            group.eq(index[lane_bits:]),
            value.eq(self.i.p.value),
            mask.eq(Mux(self.i.p.all, -1, 1 << index[:field_bits])),
        ]
        for k in range(config.lanes // fields):
            write = Signal(name=f"write_{k}")
            m.d.sync += write.eq(self.i.valid
                                 & (self.i.p.all | (index[field_bits:lane_bits] == k)))
            m.submodules[f"words_{k}"] = ram = BlockRam(
                width=fields * field_width, depth=config.row_columns // config.lanes,
                fields=fields, target=config.target,
                # LUT RAM takes 9 LUT4-eq for each lane: right where accumulators are LUT RAM too,
                # as on devices with few block RAMs.
                blocks=config.accumulator_depth > LUT_DEPTH)
            m.d.comb += [
                ram.write_address.eq(group),
                ram.write_data.eq(value.replicate(fields)),
                ram.write.eq(write),
                ram.write_mask.eq(mask),
                ram.read_address.eq(self.group),
                ram.read_enable.eq(1),
                ram.output_enable.eq(1),
            ]
            for field in range(fields):
                m.d.comb += self.values[k * fields + field].eq(
                    ram.read_data.word_select(field, field_width)[:config.activation_width])
        return m


class RowSums(wiring.Component):
    """Sums of the listed rows: a weight word a cycle, and a result after the last one of a row.

    .. code-block:: text

        sum = sum(3**plane * sum(trit[lane] * activation[group * lanes + lane]))

    modulo ``2**accumulator_width``. Nothing waits.

    Parameters
    ----------
    config : EngineConfig

    Members
    -------
    i_activations : In(stream) of :func:`activation_layout`
        Always taken. What is never written is zero from power-up on.
    group : In
        One cycle before the operation that it belongs to.
    operation : In of :func:`hw.engine.loop_nest.row_operation_layout`
    nonzero, negative : arrays of In(1), one for each lane
        Trits of the operation's word.
    o : Out of :func:`hw.engine.result_queue.row_result_layout`
    under_way : Out(1)
        A product's last result is yet to be delivered.
    busy : Out(1)
        There is something in the unit, or an activation comes.
    """

    i_activations: stream.Interface
    group: Signal
    operation: data.View
    nonzero: list[Signal]
    negative: list[Signal]
    o: data.View
    under_way: Signal
    busy: Signal

    def __init__(self, config: EngineConfig):
        self.config = config
        super().__init__({
            "i_activations": In(stream.Signature(activation_layout(config))),
            "group": In(range(config.row_columns // config.lanes)),
            "operation": In(row_operation_layout(config)),
            "nonzero": In(1).array(config.lanes),
            "negative": In(1).array(config.lanes),
            "o": Out(row_result_layout(config)),
            "under_way": Out(1), "busy": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        config = self.config
        m.submodules.activations = activations = _ActivationMemory(config)
        # Without words the tree stands still, and the simulator skips it. On ECP5 an enable that
        # reaches all of it would only cost clock.
        tree, summing = RowTree(config), Signal()
        m.submodules.tree = EnableInserter(summing)(tree) if config.target == "generic" else tree
        wiring.connect(m, wiring.flipped(self.i_activations), activations.i)
        m.d.comb += activations.group.eq(self.group)
        for lane in range(config.lanes):
            m.d.comb += tree.activations[lane].eq(activations.values[lane])
            with m.If(self.operation.word | (config.target != "generic")):
                m.d.sync += [tree.nonzero[lane].eq(self.nonzero[lane]),
                             tree.negative[lane].eq(self.negative[lane])]

        # The operation beside its data.
        under_way = [self.operation.last]
        words = []                              # in the tree
        inside: list[Value] = []

        def later(operation):
            after = Signal(row_operation_layout(config), name=f"operation_{len(under_way)}")
            m.d.sync += after.eq(operation)
            under_way.append(after.last)
            inside.extend((after.word, after.result))
            return after

        at = self.operation
        for _ in range(1 + tree.latency):
            at = later(at)
            words.append(at.word)
        m.d.comb += summing.eq(Cat(words).any())

        # A plane weighs three if it is odd, times nine for each two planes below it.
        total: Value = tree.total
        for step in range((config.max_planes + 1) // 2 if config.max_planes > 1 else 0):
            shift = 3 if step else 1
            gate = at.plane >= 2 * step if step else at.plane[0]
            largest = 3 ** min(2 * step + 1, config.max_planes - 1)
            width = min(len(tree.total) + (largest - 1).bit_length(), config.accumulator_width)
            extended = Signal(signed(width), name=f"total_{step}")
            m.submodules[f"plane_{step}"] = adder = GatedAdder(width=width - shift,
                                                               target=config.target)
            weighted = Signal(signed(width), name=f"weighted_{step}", reset_less=True)
            m.d.comb += [
                extended.eq(total),
                adder.base.eq(extended[shift:]),
                adder.addend.eq(extended),
                adder.gate.eq(gate),
            ]
            m.d.sync += weighted.eq(Cat(extended[:shift], adder.total))
            total, at = weighted, later(at)

        m.submodules.sum = adder = GatedAdder(width=config.accumulator_width, target=config.target)
        m.d.comb += [adder.base.eq(total), adder.addend.eq(self.o.total),
                     adder.gate.eq(~at.first)]
        with m.If(at.word):
            m.d.sync += self.o.total.eq(adder.total)
        with m.If(at.last):
            m.d.sync += self.o.total.eq(0)
        m.d.sync += [self.o.valid.eq(at.result), self.o.last.eq(at.last)]
        written = Signal(2)                     # activations on their way
        m.d.sync += written.eq(Cat(self.i_activations.valid, written))
        m.d.comb += [
            self.under_way.eq(Cat(under_way, self.o.last).any()),
            self.busy.eq(Cat(self.i_activations.valid, written, inside, self.o.valid,
                             self.under_way).any()),
        ]
        return m
