"""Everything on a board between its serial pins, without vendor parts: simulated as it is built."""

import dataclasses
import json

from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from hw.boards import Board
from hw.common.stream import connect_stream
from hw.formats.minifloat import bf16
from hw.link.frames import FrameReceiver, FrameTransmitter
from hw.link.protocol import HEADER_BYTES, PROTOCOL_VERSION, Transfers
from hw.link.target import LinkTarget
from hw.link.uart import UartReceiver, UartTransmitter
from hw.lmul.lmul import LMul
from hw.ternary.core import TernaryCore

__all__ = ["BoardSystem", "description"]


def description(board: Board) -> bytes:
    """Return the data of ``HELLO``: what a driver must know of the device, as JSON in ASCII."""
    return json.dumps({
        "protocol": PROTOCOL_VERSION,
        "board": board.name,
        "clock_hz": board.clock_hz,
        "payload_bytes": board.payload_bytes,
        "entry_queue": board.entry_queue,
        "lmul": bf16.name,
        "engine": dataclasses.asdict(board.config),
    }, separators=(",", ":")).encode("ascii")


class BoardSystem(wiring.Component):
    """Serial line, ternary engine and bf16 L-Mul unit.

    Parameters
    ----------
    board : Board
    watchdog_cycles : int
        Cycles after which a request that waits for the engine ends with an error. The longest wait
        in a correct sequence is for the engine to clear its accumulators, or to end a product.

    Members
    -------
    rx : In(1)
        Serial line from the host.
    tx : Out(1)
        Serial line to the host.
    """

    rx: Signal
    tx: Signal

    def __init__(self, board: Board, *, watchdog_cycles: int = 1 << 16):
        self.board = board
        self.watchdog_cycles = watchdog_cycles
        super().__init__({"rx": In(1), "tx": Out(1)})

    def elaborate(self, platform):
        m = Module()
        board = self.board
        core = TernaryCore(board.config)
        lmul = LMul(bf16)
        transfers = Transfers(board.config, bf16.width)
        content_bytes = board.payload_bytes + HEADER_BYTES

        m.submodules.uart_receiver = uart_receiver = UartReceiver(divisor=board.divisor)
        m.submodules.frame_receiver = frame_receiver = FrameReceiver(content_bytes=content_bytes)
        m.submodules.target = target = LinkTarget(
            transfers=transfers, description=description(board), payload_bytes=board.payload_bytes,
            entry_queue=board.entry_queue, watchdog_cycles=self.watchdog_cycles,
            shapes={
                "o_jobs": core.i_jobs.payload.shape(),
                "o_entries": core.i_entries.payload.shape(),
                "o_port": core.i_port.payload.shape(),
                "o_pairs": lmul.i.payload.shape(),
                "i_results": core.o_results.payload.shape(),
                "i_products": lmul.o.payload.shape(),
            })
        m.submodules.frame_transmitter = frame_transmitter = FrameTransmitter(
            content_bytes=content_bytes)
        m.submodules.uart_transmitter = uart_transmitter = UartTransmitter(divisor=board.divisor)
        m.submodules.core = ResetInserter(target.reset_engine)(core)
        m.submodules.lmul = ResetInserter(target.reset_engine)(lmul)

        for producer, consumer in (
                (uart_receiver.o, frame_receiver.i),
                (frame_receiver.o, target.i),
                (target.o, frame_transmitter.i),
                (frame_transmitter.o, uart_transmitter.i),
                (target.o_jobs, core.i_jobs),
                (target.o_entries, core.i_entries),
                (target.o_port, core.i_port),
                (core.o_results, target.i_results),
                (target.o_pairs, lmul.i),
                (lmul.o, target.i_products)):
            connect_stream(m, producer, consumer)
        m.d.comb += [
            uart_receiver.rx.eq(self.rx),
            self.tx.eq(uart_transmitter.tx),
            target.framing_error.eq(uart_receiver.error),
            target.bad_frame.eq(frame_receiver.bad_frame),
            frame_transmitter.repeat.eq(target.repeat),
            # The host knows the order of the columns: it made the list.
            core.o_columns.ready.eq(1),
        ]
        return m
