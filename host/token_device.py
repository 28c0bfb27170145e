"""The device that computes whole tokens: an image once, then tokens in and largest logits out.

A **token device** (:class:`TokenDevice`) is a core with its memory, wherever it is: the golden
machine, the simulated core or a board. :class:`CheckedTokens` puts the golden machine beside it.
"""

import abc
import dataclasses
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from host.device import DeviceError, MismatchError
from host.image import Image, check_configuration
from hw.config import CoreConfig
from hw.isa import disassemble
from sim.golden.machine import Best, HazardError, Machine, MachineFault
from sim.golden.schedule import passes_cycles, token_cycles

__all__ = ["LATENCY", "REFRESH", "CheckedTokens", "GoldenTokenDevice", "SimulatedTokenDevice",
           "TokenDevice", "TokenResult", "machine_of", "open_token_device"]

#: The memory behind a simulated core: cycles until it answers, and the share in which it pauses.
LATENCY = 20
REFRESH = 0.01

Report = Callable[[float, str], None]


@dataclasses.dataclass(frozen=True, eq=False)
class TokenResult:
    """What a token gave and took.

    Attributes
    ----------
    best : list of Best
        One for each EMIT.
    cycles : int
        From one token to the next.
    transfers : int
        Of the memory port, in both directions.
    """

    best: list[Best]
    cycles: int
    transfers: int


class TokenDevice(abc.ABC):
    """A core with its memory.

    Subclasses define :meth:`_load`, :meth:`_token` and :meth:`_reset`; the base class checks.

    Attributes
    ----------
    config : CoreConfig
    label : str
        What it is, for people.
    evidence : str
        How its cycles are known: ``derived``, ``simulated`` or ``measured``.
    """

    label = "device"
    evidence: str

    def __init__(self, config: CoreConfig):
        self.config = config
        self._image: Image | None = None
        self._continues = False             # there is a sequence that a token can continue
        self._length = 0                    # tokens of the sequence

    def info(self) -> dict[str, Any]:
        """Plain facts: kind of device, the core's configuration and its fingerprint."""
        return {"device": self.label, "evidence": self.evidence,
                "configuration": dataclasses.asdict(self.config),
                "fingerprint": f"{self.config.fingerprint():08x}"}

    def load(self, image: Image, report: Report | None = None) -> None:
        """Put an image onto the device; what was there before is gone.

        Parameters
        ----------
        image : Image
        report : callable, optional
            Called with the share that is done (0 to 1) and what is under way.

        Raises
        ------
        DeviceError
            If the image was made for another configuration, or the device has no room for it.
        """
        check_configuration(f"Image of {image.model}", image.config, self.config)
        for what, size, limit in (
                ("instructions", len(image.program.instructions), self.config.program_depth),
                ("bytes of memory", image.memory_bytes, self.config.memory_bytes)):
            if size > limit:
                raise DeviceError(f"Image of {image.model} must have at most {limit} {what} for "
                                  f"the {self.label}, not {size}")
        self._image, self._continues = None, False
        self._load(image, report or (lambda done, what: None))
        self._image = image

    def token(self, token: int, *, new: bool = False, slot: int | None = None) -> TokenResult:
        """Make the passes over the program that a token takes.

        Parameters
        ----------
        token : int
        new : bool
            Whether it begins a new sequence. The first token does, and the first after an error.
        slot : int, optional
            Number of the token among :attr:`Program.prefill_tokens` of a prompt, which are read
            together: given one after the other from 0 on. The last one delivers logits.

        Raises
        ------
        DeviceError
            If there is no such token or no sequence, or the device stops. It is reset then, and a
            new sequence can begin.
        """
        image = self._image
        if image is None:
            raise DeviceError(f"The {self.label} must be given an image first")
        if not 0 <= token < image.vocab:
            raise DeviceError(f"Token must be from 0 to {image.vocab - 1}, as {image.model} has "
                              f"them, not {token}")
        if not new and not self._continues:
            raise DeviceError(f"Token {token} must begin a new sequence: the {self.label} has none "
                              f"that it could continue")
        self._length = 0 if new else self._length
        if image.context and self._length == image.context:
            raise DeviceError(f"Context must have at most {image.context} tokens, as the image of "
                              f"{image.model} has room for, but token {token} is one more")
        self._continues = False
        try:
            results = [self._token(*one) for one in image.program.passes(token, new=new, slot=slot)]
        except MachineFault as error:
            self._reset()
            raise DeviceError(f"The {self.label} stopped at instruction {error.instruction} "
                              f"({_where(image, error.instruction)}): "
                              f"{error.sentence}") from error
        except DeviceError:
            self._reset()
            raise
        self._continues = True
        self._length += 1
        return TokenResult(results[-1].best, sum(result.cycles for result in results),
                           sum(result.transfers for result in results))

    @abc.abstractmethod
    def _load(self, image: Image, report: Report) -> None:
        """Reset the core, and write program and memory."""

    @abc.abstractmethod
    def _token(self, token: int, start: int) -> TokenResult:
        """Make a pass from instruction ``start`` on; raise MachineFault if the core stops."""

    @abc.abstractmethod
    def _reset(self) -> None:
        """Start the core again, with its program and memory."""

    @abc.abstractmethod
    def close(self) -> None:
        """Give back what the device holds. It cannot be used afterwards."""


