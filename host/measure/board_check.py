"""Is a board sound? Its link, every byte of its memory, and tokens that are known."""

import dataclasses
import time
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from host.compiler.compile import compile_model
from host.devices.checked import CheckedTokens, MismatchError
from host.devices.serial_accelerator import SerialAccelerator
from host.models.examples import tiny_model
from hw.boards.board import AcceleratorBoard

__all__ = ["Check", "check_board"]

#: Requests of the link's check, and tokens of the last one.
_ROUND_TRIPS, _TOKENS = 64, 16

#: Transfers of the memory that are tried at each phase of its clock.
_PHASE_TRANSFERS = 16

#: Bytes that are written, or read, between two reports.
_CHUNK = 1 << 16

Report = Callable[[float, str], None]


@dataclasses.dataclass(frozen=True)
class Check:
    """Outcome of a check.

    Attributes
    ----------
    name : str
    passed : bool
    value : str
        What was measured, or what is wrong.
    note : str
        Of how much, or what the fault points to.
    """

    name: str
    passed: bool
    value: str
    note: str


def check_board(accelerator: SerialAccelerator, memory_bytes: int,
                board: AcceleratorBoard | None = None, report: Report | None = None
                ) -> Iterator[Check]:
    """Check a board, and yield the outcomes as they come; its image is overwritten.

    Parameters
    ----------
    accelerator : SerialAccelerator
    memory_bytes : int
        How much of the memory is written and read, from address 0 on.
    board : AcceleratorBoard, optional
        What the board is: its refreshes are counted then.
    report : callable, optional
        Called with the share of a memory check that is done, and what is under way.

    Raises
    ------
    DeviceError
        If the board does not answer.
    """
    report = report or (lambda share, what: None)
    yield _check_link(accelerator)
    if accelerator.phase_steps:
        yield _check_phase(accelerator, report)
    sound = True
    for name, pattern in (("addresses", _addresses), ("inverted addresses", _inverted),
                          ("pseudo-random bytes", _random)):
        found = _check_memory(accelerator, memory_bytes, name, pattern, report)
        sound &= found.passed
        yield found
    if sound:
        yield from _check_tokens(accelerator, board)


def _check_link(accelerator: SerialAccelerator) -> Check:
    before, began = accelerator.link.repetitions, time.perf_counter()
    for _ in range(_ROUND_TRIPS):
        accelerator.status()
    rate = _ROUND_TRIPS / (time.perf_counter() - began)
    errors = accelerator.link.repetitions - before
    counted = accelerator.status()
    return Check("Link", errors == 0, f"{rate:,.0f} round trips a second",
                 f"{errors} requests repeated; the board counts {counted['bad_frames']} bad frames "
                 f"and {counted['framing_errors']} bytes without a stop bit")


def _check_phase(accelerator: SerialAccelerator, report: Report) -> Check:
    """Turn the phase of the memory's clock once around, and find where the memory works."""
    name, turn = "Memory clock", accelerator.phase_steps
    works = []
    for step in range(turn):
        report(step / turn, "turning the phase of the memory's clock")
        works.append(_memory_works(accelerator))
        accelerator.move_phase(1)
    degrees = 360 / turn
    if all(works):
        return Check(name, True, "right at every phase", f"{turn} phases")
    if not any(works):
        return Check(name, False, "right at no phase", f"{turn} phases; the memory is not there, "
                                                       f"not connected as it must be, or too slow")
    # The arc of right phases around the one that was built, or else the longest.
    arcs = _arcs(works)
    first, last = next((arc for arc in arcs if arc[0] <= 0 <= arc[1]),
                       max(arcs, key=lambda arc: arc[1] - arc[0]))
    middle = (first + last) / 2
    passed = first < 0 < last
    return Check(name, passed,
                 f"right from {degrees * first:+.4g} to {degrees * last:+.4g} degrees",
                 f"of the phase that was built; the middle is at {degrees * middle:+.4g}"
                 + ("" if passed else ": change sdram_clock_phase of the board by as much, and "
                                      "build it again"))


def _arcs(works: list[bool]) -> list[tuple[int, int]]:
    """Return first and last index of each arc of true ones in a circle, around 0 if they can be.

    At least one is false, and at least one is true.
    """
    turn, arcs = len(works), []
    for first in range(turn):
        if works[first] and not works[first - 1]:
            length = next(n for n in range(turn) if not works[(first + n) % turn])
            arcs.append((first, first + length - 1))
    return [(first, last) if (first + last) / 2 <= turn / 2 else (first - turn, last - turn)
            for first, last in arcs]


def _memory_works(accelerator: SerialAccelerator) -> bool:
    """Write and read some places of the memory, each of whose bits is once 0 and once 1."""
    size = max(4, accelerator.config.port_bytes) * _PHASE_TRANSFERS
    for sign in (0, 0xff):
        pattern = bytes(byte ^ sign for byte in _part(_random, 0, size).tobytes())
        accelerator.write(0, pattern)
        if accelerator.read(0, size) != pattern:
            return False
    return True


