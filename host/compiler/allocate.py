"""Places in the memory behind the port, and in the vector memory."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from host.compiler.errors import CompileError
from host.compiler.pack import check_bounds, pack_columns, pieces, row_blocks, row_bounds
from host.compiler.products import FIELD_LIMIT, Product, Rows, joined_name, split_rows
from host.files.image import Part
from hw.config import AcceleratorConfig

__all__ = ["ImageMemory", "Progress", "VectorMemory"]

#: What is told how far the compiler is: the share that is done (0 to 1), and what is under way.
Progress = Callable[[float, str], None]

_Writer = Callable[[NDArray[np.uint8]], None]


class ImageMemory:
    """The image: packed matrices and vectors, one after the other.

    Places are given out first, by sizes alone; :meth:`write` lays out and packs everything once.
    """

    def __init__(self, config: AcceleratorConfig):
        self._config = config
        self._end = 0                           # bytes that have contents
        self._writers: list[tuple[str, int, _Writer]] = []      # name, bytes
        self.parts: list[Part] = []
        self.room = 0                           # bytes of caches

    def by_column(self, rows: Sequence[Rows], *, token: bool = False) -> list[Product]:
        """Find places for rows, one below the other, that are packed column by column."""
        engine, name = self._config.engine, joined_name(rows)
        if sum(part.count for part in rows) > FIELD_LIMIT < engine.max_rows:
            # Accumulators are a power of two.
            depth = 2 ** ((FIELD_LIMIT // engine.lanes).bit_length() - 1)
            engine = dataclasses.replace(engine, accumulator_depth=depth)
        magnitudes = np.concatenate([part.magnitudes for part in rows])
        columns = rows[0].matrix.columns
        count, blocks = row_blocks(name, len(magnitudes), columns, int(magnitudes.max()), engine)
        first = self._end
        products, places, rest = [], [], [*rows]
        for _, size in blocks:
            parts, rest = split_rows(rest, size)
            width = engine.column_bytes(size, count)
            address = self._add(joined_name(parts), "trits", columns * width,
                                sum(part.elements for part in parts) * count)
            places.append((parts, address, width))
            products.append(Product(joined_name(parts), address, tuple(parts), columns, count))

        def write(memory: NDArray[np.uint8]) -> None:
            bounds = []
            for parts, address, width in places:
                size = sum(part.count for part in parts)
                sums: NDArray[np.int64] = np.zeros(size, np.int64)
                for begin, end in pieces(columns, size):
                    weights = np.concatenate([part.take(begin, end) for part in parts])
                    if not token:
                        sums += row_bounds(weights, engine)
                    pack_columns(weights, count, engine,
                                 memory[address + begin * width:address + end * width])
                bounds.append(sums)
            check_bounds(name, magnitudes if token else np.concatenate(bounds), engine)

        self._writers.append((name, self._end - first, write))
        return products

    def by_row(self, rows: Rows) -> list[Product]:
        """Find a place for a matrix to be walked by row: its rows are stored as columns are."""
        engine, columns = self._config.engine, rows.matrix.columns
        count, _ = row_blocks(rows.name, rows.count, columns, int(rows.magnitudes.max()), engine)
        width = engine.column_bytes(columns, count)
        address = self._add(rows.name, "trits", rows.count * width, rows.elements * count)

        def write(memory: NDArray[np.uint8]) -> None:
            bounds = []
            for begin, end in pieces(rows.count, columns):
                weights = rows.matrix.take(rows.first + begin, rows.first + end, 0, columns)
                bounds.append(row_bounds(weights, engine))
                pack_columns(weights.T, count, engine,
                             memory[address + begin * width:address + end * width])
            check_bounds(rows.name, np.concatenate(bounds), engine)

        self._writers.append((rows.name, rows.count * width, write))
        return [Product(rows.name, address, (rows,), columns, count)]

    def vector(self, name: str, values: NDArray[np.uint16]) -> int:
        """Place a vector of bf16 numbers; return its address."""
        data = np.frombuffer(values.astype("<u2").tobytes(), np.uint8)
        address = self._add(name, "vector", len(data), 0)

        def write(memory: NDArray[np.uint8]) -> None:
            memory[address:address + len(data)] = data

        self._writers.append((name, len(data), write))
        return address

    def cache(self, name: str, size: int) -> int:
        """Leave room behind all parts; return its address."""
        address = self._end + self.room
        self.room += size
        self._check(name)
        return address

    def _add(self, name: str, kind: str, size: int, trits: int) -> int:
        assert not self.room
        address = self._end
        self._end += -(-size // self._config.port_bytes) * self._config.port_bytes
        self._check(name)
        self.parts.append(Part(name, kind, address, size, trits))
        return address

    def _check(self, name: str) -> None:
        end = self._end + self.room
        if end > self._config.memory_bytes:
            raise CompileError(f"Image must have at most {self._config.memory_bytes} bytes for an "
                               f"address width of {self._config.address_width}, but {name} ends "
                               f"at byte {end}")

    def __len__(self) -> int:
        return self._end

    def write(self, progress: Progress | None = None) -> memoryview:
        """Lay out and pack everything; return the memory from address 0, which is read-only.

        Parameters
        ----------
        progress : callable, optional
            Called with the share that is done (0 to 1) and the name of what is packed next.

        Raises
        ------
        CompileError
            If a row could overflow an accumulator.
        """
        memory: NDArray[np.uint8] = np.zeros(self._end, np.uint8)
        done = 0
        for name, size, write in self._writers:
            if progress:
                progress(done / self._end, name)
            write(memory)
            done += size
        memory.flags.writeable = False
        return memory.data


class VectorMemory:
    """Vector memory, given out in places of whole words; the first word is zero."""

    def __init__(self, config: AcceleratorConfig):
        self._config = config
        self.table: dict[str, tuple[int, int]] = {}
        self._free: list[tuple[int, int]] = []
        self.end = 0
        self.take("zero", config.vector_lanes)

    def take(self, name: str, count: int) -> int:
        """Find a place of ``count`` elements that is free, or add one of this name."""
        for place in self._free:
            if place[1] == count:
                self._free.remove(place)
                return place[0]
        first, self.end = self.end, self.end + count
        number = sum(known.partition("#")[0] == name for known in self.table)
        self.table[f"{name}#{number + 1}" if number else name] = first, count
        return first

    def free(self, first: int, count: int) -> None:
        """Give a place back."""
        self._free.append((first, count))
        self._free.sort()

    def check(self, least: str = "") -> None:
        """Check that there are no more places than memory; ``least`` says that more may come."""
        if self.end > self._config.vector_depth:
            raise CompileError(f"Vectors must fit {self._config.vector_depth} elements of vector "
                               f"memory, but the model needs {least}{self.end}")
