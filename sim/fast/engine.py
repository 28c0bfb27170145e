"""The fast simulator of the engine: EngineSlice compiled by Verilator, driven without cocotb.

``sim/fast/engine_harness.cpp`` is the memory behind the weight port, and the ends of all streams.
"""

import ctypes
import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hw.config import EngineConfig
from hw.engine.slice import EngineSlice
from sim.fast.library import Design, Progress, SimulatorStopped, build_library

__all__ = ["ProductCounters", "SimulatedProduct", "VerilatedEngine"]

DESIGN = Design(
    name="engine",
    sources=("hw/config.py", "hw/common", "hw/formats", "hw/engine", "sim/fast/engine.py"),
    harness="sim/fast/engine_harness.cpp",
    component=EngineSlice,
    streams={
        "JOB": lambda unit: unit.i_jobs,
        "ENTRY": lambda unit: unit.i_entries,
        "COLUMN": lambda unit: unit.o_columns,
        "PORT": lambda unit: unit.i_port,
        "RESULT": lambda unit: unit.o_results,
    },
    constants=lambda config: {"PORT_BYTES": config.port_bytes, "RESULT_LANES": config.result_lanes},
)

#: Cycles without any transfer after which the slice counts as stuck.
PATIENCE = 1_000_000


class _Product(ctypes.Structure):
    """``struct Product`` of sim/fast/engine_harness.cpp."""

    _fields_ = (
        *((name, ctypes.c_uint32) for name in (
            "image", "rows", "groups", "tail", "planes", "batch", "entries")),
        *((name, ctypes.c_void_p) for name in ("columns", "values", "results")),
        *((name, ctypes.c_uint64) for name in ("first_entry", "last_result", "transfers")),
    )


@dataclasses.dataclass(frozen=True)
class SimulatedProduct:
    """One product to compute.

    Attributes
    ----------
    handle : int
        Of :meth:`VerilatedEngine.load`.
    columns : integer array, shape (entries,)
        Listed columns; at least one.
    values : int8 array, shape (entries, batch)
    """

    handle: int
    columns: NDArray[np.integer]
    values: NDArray[np.int8]


@dataclasses.dataclass(frozen=True)
class ProductCounters:
    """What one product took.

    Attributes
    ----------
    first_entry, last_result : int
        Cycle of the first list entry accepted and of the last result delivered, counted from the
        start of the run.
    transfers : int
        Transfers of the weight port.
    words : int
        Weight words.
    weight_bytes : int
        Bytes of these words, without padding.
    """

    first_entry: int
    last_result: int
    transfers: int
    words: int
    weight_bytes: int

    @property
    def cycles(self) -> int:
        """Cycles from the first list entry accepted to the last result, both included."""
        return self.last_result - self.first_entry + 1


