"""The cache writer: every bf16 number in both formats, the largest element of each cache."""

import functools

import cocotb
import numpy as np
from cocotb.triggers import ReadOnly, RisingEdge

from hw.config import AcceleratorConfig, EngineConfig
from hw.formats.minifloat import bf16
from hw.memory.kv_write import CacheWriter
from sim.golden.attention import from_cache, to_cache
from sim.runner import bench_case
from sim.streams import start

CONFIGURATIONS = {
    "four": AcceleratorConfig(engine=EngineConfig(lanes=8, result_lanes=4, port_bytes=4),
                              vector_depth=1024, context=8, head_elements=16, attention_heads=2,
                              attention_elements=2, caches=5),
    # A transfer is wider than a word of e4m3 numbers: bf16 is the only format.
    "bf16": AcceleratorConfig(engine=EngineConfig(lanes=8, result_lanes=2, port_bytes=4),
                              vector_depth=1024, context=8, head_elements=16, attention_heads=2,
                              attention_elements=2, caches=3),
}
DUTS = {name: functools.partial(CacheWriter, config) for name, config in CONFIGURATIONS.items()}
FINITE = np.array([number for number in range(1 << 16)
                   if number & bf16.infinity != bf16.infinity], np.uint16)
INFINITE = np.setdiff1d(np.arange(1 << 16, dtype=np.uint16), FINITE)


class Bench:
    """Appends vectors, and compares what is stored and what is remembered of it."""

    def __init__(self, dut):
        self.dut, self.config = dut, CONFIGURATIONS[bench_case()]
        self.latency = CacheWriter(self.config).latency
        self.rng = np.random.default_rng(7)
        #: Exponent field of the largest element of each cache, once something was appended to it.
        self.bounds: dict[int, int] = {}

    async def start(self) -> None:
        """Reset, with all inputs idle."""
        for name in ("clear", "valid", "e4m3", "word", "finish", "first", "cache", "bound_cache"):
            self.dut[name].value = 0
        await start(self.dut)

    async def append(self, vector: np.ndarray, cache: int, *, form: str, first: bool) -> None:
        """Append a vector to ``cache``, with words that do not belong to it in between."""
        dut, lanes = self.dut, self.config.vector_lanes
        finite = (vector & bf16.infinity != bf16.infinity).all()
        dut.clear.value, dut.valid.value = 1, 0
        dut.e4m3.value = int(form == "e4m3")
        await RisingEdge(dut.clk)
        dut.clear.value = 0
        for words in vector.reshape(-1, lanes):
            while self.rng.random() < 0.3:
                dut.word.value = int(self.rng.integers(1 << 62)) % (1 << 16 * lanes)
                dut.valid.value = 0
                await RisingEdge(dut.clk)
            dut.word.value = int.from_bytes(words.astype("<u2").tobytes(), "little")
            dut.valid.value = 1
            if finite:
                await ReadOnly()
                stored = dut.stored.value.to_unsigned().to_bytes(2 * lanes, "little")
                expected = to_cache(words, form).tobytes()
                assert stored[:len(expected)] == expected, (form, words)
            await RisingEdge(dut.clk)
        dut.valid.value = 0
        dut.word.value = (1 << 16 * lanes) - 1
        for _ in range(self.latency - 1):
            await RisingEdge(dut.clk)
        dut.finish.value, dut.first.value, dut.cache.value = 1, int(first), cache
        await ReadOnly()
        assert dut.not_finite.value == (not finite)
        await RisingEdge(dut.clk)
        dut.finish.value = 0
        dut.first.value = int(self.rng.integers(2))
        dut.cache.value = int(self.rng.integers(self.config.caches))
        if not finite:
            self.bounds.pop(cache, None)        # it is never mixed: the accelerator has stopped
            return
        held = from_cache(to_cache(vector, form))
        field = int((held & np.uint16(bf16.magnitude_mask)).max()) >> bf16.mantissa_bits
        self.bounds[cache] = field if first else max(field, self.bounds[cache])
        await self.check()

    async def check(self) -> None:
        """Compare the bound of each cache."""
        for cache, bound in self.bounds.items():
            self.dut.bound_cache.value = cache
            await ReadOnly()
            assert self.dut.bound.value == bound, cache
            await RisingEdge(self.dut.clk)


@cocotb.test(timeout_time=3, timeout_unit="ms")
async def every_number(dut):
    """Store every finite number in each format that the configuration has."""
    bench = Bench(dut)
    await bench.start()
    lanes = bench.config.vector_lanes
    for form in bench.config.cache_formats:
        numbers = bench.rng.permutation(FINITE)
        numbers = np.concatenate([numbers, numbers[:-len(numbers) % (256 * lanes)]])
        for index, vector in enumerate(numbers.reshape(-1, 256 * lanes)):
            await bench.append(vector, 0, form=form, first=index == 0)


@cocotb.test(timeout_time=3, timeout_unit="ms")
async def bounds(dut):
    """Remember the largest element of each cache: of its sequence, whatever others hold."""
    bench = Bench(dut)
    await bench.start()
    rng, config = bench.rng, bench.config
    for _ in range(400):
        cache = int(rng.integers(config.caches))
        size = config.vector_lanes * int(rng.integers(1, 4))
        # Exponents of all sizes, so that some vectors raise a bound and some do not.
        top = int(rng.integers(1, 255))
        vector = (rng.integers(0, top << bf16.mantissa_bits, size)
                  | rng.integers(0, 2, size) << 15).astype(np.uint16)
        vector[rng.integers(size)] = 0x8000
        form = str(rng.choice(config.cache_formats))
        await bench.append(vector, cache, form=form,
                           first=cache not in bench.bounds or rng.random() < 0.2)


@cocotb.test(timeout_time=3, timeout_unit="ms")
async def not_finite(dut):
    """Tell every infinity and NaN, at each place of a vector, and forget it with the next one."""
    bench = Bench(dut)
    await bench.start()
    rng, size = bench.rng, 2 * bench.config.vector_lanes
    for number in rng.permutation(INFINITE)[:100]:
        vector = rng.choice(FINITE, size)
        vector[rng.integers(size)] = number
        await bench.append(vector, 1, form="bf16", first=True)
        await bench.append(rng.choice(FINITE, size), 1, form="bf16", first=True)


@cocotb.test(timeout_time=3, timeout_unit="ms")
async def resets(dut):
    """Reset within vectors: the next one knows nothing of the elements before."""
    bench = Bench(dut)
    await bench.start()
    rng, lanes = bench.rng, bench.config.vector_lanes
    for _ in range(30):
        dut.valid.value, dut.e4m3.value = 1, 0
        for _ in range(int(rng.integers(1, 6))):
            # Large ones, and some that are not finite.
            words = rng.integers(0x7E00, 0x7FFF, lanes).astype("<u2")
            dut.word.value = int.from_bytes(words.tobytes(), "little")
            await RisingEdge(dut.clk)
        dut.rst.value = 1
        await RisingEdge(dut.clk)
        dut.rst.value = 0
        dut.valid.value = 0
        if rng.integers(2):             # else the next vector begins at once
            await RisingEdge(dut.clk)
            assert not dut.not_finite.value
        small = rng.integers(0, 0x3F80, 2 * lanes).astype(np.uint16)
        await bench.append(small, 2, form="bf16", first=True)
