import dataclasses
import struct
import zlib

import numpy as np
import pytest
from cobs import cobs

from host.device import DeviceError, Driver, GoldenDevice
from host.link import Link, NoReplyError, StalledError
from host.serial_device import SerialDevice
from hw.boards import Board
from hw.config import EngineConfig
from hw.link.protocol import Command
from sim.serial_pins import build_board, serial_port
from sim.tools import ToolMissing

CONFIG = EngineConfig(lanes=8, accumulator_width=20, accumulator_depth=16, max_planes=3, max_batch=4,
                      index_width=10, packing="5in8", port_bytes=4, result_lanes=4)
BOARD = Board(name="simulated", platform="", clock_hz=4_000_000, baud=1_000_000, payload_bytes=400,
              entry_queue=32, config=CONFIG)
# Long enough for a simulation on a busy machine; where silence is expected, tests choose less.
PATIENCE = 60.0


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    try:
        program = build_board(BOARD, tmp_path_factory.mktemp("board"), watchdog_cycles=20_000)
    except ToolMissing as problem:
        pytest.skip(str(problem))
    with serial_port(program, BOARD.divisor) as path:
        yield path


@pytest.fixture
def device(port):
    device = SerialDevice(port, config=CONFIG, timeout=PATIENCE)
    yield device
    device.close()


def random_product(driver, golden, rng, rows, columns, planes=1, batch=1):
    largest = (3 ** planes - 1) // 2
    weights = rng.integers(-largest, largest + 1, (rows, columns))
    activations = rng.integers(-128, 128, (batch, columns)).astype(np.int8)
    activations[:, rng.random(columns) < 0.3] = 0
    name = f"{rows}x{columns}x{planes}x{batch}"
    for each in (driver, golden):
        each.load(name, weights)
    np.testing.assert_array_equal(driver(name, activations), golden(name, activations))


@pytest.mark.parametrize(("rows", "columns", "planes", "batch"), [
    (8, 8, 1, 1), (1, 1, 1, 1), (20, 70, 1, 1), (128, 40, 3, 1), (19, 100, 2, 3), (32, 20, 1, 4),
    (200, 9, 1, 1), (9, 30, 1, 9),
])
def test_products_equal_golden(device, rows, columns, planes, batch):
    rng = np.random.default_rng(rows * columns)
    random_product(Driver(device), Driver(GoldenDevice(CONFIG)), rng, rows, columns, planes, batch)
    assert device.counters.cycles > 0
    assert device.link.repetitions == 0
