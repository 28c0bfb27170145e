"""Devices that multiply: a ternary engine, and the driver in front of it.

A **device** (:class:`EngineDevice`) holds packed matrices and multiplies one of them by a list of
activations: the engine's own interface. It may be the golden model, the simulated RTL or a board;
the driver does not know the difference. The **driver** (:class:`Driver`) turns whole vectors into
such lists, splits what is larger than the engine, and proves once for each matrix that no
accumulator can overflow. :class:`host.devices.checked.CheckedProducts` puts the golden model beside
it.
"""

import abc
import dataclasses
import operator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from host.compiler.pack import PackedMatrix, _avoid_two, pack_matrix
from host.devices.base import Device
from host.devices.errors import DeviceError
from hw.config import EngineConfig
from hw.formats.minifloat import bf16
from sim.golden.gearbox import port_transfers
from sim.golden.lmul import lmul
from sim.golden.trits import combine_planes, unpack_words
from sim.timing.units import engine_cycles

__all__ = ["Counters", "Driver", "EngineDevice", "GoldenEngine", "Products"]


class Products(Protocol):
    """What computes the matrix products of a model."""

    def __call__(self, name: str, activations: NDArray[np.int8]) -> NDArray[np.int32]:
        """Rows ``activations[b] @ W.T`` of the matrix called ``name``; shape (batch, rows)."""


@dataclasses.dataclass
class Counters:
    """What a device has done since it was opened.

    Attributes
    ----------
    products : int
        Passes over a matrix, each with its batch.
    cycles : int
        Engine clock cycles of these products, from the first list entry to the last result.
    transfers : int
        Transfers of the weight port.
    entries : int
        List entries, each with a value for every activation vector of the batch.
    skipped : int
        Columns that were not listed, since their activations were zero.
    additions : int
        Trits added up: those of the listed columns, once for each activation vector.
    weight_bytes, list_bytes, result_bytes : int
        Bytes of the weight words read, of the lists and of the results.
    """

    products: int = 0
    cycles: int = 0
    transfers: int = 0
    entries: int = 0
    skipped: int = 0
    additions: int = 0
    weight_bytes: int = 0
    list_bytes: int = 0
    result_bytes: int = 0

    def __add__(self, other: "Counters") -> "Counters":
        return Counters(*map(operator.add, dataclasses.astuple(self), dataclasses.astuple(other)))

    def __sub__(self, other: "Counters") -> "Counters":
        return Counters(*map(operator.sub, dataclasses.astuple(self), dataclasses.astuple(other)))


