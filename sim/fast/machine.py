"""The fast simulator of the whole accelerator: token in, largest logits out, without cocotb.

``sim/fast/machine_harness.cpp`` is the memory behind the port, and the ends of all streams; its
comment says what the memory does in which cycle.
"""

import ctypes
import dataclasses
import enum
import functools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hw.accelerator import Accelerator, unit_names
from hw.config import AcceleratorConfig
from hw.isa import INSTRUCTION_BYTES, Fault, Opcode
from sim.fast.library import Design, Progress, SimulatorStopped, build_library
from sim.golden.machine import MachineFault, TopKResult

__all__ = ["REFRESH_PERIOD", "TokenRun", "VerilatedAccelerator"]

DESIGN = Design(
    name="accelerator",
    sources=("hw/config.py", "hw/isa.py", "hw/accelerator.py", "hw/activations", "hw/arith",
             "hw/attention", "hw/common", "hw/control", "hw/engine", "hw/formats", "hw/memory",
             "hw/output", "hw/vector", "sim/fast/machine.py"),
    harness="sim/fast/machine_harness.cpp",
    component=functools.partial(Accelerator, unit_clocks=True),
    streams={
        "PROGRAM": lambda unit: unit.i_program,
        "TOKEN": lambda unit: unit.i_tokens,
        "TOP_K": lambda unit: unit.o_top_k,
        "SCALE": lambda unit: unit.o_scale,
        "FAULT": lambda unit: unit.o_faults,
        "READ": lambda unit: unit.memory.reads,
        "WRITE": lambda unit: unit.memory.writes,
    },
    constants=lambda config: {"PORT_BYTES": config.port_bytes, "TOP_K": config.top_k},
    clocks=unit_names,
)

#: Cycles from one refresh of the memory to the next.
REFRESH_PERIOD = 1000

#: Cycles without any transfer after which the accelerator counts as stuck.
PATIENCE = 1_000_000
#: Cycles of a call of :meth:`VerilatedAccelerator.run` that nobody limits: more than any has.
_NO_LIMIT = 2 ** 62


class _Token(ctypes.Structure):
    """``struct Token`` of sim/fast/machine_harness.cpp."""

    _fields_ = (
        ("token", ctypes.c_uint32), ("start", ctypes.c_uint32),
        *((name, ctypes.c_uint64) for name in ("begin", "end", "reads", "writes")),
        ("emissions", ctypes.c_uint32),
    )


class _Status(enum.IntEnum):
    DONE = 0
    FAULT = 1
    STUCK = 2
    READ_OUTSIDE = 3
    WRITE_OUTSIDE = 4
    TOO_MANY = 5
    TOO_LONG = 6


class _Outcome(ctypes.Structure):
    """``struct Outcome``."""

    _fields_ = (
        *((name, ctypes.c_uint32) for name in ("status", "fault", "instruction", "transfers")),
        *((name, ctypes.c_uint64) for name in ("address", "cycle")),
    )


def _emission(best: int) -> type[ctypes.Structure]:
    """``struct Emission``."""
    class Emission(ctypes.Structure):
        _fields_ = (("count", ctypes.c_uint32), ("number", ctypes.c_uint32),
                    ("exponent", ctypes.c_int32), ("rows", ctypes.c_uint32 * best),
                    ("values", ctypes.c_int32 * best))
    return Emission


@dataclasses.dataclass(frozen=True)
class TokenRun:
    """What one token gave and took.

    Attributes
    ----------
    emissions : list of TopKResult
        One for each TOP_K.
    cycles : int
        From the cycle in which the accelerator accepts the token to that in which it would accept,
        or does accept, the next one.
    reads, writes : int
        Transfers of the memory port in these cycles.
    """

    emissions: list[TopKResult]
    cycles: int
    reads: int
    writes: int


def _timing(latency: int, refresh: float, stall: float, seed: int) -> tuple[int, int, int, int]:
    """Check the arguments of ``tally_timing``, and turn them into its units."""
    if latency < 1:
        raise ValueError(f"Latency of the memory must be at least 1 cycle, not {latency}")
    pause = round(refresh * REFRESH_PERIOD)
    if not 0 <= pause < REFRESH_PERIOD or abs(pause - refresh * REFRESH_PERIOD) > 1e-6:
        raise ValueError(f"Refresh must be a multiple of 1/{REFRESH_PERIOD} below 1, "
                         f"not {refresh}")
    if not 0 <= stall < 1:
        raise ValueError(f"Stall must be a probability below 1, not {stall}")
    if not 0 <= seed < 2 ** 32:
        raise ValueError(f"Seed of the stalls must have 32 bits, not be {seed}")
    return latency, pause, round(256 * stall), seed


