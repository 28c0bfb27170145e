"""L-Mul dot products of every format against the golden function, in any order of the pairs."""

import cocotb
import numpy as np
from amaranth import *
from amaranth.lib import wiring

from hw.arith.lmul_dot import LMulDot
from hw.formats.minifloat import DEFAULT_WINDOW, MiniFloat, bf16, e4m3, e5m2
from sim.golden.lmul import lmul_bound, lmul_dot
from sim.resets import resets_in_mid_work
from sim.runner import bench_case
from sim.streams import StreamSink, StreamSource, start
from sim.timing.units import product_cycles

MAX_LENGTH = 300


class Bench(wiring.Component):
    """Units side by side, their streams named ``STREAM_UNIT``."""

    def __init__(self, units: dict[str, LMulDot]):
        self.units = units
        members = {}
        for name, unit in units.items():
            for port, member in unit.signature.members.items():
                members[f"{port}_{name}"] = member
        super().__init__(members)

    def elaborate(self, platform):
        """Wire every unit."""
        m = Module()
        for name, unit in self.units.items():
            m.submodules[name] = unit
            for port in unit.signature.members:
                outer, inner = wiring.flipped(getattr(self, f"{port}_{name}")), getattr(unit, port)
                wiring.connect(m, outer, inner)
        return m


def units() -> Bench:
    """Every format, and the ends of the parameters."""
    return Bench({
        "e4m3": LMulDot(e4m3, max_length=MAX_LENGTH),
        "e5m2": LMulDot(e5m2, max_length=MAX_LENGTH),
        "bf16": LMulDot(bf16, max_length=MAX_LENGTH),
        "narrow": LMulDot(bf16, max_length=MAX_LENGTH, window=10, offset=0, saturate=True),
        "wide": LMulDot(bf16, max_length=1, window=32),
    })


DUTS = {"units": units}


def dot_products(fmt: MiniFloat, lengths: np.ndarray, seed: int) -> list:
    """Operands of dot products: any words, numbers near 1, cancelling pairs, infinities, NaN."""
    rng = np.random.default_rng(seed)
    dtype = np.dtype(f"u{fmt.width // 8}")
    sign = 1 << fmt.magnitude_width
    products = []
    for number, length in enumerate(lengths.tolist()):
        kind = number % 6
        near = fmt.one + rng.integers(-4 << fmt.mantissa_bits, 4 << fmt.mantissa_bits, (2, length))
        signs = rng.integers(0, 2, (2, length)) * sign
        words = near | signs
        if kind == 0:                               # the whole range, most often finite
            words = rng.integers(0, 1 << fmt.width, (2, length))
            words = np.where((words & fmt.magnitude_mask) > fmt.largest_finite, 0, words)
        elif kind == 1:                             # a sum of squares
            words[1] = words[0]
        elif kind == 2 and length > 1:              # exact cancellation, but for one pair
            half = length // 2
            words[:, half:2 * half] = words[:, :half] ^ [[sign], [0]]
        elif kind == 3:                             # as large or as small as can be
            words = rng.choice([fmt.largest_finite, fmt.largest_finite - 1]
                               if number % 2 else [fmt.smallest_normal, 0], (2, length)) | signs
        elif kind == 4:                             # infinity, NaN, zero
            count = min(length, 3)
            places = rng.integers(0, length, (2, count))
            special = [fmt.infinity if fmt.has_infinity else fmt.nan, fmt.infinity | sign
                       if fmt.has_infinity else 0, fmt.nan, 0]
            for side in range(2):
                words[side, places[side]] = rng.choice(special, count, p=[.4, .3, .05, .25])
        products.append(words.astype(dtype))
    return products


async def check(dut, name: str, unit: LMulDot, *, stall: float, seed: int,
                lengths: np.ndarray) -> None:
    """Send dot products of ``lengths``, then the same ones with their pairs in another order."""
    rng = np.random.default_rng(seed)
    lengths = np.minimum(lengths, unit.max_length)
    fmt = unit.fmt
    products = dot_products(fmt, lengths, seed)
    products += [words[:, rng.permutation(words.shape[1])] for words in products]
    offset = fmt.one - unit.constant
    # Some bounds leave room, some are too small; permuted products get the same again.
    slack = rng.choice([0, 0, 0, 1, 20, -1], len(products) // 2).tolist() * 2
    bounds = [int(lmul_bound(fmt, x, y, offset=offset)) + more
              for (x, y), more in zip(products, slack, strict=True)]
    window = unit.window if fmt == bf16 else DEFAULT_WINDOW
    expected = [int(lmul_dot(fmt, x, y, offset=offset, window=window, bound=np.array(bound),
                             saturate=unit.saturate))
                for (x, y), bound in zip(products, bounds, strict=True)]
    assert expected[:len(expected) // 2] == expected[len(expected) // 2:]

    source = StreamSource(dut, f"i_{name}", unit.i.payload.shape(), stall=stall, seed=seed)
    sink = StreamSink(dut, f"o_{name}", unit.o.payload.shape(), stall=stall, seed=seed + 1)
    if fmt == bf16:
        bound_source = StreamSource(dut, f"i_bound_{name}", unit.i_bound.payload.shape(),
                                    stall=stall, seed=seed + 2)
        cocotb.start_soon(bound_source.send({"bound": bound} for bound in bounds))
    cocotb.start_soon(source.send(
        {"x": x, "y": y, "last": k == words.shape[1] - 1}
        for words in products for k, (x, y) in enumerate(words.T.tolist())))
    sums = [payload.sum for payload in await sink.receive(len(products))]
    np.testing.assert_array_equal(sums, expected, err_msg=name)
    if stall == 0:
        cycles = sink.last_cycle - source.first_cycle + 1
        pairs = sum(words.shape[1] for words in products)
        assert cycles == product_cycles(pairs, latency=unit.latency), name


async def check_all(dut, *, stall: float, seed: int, count: int, longest: int) -> None:
    """Check every format at once, each with ``count`` dot products of its own."""
    units = DUTS[bench_case()]().units
    lengths = np.random.default_rng(seed).choice(
        [1, 2, 3, 7, 30, longest], (len(units), count), p=[.2, .2, .2, .2, .18, .02])
    tasks = [cocotb.start_soon(check(dut, name, unit, stall=stall, seed=10 * k + seed,
                                     lengths=lengths[k]))
             for k, (name, unit) in enumerate(units.items())]
    for task in tasks:
        await task


@cocotb.test(timeout_time=2000, timeout_unit="us")
@cocotb.parametrize(stall=[0.0, 0.5])
async def dot_products_equal_golden(dut, stall):
    """Every format at once, each with its own data, lengths from 1 pair to the longest."""
    await start(dut)
    await check_all(dut, stall=stall, seed=1, count=150, longest=MAX_LENGTH)


@cocotb.test(timeout_time=1000, timeout_unit="us")
async def resets(dut):
    """Reset inside dot products: the next sum begins at zero, with the flags of its own pairs."""
    await start(dut)
    await resets_in_mid_work(
        dut, DUTS[bench_case()](),
        lambda seed: check_all(dut, stall=0.3, seed=seed, count=8, longest=10),
        lambda: check_all(dut, stall=0, seed=2, count=3, longest=10), resets=20)
