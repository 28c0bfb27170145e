"""A board behind a serial line that drops, changes and repeats bytes: no result may be wrong.

The board is simulated from its UART pins on, the driver is the one that users have. Bytes of
requests and of replies are spoiled at random; each result is compared with the golden model's.
"""

import collections
import contextlib
import dataclasses
import importlib.metadata
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from host.compiler.compile import compile_model
from host.devices.checked import CheckedTokens
from host.devices.engine import Driver, GoldenEngine
from host.devices.errors import DeviceError, MismatchError
from host.devices.link import BytePort, Link
from host.devices.serial_accelerator import SerialAccelerator
from host.devices.serial_engine import SerialEngine
from host.models.examples import tiny_model
from hw.boards.board import AcceleratorBoard, EngineBoard
from hw.config import AcceleratorConfig, EngineConfig
from hw.records import write_record

__all__ = ["BOARDS", "FAULTS", "NoisyPort", "Outcome", "soak", "soak_products", "soak_tokens",
           "write_outcomes"]

#: What happens to bytes on the line. A byte is dropped, one of its bits is flipped, or it comes
#: twice; what was written or read at once comes a second time, or not at all.
FAULTS = ("dropped", "flipped", "doubled", "replayed", "swallowed")

_ACCELERATOR = AcceleratorConfig(
    engine=EngineConfig(lanes=8, accumulator_width=20, accumulator_depth=64, max_planes=3,
                        max_batch=1, index_width=9, port_bytes=8, result_lanes=4),
    vector_depth=512, program_depth=128, list_depth=64, queue_words=64, top_k=5, address_width=14)
_ENGINE = EngineConfig(lanes=8, accumulator_width=20, accumulator_depth=16, max_planes=3,
                       max_batch=4, index_width=10, port_bytes=4, result_lanes=4)
#: The boards that are simulated, by what they hold.
BOARDS: dict[str, EngineBoard | AcceleratorBoard] = {
    "engine": EngineBoard(name="engine", platform="", clock_hz=5_000_000, baud=1_000_000,
                          payload_bytes=400, entry_queue=32, config=_ENGINE),
    "accelerator": AcceleratorBoard(name="accelerator", platform="", clock_hz=5_000_000,
                                    baud=1_000_000, config=_ACCELERATOR),
}

#: Cycles after which a board gives a request up: no wait of these boards takes as long.
_WATCHDOG_CYCLES = 20_000

#: Seconds until a request without noise fails: the simulation may be slow.
_PATIENCE = 60.0


class NoisyPort:
    """A byte port that spoils what goes through it.

    Parameters
    ----------
    port : BytePort
        What it is in front of.
    rng : random.Random
    rate : float
        Faults for each byte, in either direction.

    Attributes
    ----------
    faults : Counter
        Of each of :data:`FAULTS`, how often it happened.
    """

    def __init__(self, port: BytePort, rng: random.Random, *, rate: float):
        self._port, self._rng, self._rate = port, rng, rate
        self.faults: collections.Counter[str] = collections.Counter()

    @property
    def timeout(self) -> float | None:
        """Seconds that a read waits."""
        return self._port.timeout

    @timeout.setter
    def timeout(self, seconds: float | None) -> None:
        self._port.timeout = seconds

    @property
    def in_waiting(self) -> int:
        """Bytes that can be read without waiting."""
        return self._port.in_waiting

    def read(self, size: int) -> bytes:
        """Return up to ``size`` bytes, or some more or less."""
        return self._spoiled(self._port.read(size))

    def write(self, data: bytes) -> int | None:
        """Send ``data``, more or less."""
        return self._port.write(self._spoiled(data))

    def _spoiled(self, data: bytes) -> bytes:
        spoiled, position = bytearray(data), 0
        while (position := position + int(self._rng.expovariate(self._rate))) < len(spoiled):
            kind = self._rng.choice(FAULTS)
            self.faults[kind] += 1
            match kind:
                case "dropped":
                    del spoiled[position]
                case "flipped":
                    spoiled[position] ^= 1 << self._rng.randrange(8)
                case "doubled":
                    spoiled.insert(position, spoiled[position])
                case "replayed":
                    spoiled += data
                case "swallowed":
                    spoiled.clear()
            position += 1
        return bytes(spoiled)


@dataclasses.dataclass(kw_only=True)
class Outcome:
    """What came of a line.

    Attributes
    ----------
    device : str
        ``engine`` or ``accelerator``.
    seconds : float
    right, wrong : int
        Results that were equal to the golden model's, and that were not.
    errors : int
        Results that an error was reported for, in place of them.
    repetitions : int
        Requests sent again.
    dropped_frames : int
        Replies that were broken, or to other requests.
    faults : dict of str to int
        Of each kind, how often it happened.
    mismatches : list of str
        What was wrong.
    """

    device: str
    seconds: float
    right: int = 0
    wrong: int = 0
    errors: int = 0
    repetitions: int = 0
    dropped_frames: int = 0
    faults: dict[str, int] = dataclasses.field(default_factory=dict)
    mismatches: list[str] = dataclasses.field(default_factory=list)


