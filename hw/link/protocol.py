"""The protocol between host and device as plain data: the one definition for driver and gateware.

This module imports no Amaranth. ::

    on the wire    0x00 | COBS(content, CRC-32 of the content, little endian) | 0x00
    request        sequence (1 byte) | command (1) | payload (0 to payload_bytes)
    reply          sequence (1 byte) | data (0 to payload_bytes) | status (1)

COBS leaves no 0x00 inside a frame, so the next 0x00 after any garbage is the border of a frame.
The device drops a bad frame without an answer and counts it. The host sends one request, waits for
the reply with its sequence number, and sends the same frame again when none comes: the device
executes a sequence number once and answers its repetition with the stored reply, so neither a lost
request nor a lost reply does harm. ``HELLO`` is always executed: it changes nothing and starts a
session.

A payload is a sequence of *transfers* of one stream; a transfer is its fields in order, each in
whole bytes, little endian, results sign-extended. :class:`EngineTransfers` and
:class:`AcceleratorTransfers` list the fields, and what each command does with them.
"""

import dataclasses
import enum

from hw.config import AcceleratorConfig, EngineConfig
from hw.isa import FIELDS, INSTRUCTION_BYTES

__all__ = ["COUNTERS", "COUNT_BYTES", "CRC_BYTES", "HEADER_BYTES", "MARK_BYTES",
           "MEMORY_COUNTERS", "PROTOCOL_VERSION",
           "Answer", "Command", "AcceleratorTransfers", "EngineTransfers", "Exchange",
           "Fields", "Status", "encoded_bytes", "transfer_bytes"]

#: First entry of the device's self-description; a driver refuses another one.
PROTOCOL_VERSION = 2

#: Bytes of CRC-32 (polynomial of zlib) that end a frame.
CRC_BYTES = 4

#: Bytes of sequence and command in a request, of sequence and status in a reply.
HEADER_BYTES = 2

#: Bytes of the number of transfers that a ``RESULTS`` request asks for.
COUNT_BYTES = 2

#: Bytes of the mark of an image.
MARK_BYTES = 16


class Command(enum.IntEnum):
    """What a request asks for. HELLO, RESET and STATUS are those of every device."""

    #: No payload; the data is the device's self-description, JSON in ASCII.
    HELLO = 1
    #: No payload; engine or accelerator, queues and cycle counter start anew. Memories keep what
    #: they hold.
    RESET = 2
    #: Jobs for the engine.
    JOB = 3
    #: Entries of the activation list, into the entry queue.
    ENTRIES = 4
    #: Transfers of the weight port. The entries that they belong to have been sent before.
    WEIGHTS = 5
    #: As ``WEIGHTS``, for the end of a product's weights: the final transfer carries ``last``, and
    #: the device pads it if the payload ends inside it.
    WEIGHTS_LAST = 6
    #: The payload is a number of transfers; the data is that many results, fewer after ``last``.
    #: Those of an accelerator are the largest integers of a TOP_K and its scalar, or a fault.
    RESULTS = 7
    #: Pairs of operands; the data is their L-Mul products.
    LMUL = 8
    #: No payload; the data is :data:`COUNTERS`.
    STATUS = 9
    #: Instructions, each with its index in the program.
    PROGRAM = 10
    #: Transfers of the memory port, to be written one behind the other from where ``SEEK`` said.
    WRITE = 11
    #: Addresses; the data is the transfer that the memory has at each.
    READ = 12
    #: One token with the instruction to start at: a pass over the program begins.
    TOKEN = 13
    #: An address: where the next ``WRITE`` begins.
    SEEK = 14
    #: :data:`MARK_BYTES` bytes, by which the host names the image that it has written. They are 0
    #: after configuration, and again after a ``WRITE`` or ``PROGRAM``.
    MARK = 15
    #: The payload is the number 1; the data is the mark, and a byte that is 1.
    MARKED = 16
    #: Steps by which the clock of the memory's chip comes later, or earlier if ``back`` is 1; only
    #: of boards that say ``phase_steps`` of themselves.
    PHASE = 17


