"""An accelerator on a serial port: an image once, then tokens in and largest logits out."""

from typing import Any

import numpy as np

from host.devices.accelerator import AcceleratorDevice, Report, TokenResult
from host.devices.errors import DeviceError
from host.devices.link import BusyError
from host.devices.serial_board import SerialBoard, packed
from host.files.image import Image
from hw.config import AcceleratorConfig, EngineConfig
from hw.isa import INSTRUCTION_BYTES, Fault, MemoryFailure
from hw.link.protocol import (
    COUNT_BYTES,
    AcceleratorTransfers,
    Answer,
    Command,
    Fields,
    transfer_bytes,
)
from sim.golden.machine import MachineFault, TopKResult
from sim.timing.program import token_cycles

__all__ = ["SerialAccelerator", "accelerator_config"]


def accelerator_config(fields: dict[str, Any]) -> AcceleratorConfig:
    """Return the configuration whose ``dataclasses.asdict`` is ``fields``."""
    return AcceleratorConfig(**fields | {"engine": EngineConfig(**fields["engine"])})


class SerialAccelerator(AcceleratorDevice):
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

    Raises
    ------
    DeviceError
        If the port cannot be opened, nothing answers, or the device is another than expected.
    ValueError
        If ``board`` is unknown.
    """

    evidence = "measured"

    def __init__(self, port: str, *, board: str | None = None,
                 config: AcceleratorConfig | None = None,
                 baud: int | None = None, timeout: float = 2.0):
        self._board = SerialBoard(port, "accelerator", config=config, board=board, baud=baud,
                                  timeout=timeout)
        self.link = self._board.link
        super().__init__(accelerator_config(self._board.facts["accelerator"]))
        self.label = f"accelerator on {port}"
        self._transfers = AcceleratorTransfers(self.config)

    def info(self) -> dict[str, Any]:
        """Facts of every device, and the board's name and clock."""
        return super().info() | {name: self._board.facts[name] for name in ("board", "clock_hz")}

    def status(self) -> dict[str, int]:
        """Return the device's counters; ``cycles`` are those of the latest token."""
        return self._board.status()

    def _load(self, image: Image, report: Report) -> None:
        self._reset()
        rows = self._rows(image)
        addresses = np.arange(len(rows), dtype=np.uint32) * self.config.port_bytes
        data = np.concatenate([addresses.astype("<u4").view(np.uint8).reshape(-1, 4), rows], axis=1)
        step = 64 * self._board.payload_bytes // data.shape[1]
        for first in range(0, len(data), step):
            report(first / len(data), "writing the weights")
            self._send(Command.WRITE, data[first:first + step].tobytes())
        # The device counts no transfers; the program says how many there are.
        program = image.program
        self._moved = token_cycles(image.config, program.instructions, program.body).transfers
        # What lies behind the program must be no instruction of another one.
        room = len(program.instructions) < self.config.program_depth
        encoded = np.frombuffer(program.encoded() + bytes(room * INSTRUCTION_BYTES),
                                np.uint8).reshape(-1, INSTRUCTION_BYTES)
        indices = np.arange(len(encoded), dtype="<u2").view(np.uint8).reshape(-1, 2)
        self._send(Command.PROGRAM, np.concatenate([indices, encoded], axis=1).tobytes())
        report(1.0, "ready")

    def _rows(self, image: Image) -> np.ndarray:
        """Return the memory as uint8 of shape (transfers, port_bytes)."""
        port = self.config.port_bytes
        filled = b"".join((image.memory, bytes(-len(image.memory) % port)))
        return np.frombuffer(filled, np.uint8).reshape(-1, port)

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
        wanted = self._rows(image).ravel()
        found = np.frombuffer(self.read(0, wanted.size), np.uint8)
        differ = np.flatnonzero(wanted != found)
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
            cycles = self.status()["cycles"]
        return TokenResult(best, cycles, self._moved)

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

    def _send(self, command: Command, data: bytes) -> list[bytes]:
        return self._board.send(command, self._transfers.exchanges[command], data)


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
