"""The ternary engine against the exact product: every shape that has an edge, with exact cycles.

Cases with ``rows`` have the walk by row as well, and run products of both kinds.
"""

import dataclasses
import json
import os
import pathlib
import tempfile
from typing import ClassVar

import cocotb
import numpy as np

from hw.config import RESULT_DEPTH, EngineConfig
from hw.engine.engine import TernaryEngine
from sim.golden.ternary import row_product, ternary_product
from sim.golden.trits import pack_words, planes
from sim.resets import resets_in_mid_work
from sim.runner import bench_case, run_bench
from sim.streams import StreamSink, StreamSource, start
from sim.timing.units import (
    engine_cycles,
    engine_lane_words,
    engine_period,
    engine_row_cycles,
    engine_row_period,
    engine_sequence,
)

CONFIGURATIONS = {
    "wide": EngineConfig(),
    "narrow": EngineConfig(lanes=10, accumulator_width=14, accumulator_depth=16, max_planes=2,
                           max_batch=3, index_width=9, packing="3in5", result_lanes=2),
    "ecp5": EngineConfig(lanes=8, accumulator_width=28, accumulator_depth=16, max_planes=3,
                         result_lanes=4, target="ecp5"),
}
CONFIGURATIONS |= {
    "wide_rows": EngineConfig(row_columns=1024),
    "narrow_rows": EngineConfig(lanes=8, accumulator_width=16, accumulator_depth=8, max_planes=4,
                                max_batch=3, index_width=9, packing="3in5", result_lanes=2,
                                row_columns=24),
    # Accumulators and activations in block RAM; those of `ecp5` are LUT RAM.
    "ecp5_rows": dataclasses.replace(CONFIGURATIONS["ecp5"], accumulator_depth=64, max_planes=5,
                                     row_columns=64),
}
#: 64 lanes and both walks take minutes under Icarus; `narrow_rows` has everything but the width.
SLOW = ("wide_rows", "wide-icarus",
        "ecp5-verilator", "ecp5_rows-verilator", "narrow_rows-verilator")
DUTS = {name: lambda config=config: TernaryEngine(config)
        for name, config in CONFIGURATIONS.items()}
MODELS = [pathlib.Path(__file__).parents[1] / "models" / "ecp5.v"]

#: This module is also imported to list the cases.
_CASE = os.environ.get("TALLY_CASE", "wide")
_HAS_ROWS = CONFIGURATIONS[_CASE].row_columns > 0

#: File to which case ``wide_rows`` writes its measured cycles.
RESULTS_VARIABLE = "TALLY_ENGINE_RESULTS"


@dataclasses.dataclass(frozen=True)
class Product:
    """A product by column to be run: shape, and how its numbers are made."""

    rows: int
    columns: int
    planes: int = 1
    batch: int = 1
    data: str = "random"
    walk: ClassVar = "column"

    @property
    def shape(self) -> dict[str, int]:
        """What the cycles depend on."""
        return {"rows": self.rows, "columns": self.columns, "planes": self.planes,
                "batch": self.batch}

    def job(self, config: EngineConfig) -> dict[str, int]:
        """Return the job."""
        return config.job(self.rows, planes=self.planes, batch=self.batch)

    def lane_words(self, config: EngineConfig) -> int:
        """Count the useful cycles."""
        return engine_lane_words(config, **self.shape)

    def make(self, rng: np.random.Generator, config: EngineConfig, activations):
        """Make the numbers; the indices are in no order and may repeat.

        Returns
        -------
        indices, entries : list
            Listed columns, and the list without its end.
        trits : array, shape (planes, lanes' side, listed)
        expected : array, shape (transfers, result_lanes)
        """
        limit = (3 ** self.planes - 1) // 2
        weights = rng.integers(-limit, limit + 1, (self.rows, self.columns))
        values = rng.integers(-128, 128, (self.columns, self.batch))
        indices = rng.integers(0, config.max_columns, self.columns)
        if self.data == "highest":              # -128 times -limit, the largest there is
            weights[:], values[:] = -limit, -128
        elif self.data == "lowest":
            weights[:], values[:] = limit, -128
        elif self.data == "sparse":             # most words have zeros only: nothing is written
            weights[rng.random(weights.shape) < 0.95] = 0
        entries = [{"index": index, "value": value, "end": 0}
                   for index, row in zip(indices.tolist(), values.tolist(), strict=True)
                   for value in row]
        exact = ternary_product(weights, values, accumulator_width=config.accumulator_width)
        transfers = config.result_transfers(self.rows)
        expected = np.zeros((self.batch, transfers * config.result_lanes), dtype=np.int64)
        expected[:, :self.rows] = exact     # lanes without a row deliver zero
        return (indices.tolist(), entries, planes(weights, self.planes),
                expected.reshape(-1, config.result_lanes))


