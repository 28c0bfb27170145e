"""Cycles of each unit when nothing makes it wait: closed formulas, which the benches assert."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hw.config import AcceleratorConfig, EngineConfig
from hw.isa import ATTENTION, MASKED, Function, Instruction, Opcode
from hw.link.protocol import CRC_BYTES
from hw.memory.sdram_chip import (
    REFRESHES,
    SdramChip,
    SdramCycles,
    columns_per_transfer,
    refresh_interval,
)
from sim.golden.frames import encode_frame
from sim.golden.gearbox import port_transfers
from sim.golden.select import select_bound

__all__ = ["INSTRUCTION_CYCLES", "SCALAR_CYCLES", "append_cycles", "axi4_read_cycles",
           "block_ram_memory_cycles", "cache_walk", "slice_cycles", "decode_cycles",
           "dispatch_cycles", "write_back_cycles", "engine_cycles", "engine_lane_words",
           "engine_period",
           "engine_row_cycles", "engine_row_period", "engine_sequence", "fetch_cycles",
           "frame_delivery_cycles", "frame_send_cycles", "gearbox_cycles", "instruction_cycles",
           "list_cycles", "load_cycles", "pv_cycles", "norm_cycles", "quantize_cycles",
           "port_transfers", "product_cycles", "qk_cycles", "qk_fault_cycles", "sdram_cycles",
           "sdram_refresh_cycles", "sdram_share",
           "select_cycles", "store_cycles", "threshold_cycles", "top_k_cycles", "touched_transfers",
           "uart_cycles", "vector_cycles"]


def engine_lane_words(config: EngineConfig, *, rows: int, columns: int, planes: int = 1,
                      batch: int = 1) -> int:
    """Count the useful cycles of a product: weight words times vectors."""
    return columns * planes * config.groups(rows) * batch


def engine_period(config: EngineConfig, *, rows: int, columns: int, planes: int = 1,
                  batch: int = 1) -> int:
    """Cycles from one product to the next when equal products follow one another.

    Parameters
    ----------
    rows : int
        Rows of the matrix.
    columns : int
        Listed columns.
    planes, batch : int
        As in the job.
    """
    slots = config.groups(rows) * batch
    # Two slots pause in each round; the last pause is that of the list's end.
    pause = 1 if slots == 2 else 0
    rounds = 1 + columns * planes       # the first one clears
    return (slots + pause) * rounds - pause + 3 + config.result_transfers(rows) * batch


def engine_cycles(config: EngineConfig, *, rows: int, columns: int, planes: int = 1,
                  batch: int = 1) -> int:
    """Cycles from the first list entry accepted to the last result delivered, both included.

    The parameters are those of :func:`engine_period`; the engine is idle before.
    """
    # The period includes the cycle of the first entry.
    period = engine_period(config, rows=rows, columns=columns, planes=planes, batch=batch)
    return period + _result_latency(config)


def _result_latency(config: EngineConfig) -> int:
    """Cycles from the read of a result to its delivery: 8, and the levels of the OR tree."""
    levels, banks = 0, config.lanes // config.result_lanes
    while banks > 1:
        levels, banks = levels + 1, -(-banks // 4)
    return 8 + levels


def engine_row_period(config: EngineConfig, *, rows: int, columns: int, planes: int = 1) -> int:
    """Cycles from one product by row to the next when equal products follow one another.

    Parameters
    ----------
    rows : int
        Listed rows. Of products without any, every second one takes a cycle more.
    columns : int
        Columns of the matrix.
    planes : int
        As in the job.
    """
    return rows * planes * config.groups(columns) + 2


def engine_row_cycles(config: EngineConfig, *, rows: int, columns: int, planes: int = 1) -> int:
    """Cycles from the first list entry accepted to the last result delivered, both included.

    The parameters are those of :func:`engine_row_period`; the engine is idle before.
    """
    period = engine_row_period(config, rows=rows, columns=columns, planes=planes)
    return 1 + period + _row_latency(config)


def _row_latency(config: EngineConfig) -> int:
    """Cycles from the end of a list of rows to the delivery of the last result."""
    weights = 0 if config.max_planes == 1 else (config.max_planes + 1) // 2
    joined = config.lanes > config.result_lanes
    # The sums wait for the words' trits, the tree takes a level a cycle, the queue three.
    return 10 + (config.lanes - 1).bit_length() + weights + joined


def engine_sequence(config: EngineConfig, products: list[dict]) -> list[int]:
    """Cycles from the first list entry accepted to the last result of each product delivered.

    Both are included; the products follow one another, of both kinds in any order, and the engine
    is idle before. Exact if no list is so short that the engine would wait for the next one: a
    product of a few cycles may delay one behind it.

    Parameters
    ----------
    products : list of dict
        Arguments of :func:`engine_row_period` with ``by_row=True``, or of :func:`engine_period`.
    """
    delivered = []
    end = rows_out = 0      # the last read or end of a list; the last cycle without reads for rows
    for product in products:
        shape = {name: value for name, value in product.items() if name != "by_row"}
        if product.get("by_row"):
            end += engine_row_period(config, **shape) + (end == 0)
            delivered.append(end + _row_latency(config))
            rows_out = delivered[-1] - 2 - (config.lanes > config.result_lanes)
        else:
            transfers = config.result_transfers(shape["rows"]) * shape.get("batch", 1)
            end = max(end + engine_period(config, **shape), rows_out + transfers)
            delivered.append(end + _result_latency(config))
    return delivered


def gearbox_cycles(config: EngineConfig, word_counts: list[int]) -> int:
    """Cycles of the gearbox from the first transfer accepted to the last word delivered.

    Both are included; the gearbox is empty before.

    Parameters
    ----------
    word_counts : list of int
        Weight words of each of the products that follow one another.
    """
    granule = math.gcd(config.port_bytes, config.word_bytes)
    levels = (config.port_bytes // granule).bit_length() - 1    # of the rotator
    if config.port_bytes < config.word_bytes:
        return sum(port_transfers(config, words) for words in word_counts) + levels + 4
    return sum(word_counts) + levels + 5


def product_cycles(count: int, *, latency: int) -> int:
    """Cycles of a multiplier from the first pair accepted to the last product delivered.

    Both are included. It holds for L-Mul and for the exact multiplier.
    """
    return count + latency


def vector_cycles(words: int) -> int:
    """Cycles of the vector unit from a VECTOR accepted to its end delivered, both included.

    ``words`` are read, one a cycle; two cycles of memory and ten of the adder, whatever the
    function.
    """
    return words + 14


def norm_cycles(config: AcceleratorConfig, words: int) -> int:
    """Cycles of the vector unit from a NORM accepted to its number delivered, both included.

    Two passes over ``words``, the trees over the lanes behind each, and the normalization of a sum
    of squares: by eights, then seven times by one.
    """
    levels = (config.vector_lanes - 1).bit_length()
    width = 24 + (config.vector_depth - 1).bit_length()
    # The first pass leaves the lanes no sooner than a tree of two levels.
    return 2 * words + levels + max(levels, 2) + (width - 1) // 8 + 23


def quantize_cycles(config: AcceleratorConfig, entries: Sequence[float], *,
                    nonzero: bool = False) -> int:
    """Cycles of the quantizer from a QUANTIZE accepted to its end delivered, both included.

    Parameters
    ----------
    config : AcceleratorConfig
    entries : sequence of numbers
        Entries that leave of each word of the vector; all of a DENSE one. A word without one takes
        a cycle too.
    nonzero : bool
        No largest magnitude is looked for.
    """
    leaving = math.ceil(sum(max(1, count) for count in entries))
    if nonzero:
        return leaving + 11
    levels = (config.vector_lanes - 1).bit_length()
    return len(entries) + leaving + levels + 15


def select_cycles(keys: NDArray[np.int64], keep: int, *, lanes: int = 8) -> int:
    """Cycles of the sparsity policy from a list's end accepted to that of what is kept.

    Both are included. Each pass is a row of scores a cycle, 16 bins, and what is on its way.

    Parameters
    ----------
    keys : int64 array, shape (entries,)
        Scores of the list's entries; their magnitudes where norms are all one. Those with score 0
        are not stored.
    keep : int
    lanes : int
        As in :class:`hw.activations.sparsity.SparsityPolicy`.
    """
    keys = keys[keys > 0]
    if not len(keys):
        return 25
    bound, passes = select_bound(keys, keep)
    reached = keys >= bound
    rows = -(-len(keys) // lanes)
    leaving = sum(max(1, int(reached[first:first + lanes].sum()))
                  for first in range(0, len(keys), lanes))
    return 28 + passes * (rows + 23) + leaving


def threshold_cycles(entries: int) -> int:
    """Cycles of the sparsity policy from the first of ``entries`` accepted to the end delivered.

    Both are included; the end is one more entry.
    """
    return entries + 11


def top_k_cycles(config: AcceleratorConfig, rows: int, kept: int) -> int:
    """Cycles of a TOP_K from its command accepted to its last integer, both included.

    Parameters
    ----------
    config : AcceleratorConfig
    rows : int
        Rows of the product, which is there.
    kept : int
        As :func:`sim.golden.top_k.kept_count` counts.
    """
    return config.engine.result_transfers(rows) + 2 * kept + min(config.top_k, rows) + 2


def _cache_walk(config: AcceleratorConfig, elements: int, heads: int, tokens: int,
                cache: str) -> tuple[int, int]:
    """Cycles from the first transfer of a cache to the last step of its rows, and its steps."""
    turns = -(-heads // config.attention_heads)
    rows = tokens * elements // config.attention_elements
    if cache == "bf16" and 2 * config.attention_elements > config.port_bytes:
        return max(2 * rows, rows * turns + 1), rows * turns    # two transfers make a row
    return rows * turns, rows * turns


def qk_cycles(config: AcceleratorConfig, *, elements: int, heads: int, tokens: int,
              cache: str) -> int:
    """Cycles of attention from scores asked for to their answer delivered, both included.

    The queries are read, a word each cycle. A row of the keys takes a cycle for each turn of the
    heads, or two for its two transfers; the last one's products and sums are 14 behind.

    Parameters
    ----------
    config : AcceleratorConfig
    elements : int
        Of a head.
    heads : int
        That share the cache.
    tokens : int
        In the cache, whose vectors are there.
    cache : str
        Its format.
    """
    walk, _ = _cache_walk(config, elements, heads, tokens, cache)
    levels = (config.attention_elements - 1).bit_length()
    return heads * elements // config.vector_lanes + walk + levels + 14


def qk_fault_cycles(config: AcceleratorConfig, *, elements: int, heads: int) -> int:
    """Cycles of attention from scores asked for to the fault of a query, both included.

    All queries are read, and nothing else. The parameters are those of :func:`qk_cycles`.
    """
    return heads * elements // config.vector_lanes + 5


def pv_cycles(config: AcceleratorConfig, *, elements: int, heads: int, tokens: int,
              cache: str) -> int:
    """Cycles of attention from a mixture asked for to its last integers delivered, both included.

    The first weights come two cycles after the first row. Behind the last row each head's weights
    are normalized, a cycle for each bit of a position, and its sums leave, a row each cycle.

    The parameters are those of :func:`qk_cycles`.
    """
    walk, steps = _cache_walk(config, elements, heads, tokens, cache)
    delivery = elements // config.attention_elements + config.context.bit_length() + 7
    return max(walk, steps + 2) + heads * delivery + 11


def list_cycles(entries: int) -> int:
    """Cycles of the list memory from a product accepted to its list's end, both included.

    No product is before it, and the engine never waits.
    """
    return entries + 5


def decode_cycles(config: AcceleratorConfig, instruction: Instruction, *, position: int = 0) -> int:
    """Cycles of the decoder from an instruction accepted to its fields delivered, both included."""
    if config.context and instruction.opcode in ATTENTION:
        # The bytes of a vector times the position, or the number of vectors.
        placed = instruction.opcode in (Opcode.LOAD_AT, Opcode.KV_APPEND)
        return 6 + (position + (not placed)).bit_length() + placed
    if instruction.opcode is not Opcode.MATMUL:
        return 5
    groups, walked = config.engine.groups(instruction.a), instruction.count
    if instruction.function == Function.BY_ROW:
        groups, walked = config.engine.groups(instruction.count), instruction.a
    factors = instruction.b, groups, walked
    return 5 + sum(factor.bit_length() + 1 for factor in factors)


def dispatch_cycles(config: AcceleratorConfig, program: list[Instruction]) -> int:
    """Cycles of the dispatch from a pass accepted to when it can accept the next one.

    The program ends with STOP and has only TOKEN and MATMUL beside it, and nothing waits. The next
    instruction is decoded while one is executed.
    """
    return 2 + decode_cycles(config, program[0]) + sum(
        instruction_cycles(config, instruction, following=following)
        for instruction, following in itertools.pairwise(program))


def slice_cycles(config: EngineConfig, *, rows: int, columns: int, planes: int = 1,
                 batch: int = 1) -> int:
    """Cycles of the accelerator from the first list entry accepted to the last result delivered.

    The longer of two: the weight port's time and what the engine does after the last word, or the
    engine's time and its wait for the first word. Exact if the memory answers in the next cycle
    and ``port_bytes <= word_bytes``, but for two slots, whose pauses may add a cycle.

    The parameters are those of :func:`engine_period`; the accelerator is idle before.
    """
    slots = config.groups(rows) * batch
    pause = 1 if slots == 2 else 0
    words = columns * planes * config.groups(rows)
    whole = engine_cycles(config, rows=rows, columns=columns, planes=planes, batch=batch)
    clear = 1 + slots + pause                   # the cycles before the first word is taken
    before_last = clear + columns * planes * (slots + pause) - pause - batch

    # A transfer leaves when all its bytes are there; the first words' last may need a later column.
    transfers = port_transfers(config, 1)
    ahead = min((transfers * config.port_bytes - 1) // config.column_bytes(rows, planes),
                columns - 1)
    late = max(0, ahead * batch + 1 - transfers)
    first_word = 1 + gearbox_cycles(config, [1]) + late
    last_word = 1 + gearbox_cycles(config, [words])
    return whole + max(0, first_word - 1 - clear, last_word - 1 - before_last)


def frame_send_cycles(content: bytes) -> int:
    """Cycles of the frame transmitter from the first byte taken to the last delimiter delivered.

    Both are included; the producer and the line never wait.
    """
    coded = encode_frame(content)
    # Full blocks are closed in a cycle of their own, but for one at the end; so is the last block.
    size, position, closed = len(coded) - 1, 1, 0
    while position < size:
        following = position + coded[position]
        closed += coded[position] == 255 and following < size
        position = following
    return len(content) + CRC_BYTES + closed + 1 + len(coded)


def frame_delivery_cycles(content: bytes) -> int:
    """Cycles of the frame receiver from the delimiter taken to the last byte of the content.

    Both are included; the consumer never waits.
    """
    return len(content) + 2


def uart_cycles(divisor: int, count: int) -> int:
    """Cycles from the first byte that a UART transmitter takes to the last that its peer delivers.

    Both are included. The last bit that the receiver looks at is the middle of the stop bit; the
    synchronizer, the majority and the output register come behind it.
    """
    return 10 * divisor * (count - 1) + 9 * divisor + divisor // 2 + 6


def write_back_cycles(words: int) -> int:
    """Cycles of a drain from its command accepted to its end told, both included.

    The product is there: a word is taken each cycle, ten later it is written.
    """
    return words + 12


def load_cycles(config: AcceleratorConfig, words: int) -> int:
    """Cycles of the load_store from a LOAD accepted to its end told, both included.

    The vector is there: a transfer of the port is taken each cycle.
    """
    return 2 * words * config.vector_lanes // config.port_bytes + 2


def store_cycles(config: AcceleratorConfig, words: int) -> int:
    """Cycles of the load_store from a STORE accepted to its end told, both included.

    The port takes a transfer each cycle, but a word needs two to be read.
    """
    parts = 2 * config.vector_lanes // config.port_bytes
    return (words - 1) * max(2, parts) + parts + 5


def append_cycles(config: AcceleratorConfig, words: int, *, cache: str) -> int:
    """Cycles of the load_store from a KV_APPEND accepted to its end told, both included.

    As :func:`store_cycles`, with half the transfers of e4m3; then the largest element is found.
    """
    parts = 2 * config.vector_lanes // config.port_bytes // (1 + (cache == "e4m3"))
    levels = (config.vector_lanes - 1).bit_length()
    return (words - 1) * max(2, parts) + parts + levels + 6


#: Cycles from the dispatch of a WRITE_BACK or TOP_K to its unit's command: two products of scalars.
#: They pass while the product is waited for.
SCALAR_CYCLES = 21

#: Cycles from the dispatch of a LOAD to that of a masked QUANTIZE behind it, which it does not hold
#: up, beside those in which the QUANTIZE is decoded.
LOADING_CYCLES = 2

#: Cycles of each instruction of the accelerator beside those of its unit: what the dispatch takes
#: until the unit has its command, and from its end to the next instruction. Behind STOP the next
#: pass is begun and its first instruction decoded.
INSTRUCTION_CYCLES = {Opcode.STOP: 7, Opcode.LOAD: 2, Opcode.STORE: 2, Opcode.TOKEN: 4,
                      Opcode.QUANTIZE: 4, Opcode.MATMUL: 3, Opcode.WRITE_BACK: SCALAR_CYCLES + 2,
                      Opcode.TOP_K: SCALAR_CYCLES + 3, Opcode.VECTOR: 2, Opcode.NORM: 2,
                      Opcode.LOAD_AT: 2, Opcode.KV_APPEND: 2, Opcode.QK: 2, Opcode.PV: 13}


def instruction_cycles(config: AcceleratorConfig, instruction: Instruction, *, kept: int = 0,
                       entries: Sequence[float] | None = None, selected: int = 0, loading: int = 0,
                       following: Instruction | None = None, position: int = 0) -> int:
    """Cycles of the accelerator from dispatch to dispatch of the next instruction.

    Nothing is waited for: products are there, vectors of a LOAD were read, and memory takes a
    transfer each cycle.

    Parameters
    ----------
    config : AcceleratorConfig
    instruction : Instruction
    kept : int
        Of TOP_K: how many integers were among the largest so far when they came.
    entries : sequence of numbers, optional
        Of QUANTIZE: entries that leave of each word; by default all.
    selected : int
        Of a masked QUANTIZE: :func:`select_cycles`, or :func:`threshold_cycles` of no entry.
    loading : int
        Of a masked QUANTIZE: cycles from its dispatch to the end of the LOAD before it, whose last
        one is the first in which an entry leaves. Exact if each word has an entry.
    following : Instruction, optional
        The next one, which is decoded meanwhile; by default one that needs the least time.
    position : int
        Of the token in its sequence.
    """
    count = instruction.count
    words = -(-count // config.vector_lanes)
    cycles = INSTRUCTION_CYCLES[instruction.opcode]
    match instruction.opcode:
        case Opcode.LOAD | Opcode.LOAD_AT:
            cycles += load_cycles(config, words)
            if following is not None and following.function in MASKED:
                cycles = min(cycles, decode_cycles(config, following) + LOADING_CYCLES)
        case Opcode.KV_APPEND:
            cycles += append_cycles(config, words, cache=_cache(instruction))
        case Opcode.QK | Opcode.PV:
            unit = qk_cycles if instruction.opcode is Opcode.QK else pv_cycles
            elements = instruction.constant
            cycles += unit(config, elements=elements, heads=count // elements,
                           tokens=position + 1, cache=_cache(instruction))
            if instruction.opcode is Opcode.PV:
                # A head is drained while the weights of the next one are normalized.
                cycles += (count // elements - 1) * max(0, 9 - config.context.bit_length())
        case Opcode.STORE:
            cycles += store_cycles(config, words)
        case Opcode.QUANTIZE:
            entries = entries or words * [config.vector_lanes]
            packing = quantize_cycles(config, entries,
                                      nonzero=instruction.function == Function.NONZERO)
            leaving = math.ceil(sum(max(1, count) for count in entries))
            # A list without a mask passes the sparsity policy in two cycles.
            cycles += max(packing, loading + leaving) + max(0, selected - 2)
        case Opcode.WRITE_BACK:
            cycles += write_back_cycles(words)
        case Opcode.VECTOR:
            cycles += vector_cycles(words)
        case Opcode.TOP_K:
            cycles += top_k_cycles(config, count, kept)
        case Opcode.NORM:
            cycles += norm_cycles(config, words)
    return max(cycles, decode_cycles(config, following or _STOP, position=position))


def cache_walk(config: AcceleratorConfig, instruction: Instruction, position: int) -> tuple[int,
                                                                                            int]:
    """Cycles of the walk of a QK or PV over its cache, and the transfers that it takes."""
    elements, cache = instruction.constant, _cache(instruction)
    walk, _ = _cache_walk(config, elements, instruction.count // elements, position + 1, cache)
    size = elements * (1 if cache == "e4m3" else 2)
    return walk, (position + 1) * size // config.port_bytes


def _cache(instruction: Instruction) -> str:
    """Return the format of an instruction's cache."""
    return "e4m3" if instruction.function == Function.E4M3 else "bf16"


