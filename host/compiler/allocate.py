"""Places in the memory behind the port, and in the vector memory."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from host.compiler.errors import CompileError
from host.compiler.pack import pack_matrix
from host.compiler.products import FIELD_LIMIT, Product, Rows, joined_name, split_rows
from host.files.image import Part
from hw.config import AcceleratorConfig
from sim.golden.trits import pack_words, planes

__all__ = ["ImageMemory", "VectorMemory"]


class ImageMemory:
    """The image: packed matrices and vectors, one after the other."""

    def __init__(self, config: AcceleratorConfig):
        self._config = config
        self._data = bytearray()
        self.parts: list[Part] = []
        self.room = 0                           # bytes of caches

    def by_column(self, rows: Sequence[Rows], *, token: bool = False) -> list[Product]:
        """Pack rows, one below the other; pack_matrix proves that no accumulator overflows."""
        engine, count = self._config.engine, sum(part.count for part in rows)
        if count > FIELD_LIMIT < engine.max_rows:        # accumulators are a power of two
            depth = 2 ** ((FIELD_LIMIT // engine.lanes).bit_length() - 1)
            engine = dataclasses.replace(engine, accumulator_depth=depth)
        weights = np.concatenate([part.weights for part in rows])
        packed = pack_matrix(joined_name(rows), weights, engine, token=token)
        products, rest = [], [*rows]
        for _, count, image in packed.blocks:
            parts, rest = split_rows(rest, count)
            address = self._add(joined_name(parts), "trits", image.tobytes(),
                                sum(part.elements for part in parts) * packed.planes)
            products.append(Product(joined_name(parts), address, tuple(parts), packed.columns,
                                    packed.planes))
        return products

    def by_row(self, rows: Rows) -> list[Product]:
        """Pack a matrix to be walked by row: its rows are stored as columns are."""
        engine, weights = self._config.engine, rows.weights
        packed = pack_matrix(rows.name, weights, engine)    # which proves that no sum overflows
        image = pack_words(planes(weights.T, packed.planes), engine)
        address = self._add(rows.name, "trits", image.tobytes(), rows.elements * packed.planes)
        return [Product(rows.name, address, (rows,), packed.columns, packed.planes)]

    def vector(self, name: str, values: NDArray[np.uint16]) -> int:
        """Place a vector of bf16 numbers; return its address."""
        return self._add(name, "vector", values.astype("<u2").tobytes(), 0)

    def cache(self, name: str, size: int) -> int:
        """Leave room behind all parts; return its address."""
        address = len(self._data) + self.room
        self.room += size
        self._check(name)
        return address

    def _add(self, name, kind, data, trits):
        assert not self.room
        port = self._config.port_bytes
        address = len(self._data)
        self._data += data
        self._data += bytes(-len(data) % port)
        self._check(name)
        self.parts.append(Part(name, kind, address, len(data), trits))
        return address

    def _check(self, name: str) -> None:
        end = len(self._data) + self.room
        if end > self._config.memory_bytes:
            raise CompileError(f"Image must have at most {self._config.memory_bytes} bytes for an "
                               f"address width of {self._config.address_width}, but {name} ends "
                               f"at byte {end}")

    def bytes(self) -> bytes:
        """Return the memory from address 0."""
        return bytes(self._data)


class VectorMemory:
    """Vector memory, given out in places of whole words; the first word is zero."""

    def __init__(self, config: AcceleratorConfig):
        self._config = config
        self.table: dict[str, tuple[int, int]] = {}
        self._free: list[tuple[int, int]] = []
        self._end = 0
        self.take("zero", config.vector_lanes)

    def take(self, name: str, count: int) -> int:
        """Find a place of ``count`` elements that is free, or add one of this name."""
        for place in self._free:
            if place[1] == count:
                self._free.remove(place)
                return place[0]
        first, self._end = self._end, self._end + count
        number = sum(known.partition("#")[0] == name for known in self.table)
        self.table[f"{name}#{number + 1}" if number else name] = first, count
        return first

    def free(self, first: int, count: int) -> None:
        """Give a place back."""
        self._free.append((first, count))
        self._free.sort()

    def check(self, least: str = "") -> None:
        """Check that there are no more places than memory; ``least`` says that more may come."""
        if self._end > self._config.vector_depth:
            raise CompileError(f"Vectors must fit {self._config.vector_depth} elements of vector "
                               f"memory, but the model needs {least}{self._end}")
