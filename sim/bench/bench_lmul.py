"""L-Mul and the exact multiplier against their golden functions, many units side by side.

Units of one latency share one stream: they stall together, so one transfer drives a pair of
operands through every format.
"""

import cocotb
import numpy as np
from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.arith.exact import ExactMultiplier
from hw.arith.lmul import LMul
from hw.formats.minifloat import FORMATS, MiniFloat, bf16, e4m3, e5m2, fp16
from sim.golden.lmul import exact_product, lmul
from sim.resets import resets_in_mid_work
from sim.runner import bench_case
from sim.streams import StreamSink, StreamSource, start
from sim.timing.units import product_cycles

#: Runtime offset of the units that have one, a value that no default has.
RUNTIME_OFFSETS = {"e4m3": 5, "bf16": 37}


class SideBySide(wiring.Component):
    """Units of equal latency, by name; several may take the operands of one format."""

    i: stream.Interface
    o: stream.Interface

    def __init__(self, units: dict):
        self.units = units
        self.formats = {unit.fmt.name: unit.fmt for unit in units.values()}
        super().__init__({
            "i": In(stream.Signature(data.StructLayout(
                {name: 2 * fmt.width for name, fmt in self.formats.items()}))),
            "o": Out(stream.Signature(data.StructLayout(
                {name: unit.fmt.width for name, unit in units.items()}))),
        })

    def elaborate(self, platform):
        """Wire every unit."""
        m = Module()
        for name, unit in self.units.items():
            m.submodules[name] = unit
            m.d.comb += [
                unit.i.valid.eq(self.i.valid),
                unit.i.payload.eq(self.i.p[unit.fmt.name]),
                unit.o.ready.eq(self.o.ready),
                self.o.p[name].eq(unit.o.p.product),
            ]
            if getattr(unit, "runtime_offset", False):
                m.d.comb += unit.offset.eq(RUNTIME_OFFSETS[unit.fmt.name])
        m.d.comb += [
            self.i.ready.eq(Cat(unit.i.ready for unit in self.units.values()).all()),
            self.o.valid.eq(Cat(unit.o.valid for unit in self.units.values()).all()),
        ]
        return m


class Bench(wiring.Component):
    """Groups of units, each of one latency, with streams ``i_GROUP`` and ``o_GROUP``."""

    def __init__(self, groups: dict[str, SideBySide]):
        self.groups = groups
        super().__init__({
            f"{side}_{name}": (In if side == "i" else Out)(getattr(group, side).signature.flip()
                                                           if side == "i" else group.o.signature)
            for name, group in groups.items() for side in ("i", "o")})

    def elaborate(self, platform):
        """Wire every unit."""
        m = Module()
        for name, group in self.groups.items():
            m.submodules[name] = group
            wiring.connect(m, wiring.flipped(getattr(self, f"i_{name}")), group.i)
            wiring.connect(m, group.o, wiring.flipped(getattr(self, f"o_{name}")))
        return m


def formats() -> Bench:
    """Every format with its defaults."""
    return Bench({"all": SideBySide({name: LMul(fmt) for name, fmt in FORMATS.items()})})


def variants() -> Bench:
    """Saturation, run-time offset, finite operands only, other latencies; the exact multiplier."""
    exact = {f"exact_{name}": SideBySide({name: ExactMultiplier(fmt)})
             for name, fmt in FORMATS.items()}
    return Bench({
        "lmul": SideBySide({
            "e5m2_saturating": LMul(e5m2, saturate=True),
            "fp16_saturating": LMul(fp16, saturate=True),
            "bf16_saturating": LMul(bf16, saturate=True),
            "e4m3_runtime": LMul(e4m3, runtime_offset=True),
            "bf16_runtime": LMul(bf16, runtime_offset=True),
            "bf16_plain": LMul(bf16, offset=0),
            "e4m3_finite": LMul(e4m3, specials=False),
            "bf16_finite": LMul(bf16, specials=False, saturate=True),
        }),
        "short": SideBySide({"bf16": LMul(bf16, latency=1), "e4m3": LMul(e4m3, latency=1)}),
        "middle": SideBySide({"bf16": LMul(bf16, latency=3), "e4m3": LMul(e4m3, latency=3)}),
        **exact,
        "exact_saturating": SideBySide({"bf16": ExactMultiplier(bf16, saturate=True)}),
    })


DUTS = {"formats": formats, "variants": variants}
SLOW = ("formats-icarus",)


