"""Cycles of a program: execution, engine and prefetch, each as early as the others let it.

docs/machine.md, section Order, says who waits for whom. All that an instruction waits for comes
before it in the program, so one walk over the program finds every time as a maximum of earlier
times plus a constant. Transfers and weight words are walked in chunks, the rest instruction by
instruction.
"""

import dataclasses
import itertools
import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from hw.config import BURST_TRANSFERS, ENTRY_DEPTH, GEARBOX_DEPTH, AcceleratorConfig
from hw.isa import MASKED, Function, Instruction, Opcode
from hw.order import RESULT_ROOM
from sim.golden.gearbox import port_transfers
from sim.golden.list_counts import ListCounts
from sim.timing.units import (
    INSTRUCTION_CYCLES,
    SCALAR_CYCLES,
    cache_walk,
    decode_cycles,
    engine_cycles,
    engine_period,
    engine_row_cycles,
    engine_row_period,
    instruction_cycles,
    load_cycles,
    threshold_cycles,
    write_back_cycles,
)

__all__ = ["TokenCycles", "passes_cycles", "token_cycles"]

#: Cycles that a word takes through the gearbox, beside the memory's latency.
WORD_LATENCY = 8

#: Cycles from a MATMUL to the first entry that the engine accepts.
LIST_LATENCY = 4

#: Cycles from an entry accepted to the read of its column, where columns are asked for.
COLUMN_LATENCY = 4

#: Cycles from an instruction that is decoded behind a STORE to its first read.
FENCE_LATENCY = 15

#: Passes that the sparsity policy takes in the mean, without norms and with those of ternary
#: columns (docs/decisions/0006-select.md), and scores that it looks at in a cycle.
PASSES, PASSES_WITH_NORMS, SPARSITY_LANES = 2.0, 2.8, 8

#: The memory port carries 1.6 bits for a trit at best: 5 trits in 8 bits.
BITS_PER_TRIT = 1.6


@dataclasses.dataclass(frozen=True, eq=False)
class TokenCycles:
    """What a token costs when tokens follow one another.

    Attributes
    ----------
    cycles : float
        From one token to the next.
    transfers : int
        Of the memory port, in both directions.
    useful_bits : float
        Trits that were multiplied, at 1.6 bits, and keys and values that were read or written.
    port, engine, execution : float
        Cycles that each would take if it never waited.
    idle : float array, shape (instructions,)
        Cycles in which the port has nothing to do while an instruction executes or waits; a
        transfer counts where it is asked for, so that each may be wrong by one.
    refresh : float
        Share of the cycles in which the memory refreshes itself.
    """

    cycles: float
    transfers: int
    useful_bits: float
    port: float
    engine: float
    execution: float
    idle: NDArray[np.float64]
    refresh: float

    @property
    def limit(self) -> str:
        """What binds: the one of the three that takes longest."""
        times = {"memory port": self.port, "engine": self.engine, "execution": self.execution}
        return max(times, key=lambda name: times[name])

    def port_utilization(self, config: AcceleratorConfig) -> float:
        """Share of the port that carries useful bits, the refresh not counted."""
        return self.useful_bits / (8 * config.port_bytes * self.cycles * (1 - self.refresh))


@dataclasses.dataclass
class _Product:
    """A product that was queued and has rows that were not taken."""

    instruction: Instruction
    queued: float
    columns: int                        # that are listed
    asked: bool                         # column by column, as the engine goes; or row by row
    first_result: float = math.inf      # until it is multiplied
    taken: int = 0                      # rows


class _Times:
    """A growing array of times; those before its beginning are long past."""

    def __init__(self):
        self._values = np.empty(1 << 16)
        self.count = 0
        self.last = -math.inf

    def append(self, times: NDArray[np.float64]) -> None:
        """Add times at the end."""
        end = self.count + len(times)
        if end > len(self._values):
            self._values = np.concatenate([self._values, np.empty(max(end, len(self._values)))])
        self._values[self.count:end] = times
        self.count, self.last = end, float(times[-1])

    def at(self, indices: NDArray[np.int64]) -> NDArray[np.float64]:
        """Look up times by their number from the beginning."""
        return np.where(indices < 0, -math.inf, self._values[np.maximum(indices, 0)])

    def since(self, first: int) -> NDArray[np.float64]:
        """All times from number ``first`` on."""
        return self._values[first:self.count]


