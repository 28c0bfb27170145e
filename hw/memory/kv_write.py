"""What goes into a cache: numbers in its format, and the largest one of each cache so far."""

from amaranth import *
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for

from hw.arith.amax import Amax
from hw.arith.e4m3 import expanded, rounded
from hw.common.word import word_layout
from hw.config import AcceleratorConfig
from hw.formats.minifloat import bf16

__all__ = ["CacheWriter"]

_BITS = bf16.mantissa_bits


class CacheWriter(wiring.Component):
    """Converts words on their way into a cache, and remembers the largest exponent of each cache.

    Parameters
    ----------
    config : AcceleratorConfig

    Members
    -------
    clear : In(1)
        A vector begins; at least ``latency`` cycles after the last word of the one before.
    word : In(:func:`hw.common.word.word_layout`)
    valid : In(1)
        The word belongs to the vector.
    e4m3 : In(1)
    stored : Out
        The word as the cache holds it, at once; e4m3 numbers fill the lower half.
    not_finite : Out(1)
        The vector has an infinity or a NaN; from the cycle after its word to ``clear``.
    finish, first, cache : In
        ``latency`` cycles after the last word: the largest element becomes that of ``cache``, if it
        is larger or the ``first`` of its sequence.
    bound_cache, bound : In, Out(8)
        Exponent field of the largest element of cache ``bound_cache``, at once.
    """

    clear: Signal
    word: Value
    valid: Signal
    e4m3: Signal
    stored: Signal
    not_finite: Signal
    finish: Signal
    first: Signal
    cache: Signal
    bound_cache: Signal
    bound: Signal

    def __init__(self, config: AcceleratorConfig):
        self.config = config
        self._largest = Amax(config)
        #: Cycles from the last word to the largest element.
        self.latency = self._largest.latency
        index = bits_for(config.caches - 1)
        super().__init__({
            "clear": In(1), "word": In(word_layout(config)), "valid": In(1), "e4m3": In(1),
            "stored": Out(bf16.width * config.vector_lanes), "not_finite": Out(1),
            "finish": In(1), "first": In(1), "cache": In(index), "bound_cache": In(index),
            "bound": Out(bf16.exponent_bits),
        })

    def elaborate(self, platform):
        m = Module()
        m.submodules.largest = largest = self._largest
        numbers = list(self.word)
        stored: Value = Cat(numbers)
        kept = list(numbers)
        if "e4m3" in self.config.cache_formats:
            bytes_ = [rounded(number) for number in numbers]
            stored = Mux(self.e4m3, Cat(bytes_), stored)
            kept = [Mux(self.e4m3, expanded(byte), number)
                    for byte, number in zip(bytes_, numbers, strict=True)]
        m.d.comb += [
            self.stored.eq(stored),
            largest.clear.eq(self.clear),
            largest.valid.eq(self.valid),
            largest.word.eq(Cat(kept)),
        ]
        with m.If(self.clear):
            m.d.sync += self.not_finite.eq(0)
        with m.Elif(self.valid & Cat(number[_BITS:-1].all() for number in numbers).any()):
            m.d.sync += self.not_finite.eq(1)

        m.submodules.bounds = bounds = memory.Memory(
            shape=bf16.exponent_bits, depth=self.config.caches, init=[])
        write, own, bound_cache = bounds.write_port(), *(bounds.read_port(domain="comb")
                                                         for _ in range(2))
        field = largest.largest[_BITS:]
        m.d.comb += [
            write.addr.eq(self.cache),
            write.data.eq(field),
            write.en.eq(self.finish & (self.first | (field > own.data))),
            own.addr.eq(self.cache),
            bound_cache.addr.eq(self.bound_cache),
            self.bound.eq(bound_cache.data),
        ]
        return m
