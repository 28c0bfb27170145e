"""An accelerator whose registers are mapped into the address space of the host.

The driver needs three things of a system: words that are read and written, and memory that both
sides see (:class:`RegisterBus`). hw/link/registers.py has the registers.
"""

import time
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from host.checks import JSONError, parse_json
from host.devices.accelerator import AcceleratorDevice, Report, TokenResult
from host.devices.errors import DeviceError
from host.devices.serial_accelerator import accelerator_config
from host.devices.serial_board import different_fields
from host.files.image import Image
from hw.config import AcceleratorConfig
from hw.isa import INSTRUCTION_BYTES, Fault, MemoryFailure
from hw.link.registers import (
    DESCRIPTION_ADDRESS,
    DESCRIPTION_BYTES,
    IDENTIFICATION,
    MAP_VERSION,
    PAGE_BITS,
    PROGRAM_WORDS,
    REGISTERS,
    RESULT_KINDS,
)
from sim.golden.machine import MachineFault, TopKResult

__all__ = ["BusError", "MappedAccelerator", "RegisterBus", "SharedMemory"]

#: Bytes of a word, and of what is copied between two reports.
_WORD_BYTES, _COPIED_BYTES = 4, 1 << 20


class BusError(DeviceError):
    """The bus answered an access of a register with an error.

    Not every system can say so: a processor may take it as an abort. The driver makes no access
    that is answered with an error as long as nobody else uses the registers.

    Parameters
    ----------
    operation : str
        ``read`` or ``write``.
    address : int
    response : int
        2 is SLVERR, 3 is DECERR.
    """

    def __init__(self, operation: str, address: int, response: int):
        name = {2: "SLVERR", 3: "DECERR"}.get(response, str(response))
        super().__init__(f"the bus answered a {operation} of {address:#05x} with {name}")