def _soak(device: str, link: Link, seconds: float, seed: int, rate: float, timeout: float,
          one: Callable[[random.Random], None]) -> Outcome:
    """Spoil the line of ``link`` while ``one`` gets results; it raises MismatchError."""
    outcome = Outcome(device=device, seconds=seconds)
    rng = random.Random(seed)
    quiet, patience = link.port, link.timeout
    before = link.repetitions, link.dropped_frames
    noisy = NoisyPort(quiet, random.Random(seed + 1), rate=rate)
    link.port, link.timeout = noisy, timeout
    end = time.monotonic() + seconds
    try:
        while time.monotonic() < end:
            try:
                one(rng)
                outcome.right += 1
            except MismatchError as error:
                outcome.wrong += 1
                outcome.mismatches.append(str(error))
            except DeviceError:
                outcome.errors += 1
    finally:
        link.port, link.timeout = quiet, patience
    outcome.repetitions = link.repetitions - before[0]
    outcome.dropped_frames = link.dropped_frames - before[1]
    outcome.faults = {kind: noisy.faults[kind] for kind in FAULTS}
    return outcome


def soak_products(device: SerialEngine, seconds: float, *, seed: int, rate: float,
                  timeout: float) -> Outcome:
    """Get products of random matrices and L-Mul products through a noisy line."""
    rng = np.random.default_rng(seed)
    drivers = Driver(device), Driver(GoldenEngine(device.config))
    shapes = {"small": (9, 12, 1, 1), "planes": (20, 40, 3, 1), "batch": (30, 25, 1, 3)}
    for name, (rows, columns, planes, _) in shapes.items():
        largest = (3 ** planes - 1) // 2
        weights = rng.integers(-largest, largest + 1, (rows, columns))
        for driver in drivers:
            driver.load(name, weights)
    golden = GoldenEngine(device.config)

    def one(choose: random.Random) -> None:
        name = choose.choice([*shapes, "lmul"])
        if name == "lmul":
            pairs = rng.integers(0, 1 << 16, (2, 40), dtype=np.uint16)
            results: list[NDArray] = [each.lmul(*pairs) for each in (device, golden)]
        else:
            _, columns, _, batch = shapes[name]
            activations = rng.integers(-128, 128, (batch, columns)).astype(np.int8)
            activations[:, rng.random(columns) < 0.3] = 0
            results = [driver(name, activations) for driver in drivers]
        found, wanted = results
        if not np.array_equal(found, wanted):
            raise MismatchError(f"Product {name} is {found.tolist()}, not {wanted.tolist()}")

    return _soak("engine", device.link, seconds, seed, rate, timeout, one)


def soak_tokens(accelerator: SerialAccelerator, seconds: float, *, seed: int, rate: float,
                timeout: float) -> Outcome:
    """Get logits of a small model through a noisy line; the model is loaded through a good one."""
    image = compile_model(tiny_model(width=16, ffn_width=32, layers=1), accelerator.config)
    accelerator.load(image)
    checked: CheckedTokens | None = None

    def one(choose: random.Random) -> None:
        nonlocal checked
        new = checked is None or choose.random() < 0.2
        if new:
            checked = CheckedTokens(accelerator, image)
        assert checked is not None
        working, checked = checked, None        # behind an error a sequence begins
        working.token(choose.randrange(image.vocab), new=new)
        checked = working

    return _soak("accelerator", accelerator.link, seconds, seed, rate, timeout, one)


@contextlib.contextmanager
def _opened(name: str) -> Iterator[SerialEngine | SerialAccelerator]:
    """Simulate a board and open it."""
    # Imported where it is asked for: a board needs no simulator.
    from sim.fast.serial_pins import build_board, serial_port
    board = BOARDS[name]
    with tempfile.TemporaryDirectory() as folder:
        program = build_board(board, Path(folder), watchdog_cycles=_WATCHDOG_CYCLES)
        with serial_port(program, board) as port:
            device = (SerialAccelerator if isinstance(board, AcceleratorBoard) else SerialEngine)(
                port, timeout=_PATIENCE)
            try:
                yield device
            finally:
                device.close()


def soak(name: str, seconds: float, *, seed: int, rate: float, timeout: float) -> Outcome:
    """Simulate one of :data:`BOARDS` and use it through a noisy line.

    Parameters
    ----------
    name : str
    seconds : float
        Of noise; the board is built before.
    seed : int
    rate : float
        Faults for each byte.
    timeout : float
        Seconds until a request fails; it is sent four times in these.

    Raises
    ------
    ToolMissing
        If Verilator, or what it needs, is not installed.
    """
    with _opened(name) as device:
        if isinstance(device, SerialAccelerator):
            return soak_tokens(device, seconds, seed=seed, rate=rate, timeout=timeout)
        return soak_products(device, seconds, seed=seed, rate=rate, timeout=timeout)


def write_outcomes(command: str, outcomes: list[Outcome], **configuration: object) -> Path:
    """Keep the record docs/results/link_soak.json."""
    rows = []
    for outcome in outcomes:
        row = dataclasses.asdict(outcome)
        del row["mismatches"]
        rows.append(row | row.pop("faults"))
    versions = {name: importlib.metadata.version(name)
                for name in ("amaranth", "verilator", "pyserial", "cobs")}
    return write_record("link_soak", maker="host soak", command=command, versions=versions,
                        configuration=dict(configuration), rows=rows, key=("device",),
                        keep=lambda row: row["device"] in BOARDS)
