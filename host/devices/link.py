"""The host's end of the link: one request, one reply, over a port that may lose or change bytes."""

import contextlib
import struct
import time
import zlib
from collections.abc import Iterator
from typing import Protocol

from cobs import cobs

from host.devices.errors import DeviceError
from hw.link.protocol import CRC_BYTES, HEADER_BYTES, Command, Status

try:
    from termios import error as _TerminalError
except ImportError:                 # where there is no POSIX
    _TerminalError = OSError        # type: ignore[misc, assignment]

__all__ = ["BusyError", "BytePort", "Link", "NoReplyError", "PortLostError", "StalledError",
           "port_in_use"]

_PROBLEMS = {
    Status.UNKNOWN_COMMAND: "it does not know the command",
    Status.WRONG_LENGTH: "the payload has the wrong length",
}


class NoReplyError(DeviceError):
    """The device did not answer, however often it was asked."""


class StalledError(DeviceError):
    """Engine or accelerator took or gave nothing for the time of the device's watchdog."""


class BusyError(DeviceError):
    """The accelerator is in a pass, or a fault has stopped it."""


class PortLostError(DeviceError):
    """The port itself is gone: its plug was pulled, or its adapter has failed."""


@contextlib.contextmanager
def port_in_use(name: str) -> Iterator[None]:
    """Turn what a port raises when it is gone into a :class:`PortLostError` that names it."""
    try:
        yield
    except (OSError, _TerminalError) as problem:    # pyserial's errors are OSErrors
        raise PortLostError(f"Serial port {name} was lost: {problem}; check its plug and open the "
                            f"device again") from problem


class BytePort(Protocol):
    """What the link needs of a serial port; pyserial has it."""

    timeout: float | None

    def read(self, size: int) -> bytes:
        """Return up to ``size`` bytes, fewer when ``timeout`` seconds are over."""

    def write(self, data: bytes) -> int | None:
        """Send ``data``."""

    @property
    def in_waiting(self) -> int:
        """Bytes that can be read without waiting."""


class Link:
    """Frames over a byte port.

    A request is sent again, with its sequence number, when no reply has come for
    ``timeout / attempts`` seconds; the device executes it once. Bytes that are no good frame, and
    replies to other requests, are dropped.

    Parameters
    ----------
    port : BytePort
    name : str
        The port, for messages.
    timeout : float
        Seconds until a request fails.
    attempts : int
        Times that it is sent in these.
    device : str
        What is behind the link, for messages.
    advice : str
        How an error message about silence ends.

    Attributes
    ----------
    port : BytePort
    timeout : float
    repetitions : int
        Requests sent again.
    dropped_frames : int
        Frames received that were broken or no reply to the request.
    """

    def __init__(self, port: BytePort, name: str, *, timeout: float = 2.0, attempts: int = 4,
                 device: str = "engine", advice: str = "check that the bitstream is loaded"):
        self.port = port
        self._name = name
        self.timeout = timeout
        self._attempts = attempts
        self._device = device
        self._advice = advice
        # Any start will do: HELLO is always executed. The time keeps two sessions apart.
        self._sequence = time.monotonic_ns() & 0xff
        self._received = bytearray()
        self.repetitions = 0
        self.dropped_frames = 0

    def request(self, command: Command, payload: bytes = b"") -> bytes:
        """Send a command and return the data of its reply.

        Raises
        ------
        NoReplyError
            If no reply came in time.
        PortLostError
            If the port is gone.
        StalledError
            If the device stalled.
        BusyError
            If the accelerator has something else to do.
        DeviceError
            If the device refused the command.
        """
        self._sequence = (self._sequence + 1) & 0xff
        content = struct.pack("BB", self._sequence, command) + payload
        check = struct.pack("<I", zlib.crc32(content))
        frame = b"\x00" + cobs.encode(content + check) + b"\x00"
        for attempt in range(self._attempts):
            self.repetitions += attempt > 0
            with port_in_use(self._name):
                self.port.write(frame)
                reply = self._reply(time.monotonic() + self.timeout / self._attempts)
            if reply is not None:
                return self._data(command, reply)
        raise NoReplyError(f"No reply from {self._name} in {self.timeout:.1f} s; {self._advice}")

    def _data(self, command: Command, reply: bytes) -> bytes:
        status = reply[-1]
        if status == Status.STALLED:
            raise StalledError(f"The {self._device} behind {self._name} stalled in {command.name}; "
                               f"check that its bitstream was built from this version of the "
                               f"project")
        if status == Status.BUSY:
            raise BusyError(f"The accelerator behind {self._name} refused {command.name}: a pass "
                            f"is under way, or a fault has stopped it")
        if status != Status.DONE:
            problem = _PROBLEMS.get(Status(status)) if status in list(Status) else None
            raise DeviceError(f"The device on {self._name} refused {command.name}: "
                              f"{problem or f'unknown status {status}'}")
        return reply[1:-1]

    def _reply(self, deadline: float) -> bytes | None:
        """Wait for the reply to the latest request: sequence, data, status."""
        while True:
            while (end := self._received.find(0)) >= 0:
                code = bytes(self._received[:end])
                del self._received[:end + 1]
                if code:
                    content = _verified(code)
                    if content is not None and content[0] == self._sequence:
                        return content
                    self.dropped_frames += 1
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            self.port.timeout = left
            self._received += self.port.read(max(1, self.port.in_waiting))


def _verified(code: bytes) -> bytes | None:
    """Content of the bytes between two delimiters, or None if they are no good frame."""
    try:
        frame = cobs.decode(code)
    except cobs.DecodeError:
        return None
    content, check = frame[:-CRC_BYTES], frame[-CRC_BYTES:]
    if len(content) < HEADER_BYTES or check != struct.pack("<I", zlib.crc32(content)):
        return None
    return content
