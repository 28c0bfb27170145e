"""A board of this project on a serial port: its link, and what it says of itself."""

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import serial
from numpy.typing import NDArray

from host.devices.base import Config, Device
from host.devices.errors import DeviceError
from host.devices.link import Link, NoReplyError, port_in_use
from hw.boards.board import AcceleratorBoard, EngineBoard
from hw.boards.catalog import BOARDS
from hw.check import one_of
from hw.config import AcceleratorConfig, EngineConfig
from hw.link.protocol import (
    COUNTERS,
    PROTOCOL_VERSION,
    Command,
    Exchange,
    Fields,
    transfer_bytes,
)

__all__ = ["SerialBoard", "SerialDevice", "different_fields", "packed"]

#: What a board holds, by its name in the description; and the class of such boards.
_KINDS = {"engine": ("a ternary engine", EngineBoard),
          "accelerator": ("an accelerator", AcceleratorBoard)}


class SerialBoard:
    """The link to a board, reset and ready.

    Parameters
    ----------
    port : str
        Serial port, such as ``/dev/ttyUSB0``.
    kind : str
        What the board must hold: ``engine`` or ``accelerator``.
    config : EngineConfig or AcceleratorConfig, optional
        Its configuration that is expected. Without it, the description is believed.
    board : str, optional
        Name of the board whose bitstream is expected.
    baud : int, optional
        Bits per second. Without it, that of the board, or those of all boards of this kind in turn.
    timeout : float
        Seconds until a request fails.

    Attributes
    ----------
    name : str
        The port.
    link : Link
    facts : dict
        The description.

    Raises
    ------
    DeviceError
        If the port cannot be opened, nothing answers, or the device is another than expected.
    ValueError
        If ``board`` is unknown.
    """

    def __init__(self, port: str, kind: str, *, config: EngineConfig | AcceleratorConfig
                 | None = None,
                 board: str | None = None, baud: int | None = None, timeout: float = 2.0):
        self.name = port
        if board is not None:
            one_of("Board", board, BOARDS)
        bauds = {each.baud for each in BOARDS.values()
                 if each.name == board or (board is None and isinstance(each, _KINDS[kind][1]))}
        first, *others = [baud] if baud else sorted(bauds)
        try:
            self._port = serial.Serial(port, first)
        except (serial.SerialException, OSError, ValueError) as problem:
            raise DeviceError(f"Serial port {port} cannot be opened: {problem}") from problem
        expected = f"'{board}'" if board else "a board of 'python -m hw.build list'"
        self.link = Link(self._port, port, timeout=timeout, device=kind,
                         advice=f"check that the bitstream for {expected} is loaded")
        self._settled = False
        try:
            with port_in_use(port):
                self._port.reset_input_buffer()
            self.facts = self._hello(others)
            self._check(kind, config)
            self.settle()
        except BaseException:
            self._port.close()
            raise
        self.payload_bytes: int = self.facts["payload_bytes"]

    def _hello(self, bauds: list[int]) -> dict[str, Any]:
        """Return the description, if it comes at the present or another baud rate."""
        try:
            data = self.link.request(Command.HELLO)
        except NoReplyError:
            if not bauds:
                raise
            with port_in_use(self.name):
                self._port.baudrate = bauds[0]
            return self._hello(bauds[1:])
        try:
            facts = json.loads(data)
            version = facts["protocol"]
        except (ValueError, TypeError, KeyError) as problem:
            raise DeviceError(f"The device on {self.name} does not describe itself as a board of "
                              f"this project") from problem
        if version != PROTOCOL_VERSION:
            raise DeviceError(f"The device on {self.name} must speak protocol version "
                              f"{PROTOCOL_VERSION}, not {version}; build its bitstream again")
        return facts

    def _check(self, kind: str, config: EngineConfig | AcceleratorConfig | None) -> None:
        """Refuse another kind or configuration than the expected one."""
        board = self.facts["board"]
        if kind not in self.facts:
            actual = next((what for name, (what, _) in _KINDS.items() if name in self.facts),
                          "neither")
            raise DeviceError(f"Board '{board}' on {self.name} must hold {_KINDS[kind][0]}, "
                              f"not {actual}")
        if config is not None:
            differing = different_fields(
                config.facts() if isinstance(config, AcceleratorConfig)
                else dataclasses.asdict(config), self.facts[kind])
            if differing:
                listed = "; ".join(f"{name} must be {wanted!r}, not {found!r}"
                                   for name, wanted, found in differing)
                raise DeviceError(f"The {kind} of board '{board}' on {self.name} has another "
                                  f"configuration: {listed}")

    def settle(self) -> None:
        """Reset engine or accelerator, if something that it was asked for has not ended."""
        if not self._settled:
            self.link.request(Command.RESET)
            self._settled = True

    @contextlib.contextmanager
    def unsettled(self) -> Iterator[None]:
        """Do something of several requests: if it is cut off, :meth:`settle` comes before others.

        Otherwise the next one would find what is left of it.
        """
        self._settled = False
        yield
        self._settled = True

    def status(self) -> dict[str, int]:
        """Return the device's counters, :data:`hw.link.protocol.COUNTERS`."""
        data = self.checked(self.link.request(Command.STATUS), 4 * len(COUNTERS))
        return dict(zip(COUNTERS, np.frombuffer(data, "<u4").tolist(), strict=True))

    def send(self, command: Command, exchange: Exchange, data: bytes) -> list[bytes]:
        """Send transfers in as few frames as possible; return the data of the replies."""
        size = transfer_bytes(exchange.payload)
        count = self.payload_bytes // size
        if exchange.data:
            count = min(count, self.payload_bytes // transfer_bytes(exchange.data))
        replies = []
        for start in range(0, len(data), count * size):
            payload = data[start:start + count * size]
            reply = self.link.request(command, payload)
            replies.append(self.checked(reply, len(payload) // size
                                        * transfer_bytes(exchange.data)))
        return replies

    def checked(self, data: bytes, size: int) -> bytes:
        """Return the data of a reply if it has ``size`` bytes, or raise ``DeviceError``."""
        if len(data) != size:
            raise DeviceError(f"The device on {self.name} must reply with {size} bytes, not "
                              f"{len(data)}; build its bitstream again")
        return data

    def close(self) -> None:
        """Close the port."""
        self._port.close()


class SerialDevice(Device[Config]):
    """An engine or an accelerator on a board: what both say of it.

    Attributes
    ----------
    link : Link
    """

    evidence = "measured"
    link: Link
    _board: SerialBoard
    _exchanges: Mapping[Command, Exchange]

    def info(self) -> dict[str, Any]:
        """Facts of every device, and the board's name and clock."""
        return super().info() | {name: self._board.facts[name] for name in ("board", "clock_hz")}

    def status(self) -> dict[str, int]:
        """Return the device's counters, :data:`hw.link.protocol.COUNTERS`.

        ``cycles`` are those of the latest product or token.
        """
        return self._board.status()

    def _send(self, command: Command, data: bytes) -> list[bytes]:
        return self._board.send(command, self._exchanges[command], data)


def different_fields(wanted: dict[str, Any],
                     found: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return name and both values of the fields in which configurations differ.

    ``target`` is not one of them: it changes no bit of any result.
    """
    differing = []
    for name, value in wanted.items():
        if isinstance(value, dict):
            differing += different_fields(value, found[name])
        elif name != "target" and value != found[name]:
            differing.append((name, value, found[name]))
    return differing


def packed(fields: Fields, **values: NDArray[np.integer] | int) -> bytes:
    """Pack transfers: each field's low bytes, little endian."""
    columns = [np.atleast_1d(values[name]).astype("<i8").view(np.uint8).reshape(-1, 8)[:, :size]
               for name, size in fields]
    return np.concatenate(columns, axis=1).tobytes()
