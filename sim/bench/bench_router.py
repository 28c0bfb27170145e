"""The router: where entries go, what the walk by row keeps, which columns are read on demand."""

import functools
import random

import cocotb
import numpy as np
from amaranth import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from cocotb.triggers import ReadOnly, RisingEdge

from hw.activations.router import ColumnRouter, EntryCollector
from hw.config import ENTRY_DEPTH, RESULT_DEPTH, AcceleratorConfig, EngineConfig
from hw.engine.loop_nest import entry_layout
from hw.isa import Batch
from sim.resets import resets_in_mid_work
from sim.streams import StreamSink, StreamSource, cycle, start

CONFIGURATIONS = {
    "both_walks": AcceleratorConfig(
        engine=EngineConfig(lanes=8, result_lanes=4, row_columns=64, max_batch=4, index_width=9,
                            accumulator_width=20, accumulator_depth=16, max_planes=3, port_bytes=4),
        vector_depth=1024, list_depth=64, queue_words=32),
    "one_walk": AcceleratorConfig(
        engine=EngineConfig(lanes=4, result_lanes=2, max_batch=1, index_width=9, port_bytes=1),
        vector_depth=512, list_depth=64, queue_words=16),
}

_SINGLE = Batch()


class Router(wiring.Component):
    """Both units side by side, and behind one the way in which an engine accepts entries.

    ``accepting`` lets the engine accept an entry; ``batch_log2`` is of the product that it is in.
    """

    def __init__(self, config: AcceleratorConfig):
        self.collector, self.router = EntryCollector(config), ColumnRouter(config)
        members = {}
        for prefix, unit in (("c_", self.collector), ("r_", self.router)):
            for name, member in unit.signature.members.items():
                if name != "i_columns":
                    members[prefix + name] = member
        super().__init__({**members, "accepting": In(1), "batch_log2": In(2),
                          "column_index": Out(config.engine.index_width), "column_valid": Out(1)})

    def elaborate(self, platform):
        """Pass the ports on; a column is requested with the first of its entries."""
        m = Module()
        m.submodules.collector, m.submodules.router = self.collector, self.router
        for prefix, unit in (("c_", self.collector), ("r_", self.router)):
            for name, member in unit.signature.members.items():
                if name == "i_columns" or (prefix, name) == ("r_", "o_entries"):
                    continue
                inner, outer = getattr(unit, name), getattr(self, prefix + name)
                if member.is_port:
                    m.d.comb += (inner.eq(outer) if member.flow is In else outer.eq(inner))
                else:
                    wiring.connect(m, wiring.flipped(outer), inner)
        engine, columns, out = self.router.o_entries, self.router.i_columns, self.r_o_entries
        entry = Signal(range(8))                # of its column
        first = (entry == 0) & ~engine.p.end
        accepts = self.accepting & (~first | columns.ready)
        m.d.comb += [
            columns.valid.eq(engine.valid & self.accepting & first),
            columns.p.index.eq(engine.p.index),
            engine.ready.eq(accepts),
            # To the bench, transfers are those accepted: it is always ready.
            out.p.eq(engine.p), out.valid.eq(engine.valid & accepts),
            self.column_valid.eq(columns.valid & columns.ready),
            self.column_index.eq(columns.p.index),
        ]
        with m.If(engine.valid & accepts):
            m.d.sync += entry.eq((entry + 1) & ((1 << self.batch_log2) - 1))
            with m.If(engine.p.end):
                m.d.sync += entry.eq(0)
        return m


DUTS = {name: functools.partial(Router, config) for name, config in CONFIGURATIONS.items()}


