"""The device that computes ternary products, and the driver in front of it.

A **device** (:class:`Device`) holds packed matrices and multiplies one of them by a list of
activations: the engine's own interface. It may be the golden model, the simulated RTL or a board;
the driver does not know the difference. The **driver** (:class:`Driver`) turns whole vectors into
such lists, splits what is larger than the engine, and proves once for each matrix that no
accumulator can overflow. :class:`CheckedProducts` puts the golden model beside it.
"""

import abc
import dataclasses
import operator
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hw.config import EngineConfig
from hw.formats.minifloat import bf16
from sim.golden.lmul import lmul
from sim.golden.trits import combine_planes, pack_words, planes, unpack_words
from sim.timing.units import engine_cycles, port_transfers

__all__ = ["CheckedProducts", "Counters", "Device", "DeviceError", "Driver", "GoldenDevice",
           "MismatchError", "PackedMatrix", "Products", "open_device", "pack_matrix",
           "planes_needed", "row_bounds"]


class DeviceError(Exception):
    """A device cannot do what it was asked; the message is one sentence for the user."""


class MismatchError(DeviceError):
    """A device computed a product that the golden model did not."""


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


class Device(abc.ABC):
    """A ternary engine, wherever it is; some have an L-Mul unit as well.

    Subclasses define :meth:`_load` and :meth:`_product`; the base class checks and counts.

    Attributes
    ----------
    config : EngineConfig
        Geometry of the engine; the driver packs for it.
    label : str
        What it is, for people.
    evidence : str
        How its cycles are known: ``derived``, ``simulated`` or ``measured``.
    counters : Counters
    """

    label = "device"
    evidence: str

    def __init__(self, config: EngineConfig):
        self.config = config
        self.counters = Counters()
        self._images: list[tuple[str, int, int, int]] = []

    def info(self) -> dict[str, Any]:
        """Plain facts: kind of device, the engine's configuration and its fingerprint."""
        return {"device": self.label, "evidence": self.evidence,
                "configuration": dataclasses.asdict(self.config),
                "fingerprint": f"{self.config.fingerprint():08x}"}

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


class GoldenDevice(Device):
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


def planes_needed(largest: int) -> int:
    """Trit planes of weights up to ``largest`` in magnitude."""
    count = 1
    while (3 ** count - 1) // 2 < largest:
        count += 1
    return count


@dataclasses.dataclass(frozen=True, eq=False)
class PackedMatrix:
    """A matrix as a device takes it: row blocks, each with an image of its own.

    Attributes
    ----------
    name : str
    rows, columns, planes : int
    blocks : tuple of (first row, rows, image)
        One block, unless the matrix has more rows than the engine.
    """

    name: str
    rows: int
    columns: int
    planes: int
    blocks: tuple[tuple[int, int, NDArray[np.uint8]], ...]

    @property
    def bytes(self) -> int:
        """Bytes of all images."""
        return sum(image.nbytes for _, _, image in self.blocks)


def row_bounds(weights: NDArray[np.integer], config: EngineConfig) -> NDArray[np.int64]:
    """Largest magnitude that the sum of each row can reach; an accumulator is a sign wider."""
    # The largest product of an activation is that of -2**(width - 1).
    positive, negative = (part(weights, 0).sum(axis=1, dtype=np.int64)
                          for part in (np.maximum, np.minimum))
    return (positive - negative) << (config.activation_width - 1)