@dataclasses.dataclass(frozen=True)
class RowProduct:
    """A product by row: how many rows are listed, of how many columns."""

    rows: int
    columns: int
    planes: int = 1
    data: str = "random"
    walk: ClassVar = "row"

    @property
    def shape(self) -> dict[str, int]:
        """What the cycles depend on."""
        return {"rows": self.rows, "columns": self.columns, "planes": self.planes}

    def job(self, config: EngineConfig) -> dict[str, int]:
        """Return the job."""
        return config.row_job(self.columns, planes=self.planes)

    def lane_words(self, config: EngineConfig) -> int:
        """Count the useful cycles."""
        return self.rows * self.planes * config.groups(self.columns)

    def make(self, rng: np.random.Generator, config: EngineConfig, activations):
        """As for :class:`Product`; ``activations`` are those of the engine."""
        limit = (3 ** self.planes - 1) // 2
        activations = activations[:self.columns]
        weights = rng.integers(-limit, limit + 1, (self.rows, self.columns))
        if self.data == "highest":              # the largest sum that these activations have
            weights[:] = limit * np.where(activations < 0, -1, 1)
        elif self.data == "lowest":
            weights[:] = limit * np.where(activations < 0, 1, -1)
        elif self.data == "zero":
            weights[:] = 0
        indices = rng.integers(0, config.max_columns, self.rows).tolist()
        values = rng.integers(-128, 128, self.rows).tolist()        # not looked at
        entries = [{"index": index, "value": value, "end": 0}
                   for index, value in zip(indices, values, strict=True)]
        expected = np.zeros((self.rows + 1, config.result_lanes), dtype=np.int64)
        expected[:-1, 0] = row_product(weights, activations,
                                       accumulator_width=config.accumulator_width)
        return indices, entries, planes(weights.T, self.planes), expected


#: The shapes whose utilization has a bar, and the bar.
MEASURED: dict[Product | RowProduct, float] = {
    Product(256, 256): 0.95, Product(1024, 256): 0.95, Product(64, 256): 0.90,
    Product(192, 576): 0.90, Product(32, 32, batch=8): 0.80,
    RowProduct(13, 256): 0.65, RowProduct(52, 256): 0.90, RowProduct(1024, 256): 0.95,
    RowProduct(52, 1024): 0.95, RowProduct(52, 256, planes=3): 0.95}


def column_edges(config: EngineConfig) -> list[Product]:
    """Return products by column around each edge: lanes, slots, planes, batch, list, numbers."""
    lanes, deep = config.lanes, config.max_planes
    wide = config.max_batch
    return [
        Product(lanes, 9), Product(1, 5), Product(lanes - 1, 4), Product(lanes + 1, 6),
        Product(2 * lanes, 7), Product(3 * lanes + 1, 5),                   # 2, 4 slots
        Product(lanes, 6, batch=2), Product(1, 4, planes=deep, batch=2),    # 2 slots
        Product(lanes, 5, batch=3), Product(2 * lanes, 5, planes=2, batch=wide),
        *[Product(lanes, 4, planes=count) for count in range(2, deep + 1)],
        Product(2 * lanes, 3, planes=deep), Product(4 * lanes, 3, planes=deep),
        Product(lanes * config.accumulator_depth, 1) if config.accumulator_depth < 64
        else Product(lanes * 5, 2),
        Product(lanes, 0), Product(2 * lanes, 0), Product(lanes + 1, 0, batch=wide),
        Product(1, 1), Product(lanes, 1, planes=deep, batch=wide),
        Product(lanes, 16, data="highest"), Product(lanes, 16, data="lowest"),
        Product(3 * lanes, 8, planes=deep, data="highest"),
        Product(lanes, 8, planes=deep, data="lowest"),
        Product(2 * lanes, 12, data="sparse"), Product(lanes, 12, data="sparse"),
        Product(lanes, 200 if lanes == 64 else 20, planes=deep, data="highest"),    # wraps around
    ]


