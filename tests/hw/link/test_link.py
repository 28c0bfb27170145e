# amaranth: UnusedElaboratable=no

import dataclasses

import pytest
from amaranth.hdl import Shape
from amaranth.lib import data
from amaranth.sim import Simulator

from hw.boards.board import EngineBoard
from hw.boards.catalog import BOARDS
from hw.boards.system import description
from hw.common.stream import StreamQueue
from hw.config import AcceleratorConfig, EngineConfig
from hw.engine.slice import EngineSlice
from hw.isa import Fault
from hw.link.answers import Answers
from hw.link.frames import FrameReceiver, FrameTransmitter
from hw.link.protocol import (
    AcceleratorTransfers,
    Answer,
    EngineTransfers,
    encoded_bytes,
    transfer_bytes,
)
from hw.link.target import LinkTarget
from hw.link.uart import UartReceiver, UartTransmitter, uart_tolerance
from sim.golden.frames import encode_frame


@pytest.mark.parametrize("end", [UartReceiver, UartTransmitter])
def test_uart_divisor(end):
    with pytest.raises(ValueError, match=r"^UART divisor must be at least 5, so that a peer's "
                                         r"clock may be 3 % off, not 4$"):
        end(divisor=4)
    with pytest.raises(ValueError, match=r"^UART divisor must be a positive integer, not 0$"):
        end(divisor=0)


def test_every_permitted_divisor_takes_three_percent():
    assert min(uart_tolerance(4)) < 0.03
    for divisor in [*range(5, 1000), *(board.divisor for board in BOARDS.values())]:
        UartReceiver(divisor=divisor)
        assert min(uart_tolerance(divisor)) >= 0.03, divisor


@pytest.mark.parametrize("end", [FrameReceiver, FrameTransmitter])
def test_content_bytes(end):
    with pytest.raises(ValueError, match=r"^Content bytes must be a positive integer, not 0$"):
        end(content_bytes=0)


@pytest.mark.parametrize("size", [2, 249, 250, 251, 503, 504, 505, 600])
def test_encoded_bytes_bounds_every_frame(size):
    for content in (bytes(size), b"\x01" * size, b"\xff" * size):
        assert len(encode_frame(content)) - 2 <= encoded_bytes(size)


def test_transfers_of_the_default_configuration():
    transfers = EngineTransfers(EngineConfig(), 16)
    assert transfers.entry == (("index", 2), ("value", 1), ("end", 1))
    assert transfer_bytes(transfers.job) == 6
    assert transfer_bytes(transfers.weights) == 8
    assert transfer_bytes(transfers.result) == 8 * 3 + 1
    assert transfer_bytes(transfers.pair) == 4
    assert transfer_bytes(transfers.product) == 2


def test_transfers_of_a_accelerator():
    transfers = AcceleratorTransfers(AcceleratorConfig())
    assert transfer_bytes(transfers.instruction) == 18
    assert transfers.token == (("token", 2), ("start", 2))
    assert transfer_bytes(transfers.address + transfers.transfer) == 12
    assert transfers.result == (("kind", 1), ("index", 2), ("value", 3), ("last", 1))


@pytest.mark.parametrize("write", [0, 1])
def test_answers_tell_where_the_memory_failed(write):
    """Three transfers, held while nobody takes them; any other fault is one."""
    dut = Answers(AcceleratorConfig())
    answers = []

    async def give(ctx):
        for payload in ({"fault": Fault.MEMORY, "instruction": 300, "write": write, "response": 3,
                         "address": 0xfedc_ba98},
                        {"fault": Fault.NOT_FINITE, "instruction": 7}):
            ctx.set(dut.i_faults.payload, payload)
            ctx.set(dut.i_faults.valid, 1)
            await ctx.tick().until(dut.i_faults.ready)
        ctx.set(dut.i_faults.valid, 0)

    async def take(ctx):
        for k in range(12):
            ctx.set(dut.o.ready, k % 3 == 2)
            _, _, valid, ready, found = await ctx.tick().sample(dut.o.valid, dut.o.ready,
                                                                dut.o.p)
            if valid and ready:
                answers.append((found.kind, found.index, found.value, found.last))

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    for testbench in (give, take):
        simulator.add_testbench(testbench)
    simulator.run()
    value = 3 + 4 * write
    assert answers == [(Answer.ERROR, 0xba98, value, 0), (Answer.ERROR, 0xfedc, value, 0),
                       (Answer.FAULT, 300, Fault.MEMORY, 1), (Answer.FAULT, 7, Fault.NOT_FINITE, 1)]


ENGINE_BOARDS = [board for board in BOARDS.values() if isinstance(board, EngineBoard)]


@pytest.mark.parametrize("board", ENGINE_BOARDS, ids=[board.name for board in ENGINE_BOARDS])
def test_largest_job_of_a_board_fits_its_transfer(board):
    accelerator = EngineSlice(board.config)
    sizes = dict(EngineTransfers(board.config, 16).job)
    for name, field in accelerator.i_jobs.payload.shape():
        assert Shape.cast(field.shape).width <= 8 * sizes[name]


def link_target(transfers=None, **changes):
    accelerator = EngineSlice(EngineConfig())
    shapes = {"jobs": accelerator.i_jobs, "entries": accelerator.i_entries,
              "port": accelerator.i_port, "results": accelerator.o_results}
    parameters = {
        "exchanges": (transfers or EngineTransfers(EngineConfig(), 16)).exchanges,
        "description": b"{}", "payload_bytes": 64, "watchdog_cycles": 100,
        "shapes": {name: interface.payload.shape() for name, interface in shapes.items()} | {
            "pairs": data.StructLayout({"x": 16, "y": 16}),
            "products": data.StructLayout({"product": 16})}}
    return LinkTarget(**parameters | changes)


@pytest.mark.parametrize(("changes", "message"), [
    ({"transfers": EngineTransfers(EngineConfig(index_width=8), 16)},
     "Field index must have at most 8 bits on the link, not 16"),
    ({"transfers": EngineTransfers(EngineConfig(accumulator_width=20, result_lanes=4), 8)},
     "Field x must have at most 8 bits on the link, not 16"),
    ({"description": bytes(65)}, "Description must have at most 64 bytes, not 65"),
    ({"payload_bytes": 0}, "Payload bytes must be a positive integer, not 0"),
    ({"watchdog_cycles": 0}, "Watchdog cycles must be a positive integer, not 0"),
])
def test_target_parameters(changes, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        link_target(**changes)


def test_queue_depth():
    with pytest.raises(ValueError, match=r"^Queue depth must be a positive integer, not 0$"):
        StreamQueue(data.StructLayout({"x": 1}), depth=0)


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
