# The driver in front of the simulated UART pins of a board: it does not know the difference.

import collections
import dataclasses
import enum
import os
import random
import re
import struct
import threading
import tty
import zlib

import numpy as np
import pytest
import serial
from cobs import cobs

from host.devices.engine import Driver, GoldenEngine
from host.devices.errors import DeviceError
from host.devices.link import Link, NoReplyError, StalledError
from host.devices.serial_engine import SerialEngine
from host.measure.soak import NoisyPort, soak_products
from hw.boards.board import EngineBoard
from hw.boards.catalog import BOARDS
from hw.config import EngineConfig
from hw.link.protocol import Command
from sim.fast.serial_pins import build_board, serial_port
from sim.tools import ToolMissing

CONFIG = EngineConfig(lanes=8, accumulator_width=20, accumulator_depth=16, max_planes=3,
                      max_batch=4, index_width=10, port_bytes=4, result_lanes=4)
BOARD = EngineBoard(name="simulated", platform="", clock_hz=5_000_000, baud=1_000_000,
                    payload_bytes=400, entry_queue=32, config=CONFIG)
# Seconds for a simulation on a busy machine; a test that waits for silence chooses less.
PATIENCE = 60.0


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    try:
        program = build_board(BOARD, tmp_path_factory.mktemp("board"), watchdog_cycles=20_000)
    except ToolMissing as problem:
        pytest.skip(str(problem))
    with serial_port(program, BOARD) as path:
        yield path


@pytest.fixture
def device(port):
    device = SerialEngine(port, config=CONFIG, timeout=PATIENCE)
    yield device
    device.close()


def check_product(device, rows, columns, planes=1, batch=1):
    rng = np.random.default_rng(rows * columns)
    largest = (3 ** planes - 1) // 2
    weights = rng.integers(-largest, largest + 1, (rows, columns))
    activations = rng.integers(-128, 128, (batch, columns)).astype(np.int8)
    activations[:, rng.random(columns) < 0.3] = 0
    activations[:, 0] = -128
    driver, golden = Driver(device), Driver(GoldenEngine(CONFIG))
    for each in (driver, golden):
        each.load("W", weights)
    np.testing.assert_array_equal(driver("W", activations), golden("W", activations))


@pytest.mark.parametrize(("rows", "columns", "planes", "batch"), [
    (8, 8, 1, 1), (1, 1, 1, 1), (20, 70, 1, 1), (128, 40, 3, 1), (19, 100, 2, 3), (32, 20, 1, 4),
    (200, 9, 1, 1), (9, 30, 1, 9),
])
def test_products_equal_golden(device, rows, columns, planes, batch):
    check_product(device, rows, columns, planes, batch)
    assert device.counters.cycles > 0
    assert device.link.repetitions == 0


def test_lmul_equals_golden(device):
    rng = np.random.default_rng(3)
    corners = np.array([0, 0x8000, 0x3f80, 0x7f80, 0xff80, 0x7fc0, 0x0001, 0x0080, 0x7f7f],
                       np.uint16)
    x = np.concatenate([np.repeat(corners, 9), rng.integers(0, 1 << 16, 200, dtype=np.uint16)])
    y = np.concatenate([np.tile(corners, 9), rng.integers(0, 1 << 16, 200, dtype=np.uint16)])
    np.testing.assert_array_equal(device.lmul(x, y), GoldenEngine(CONFIG).lmul(x, y))


def test_info_has_board_and_configuration(device):
    info = device.info()
    assert info["board"] == "simulated"
    assert info["clock_hz"] == 5_000_000
    assert info["configuration"] == dataclasses.asdict(CONFIG)


