"""A core on a serial port: an image once, then tokens in and largest logits out."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from host.device import DeviceError
from host.image import Image
from host.link import BusyError, StalledError
from host.serial_board import SerialBoard, different_fields, packed
from hw.config import CoreConfig, EngineConfig
from hw.isa import INSTRUCTION_BYTES, Fault, disassemble
from hw.link.protocol import COUNT_BYTES, Answer, Command, CoreTransfers, transfer_bytes
from sim.golden.machine import Best

__all__ = ["SerialCore", "core_config"]

Progress = Callable[[float, str], None]


def core_config(fields: dict[str, Any]) -> CoreConfig:
    """Return the configuration whose ``dataclasses.asdict`` is ``fields``."""
    return CoreConfig(**fields | {"engine": EngineConfig(**fields["engine"])})


class SerialCore:
    """A core with its memory on a board, or anything that speaks like one.

    Parameters
    ----------
    port : str
        Serial port, such as ``/dev/ttyUSB0``.
    board : str, optional
        Name of the board whose bitstream is expected; its baud rate is used.
    config : CoreConfig, optional
        The core that is expected. Without it, the device's own description is believed.
    baud : int, optional
        Bits per second, instead of the board's.
    timeout : float
        Seconds until a request fails.

    Attributes
    ----------
    config : CoreConfig
    memory_bytes : int
        Bytes of the memory behind the core.

    Raises
    ------
    DeviceError
        If the port cannot be opened, nothing answers, or the device is another than expected.
    ValueError
        If ``board`` is unknown.
    """

    evidence = "measured"

    def __init__(self, port: str, *, board: str | None = None, config: CoreConfig | None = None,
                 baud: int | None = None, timeout: float = 2.0):
        self._board = SerialBoard(port, "core", config=config, board=board, baud=baud,
                                  timeout=timeout)
        self.link = self._board.link
        facts = self._board.facts
        self.config = core_config(facts["core"])
        self.memory_bytes: int = facts["memory_bytes"]
        self._transfers = CoreTransfers(self.config)
        self._image: Image | None = None

    def info(self) -> dict[str, Any]:
        """Plain facts: kind of device, board and clock, configuration and its fingerprint."""
        facts = {name: self._board.facts[name] for name in ("board", "clock_hz", "memory_bytes")}
        return {"device": f"core on {self._board.name}", "evidence": self.evidence, **facts,
                "configuration": dataclasses.asdict(self.config),
                "fingerprint": f"{self.config.fingerprint():08x}"}

    def status(self) -> dict[str, int]:
        """Return the device's counters; ``cycles`` are those of the latest token."""
        return self._board.status()

    def load(self, image: Image, progress: Progress | None = None) -> None:
        """Reset the core and write memory and program.

        Parameters
        ----------
        image : Image
        progress : callable, optional
            Called with the share that is done (0 to 1) and what is under way.

        Raises
        ------
        DeviceError
            If the image is for another configuration or too large, or the device fails.
        """
        self._check(image)
        self._image = None
        self.link.request(Command.RESET)
        port = self.config.port_bytes
        padded = image.memory + bytes(-len(image.memory) % port)
        rows = np.frombuffer(padded, np.uint8).reshape(-1, port)
        addresses = np.arange(len(rows), dtype=np.uint32) * port
        data = np.concatenate([addresses.astype("<u4").view(np.uint8).reshape(-1, 4), rows], axis=1)
        # A part of a second between two reports.
        step = 64 * self._board.payload_bytes // data.shape[1]
        for first in range(0, len(data), step):
            if progress:
                progress(first / len(data), "writing the weights")
            self._send(Command.WRITE, data[first:first + step].tobytes())
        # What lies behind the program must be no instruction of another one.
        room = len(image.program.instructions) < self.config.program_depth
        program = np.frombuffer(image.program.encoded() + bytes(room * INSTRUCTION_BYTES),
                                np.uint8).reshape(-1, INSTRUCTION_BYTES)
        indices = np.arange(len(program), dtype="<u2").view(np.uint8).reshape(-1, 2)
        self._send(Command.PROGRAM, np.concatenate([indices, program], axis=1).tobytes())
        self._image = image
        if progress:
            progress(1.0, "ready")

    def _check(self, image: Image) -> None:
        differing = different_fields(dataclasses.asdict(self.config),
                                     dataclasses.asdict(image.config))
        if differing:
            listed = "; ".join(f"{name} must be {ours!r}, not {theirs!r}"
                               for name, ours, theirs in differing)
            raise DeviceError(f"The image of {image.model} was made for another core than that on "
                              f"{self._board.name}: {listed}")
        for what, size, limit in (
                ("bytes of memory", len(image.memory), self.memory_bytes),
                ("instructions", len(image.program.instructions), self.config.program_depth)):
            if size > limit:
                raise DeviceError(f"The image of {image.model} must have at most {limit:,} {what} "
                                  f"for the core on {self._board.name}, not {size:,}")

    def read(self, address: int, size: int) -> bytes:
        """Read the memory back.

        Parameters
        ----------
        address, size : int
            Multiples of ``port_bytes``, inside the memory.
        """
        port = self.config.port_bytes
        if address % port or size % port or not 0 <= address <= address + size <= self.memory_bytes:
            raise ValueError(f"Memory must be read in multiples of {port} bytes below "
                             f"{self.memory_bytes:,}, not {size:,} from {address:,}")
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
        image = self._loaded()
        padded = image.memory + bytes(-len(image.memory) % self.config.port_bytes)
        found = self.read(0, len(padded))
        for place, (wanted, actual) in enumerate(zip(padded, found, strict=True)):
            if wanted != actual:
                part = next((part.name for part in reversed(image.parts) if part.address <= place),
                            "nothing")
                raise DeviceError(f"The memory on {self._board.name} must hold {wanted:#04x} at "
                                  f"address {place:#x} ({part}), not {actual:#04x}")

    def token(self, token: int, *, new: bool = False) -> list[Best]:
        """Make a pass over the program.

        Parameters
        ----------
        token : int
        new : bool
            Whether a new sequence begins.

        Returns
        -------
        list of Best
            One for each EMIT.

        Raises
        ------
        DeviceError
            If there is no such token, or the core stops: it is reset then, and a new sequence can
            begin.
        """
        image = self._loaded()
        if not 0 <= token < image.vocab:
            raise DeviceError(f"Token must be from 0 to {image.vocab - 1}, as {image.model} has, "
                              f"not {token}")
        start = 0 if new else image.program.body
        try:
            try:
                self._send(Command.TOKEN, packed(self._transfers.token, token=token, start=start))
            except BusyError:
                # It has stopped behind what the pass before delivered. If not, it is reset.
                self._best()
                raise
            return [self._best() for _ in image.program.heads]
        except (BusyError, StalledError):
            self.link.request(Command.RESET)
            raise

    def close(self) -> None:
        """Close the port. The device cannot be used afterwards."""
        self._board.close()

    def _loaded(self) -> Image:
        if self._image is None:
            raise DeviceError(f"The core on {self._board.name} must be given an image first")
        return self._image

    def _best(self) -> Best:
        """Ask for what one EMIT delivers."""
        fields = self._transfers.result
        most = self._board.payload_bytes // transfer_bytes(fields)
        answers: list[dict[str, int]] = []
        while not answers or not answers[-1]["last"]:
            count = min(self.config.best + 1, most)
            data = self.link.request(Command.RESULTS, count.to_bytes(COUNT_BYTES, "little"))
            answers += _unpacked(fields, data)
        *best, end = answers
        if end["kind"] == Answer.FAULT:
            self._stopped(Fault(end["value"]), end["index"])
        return Best(np.array([answer["index"] for answer in best], np.int64),
                    np.array([answer["value"] for answer in best], np.int32),
                    end["index"], end["value"])

    def _stopped(self, fault: Fault, index: int) -> None:
        self.link.request(Command.RESET)
        instructions = self._loaded().program.instructions
        where = disassemble(instructions[index]) if index < len(instructions) else "behind the last"
        raise DeviceError(f"The core on {self._board.name} stopped at instruction {index} "
                          f"({where}): {fault.sentence}")

    def _send(self, command: Command, data: bytes) -> list[bytes]:
        return self._board.send(command, self._transfers.exchanges[command], data)


def _unpacked(fields: tuple[tuple[str, int], ...], data: bytes) -> list[dict[str, int]]:
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