def row_edges(config: EngineConfig) -> list[RowProduct]:
    """Return products by row around each edge: list, lanes, groups, planes, numbers."""
    lanes, deep, full = config.lanes, config.max_planes, config.row_columns
    if not full:
        return []
    return [
        RowProduct(0, full), RowProduct(1, full), RowProduct(0, 1, planes=deep), RowProduct(1, 1),
        RowProduct(9, 1), RowProduct(5, 1, planes=deep), RowProduct(40, lanes),
        RowProduct(4, lanes - 1), RowProduct(3, lanes + 1), RowProduct(5, 2 * lanes),
        RowProduct(6, full - 1), RowProduct(17, full, planes=2),
        *[RowProduct(5, lanes + 3, planes=count) for count in range(1, deep + 1)],
        *[RowProduct(3, lanes, planes=count) for count in range(1, deep + 1)],
        *[RowProduct(2, full, planes=count, data=data)
          for count in (1, deep) for data in ("highest", "lowest")],
        RowProduct(3, full, planes=deep, data="zero"),
    ]


def edges(config: EngineConfig) -> list[Product | RowProduct]:
    """Return products of both kinds around each edge."""
    return [*column_edges(config), *row_edges(config)]


def by_formula(config: EngineConfig, product: Product | RowProduct) -> dict[str, int]:
    """Cycles of a single product, and from one to the next, as the formulas have them."""
    formulas = ((engine_row_cycles, engine_row_period) if product.walk == "row"
                else (engine_cycles, engine_period))
    single, period = (formula(config, **product.shape) for formula in formulas)
    return {"single": single, "back_to_back": period}


class Run:
    """Products sent through the engine one behind the other, checked as they come out."""

    def __init__(self, dut, *, stall: float = 0.0, seed: int = 0):
        self.config = CONFIGURATIONS[bench_case()]
        self._stall = stall
        spec = DUTS[bench_case()]()
        self._rng = np.random.default_rng(seed)

        def end(kind, name):
            shape = getattr(spec, name).payload.shape()
            return kind(dut, name, shape, stall=stall, seed=int(self._rng.integers(1 << 30)))
        self.jobs, self.entries, self.words = (end(StreamSource, name) for name
                                               in ("i_jobs", "i_entries", "i_words"))
        self.columns, self.results = (end(StreamSink, name) for name in ("o_columns", "o_results"))
        #: What the engine's activations are: zero from power-up on.
        self.activations = np.zeros(self.config.row_columns, dtype=np.int64)
        if self.config.row_columns:
            self._activations = end(StreamSource, "i_activations")

    async def write(self, activations: dict[int, int]) -> None:
        """Write activations by their columns, in the order given."""
        for index, value in activations.items():
            self.activations[index] = value
        self._activations.first_cycle = -1
        await self._activations.send({"index": index, "value": value, "all": 0}
                                     for index, value in activations.items())
        if not self._stall:                     # each is taken at once
            taken = self._activations.last_cycle - self._activations.first_cycle + 1
            assert taken == len(activations)

    async def write_word(self, index: int, value: int) -> None:
        """Write the same activation for all columns that share a word with this one."""
        first = index // self.config.lanes * self.config.lanes
        self.activations[first:first + self.config.lanes] = value
        await self._activations.send([{"index": index, "value": value, "all": 1}])

    async def write_all(self, low: int = -128, high: int = 127) -> None:
        """Write all activations, in random order."""
        order = self._rng.permutation(self.config.row_columns).tolist()
        values = self._rng.integers(low, high + 1, len(order)).tolist()
        await self.write(dict(zip(order, values, strict=True)))

    async def products(self, products: list[Product | RowProduct]) -> list[int]:
        """Run ``products``; return the cycle of each one's last result."""
        config = self.config
        jobs, entries, words, listed, expected = [], [], [], [], []
        for product in products:
            indices, own, trits, transfers = product.make(self._rng, config, self.activations)
            jobs.append(product.job(config))
            entries += [*own, {"index": 0, "value": 0, "end": 1}]
            words += [int.from_bytes(word.tobytes(), "little")
                      for word in pack_words(trits, config).reshape(-1, config.word_bytes)]
            listed += indices
            expected.append(transfers)
        for source, payloads in ((self.jobs, jobs), (self.entries, entries), (self.words, words)):
            cocotb.start_soon(source.send(payloads))
        columns = cocotb.start_soon(self.columns.receive(len(listed)))

        ends = []
        for product, exact in zip(products, expected, strict=True):
            received = await self.results.receive(len(exact))
            assert [transfer.last for transfer in received] == [0] * (len(received) - 1) + [1]
            values = np.array([list(transfer["values"]) for transfer in received])
            np.testing.assert_array_equal(values, exact, err_msg=str(product))
            ends.append(self.results.last_cycle)
        assert [column.index for column in await columns] == listed
        return ends