class VerilatedAccelerator:
    """A simulated accelerator with the memory behind its port.

    Parameters
    ----------
    config : AcceleratorConfig
        At most 32 bits of accumulator.
    latency : int
        Cycles from a read that is accepted to its first transfer; at least 1.
    refresh : float
        Share of the cycles in which the memory does nothing: a pause at the beginning of every
        :data:`REFRESH_PERIOD` cycles, of which it is a multiple.
    stall : float
        Probability, for each stream and cycle, that it waits, in steps of 1/256; for tests.
    progress : callable, optional
        As for :func:`sim.fast.library.build_library`.

    Attributes
    ----------
    cycles : int
        Clock cycles simulated so far.

    Raises
    ------
    ValueError
        If ``config`` is too wide for the simulator, or the memory is none.
    ToolMissing, RuntimeError
        As :func:`sim.fast.library.build_library` does.
    """

    def __init__(self, config: AcceleratorConfig, *, latency: int = 20, refresh: float = 0.01,
                 stall: float = 0.0, progress: Progress | None = None):
        if config.engine.accumulator_width > 32:
            raise ValueError(f"Accumulator width must be at most 32 in the simulator, "
                             f"not {config.engine.accumulator_width}")
        timing = _timing(latency, refresh, stall, 1)
        self.config = config
        self.cycles = 0
        self._program = b""
        self._memory_bytes = 0
        self._emission = _emission(config.top_k)
        # The target changes no bit and no cycle.
        generic = dataclasses.replace(
            config, engine=dataclasses.replace(config.engine, target="generic"))
        library = ctypes.CDLL(str(build_library(DESIGN, generic, progress)))
        pointer, word, long_word = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint64
        library.tally_create.restype = pointer
        library.tally_create.argtypes = ()
        library.tally_timing.argtypes = (pointer, word, word, word, word)
        library.tally_destroy.argtypes = library.tally_reset.argtypes = (pointer,)
        library.tally_program.argtypes = (pointer, pointer, word, long_word)
        library.tally_write.argtypes = (pointer, pointer, long_word)
        library.tally_read.argtypes = (pointer, pointer)
        library.tally_profile.argtypes = (pointer, pointer, pointer, word)
        library.tally_run.argtypes = (pointer, pointer, word, pointer, word, long_word, long_word,
                                      pointer)
        self._library = library
        self._accelerator = library.tally_create()
        library.tally_timing(self._accelerator, *timing)

    def set_timing(self, *, latency: int, refresh: float, stall: float, seed: int) -> None:
        """Set when the memory and the ends of the streams move, from the next cycle on.

        Parameters
        ----------
        latency, refresh, stall
            As the constructor has them.
        seed : int
            Of the stalls, 32 bits: with the same one, they come in the same cycles again.

        Raises
        ------
        ValueError
            If one of them is none of the constructor's.
        """
        self._library.tally_timing(self._accelerator, *_timing(latency, refresh, stall, seed))

    def load(self, program: bytes, memory: bytes | memoryview) -> None:
        """Reset the accelerator, write its program, and fill the memory from address 0.

        Raises
        ------
        ValueError
            If the accelerator has no room for the program, or its addresses for the memory.
        """
        config, count = self.config, len(program) // INSTRUCTION_BYTES
        if count > config.program_depth:
            raise ValueError(f"Program must have at most {config.program_depth} instructions, "
                             f"not {count}")
        if len(memory) > config.memory_bytes:
            raise ValueError(f"Memory must have at most {config.memory_bytes} bytes, "
                             f"not {len(memory)}")
        # An unwritten instruction is none.
        self._program = program + bytes(INSTRUCTION_BYTES * (config.program_depth - count))
        padded = b"".join((memory, bytes(-len(memory) % config.port_bytes)))
        self._memory_bytes = len(padded)
        self._library.tally_write(self._accelerator, padded, len(padded))
        self.reset()

    def reset(self) -> None:
        """Start the accelerator again, with its program; the memory stays as it is."""
        self._library.tally_reset(self._accelerator)
        count = len(self._program) // INSTRUCTION_BYTES
        if not self._library.tally_program(self._accelerator, self._program, count, PATIENCE):
            raise SimulatorStopped(f"The simulated accelerator did not take its program within "
                                   f"{PATIENCE} cycles")

    @property
    def memory(self) -> NDArray[np.uint8]:
        """A copy of the memory."""
        memory = np.empty(self._memory_bytes, np.uint8)
        self._library.tally_read(self._accelerator, memory.ctypes.data)
        return memory

    def profile(self) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """Cycles and transfers of each instruction since the program was loaded.

        A cycle counts for the instruction that is executed, or waits, in it; a transfer for the one
        that is executed when it comes, whatever it is read for.
        """
        count = len(self._program) // INSTRUCTION_BYTES
        cycles, transfers = np.empty(count, np.uint64), np.empty(count, np.uint64)
        self._library.tally_profile(self._accelerator, cycles.ctypes.data, transfers.ctypes.data,
                                    count)
        return cycles, transfers

    def run(self, tokens: Sequence[tuple[int, int]], *, patience: int | None = None,
            limit: int = _NO_LIMIT) -> list[TokenRun]:
        """Make a pass for each of ``tokens``, each {token, start} as soon as it is accepted.

        Between calls no cycle passes.

        Parameters
        ----------
        tokens : sequence of (int, int)
        patience : int, optional
            Cycles without any transfer after which the accelerator counts as stuck;
            :data:`PATIENCE` by default.
        limit : int
            Cycles that all passes may take together.

        Raises
        ------
        MachineFault
            If the accelerator stops; it only does something again after :meth:`reset`.
        SimulatorStopped
            If nothing moves for ``patience`` cycles, the passes take more than ``limit``, or the
            accelerator does what none may.
        """
        patience = PATIENCE if patience is None else patience
        records = (_Token * len(tokens))(*(_Token(token=token, start=start)
                                           for token, start in tokens))
        emits = self._program[::INSTRUCTION_BYTES].count(Opcode.TOP_K)
        emissions = (self._emission * (len(tokens) * emits))()
        outcome = _Outcome()
        self._library.tally_run(self._accelerator, ctypes.byref(records), len(records),
                                ctypes.byref(emissions), emits, patience, limit,
                                ctypes.byref(outcome))
        self.cycles = outcome.cycle
        self._check(outcome, patience, limit)
        return [TokenRun([self._best(emission) for emission
                          in emissions[index * emits:index * emits + record.emissions]],
                         record.end - record.begin, record.reads, record.writes)
                for index, record in enumerate(records)]

    def _check(self, outcome: _Outcome, patience: int, limit: int) -> None:
        what = f"The simulated accelerator, in cycle {outcome.cycle},"
        match _Status(outcome.status):
            case _Status.FAULT:
                raise MachineFault(Fault(outcome.fault), outcome.instruction)
            case _Status.STUCK:
                raise SimulatorStopped(f"{what} has moved nothing for {patience} cycles")
            case _Status.TOO_LONG:
                raise SimulatorStopped(f"{what} has not ended its passes within {limit} cycles")
            case _Status.READ_OUTSIDE:
                raise SimulatorStopped(
                    f"{what} reads {outcome.transfers} transfers from address "
                    f"{outcome.address:#x}, but the memory has {self._memory_bytes:#x} bytes")
            case _Status.WRITE_OUTSIDE:
                raise SimulatorStopped(
                    f"{what} writes to address {outcome.address:#x}, but the memory has "
                    f"{self._memory_bytes:#x} bytes")
            case _Status.TOO_MANY:
                raise SimulatorStopped(f"{what} delivers more integers than its program asks for")

    @staticmethod
    def _best(emission) -> TopKResult:
        return TopKResult(np.array(emission.rows[:emission.count], np.int64),
                          np.array(emission.values[:emission.count], np.int32),
                          emission.number, emission.exponent)

    def close(self) -> None:
        """Free the simulated accelerator and its memory; it cannot be used afterwards."""
        if self._accelerator is not None:
            self._library.tally_destroy(self._accelerator)
            self._accelerator = None

    def __enter__(self) -> "VerilatedAccelerator":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
