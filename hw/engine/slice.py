"""The engine slice: the engine behind a weight port of any width."""

import math

from amaranth import *
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from hw.common.stream import connect_stream
from hw.config import ENTRY_DEPTH, EngineConfig
from hw.engine.engine import TernaryEngine
from hw.engine.gearbox import Gearbox, port_layout
from hw.engine.loop_nest import column_layout, entry_layout, job_layout
from hw.engine.result_queue import result_layout
from hw.engine.row_sums import activation_layout

__all__ = ["EngineSlice"]


class EngineSlice(wiring.Component):
    """Engine and gearbox: jobs and lists in, columns or rows of weights asked for, results out.

    A product takes as long as the slower of the two, weight port and engine, and a few cycles;
    :func:`sim.timing.units.slice_cycles` has the exact formula.

    Parameters
    ----------
    config : EngineConfig
    row_domain : str
        Clock domain of the walk by row.

    Members
    -------
    i_jobs, i_entries, o_columns, o_results, i_activations, rows_active
        As in :class:`hw.engine.engine.TernaryEngine`.
    i_port : In(stream) of :func:`hw.engine.gearbox.port_layout`
        Bytes of the listed columns or rows, in the order of the list; each product begins with a
        new transfer.

    Raises
    ------
    ValueError
        If a transfer may need more columns than the engine asks for ahead: it would wait forever.
    """

    i_jobs: stream.Interface
    i_entries: stream.Interface
    o_columns: stream.Interface
    i_port: stream.Interface
    o_results: stream.Interface
    rows_active: Signal

    def __init__(self, config: EngineConfig, *, row_domain: str = "sync"):
        self.config = config
        self._row_domain = row_domain
        # While a word is waited for, the list has been accepted up to the depth of its queue; the
        # transfer that ends the word goes on for up to ``port_bytes - granule`` bytes.
        granule = math.gcd(config.port_bytes, config.word_bytes)
        ahead = (ENTRY_DEPTH - 1) // config.max_batch
        if config.port_bytes - granule > ahead * config.word_bytes:
            raise ValueError(f"Weight port ({config.port_bytes} bytes) must not need more than "
                             f"{ahead + 1} words of {config.word_bytes} bytes at a time, which is "
                             f"what the engine asks for ahead with batch {config.max_batch}")
        members = {}
        if config.row_columns:
            members["i_activations"] = In(stream.Signature(activation_layout(config)))
        super().__init__({
            "i_jobs": In(stream.Signature(job_layout(config))),
            "i_entries": In(stream.Signature(entry_layout(config))),
            "o_columns": Out(stream.Signature(column_layout(config))),
            "i_port": In(stream.Signature(port_layout(config))),
            "o_results": Out(stream.Signature(result_layout(config))),
            "rows_active": Out(1),
        } | members)

    def elaborate(self, platform):
        m = Module()
        m.submodules.gearbox = gearbox = Gearbox(self.config)
        m.submodules.engine = engine = TernaryEngine(self.config,
                                                     row_domain=self._row_domain)
        m.d.comb += self.rows_active.eq(engine.rows_active)
        connect_stream(m, wiring.flipped(self.i_port), gearbox.i)
        connect_stream(m, gearbox.o, engine.i_words)
        connect_stream(m, wiring.flipped(self.i_jobs), engine.i_jobs)
        connect_stream(m, wiring.flipped(self.i_entries), engine.i_entries)
        connect_stream(m, engine.o_columns, wiring.flipped(self.o_columns))
        connect_stream(m, engine.o_results, wiring.flipped(self.o_results))
        if self.config.row_columns:
            connect_stream(m, wiring.flipped(self.i_activations), engine.i_activations)
        return m