class EngineDevice(Device[EngineConfig]):
    """A ternary engine, wherever it is; some have an L-Mul unit as well.

    Subclasses define :meth:`_load` and :meth:`_product`; the base class checks and counts.

    Attributes
    ----------
    config : EngineConfig
        Geometry of the engine; the driver packs for it.
    counters : Counters
    """

    def __init__(self, config: EngineConfig):
        super().__init__(config)
        self.counters = Counters()
        self._images: list[tuple[str, int, int, int]] = []

    def load(self, name: str, rows: int, image: NDArray[np.uint8]) -> int:
        """Store a packed matrix.

        Parameters
        ----------
        name : str
            For messages only.
        rows : int
        image : uint8 array, shape (columns, planes, groups, word_bytes)
            As :func:`sim.golden.trits.pack_words` makes it.

        Returns
        -------
        int
            Handle for :meth:`product`.

        Raises
        ------
        DeviceError
            If the device has no room for it.
        """
        columns, count = image.shape[:2]
        self._load(len(self._images), name, rows, image)
        self._images.append((name, rows, columns, count))
        return len(self._images) - 1

    def product(self, handle: int, columns: NDArray[np.uint32],
                values: NDArray[np.int8]) -> NDArray[np.int32]:
        """Add up the listed columns, each times its values.

        Parameters
        ----------
        handle : int
            Of :meth:`load`.
        columns : uint32 array, shape (entries,)
            Column indices. At least one.
        values : int8 array, shape (entries, batch)

        Returns
        -------
        int32 array, shape (batch, rows)

        Raises
        ------
        DeviceError
            If the device fails.
        """
        name, rows, column_count, plane_count = self._images[handle]
        entries, batch = values.shape
        if not 0 < entries == len(columns):
            raise ValueError(f"List for matrix {name} must have a column for each of its "
                             f"{entries} values and at least one, not {len(columns)}")
        if int(columns.max()) >= column_count:
            raise ValueError(f"List for matrix {name} must name columns below {column_count}, "
                             f"not {columns.max()}")
        results, cycles, transfers = self._product(handle, columns, values)
        index_bytes = -(-self.config.index_width // 8)
        counters = self.counters
        counters.products += 1
        counters.cycles += cycles
        counters.transfers += transfers
        counters.entries += entries
        counters.skipped += column_count - entries
        counters.additions += entries * plane_count * rows * batch
        counters.weight_bytes += entries * self.config.column_bytes(rows, plane_count)
        counters.list_bytes += entries * (index_bytes + batch * self.config.activation_width // 8)
        counters.result_bytes += results.nbytes
        return results

    @abc.abstractmethod
    def _load(self, handle: int, name: str, rows: int, image: NDArray[np.uint8]) -> None:
        """Store ``image`` under ``handle``."""

    @abc.abstractmethod
    def _product(self, handle: int, columns: NDArray[np.uint32],
                 values: NDArray[np.int8]) -> tuple[NDArray[np.int32], int, int]:
        """Results (batch, rows), cycles, and transfers of the weight port."""

    def lmul(self, x: NDArray[np.uint16], y: NDArray[np.uint16]) -> NDArray[np.uint16]:
        """L-Mul products of bf16 numbers, given and returned as bits.

        Raises
        ------
        DeviceError
            If the device has no L-Mul unit.
        """
        raise DeviceError(f"The {self.label} has no L-Mul unit")

    def close(self) -> None:
        """Give back what the device holds. It cannot be used afterwards."""
        self._images.clear()


class GoldenEngine(EngineDevice):
    """The golden model behind the device interface: it multiplies what it unpacks from the image.

    It has no clock: its cycles are those of the engine's closed formula, or the transfers of the
    weight port where these are more.
    """

    label = "golden model"
    evidence = "derived"

    def __init__(self, config: EngineConfig):
        super().__init__(config)
        self._weights: list[NDArray[np.floating]] = []
        self._planes: list[int] = []

    def _load(self, handle: int, name: str, rows: int, image: NDArray[np.uint8]) -> None:
        # Sums stay below 2**(accumulator_width - 1), which the driver proved: exact in float32 for
        # up to 25 bits, in float64 for all others.
        dtype = np.float32 if self.config.accumulator_width <= 25 else np.float64
        weights = combine_planes(unpack_words(image, rows, self.config))
        self._weights.append(np.ascontiguousarray(weights.T, dtype=dtype))
        self._planes.append(image.shape[1])

    def _product(self, handle: int, columns: NDArray[np.uint32],
                 values: NDArray[np.int8]) -> tuple[NDArray[np.int32], int, int]:
        weights = self._weights[handle]
        results = (values.T.astype(weights.dtype) @ weights[columns]).astype(np.int32)
        (entries, batch), rows, count = values.shape, weights.shape[1], self._planes[handle]
        cycles = engine_cycles(self.config, rows=rows, columns=entries, planes=count, batch=batch)
        transfers = port_transfers(self.config, entries * count * self.config.groups(rows))
        return results, max(cycles, transfers), transfers

    def lmul(self, x: NDArray[np.uint16], y: NDArray[np.uint16]) -> NDArray[np.uint16]:
        """L-Mul products of bf16 numbers, given and returned as bits."""
        return lmul(bf16, x, y)


class Driver:
    """Whole products on a device: lists, blocks and batches.

    Parameters
    ----------
    device : EngineDevice

    Attributes
    ----------
    device : EngineDevice
    loaded_bytes : int
        Bytes of all images on the device.
    """

    def __init__(self, device: EngineDevice):
        self.device = device
        self.loaded_bytes = 0
        self._matrices: dict[str, tuple[PackedMatrix, list[int]]] = {}

    def load(self, name: str, weights: NDArray[np.integer]) -> PackedMatrix:
        """Pack a matrix of integers, shape (rows, columns), and put it onto the device.

        Raises
        ------
        DeviceError
            If the engine or the device cannot hold it, or an accumulator could overflow.
        """
        packed = pack_matrix(name, weights, self.device.config)
        handles = [self.device.load(name, rows, image) for _, rows, image in packed.blocks]
        self._matrices[name] = packed, handles
        self.loaded_bytes += packed.bytes
        return packed

    def __call__(self, name: str, activations: NDArray[np.int8]) -> NDArray[np.int32]:
        """Rows ``activations[b] @ W.T``; shape (batch, rows), any batch.

        Columns that are zero in a whole pass are not listed. If all are, one is: a list has an
        entry.
        """
        packed, handles = self._matrices[name]
        batch, columns = activations.shape
        if columns != packed.columns:
            raise ValueError(f"Activations for matrix {name} must have {packed.columns} columns, "
                             f"not {columns}")
        results = np.empty((batch, packed.rows), np.int32)
        config = self.device.config
        for (first, rows, _), handle in zip(packed.blocks, handles, strict=True):
            groups = config.groups(rows)
            limit = min(config.max_batch, config.accumulator_depth // groups)
            done = 0
            while done < batch:
                size = _avoid_two(groups * min(limit, batch - done)) // groups
                vectors = activations[done:done + size]
                listed = np.flatnonzero(vectors.any(axis=0)).astype(np.uint32)
                if not len(listed):
                    listed = np.zeros(1, np.uint32)
                results[done:done + size, first:first + rows] = self.device.product(
                    handle, listed, np.ascontiguousarray(vectors[:, listed].T))
                done += size
        return results