def _where(image: Image, index: int) -> str:
    instructions = image.program.instructions
    return disassemble(instructions[index]) if index < len(instructions) else "behind the last"


class GoldenTokenDevice(TokenDevice):
    """The golden machine. It has no clock: its cycles are those of the program's formula."""

    label = "golden machine"
    evidence = "derived"

    def close(self) -> None:
        """Forget the image."""
        self._image = None

    def _load(self, image: Image, report: Report) -> None:
        self._machine = machine_of(image)
        # In between, cycles grow with the position.
        self._last = max(0, image.context - 1)
        program = image.program
        starts = {start for _, start, _ in program.ranges} | {program.body}
        self._costs = {start: [token_cycles(image.config, program.instructions, start,
                                            latency=LATENCY, refresh=REFRESH, position=position)
                               for position in (0, self._last)] for start in starts}
        self._costs[0] = self._costs[program.body]
        self._announced = {start: passes_cycles(image.config, program.instructions, [start],
                                                latency=LATENCY, refresh=REFRESH)
                           for _, _, start in program.ranges}
        self._prefill = image.program.prefill
        if self._prefill:
            self._prompt = passes_cycles(image.config, image.program.instructions,
                                         self._prefill[1:], latency=LATENCY, refresh=REFRESH)

    def _token(self, token: int, start: int) -> TokenResult:
        try:
            best = self._machine.run(token, start)
        except HazardError as error:
            raise DeviceError(str(error)) from error
        if start in self._prefill:          # its share of what the tokens take together
            cycles, transfers = (round(value / (len(self._prefill) - 1)) for value in self._prompt)
            return TokenResult(list(best), cycles, transfers)
        if start in self._announced:
            cycles, transfers = map(round, self._announced[start])
            return TokenResult(list(best), cycles, transfers)
        first, last = self._costs[start]
        share = self._machine.position / self._last if self._last else 0.0
        cycles, transfers = (round(begin + share * (end - begin)) for begin, end in (
            (first.cycles, last.cycles), (first.transfers, last.transfers)))
        return TokenResult(list(best), cycles, transfers)

    def _reset(self) -> None:
        self._machine.reset()


class SimulatedTokenDevice(TokenDevice):
    """The RTL of the core, compiled by Verilator, with a memory of :data:`LATENCY` cycles.

    Parameters
    ----------
    config : CoreConfig
    report : callable, optional
        Called with the share that is done (0 to 1) and what is under way, while the simulator is
        built.

    Raises
    ------
    DeviceError
        If the simulator cannot be built.
    """

    label = "simulated core"
    evidence = "simulated"

    def __init__(self, config: CoreConfig, report: Report | None = None):
        super().__init__(config)
        # Imported where it is asked for: a board needs no simulator.
        from sim.verilated_machine import VerilatedMachine
        try:
            self._core = VerilatedMachine(config, latency=LATENCY, refresh=REFRESH, progress=report)
        except (RuntimeError, ValueError, OSError) as error:
            raise DeviceError(f"The simulator cannot be built: {error}") from error

    def close(self) -> None:
        """Free the simulated core and its memory."""
        self._core.close()

    def _load(self, image: Image, report: Report) -> None:
        self._core.load(image.program.encoded(), image.memory + bytes(image.room))

    def _token(self, token: int, start: int) -> TokenResult:
        from sim.library import SimulatorStopped
        try:
            run = self._core.run([(token, start)])[0]
        except SimulatorStopped as error:
            raise DeviceError(str(error)) from error
        return TokenResult(run.emissions, run.cycles, run.reads + run.writes)

    def _reset(self) -> None:
        self._core.reset()


