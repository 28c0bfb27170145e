"""The way out of the ternary engine: one bank's results a cycle, and a queue for them."""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from hw.common.block_ram import BlockRam
from hw.config import RESULT_DEPTH, RESULT_SPARE, EngineConfig

__all__ = ["ResultQueue", "result_layout", "row_result_layout"]


def result_layout(config: EngineConfig) -> data.StructLayout:
    """Layout of a result transfer."""
    return data.StructLayout({
        "values": data.ArrayLayout(signed(config.accumulator_width), config.result_lanes),
        "last": 1,
    })


def row_result_layout(config: EngineConfig) -> data.StructLayout:
    """Layout of a result of the walk by row, in a cycle with ``valid``."""
    return data.StructLayout({
        "total": signed(config.accumulator_width),
        "valid": 1,
        "last": 1,
    })


class ResultQueue(wiring.Component):
    """Joins the banks, of which all but one deliver zero, and queues what they deliver.

    A result of the walk by row takes the place of what the banks deliver in the last level.

    The banks are joined by a registered tree of ORs of four inputs; there is no multiplexer. An
    operation that reads reserves its place when it is issued and arrives ``latency`` cycles later,
    so nothing in between ever waits.

    Parameters
    ----------
    config : EngineConfig

    Members
    -------
    reserve : In(1)
        A read is issued; only while ``room``.
    room : Out(1)
        There is a place.
    banks : In(lanes * accumulator_width)
        What the lanes deliver.
    valid, last : In(1)
        ``banks`` holds a transfer; it is the product's last.
    row : In of :func:`row_result_layout`
        A result by row; only if there is that walk.
    o_results : Out(stream) of :func:`result_layout`
        Three cycles and the levels of the tree after ``valid``, at the earliest.
    """

    reserve: Signal
    room: Signal
    banks: Signal
    valid: Signal
    last: Signal
    o_results: stream.Interface

    def __init__(self, config: EngineConfig):
        self.config = config
        members = {"row": In(row_result_layout(config))} if config.row_columns else {}
        super().__init__({
            "reserve": In(1), "room": Out(1),
            "banks": In(config.lanes * config.accumulator_width),
            "valid": In(1), "last": In(1),
            "o_results": Out(stream.Signature(result_layout(config))),
        } | members)

    def elaborate(self, platform):
        m = Module()
        config = self.config
        width = config.result_lanes * config.accumulator_width

        level = 0
        parts = [self.banks.word_select(k, width)
                 for k in range(config.lanes // config.result_lanes)]
        valid, last = self.valid, self.last
        while len(parts) > 1:
            joined: list[Value] = []
            for k in range(0, len(parts), 4):
                value = parts[k]
                for other in parts[k + 1:k + 4]:
                    value = value | other
                joined.append(value)
            if len(joined) == 1:
                joined[0], valid, last = self._with_row(joined[0], valid, last)
            for k, value in enumerate(joined):
                joined[k] = part = Signal(width, name=f"joined_{level}_{k}", reset_less=True)
                m.d.sync += part.eq(value)
            next_valid, next_last = Signal(name=f"valid_{level}"), Signal(name=f"last_{level}")
            m.d.sync += [next_valid.eq(valid), next_last.eq(last)]
            parts, valid, last, level = joined, next_valid, next_last, level + 1
        if level == 0:
            parts[0], valid, last = self._with_row(parts[0], valid, last)

        m.submodules.queue = queue = BlockRam(width=width + 1, depth=RESULT_DEPTH,
                                              target=config.target)
        address = ceil_log2(RESULT_DEPTH)
        reserved = Signal(address)
        occupied = Signal(address)
        written = Signal(address)
        fetched = Signal(address)
        looked_up = Signal()                    # first stage of the RAM's read holds a transfer
        m.d.comb += [
            queue.write_address.eq(written),
            queue.write_data.eq(Cat(parts[0], last)),
            queue.write.eq(valid),
            queue.write_mask.eq(1),
            queue.read_address.eq(fetched),
            queue.output_enable.eq(~self.o_results.valid | self.o_results.ready),
            queue.read_enable.eq(~looked_up | queue.output_enable),
            Cat(self.o_results.p.values.as_value(), self.o_results.p.last).eq(queue.read_data),
        ]
        m.d.sync += [
            reserved.eq(reserved + self.reserve),
            occupied.eq(reserved - fetched),
            self.room.eq(~occupied[ceil_log2(RESULT_SPARE):].all()),
            written.eq(written + valid),
        ]
        with m.If(queue.output_enable):
            m.d.sync += self.o_results.valid.eq(looked_up)
        with m.If(queue.read_enable):
            m.d.sync += [
                looked_up.eq(fetched != written),
                fetched.eq(fetched + (fetched != written)),
            ]
        return m

    def _with_row(self, values, valid, last):
        """Return the arguments, or a result by row where there is one."""
        if not self.config.row_columns:
            return values, valid, last
        return (Mux(self.row.valid, self.row.total.as_unsigned(), values), valid | self.row.valid,
                Mux(self.row.valid, self.row.last, last))