class FaultyPort(serial.Serial):
    """A port that spoils what is written or read, one time each for every entry of ``faults``."""

    faults: list[str]

    def write(self, data):
        fault = self.faults.pop(0) if self.faults else "none"
        middle = len(data) // 2
        garbage = random.Random(5).randbytes(40)
        super().write({
            "none": data,
            "garbage before": garbage + data,
            "garbage without zero before": bytes(b or 1 for b in garbage) + data,
            "garbage inside": data[:middle] + garbage + data[middle:],
            "dropped byte": data[:middle] + data[middle + 1:],
            "changed byte": data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1:],
            "wrong CRC": data[:-3] + bytes([data[-3] % 254 + 1]) + data[-2:],
            "dropped delimiters": data[1:-1],
            "added zero": data[:middle] + b"\x00" + data[middle:],
            "twice": data + data,
            "lost": b"",
            "lost reply": data,
        }[fault])
        self.lose_reply = fault == "lost reply"

    def read(self, size=1):
        data = super().read(size)
        return b"" if self.lose_reply else data


SPOILED = ["garbage inside", "dropped byte", "changed byte", "wrong CRC", "added zero",
           "dropped delimiters", "lost", "lost reply"]
HARMLESS = ["garbage before", "garbage without zero before", "twice"]


@pytest.fixture
def faulty(port, monkeypatch):
    monkeypatch.setattr(FaultyPort, "faults", [], raising=False)
    monkeypatch.setattr("host.devices.serial_board.serial.Serial", FaultyPort)
    device = SerialEngine(port, config=CONFIG, timeout=4.0)
    yield device
    device.close()


@pytest.mark.parametrize("fault", [*SPOILED, *HARMLESS])
def test_faults_on_the_line_change_nothing(faulty, fault):
    before = faulty.status()["executed"]
    FaultyPort.faults[:] = ["none", fault, "none", fault, "none"]
    check_product(faulty, 8, 20)
    executed = faulty.status()["executed"] - before
    # JOB, ENTRIES, WEIGHTS_LAST, RESULTS, STATUS, and the STATUS of this test: each once.
    assert executed == 6
    if fault in SPOILED:
        assert faulty.link.repetitions >= 2


def test_noise_makes_no_result_wrong(device):
    # Long enough for a busy machine, where a request takes most of its second.
    outcome = soak_products(device, 12.0, seed=3, rate=0.002, timeout=1.0)
    assert outcome.right > 2
    assert sum(outcome.faults.values()) > 5
    assert outcome.repetitions > 0
    assert (outcome.wrong, outcome.mismatches) == (0, [])


def test_noise_is_found_out_where_frames_are_not_checked(device, monkeypatch):
    """What the soak calls wrong: a driver that takes replies without their CRC."""
    def unchecked(code):
        try:
            frame = cobs.decode(code)
        except cobs.DecodeError:
            return None
        return frame[:-4] if len(frame) >= 6 else None

    monkeypatch.setattr("host.devices.link._verified", unchecked)
    flipped = collections.Counter()
    monkeypatch.setattr("host.measure.soak.FAULTS", ("flipped",))
    monkeypatch.setattr(NoisyPort, "write", lambda port, data: port._port.write(data))
    for seed in range(5):
        outcome = soak_products(device, 2.0, seed=seed, rate=0.02, timeout=1.0)
        flipped.update(outcome.faults)
        if outcome.wrong:
            break
    assert outcome.wrong > 0, flipped
    assert "is [" in outcome.mismatches[0]


@pytest.mark.parametrize("when", ["idle", "request", "reply"])
def test_unplugged_port_names_itself(port, monkeypatch, when):
    """The other end of the terminal closes, as when a plug is pulled."""
    master, slave = os.openpty()
    tty.setraw(slave)
    path = os.ttyname(slave)
    raw = serial.Serial(path)
    link = Link(raw, path, timeout=5.0)
    os.close(slave)
    if when == "idle":
        os.close(master)
    else:
        def pull():
            os.read(master, 1)
            if when == "reply":
                os.write(master, b"\x00\x05")
            os.close(master)
        threading.Thread(target=pull).start()
    message = (rf"^Serial port {path} was lost: .+; check its plug and open the device again$")
    for _ in range(2):
        with pytest.raises(DeviceError, match=message):
            link.request(Command.STATUS)
    raw.close()