# Patterns: the bytes of some words of 4 bytes, by their addresses.

def _addresses(addresses: NDArray[np.uint32]) -> NDArray[np.uint32]:
    return addresses


def _inverted(addresses: NDArray[np.uint32]) -> NDArray[np.uint32]:
    return ~addresses


def _random(addresses: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Mix the bits of an address (the finalizer of MurmurHash3): any part can be made alone."""
    x = addresses.astype(np.uint64)
    for shift, factor in ((16, 0x85ebca6b), (13, 0xc2b2ae35)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor) & np.uint64(0xffffffff)
    return (x ^ (x >> np.uint64(16))).astype(np.uint32)


def _check_memory(accelerator: SerialAccelerator, size: int, name: str,
                  pattern: Callable[[NDArray[np.uint32]], NDArray[np.uint32]],
                  report: Report) -> Check:
    """Write a pattern over all bytes, then read them back."""
    what = f"Memory, {name}"
    began = time.perf_counter()
    for first in range(0, size, _CHUNK):
        report(first / size / 2, f"writing {name}")
        accelerator.write(first, _part(pattern, first, size).tobytes())
    writing, began = time.perf_counter() - began, time.perf_counter()
    for first in range(0, size, _CHUNK):
        report(0.5 + first / size / 2, f"reading {name}")
        wanted = _part(pattern, first, size)
        found = np.frombuffer(accelerator.read(first, 4 * wanted.size), "<u4")
        wrong = np.flatnonzero(found != wanted)
        if wrong.size:
            at = int(wrong[0])
            address, expected, actual = first + 4 * at, int(wanted[at]), int(found[at])
            return Check(what, False, f"address {address:#x} holds {actual:#010x}, "
                                      f"not {expected:#010x}",
                         _diagnosis(accelerator, size, name, wanted, found, wrong))
    reading = time.perf_counter() - began
    return Check(what, True, f"{size:,} bytes right",
                 f"written at {size / writing / 1e6:.2f} MB/s, read at {size / reading / 1e6:.2f}")


def _part(pattern: Callable[[NDArray[np.uint32]], NDArray[np.uint32]], first: int,
          size: int) -> NDArray[np.uint32]:
    return pattern(np.arange(first, min(first + _CHUNK, size), 4, dtype=np.uint32))


def _diagnosis(accelerator: SerialAccelerator, size: int, name: str, wanted: NDArray[np.uint32],
               found: NDArray[np.uint32], wrong: NDArray[np.intp]) -> str:
    """Say what wrong words point to."""
    differ = wanted[wrong] ^ found[wrong]
    first = int(differ[0])
    if (differ == first).all() and first.bit_count() == 1:
        bit = first.bit_length() - 1
        # A word that differs in a bit of its address may have been written for another address.
        if name == "addresses" and bit in _aliases(accelerator, size):
            return (f"bit {bit} of the address does nothing: an address line is stuck or not "
                    f"connected")
        return f"data bit {bit} of a word of 32 is wrong wherever anything is"
    if wrong.size > wanted.size // 2:
        return ("most words are wrong: the memory's data are taken at the wrong time (phase of its "
                "clock), or it is not there")
    return f"{wrong.size:,} of {wanted.size:,} words around it are wrong"


def _aliases(accelerator: SerialAccelerator, size: int) -> list[int]:
    """Find bits of the address that change nothing."""
    port, found = accelerator.config.port_bytes, []
    for bit in range(port.bit_length() - 1, (size - 1).bit_length()):
        for address, value in ((0, 0x55), (1 << bit, 0xaa)):
            accelerator.write(address, bytes([value]) * port)
        if accelerator.read(0, port) == bytes([0xaa]) * port:
            found.append(bit)
    return found


def _check_tokens(accelerator: SerialAccelerator, board: AcceleratorBoard | None
                  ) -> Iterator[Check]:
    """Let a small random model make tokens that the golden machine knows."""
    image = compile_model(tiny_model(width=32, ffn_width=64, layers=1), accelerator.config)
    accelerator.load(image)
    checked, cycles, before = CheckedTokens(accelerator, image), 0, accelerator.refreshes
    token = 1
    try:
        for index in range(_TOKENS):
            result = checked.token(token, new=index == 0)
            cycles += result.cycles
            token = int(result.top_k[0].rows[0])
    except MismatchError as error:
        yield Check("Known tokens", False, "a logit differs", str(error))
        return
    yield Check("Known tokens", True, f"{_TOKENS} tokens right", f"{checked.checked:,} logits")
    if board is not None and board.sdram is not None:
        refreshes = accelerator.refreshes - before
        due = (cycles * board.sdram.refresh_rows * 1e6
               / (board.clock_hz * board.sdram.refresh_us))
        # They come in groups of a few, none of which need lie in a short pass.
        right = 0.5 * due - 8 <= refreshes <= 2 * due + 8 and refreshes > 0
        yield Check("Refreshes", right, f"{refreshes:,} in {cycles:,} cycles",
                    f"{due:,.0f} are due" + ("" if right else ": the memory is not refreshed as it "
                                             "must be and will forget"))
