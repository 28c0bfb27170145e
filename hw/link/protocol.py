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
whole bytes, little endian, results sign-extended. :class:`Transfers` lists the fields.
"""

import dataclasses
import enum

from hw.config import EngineConfig

__all__ = ["COUNTERS", "COUNT_BYTES", "CRC_BYTES", "HEADER_BYTES", "PROTOCOL_VERSION", "Command",
           "Fields", "Status", "Transfers", "encoded_bytes", "transfer_bytes"]

#: First entry of the device's self-description; a driver refuses another one.
PROTOCOL_VERSION = 1

#: Bytes of CRC-32 (polynomial of zlib) that end a frame.
CRC_BYTES = 4

#: Bytes of sequence and command in a request, of sequence and status in a reply.
HEADER_BYTES = 2

#: Bytes of the number of transfers that a ``RESULTS`` request asks for.
COUNT_BYTES = 2


class Command(enum.IntEnum):
    """What a request asks for."""

    #: No payload; the data is the device's self-description, JSON in ASCII.
    HELLO = 1
    #: No payload; engine, queues and cycle counter start anew.
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
    RESULTS = 7
    #: Pairs of operands; the data is their L-Mul products.
    LMUL = 8
    #: No payload; the data is :data:`COUNTERS`.
    STATUS = 9


class Status(enum.IntEnum):
    """How a request ended."""

    DONE = 0
    #: The command is none of :class:`Command`.
    UNKNOWN_COMMAND = 1
    #: The payload ends inside a transfer, or a command without payload has one.
    WRONG_LENGTH = 2
    #: The engine took or gave nothing for the watchdog's time; only ``RESET`` helps.
    STALLED = 3


#: Counters in the data of ``STATUS``, 4 bytes each: cycles from the first entry that the engine
#: took to the latest result that it gave, for the latest ``JOB``; commands executed; bad frames;
#: UART bytes without a stop bit.
COUNTERS = ("cycles", "executed", "bad_frames", "framing_errors")

#: Name and bytes of each field of a transfer, in order. A field of several values (``results``)
#: appears once for each value.
Fields = tuple[tuple[str, int], ...]


def _whole_bytes(bits: int) -> int:
    return -(-bits // 8)


def transfer_bytes(fields: Fields) -> int:
    """Bytes of one transfer."""
    return sum(size for _, size in fields)


@dataclasses.dataclass(frozen=True)
class Transfers:
    """Fields of the transfers of every stream that the link reaches.

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


def encoded_bytes(content_bytes: int) -> int:
    """Bytes of the longest COBS code of a content with its CRC: one code byte for each 254."""
    size = content_bytes + CRC_BYTES
    return size + max(1, -(-size // 254))