def machine_of(image: Image) -> Machine:
    """Make a golden machine with an image."""
    return Machine(image.config, image.program.encoded(), image.memory + bytes(image.room))


class CheckedTokens:
    """Tokens of a device, each compared with the golden machine's, logit by logit.

    Parameters
    ----------
    device : TokenDevice
        With ``image`` loaded.
    image : Image

    Attributes
    ----------
    device : TokenDevice
    machine : Machine
    checked : int
        Logits compared, all of them equal.
    seconds : float
        Wall time of the golden machine.
    """

    def __init__(self, device: TokenDevice, image: Image):
        self.device = device
        self.machine = machine_of(image)
        self.checked = 0
        self.seconds = 0.0
        self._program = image.program
        self._passes = 0

    def token(self, token: int, *, new: bool = False, slot: int | None = None) -> TokenResult:
        """Make a pass on both, as :meth:`TokenDevice.token` does.

        Raises
        ------
        MismatchError
            At the first integer, row or scale that differs.
        DeviceError
            As :meth:`TokenDevice.token` does.
        """
        result = self.device.token(token, new=new, slot=slot)
        self.compare(token, result, new=new, slot=slot)
        return result

    def compare(self, token: int, result: TokenResult, *, new: bool,
                slot: int | None = None) -> None:
        """Make a pass on the golden machine; it must deliver ``result``.

        Raises
        ------
        MismatchError
            At the first integer, row or scale that differs.
        """
        place = f"pass {self._passes} (token {token})"
        self._passes += 1
        began = time.perf_counter()
        try:
            for one in self._program.passes(token, new=new, slot=slot):
                expected = self.machine.run(*one)
        except (MachineFault, HazardError) as error:
            raise MismatchError(f"In {place} the golden machine stopped, but the "
                                f"{self.device.label} did not: {error}") from error
        self.seconds += time.perf_counter() - began
        if len(result.best) != len(expected):
            raise MismatchError(f"In {place} the {self.device.label} must deliver the largest "
                                f"logits {len(expected)} times, not {len(result.best)}")
        for number, (actual, wanted) in enumerate(zip(result.best, expected, strict=True)):
            self._compare(f"EMIT {number} of {place}", actual, wanted)
            self.checked += len(wanted.rows)

    def _compare(self, place: str, actual: Best, wanted: Best) -> None:
        label = self.device.label
        if len(actual.rows) != len(wanted.rows):
            raise MismatchError(f"{place} must deliver {len(wanted.rows)} logits, but the {label} "
                                f"gave {len(actual.rows)}")
        differ = np.flatnonzero((actual.rows != wanted.rows) | (actual.values != wanted.values))
        if differ.size:
            k = int(differ[0])
            raise MismatchError(
                f"{place} must deliver row {wanted.rows[k]} with {wanted.values[k]} in place {k}, "
                f"but the {label} gave row {actual.rows[k]} with {actual.values[k]}")
        if (actual.number, actual.exponent) != (wanted.number, wanted.exponent):
            raise MismatchError(
                f"{place} must deliver the scale {wanted.number:#06x} times "
                f"2**{wanted.exponent}, but the {label} gave {actual.number:#06x} times "
                f"2**{actual.exponent}")


def open_token_device(name: str, config: CoreConfig | None = None,
                      report: Report | None = None) -> TokenDevice:
    """Open a device by the name that users give it.

    Parameters
    ----------
    name : str
        ``sim``, ``golden``, or ``core:PORT``.
    config : CoreConfig, optional
        That of a board's core is known by itself, and must be this one.
    report : callable, optional
        Called with the share that is done (0 to 1) and what is under way, if opening takes long.

    Raises
    ------
    DeviceError
        If it cannot be opened.
    """
    # Imported where it is asked for: nothing else needs a serial port.
    kind, _, port = name.partition(":")
    if kind == "core" and port:
        from host.serial_core import SerialCore
        return SerialCore(port, config=config)
    if name == "golden":
        return GoldenTokenDevice(config or CoreConfig())
    return SimulatedTokenDevice(config or CoreConfig(), report)