def pack_matrix(name: str, weights: NDArray[np.integer], config: EngineConfig, *,
                token: bool = False) -> PackedMatrix:
    """Pack a matrix of integers for an engine, and prove that no accumulator overflows.

    Parameters
    ----------
    name : str
    weights : integer array, shape (rows, columns)
    config : EngineConfig
    token : bool
        The list is never more than one entry with activation 1.

    Raises
    ------
    DeviceError
        If the engine cannot hold the matrix, or a row could overflow an accumulator.
    """
    rows, columns = weights.shape
    if columns > config.max_columns:
        raise DeviceError(f"Matrix {name} must have at most {config.max_columns} columns for this "
                          f"engine, not {columns}")
    # No copy in a wider type: an embedding of 128,256 tokens has hundreds of millions of weights.
    highest, lowest = (each.astype(np.int64) for each in (weights.max(axis=1), weights.min(axis=1)))
    magnitudes = np.maximum(highest, -lowest)
    count = planes_needed(int(magnitudes.max()))
    if count > config.max_planes:
        raise DeviceError(f"Matrix {name} must fit {config.max_planes} trit planes, but its "
                          f"largest weight {magnitudes.max()} needs {count}")
    if token:
        bounds = magnitudes
    else:
        bounds = row_bounds(weights, config)
    row = int(bounds.argmax())
    if bounds[row] >= 1 << (config.accumulator_width - 1):
        raise DeviceError(f"Matrix {name} row {row} could reach {bounds[row]}, which must be below "
                          f"2**{config.accumulator_width - 1} for accumulators of "
                          f"{config.accumulator_width} bits")
    trits = planes(weights, count)
    blocks = []
    first = 0
    while first < rows:
        groups = _avoid_two(min(config.groups(rows - first), config.accumulator_depth))
        size = min(groups * config.lanes, rows - first)
        blocks.append((first, size, pack_words(trits[:, first:first + size], config)))
        first += size
    return PackedMatrix(name, rows, columns, count, tuple(blocks))


def _avoid_two(accumulators: int) -> int:
    """1 instead of 2: a pass with exactly two accumulators a lane stalls, two passes do not."""
    return 1 if accumulators == 2 else accumulators


class Driver:
    """Whole products on a device: lists, blocks and batches.

    Parameters
    ----------
    device : Device

    Attributes
    ----------
    device : Device
    loaded_bytes : int
        Bytes of all images on the device.
    """

    def __init__(self, device: Device):
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


class CheckedProducts:
    """Products of a device, each compared with the golden model's.

    Parameters
    ----------
    products, golden : Products
        What is checked, and what it must equal.
    label : str
        Names the device in the error message.

    Attributes
    ----------
    checked : int
        Results compared, all of them equal.
    """

    def __init__(self, products: Products, golden: Products, label: str):
        self._products = products
        self._golden = golden
        self._label = label
        self.checked = 0

    def __call__(self, name: str, activations: NDArray[np.int8]) -> NDArray[np.int32]:
        """Product of the device.

        Raises
        ------
        MismatchError
            At the first result that differs from the golden model.
        """
        actual = self._products(name, activations)
        expected = self._golden(name, activations)
        if not np.array_equal(actual, expected):
            batch, row = np.argwhere(actual != expected)[0].tolist()
            raise MismatchError(
                f"Matrix {name} row {row} (activation vector {batch} of {len(activations)}) must "
                f"give {expected[batch, row]}, but the {self._label} gave "
                f"{actual[batch, row]}")
        self.checked += actual.size
        return actual


def open_device(name: str, report: Callable[[float, str], None] | None = None) -> Device:
    """Open a device by the name that users give it.

    Parameters
    ----------
    name : str
        ``engine`` (its simulated RTL), ``engine-golden``, or ``serial:PORT``.
    report : callable, optional
        Called with the share that is done (0 to 1) and what is under way, if opening takes long.

    Raises
    ------
    DeviceError
        If there is no such device, or it cannot be opened.
    """
    # Imported where they are asked for: a board needs no simulator, the simulator no serial port.
    if name == "engine-golden":
        return GoldenDevice(EngineConfig())
    if name == "engine":
        from host.devices.simulated import SimulatedDevice
        return SimulatedDevice(EngineConfig(), report)
    kind, _, port = name.partition(":")
    if kind == "serial" and port:
        from host.devices.serial_engine import SerialDevice
        return SerialDevice(port)
    raise DeviceError(f"{name!r} is not a device (try 'sim', 'golden', 'core:PORT', 'engine', "
                      f"'engine-golden', 'serial:PORT')")
