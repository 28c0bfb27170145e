# amaranth: UnusedElaboratable=no

import dataclasses

import pytest
from amaranth.hdl import Shape
from amaranth.lib import data

from hw.boards import BOARDS
from hw.boards.system import description
from hw.config import EngineConfig
from hw.link.frames import FrameReceiver, FrameTransmitter
from hw.link.protocol import Transfers, encoded_bytes, transfer_bytes
from hw.link.target import LinkTarget
from hw.link.uart import UartReceiver, UartTransmitter
from hw.ternary.core import TernaryCore
from sim.golden.frames import encode_frame


@pytest.mark.parametrize("end", [UartReceiver, UartTransmitter])
def test_uart_divisor(end):
    with pytest.raises(ValueError, match=r"^UART divisor must be at least 4, not 3$"):
        end(divisor=3)
    with pytest.raises(ValueError, match=r"^UART divisor must be a positive integer, not 0$"):
        end(divisor=0)


@pytest.mark.parametrize("end", [FrameReceiver, FrameTransmitter])
def test_content_bytes(end):
    with pytest.raises(ValueError, match=r"^Content bytes must be a positive integer, not 0$"):
        end(content_bytes=0)


@pytest.mark.parametrize("size", [2, 249, 250, 251, 503, 504, 505, 600])
def test_encoded_bytes_bounds_every_frame(size):
    for content in (bytes(size), b"\x01" * size, b"\xff" * size):
        assert len(encode_frame(content)) - 2 <= encoded_bytes(size)


def test_transfers_of_the_default_configuration():
    transfers = Transfers(EngineConfig(), 16)
    assert transfers.entry == (("index", 2), ("value", 1), ("end", 1))
    assert transfer_bytes(transfers.job) == 6
    assert transfer_bytes(transfers.weights) == 8
    assert transfer_bytes(transfers.result) == 8 * 3 + 1
    assert transfer_bytes(transfers.pair) == 4
    assert transfer_bytes(transfers.product) == 2


@pytest.mark.parametrize("board", BOARDS.values(), ids=list(BOARDS))
def test_largest_job_of_a_board_fits_its_transfer(board):
    core = TernaryCore(board.config)
    sizes = dict(Transfers(board.config, 16).job)
    for name, field in core.i_jobs.payload.shape():
        assert Shape.cast(field.shape).width <= 8 * sizes[name]


def link_target(**changes):
    core = TernaryCore(EngineConfig())
    shapes = {"o_jobs": core.i_jobs, "o_entries": core.i_entries, "o_port": core.i_port,
              "i_results": core.o_results}
    parameters = {
        "transfers": Transfers(EngineConfig(), 16), "description": b"{}", "payload_bytes": 64,
        "entry_queue": 16, "watchdog_cycles": 100,
        "shapes": {name: interface.payload.shape() for name, interface in shapes.items()} | {
            "o_pairs": data.StructLayout({"x": 16, "y": 16}),
            "i_products": data.StructLayout({"product": 16})}}
    return LinkTarget(**parameters | changes)


@pytest.mark.parametrize(("changes", "message"), [
    ({"transfers": Transfers(EngineConfig(index_width=8), 16)},
     "Field index must have at most 8 bits on the link, not 16"),
    ({"transfers": Transfers(EngineConfig(accumulator_width=20, result_lanes=4), 8)},
     "Field x must have at most 8 bits on the link, not 16"),
    ({"description": bytes(65)}, "Description must have at most 64 bytes, not 65"),
    ({"payload_bytes": 0}, "Payload bytes must be a positive integer, not 0"),
    ({"entry_queue": 0}, "Entry queue must be a positive integer, not 0"),
    ({"watchdog_cycles": 0}, "Watchdog cycles must be a positive integer, not 0"),
])
def test_target_parameters(changes, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        link_target(**changes)


@pytest.mark.parametrize(("name", "value", "message"), [
    ("entry_queue", 0, "Board field entry_queue must be a positive integer, not 0"),
    ("baud", 7, "Baud rate of board ulx3s must divide its clock of 75000000 Hz, not be 7"),
])
def test_board_fields(name, value, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        dataclasses.replace(BOARDS["ulx3s"], **{name: value})


def test_description_fits_a_reply_of_every_board():
    for board in BOARDS.values():
        assert len(description(board)) <= board.payload_bytes
