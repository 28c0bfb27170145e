# amaranth: UnusedElaboratable=no
"""The engine in pysim, in configurations that the cocotb bench has no case for."""

import dataclasses
import itertools

import numpy as np
import pytest
from amaranth.sim import Simulator

from hw.common.block_ram import BlockRam
from hw.config import EngineConfig
from hw.engine.dot_tree import TritAdder
from hw.engine.engine import TernaryEngine
from hw.engine.gated_adder import GatedAdder
from hw.engine.lane import LaneAdder
from hw.engine.slice import EngineSlice
from sim.golden.gearbox import port_payloads
from sim.golden.ternary import row_product, ternary_product
from sim.golden.trits import pack_words, planes
from sim.timing.units import engine_cycles, engine_period, engine_sequence

SMALL = EngineConfig(lanes=4, accumulator_width=16, accumulator_depth=4, max_planes=2, max_batch=2,
                     packing="1in2", result_lanes=2)
CONFIGURATIONS = {
    "small": SMALL,
    "one plane, one vector": dataclasses.replace(SMALL, max_planes=1, max_batch=1),
    "all lanes in a transfer": dataclasses.replace(SMALL, result_lanes=4),
    "one lane in a transfer": dataclasses.replace(SMALL, lanes=12, result_lanes=1),
    "one accumulator": dataclasses.replace(SMALL, accumulator_depth=1),
    "three vectors": dataclasses.replace(SMALL, max_batch=3),
    "5in8": dataclasses.replace(SMALL, lanes=7, result_lanes=7, packing="5in8"),
}