class Bench:
    """All ends of both units, and what was seen at those that are always ready."""

    def __init__(self, dut, *, stall: float, seed: int):
        self.dut = dut
        self.config = next(config for config in CONFIGURATIONS.values()
                           if hasattr(dut, "c_batch") == (config.engine.max_batch > 1))
        self.engine = self.config.engine
        self.rng = random.Random(seed)
        self.stall = stall
        entry = entry_layout(self.engine)

        def source(name):
            return StreamSource(dut, name, entry, stall=stall, seed=self.rng.randrange(1 << 30))
        self.token, self.quantized = source("c_i_token"), source("c_i_entries")
        self.listed = source("r_i_entries")
        #: {slot: activation} of the walk by row, as its memory would hold them.
        self.activations = np.full(max(1, self.engine.row_columns), 99)
        #: What it must hold.
        self.expected = self.activations.copy()
        #: Entries that the engine accepted, {cycle, index, value, end}.
        self.accepted: list[tuple[int, int, int, int]] = []
        #: Index of each column that the engine requested.
        self.requested: list[int] = []
        self.entry = entry

    def start(self) -> None:
        """Watch, and let the engine accept at random."""
        cocotb.start_soon(self._watch())

    async def _watch(self) -> None:
        dut = self.dut
        activation = (EntryCollector(self.config).o_activations.p.shape()
                      if self.engine.row_columns else None)
        while True:
            dut.accepting.value = int(self.rng.random() >= self.stall)
            await ReadOnly()
            now = cycle() + 1
            if dut.r_o_entries__valid.value:
                payload = self.entry.from_bits(dut.r_o_entries__payload.value.to_unsigned())
                self.accepted.append((now, payload.index, payload.value, payload.end))
            if dut.column_valid.value:
                self.requested.append(int(dut.column_index.value))
            if activation is not None and dut.c_o_activations__valid.value:
                found = activation.from_bits(dut.c_o_activations__payload.value.to_unsigned())
                lanes = self.engine.lanes
                if found.all:
                    first = found.index // lanes * lanes
                    self.activations[first:first + lanes] = found.value
                else:
                    self.activations[found.index] = found.value
            await RisingEdge(dut.clk)

    async def quantize(self, values: np.ndarray, *, sparse: bool, masked: bool,
                       batch: Batch = _SINGLE) -> list[tuple[int, int, int]]:
        """Offer a QUANTIZE, begin it, send its entries; return those that must come out."""
        dut, rng = self.dut, self.rng
        words = len(values) // self.config.vector_lanes
        if self.engine.max_batch > 1:
            layout = EntryCollector(self.config).batch.shape()
            dut.c_batch.value = layout.const({"log2": batch.log2, "slot": batch.slot,
                                              "across": batch.across}).as_bits()
        if masked:
            dut.c_masked.value = 1
            await RisingEdge(dut.clk)
            dut.c_masked.value = 0
        dut.c_sparse.value, dut.c_words.value = int(sparse), words
        dut.c_quantize_valid.value = 1
        for _ in range(rng.randrange(3)):       # the quantizer is busy
            await RisingEdge(dut.clk)
        dut.c_quantize_begins.value = 1
        await RisingEdge(dut.clk)
        dut.c_quantize_valid.value = dut.c_quantize_begins.value = 0
        dut.c_sparse.value = rng.randrange(2)   # those of a next one, which is not offered
        dut.c_words.value = rng.randrange(words + 1)
        for _ in range(words):                  # the first pass of the quantizer
            await RisingEdge(dut.clk)
        kept = [(k, int(value), 0) for k, value in enumerate(values)
                if not sparse or (value and (not masked or rng.random() < 0.5))]
        entries = [*kept, (len(values), 0, 1)]
        assert dut.c_on_demand.value == int(sparse)
        await self.quantized.send({"index": index, "value": value, "end": end}
                                  for index, value, end in entries)
        if self.engine.row_columns and (masked or (not sparse and batch.log2 == 0)):
            if masked:
                # Whole words of the lanes are cleared.
                lanes = self.engine.lanes
                self.expected[:-(-len(values) // lanes) * lanes] = 0
            for index, value, _ in kept:
                self.expected[index] = value
        if batch.log2 and not batch.across:
            return [((index << batch.log2 | batch.slot) % 2 ** self.engine.index_width, value, end)
                    for index, value, end in entries]
        return entries


async def collect(dut, *, stall: float, seed: int, lists: int) -> None:
    """Make lists of all kinds; entries and activations must be those of the model."""
    bench = Bench(dut, stall=stall, seed=seed)
    bench.start()
    rng, config = bench.rng, bench.config
    out = StreamSink(dut, "c_o_entries", bench.entry, stall=stall, seed=seed + 7)
    wanted: list[tuple[int, int, int]] = []
    received: list = []

    async def take() -> None:
        while True:
            received.extend(await out.receive(1))

    cocotb.start_soon(take())
    values_of = np.random.default_rng(seed)
    for _ in range(lists):
        kind = rng.choice(("token", "dense", "sparse", "masked", "batch"))
        lanes = config.vector_lanes
        values = values_of.integers(-127, 128, lanes * rng.randint(1, 48 // lanes))
        values[values_of.random(len(values)) < 0.4] = 0
        if kind == "token":
            entries = [(rng.randrange(512), 1, 0), (1, 0, 1)]
            await bench.token.send({"index": index, "value": value, "end": end}
                                   for index, value, end in entries)
            wanted += entries
            await RisingEdge(dut.clk)
            assert dut.c_on_demand.value == 1
        elif kind == "batch" and config.engine.max_batch > 1:
            log2, across = rng.randint(1, 2), rng.random() < 0.3
            for slot in range(1 if across else 1 << log2):
                wanted += await bench.quantize(values, sparse=False, masked=False, batch=Batch(
                    log2=log2, slot=slot, across=across))
        else:
            wanted += await bench.quantize(values, sparse=kind in ("sparse", "masked"),
                                           masked=kind == "masked")
        while len(received) < len(wanted):
            await RisingEdge(dut.clk)
        await RisingEdge(dut.clk)
        if config.engine.row_columns:
            np.testing.assert_array_equal(bench.activations, bench.expected)
    assert [(entry.index, entry.value, entry.end) for entry in received] == wanted


async def walk(dut, *, stall: float, seed: int, products: int) -> None:
    """Queue products of all kinds and walk their lists; compare all that is told of them."""
    bench = Bench(dut, stall=stall, seed=seed)
    bench.start()
    rng, engine = bench.rng, bench.engine
    columns_end = StreamSink(dut, "r_o_columns", bench_columns(bench.config), stall=stall,
                             seed=seed + 3)
    rows_end = StreamSink(dut, "r_o_rows", bench_rows(bench.config), stall=stall, seed=seed + 4)
    columns: list[tuple[int, int, int]] = []
    rows: list[int] = []

    async def take_columns() -> None:
        while True:
            found, = await columns_end.receive(1)
            columns.append((columns_end.last_cycle, found.index, found.end))

    async def take_rows() -> None:
        while True:
            rows.extend(found.index for found in await rows_end.receive(1))

    cocotb.start_soon(take_columns())
    cocotb.start_soon(take_rows())
    queued: list[tuple[bool, bool]] = []
    wanted_entries, wanted_columns, wanted_rows, requested = [], [], [], []
    left = products
    while left or queued:
        while left and len(queued) <= rng.randrange(bench.config.product_depth):
            left -= 1
            by_row = bool(engine.row_columns) and rng.random() < 0.4
            on_demand = rng.random() < 0.5
            dut.r_on_demand.value, dut.r_by_row.value = int(on_demand), int(by_row)
            dut.r_product_queued.value = 1
            await RisingEdge(dut.clk)
            dut.r_product_queued.value = 0
            dut.r_on_demand.value, dut.r_by_row.value = rng.randrange(2), rng.randrange(2)
            queued.append((on_demand or by_row, by_row))
        await RisingEdge(dut.clk)
        dut.r_product_begins.value = 1
        await RisingEdge(dut.clk)
        dut.r_product_begins.value = 0
        on_demand, by_row = queued.pop(0)
        log2 = rng.randrange(3) if engine.max_batch > 1 and not by_row else 0
        dut.batch_log2.value = log2
        indices = sorted(rng.sample(range(2 ** engine.index_width), rng.randrange(12)))
        entries = [(index, rng.randint(-127, 127), 0)
                   for index in indices for _ in range(1 << log2)] + [(99, 0, 1)]
        await bench.listed.send({"index": index, "value": value, "end": end}
                                for index, value, end in entries)
        wanted_entries += entries
        requested += indices
        if on_demand:
            wanted_columns += [(index, 0) for index in indices] + [(99, 1)]
        if by_row:
            wanted_rows += indices
    while len(rows) < len(wanted_rows) or len(columns) < len(wanted_columns):
        await RisingEdge(dut.clk)
    await RisingEdge(dut.clk)
    assert [entry[1:] for entry in bench.accepted] == wanted_entries
    assert [column[1:] for column in columns] == wanted_columns
    assert bench.requested == requested
    assert rows == wanted_rows
    # A column is told with its first entry, and the end to both at once.
    together = {entry[0] for entry in bench.accepted}
    assert {column[0] for column in columns} <= together


def bench_columns(config: AcceleratorConfig):
    """Return the layout of a column for the read engine."""
    return ColumnRouter(config).o_columns.p.shape()


def bench_rows(config: AcceleratorConfig):
    """Return the layout of a row for write-back."""
    return ColumnRouter(config).o_rows.p.shape()


async def begin(dut) -> None:
    """Reset, with every input idle."""
    for name in ("c_quantize_valid", "c_quantize_begins", "c_sparse", "c_words", "c_masked",
                 "r_product_queued", "r_on_demand", "r_by_row", "r_product_begins", "accepting",
                 "batch_log2", "c_i_token__valid", "c_i_entries__valid", "r_i_entries__valid",
                 "c_o_entries__ready", "r_o_columns__ready", "r_o_rows__ready",
                 "r_o_entries__ready"):
        dut[name].value = 0
    if hasattr(dut, "c_batch"):
        dut.c_batch.value = 0
    if hasattr(dut, "c_o_activations__ready"):
        dut.c_o_activations__ready.value = 1
    await start(dut)


@cocotb.test(timeout_time=2, timeout_unit="ms")
@cocotb.parametrize(stall=[0.0, 0.4])
async def entries_and_activations(dut, stall):
    """Make lists of TOKEN and of QUANTIZE: dense, sparse, masked, of a batch."""
    await begin(dut)
    await collect(dut, stall=stall, seed=3, lists=120)


@cocotb.test(timeout_time=2, timeout_unit="ms")
@cocotb.parametrize(stall=[0.0, 0.4])
async def columns_and_rows(dut, stall):
    """Walk lists for products by column and by row, on demand and read whole."""
    await begin(dut)
    await walk(dut, stall=stall, seed=4, products=150)


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def full_rate(dut):
    """Pass an entry a cycle, in the cycle in which it comes, through both units."""
    await begin(dut)
    bench = Bench(dut, stall=0.0, seed=5)
    bench.start()
    out = StreamSink(dut, "c_o_entries", bench.entry)
    columns = StreamSink(dut, "r_o_columns", bench_columns(bench.config))
    taking = cocotb.start_soon(out.receive(65))
    await RisingEdge(dut.clk)
    entries = [{"index": index, "value": 1, "end": index == 64} for index in range(65)]
    await bench.quantized.send(entries)
    await taking
    assert out.last_cycle - out.first_cycle == 64
    assert (out.first_cycle, out.last_cycle) == (bench.quantized.first_cycle,
                                                 bench.quantized.last_cycle)
    for name in ("r_product_queued", "r_product_begins"):
        dut.r_on_demand.value = 1
        dut[name].value = 1
        await RisingEdge(dut.clk)
        dut[name].value = 0
    taking = cocotb.start_soon(columns.receive(65))
    await RisingEdge(dut.clk)
    await bench.listed.send(entries)
    await taking
    assert columns.last_cycle - columns.first_cycle == 64
    assert [entry[0] for entry in bench.accepted] == list(
        range(bench.listed.first_cycle, bench.listed.last_cycle + 1))


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def rows_wait_for_write_back(dut):
    """Let no row of a product by row be lost: the engine waits when as many are on their way."""
    await begin(dut)
    bench = Bench(dut, stall=0.0, seed=6)
    bench.start()
    if not bench.engine.row_columns:
        return
    columns = StreamSink(dut, "r_o_columns", bench_columns(bench.config))
    rows = StreamSink(dut, "r_o_rows", bench_rows(bench.config))
    dut.r_by_row.value = 1
    for name in ("r_product_queued", "r_product_begins"):
        dut[name].value = 1
        await RisingEdge(dut.clk)
        dut[name].value = 0
    count = 2 ** bench.engine.index_width
    depth = RESULT_DEPTH + 4 * ENTRY_DEPTH
    assert count > depth
    cocotb.start_soon(columns.receive(count + 1))
    sending = cocotb.start_soon(bench.listed.send(
        {"index": index % count, "value": 0, "end": index == count} for index in range(count + 1)))
    for _ in range(count + 50):
        await RisingEdge(dut.clk)
    assert len(bench.accepted) == depth
    assert [row.index for row in await rows.receive(count)] == list(range(count))
    await sending


@cocotb.test(timeout_time=2, timeout_unit="ms")
async def resets(dut):
    """Reset between and within lists: no flag, row or product stays."""
    await begin(dut)
    config = Bench(dut, stall=0.0, seed=1).config
    activations = {"c_o_activations__ready": 1} if config.engine.row_columns else {}

    async def work(seed: int) -> None:
        stall = (0.0, 0.3)[seed // 2 % 2]
        if seed % 2:
            await walk(dut, stall=stall, seed=seed, products=10)
        else:
            await collect(dut, stall=stall, seed=seed, lists=10)

    await resets_in_mid_work(
        dut, Router(config), work, lambda: walk(dut, stall=0.0, seed=11, products=4),
        lambda: collect(dut, stall=0.0, seed=12, lists=4), resets=12, idle=activations)