_STOP = Instruction(opcode=Opcode.STOP)


def block_ram_memory_cycles(bursts: list[int]) -> int:
    """Cycles of a block RAM from the first read accepted to the last transfer delivered.

    Both are included; ``bursts`` are the transfers of each read, and all reads wait.
    """
    return sum(bursts) + 3


def axi4_read_cycles(bursts: list[int], *, latency: int) -> int:
    """Cycles of the AXI4 adapter from the first read accepted to the last transfer delivered.

    Both are included. The bus takes an address in each cycle, and delivers a transfer in each,
    the first ``latency`` cycles after its address.
    """
    return sum(bursts) + latency + 3


def touched_transfers(config: AcceleratorConfig, size: int, indices: Sequence[int]) -> int:
    """Count the transfers that are read for listed columns of ``size`` bytes."""
    port = config.port_bytes
    return sum(-(-(index * size % port + size) // port) for index in indices)


def fetch_cycles(transfers: list[int], *, latency: int, aligned: bool = True,
                 padded_list: bool = False) -> int:
    """Cycles of the read engine from the first fetch accepted to the last transfer delivered.

    Both are included; the read engine is idle before. The memory takes a read in each cycle, and
    delivers a transfer in each, the first ``latency`` cycles after its read. The queue holds a
    quarter more than comes in that time, and each fetch but the last has 22 transfers or more: so
    long it takes to begin the next one.

    Parameters
    ----------
    transfers : list of int
        That are read, for each of the fetches that follow one another.
    latency : int
        Of the memory; at most 24 where each column is one transfer.
    aligned : bool
        For the gearbox; a vector is delivered as it comes.
    padded_list : bool
        The last fetch is of listed columns, and there is padding behind them, which is only known
        when the list's end comes.
    """
    # 16 cycles make the table, 6 the read; the queue takes 3, the aligner 2.
    return 22 + latency + 3 + 2 * aligned + sum(transfers) + padded_list


def sdram_refresh_cycles(chip: SdramChip, clock_hz: int, *, port_bytes: int) -> int:
    """Cycles by which a group of refreshes makes a stream of reads longer.

    From the last READ before it to the first one behind it: the rows are closed when they may be,
    refreshed, and one is opened.
    """
    t, columns = chip.cycles(clock_hz), columns_per_transfer(chip, port_bytes)
    held = max(columns, max(t.t_ras, t.t_rc - t.t_rp) - t.t_rcd, 2)
    # Four cycles from the end of a pause to the ACTIVE lie in t_rfc.
    return (held + t.t_rp + (REFRESHES - 1) * t.t_rfc + max(t.t_rfc, 4)
            + _sdram_opening_cycles(t) - columns)


def _sdram_opening_cycles(t: SdramCycles) -> int:
    """Cycles from the ACTIVE of a row to its first READ, if nothing else is under way."""
    return max(3, t.t_rcd, t.t_rrd - 1)


def sdram_cycles(chip: SdramChip, clock_hz: int, transfers: int, *, port_bytes: int,
                 pin_cycles: int = 2, refresh_groups: int = 0, row_commands: int = 0) -> int:
    """Cycles of the SDRAM controller from the first read accepted to the last transfer delivered.

    Both are included; the reads follow one another in time and in place, and begin in a row that
    is to be opened. Where a transfer has two columns or more, rows are opened behind the data, if
    each read has 17 transfers or more; where it has but one, each command to open or close a row
    takes its cycle, if each read has 64 or more.

    Parameters
    ----------
    chip : SdramChip
    clock_hz : int
    transfers : int
        Of all reads.
    port_bytes, pin_cycles : int
        As in :class:`hw.memory.sdram.SdramController`.
    refresh_groups : int
        Groups of refreshes among them; when they come depends on what was before.
    row_commands : int
        ACTIVE and PRECHARGE commands, where a transfer has but one column.
    """
    t, columns = chip.cycles(clock_hz), columns_per_transfer(chip, port_bytes)
    cycles = transfers * columns + chip.cas_latency + pin_cycles + 10 + _sdram_opening_cycles(t)
    cycles += refresh_groups * sdram_refresh_cycles(chip, clock_hz, port_bytes=port_bytes)
    if columns == 1:
        # The first one opens, and a group of refreshes closes and opens while nothing streams.
        cycles += row_commands - 1 - 2 * refresh_groups
    return cycles


def sdram_share(chip: SdramChip, clock_hz: int, *, port_bytes: int) -> float:
    """Share of the data bus that a stream of reads uses, refreshes included.

    As :func:`sdram_cycles` counts. Where a transfer has but one column, each row costs cycles of
    two commands, to open it and to close it.
    """
    refresh = sdram_refresh_cycles(chip, clock_hz, port_bytes=port_bytes)
    share = 1 - refresh / refresh_interval(chip, clock_hz, port_bytes)
    if columns_per_transfer(chip, port_bytes) == 1:
        share *= chip.columns / (chip.columns + 2)
    return share