def test_bad_frames_are_counted_and_not_answered(device, port):
    before = device.status()["bad_frames"]
    content = bytes([7, Command.RESET])
    frame = cobs.encode(content + struct.pack("<I", zlib.crc32(content) ^ 1))
    short = cobs.encode(b"\x07" + struct.pack("<I", zlib.crc32(b"\x07")))
    long = cobs.encode(bytes(2 * BOARD.payload_bytes))
    with serial.Serial(port, timeout=0.3) as raw:
        for each in (frame, short, long, b"\x05\x01", b"\xff"):
            raw.write(b"\x00" + each + b"\x00")
        assert raw.read(1) == b""
    assert device.status()["bad_frames"] == before + 5


def test_stalled_engine_is_an_error_and_the_next_product_is_right(device, monkeypatch, port):
    with monkeypatch.context() as patch:
        patch.setattr(device, "_stream_columns", lambda *arguments: None)
        message = (f"The engine behind {port} stalled in RESULTS; check that its bitstream was "
                   f"built from this version of the project")
        with pytest.raises(StalledError, match=f"^{re.escape(message)}$"):
            check_product(device, 10, 20)
    check_product(device, 10, 20)


def test_device_refuses_what_it_does_not_understand(device, port):
    class Unknown(enum.IntEnum):
        SING = 42

    refused = re.escape(f"The device on {port} refused")
    with pytest.raises(DeviceError, match=f"^{refused} SING: it does not know the command$"):
        device.link.request(Unknown.SING)
    with pytest.raises(DeviceError, match=f"^{refused} LMUL: the payload has the wrong length$"):
        device.link.request(Command.LMUL, b"\x00" * 6)
    for command, payload in ((Command.RESET, b"\x01"), (Command.JOB, b""),
                             (Command.RESULTS, b"\x01\x00\x00")):
        with pytest.raises(DeviceError, match=f"{command.name}: the payload has the wrong length$"):
            device.link.request(command, payload)
    check_product(device, 8, 5)


def test_other_configuration_names_the_fields(port, device):
    expected = dataclasses.replace(CONFIG, lanes=16, packing="3in5", target="ecp5")
    message = (f"The engine of board 'simulated' on {port} has another configuration: lanes must "
               f"be 16, not 8; packing must be '3in5', not '5in8'")
    with pytest.raises(DeviceError, match=f"^{re.escape(message)}$"):
        SerialEngine(port, config=expected, timeout=PATIENCE)


@pytest.mark.parametrize(("board", "advice"), [
    ("ulx3s", "'ulx3s'"), (None, "a board of 'python -m hw.build list'")])
def test_silence(board, advice):
    master, slave = os.openpty()
    try:
        path = os.ttyname(slave)
        message = f"No reply from {path} in 0.2 s; check that the bitstream for {advice} is loaded"
        with pytest.raises(NoReplyError, match=f"^{re.escape(message)}$"):
            SerialEngine(path, board=board, timeout=0.2)
    finally:
        os.close(master)
        os.close(slave)


def test_port_that_does_not_exist():
    with pytest.raises(DeviceError, match=r"^Serial port /dev/nothing cannot be opened: .*No such"):
        SerialEngine("/dev/nothing")


def test_unknown_board():
    message = f"^Board must be one of {', '.join(map(repr, BOARDS))}, not 'x'$"
    with pytest.raises(ValueError, match=message):
        SerialEngine("/dev/nothing", board="x")


@pytest.mark.parametrize(("answer", "problem"), [
    (b"OK", "does not describe itself as a board of this project"),
    (b"[]", "does not describe itself as a board of this project"),
    (b'{"protocol":9}', "must speak protocol version 2, not 9; build its bitstream again"),
])
def test_device_of_another_kind(device, port, monkeypatch, answer, problem):
    monkeypatch.setattr("host.devices.link.Link.request", lambda *arguments: answer)
    with pytest.raises(DeviceError, match=f"^{re.escape(f'The device on {port} {problem}')}$"):
        SerialEngine(port)
