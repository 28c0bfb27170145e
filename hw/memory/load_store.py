"""Load and store: vectors between the memory port and the vector memory."""

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for

from hw.config import AcceleratorConfig
from hw.formats.minifloat import bf16
from hw.memory.kv_write import CacheWriter
from hw.memory.port import write_layout
from hw.memory.read_engine import vector_layout
from hw.vector.memory import (
    READ_LATENCY,
    address_width,
    read_signature,
    write_signature,
)

__all__ = ["LoadStore", "move_layout"]


def move_layout(config: AcceleratorConfig) -> data.StructLayout:
    """Layout of a LOAD, or STORE: ``vector`` is the address of a word, ``words`` their number.

    A STORE may ``append`` to a cache: as ``e4m3`` or bf16, in two halves if ``split``, the second
    of which begins at ``second``; to cache ``cache``.
    """
    append = {"append": 1, "e4m3": 1, "split": 1, "second": address_width(config),
              "cache": bits_for(config.caches - 1)}
    return data.StructLayout({"store": 1, "address": config.address_width,
                              "vector": address_width(config),
                              "words": address_width(config) + 1}
                             | (append if config.context else {}))


class LoadStore(wiring.Component):
    """LOAD and STORE of the instruction set, and KV_APPEND.

    A transfer of the memory port a cycle. Cycles: :func:`sim.timing.units.load_cycles`,
    :func:`sim.timing.units.store_cycles` and :func:`sim.timing.units.append_cycles`.

    Parameters
    ----------
    config : AcceleratorConfig

    Members
    -------
    i_moves : In(stream) of :func:`move_layout`
        One LOAD or STORE; the next one is accepted when it is done.
    i_vector : In(stream) of :func:`hw.memory.read_engine.vector_layout`
        The vector of a LOAD, fetched.
    o_writes : Out(stream) of :func:`hw.memory.port.write_layout`
        The vector of a STORE, one burst.
    read : Out(:func:`hw.vector.memory.read_signature`)
    write : Out(:func:`hw.vector.memory.write_signature`)
    loaded, stored : Out(1)
        For a cycle when a LOAD, or STORE, is done: all of it was written.
    not_finite : Out(1)
        Beside ``stored``: what was appended holds an infinity or a NaN; only with a context.
    first : In(1)
        What is appended is the first vector of a sequence; only with a context.
    bound_cache, bound : In, Out(8)
        As :class:`hw.memory.kv_write.CacheWriter` has them; only with a context.
    active : Out(1)
        A clock matters: see :attr:`hw.accelerator.Accelerator.active`.

    Raises
    ------
    ValueError
        If a transfer of the port is larger than a word of the vector memory.
    """

    i_moves: stream.Interface
    i_vector: stream.Interface
    o_writes: stream.Interface
    read: wiring.PureInterface
    write: wiring.PureInterface
    loaded: Signal
    stored: Signal
    active: Signal

    def __init__(self, config: AcceleratorConfig):
        self.config = config
        word_bytes = 2 * config.vector_lanes
        if config.port_bytes > word_bytes:
            raise ValueError(f"Memory port ({config.port_bytes} bytes) must not be wider than a "
                             f"word of the vector memory ({word_bytes} bytes): an accelerator has "
                             f"two bytes for each result lane")
        #: Transfers of a word.
        self.parts = word_bytes // config.port_bytes
        super().__init__({
            "i_moves": In(stream.Signature(move_layout(config))),
            "i_vector": In(stream.Signature(vector_layout(config))),
            "o_writes": Out(stream.Signature(write_layout(config.address_width,
                                                          config.port_bytes))),
            "read": Out(read_signature(config)), "write": Out(write_signature(config)),
            "loaded": Out(1), "stored": Out(1), "active": Out(1),
        } | ({"not_finite": Out(1), "first": In(1), "bound_cache": In(bits_for(config.caches - 1)),
              "bound": Out(bf16.exponent_bits)} if config.context else {}))

    def elaborate(self, platform):
        m = Module()
        config, parts = self.config, self.parts
        bits = 8 * config.port_bytes
        move = Signal(move_layout(config), reset_less=True)
        part = Signal(range(parts))                 # of the present word
        final = Signal()
        word = Signal(parts * bits, reset_less=True)
        writes = self.o_writes
        last_part: Value = C(parts - 1)
        stored: Value = self.read.data.as_value()
        if config.context:
            m.submodules.cache = cache = CacheWriter(config)
            append = self._append(m, move, cache)
            half = Signal.like(move.words)          # words of each of two halves
            last_part = Mux(append & move.e4m3, parts // 2 - 1, parts - 1)
            stored = Mux(append, cache.stored, stored)
        m.d.comb += [
            final.eq(part == last_part),
            # A word is written with its last part.
            self.write.address.eq(move.vector),
            self.write.data.eq(Cat(word, self.i_vector.p.data)[-parts * bits:]),
            self.write.mask.eq(~0),
            self.read.address.eq(move.vector),
        ]

        # A word of a STORE is read while the one before it is written.
        held = Signal()                             # there are parts of a word to be written
        reading = Signal()                          # there will be one more
        delay = Signal(range(READ_LATENCY))         # until it is there
        accepted, load = Signal(), Signal()
        m.d.comb += [
            writes.valid.eq(held),
            writes.p.address.eq(move.address),
            writes.p.data.eq(word[:bits]),
            writes.p.last.eq(final & ~reading),
            accepted.eq(held & writes.ready),
            load.eq(reading & (delay == 0) & (~held | (accepted & final))),
        ]
        with m.If(self.read.enable):
            m.d.sync += [
                move.vector.eq(move.vector + 1),
                move.words.eq(move.words - 1),
                delay.eq(READ_LATENCY - 1),
            ]
        with m.Elif(delay != 0):
            m.d.sync += delay.eq(delay - 1)
        with m.If(load):
            m.d.sync += [word.eq(stored), reading.eq(self.read.enable), held.eq(1)]
        with m.Elif(accepted):
            m.d.sync += [word.eq(word >> bits), held.eq(~final)]
        if config.context:
            m.d.comb += cache.valid.eq(load)
            # The first half has been read but for the word that is asked for now.
            with m.If(self.read.enable & append & move.split & (move.words == half + 1)):
                m.d.sync += move.vector.eq(move.second)

        m.d.sync += [self.loaded.eq(0), self.stored.eq(0)]
        with m.FSM() as fsm:
            m.d.comb += self.active.eq(~fsm.ongoing("IDLE") | self.i_moves.valid
                                       | self.loaded | self.stored)
            with m.State("IDLE"):
                m.d.comb += self.i_moves.ready.eq(1)
                m.d.sync += move.eq(self.i_moves.p)
                if config.context:
                    m.d.sync += half.eq(self.i_moves.p.words >> 1)
                with m.If(self.i_moves.valid):
                    m.next = "LOAD"
                    with m.If(self.i_moves.p.store):
                        m.next = "READ"
            with m.State("LOAD"):
                m.d.comb += self.i_vector.ready.eq(1)
                with m.If(self.i_vector.valid):
                    m.d.comb += self.write.enable.eq(final)
                    m.d.sync += [
                        word.eq(Cat(word, self.i_vector.p.data)[bits:]),
                        part.eq(Mux(final, 0, part + 1)),
                        move.vector.eq(move.vector + final),
                    ]
                    with m.If(self.i_vector.p.last):
                        m.d.sync += self.loaded.eq(1)
                        m.next = "IDLE"
            with m.State("READ"):
                m.d.comb += self.read.enable.eq(1)
                m.d.sync += reading.eq(1)
                m.next = "STORE"
            with m.State("STORE"):
                m.d.comb += self.read.enable.eq(load & (move.words != 0))
                with m.If(accepted):
                    m.d.sync += [
                        part.eq(Mux(final, 0, part + 1)),
                        move.address.eq(move.address + config.port_bytes),
                    ]
                    with m.If(writes.p.last):
                        m.d.sync += self.stored.eq(1)
                        m.next = "IDLE"
                        if config.context:
                            with m.If(append):
                                m.d.sync += self.stored.eq(0)
                                m.next = "KV_APPEND"
            if config.context:
                elapsed = Signal(range(cache.latency))
                with m.State("KV_APPEND"):
                    m.d.sync += elapsed.eq(elapsed + 1)
                    with m.If(elapsed == cache.latency - 1):
                        m.d.comb += cache.finish.eq(1)
                        m.d.sync += [elapsed.eq(0), self.stored.eq(1)]
                        m.next = "IDLE"
        return m

    def _append(self, m, move, cache) -> Value:
        """Join the move with what writes caches, and return whether it appends."""
        m.d.comb += [
            cache.word.eq(self.read.data),
            cache.e4m3.eq(move.e4m3),
            cache.first.eq(self.first),
            cache.cache.eq(move.cache),
            cache.clear.eq(self.i_moves.ready),
            cache.bound_cache.eq(self.bound_cache),
            self.bound.eq(cache.bound),
            self.not_finite.eq(cache.not_finite),
        ]
        return move.append