class Answer(enum.IntEnum):
    """What an accelerator's result is."""

    #: ``index`` is the row of one of the largest integers, ``value`` the integer.
    TOP_K = 0
    #: ``index`` is the bf16 number of a TOP_K's scalar, ``value`` its exponent of two.
    SCALE = 1
    #: ``index`` is that of the instruction that stopped the accelerator, ``value`` a
    #: :class:`hw.isa.Fault`. Before a MEMORY come two of ERROR.
    FAULT = 2
    #: ``index`` is half of the address at which the memory failed, the lower 16 bits first;
    #: ``value`` is its response, 2 or 3 as in AXI, plus 4 for a write.
    ERROR = 3


class Status(enum.IntEnum):
    """How a request ended."""

    DONE = 0
    #: The command is none of :class:`Command`.
    UNKNOWN_COMMAND = 1
    #: The payload ends inside a transfer, or a command without payload has one.
    WRONG_LENGTH = 2
    #: Engine or accelerator took or gave nothing for the watchdog's time; only ``RESET`` helps.
    STALLED = 3
    #: A pass is under way, or a fault has stopped the accelerator; after a fault only ``RESET``
    #: helps.
    BUSY = 4


#: Counters of the memory port since the latest ``TOKEN``: transfers that were read or written; and
#: until its pass ended cycles in which one was pending and none moved, and refreshes that the
#: memory began.
MEMORY_COUNTERS = ("transfers", "waits", "refreshes")

#: Counters in the data of ``STATUS``, 4 bytes each: cycles from the first entry that the engine
#: took to the latest result that it gave, for the latest ``JOB``, or from the latest ``TOKEN`` to
#: the end of its pass; commands executed; bad frames; UART bytes without a stop bit; those of the
#: memory port, 0 without one.
COUNTERS = ("cycles", "executed", "bad_frames", "framing_errors", *MEMORY_COUNTERS)

#: Name and bytes of each field of a transfer, in order. A field of several values (``results``)
#: appears once for each value.
Fields = tuple[tuple[str, int], ...]


