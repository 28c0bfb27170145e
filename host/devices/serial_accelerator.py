"""An accelerator on a serial port: an image once, then tokens in and largest logits out."""

import hashlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from host.devices.accelerator import AcceleratorDevice, Report, TokenResult
from host.devices.errors import DeviceError
from host.devices.link import BusyError
from host.devices.serial_board import SerialBoard, SerialDevice, packed
from host.files.image import Image
from hw.boards.board import AcceleratorBoard
from hw.boards.catalog import BOARDS
from hw.config import AcceleratorConfig, EngineConfig
from hw.isa import INSTRUCTION_BYTES, Fault, MemoryFailure
from hw.link.protocol import (
    COUNT_BYTES,
    MARK_BYTES,
    AcceleratorTransfers,
    Answer,
    Command,
    Fields,
    transfer_bytes,
)
from sim.golden.machine import MachineFault, TopKResult
from sim.timing.memory import memory_timing

__all__ = ["SerialAccelerator", "accelerator_config"]


def accelerator_config(fields: dict[str, Any]) -> AcceleratorConfig:
    """Return the configuration whose ``dataclasses.asdict`` is ``fields``."""
    return AcceleratorConfig(**fields | {"engine": EngineConfig(**fields["engine"])})


class SerialAccelerator(SerialDevice[AcceleratorConfig], AcceleratorDevice):
    """An accelerator with its memory on a board, or anything that speaks like one.

    Parameters
    ----------
    port : str
        Serial port, such as ``/dev/ttyUSB0``.
    board : str, optional
        Name of the board whose bitstream is expected.
    config : AcceleratorConfig, optional
        The accelerator that is expected. Without it, the device's own description is believed.
    baud : int, optional
        Bits per second. Without it, that of the board, or those of all boards with an accelerator.
    timeout : float
        Seconds until a request fails.

    Attributes
    ----------
    link : Link
    phase_steps : int
        Steps in a turn of the phase of the memory's clock; 0 if it cannot be moved.
    waits, refreshes : int
        Of all passes: cycles in which a transfer of the memory port was pending and none moved, and
        refreshes that the memory began.

    Raises
    ------
    DeviceError
        If the port cannot be opened, nothing answers, or the device is another than expected.
    ValueError
        If ``board`` is unknown.
    """

    def __init__(self, port: str, *, board: str | None = None,
                 config: AcceleratorConfig | None = None,
                 baud: int | None = None, timeout: float = 2.0):
        self._board = SerialBoard(port, "accelerator", config=config, board=board, baud=baud,
                                  timeout=timeout)
        self.link = self._board.link
        super().__init__(accelerator_config(self._board.facts["accelerator"]))
        self.label = f"accelerator on {port}"
        self.waits = self.refreshes = 0
        self.phase_steps = int(self._board.facts.get("phase_steps", 0))
        self._transfers = AcceleratorTransfers(self.config, bool(self.phase_steps))
        self._exchanges = self._transfers.exchanges

    def memory_timing(self) -> tuple[int, float] | None:
        """Return latency and idle share of the board's memory; None if the board is not known."""
        board = BOARDS.get(self._board.facts["board"])
        return memory_timing(board) if isinstance(board, AcceleratorBoard) else None

    def _load(self, image: Image, report: Report) -> None:
        """Write program and memory, unless the board's mark says that they are there already."""
        self._install(image, report, memory=True)

    def adopt(self, image: Image) -> None:
        """Write the program of an image whose memory the device holds already, by other means.

        Raises
        ------
        DeviceError
            As :meth:`load` does.
        """
        self.check(image)
        self._install(image, lambda share, what: None, memory=False)
        self._image = image

    def _install(self, image: Image, report: Report, *, memory: bool) -> None:
        self._reset()
        program = image.program
        # What lies behind the program must be no instruction of another one.
        room = len(program.instructions) < self.config.program_depth
        encoded = program.encoded() + bytes(room * INSTRUCTION_BYTES)
        mark = hashlib.sha256(encoded)
        mark.update(image.memory)
        if self._marked() == mark.digest()[:MARK_BYTES]:
            report(1.0, "the board holds the image already")
            return
        rows = np.frombuffer(encoded, np.uint8).reshape(-1, INSTRUCTION_BYTES)
        indices = np.arange(len(rows), dtype="<u2").view(np.uint8).reshape(-1, 2)
        self._send(Command.PROGRAM, np.concatenate([indices, rows], axis=1).tobytes())
        if memory:
            self.write(0, image.memory, lambda share: report(share, "writing the weights"))
        self._send(Command.MARK, mark.digest()[:MARK_BYTES])
        report(1.0, "ready")

    def _marked(self) -> bytes:
        """Return the mark of the image that the board holds."""
        data = self.link.request(Command.MARKED, (1).to_bytes(COUNT_BYTES, "little"))
        return self._board.checked(data, MARK_BYTES + 1)[:MARK_BYTES]

    def write(self, address: int, contents: bytes | memoryview,
              report: Callable[[float], None] | None = None) -> None:
        """Write the memory; the board forgets which image it held.

        Parameters
        ----------
        address : int
            A multiple of ``port_bytes``.
        contents : bytes
            They are filled up with zeros to whole transfers.
        report : callable, optional
            Called with the share that is written.
        """
        port, limit = self.config.port_bytes, self.config.memory_bytes
        end = address + len(contents) + -len(contents) % port
        if address % port or not 0 <= address <= end <= limit:
            raise ValueError(f"Memory must be written from a multiple of {port} on, below "
                             f"{limit:,} bytes, not {len(contents):,} bytes from {address:,}")
        self._send(Command.SEEK, packed(self._transfers.address, address=address))
        step = 64 * (self._board.payload_bytes // port * port)
        for first in range(0, len(contents), step):
            if report is not None:
                report(first / len(contents))
            part = contents[first:first + step]
            self._send(Command.WRITE, bytes(part) + bytes(-len(part) % port))

    def read(self, address: int, size: int) -> bytes:
        """Read the memory back.

        Parameters
        ----------
        address, size : int
            Multiples of ``port_bytes``, inside the memory.
        """
        port, limit = self.config.port_bytes, self.config.memory_bytes
        if address % port or size % port or not 0 <= address <= address + size <= limit:
            raise ValueError(f"Memory must be read in multiples of {port} bytes below {limit:,}, "
                             f"not {size:,} from {address:,}")
        addresses = np.arange(address, address + size, port)
        return b"".join(self._send(Command.READ, packed(self._transfers.address,
                                                        address=addresses)))

    def move_phase(self, steps: int) -> None:
        """Move the phase of the memory's clock, and initialize the memory again.

        Parameters
        ----------
        steps : int
            Later by so many, or earlier; of :attr:`phase_steps` in a turn.

        Raises
        ------
        DeviceError
            If the board's phase cannot be moved.
        """
        if not self.phase_steps:
            raise DeviceError(f"The {self.label} must have a memory clock whose phase can be moved")
        steps = int(math.fmod(steps, self.phase_steps))
        self._send(Command.PHASE, packed(self._transfers.phase, steps=abs(steps),
                                         back=int(steps < 0)))
        self._reset()

    def verify(self) -> None:
        """Compare the device's memory with the image that was loaded.

        Raises
        ------
        DeviceError
            If a byte differs. Instructions may have stored something since.
        """
        image = self._image
        if image is None:
            raise DeviceError(f"The {self.label} must be given an image first")
        wanted = np.frombuffer(image.memory, np.uint8)
        size = wanted.size + -wanted.size % self.config.port_bytes
        found = np.frombuffer(self.read(0, size), np.uint8)
        differ = np.flatnonzero(wanted != found[:wanted.size])
        if differ.size:
            place = int(differ[0])
            part = next((part.name for part in reversed(image.parts) if part.address <= place),
                        "nothing")
            raise DeviceError(f"The memory of the {self.label} must hold {wanted[place]:#04x} at "
                              f"address {place:#x} ({part}), not {found[place]:#04x}")

    def close(self) -> None:
        """Close the port. The device cannot be used afterwards."""
        self._board.close()

    def _token(self, token: int, start: int) -> TokenResult:
        assert self._image is not None
        self._board.settle()
        with self._board.unsettled():
            try:
                self._send(Command.TOKEN, packed(self._transfers.token, token=token, start=start))
            except BusyError:
                # A fault may have stopped the accelerator behind all that the pass before
                # delivered.
                self._best()
                raise
            best = [self._best() for _ in range(self._image.program.emissions(start))]
            counted = self.status()
        self.waits += counted["waits"]
        self.refreshes += counted["refreshes"]
        return TokenResult(best, counted["cycles"], counted["transfers"])

    def _reset(self) -> None:
        with self._board.unsettled():
            self.link.request(Command.RESET)

    def _best(self) -> TopKResult:
        """Ask for what one TOP_K delivers."""
        fields = self._transfers.result
        most = self._board.payload_bytes // transfer_bytes(fields)
        answers: list[dict[str, int]] = []
        while not answers or not answers[-1]["last"]:
            count = min(self.config.top_k + 1, most)
            data = self.link.request(Command.RESULTS, count.to_bytes(COUNT_BYTES, "little"))
            answers += _unpacked(fields, data)
        *best, end = answers
        if end["kind"] == Answer.FAULT:
            halves = [answer for answer in best if answer["kind"] == Answer.ERROR]
            raise MachineFault(Fault(end["value"]), end["index"],
                               _memory_failure(halves) if halves else None)
        return TopKResult(np.array([answer["index"] for answer in best], np.int64),
                          np.array([answer["value"] for answer in best], np.int32),
                          end["index"], end["value"])


def _memory_failure(halves: list[dict[str, int]]) -> MemoryFailure:
    """Read the answers of kind ERROR: both halves of the address, each with the response."""
    low, high = halves
    return MemoryFailure(write=bool(low["value"] & 4), response=low["value"] & 3,
                         address=high["index"] << 16 | low["index"])


def _unpacked(fields: Fields, data: bytes) -> list[dict[str, int]]:
    """Read transfers; only ``value`` is signed."""
    size = transfer_bytes(fields)
    transfers = []
    for first in range(0, len(data), size):
        transfer, place = {}, first
        for name, width in fields:
            transfer[name] = int.from_bytes(data[place:place + width], "little",
                                            signed=name == "value")
            place += width
        transfers.append(transfer)
    return transfers
