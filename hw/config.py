"""The one configuration: every width in hardware, golden model and driver derives from it.

This module imports no Amaranth: a host that only talks to a board reads it too.
"""

import dataclasses
import hashlib
import json

from hw.check import one_of, positive_int
from hw.formats.trits import PACKINGS

__all__ = ["ATTENTION_FIELDS", "BURST_TRANSFERS", "ENTRY_DEPTH", "GEARBOX_DEPTH", "INDEX_BITS",
           "RESULT_DEPTH", "RESULT_SPARE", "TARGETS", "TILE", "AcceleratorConfig", "EngineConfig"]

#: How memories and carry chains are described: ``generic`` leaves both to synthesis, ``ecp5``
#: instantiates CCU2C and DP16KD, which synthesis would not use as well as they can be used.
TARGETS = ("generic", "ecp5")

#: Elements of a tile of the list: an index within a tile is a byte.
TILE = 256

#: Bits of a column index at most: as many tokens as an instruction can count.
INDEX_BITS = 22

#: Transfers of the memory port's longest burst.
BURST_TRANSFERS = 256

#: Depth of the gearbox's queue; it holds one word, or one transfer, less.
GEARBOX_DEPTH = 512

#: Entries that wait inside the engine, so that columns are requested ahead of their use.
ENTRY_DEPTH = 16

#: Result transfers in the engine's queue. Reads of accumulators stop while the last
#: :data:`RESULT_SPARE` are free, since results are on their way.
RESULT_DEPTH, RESULT_SPARE = 256, 16