async def measure(dut, product: Product | RowProduct, *, count: int = 3) -> dict[str, int]:
    """Cycles of a single product, and from one to the next of ``count`` queued ones."""
    run = Run(dut)
    if product.walk == "row":
        await run.write_all(*{"highest": (-128, -128), "lowest": (127, 127)}.get(product.data, ()))
    ends = await run.products([product] * count)
    periods = np.diff(ends)
    if product.walk == "row" and not product.rows:
        periods -= np.arange(len(periods)) % 2
    assert len(set(periods)) == 1, f"{product} after {periods} cycles"
    return {"single": ends[0] - run.entries.first_cycle + 1, "back_to_back": int(periods[0])}


@cocotb.test(timeout_time=4, timeout_unit="ms", skip=not _HAS_ROWS)
async def activations_stay(dut):
    """Activations are zero at first, stay as written, and may be written next to the other walk.

    The first test of all: a reset does not clear them.
    """
    await start(dut)
    config = CONFIGURATIONS[bench_case()]
    full = config.row_columns
    run = Run(dut, seed=9)
    # Of all columns, though hardly any was written: the rest is zero, whatever its weights.
    await run.write({full - 1: -128, 0: 127, config.lanes: -1})
    await run.products([RowProduct(4, full, data="highest")])
    for begin in (1, full // 2):
        await run.write({index: index % 251 - 125 for index in range(begin, full, 3)})
        await run.products([RowProduct(4, full), RowProduct(3, full, planes=config.max_planes)])
    for index, value in ((0, 0), (full - 1, 77)):
        await run.write_word(index, value)
        await run.products([RowProduct(4, full)])
    columns = cocotb.start_soon(run.products([Product(3 * config.lanes, full)]))
    await run.write_all()
    await columns
    await run.products([RowProduct(4, full)])


@cocotb.test(timeout_time=4, timeout_unit="ms")
async def edges_are_exact_in_formula_cycles(dut):
    """Every edge shape, alone and repeated, takes exactly the cycles of the formulas."""
    await start(dut)
    config = CONFIGURATIONS[bench_case()]
    for product in edges(config):
        assert await measure(dut, product) == by_formula(config, product), product


@cocotb.test(timeout_time=4, timeout_unit="ms")
@cocotb.parametrize(stall=[0.1, 0.6])
async def edges_are_exact_under_stalls(dut, stall):
    """All edge shapes in random order, with random stalls on every stream."""
    await start(dut)
    config = CONFIGURATIONS[bench_case()]
    products = edges(config)
    products = [products[k] for k in np.random.default_rng(3).permutation(len(products))]
    run = Run(dut, stall=stall, seed=5)
    if config.row_columns:
        await run.write_all()
    await run.products(products)


@cocotb.test(timeout_time=4, timeout_unit="ms")
async def results_wait_for_their_consumer(dut):
    """More results than the queue holds, and a consumer that takes one in twenty cycles."""
    await start(dut)
    config = CONFIGURATIONS[bench_case()]
    run = Run(dut)
    shape = DUTS[bench_case()]().o_results.payload.shape()
    run.results = StreamSink(dut, "o_results", shape, stall=0.9)
    batch = min(config.max_batch, config.accumulator_depth)
    rows = config.lanes * min(config.accumulator_depth // batch, 8)
    count = -(-2 * RESULT_DEPTH // (config.result_transfers(rows) * batch))
    await run.products([Product(rows, 1, batch=batch)] * count)
    if config.row_columns:      # a result a cycle; then products that are a result and no more
        await run.write_all()
        await run.products([RowProduct(2 * RESULT_DEPTH, config.lanes)])
        await run.products([RowProduct(0, config.lanes)] * (2 * RESULT_DEPTH))


@cocotb.test(timeout_time=4, timeout_unit="ms", skip=not _HAS_ROWS)
async def both_walks_follow_one_another(dut):
    """Products of both kinds, in any order and never waiting, end when the formula says."""
    await start(dut)
    config = CONFIGURATIONS[bench_case()]
    lanes, full = config.lanes, config.row_columns
    kinds: list[Product | RowProduct] = [
        Product(lanes, 6), Product(2 * lanes, 5), Product(3 * lanes, 4), Product(lanes, 1),
        RowProduct(6, full), RowProduct(9, lanes + 1), RowProduct(12, lanes),
        RowProduct(3, full, planes=config.max_planes)]
    rng = np.random.default_rng(8)
    for products in ([kinds[4], kinds[3], kinds[6], kinds[0]],
                     [Product(lanes, 0), kinds[6], Product(lanes, 0), Product(lanes, 6)],
                     [kinds[0], RowProduct(0, full), kinds[2], kinds[4], RowProduct(0, full)],
                     [kinds[k] for k in rng.integers(0, len(kinds), 40)]):
        run = Run(dut)
        await run.write_all()
        ends = await run.products(products)
        expected = engine_sequence(config, [
            product.shape | {"by_row": product.walk == "row"} for product in products])
        assert [end - run.entries.first_cycle + 1 for end in ends] == expected


@cocotb.test(timeout_time=4, timeout_unit="ms")
async def resets(dut):
    """Reset with operations in all stages, entries and results queued; both walks go on right.

    Activations stay as they are over a reset.
    """
    await start(dut)
    config = CONFIGURATIONS[bench_case()]
    lanes, deep, batch = config.lanes, config.max_planes, config.max_batch
    kept = np.zeros(config.row_columns, dtype=np.int64)

    async def work(seed):
        run = Run(dut, stall=0.2, seed=seed)
        run.activations[:] = kept
        products: list[Product | RowProduct] = [
            Product(lanes, 9), Product(2 * lanes, 5), Product(lanes, 7, planes=deep),
            Product(3 * lanes, 4, planes=2), Product(lanes + 1, 6, batch=batch), Product(lanes, 0)]
        if config.row_columns:
            products += [RowProduct(6, config.row_columns), RowProduct(9, lanes, planes=deep),
                         RowProduct(0, lanes), RowProduct(12, 1)]
        order = np.random.default_rng(seed).permutation(len(products))
        await run.products([products[k] for k in order])

    async def fresh(*products):
        run = Run(dut, seed=1)
        run.activations[:] = kept
        await run.products(list(products))

    if config.row_columns:
        run = Run(dut, seed=2)
        await run.write_all()
        kept[:] = run.activations
    first = [RowProduct(3, config.row_columns)] if config.row_columns else []
    await resets_in_mid_work(dut, DUTS[bench_case()](), work,
                             lambda: fresh(*first, Product(lanes, 3)),
                             lambda: fresh(Product(3 * lanes, 2, planes=deep)), resets=20)


@cocotb.test(timeout_time=4, timeout_unit="ms", skip=not _CASE.startswith("wide"))
async def large_products_use_the_lanes(dut):
    """All shapes that have a bar take the cycles of the formulas and pass the bar."""
    await start(dut)
    config = CONFIGURATIONS[bench_case()]
    rows = []
    for product, bar in MEASURED.items():
        if product.walk == "row" and not config.row_columns:
            continue
        found = await measure(dut, product, count=2)
        assert found == by_formula(config, product), product
        for mode, cycles in found.items():
            utilization = product.lane_words(config) / cycles
            assert utilization >= bar, product
            rows.append({"walk": product.walk, **product.shape, "mode": mode, "cycles": cycles,
                         "utilization": round(utilization, 4)})
    if RESULTS_VARIABLE in os.environ:
        pathlib.Path(os.environ[RESULTS_VARIABLE]).write_text(json.dumps(rows))


def measured_rows() -> list[dict]:
    """Run case ``wide_rows`` under Verilator and return the rows of the table of the engine."""
    with tempfile.TemporaryDirectory() as temporary:
        path = pathlib.Path(temporary) / "rows.json"
        os.environ[RESULTS_VARIABLE] = str(path)
        try:
            result = run_bench("engine", "wide_rows", "verilator")
        finally:
            del os.environ[RESULTS_VARIABLE]
        if result.failed:
            raise RuntimeError(f"{result.failed} tests of the engine's bench failed")
        return json.loads(path.read_text())