class VerilatedEngine:
    """A simulated engine slice with the memory behind its weight port.

    Parameters
    ----------
    config : EngineConfig
        At most 32 bits of accumulator and 8 of activation, the limits of NumPy's types here.
    latency : int
        Cycles from the request for a column to its bytes at the port.
    stall : float
        Probability of a cycle in which the port offers nothing, in steps of 1/256.
    progress : callable, optional
        As for :func:`sim.fast.library.build_library`.

    Attributes
    ----------
    cycles : int
        Clock cycles simulated so far.

    Raises
    ------
    ValueError
        If ``config`` is too wide for the simulator.
    ToolMissing
        If the library must be built and a tool is not installed.
    """

    def __init__(self, config: EngineConfig, *, latency: int = 0, stall: float = 0.0,
                 progress: Progress | None = None):
        for what, width, limit in (("Accumulator width", config.accumulator_width, 32),
                                   ("Activation width", config.activation_width, 8)):
            if width > limit:
                raise ValueError(f"{what} must be at most {limit} in the simulator, not {width}")
        self.config = config
        self.cycles = 0
        self._latency, self._stall = latency, round(256 * stall)
        self._images: list[tuple[int, int, int]] = []
        # The target changes no bit and no cycle.
        generic = dataclasses.replace(config, target="generic")
        library = ctypes.CDLL(str(build_library(DESIGN, generic, progress)))
        library.tally_create.restype = ctypes.c_void_p
        library.tally_destroy.argtypes = (ctypes.c_void_p,)
        library.tally_load.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint64,
                                       ctypes.c_uint64)
        library.tally_run.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32,
                                      ctypes.c_uint32, ctypes.c_uint32, ctypes.c_uint64,
                                      ctypes.c_void_p)
        self._library = library
        self._handle = library.tally_create()

    def load(self, rows: int, image: NDArray[np.uint8]) -> int:
        """Copy a packed matrix into the simulated memory and return its handle.

        Parameters
        ----------
        rows : int
        image : uint8 array, shape (columns, planes, groups, word_bytes)
            As :func:`sim.golden.trits.pack_words` makes it.

        Raises
        ------
        ValueError
            If the shape of ``image`` does not fit.
        """
        expected = (self.config.groups(rows), self.config.word_bytes)
        if image.ndim != 4 or image.shape[2:] != expected or image.dtype != np.uint8:
            raise ValueError(f"Image of {rows} rows must be uint8 of shape (columns, planes, "
                             f"{expected[0]}, {expected[1]}), not {image.dtype} {image.shape}")
        columns, planes = image.shape[:2]
        packed = np.ascontiguousarray(image)
        self._images.append((rows, planes, columns))
        return self._library.tally_load(self._handle, packed.ctypes.data, packed.nbytes,
                                        self.config.column_bytes(rows, planes))

    def product(self, handle: int, columns: NDArray[np.integer], values: NDArray[np.int8],
                ) -> tuple[NDArray[np.int32], ProductCounters]:
        """Compute one product: results of shape (batch, rows), and what it took."""
        results, counters = self.run([SimulatedProduct(handle, columns, values)])
        return results[0], counters[0]

    def run(self, products: Sequence[SimulatedProduct],
            ) -> tuple[list[NDArray[np.int32]], list[ProductCounters]]:
        """Compute products that follow one another without waiting for each other's results.

        Raises
        ------
        ValueError
            If a product does not fit the configuration or its matrix.
        SimulatorStopped
            If nothing moves for ``PATIENCE`` cycles.
        """
        records = (_Product * len(products))()
        results, kept = [], []
        for record, product in zip(records, products, strict=True):
            rows, planes, column_count = self._images[product.handle]
            columns = np.ascontiguousarray(product.columns, dtype=np.uint32)
            values = np.ascontiguousarray(product.values, dtype=np.int8)
            if values.ndim != 2 or not 0 < len(columns) == len(values):
                raise ValueError(f"Values must have shape (entries, batch) with an entry for each "
                                 f"of the {len(columns)} columns, not {values.shape}")
            if int(columns.max()) >= column_count:
                raise ValueError(f"Listed columns must be below {column_count}, "
                                 f"not {columns.max()}")
            for field, value in self.config.job(rows, planes=planes,
                                                batch=values.shape[1]).items():
                setattr(record, field, value)
            result = np.empty((values.shape[1], rows), dtype=np.int32)
            record.image, record.rows, record.entries = product.handle, rows, len(columns)
            record.columns, record.values = columns.ctypes.data, values.ctypes.data
            record.results = result.ctypes.data
            results.append(result)
            kept += [columns, values]       # until the library has read them
        cycles = ctypes.c_uint64()
        status = self._library.tally_run(self._handle, ctypes.byref(records), len(products),
                                         self._latency, self._stall, PATIENCE,
                                         ctypes.byref(cycles))
        self.cycles += cycles.value
        if status:
            raise SimulatorStopped(f"The simulated engine slice moved nothing for {PATIENCE} "
                                   f"cycles, {cycles.value} cycles after the start of a run")
        counters = []
        for record in records:
            words = record.entries * record.planes * record.groups
            counters.append(ProductCounters(
                first_entry=record.first_entry, last_result=record.last_result,
                transfers=record.transfers, words=words,
                weight_bytes=words * self.config.word_bytes))
        return results, counters

    def close(self) -> None:
        """Free the simulated slice and its memory; it cannot be used afterwards."""
        if self._handle is not None:
            self._library.tally_destroy(self._handle)
            self._handle = None

    def __enter__(self) -> "VerilatedEngine":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