def _in_order(earliest: NDArray[np.float64], after: float, step: float) -> NDArray[np.float64]:
    """Find the times of events in order, ``step`` apart, each at its earliest."""
    ramp = step * np.arange(len(earliest))
    return np.maximum(np.maximum.accumulate(earliest - ramp), after + step) + ramp


def token_cycles(config: AcceleratorConfig, instructions: Sequence[Instruction], body: int = 0, *,
                 latency: int = 20, refresh: float = 0.0, density: float = 1.0,
                 lists: Mapping[int, ListCounts] | None = None,
                 turnaround: int = 0, position: int = 0) -> TokenCycles:
    """Cycles of a token in steady state.

    Parameters
    ----------
    config : AcceleratorConfig
    instructions : sequence of Instruction
        With a STOP.
    body : int
        Where a token begins.
    latency : int
        Cycles from a read that the port accepts to its first transfer.
    refresh : float
        Share of the cycles in which the memory does nothing.
    density : float
        Share of a list's elements that are not zero, where zeros are left out.
    lists : mapping of int to ListCounts, optional
        What lists really held, by the index of their QUANTIZE; ``density`` is for all others.
    turnaround : int
        Cycles from STOP to the next token.
    position : int
        Of each token in its sequence.
    """
    counts = {index - body: count for index, count in (lists or {}).items()}
    walk = _Walk(config, instructions[body:], latency, refresh, density, counts, position)
    for _ in range(3):
        walk.token()
        walk.now += turnaround
    return walk.last_token(body)


def passes_cycles(config: AcceleratorConfig, instructions: Sequence[Instruction],
                  starts: Sequence[int],
                  *, latency: int = 20, refresh: float = 0.0) -> tuple[float, int]:
    """Cycles and transfers of passes that follow one another again and again.

    Each begins at one of ``starts``, and prefetch waits for it; their lists name all columns. The
    other parameters are those of :func:`token_cycles`.
    """
    walk = _Walk(config, instructions, latency, refresh, 1.0, {}, 0)
    cycles, transfers = 0.0, 0
    for _ in range(2):
        begins, sent, stored = walk.now, walk.sent, walk.stored
        for start in starts:
            walk.begin(start)
            walk.token()
        cycles, transfers = walk.now - begins, walk.sent - sent + walk.stored - stored
    return cycles, transfers


