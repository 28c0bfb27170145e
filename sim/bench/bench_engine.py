"""The ternary engine against the exact product: every shape that has an edge, with exact cycles."""

import dataclasses
import json
import os
import pathlib
import tempfile

import cocotb
import numpy as np

from hw.config import EngineConfig
from hw.ternary.engine import TernaryEngine
from hw.ternary.results import RESULT_DEPTH
from sim.golden.cycles import engine_cycles, engine_lane_words, engine_period
from sim.golden.ternary import ternary_product
from sim.golden.trits import pack_words, planes
from sim.runner import bench_case, run_bench
from sim.streams import StreamSink, StreamSource, start

CONFIGURATIONS = {
    "wide": EngineConfig(),
    "narrow": EngineConfig(lanes=10, accumulator_width=14, accumulator_depth=16, max_planes=2,
                           max_batch=3, index_width=9, packing="3in5", result_lanes=2),
    "ecp5": EngineConfig(lanes=8, accumulator_width=28, accumulator_depth=16, max_planes=3,
                         result_lanes=4, target="ecp5"),
}
DUTS = {name: lambda config=config: TernaryEngine(config)
        for name, config in CONFIGURATIONS.items()}
MODELS = [pathlib.Path(__file__).parents[1] / "models" / "ecp5.v"]

#: File to which case ``wide`` writes its measured cycles.
RESULTS_VARIABLE = "TALLY_ENGINE_RESULTS"


@dataclasses.dataclass(frozen=True)
class Product:
    """A product to be run: shape, and how its numbers are made."""

    rows: int
    columns: int
    planes: int = 1
    batch: int = 1
    data: str = "random"

    @property
    def shape(self) -> dict[str, int]:
        """What the cycles depend on."""
        return {"rows": self.rows, "columns": self.columns, "planes": self.planes,
                "batch": self.batch}

    def make(self, rng: np.random.Generator, config: EngineConfig):
        """Return weights, indices and values; the indices are in no order and may repeat."""
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
        return weights, indices, values


#: The shapes whose utilization has a bar.
MEASURED = (Product(256, 256), Product(1024, 256), Product(64, 256), Product(192, 576),
            Product(32, 32, batch=8))


def edges(config: EngineConfig) -> list[Product]:
    """Return products around each edge: lanes, slots, planes, batch, list, numbers."""
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


class Run:
    """Products sent through the engine one behind the other, checked as they come out."""

    def __init__(self, dut, *, stall: float = 0.0, seed: int = 0):
        self.config = CONFIGURATIONS[bench_case()]
        spec = DUTS[bench_case()]()
        self._rng = np.random.default_rng(seed)

        def end(kind, name):
            shape = getattr(spec, name).payload.shape()
            return kind(dut, name, shape, stall=stall, seed=int(self._rng.integers(1 << 30)))
        self.jobs, self.entries, self.words = (end(StreamSource, name) for name
                                               in ("i_jobs", "i_entries", "i_words"))
        self.columns, self.results = (end(StreamSink, name) for name in ("o_columns", "o_results"))

    async def products(self, products: list[Product]) -> list[int]:
        """Run ``products``; return the cycle of each one's last result."""
        config = self.config
        jobs, entries, words, listed, expected = [], [], [], [], []
        for product in products:
            weights, indices, values = product.make(self._rng, config)
            jobs.append(config.job(product.rows, planes=product.planes, batch=product.batch))
            entries += [{"index": index, "value": value, "end": 0}
                        for index, row in zip(indices.tolist(), values.tolist(), strict=True)
                        for value in row]
            entries.append({"index": 0, "value": 0, "end": 1})
            image = pack_words(planes(weights, product.planes), config)
            words += [int.from_bytes(word.tobytes(), "little")
                      for word in image.reshape(-1, config.word_bytes)]
            listed += indices.tolist()
            expected.append(ternary_product(weights, values,
                                            accumulator_width=config.accumulator_width))
        for source, payloads in ((self.jobs, jobs), (self.entries, entries), (self.words, words)):
            cocotb.start_soon(source.send(payloads))
        columns = cocotb.start_soon(self.columns.receive(len(listed)))

        ends = []
        for product, exact in zip(products, expected, strict=True):
            transfers = config.result_transfers(product.rows)
            received = await self.results.receive(transfers * product.batch)
            assert [transfer.last for transfer in received] == [0] * (len(received) - 1) + [1]
            values = np.array([list(transfer["values"]) for transfer in received])
            values = values.reshape(product.batch, -1)
            np.testing.assert_array_equal(values[:, :product.rows], exact, err_msg=str(product))
            assert not values[:, product.rows:].any(), "Lanes without a row must deliver zero"
            ends.append(self.results.last_cycle)
        assert [column.index for column in await columns] == listed
        return ends