async def put(ctx, stream, payloads):
    for payload in payloads:
        ctx.set(stream.payload, payload)
        ctx.set(stream.valid, 1)
        await ctx.tick().until(stream.ready)
        ctx.set(stream.valid, 0)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_products_and_cycles_equal_golden(name):
    config = CONFIGURATIONS[name]
    batch, depth = min(config.max_batch, config.accumulator_depth), config.max_planes
    shapes = [(rows, 6, count, vectors)
              for rows in (1, config.lanes, config.lanes * (config.accumulator_depth // batch))
              for count in {1, depth} for vectors in {1, batch}]
    rng = np.random.default_rng(2)
    jobs, entries, words, expected, periods = [], [], [], [], []
    for rows, columns, count, vectors in shapes:
        limit = (3 ** count - 1) // 2
        weights = rng.integers(-limit, limit + 1, (rows, columns))
        values = rng.integers(-128, 128, (columns, vectors))
        jobs.append(config.job(rows, planes=count, batch=vectors))
        entries += [{"index": column, "value": value, "end": 0}
                    for column, row in enumerate(values.tolist()) for value in row]
        entries.append({"index": 0, "value": 0, "end": 1})
        image = pack_words(planes(weights, count), config).reshape(-1, config.word_bytes)
        words += [{"codes": int.from_bytes(word.tobytes(), "little")} for word in image]
        product = ternary_product(weights, values, accumulator_width=config.accumulator_width)
        expected += product.tolist()
        shape = {"rows": rows, "columns": columns, "planes": count, "batch": vectors}
        periods.append(engine_period(config, **shape))
    first = engine_cycles(config, rows=1, columns=6, planes=shapes[0][2], batch=shapes[0][3])
    dut = TernaryEngine(config)
    found, vector, ends = [], [], []

    def feed(stream, payloads):
        async def feeder(ctx):
            await put(ctx, stream, payloads)
        return feeder

    async def take(ctx):
        cycle = accepted = 0
        ctx.set(dut.o_columns.ready, 1)
        ctx.set(dut.o_results.ready, 1)
        while len(ends) < len(jobs):
            *_, entry, valid, payload = await ctx.tick().sample(
                dut.i_entries.valid & dut.i_entries.ready, dut.o_results.valid,
                dut.o_results.payload)
            cycle += 1
            accepted = accepted or (cycle if entry else 0)
            if valid:
                vector.extend(payload["values"])
                rows = len(expected[len(found)])
                if len(vector) >= rows:
                    found.append(vector[:rows])
                    vector.clear()
                if payload["last"]:
                    ends.append(cycle - accepted + 1)

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    for stream, payloads in ((dut.i_jobs, jobs), (dut.i_entries, entries), (dut.i_words, words)):
        sim.add_testbench(feed(stream, payloads), background=True)
    sim.add_testbench(take)
    sim.run()
    assert found == expected
    # Results leave a fixed time after they are read, so differences are those of the walks.
    assert ends[0] == first
    assert np.diff(ends).tolist() == periods[1:]


ROWS = dataclasses.replace(SMALL, row_columns=12)
ROW_CONFIGURATIONS = {
    "three groups": ROWS,
    "one group, one plane": dataclasses.replace(ROWS, row_columns=4, max_planes=1),
    "six planes": dataclasses.replace(ROWS, max_planes=6, accumulator_width=18),
    "sums as wide as the accumulator": dataclasses.replace(ROWS, max_planes=6, activation_width=4,
                                                           accumulator_width=13),
    "two lanes, one in a transfer": dataclasses.replace(ROWS, lanes=2, row_columns=8,
                                                        result_lanes=1),
    "all lanes in a transfer": dataclasses.replace(ROWS, result_lanes=4),
    "activations of two bytes": dataclasses.replace(ROWS, activation_width=11,
                                                    accumulator_width=20),
}


@pytest.mark.parametrize("name", ROW_CONFIGURATIONS)
def test_both_walks_equal_golden(name):
    config = ROW_CONFIGURATIONS[name]
    half, full = 1 << (config.activation_width - 1), config.row_columns
    rng = np.random.default_rng(3)
    activations = rng.integers(-half, half, full)
    activations[0] = -half
    jobs, entries, words, expected, products = [], [], [], [], []
    for by_row, rows, columns, count in [
            (1, 5, full, 1), (0, 5, 6, 1), (1, 3, full, config.max_planes), (1, 7, 1, 1),
            (0, 3, 5, 1), (1, 4, full - 1, config.max_planes)]:
        limit = (3 ** count - 1) // 2
        weights = rng.integers(-limit, limit + 1, (rows, columns))
        values = rng.integers(-half, half, columns)
        if by_row:
            jobs.append(config.row_job(columns, planes=count))
            trits, listed = planes(weights.T, count), [0] * rows
            sums = row_product(weights, activations[:columns],
                               accumulator_width=config.accumulator_width)
            transfers = [[total, *[0] * (config.result_lanes - 1)] for total in [*sums.tolist(), 0]]
        else:
            jobs.append(config.job(rows, planes=count))
            trits, listed = planes(weights, count), values.tolist()
            sums = np.zeros(config.result_transfers(rows) * config.result_lanes, dtype=np.int64)
            sums[:rows] = ternary_product(weights, values[:, np.newaxis],
                                          accumulator_width=config.accumulator_width)[0]
            transfers = sums.reshape(-1, config.result_lanes).tolist()
        entries += [{"index": 0, "value": value, "end": 0} for value in listed]
        entries.append({"index": 0, "value": 0, "end": 1})
        words += [{"codes": int.from_bytes(word.tobytes(), "little")}
                  for word in pack_words(trits, config).reshape(-1, config.word_bytes)]
        expected.append(transfers)
        products.append({"by_row": bool(by_row), "rows": rows, "columns": columns, "planes": count})
    dut = TernaryEngine(config)
    found, ends = [[]], []

    async def feed_jobs(ctx):
        await put(ctx, dut.i_activations, [{"index": index, "value": value}
                                           for index, value in enumerate(activations.tolist())])
        await put(ctx, dut.i_jobs, jobs)

    def feed(stream, payloads):
        async def feeder(ctx):
            await put(ctx, stream, payloads)
        return feeder

    async def take(ctx):
        cycle = accepted = 0
        ctx.set(dut.o_columns.ready, 1)
        ctx.set(dut.o_results.ready, 1)
        while len(ends) < len(jobs):
            *_, entry, valid, payload = await ctx.tick().sample(
                dut.i_entries.valid & dut.i_entries.ready, dut.o_results.valid,
                dut.o_results.payload)
            cycle += 1
            accepted = accepted or (cycle if entry else 0)
            if valid:
                found[-1].append(list(payload["values"]))
                if payload["last"]:
                    found.append([])
                    ends.append(cycle - accepted + 1)

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(feed_jobs, background=True)
    for stream, payloads in ((dut.i_entries, entries), (dut.i_words, words)):
        sim.add_testbench(feed(stream, payloads), background=True)
    sim.add_testbench(take)
    sim.run()
    assert found == [*expected, []]
    assert ends == engine_sequence(config, products)


def test_accelerator_passes_activations_on_and_cuts_rows_from_the_port():
    config = dataclasses.replace(ROWS, port_bytes=2)
    rng = np.random.default_rng(4)
    weights, activations = rng.integers(-1, 2, (3, 9)), rng.integers(-128, 128, 9)
    image = pack_words(weights.T, config).reshape(-1, config.word_bytes)
    words = [int.from_bytes(word.tobytes(), "little") for word in image]
    dut = EngineSlice(config)
    columns = []

    async def drive(ctx):
        ctx.set(dut.o_results.ready, 1)
        await put(ctx, dut.i_activations, [{"index": index, "value": value}
                                           for index, value in enumerate(activations.tolist())])
        await put(ctx, dut.i_jobs, [config.row_job(9)])
        await put(ctx, dut.i_entries, [{"index": row, "value": 0, "end": 0} for row in (6, 0, 11)])
        await put(ctx, dut.i_entries, [{"index": 0, "value": 0, "end": 1}])
        for total in [*row_product(weights, activations, accumulator_width=16).tolist(), 0]:
            *_, payload = await ctx.tick().sample(dut.o_results.payload).until(dut.o_results.valid)
            assert list(payload["values"]) == [total, 0]
        assert payload["last"]

    async def memory(ctx):
        ctx.set(dut.o_columns.ready, 1)
        while len(columns) < 3:
            *_, payload = await ctx.tick().sample(dut.o_columns.payload).until(dut.o_columns.valid)
            columns.append(payload["index"])
        await put(ctx, dut.i_port, port_payloads(config, words))

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(drive)
    sim.add_testbench(memory)
    sim.run()
    assert columns == [6, 0, 11]


@pytest.mark.parametrize("width", [1, 2, 5])
def test_lane_adder_equals_integers(width):
    dut = LaneAdder(width=width, target="generic")
    modulus = 2 ** width

    async def check(ctx):
        for code in range(2 * modulus ** 2):
            negative, stored, operand = code & 1, (code >> 1) % modulus, (code >> 1) // modulus
            for port, other in ((dut.stored, dut.held), (dut.held, dut.stored)):
                ctx.set(port, stored)
                ctx.set(other, 0)
                ctx.set(dut.operand, operand)
                ctx.set(dut.negative, negative)
                expected = (stored + (-operand if negative else operand)) % modulus
                assert ctx.get(dut.total) == expected

    sim = Simulator(dut)
    sim.add_testbench(check)
    sim.run()


def test_trit_adder_equals_integers():
    dut = TritAdder(width=4, target="generic")

    async def check(ctx):
        for base, operand, nonzero, negative in itertools.product(range(16), range(16), range(2),
                                                                  range(2)):
            ctx.set(dut.base, base)
            ctx.set(dut.operand, operand)
            ctx.set(dut.nonzero, nonzero)
            ctx.set(dut.negative, negative)
            trit = nonzero * (1 - 2 * negative)
            assert ctx.get(dut.total) == (base + trit * operand) % 16

    sim = Simulator(dut)
    sim.add_testbench(check)
    sim.run()


def test_gated_adder_equals_integers():
    dut = GatedAdder(width=4, target="generic")

    async def check(ctx):
        for base, addend, gate in itertools.product(range(16), range(16), range(2)):
            ctx.set(dut.base, base)
            ctx.set(dut.addend, addend)
            ctx.set(dut.gate, gate)
            assert ctx.get(dut.total) == (base + addend * gate) % 16

    sim = Simulator(dut)
    sim.add_testbench(check)
    sim.run()


class TestJob:
    def test_fields(self):
        config = EngineConfig()
        assert config.job(256) == {"groups": 4, "tail": 8, "planes": 1, "batch": 1}
        assert config.job(65, planes=3, batch=8) == {"groups": 2, "tail": 1, "planes": 3,
                                                     "batch": 8}
        assert config.job(config.max_rows)["groups"] == 256

    @pytest.mark.parametrize(("arguments", "message"), [
        ({"rows": 0}, "Row count must be a positive integer, not 0"),
        ({"rows": 16385}, "Row count must be at most 16384 with batch 1, not 16385"),
        ({"rows": 2049, "batch": 8}, "Row count must be at most 2048 with batch 8, not 2049"),
        ({"rows": 1, "planes": 7}, "Plane count must be at most 6, not 7"),
        ({"rows": 1, "planes": 0}, "Plane count must be a positive integer, not 0"),
        ({"rows": 1, "batch": 9}, "Batch must be at most 8, not 9"),
    ])
    def test_errors(self, arguments, message):
        with pytest.raises(ValueError, match=rf"^{message}$"):
            EngineConfig().job(**arguments)


class TestRowJob:
    CONFIG = EngineConfig(row_columns=1024)

    def test_fields(self):
        assert self.CONFIG.row_job(1024) == {"groups": 16, "tail": 0, "planes": 1, "batch": 1,
                                             "by_row": 1}
        assert self.CONFIG.row_job(65, planes=3)["groups"] == 2
        assert self.CONFIG.job(65)["by_row"] == 0

    @pytest.mark.parametrize(("arguments", "message"), [
        ({"columns": 0}, "Column count must be a positive integer, not 0"),
        ({"columns": 1025}, "Column count must be at most 1024, not 1025"),
        ({"columns": 1, "planes": 7}, "Plane count must be at most 6, not 7"),
    ])
    def test_errors(self, arguments, message):
        with pytest.raises(ValueError, match=rf"^{message}$"):
            self.CONFIG.row_job(**arguments)

    def test_needs_the_walk(self):
        with pytest.raises(ValueError, match=r"^A product by row needs a configuration with "
                                             r"row_columns$"):
            EngineConfig().row_job(1)

    @pytest.mark.parametrize(("fields", "message"), [
        ({"row_columns": -64}, "Configuration field row_columns must be a positive integer, "
                               "not -64"),
        ({"row_columns": 96}, r"Columns by row \(96\) must be a multiple of the lane count "
                              r"\(64\)"),
        ({"row_columns": 16448}, "Columns by row must be at most 16384, the rows by column, "
                                 "not 16448"),
        ({"row_columns": 48, "lanes": 48}, "Lane count must be a power of two from 2 for the walk "
                                           "by row, not 48"),
    ])
    def test_configuration(self, fields, message):
        with pytest.raises(ValueError, match=rf"^{message}$"):
            EngineConfig(**fields)


class TestErrors:
    def test_depth_of_ecp5(self):
        with pytest.raises(ValueError, match=r"^Accumulator depth must be at most 256 on target "
                                             r"'ecp5', not 512$"):
            EngineConfig(target="ecp5", accumulator_depth=512)

    def test_block_ram_depth(self):
        with pytest.raises(ValueError, match=r"^Block RAM depth must be at most 512 on target "
                                             r"'ecp5', not 1024$"):
            BlockRam(width=36, depth=1024, target="ecp5")

    @pytest.mark.parametrize(("width", "target", "bits"), [(36, "ecp5", 9), (11, "generic", 1)])
    def test_block_ram_fields(self, width, target, bits):
        with pytest.raises(ValueError, match=rf"^Block RAM width \({width}\) must be a multiple of "
                                             rf"8 fields of {bits} bits$"):
            BlockRam(width=width, depth=4, target=target, fields=8)

    def test_target(self):
        with pytest.raises(ValueError, match=r"^Target must be one of 'generic', 'ecp5', "
                                             r"not 'asic'$"):
            LaneAdder(width=24, target="asic")