class _Walk:
    """Times of everything, token after token."""

    def __init__(self, config, instructions, latency, refresh, density, counts, position):
        self._config = config
        self._program = self._instructions = instructions
        self._latency = latency
        self._refresh = refresh
        self._step = 1 / (1 - refresh)          # cycles of a transfer
        self._density = density
        self._position = position
        self._counts = counts
        self.now = 0.0                          # execution
        self._idle_at = 0.0                     # the engine begins the next product
        self._listed_at = 0.0                   # ... and takes its list
        self._fence = 0.0                       # prefetch decodes nothing before
        self._dispatched: list[float] = []
        # Times of all transfers and weight words so far, in blocks: read sent, has left the weight
        # queue; taken by the engine.
        self._sent = _Times()
        self._left = _Times()
        self._taken = _Times()
        self._queue: deque[_Product] = deque()
        self._marks: list[tuple[float, int, int]] = []
        self._stored = 0
        self._useful = 0.0
        self._cached = 0                        # transfers of keys and values
        self._engine = 0.0
        self._execution = 0.0

    @property
    def sent(self) -> int:
        """Transfers that were read."""
        return self._sent.count

    @property
    def stored(self) -> int:
        """Transfers that were written."""
        return self._stored

    def begin(self, start: int) -> None:
        """Begin the next pass at an instruction, which prefetch has waited for."""
        self._instructions = self._program[start:]
        self._fence = self.now

    # Execution.

    def token(self) -> None:
        """Walk one token."""
        config = self._config
        self._marks.append((self.now, self._sent.count, self._stored))
        self._dispatched = []
        self._useful = self._engine = self._execution = 0.0
        self._cached = 0
        opens = Opcode.TOKEN                    # what made the newest list
        kept: int | None = None                 # entries of the newest list; None: all
        loaded = 0.0                            # the newest LOAD has ended
        for index, (instruction, following) in enumerate(itertools.zip_longest(
                self._instructions, self._instructions[1:])):
            self._dispatched.append(self.now)
            if self._fence:
                self._fence += decode_cycles(config, instruction, position=self._position)
            counts = self._list_counts(index, instruction)
            cycles = instruction_cycles(config, instruction, kept=self._kept(instruction),
                                        entries=self._entries(instruction, counts),
                                        selected=self._selected(instruction, counts),
                                        loading=max(0, math.ceil(loaded - 1 - self.now)),
                                        following=following, position=self._position)
            self._execution += cycles
            match instruction.opcode:
                case Opcode.QK | Opcode.PV:
                    self._multiply(len(self._queue))
                    walk, transfers = cache_walk(config, instruction, self._position)
                    self._read_vector(transfers, walk / transfers)
                    self._cached += transfers
                    # What was read last is followed by all that is no walk.
                    self.now = max(self.now + cycles, self._left.last + cycles - walk + 1)
                case Opcode.LOAD | Opcode.LOAD_AT:
                    self._multiply(len(self._queue))
                    transfers = 2 * instruction.count // config.port_bytes
                    self._read_vector(transfers)
                    words = instruction.count // config.vector_lanes
                    whole = load_cycles(config, words) + INSTRUCTION_CYCLES[Opcode.LOAD]
                    loaded = max(self.now + whole, self._left.last + 1 + whole - transfers)
                    self.now = self.now + cycles if cycles < whole else loaded
                case Opcode.STORE | Opcode.KV_APPEND:
                    self._multiply(len(self._queue))
                    self.now = self._port_is_free() + cycles
                    size = 1 if instruction.function == Function.E4M3 else 2
                    written = size * instruction.count // config.port_bytes
                    self._stored += written
                    if instruction.opcode is Opcode.KV_APPEND:
                        self._cached += written
                    self._fence = self.now
                case Opcode.TOKEN | Opcode.QUANTIZE:
                    opens = instruction.opcode
                    kept = None if instruction.function == Function.DENSE else round(counts.kept)
                    self.now += cycles
                case Opcode.MATMUL:
                    queued = self.now + INSTRUCTION_CYCLES[Opcode.MATMUL]
                    self.now += cycles
                    listed = 1 if opens is Opcode.TOKEN else kept
                    by_row = instruction.function == Function.BY_ROW
                    columns = instruction.a if by_row else instruction.count
                    self._queue.append(_Product(
                        instruction, queued, columns=columns if listed is None else listed,
                        asked=by_row or listed is not None))
                case Opcode.WRITE_BACK | Opcode.TOP_K:
                    product = self._queue[0]
                    if product.first_result == math.inf:
                        self._multiply(1)
                    # Result transfers that were taken before, and those of the product that come.
                    before = product.taken // config.vector_lanes
                    batch = max(1, product.instruction.target)
                    transfers = (config.engine.result_transfers(product.instruction.a) * batch
                                 - before)
                    product.taken += instruction.count
                    if product.taken == product.instruction.a * batch:
                        self._queue.popleft()
                    if product.instruction.function == Function.BY_ROW:
                        # Rows come slower than they are drained, and the last one is not there yet.
                        self.now = max(self.now + SCALAR_CYCLES,
                                       self._idle_at) + write_back_cycles(2)
                        continue
                    self.now = max(self.now, product.first_result + before - SCALAR_CYCLES)
                    # The engine cannot deliver what its queue has no room for.
                    self._idle_at = max(self._idle_at, self.now + SCALAR_CYCLES + transfers
                                        - RESULT_ROOM)
                    self.now += cycles
                case _:
                    self.now += cycles
            if instruction.opcode is Opcode.STOP:
                break

    # The engine, and prefetch.

    def _multiply(self, count: int) -> None:
        """Find the times of the ``count`` oldest products, as far as they are not known."""
        engine = self._config.engine
        for product in [item for item in self._queue if item.first_result == math.inf][:count]:
            rows, planes = product.instruction.a, product.instruction.b
            if product.instruction.function == Function.BY_ROW:
                self._multiply_by_row(product)
                continue
            batch = max(1, product.instruction.target)
            shape = {"rows": rows, "columns": product.columns, "planes": planes, "batch": batch}
            groups = engine.groups(rows)
            begins = max(self._idle_at, product.queued + LIST_LATENCY)
            asked = max(self._listed_at, product.queued + LIST_LATENCY) + COLUMN_LATENCY
            words = product.columns * planes * groups
            # A word is there for all vectors. Two accumulators pause in each round.
            pace = 1.5 * batch if groups * batch == 2 else float(batch)
            first = begins + groups * batch + 1
            if product.asked:
                self._read_matrix(product.columns, planes * groups, asked, first, pace)
            else:
                self._read_matrix(1, words, -math.inf, first, pace)
            self._list_ends(product.columns, planes * groups, begins, batch)
            results = engine.result_transfers(rows) * batch
            period = engine_period(engine, **shape)
            self._idle_at = (self._taken.last if words else first) + 3 + results
            product.first_result = self._idle_at - results + engine_cycles(engine, **shape) - period
            self._engine += period
            self._useful += product.columns * planes * rows

    def _multiply_by_row(self, product: _Product) -> None:
        engine, planes = self._config.engine, product.instruction.b
        shape = {"rows": product.columns, "columns": product.instruction.count, "planes": planes}
        begins = max(self._idle_at, product.queued + LIST_LATENCY)
        asked = max(self._listed_at, product.queued + LIST_LATENCY) + COLUMN_LATENCY
        words = planes * engine.groups(product.instruction.count)
        if product.columns:
            self._read_matrix(product.columns, words, asked, begins + 1, 1.0)
        self._list_ends(product.columns, words, begins)
        if product.columns:
            begins = self._taken.last
        latency = engine_row_cycles(engine, **shape) - engine_row_period(engine, **shape)
        self._idle_at = product.first_result = begins + 3 + latency
        self._engine += engine_row_period(engine, **shape)
        self._useful += product.columns * planes * product.instruction.count

    def _list_ends(self, columns: int, words: int, begins: float, batch: int = 1) -> None:
        """Find when the engine has accepted a product's list, and can take the next one."""
        first = self._taken.count - ENTRY_DEPTH // batch * words
        self._listed_at = begins
        if columns > ENTRY_DEPTH // batch:
            self._listed_at = float(self._taken.at(np.array([first]))[0])

    def _read_matrix(self, pieces: int, words: int, known: float, first: float,
                     pace: float) -> None:
        """Find the times of the transfers and words of a matrix.

        Parameters
        ----------
        pieces, words : int
            Pieces that are read one by one, and weight words of each: the whole matrix or columns.
        known : float
            When it is known that they are to be read.
        first, pace : float
            When the engine takes the first word, and cycles between two.
        """
        engine = self._config.engine
        size, port = engine.word_bytes, engine.port_bytes
        transfers = port_transfers(engine, words)
        begin, word_begin, done = self._sent.count, self._taken.count, 0
        for index, arrived in self._arrivals(pieces * transfers, known):
            # The gearbox takes a transfer when there is room for the word that it begins.
            piece, offset = np.divmod(index - begin, transfers)
            begins = word_begin + piece * words + np.minimum(offset * port // size, words - 1)
            room = self._taken.at(begins - (GEARBOX_DEPTH - 1) * max(size, port) // size)
            left = _in_order(np.maximum(arrived, room), self._left.last, 1.0)
            self._left.append(left)
            # A word needs all transfers up to that of its last byte.
            whole, rest = divmod(int(index[-1]) + 1 - begin, transfers)
            word = np.arange(done, whole * words + min(rest * port // size, words))
            if len(word):
                needs = word // words * transfers - (-(word % words + 1) * size // port) - 1
                available = left[needs - (int(index[0]) - begin)] + WORD_LATENCY
                after = self._taken.last if done else max(self._taken.last, first - pace)
                self._taken.append(_in_order(available, after, pace))
                done += len(word)

    def _read_vector(self, transfers: int, pace: float = 1.0) -> None:
        """Find the times of the transfers of a vector, which execution takes as they come.

        ``pace`` are the cycles between two of them, if they are there.
        """
        for _, arrived in self._arrivals(transfers, -math.inf):
            self._left.append(_in_order(np.maximum(arrived, self.now), self._left.last, pace))

    def _port_is_free(self) -> float:
        """Find the time from now on at which no transfer arrives: a write waits for such a one.

        All that may be read before the write was asked for.
        """
        sent = self._sent.since(0)
        coming = sent[np.searchsorted(sent, self.now - self._latency):] + self._latency
        if not len(coming) or coming[0] > self.now + self._step:
            return self.now
        pauses = np.flatnonzero(np.diff(coming) > 1.5 * self._step)
        return float(coming[pauses[0] if len(pauses) else -1])

    def _arrivals(self, transfers: int,
                  known: float) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float64]]]:
        """Yield numbers and arrival times of transfers in chunks.

        A chunk fits the weight queue and the gearbox: what its transfers wait for is in others.
        """
        engine, queue = self._config.engine, self._config.queue_words
        burst = min(BURST_TRANSFERS, max(1, queue // 4))
        ahead = (GEARBOX_DEPTH - 1) * max(engine.word_bytes, engine.port_bytes) // engine.port_bytes
        step = min(queue, (ahead - 1) // burst * burst)
        begin = self._sent.count
        for chunk in range(begin, begin + transfers, step):
            index = np.arange(chunk, min(chunk + step, begin + transfers))
            burst_end = begin + (index - begin) // burst * burst + burst
            room = self._left.at(np.minimum(burst_end, begin + transfers) - 1 - queue)
            fence = self._fence + FENCE_LATENCY if self._fence else 0.0
            sent = _in_order(np.maximum(room, max(known, fence)), self._sent.last, self._step)
            self._sent.append(sent)
            yield index, sent + self._latency

    def _kept(self, instruction: Instruction) -> int:
        """Expect so many integers to be kept on the way, if they come in a random order."""
        if instruction.opcode is not Opcode.TOP_K:
            return 0
        best, count = self._config.top_k, instruction.count
        return round(best * (1 + math.log(count / best))) if count > best else count

    def _list_counts(self, index: int, instruction: Instruction) -> ListCounts:
        """Return what is known of a list, or expected."""
        if index in self._counts:
            return self._counts[index]
        found = kept = float(round(self._density * instruction.count))
        if instruction.function == Function.KEEP_TOP_K:
            kept = min(found, instruction.constant)
        return ListCounts(found, kept)

    def _entries(self, instruction: Instruction, counts: ListCounts) -> list[float] | None:
        """Expect so many cycles for each word of a list without zeros, if these are anywhere."""
        if instruction.opcode is not Opcode.QUANTIZE or instruction.function == Function.DENSE:
            return None
        lanes = self._config.vector_lanes
        density = counts.found / instruction.count
        each = lanes * density + (1 - density) ** lanes
        return instruction.count // lanes * [each]

    def _selected(self, instruction: Instruction, counts: ListCounts) -> int:
        """Expect so many cycles of the sparsity policy: :func:`select_cycles` with these passes."""
        if instruction.opcode is not Opcode.QUANTIZE or instruction.function not in MASKED:
            return 0
        if instruction.function == Function.KEEP_ABOVE:
            return threshold_cycles(0)
        passes = 0.0
        if counts.found > instruction.constant:
            passes = PASSES_WITH_NORMS if instruction.b else PASSES
        rows = math.ceil(counts.found / SPARSITY_LANES)
        # A row of which nothing is kept takes a cycle too.
        share = counts.kept / max(1, counts.found)
        leaving = counts.kept + rows * (1 - share) ** SPARSITY_LANES
        return round(28 + passes * (rows + 23) + leaving)

    def last_token(self, body: int) -> TokenCycles:
        """Sum up the last token; the one before it began the steady state."""
        began, transfers, stored = self._marks[-1]
        sent = self._sent.since(transfers)
        dispatched = np.array([*self._dispatched, self.now])
        busy = np.diff(np.searchsorted(sent, dispatched)) * self._step
        idle = np.zeros(body + len(self._instructions))
        idle[body:body + len(busy)] = np.diff(dispatched) - busy
        count = len(sent) + self._stored - stored
        return TokenCycles(
            cycles=self.now - began, transfers=count,
            useful_bits=BITS_PER_TRIT * self._useful + 8 * self._config.port_bytes * self._cached,
            port=count * self._step, engine=self._engine, execution=self._execution, idle=idle,
            refresh=self._refresh)
