# amaranth: UnusedElaboratable=no

"""L-Mul units in pysim: the vectors of the specification, ports, latencies, messages."""

import numpy as np
import pytest
from amaranth.sim import Simulator

from hw.arith.exact import ExactMultiplier
from hw.arith.lmul import LMul
from hw.arith.lmul_dot import LMulDot
from hw.formats.minifloat import FORMATS, bf16, e4m3, fp16, fp32
from hw.synth.units import UNITS
from sim.golden.lmul import lmul, lmul_bound, lmul_dot

VECTORS = {
    "bf16": "3F80 3F80 3F88, 4000 4040 40C8, 3FC0 3FC0 4008, 3FFF 3FFF 4086, C049 402E C0FF, "
            "0000 7F7F 0000, 7F00 7F00 7F80, 0100 0100 0000, 7F80 0000 7FC0",
    "e4m3": "38 38 39, 3C 3C 41, 3F 3F 47, C5 49 D7, 00 7E 00, 7E 7E 7E, 08 08 00, 08 37 08, "
            "7F 38 7F",
    "fp32": "3F800000 3F800000 3F880000, 40490FDB 402DF854 40FF082F, 3FFFFFFF 3FFFFFFF 4087FFFE",
}


def run(dut, payloads, count, *, bound=None, offset=None):
    """Feed ``payloads`` one a cycle; return ``count`` results and the cycle of each."""
    results, cycles = [], []

    async def bench(ctx):
        ctx.set(dut.o.ready, 1)
        if bound is not None:
            ctx.set(dut.i_bound.payload, {"bound": bound})
            ctx.set(dut.i_bound.valid, 1)
        if offset is not None:
            ctx.set(dut.offset, offset)
        cycle = 0
        while len(results) < count:
            ctx.set(dut.i.valid, cycle < len(payloads))
            if cycle < len(payloads):
                ctx.set(dut.i.payload, payloads[cycle])
                assert ctx.get(dut.i.ready)
            _, _, valid, payload = await ctx.tick().sample(dut.o.valid, dut.o.payload)
            if valid:
                results.append(payload)
                cycles.append(cycle)
            cycle += 1

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    return results, cycles


@pytest.mark.parametrize("latency", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("name", VECTORS)
def test_vectors_at_every_latency(name, latency):
    vectors = [[int(word, 16) for word in v.split()] for v in VECTORS[name].split(",")]
    products, cycles = run(LMul(FORMATS[name], latency=latency),
                           [{"x": x, "y": y} for x, y, _ in vectors], len(vectors))
    assert [payload.product for payload in products] == [expected for _, _, expected in vectors]
    assert cycles == list(range(latency, latency + len(vectors)))


def test_runtime_offset_zero_is_the_piecewise_affine_product():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0x3000, 0x5000, (2, 20), dtype=np.uint16)
    pairs = [{"x": a, "y": b} for a, b in zip(x.tolist(), y.tolist(), strict=True)]
    for offset in (0, 8, 127):
        products, _ = run(LMul(bf16, runtime_offset=True), pairs, 20, offset=offset)
        np.testing.assert_array_equal([p.product for p in products], lmul(bf16, x, y,
        offset=offset))


def test_dot_product_takes_its_bound_with_the_last_pair():
    x = np.array([0x4040, 0x3F80, 0xC000], dtype=np.uint16)
    bound = int(lmul_bound(bf16, x, x))
    dut = LMulDot(bf16, max_length=4)
    pairs = [{"x": v, "y": v, "last": k == 2} for k, v in enumerate(x.tolist())]
    sums, cycles = run(dut, pairs * 2, 2, bound=bound)
    assert [payload.sum for payload in sums] == [int(lmul_dot(bf16, x, x))] * 2
    assert cycles == [2 + dut.latency, 5 + dut.latency]


def test_units_are_the_issue_s():
    assert {unit.format for unit in UNITS.values()
            if unit.unit.startswith(("lmul", "exact multiplier"))} == set(FORMATS)
    for unit in UNITS.values():
        assert unit.build().signature


@pytest.mark.parametrize(("make", "message"), [
    (lambda: LMul(e4m3, latency=0), r"^Latency must be in 1\.\.5, not 0$"),
    (lambda: LMul(fp16, offset=1024), r"^Offset of fp16 must be in 0\.\.1023, not 1024$"),
    (lambda: LMulDot(fp32), r"^Format of a dot product must be e4m3, e5m2 or bf16, not fp32$"),
    (lambda: LMulDot(bf16, window=9), r"^Window must be in 10\.\.32, not 9$"),
    (lambda: LMulDot(bf16, max_length=0),
     r"^Longest dot product must be a positive integer, not 0$"),
])
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_exact_multiplier_has_one_step_for_each_level_of_its_tree():
    assert [ExactMultiplier(fmt).latency for fmt in FORMATS.values()] == [8, 8, 10, 9, 11]