class SharedMemory(Protocol):
    """Memory that the accelerator reads and writes.

    Attributes
    ----------
    address : int
        As ``m_axi`` has it, a multiple of 4 KiB.
    """

    @property
    def address(self) -> int:
        """Address on ``m_axi``."""

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write bytes; the accelerator sees them afterwards."""

    def read(self, offset: int, size: int) -> bytes:
        """Read what the accelerator has written."""

    def free(self) -> None:
        """Give it back."""


class RegisterBus(Protocol):
    """What the driver needs of a system."""

    def read(self, address: int, size: int) -> int:
        """Read ``size`` bytes, always 4, at a byte address of the control port.

        Raises
        ------
        BusError
            If the bus answers with an error.
        """

    def write(self, address: int, value: int) -> None:
        """Write 4 bytes; raises as :meth:`read` does."""

    def allocate(self, size: int) -> SharedMemory:
        """Allocate memory in one piece, which begins at a multiple of 4 KiB."""


class MappedAccelerator(AcceleratorDevice):
    """An accelerator behind AXI4-Lite registers, with memory that is shared with the host.

    It has run against the written Verilog in two simulators, and on no hardware.

    Parameters
    ----------
    bus : RegisterBus
    name : str
        What it is called in messages.
    config : AcceleratorConfig, optional
        The accelerator that is expected. Without it, the device's own description is believed.
    timeout : float
        Seconds until a wait fails: for a result, the end of a pass or that of a reset.
    clock : callable
        Returns seconds that pass.
    pause : callable
        Called between two looks at a register that is waited for.

    Raises
    ------
    DeviceError
        If there is no such accelerator behind the registers, or another one than expected.
    """

    evidence = "measured"

    def __init__(self, bus: RegisterBus, *, name: str = "AXI",
                 config: AcceleratorConfig | None = None, timeout: float = 2.0,
                 clock: Callable[[], float] = time.monotonic,
                 pause: Callable[[], None] = lambda: time.sleep(1e-4)):
        self.label = f"accelerator on {name}"
        self._bus, self._timeout, self._clock, self._pause = bus, timeout, clock, pause
        self._memory: SharedMemory | None = None
        self._room = 0                          # bytes of the memory
        self._settled = False                   # no pass was cut off
        self._opened = False                    # no pass has begun since the reset
        found = self.registers("IDENTIFICATION")["number"]
        if found != IDENTIFICATION:
            raise DeviceError(f"The {self.label} must have {IDENTIFICATION:#010x} in "
                              f"IDENTIFICATION, not {found:#010x}: is it another core, or another "
                              f"address?")
        version = self.registers("VERSION")
        if version["major"] != MAP_VERSION[0]:
            raise DeviceError(f"The {self.label} must have registers of version {MAP_VERSION[0]}, "
                              f"not {version['major']}.{version['minor']}")
        super().__init__(self._configuration(config))

    def registers(self, name: str) -> dict[str, int]:
        """Read the fields of a register.

        Raises
        ------
        DeviceError
            If the bus answers with an error.
        """
        register = REGISTERS[name]
        try:
            return register.unpack(self._bus.read(register.address, _WORD_BYTES))
        except BusError as error:
            raise DeviceError(f"The {self.label} must let {name} be read: {error}") from error

    def info(self) -> dict[str, Any]:
        """Facts of every device, and the version of the registers."""
        version = self.registers("VERSION")
        return super().info() | {"registers": f"{version['major']}.{version['minor']}"}

    def counters(self) -> dict[str, int]:
        """Return what the latest pass took: cycles, transfers read and written, cycles waited."""
        return {name.lower(): next(iter(self.registers(name).values()))
                for name in ("CYCLES", "READS", "WRITES", "WAITS")}

    def memory(self, address: int, size: int) -> bytes:
        """Read the memory back, from an address of the image.

        Raises
        ------
        DeviceError
            If no image was loaded.
        ValueError
            If it is not inside the memory.
        """
        if self._memory is None:
            raise DeviceError(f"The {self.label} must be given an image first")
        if not 0 <= address <= address + size <= self._room:
            raise ValueError(f"Memory must be read below {self._room:,}, not {size:,} bytes from "
                             f"{address:,}")
        return self._memory.read(address, size)

    def close(self) -> None:
        """Reset the accelerator, so that it leaves the memory alone, and give the memory back."""
        if self._memory is not None:
            self._reset()                       # raises before memory in use is given back
            self._memory.free()
            self._memory, self._image = None, None

    def _configuration(self, expected: AcceleratorConfig | None) -> AcceleratorConfig:
        """Read the description, and compare it with what is expected."""
        size = self.registers("DESCRIPTION")["bytes"]
        if size > DESCRIPTION_BYTES:
            raise DeviceError(f"The description of the {self.label} must have at most "
                              f"{DESCRIPTION_BYTES} bytes, not {size}")
        text = b"".join(self._word(DESCRIPTION_ADDRESS + place).to_bytes(_WORD_BYTES, "little")
                        for place in range(0, size, _WORD_BYTES))[:size]
        try:
            found = parse_json(text)["accelerator"]
            config = accelerator_config(found)
        except (JSONError, KeyError, TypeError, ValueError) as error:
            raise DeviceError(f"The description of the {self.label} must be that of an "
                              f"accelerator: {error}") from error
        hashed = self.registers("CONFIGURATION")["hash"]
        if config.configuration_hash() != hashed:
            raise DeviceError(f"The configuration of the {self.label} must have the hash "
                              f"{hashed:08x}, but its description has "
                              f"{config.configuration_hash():08x}")
        differing = different_fields(expected.facts(), found) if expected else []
        if differing:
            listed = "; ".join(f"{name} must be {wanted!r}, not {value!r}"
                               for name, wanted, value in differing)
            raise DeviceError(f"The {self.label} has another configuration: {listed}")
        return config

    def _load(self, image: Image, report: Report) -> None:
        self._reset()
        page = 1 << PAGE_BITS
        room = -(-image.memory_bytes // page) * page
        if self._memory is None or self._room < room:
            if self._memory is not None:
                self._memory.free()
                self._memory = None
            self._memory, self._room = self._bus.allocate(room), room
        self._write_base(self._memory.address)
        contents = memoryview(image.memory)
        for place in range(0, len(contents), _COPIED_BYTES):
            report(place / len(contents), "writing the weights")
            self._memory.write(place, contents[place:place + _COPIED_BYTES])
        # What lies behind the program must be no instruction of another one.
        behind = len(image.program.instructions) < self.config.program_depth
        words = np.frombuffer(image.program.encoded() + bytes(behind * INSTRUCTION_BYTES), "<u4")
        self._write("PROGRAM_INDEX", index=0)
        for instruction in words.reshape(-1, len(PROGRAM_WORDS)).tolist():
            for name, word in zip(PROGRAM_WORDS, instruction, strict=True):
                self._write(name, word=word)
        report(1.0, "ready")

    def _token(self, token: int, start: int) -> TokenResult:
        assert self._image is not None
        if not self._settled:
            self._reset()
        self._check_state()
        self._settled = self._opened = False
        self._write("TOKEN", token=token)
        self._write("FIRST", instruction=start)
        self._write("CONTROL", start=1)
        best = [self._best() for _ in range(self._image.program.emissions(start))]
        status = self._wait("end its pass", lambda status: not status["busy"])
        if status["fault"]:
            raise self._fault()
        counted = self.counters()
        self._settled = True
        return TokenResult(best, counted["cycles"], counted["reads"] + counted["writes"])

    def _reset(self) -> None:
        self._settled = False
        self._write("CONTROL", reset=1)
        self._wait("end its reset, for which its memory must answer",
                   lambda status: not status["resetting"])
        self._settled = self._opened = True
        if self._memory is not None:
            self._write_base(self._memory.address)

    def _write_base(self, base: int) -> None:
        """Write where the memory begins."""
        page = 1 << PAGE_BITS
        if base % page or not 0 <= base <= (1 << 64) - self._room:
            raise DeviceError(f"The memory of the {self.label} must begin at a multiple of {page} "
                              f"bytes below 2**64, not at {base:#x}")
        self._write("BASE_LOW", address=(base & 0xFFFF_FFFF) >> PAGE_BITS)
        self._write("BASE_HIGH", address=base >> 32)

    def _check_state(self) -> None:
        """Refuse an accelerator that somebody else has reset or used: its base may be lost."""
        assert self._memory is not None
        base = self.registers("BASE_HIGH")["address"] << 32 | (
            self.registers("BASE_LOW")["address"] << PAGE_BITS)
        if base != self._memory.address or self.registers("STATUS")["open"] != self._opened:
            raise DeviceError(f"The {self.label} must be left alone between tokens, but somebody "
                              f"else has reset or used it")

    def _best(self) -> TopKResult:
        """Take what one TOP_K delivers."""
        rows: list[int] = []
        values: list[int] = []
        while True:
            status = self._wait("deliver its results",
                                lambda status: status["results"] or not status["busy"])
            if not status["results"]:
                if status["fault"]:
                    raise self._fault()
                raise DeviceError(f"The {self.label} must deliver the largest logits with their "
                                  f"scale, but its pass ended behind {len(rows)} of them")
            kind = RESULT_KINDS[self.registers("RESULT")["kind"]]
            index = self.registers("RESULT_INDEX")["index"]
            value = self.registers("RESULT_VALUE")["value"]
            self._write("RESULT_POP", pop=1)
            if kind == "scale":
                return TopKResult(np.array(rows, np.int64), np.array(values, np.int32), index,
                                  value)
            rows.append(index)
            values.append(value)

    def _fault(self) -> MachineFault:
        """Read what has stopped the accelerator."""
        code = self.registers("FAULT")["fault"]
        instruction = self.registers("FAULT_INSTRUCTION")["index"]
        access = self.registers("FAULT_ACCESS")
        try:
            fault = Fault(code)
        except ValueError:
            raise DeviceError(f"The {self.label} must have a fault that is known, "
                              f"not {code}") from None
        if fault is not Fault.MEMORY:
            return MachineFault(fault, instruction)
        return MachineFault(fault, instruction, MemoryFailure(
            write=bool(access["write"]), response=access["response"],
            address=self.registers("FAULT_ADDRESS")["address"]))

    def _wait(self, what: str, reached: Callable[[dict[str, int]], Any]) -> dict[str, int]:
        """Look at STATUS until something is reached, and return it."""
        deadline = self._clock() + self._timeout
        while True:
            late = self._clock() > deadline     # before the look, which is then the last one
            status = self.registers("STATUS")
            if reached(status):
                return status
            if late:
                bits = ", ".join(name for name, value in status.items() if value) or "nothing"
                raise DeviceError(f"The {self.label} must {what} within {self._timeout:g} s; its "
                                  f"status is {bits}")
            self._pause()

    def _word(self, address: int) -> int:
        try:
            return self._bus.read(address, _WORD_BYTES)
        except BusError as error:
            raise DeviceError(f"The {self.label} must let address {address:#x} be read: "
                              f"{error}") from error

    def _write(self, name: str, **fields: int) -> None:
        register = REGISTERS[name]
        try:
            self._bus.write(register.address, register.pack(**fields))
        except BusError as error:
            raise DeviceError(f"The {self.label} must let {name} be written with {fields}: "
                              f"{error}") from error
