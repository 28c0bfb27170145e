"""Devices that compute whole tokens: an image once, then tokens in and largest logits out.

An **accelerator** (:class:`AcceleratorDevice`) has its memory with it, wherever it is: the golden
machine, the simulated RTL or a board. :class:`host.devices.checked.CheckedTokens` puts the golden
machine beside it.
"""

import abc
import dataclasses
from collections.abc import Callable

from host.devices.base import Device
from host.devices.errors import DeviceError
from host.files.image import Image, check_configuration
from hw.config import AcceleratorConfig
from hw.isa import Function, Opcode, disassemble
from sim.golden.machine import HazardError, Machine, MachineFault, TopKResult
from sim.timing.program import passes_cycles, token_cycles

__all__ = [
    "LATENCY",
    "REFRESH",
    "AcceleratorDevice",
    "GoldenAccelerator",
    "Report",
    "TokenResult",
    "machine_of",
]

#: The memory behind a simulated accelerator: cycles until it answers, and the share in which it
#: pauses.
LATENCY = 20
REFRESH = 0.01
Report = Callable[[float, str], None]


@dataclasses.dataclass(frozen=True, eq=False)
class TokenResult:
    """What a token gave and took.

    Attributes
    ----------
    top_k : list of TopKResult
        One for each TOP_K.
    cycles : int
        From one token to the next.
    transfers : int
        Of the memory port, in both directions.
    """

    top_k: list[TopKResult]
    cycles: int
    transfers: int


class AcceleratorDevice(Device[AcceleratorConfig]):
    """An accelerator with its memory.

    Subclasses define :meth:`_load`, :meth:`_token` and :meth:`_reset`; the base class checks.

    Attributes
    ----------
    config : AcceleratorConfig
    """

    def __init__(self, config: AcceleratorConfig):
        super().__init__(config)
        self._image: Image | None = None
        self._continues = False             # there is a sequence that a token can continue
        self._length = 0                    # tokens of the sequence

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
        self.check(image)
        self._image, self._continues = None, False
        self._load(image, report or (lambda done, what: None))
        self._image = image

    def check(self, image: Image) -> None:
        """Raise ``DeviceError`` if an image was made for another device, or is too large."""
        check_configuration(f"Image of {image.model}", image.config, self.config)
        for what, size, limit in (
                ("instructions", len(image.program.instructions), self.config.program_depth),
                ("bytes of memory", image.memory_bytes, self.config.memory_bytes)):
            if size > limit:
                raise DeviceError(f"Image of {image.model} must have at most {limit} {what} for "
                                  f"the {self.label}, not {size}")

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
            result = self._token(token, image.program.start(new=new, slot=slot))
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
        return result

    @abc.abstractmethod
    def _load(self, image: Image, report: Report) -> None:
        """Reset the accelerator, and write program and memory."""

    @abc.abstractmethod
    def _token(self, token: int, start: int) -> TokenResult:
        """Make a pass from instruction ``start`` on; raise MachineFault at a fault."""

    @abc.abstractmethod
    def _reset(self) -> None:
        """Start the accelerator again, with its program and memory."""


def _where(image: Image, index: int) -> str:
    instructions = image.program.instructions
    return disassemble(instructions[index]) if index < len(instructions) else "behind the last"


class GoldenAccelerator(AcceleratorDevice):
    """The golden machine. It has no clock: its cycles are those of the program's formula.

    The formula knows the entries of the lists that the token really had.
    """

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
        self._sparse = any(instruction.opcode is Opcode.QUANTIZE
                           and instruction.function != Function.DENSE
                           for instruction in program.token())
        self._costs = () if self._sparse else tuple(
            self._cost(image, position) for position in (0, self._last))
        self._prefill = image.program.prefill
        if self._prefill:
            self._prompt = passes_cycles(image.config, image.program.instructions,
                                         self._prefill[1:], latency=LATENCY, refresh=REFRESH)

    def _cost(self, image: Image, position: int) -> tuple[float, int]:
        """Cycles and transfers of a token whose lists are those of the latest one."""
        cost = token_cycles(image.config, image.program.instructions, image.program.body,
                            latency=LATENCY, refresh=REFRESH, position=position,
                            lists=self._machine.list_counts())
        return cost.cycles, cost.transfers

    def _token(self, token: int, start: int) -> TokenResult:
        assert self._image is not None
        self._machine.lists.clear()
        try:
            best = self._machine.run(token, start)
        except HazardError as error:
            raise DeviceError(str(error)) from error
        if start in self._prefill:          # its share of what the tokens take together
            cycles, transfers = (value / (len(self._prefill) - 1) for value in self._prompt)
        elif self._sparse:
            cycles, transfers = self._cost(self._image, self._machine.position)
        else:
            share = self._machine.position / self._last if self._last else 0.0
            cycles, transfers = (begin + share * (end - begin) for begin, end
                                 in zip(*self._costs, strict=True))
        return TokenResult(list(best), round(cycles), round(transfers))

    def _reset(self) -> None:
        self._machine.reset()


def machine_of(image: Image) -> Machine:
    """Make a golden machine with an image."""
    return Machine(image.config, image.program.encoded(), image.contents())
