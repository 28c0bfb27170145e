"""The order of instructions that the accelerator relies on and does not check, as plain data.

What the accelerator finds wrong with an instruction is a fault. Beyond that, an instruction depends
on those before it: on the list, on products that were queued, on heads that were scored. The
accelerator trusts the program in these, and would wait for ever or deliver anything. Hosts refuse
such a program with :func:`check_order`. docs/machine.md, section Order, has the rules in words.
"""

import dataclasses
from collections import deque
from collections.abc import Iterable, Sequence

from hw.config import RESULT_DEPTH, RESULT_SPARE, AcceleratorConfig
from hw.isa import ADDRESSED, MASKED, Batch, Function, Instruction, Opcode

__all__ = ["RESULT_ROOM", "ListShape", "Order", "OrderError", "QueuedProduct", "check_order"]

#: Result transfers that the engine delivers before any is taken: its queue, but for the places that
#: results on their way may need.
RESULT_ROOM = RESULT_DEPTH - RESULT_SPARE


class OrderError(ValueError):
    """An instruction comes behind others that it must not follow; the message is one sentence."""


@dataclasses.dataclass(frozen=True)
class ListShape:
    """A list as far as the program alone tells.

    Attributes
    ----------
    columns : int
        Elements of its QUANTIZE, for each vector; 0 of a TOKEN's, which suits any matrix.
    entries : int
        Entries at most.
    vectors : int
        Of a batch.
    whole : bool
        Matrices of its products are read whole.
    """

    columns: int
    entries: int
    vectors: int = 1
    whole: bool = False


@dataclasses.dataclass
class QueuedProduct:
    """A product of which rows are left: how many, and its result transfers at most."""

    rows: int
    transfers: int
    by_row: bool
    made_of: ListShape


class Order:
    """What the next instruction depends on.

    Parameters
    ----------
    config : AcceleratorConfig

    Attributes
    ----------
    newest : ListShape or None
    by_row : int
        Elements of the newest DENSE or masked list: columns of a product by row. 0 if there is
        none.
    slots : int
        Vectors that were packed of a batch that is not complete.
    products : deque of QueuedProduct
        The oldest first.
    heads, elements : int
        Heads that were scored in this pass, and their elements; 0 if none were.
    """

    def __init__(self, config: AcceleratorConfig):
        self.config = config
        self.newest: ListShape | None = None
        self.by_row = 0
        self.slots = 0
        self._batch = 0, 0                      # log2 and elements of a batch that is not complete
        self.products: deque[QueuedProduct] = deque()
        self.heads = self.elements = 0
        self._loaded: Instruction | None = None     # the LOAD just before

    def begin(self) -> None:
        """Begin a pass."""
        self.heads = self.elements = 0
        self._loaded = None

    def takes(self, instruction: Instruction) -> bool:
        """Tell whether a WRITE_BACK or TOP_K takes rows that there are; if not, it is a fault."""
        if not self.products:
            return False
        product, emits = self.products[0], instruction.opcode is Opcode.TOP_K
        if product.by_row and emits:
            return False
        whole = instruction.count == product.rows
        return whole or (instruction.count < product.rows and not (emits or product.by_row))

    def waiting_results(self, *, before_list: bool = False) -> int:
        """Count result transfers that must leave the engine before it is done with all products.

        It begins a product when all results of the one before are in its queue; those of a product
        by row come while it is multiplied. Beyond :data:`RESULT_ROOM` it waits until some are
        taken.

        Parameters
        ----------
        before_list : bool
            Until a list can be made: only products that were not made of the newest one count.
        """
        products = [product for product in self.products
                    if not before_list or product.made_of is not self.newest]
        return sum(product.transfers for index, product in enumerate(products)
                   if product.by_row or index < len(products) - 1)

    def step(self, instruction: Instruction) -> None:
        """Execute an instruction that is no fault.

        Raises
        ------
        OrderError
            If it must not come here.
        """
        match instruction.opcode:
            case Opcode.STOP:
                if self.products:
                    raise OrderError(f"the program stops, but {len(self.products)} products were "
                                     f"not taken")
            case Opcode.LOAD | Opcode.LOAD_AT:
                self._check_results(self.waiting_results())
            case Opcode.TOKEN:
                self._begin_list()
                self.newest = ListShape(0, 1)
            case Opcode.QUANTIZE:
                self._pack(instruction)
            case Opcode.MATMUL:
                self._multiply(instruction)
            case Opcode.WRITE_BACK | Opcode.TOP_K:
                product = self.products[0]
                product.rows -= instruction.count
                product.transfers -= instruction.count // self.config.vector_lanes
                if product.rows == 0:
                    self.products.popleft()
            case Opcode.QK:
                self._check_results(self.waiting_results())
                self._check_heads(instruction, instruction.target)
                self.heads, self.elements = instruction.target, instruction.constant
            case Opcode.PV:
                self._check_results(self.waiting_results())
                if self.elements != instruction.constant:
                    raise OrderError(f"Values of {instruction.constant} elements are mixed, but no "
                                     f"heads of so many were scored")
                self._check_heads(instruction, self.heads)
        loads = instruction.opcode in (Opcode.LOAD, Opcode.LOAD_AT)
        self._loaded = instruction if loads else None

    @staticmethod
    def _check_results(transfers: int) -> None:
        if transfers > RESULT_ROOM:
            raise OrderError(f"Products that are not taken have {transfers} result transfers, of "
                             f"which the engine delivers {RESULT_ROOM}: the instruction would wait "
                             f"for one behind it")

    @staticmethod
    def _check_heads(instruction: Instruction, heads: int) -> None:
        if instruction.count != heads * instruction.constant:
            raise OrderError(f"{heads} heads of {instruction.constant} elements have "
                             f"{heads * instruction.constant}, not {instruction.count}")

    def _begin_list(self) -> None:
        if self.slots:
            raise OrderError(f"A list begins, but one of a batch has only {self.slots} of its "
                             f"vectors")
        # It is written where the one before the newest was.
        self._check_results(self.waiting_results(before_list=True))

    def _pack(self, instruction: Instruction) -> None:
        function, count = instruction.function, instruction.count
        batch = Batch.of(instruction.constant) if function == Function.DENSE else Batch()
        if batch.log2 and not batch.across and self.slots:
            if batch.slot != self.slots or (batch.log2, count) != self._batch:
                raise OrderError(f"Vector {batch.slot} of a batch of {batch.vectors} is packed, of "
                                 f"{count} elements, but the list has {self.slots} of "
                                 f"{1 << self._batch[0]}, of {self._batch[1]}")
        else:
            if batch.slot:
                raise OrderError(f"Vector {batch.slot} of a batch is packed, but the list has 0")
            self._begin_list()
        if function in MASKED:
            load = self._loaded
            if (load is not None and instruction.a < load.target + load.count
                    and load.target < instruction.a + count):
                raise OrderError("A vector is packed by a masked QUANTIZE while the LOAD before it "
                                 "has yet to write it")
            if function == Function.KEEP_TOP_K and instruction.constant == 0:
                raise OrderError("Of a list, at least 1 entry must be kept, not 0")
        codes = function == Function.DENSE or function in MASKED
        if codes and any(product.by_row for product in self.products):
            raise OrderError("A list of activations by row is made while a product by row was not "
                             "taken")
        if not batch.last:
            self.slots, self._batch = self.slots + 1, (batch.log2, count)
            return
        self.slots = 0
        columns = count // batch.vectors if batch.across else count
        entries = min(count, instruction.constant) if function == Function.KEEP_TOP_K else count
        self.newest = ListShape(columns, entries, batch.vectors, whole=function == Function.DENSE)
        if batch.log2:
            self.by_row = 0
        elif codes:
            self.by_row = count

    def _multiply(self, instruction: Instruction) -> None:
        newest, by_row = self.newest, instruction.function == Function.BY_ROW
        if newest is None:
            raise OrderError("A matrix is multiplied, but there is no list")
        if self.slots and not by_row and not newest.whole:
            # Matrices are read whole behind a DENSE QUANTIZE, though that has not made the list
            # yet.
            raise OrderError(f"A matrix is multiplied by a list that is not DENSE, but one of a "
                             f"batch that has {self.slots} of its vectors is")
        # What the list names: columns, or rows.
        columns = instruction.a if by_row else instruction.count
        if newest.columns and newest.columns != columns:
            raise OrderError(f"The matrix has {columns} columns, but the list was made of "
                             f"{newest.columns} elements")
        batch = max(1, instruction.target)
        if newest.vectors != batch:
            raise OrderError(f"The product is of a batch of {batch}, but the list has "
                             f"{newest.vectors}")
        if len(self.products) == self.config.product_depth:
            raise OrderError(f"More than {self.config.product_depth} products are not taken: the "
                             f"instruction would wait for one behind it")
        if by_row:
            if self.by_row != instruction.count:
                raise OrderError(f"The matrix has {instruction.count} columns by row, but the "
                                 f"newest DENSE or masked list has another number of elements")
            transfers = newest.entries + 1      # one for each row that is listed, and the end
        else:
            transfers = batch * self.config.engine.result_transfers(instruction.a)
        self.products.append(QueuedProduct(batch * instruction.a, transfers, by_row, newest))


