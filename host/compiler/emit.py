"""The steps of a network become instructions, in the order that keeps engine and port busy."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from host.checks import need_memory
from host.compiler.allocate import ImageMemory, Progress, VectorMemory
from host.compiler.errors import CompileError
from host.compiler.layout import Layout, lay
from host.compiler.pack import pieces, planes_needed, row_magnitudes
from host.compiler.products import Action, Laid, Product, Rows, split_rows
from host.files.image import Image, Program
from host.models.base import LanguageModel
from host.text.vocabulary import Vocabulary
from hw.config import AcceleratorConfig
from hw.isa import REGISTERS, Batch, Function, Instruction, Opcode
from hw.order import OrderError, check_order
from sim.golden.arithmetic import ARITHMETICS
from sim.golden.bf16 import from_float
from sim.golden.graph import VECTORS, Kind, Value
from sim.golden.wina import Mask, MaskMap

__all__ = ["Compiler", "Magnitudes"]

# Scalar registers: 0 is always 1, this one belongs to the list, the rest hold norms.
_EXPONENT = 1


def _bf16(value: float) -> int:
    return int(from_float(np.array(value, np.float64)))


_LMUL = ARITHMETICS["lmul"]
_CACHE_FUNCTIONS = {"bf16": Function.BF16, "e4m3": Function.E4M3}

#: Function of a step that is one VECTOR.
_FUNCTIONS = {Kind.ADD: Function.ADD, Kind.SUBTRACT: Function.SUBTRACT,
              Kind.MULTIPLY: Function.LMUL, Kind.RELU: Function.RELU, Kind.SILU: Function.SILU,
              Kind.SIGMOID_OF_NEGATIVE: Function.SIGMOID_OF_NEGATIVE}


#: Largest magnitude in each row of a step's matrix.
Magnitudes = dict[Value, NDArray[np.int64]]


class Compiler:
    """Writes the program of one model, and then the image of its weights.

    ``known`` are the largest weights of the model's matrices, which a compiler finds out for the
    next one.
    """

    def __init__(self, model: LanguageModel, config: AcceleratorConfig, sparse: bool,
                 masks: MaskMap | None, prefill: int, known: Magnitudes):
        self._known = known
        self._model = model
        self._config = config
        self._sparse = sparse
        self._masks = dict(masks or {})
        self._prefill = prefill
        self._batch = 1                         # vectors of the lists that are made
        self._slot = 0                          # ... and the one that is worked on
        self._normed: tuple[Value, int] | None = None   # what the last register is the norm of
        self._norms: dict[bytes, int] = {}
        self._readers: dict[Value, list[Value]] = {}
        self._placed: set[Value] = set()        # whose matrices are in memory
        self._fused: dict[Value, Value] = {}    # linear step to the ReLU of it
        self._live: dict[Value, Value] = {}     # linear step by row to the gate of its rows
        self._rows = 0                          # place of the results by row
        self._memory = ImageMemory(config)
        self._vectors = VectorMemory(config)
        self._layout = Layout(model.network().steps, config)
        self._heads: dict[Value, int] = {}      # POSITION: heads that are turned by it
        self._caches: dict[Value, int] = {}     # KV_APPEND: its first cache
        self._products: dict[Value, list[Product]] = {}
        self._addresses: dict[Value, int] = {}
        self._places: dict[Value, int] = {}
        self._registers: dict[Value, int] = {}
        self._instructions: list[Instruction] = []
        self._notes: list[str] = []
        self._where = ""

    def plan(self) -> tuple[int, int]:
        """Write the program; return its instructions and the elements of its vectors.

        Both may be more than the configuration has room for.
        """
        steps = self._model.network().steps
        read = {operand for step in steps for operand in step.operands}
        # No layer may be turned by the angles that a model has.
        steps = [step for step in steps if step.kind is not Kind.POSITION or step in read]
        self._find(steps)
        for step in steps:
            self._place(step)
        # A walk by row is of one vector.
        columns = {step: self._memory.by_column([self._matrix(step)]) for step in self._live
                   } if self._prefill > 1 else {}
        self._reserve(steps)
        states = [step for step in steps if step.kind is Kind.RECURRENCE]
        size = sum(map(self._size, states))
        first = self._vectors.take("states", size) if size else 0
        self._where = "new sequence"
        cleared = [(first, size, "state")]
        if self._live:
            count = max(map(self._size, self._live))
            self._rows = self._vectors.take("rows", count)
            cleared.append((self._rows, count, "rows"))
        for place in cleared:
            self._clear(*place)
        if self._caches and not self._instructions:
            # A sequence begins at instruction 0, every other token behind it.
            count = self._config.vector_lanes
            self._clear(self._vectors.take("nothing", count), count, "nothing")
        for step in states:
            self._places[step], first = first, first + self._size(step)
        body = len(self._instructions)
        actions = [action for phase in self._phases(steps) for action in self._order(phase)]
        last = {operand: index for index, action in enumerate(actions) if action.product is None
                for operand in action.step.operands}
        for index, action in enumerate(actions):
            self._where = action.step.part
            self._act(action, {operand for operand in action.step.operands
                               if last[operand] == index and operand not in states})
        self._where = "head"
        self._stop("the token is done")
        begins: tuple[int, ...] = ()
        if self._prefill > 1:
            self._live = {}
            self._products |= columns
            begins = self._read_prompt(steps, cleared)
        heads = tuple((part.first, part.count) for product in self._products[steps[-1]]
                      for part in product.parts)
        self._program = Program(tuple(self._instructions), tuple(self._notes), body, heads,
                                self._vectors.table, begins)
        return len(self._instructions), self._vectors.end

    def compile(self, progress: Progress | None = None) -> Image:
        """Write the program, and the image of weights and vectors that it reads."""
        self.plan()
        self._vectors.check()
        depth = self._config.program_depth
        if len(self._instructions) > depth:
            raise CompileError(f"Program must have at most {depth} instructions, "
                               f"not {len(self._instructions)}")
        program = self._program
        try:
            check_order(self._config, program.instructions, program.starts)
        except OrderError as error:
            raise CompileError(f"Program would wait for ever: {error}") from None
        need_memory(len(self._memory), f"The image of model {self._model.name}")
        words = self._model.vocabulary
        return Image(self._config, self._model.name, self._model.vocab, program,
                     tuple(self._memory.parts), self._memory.write(progress),
                     words if isinstance(words, Vocabulary) else None,
                     context=self._context(self._model.network().steps), room=self._memory.room)

    def _stop(self, note: str) -> None:
        # Where passes begin at several places, prefetch waits for the next one.
        self._emit(Opcode.STOP, note, constant=int(self._prefill > 1))

    # The prompt.

    def _read_prompt(self, steps: Sequence[Value],
                     cleared: Sequence[tuple[int, int, str]]) -> tuple[int, ...]:
        """Write the passes that read tokens of a prompt together; return where they begin.

        A pass for each token but the last one keeps its vector; that of the last one goes through
        the model with all of them. What leads to logits and to no state is only done for it.
        """
        first, *_ = steps
        needed = {step for step in steps if step.kind is Kind.RECURRENCE}
        for step in reversed(steps):
            if step in needed:
                needed.update(step.operands)
        # A list is one of a batch for all that is multiplied by it.
        needed.update(step for step in steps if step.matrix is not None and step.operands
                      and step.operands[0] in needed)
        self._batch = self._prefill
        slots: list[dict[Value, int]] = [
            {step: place for step, place in self._places.items()
             if step.kind is Kind.RECURRENCE} for _ in range(self._batch)]
        self._where = "new prompt"
        begins = [len(self._instructions)]
        for place in cleared:
            self._clear(*place)
        for slot in range(self._batch):
            begins.append(len(self._instructions))
            self._where = f"token {slot} of the prompt"
            self._places = slots[slot]
            self._emit(Opcode.TOKEN, "the list is the token's column")
            for product in self._products[first]:
                self._queue(product)
                self._take(product.parts[0])
            if slot < self._batch - 1:
                self._stop("the next token is read")

        actions = [action for phase in self._phases(steps) for action in self._order(phase)
                   if action.step is not first]
        parts_of = {id(action.product.parts[0]): action.product.parts for action in actions
                    if action.product is not None}
        last: dict[Value, int] = {}
        for index, action in enumerate(actions):
            if action.product is None:
                for operand in action.step.operands:
                    last[operand] = index
                    if operand.kind is Kind.NORM:       # it is computed where it is needed
                        last[operand.operands[0]] = index
        for index, action in enumerate(actions):
            step = action.step
            self._where = f"{step.part}, prompt"
            self._batch = self._prefill if step in needed else 1
            if action.product is not None:
                self._queue(action.product)
                continue
            # Rows come vector by vector, so those of all parts are taken with the first.
            parts: tuple[Rows | None, ...] = (None,)
            if action.part is not None:
                parts = parts_of.get(id(action.part), ())
            dying = {operand for operand in last if last[operand] == index}
            constants = {operand for operand in dying if operand.kind is Kind.CONSTANT}
            for slot, places in enumerate(slots):
                self._slot, self._places = slot, places
                if slot >= self._prefill - self._batch:
                    for part in parts:
                        self._compute_slot(step, part, dying - constants)
                self._free(dying - constants)
            # All have the same ones.
            if step.kind is Kind.CONSTANT:
                for places in slots:
                    places[step] = slots[-1][step]
            for operand in constants:
                first_place, *_ = [places.pop(operand) for places in slots]
                self._vectors.free(first_place, self._size(operand))
        self._where = "prompt"
        self._stop("the tokens are read")
        return tuple(begins)

    def _free(self, operands: set[Value]) -> None:
        for operand in operands:
            if operand.kind in VECTORS and operand in self._places:
                self._vectors.free(self._places.pop(operand), self._size(operand))

    def _compute_slot(self, step: Value, part: Rows | None, dying: set[Value]) -> None:
        """Write a step, or take rows, of one of the vectors of a batch."""
        if part is not None:
            self._take(part)
        elif step.kind is Kind.CONSTANT:
            if self._slot == self._prefill - 1:         # one for all
                self._compute(step, dying)
        elif step.kind is Kind.RECURRENCE:
            # The next token changes the state, so that this one keeps a copy.
            state = self._places[step]
            self._recur(step, dying)
            self._places[step] = self._vectors.take(step.name, self._size(step))
            self._vector(Function.COPY, f"{step.name} of this token", self._places[step], state,
                         count=self._size(step))
        elif step.kind is not Kind.NORM:
            self._compute(step, dying)

    def _norm(self, norm: Value) -> int:
        """Return the register of a norm; prompts have one, and each norm is computed anew."""
        if norm in self._registers:
            return self._registers[norm]
        register = REGISTERS - 1
        if self._normed != (norm, self._slot):
            self._normed = norm, self._slot
            vector, = norm.operands
            self._emit(Opcode.NORM, norm.formula, target=register, a=self._places[vector],
                       count=self._size(vector))
        return register

    def _queue(self, product: Product, function: Function = Function.BY_COLUMN) -> None:
        step = product.parts[0].step
        batch = self._batch if step.kind is not Kind.EMBEDDING else 1
        batch *= self._vectors_of(step)
        self._emit(Opcode.MATMUL, product.name, function=function, a=product.rows,
                   b=product.planes, count=product.columns, address=product.address,
                   target=batch if batch > 1 else 0)

    def _size(self, step: Value) -> int:
        """Elements of a vector with those that fill it up."""
        if step.kind is Kind.POSITION:
            return self._heads[step] * self._layout.half(2 * step.elements)
        return len(self._layout(step))

    def _context(self, steps: Sequence[Value]) -> int:
        """Tokens of a sequence at most, 0 if there is no limit."""
        known = [step.context for step in steps if step.kind is Kind.KV_APPEND]
        return min(*known, self._config.context) if known else 0

    def _matrix(self, step: Value) -> Rows:
        """Say how all rows of a step's matrix are laid out."""
        weights = step.weights.weights
        vectors, (count, columns) = self._vectors_of(step), weights.shape
        rows, across = np.arange(count), np.arange(columns)
        if step.kind is not Kind.HEAD and vectors == 1:
            rows = self._layout(step)
        if vectors > 1:
            across = self._transposed(step, vectors)
        elif step.operands:
            across = self._layout(step.operands[0].operands[0])
        filled = (rows >= 0).astype(np.int64)

        def take(first: int, end: int, begin: int, stop: int) -> NDArray[np.integer]:
            return lay(lay(weights, across[begin:stop], axis=1), rows[first:end])

        return Rows(step, Laid(len(across), lay(self._magnitudes(step), rows), take),
                    filled * columns, 0, len(rows))

    def _magnitudes(self, step: Value) -> NDArray[np.int64]:
        """Find the largest magnitude in each row of a step's matrix, once for all that is compiled.

        A matrix is looked at in pieces.
        """
        if step not in self._known:
            weights = step.weights.weights
            self._known[step] = np.stack(
                [row_magnitudes(weights[:, begin:stop]) for begin, stop in
                 pieces(weights.shape[1], len(weights))]).max(axis=0)
        return self._known[step]

    @staticmethod
    def _vectors_of(step: Value) -> int:
        """Vectors that a step's matrix is multiplied by: more than one in a chain of tensors."""
        return step.operands[0].vectors if step.kind is Kind.LINEAR else 1

    def _transposed(self, step: Value, vectors: int) -> NDArray[np.int64]:
        """Place the columns of a matrix that is multiplied by several vectors, read across one.

        Elements have to lie in order, so that the first ``vectors`` of them are the first column.
        """
        config, name, weights = self._config, step.weights.name, step.weights.weights
        most = config.engine.max_batch
        if self._prefill > 1:
            raise CompileError(f"Matrix {name} is multiplied by {vectors} vectors at once, so that "
                               f"prompts must be read token by token")
        if vectors & (vectors - 1) or vectors > most:
            raise CompileError(f"Matrix {name} must be multiplied by a power of two of vectors up "
                               f"to {most} (engine field max_batch), not {vectors}")
        rows = config.engine.lanes * (config.engine.accumulator_depth // vectors)
        if len(weights) % self._layout.unit or len(weights) > rows:
            raise CompileError(f"Matrix {name} must have a multiple of {self._layout.unit} rows up "
                               f"to {rows} for {vectors} vectors, not {len(weights)}")
        source = step.operands[0].operands[0]
        for vector in (source, step):
            places = self._layout(vector)
            if (places[:vector.elements] != np.arange(vector.elements)).any():
                raise CompileError(f"Vector {vector.label} must lie in order to be a matrix of "
                                   f"{vectors} columns, but its heads are turned or filled up")
        # What fills up the vector are columns of zeros.
        columns = np.arange(len(self._layout(source)) // vectors)
        return np.where(columns < weights.shape[1], columns, -1)

    def _reserve(self, steps: Sequence[Value]) -> None:
        """Find places of the caches, behind all that has contents."""
        config, context = self._config, self._context(steps)
        values = {step.operands[2] for step in steps if step.kind is Kind.ATTEND}
        # Nobody asks for the largest key: all keys share a cache.
        count = 1
        for step in steps:
            if step.kind is not Kind.KV_APPEND:
                continue
            if step.cache not in config.cache_formats:
                raise CompileError(f"Cache of {step.label} must be one of "
                                   f"{', '.join(config.cache_formats)} for this configuration, "
                                   f"not {step.cache}")
            self._addresses[step] = self._memory.cache(
                step.label, step.heads * context * self._vector_bytes(step))
            self._caches[step] = count if step in values else 0
            count += step.heads if step in values else 0
        if self._caches and count > config.caches:
            raise CompileError(f"Configuration field caches must be at least {count} for model "
                               f"{self._model.name}, not {config.caches}")

    def _head_size(self, step: Value) -> int:
        """Elements of a head with those that fill it up."""
        return 2 * self._layout.half(step.elements // step.heads)

    def _vector_bytes(self, step: Value) -> int:
        """Bytes of a vector in one of the caches of a KV_APPEND."""
        return self._head_size(step) * (2 if step.cache == "bf16" else 1)

    def _find(self, steps: Sequence[Value]) -> None:
        """Find what a drain does beside scaling, and what is walked by row."""
        readers = self._readers
        for step in steps:
            for operand in step.operands:
                readers.setdefault(operand, []).append(step)
            if step.kind is Kind.ROTATE:
                for operand in step.operands[1:]:
                    self._heads[operand] = max(self._heads.get(operand, 0), step.heads)
        for step in steps:
            if step.kind is Kind.RELU and step.operands[0].kind is Kind.LINEAR and (
                    len(readers[step.operands[0]]) == 1):
                self._fused[step.operands[0]] = step
        engine = self._config.engine
        for step in steps:
            if step.kind is not Kind.LINEAR or not self._sparse or len(readers[step]) != 1:
                continue
            product, = readers[step]
            codes = step.operands[0]
            for live in product.operands:
                if (product.kind is Kind.MULTIPLY and live in self._fused.values()
                        and live.operands[0].operands[0] is codes
                        and self._size(codes.operands[0]) <= engine.row_columns):
                    self._live[step] = live

    def _place(self, step: Value) -> None:
        """Put what a step needs of the model into the memory."""
        if step in self._placed:
            pass
        elif step in self._live:
            self._products[step] = self._memory.by_row(self._matrix(step))
        elif step.matrix is not None:
            for rows in self._shared(step):
                products = self._memory.by_column(rows, token=step.kind is Kind.EMBEDDING)
                self._products.setdefault(rows[0].step, []).extend(products)
                self._placed.update(part.step for part in rows)
        elif step.kind is Kind.CODES:
            mask = self._masks.get(step.label)
            if mask is not None and (mask.norms != 1).any():
                norms = lay(mask.norms, self._layout(step.operands[0]))
                data = norms.tobytes()
                if data not in self._norms:
                    self._norms[data] = self._memory.vector(f"{step.label}.norms", norms)
                self._addresses[step] = self._norms[data]
        elif step.constant is not None:
            values = (_LMUL.factor if step.factor else from_float)(step.constant)
            if step.kind is Kind.POSITION:
                half = self._layout.half(2 * step.elements)
                values = np.pad(values[:self._config.context],
                                ((0, 0), (0, half - step.elements))).reshape(-1)
            else:
                values = lay(values, self._layout(step))
            self._addresses[step] = self._memory.vector(step.label, values)

    def _leaves_out(self, codes: Value) -> bool:
        """Whether a list does not name all columns."""
        return codes.label in self._masks or (codes.sparse and self._sparse and codes.vectors == 1)

    def _shared(self, step: Value) -> Iterator[list[Rows]]:
        """Divide the rows of all matrices that share the list of ``step`` into products.

        A product has all rows of the matrix that it begins in, and as many of the next ones as it
        takes for whole transfers: results should not come later than they must.
        """
        engine = self._config.engine
        steps = [step]
        if step.kind is Kind.LINEAR and self._leaves_out(step.operands[0]):
            steps = [reader for reader in self._readers[step.operands[0]]
                     if reader.kind is Kind.LINEAR and reader not in self._live]
        counts = {planes_needed(int(self._magnitudes(item).max()))
                  for item in steps}
        if len(steps) == 1 or len(counts) > 1:
            yield [self._matrix(step)]
            return
        size = counts.pop() * engine.word_bytes
        unit = engine.lanes * engine.port_bytes // math.gcd(engine.port_bytes, size)
        rest = [self._matrix(item) for item in steps]
        while rest:
            count = rest[0].count
            whole = -(-count // unit) * unit
            rows, rest = split_rows(rest, whole if whole <= engine.max_rows else count)
            yield rows

    # Order.

    @staticmethod
    def _phases(steps: Sequence[Value]) -> Iterator[list[Value]]:
        """Divide the steps at those that make a list."""
        phase: list[Value] = []
        for step in steps:
            if step.kind in (Kind.EMBEDDING, Kind.CODES) and phase:
                yield phase
                phase = []
            phase.append(step)
        yield phase

    def _order(self, phase: list[Value]) -> Iterator[Action]:
        """Queue the products of one list as early as the queue allows; take each when it is there.

        Never more than ``product_depth`` wait to be taken: a MATMUL waits for nothing that comes
        behind it.
        """
        source, *others = phase
        by_row = [step for step in phase if step in self._live]
        missing = {step for step in phase if step.matrix is not None}
        products = [product for step in phase if step not in self._live
                    for product in self._products.get(step, ())]
        for step in phase:
            if step in missing and step is not source and step.operands[0] is not source:
                raise CompileError(f"Network must multiply {step.weights.name} by "
                                   f"{step.operands[0].name} before it makes the next codes")
        waiting = [step for step in others if step not in missing]

        def ready() -> Iterator[Action]:
            """Yield the steps that miss nothing any more."""
            late = {*missing}
            for step in waiting.copy():
                if late.isdisjoint(step.operands):
                    waiting.remove(step)
                    yield Action(step)
                else:
                    late.add(step)

        ahead = self._config.product_depth
        if source not in missing:
            yield Action(source)
        if not products:
            yield from ready()
        def queue(product: Product) -> Action:
            step = product.parts[0].step
            return Action(step, product, live=self._live.get(step))

        for index, product in enumerate(products[:ahead]):
            yield queue(product)
            if index == 0:
                yield from ready()
        for index, product in enumerate(products):
            for part in product.parts:
                yield Action(part.step, part=part)
                if part is product.parts[-1] and index + ahead < len(products):
                    yield queue(products[index + ahead])
                if part.last:
                    missing.remove(part.step)
                    yield from ready()
        # Their list replaces that of the columns, whose products have all been queued.
        for step in by_row:
            product, = self._products[step]
            yield queue(product)
            yield Action(step, part=product.parts[0])
            missing.remove(step)
            yield from ready()

    # Instructions.

    def _act(self, action: Action, dying: set[Value]) -> None:
        """Write the instructions of an action; nobody reads the ``dying`` vectors after it."""
        step, product = action.step, action.product
        if product is not None:
            if step.kind is Kind.EMBEDDING and product is self._products[step][0]:
                self._emit(Opcode.TOKEN, "the list is the token's column")
            function = Function.BY_COLUMN
            if action.live is not None:
                function = Function.BY_ROW
                self._check_list(self._size(action.live))
                self._emit(Opcode.QUANTIZE, f"rows of {step.name}: {action.live.name} is not zero",
                           function=Function.NONZERO, a=self._places[action.live],
                           count=self._size(action.live))
            self._queue(product, function)
        elif action.part is not None:
            self._take(action.part)
        else:
            self._compute(step, dying)
        for operand in dying:
            if operand.kind in VECTORS and operand in self._places and operand not in self._live:
                self._vectors.free(self._places.pop(operand), self._size(operand))
            self._registers.pop(operand, None)

    def _take(self, part: Rows) -> None:
        """Take rows of the oldest product from the queue."""
        step = part.step
        scale, exponent, norm = step.weights.scale, 0, 0
        if step.kind is Kind.HEAD:
            scale = self._model.logit_scales["lmul"]
        if step.operands:
            exponent = _EXPONENT + self._slot
        if len(step.operands) > 1:
            norm = self._norm(step.operands[1])
            scale *= math.sqrt(step.operands[1].elements)
        scaled = {"a": exponent, "b": norm, "count": part.count, "constant": _bf16(scale)}
        if step.kind is Kind.HEAD:
            self._emit(Opcode.TOP_K, f"the largest of {part.name}", **scaled)
            return
        drained = self._fused.get(step, step)
        if step in self._live:
            self._places[step] = self._rows
        elif drained not in self._places:
            self._places[drained] = self._vectors.take(drained.name, self._size(step))
        relu, note = drained is not step, part.name
        vectors, rows = self._vectors_of(step), len(part.matrix)
        if part.count == rows:                  # so that all vectors lie one behind the other
            scaled["count"] *= vectors
            vectors = 1
        for vector in range(vectors):
            if vectors > 1:
                note = f"{part.name} of vector {vector}"
            self._emit(Opcode.WRITE_BACK, f"{drained.name} = {'relu of ' * relu}{note}",
                       function=Function.RELU if relu else Function.COPY,
                       target=self._places[drained] + vector * rows + part.first, **scaled)

    def _compute(self, step: Value, dying: set[Value]) -> None:
        """Write the instructions of a step without a matrix."""
        places = [self._places.get(operand, 0) for operand in step.operands]
        match step.kind:
            case Kind.CODES:
                self._pack(step, places[0])
            case Kind.NORM:
                free = set(range(_EXPONENT + 1, REGISTERS)) - set(self._registers.values())
                if not free:
                    raise CompileError(f"{step.part}: at most {REGISTERS - 2} norms can wait to "
                                       f"be used, but {step.name} is one more")
                self._registers[step] = min(free)
                self._emit(Opcode.NORM, step.formula, target=min(free), a=places[0],
                           count=self._size(step.operands[0]))
            case Kind.CONSTANT:
                self._places[step] = self._vectors.take(step.name, self._size(step))
                self._emit(Opcode.LOAD, step.name, target=self._places[step],
                           count=self._size(step), address=self._addresses[step])
            case Kind.POSITION:
                self._look_up(step)
            case Kind.ROTATE:
                self._rotate(step, dying)
            case Kind.KV_APPEND:
                self._append(step, places[0])
            case Kind.ATTEND:
                self._attend(step)
            case Kind.RECURRENCE:
                self._recur(step, dying)
            case Kind.RELU if step in self._fused.values():
                pass                            # its product was drained that way
            case _:
                self._places[step] = self._target(step, dying)
                note = step.formula if step.name == step.formula else \
                    f"{step.name} = {step.formula}"
                self._vector(_FUNCTIONS[step.kind], note, self._places[step], *places,
                             count=self._size(step))

    def _look_up(self, step: Value) -> None:
        """Load the position's row of a table, and repeat it for each head."""
        half, size = self._layout.half(2 * step.elements), self._size(step)
        place = self._places[step] = self._vectors.take(step.name, size)
        self._emit(Opcode.LOAD_AT, step.formula, target=place, count=half,
                   address=self._addresses[step])
        done = half
        while done < size:
            count = min(done, size - done)
            self._vector(Function.COPY, f"{step.name} of the next heads", place + done, place,
                         count=count)
            done += count

    def _rotate(self, step: Value, dying: set[Value]) -> None:
        """Turn all heads at once: ``a cos - b sin`` in front of ``b cos + a sin``."""
        x, *turns = step.operands
        source, (cosine, sine) = self._places[x], (self._places[turn] for turn in turns)
        size = self._size(step)
        count = size // 2
        if x in dying:
            dying.remove(x)
            target = self._places.pop(x)
        else:
            target = self._vectors.take(step.name, size)
        self._places[step] = target
        a, b = (self._vectors.take("turned", count) for _ in range(2))
        for function, note, *places in (
                (Function.LMUL, "a sin", a, source, sine),
                (Function.LMUL, "b sin", b, source + count, sine),
                (Function.LMUL, "a cos", target, source, cosine),
                (Function.SUBTRACT, "a cos - b sin", target, target, b),
                (Function.LMUL, "b cos", target + count, source + count, cosine),
                (Function.ADD, "b cos + a sin", target + count, target + count, a)):
            self._vector(function, f"{step.name}: {note}", *places, count=count)
        for place in (a, b):
            self._vectors.free(place, count)

    def _append(self, step: Value, place: int) -> None:
        """Write the heads of a vector into the caches."""
        size, halves = self._head_size(step), self._layout.halves(step.operands[0])
        half = size // 2
        for head in range(step.heads):
            fields = {"a": place + head * size}
            if halves:
                fields = {"a": place + head * half, "b": place + (step.heads + head) * half}
            self._emit(Opcode.KV_APPEND, f"{step.name} of head {head}",
                       function=_CACHE_FUNCTIONS[step.cache], count=size,
                       constant=self._caches[step] + (head if self._caches[step] else 0),
                       address=self._cache(step, head), **fields)

    def _cache(self, step: Value, head: int) -> int:
        """Address of the cache of a head."""
        context = self._context(self._model.network().steps)
        return self._addresses[step] + head * context * self._vector_bytes(step)

    def _attend(self, step: Value) -> None:
        """Score keys and mix values, for as many heads at once as share them and have room."""
        query, keys, values = step.operands
        if values.cache != keys.cache:
            raise CompileError(f"Caches of {keys.label} and {values.label} must have one format")
        size, place = self._head_size(step), self._places[query]
        half, halves = size // 2, self._layout.halves(query)
        if size > self._config.head_elements:
            raise CompileError(f"Configuration field head_elements must be at least {size} for "
                               f"model {self._model.name}, not {self._config.head_elements}")
        target = self._places[step] = self._vectors.take(step.name, self._size(step))
        group = step.heads // keys.heads
        for first in range(0, step.heads, group):
            cache = first // group
            for head in range(first, first + group, self._config.group):
                heads = min(self._config.group, first + group - head)
                fields = {"function": _CACHE_FUNCTIONS[keys.cache], "count": heads * size,
                          "constant": size}
                queries = {"a": place + head * size}
                if halves:
                    queries = {"a": place + head * half, "b": place + (step.heads + head) * half}
                which = f"heads {head} to {head + heads - 1}" if heads > 1 else f"head {head}"
                self._emit(Opcode.QK, f"{keys.name} by {query.name}, {which}", target=heads,
                           address=self._cache(keys, cache), **queries, **fields)
                self._emit(Opcode.PV, f"{step.name}: {values.name} mixed, {which}",
                           target=target + head * size, a=self._caches[values] + cache,
                           address=self._cache(values, cache), **fields)

    def _target(self, step: Value, dying: set[Value]) -> int:
        """Choose where a step writes: over an operand that nobody reads again, if there is one."""
        for operand in step.operands:
            if operand in dying and operand not in self._live:
                dying.remove(operand)
                return self._places.pop(operand)
        return self._vectors.take(step.name, self._size(step))

    def _check_list(self, elements: int) -> None:
        if elements > self._config.list_depth:
            raise CompileError(f"List must have at most {self._config.list_depth} entries, but "
                               f"{self._where} packs {elements}")

    def _pack(self, step: Value, place: int) -> None:
        vector, = step.operands
        count = self._size(vector)
        self._check_list(count)
        note, mask = f"{step.name} = {step.formula}", self._masks.get(step.label)
        fields = {"target": _EXPONENT + self._slot, "a": place, "count": count}
        if step.vectors > 1:
            part = Batch(log2=step.vectors.bit_length() - 1, across=True)
            self._emit(Opcode.QUANTIZE, f"{note}, {step.vectors} vectors across", **fields,
                       function=Function.DENSE, constant=part.constant)
        elif self._batch > 1:
            self._check_list(count * self._batch)
            part = Batch(log2=self._batch.bit_length() - 1, slot=self._slot)
            self._emit(Opcode.QUANTIZE, f"{note}, token {self._slot}", **fields,
                       function=Function.DENSE, constant=part.constant)
        elif mask is None:
            sparse = self._leaves_out(step)
            self._emit(Opcode.QUANTIZE, note, **fields,
                       function=Function.SPARSE if sparse else Function.DENSE)
        else:
            self._quantize_masked(step, mask, note, fields)

    def _quantize_masked(self, step: Value, mask: Mask, note: str, fields: dict[str, int]) -> None:
        if not self._config.masks:
            raise CompileError("Masks need configuration field masks to be 1, but this accelerator "
                               "has no sparsity policy")
        if (mask.norms != 1).any():
            count = fields["count"]
            fields["b"] = self._vectors.take("norms", count)
            self._emit(Opcode.LOAD, f"column norms of {step.name}", target=fields["b"],
                       count=count, address=self._addresses[step])
            self._vectors.free(fields["b"], count)
        if mask.threshold is None:
            self._emit(Opcode.QUANTIZE, f"{note}, {mask.keep} of them", **fields,
                       function=Function.KEEP_TOP_K, constant=mask.keep)
        else:
            self._emit(Opcode.QUANTIZE, f"{note}, above {mask.threshold}", **fields,
                       function=Function.KEEP_ABOVE, address=mask.threshold)

    def _recur(self, step: Value, dying: set[Value]) -> None:
        """Update a state; the difference is written over the candidate if nobody reads it again."""
        update, candidate = step.operands
        state, count = self._places[step], self._size(step)
        change = self._places[candidate]
        if candidate not in dying:
            change = self._vectors.take("change", count)
            self._vectors.free(change, count)
        z, c, h = update.name, candidate.name, step.name
        self._vector(Function.SUBTRACT, f"{c} - {h}", change, self._places[candidate], state,
                     count=count)
        self._vector(Function.LMUL, f"{z} ({c} - {h})", change, self._places[update], change,
                     count=count)
        self._vector(Function.ADD, f"{h} = {step.formula}", state, state, change, count=count)

    def _clear(self, first: int, count: int, what: str) -> None:
        done = 0
        while done < count:
            source = first if done else 0
            size = min(done or self._config.vector_lanes, count - done)
            self._vector(Function.COPY, f"{what} {done}.. = 0", first + done, source, count=size)
            done += size

    def _vector(self, function: Function, note: str, target: int, a: int, b: int = 0, *,
                count: int) -> None:
        self._emit(Opcode.VECTOR, note, function=function, target=target, a=a, b=b, count=count)

    def _emit(self, opcode: Opcode, note: str, **fields: int) -> None:
        try:
            self._instructions.append(Instruction(opcode=opcode, **fields))
        except ValueError as error:
            self._vectors.check("at least ")
            raise CompileError(f"{self._where}: {error}") from None
        self._notes.append(f"{self._where}: {note}")