async def measure(dut, product: Product, *, count: int = 3) -> dict[str, int]:
    """Cycles of a single product, and from one to the next of ``count`` queued ones."""
    run = Run(dut)
    ends = await run.products([product] * count)
    periods = set(np.diff(ends).tolist())
    assert len(periods) == 1, f"Products of {product} follow one another after {periods} cycles"
    return {"single": ends[0] - run.entries.first_cycle + 1, "back_to_back": periods.pop()}


@cocotb.test(timeout_time=4, timeout_unit="ms")
async def edges_are_exact_in_formula_cycles(dut):
    """Every edge shape, alone and repeated, takes exactly the cycles of the formulas."""
    await start(dut)
    config = CONFIGURATIONS[bench_case()]
    for product in edges(config):
        assert await measure(dut, product) == {
            "single": engine_cycles(config, **product.shape),
            "back_to_back": engine_period(config, **product.shape),
        }, product


@cocotb.test(timeout_time=4, timeout_unit="ms")
@cocotb.parametrize(stall=[0.1, 0.6])
async def edges_are_exact_under_stalls(dut, stall):
    """All edge shapes in random order, with random stalls on every stream."""
    await start(dut)
    products = edges(CONFIGURATIONS[bench_case()])
    products = [products[k] for k in np.random.default_rng(3).permutation(len(products))]
    await Run(dut, stall=stall, seed=5).products(products)


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


@cocotb.test(timeout_time=4, timeout_unit="ms", skip=os.environ.get("TALLY_CASE") != "wide")
async def large_products_use_the_lanes(dut):
    """All shapes that have a bar take the cycles of the formulas and pass the bar."""
    await start(dut)
    config = CONFIGURATIONS["wide"]
    bars = {(256, 256): 0.95, (1024, 256): 0.95, (64, 256): 0.90, (192, 576): 0.90, (32, 32): 0.80}
    rows = []
    for product in MEASURED:
        for mode, cycles in (await measure(dut, product, count=2)).items():
            formula = engine_cycles if mode == "single" else engine_period
            assert cycles == formula(config, **product.shape)
            utilization = engine_lane_words(config, **product.shape) / cycles
            assert utilization >= bars[product.rows, product.columns]
            rows.append({**product.shape, "mode": mode, "cycles": cycles,
                         "utilization": round(utilization, 4)})
    if RESULTS_VARIABLE in os.environ:
        pathlib.Path(os.environ[RESULTS_VARIABLE]).write_text(json.dumps(rows))


def measured_rows() -> list[dict]:
    """Run case ``wide`` under Verilator and return the rows of the table of the engine."""
    with tempfile.TemporaryDirectory() as temporary:
        path = pathlib.Path(temporary) / "rows.json"
        os.environ[RESULTS_VARIABLE] = str(path)
        try:
            result = run_bench("engine", "wide", "verilator")
        finally:
            del os.environ[RESULTS_VARIABLE]
        if result.failed:
            raise RuntimeError(f"{result.failed} tests of the engine's bench failed")
        return json.loads(path.read_text())