#: Fields of :class:`AcceleratorConfig` that say nothing without attention.
ATTENTION_FIELDS = ("context", "head_elements", "group", "attention_heads", "attention_elements",
                    "caches")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Geometry of the ternary engine.

    Attributes
    ----------
    lanes : int
        Rows that one weight word covers; each lane adds one activation a cycle. A multiple of
        ``result_lanes``.
    activation_width : int
        Bits of a two's complement activation.
    accumulator_width : int
        Bits of a two's complement accumulator.
    accumulator_depth : int
        Accumulators of each lane, a power of two. A product needs
        ``ceil(rows / lanes) * batch`` of them.
    max_planes : int
        Trit planes of a weight; plane ``p`` weighs ``3**p``.
    max_batch : int
        Activation vectors that share one pass over the weights.
    index_width : int
        Bits of a column index.
    packing : str
        Trit packing of the weight words, a key of :data:`hw.formats.trits.PACKINGS`.
    port_bytes : int
        Bytes that the weight port delivers in one transfer.
    result_lanes : int
        Results in one transfer of the drain.
    row_columns : int
        Columns of the widest matrix that can be walked by row, a multiple of ``lanes``, which are
        then a power of two; 0 leaves that walk out.
    target : str
        One of :data:`TARGETS`.
    """

    lanes: int = 64
    activation_width: int = 8
    accumulator_width: int = 24
    accumulator_depth: int = 256
    max_planes: int = 6
    max_batch: int = 8
    index_width: int = 16
    packing: str = "5in8"
    port_bytes: int = 8
    result_lanes: int = 8
    row_columns: int = 0
    target: str = "generic"

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is int and (field.name, value) != ("row_columns", 0):
                positive_int(f"Configuration field {field.name}", value)
        one_of("Trit packing", self.packing, PACKINGS)
        one_of("Target", self.target, TARGETS)
        if self.lanes % self.result_lanes:
            raise ValueError(f"Lane count ({self.lanes}) must be a multiple of the result lane "
                             f"count ({self.result_lanes})")
        if self.accumulator_depth & (self.accumulator_depth - 1):
            raise ValueError(f"Accumulator depth must be a power of two, "
                             f"not {self.accumulator_depth}")
        if self.target == "ecp5" and self.accumulator_depth > 256:
            raise ValueError(f"Accumulator depth must be at most 256 on target 'ecp5', "
                             f"not {self.accumulator_depth}")
        if self.accumulator_width <= self.operand_width:
            raise ValueError(f"Accumulator width ({self.accumulator_width}) must exceed the "
                             f"operand width ({self.operand_width})")
        if self.row_columns:
            self._check_rows()

    def _check_rows(self):
        if self.lanes < 2 or self.lanes & (self.lanes - 1):
            raise ValueError(f"Lane count must be a power of two from 2 for the walk by row, "
                             f"not {self.lanes}")
        if self.row_columns % self.lanes:
            raise ValueError(f"Columns by row ({self.row_columns}) must be a multiple of the lane "
                             f"count ({self.lanes})")
        # One counter walks groups of either kind.
        if self.row_columns > self.max_rows:
            raise ValueError(f"Columns by row must be at most {self.max_rows}, the rows by column, "
                             f"not {self.row_columns}")

    @property
    def operand_width(self) -> int:
        """Bits of an activation times the largest plane weight, ``3**(max_planes - 1)``."""
        return self.activation_width + (3 ** (self.max_planes - 1) - 1).bit_length()

    @property
    def word_bytes(self) -> int:
        """Bytes of one packed weight word, which holds one trit for each lane."""
        packing = PACKINGS[self.packing]
        groups = -(-self.lanes // packing.trits)
        return -(-groups * packing.bits // 8)

    @property
    def max_rows(self) -> int:
        """Rows of the largest matrix at batch 1."""
        return self.lanes * self.accumulator_depth

    @property
    def max_columns(self) -> int:
        """Columns of the widest matrix."""
        return 2 ** self.index_width

    def groups(self, rows: int) -> int:
        """Weight words in one plane of one column of a matrix of ``rows`` rows."""
        return -(-rows // self.lanes)

    def column_bytes(self, rows: int, planes: int) -> int:
        """Bytes of one packed column."""
        return self.groups(rows) * planes * self.word_bytes

    def result_transfers(self, rows: int) -> int:
        """Count the result transfers of one vector of a product of ``rows`` rows."""
        return -(-rows // self.result_lanes)

    def job(self, rows: int, *, planes: int = 1, batch: int = 1) -> dict[str, int]:
        """Fields of the engine's job for a matrix of ``rows`` rows.

        Parameters
        ----------
        rows : int
            Rows of the matrix.
        planes : int
            Trit planes of its weights.
        batch : int
            Activation vectors.

        Returns
        -------
        dict
            ``groups``: weight words in a plane of a column; ``tail``: result transfers of the last
            group; ``planes``; ``batch``.

        Raises
        ------
        ValueError
            If the product does not fit this configuration.
        """
        positive_int("Row count", rows)
        _at_most("Plane count", planes, self.max_planes)
        _at_most("Batch", batch, self.max_batch)
        groups = self.groups(rows)
        if groups * batch > self.accumulator_depth:
            limit = self.accumulator_depth // batch * self.lanes
            raise ValueError(f"Row count must be at most {limit} with batch {batch}, not {rows}")
        last_rows = rows - (groups - 1) * self.lanes
        fields = {"groups": groups, "tail": self.result_transfers(last_rows), "planes": planes,
                  "batch": batch}
        return fields | ({"by_row": 0} if self.row_columns else {})

    def row_job(self, columns: int, *, planes: int = 1) -> dict[str, int]:
        """Fields of the engine's job for listed rows of a matrix of ``columns`` columns.

        Parameters
        ----------
        columns : int
            Columns of the matrix.
        planes : int
            Trit planes of its weights.

        Returns
        -------
        dict
            ``groups``: weight words in a plane of a row; ``planes``; ``batch``: 1; ``tail``: 0;
            ``by_row``: 1.

        Raises
        ------
        ValueError
            If the product does not fit this configuration.
        """
        if not self.row_columns:
            raise ValueError("A product by row needs a configuration with row_columns")
        _at_most("Column count", columns, self.row_columns)
        _at_most("Plane count", planes, self.max_planes)
        return {"groups": self.groups(columns), "tail": 0, "planes": planes, "batch": 1,
                "by_row": 1}

    def configuration_hash(self) -> int:
        """32 bits that differ between configurations; ``target`` changes no bit of any result."""
        fields = dataclasses.asdict(self)
        del fields["target"]
        return _configuration_hash(fields)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AcceleratorConfig:
    """Geometry of the accelerator, whose parts docs/machine.md names.

    Attributes
    ----------
    engine : EngineConfig
        Activations are int8: the list's codes. ``port_bytes`` is the width of the memory port. It
        walks by row too, by default.
    vector_depth : int
        Elements of the vector memory.
    program_depth : int
        Instructions of a program, a power of two.
    list_depth : int
        Entries of each of the two list buffers: whole tiles of :data:`TILE`, or one short tile.
    product_depth : int
        Products that can be queued; a program has no more that are not drained yet.
    queue_words : int
        Transfers of the memory port that are read ahead, a power of two.
    top_k : int
        Largest logits that one TOP_K delivers.
    masks : int
        1 with the sparsity policy, which masks lists (KEEP_TOP_K, KEEP_ABOVE); 0 leaves it out.
    address_width : int
        Bits of a byte address: the memory has ``2**address_width`` bytes.
    context : int
        Positions that attention can look back on, a power of two from 2 to 32,768; 0 leaves it out,
        and the fields below say nothing.
    head_elements : int
        Elements of the widest head, a multiple of the result lanes and at most 128: sums of scores
        are 32 bits wide.
    group : int
        Query heads that share a cache, at most.
    attention_heads, attention_elements : int
        L-Mul lanes of attention: heads, and elements of each, that are multiplied in a cycle.
        ``attention_elements`` is a power of two of at most ``port_bytes`` and the result lanes.
    caches : int
        Caches of values whose largest element is remembered.
    """

    engine: EngineConfig = dataclasses.field(
        default_factory=lambda: EngineConfig(row_columns=1024))
    vector_depth: int = 16384
    program_depth: int = 1024
    list_depth: int = 2048
    product_depth: int = 4
    queue_words: int = 1024
    top_k: int = 16
    masks: int = 1
    address_width: int = 32
    context: int = 0
    head_elements: int = 64
    group: int = 3
    attention_heads: int = 3
    attention_elements: int = 4
    caches: int = 128

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is int and (field.name, value) not in (
                    ("context", 0), ("masks", 0)):
                positive_int(f"Configuration field {field.name}", value)
        for name in ("program_depth", "queue_words"):
            value = getattr(self, name)
            if value & (value - 1):
                raise ValueError(f"Configuration field {name} must be a power of two, not {value}")
        # Fields of an instruction hold places of elements and entries in 16 bits, addresses in 32.
        for name, limit in (("vector_depth", 2 ** 16), ("list_depth", 2 ** 16 - TILE),
                            ("address_width", 32)):
            if getattr(self, name) > limit:
                raise ValueError(f"Configuration field {name} must be at most {limit}, "
                                 f"not {getattr(self, name)}")
        if self.list_depth > TILE and self.list_depth % TILE:
            raise ValueError(f"List depth ({self.list_depth}) must be a multiple of {TILE}, or "
                             f"less than that")
        if self.vector_depth % self.vector_lanes:
            raise ValueError(f"Vector depth ({self.vector_depth}) must be a multiple of the result "
                             f"lane count ({self.vector_lanes})")
        if self.masks > 1:
            raise ValueError(f"Configuration field masks must be 0 or 1, not {self.masks}")
        if self.engine.activation_width != 8:
            raise ValueError(f"Activation width of an accelerator's engine must be 8, "
                             f"not {self.engine.activation_width}")
        if self.engine.index_width > INDEX_BITS:
            raise ValueError(f"Index width of an accelerator's engine must be at most "
                             f"{INDEX_BITS}, not {self.engine.index_width}")
        if self.context:
            self._check_attention()

    def facts(self) -> dict:
        """Return the fields as plain data, without those that say nothing: they have defaults."""
        return {name: value for name, value in dataclasses.asdict(self).items()
                if self.context or name not in ATTENTION_FIELDS}

    def _check_attention(self):
        if self.context < 2:
            raise ValueError(f"Configuration field context must be at least 2, not {self.context}")
        for name in ("context", "attention_elements"):
            value = getattr(self, name)
            if value & (value - 1):
                raise ValueError(f"Configuration field {name} must be a power of two, not {value}")
        for name, limit in (("context", 2 ** 15), ("head_elements", 128), ("group", 16),
                            ("attention_heads", self.group), ("caches", 2 ** 12),
                            ("attention_elements", min(self.port_bytes, self.vector_lanes))):
            if getattr(self, name) > limit:
                raise ValueError(f"Configuration field {name} must be at most {limit}, "
                                 f"not {getattr(self, name)}")
        if self.head_elements % self.vector_lanes:
            raise ValueError(f"Elements of a head ({self.head_elements}) must be a multiple of the "
                             f"result lane count ({self.vector_lanes})")

    @property
    def vector_lanes(self) -> int:
        """Elements of a word of the vector memory: those of one result transfer."""
        return self.engine.result_lanes

    @property
    def port_bytes(self) -> int:
        """Bytes of one transfer of the memory port."""
        return self.engine.port_bytes

    @property
    def cache_formats(self) -> tuple[str, ...]:
        """Formats that a cache can have: a word of e4m3 numbers must fill a transfer."""
        return ("bf16", "e4m3") if self.port_bytes <= self.vector_lanes else ("bf16",)

    @property
    def memory_bytes(self) -> int:
        """Bytes that an address can reach."""
        return 2 ** self.address_width

    def configuration_hash(self) -> int:
        """32 bits that differ between configurations; ``target`` changes no bit of any result."""
        fields = self.facts()
        del fields["engine"]["target"]
        return _configuration_hash(fields)


def _at_most(what: str, value: int, limit: int) -> None:
    if positive_int(what, value) > limit:
        raise ValueError(f"{what} must be at most {limit}, not {value}")


def _configuration_hash(fields: dict) -> int:
    text = json.dumps(fields, sort_keys=True)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")