def golden(unit, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Products that ``unit`` must deliver."""
    if isinstance(unit, ExactMultiplier):
        return exact_product(unit.fmt, x, y, saturate=unit.saturate)
    offset = (RUNTIME_OFFSETS[unit.fmt.name] if unit.runtime_offset
              else unit.fmt.one - unit.constant)
    return lmul(unit.fmt, x, y, offset=offset, saturate=unit.saturate)


def corners(fmt: MiniFloat) -> np.ndarray:
    """Words on both sides of every boundary of ``fmt``, with both signs."""
    m = fmt.mantissa_bits
    fields = (0, 1, 2, fmt.bias - 1, fmt.bias, fmt.bias + 1, 2 * fmt.bias, 2 * fmt.bias + 1)
    edges = {e << m | f for e in fields for f in (0, 1, (1 << m) // 2, (1 << m) - 1)}
    edges |= {fmt.constant() + k for k in (-1, 0, 1)}
    words = np.array(sorted(edges), dtype=f"u{fmt.width // 8}")
    return np.concatenate([words, words | words.dtype.type(1 << fmt.magnitude_width)])


def operands(fmt: MiniFloat, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """``count`` pairs: all of an 8-bit format if they fit; else corner pairs, then random ones."""
    dtype = np.dtype(f"u{fmt.width // 8}")
    rng = np.random.default_rng(seed)
    edges = corners(fmt)
    pairs = np.stack(np.meshgrid(edges, edges)).reshape(2, -1)
    if fmt.width == 8 and count >= 1 << 16:
        pairs = np.indices((256, 256), dtype=dtype).reshape(2, -1)
    elif pairs.shape[1] > count:
        pairs = rng.choice(pairs, count, axis=1)
    # Half of the random pairs are any words, half have their product near the range's ends or 1.
    wanted = count - pairs.shape[1]
    words = rng.integers(0, 1 << fmt.width, (2, wanted), dtype=np.uint64)
    target = rng.choice([fmt.smallest_normal, fmt.one, fmt.largest_finite], wanted)
    near = target + fmt.constant() - (words[0] & fmt.magnitude_mask).astype(np.int64)
    near = np.clip(near + rng.integers(-4, 5, wanted), 0, fmt.magnitude_mask).astype(np.uint64)
    words[1] = np.where(rng.random(wanted) < 0.5, words[1], near | words[1] & ~np.uint64(
        fmt.magnitude_mask))
    x, y = np.concatenate([pairs, words.astype(dtype)], axis=1)
    return x, y


async def check(dut, name: str, group: SideBySide, *, count: int, stall: float,
                seed: int) -> None:
    """Send ``count`` pairs to every unit of ``group`` and compare every product."""
    layout = group.i.payload.shape()
    inputs = {}
    packed = np.zeros(count, dtype=object)
    for format_name, fmt in group.formats.items():
        x, y = operands(fmt, count, seed)
        inputs[format_name] = x, y
        pair = x.astype(object) | (y.astype(object) << fmt.width)
        packed |= pair << layout[format_name].offset
    source = StreamSource(dut, f"i_{name}", layout, stall=stall, seed=seed)
    sink = StreamSink(dut, f"o_{name}", group.o.payload.shape(), stall=stall, seed=seed + 1)
    cocotb.start_soon(source.send(packed.tolist()))
    received = await sink.receive(count)

    products = np.array([payload.as_bits() for payload in received], dtype=object)
    for unit_name, unit in group.units.items():
        field = group.o.payload.shape()[unit_name]
        product = ((products >> field.offset) & ((1 << field.width) - 1)).astype(np.int64)
        x, y = inputs[unit.fmt.name]
        expected = golden(unit, x, y)
        chosen = np.ones(count, dtype=bool)
        if not unit.specials:       # operands that such a unit never sees
            chosen = np.maximum(x & unit.fmt.magnitude_mask, y & unit.fmt.magnitude_mask
                                ) <= unit.fmt.largest_finite
        np.testing.assert_array_equal(product[chosen], expected[chosen], err_msg=unit_name)
    if stall == 0:
        cycles = sink.last_cycle - source.first_cycle + 1
        assert cycles == product_cycles(count, latency=unit.latency), name


async def check_all(dut, *, count: int, stall: float, seed: int) -> None:
    """Check every group at once."""
    tasks = [cocotb.start_soon(check(dut, name, group, count=count, stall=stall, seed=seed + k))
             for k, (name, group) in enumerate(DUTS[bench_case()]().groups.items())]
    for task in tasks:
        await task


@cocotb.test(timeout_time=2000, timeout_unit="us")
async def one_product_each_cycle(dut):
    """All pairs of fp8, corner pairs and 100,000 random ones of the others; variants: 6,000."""
    assert max(len(corners(fmt)) ** 2 for fmt in FORMATS.values()) < 6000
    await start(dut)
    await check_all(dut, count=106_000 if bench_case() == "formats" else 6000, stall=0, seed=1)


@cocotb.test(timeout_time=1000, timeout_unit="us")
async def random_stalls(dut):
    """Both streams stall at random: nothing is lost, repeated or changed."""
    await start(dut)
    await check_all(dut, count=6000, stall=0.5, seed=20)


@cocotb.test(timeout_time=1000, timeout_unit="us")
async def resets(dut):
    """Reset with products in all steps: only what comes behind them is multiplied."""
    await start(dut)
    await resets_in_mid_work(
        dut, DUTS[bench_case()](),
        lambda seed: check_all(dut, count=60, stall=0.3, seed=seed % 1000),
        lambda: check_all(dut, count=20, stall=0, seed=1), resets=6)