def _whole_bytes(bits: int) -> int:
    return -(-bits // 8)


def transfer_bytes(fields: Fields) -> int:
    """Bytes of one transfer."""
    return sum(size for _, size in fields)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exchange:
    """What a command moves between the link and the streams of a device.

    With ``into`` alone the payload is pushed into a stream. With ``out_of`` beside it, each of its
    transfers is answered by one from there. With ``out_of`` alone the payload is the number of
    transfers that are wanted, and one with ``last`` is the final one.

    Attributes
    ----------
    into, out_of : str
        Streams of the device; empty for none.
    payload, data : Fields
        Of their transfers.
    closes : bool
        The final transfer carries ``last``, and is padded if the payload ends inside it.
    starts : bool
        The cycle counter starts anew.
    idle : bool
        Refused with :attr:`Status.BUSY` while the device is busy.
    """

    into: str = ""
    payload: Fields = ()
    out_of: str = ""
    data: Fields = ()
    closes: bool = False
    starts: bool = False
    idle: bool = False


@dataclasses.dataclass(frozen=True)
class EngineTransfers:
    """Transfers of the streams of engine and L-Mul unit.

    Attributes
    ----------
    config : EngineConfig
    operand_width : int
        Bits of an L-Mul operand.
    """

    config: EngineConfig
    operand_width: int

    @property
    def job(self) -> Fields:
        """One product."""
        return (("groups", 2), ("tail", 2), ("planes", 1), ("batch", 1))

    @property
    def entry(self) -> Fields:
        """One entry of the activation list."""
        return (("index", _whole_bytes(self.config.index_width)),
                ("value", _whole_bytes(self.config.activation_width)), ("end", 1))

    @property
    def weights(self) -> Fields:
        """One transfer of the weight port; the command says whether it is the last."""
        return (("data", self.config.port_bytes),)

    @property
    def result(self) -> Fields:
        """One transfer of the engine's results."""
        value = ("values", _whole_bytes(self.config.accumulator_width))
        return (value,) * self.config.result_lanes + (("last", 1),)

    @property
    def pair(self) -> Fields:
        """The operands of one L-Mul product."""
        return (("x", _whole_bytes(self.operand_width)), ("y", _whole_bytes(self.operand_width)))

    @property
    def product(self) -> Fields:
        """One L-Mul product."""
        return (("product", _whole_bytes(self.operand_width)),)

    @property
    def exchanges(self) -> dict[Command, Exchange]:
        """What each command moves."""
        return {
            Command.JOB: Exchange(into="jobs", payload=self.job, starts=True),
            Command.ENTRIES: Exchange(into="entries", payload=self.entry),
            Command.WEIGHTS: Exchange(into="port", payload=self.weights),
            Command.WEIGHTS_LAST: Exchange(into="port", payload=self.weights, closes=True),
            Command.RESULTS: Exchange(out_of="results", data=self.result),
            Command.LMUL: Exchange(into="pairs", payload=self.pair, out_of="products",
                                   data=self.product),
        }


@dataclasses.dataclass(frozen=True)
class AcceleratorTransfers:
    """Transfers of the streams of an accelerator and its memory.

    Attributes
    ----------
    config : AcceleratorConfig
    has_phase : bool
        The phase of the memory's clock can be moved.
    """

    config: AcceleratorConfig
    has_phase: bool = False

    @property
    def instruction(self) -> Fields:
        """One instruction on its way into the program."""
        return (("index", 2), ("instruction", INSTRUCTION_BYTES))

    @property
    def address(self) -> Fields:
        """Where one transfer of the memory port lies."""
        return (("address", _whole_bytes(FIELDS["address"])),)

    @property
    def transfer(self) -> Fields:
        """One transfer of the memory port."""
        return (("data", self.config.port_bytes),)

    @property
    def token(self) -> Fields:
        """What begins a pass."""
        return (("token", _whole_bytes(self.config.engine.index_width)), ("start", 2))

    @property
    def phase(self) -> Fields:
        """Steps of the phase of the memory's clock."""
        return (("steps", 1), ("back", 1))

    @property
    def result(self) -> Fields:
        """One :class:`Answer`; ``last`` with SCALE and FAULT."""
        value = _whole_bytes(self.config.engine.accumulator_width)
        return (("kind", 1), ("index", 2), ("value", value), ("last", 1))

    @property
    def exchanges(self) -> dict[Command, Exchange]:
        """What each command moves."""
        return {
            Command.PROGRAM: Exchange(into="program", payload=self.instruction, idle=True),
            Command.SEEK: Exchange(into="seek", payload=self.address, idle=True),
            Command.WRITE: Exchange(into="writes", payload=self.transfer, idle=True),
            Command.READ: Exchange(into="reads", payload=self.address, out_of="data",
                                   data=self.transfer, idle=True),
            Command.TOKEN: Exchange(into="tokens", payload=self.token, starts=True, idle=True),
            Command.RESULTS: Exchange(out_of="results", data=self.result),
            Command.MARK: Exchange(into="mark", payload=(("mark", MARK_BYTES),), idle=True),
            Command.MARKED: Exchange(out_of="marked", data=(("mark", MARK_BYTES), ("last", 1))),
        } | ({Command.PHASE: Exchange(into="phase", payload=self.phase, idle=True)}
             if self.has_phase else {})


def encoded_bytes(content_bytes: int) -> int:
    """Bytes of the longest COBS code of a content with its CRC: one code byte for each 254."""
    size = content_bytes + CRC_BYTES
    return size + max(1, -(-size // 254))