def check_order(config: AcceleratorConfig, instructions: Sequence[Instruction | None],
                starts: Iterable[int]) -> None:
    """Check the passes of a program: each needs no list, and leaves no product, of another one.

    Parameters
    ----------
    config : AcceleratorConfig
    instructions : sequence of Instruction
        None where the accelerator stops with a fault.
    starts : iterable of int
        Where passes begin.

    Raises
    ------
    OrderError
        If the accelerator would wait for ever in a pass, or deliver what depends on its timing. The
        message names the instruction.
    """
    stops = {instruction.constant for instruction in instructions
             if instruction is not None and instruction.opcode is Opcode.STOP}
    if len(stops) > 1:
        raise OrderError("Program must not have both STOPs that wait and STOPs that do not")
    for start in starts:
        before = instructions[:start] if stops != {1} else ()
        for index, instruction in enumerate(before):
            if instruction is None:
                break
            if instruction.opcode in ADDRESSED:
                raise OrderError(f"A pass begins at instruction {start}, but prefetch begins at "
                                 f"the first one and waits for instruction {index}")
            if instruction.opcode is Opcode.STOP:
                raise OrderError(f"A pass begins at instruction {start}, but prefetch turns back "
                                 f"at the STOP at {index}")
        order = Order(config)
        for index in range(start, len(instructions)):
            instruction = instructions[index]
            if instruction is None or (instruction.opcode in (Opcode.WRITE_BACK, Opcode.TOP_K)
                                       and not order.takes(instruction)):
                break                           # the accelerator stops with a fault
            try:
                order.step(instruction)
            except OrderError as error:
                raise OrderError(f"Instruction {index}: {error}") from None
            if instruction.opcode is Opcode.STOP:
                if order.slots:
                    raise OrderError(f"Instruction {index}: the program stops, but one of a batch "
                                     f"has only {order.slots} of its vectors")
                break
