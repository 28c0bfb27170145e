"""Everything on a board between its serial pins, without vendor parts: simulated as it is built."""

import dataclasses
import json

from amaranth import *
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from hw.accelerator import Accelerator
from hw.arith.lmul import LMul
from hw.boards.board import AcceleratorBoard, Board, EngineBoard
from hw.boards.phase_stepper import PhaseStepper
from hw.common.stream import StreamBuffer, StreamQueue, connect_stream
from hw.engine.slice import EngineSlice
from hw.formats.minifloat import bf16
from hw.link.answers import Answers
from hw.link.frames import FrameReceiver, FrameTransmitter
from hw.link.image_loader import ImageLoader
from hw.link.protocol import (
    HEADER_BYTES,
    MEMORY_COUNTERS,
    PROTOCOL_VERSION,
    AcceleratorTransfers,
    EngineTransfers,
)
from hw.link.target import LinkTarget
from hw.link.uart import ByteSignature, UartReceiver, UartTransmitter
from hw.memory.arbiter import SharedPort
from hw.memory.block_ram_memory import BlockRamMemory
from hw.memory.crossing import PortCrossing
from hw.memory.monitor import PortMonitor
from hw.memory.sdram import SdramController, pins_signature

__all__ = ["BoardSystem", "LinkedDevice", "description"]


def description(board: Board) -> bytes:
    """Return the data of ``HELLO``: what a driver must know of the device, as JSON in ASCII."""
    facts = {
        "protocol": PROTOCOL_VERSION,
        "board": board.name,
        "clock_hz": board.clock_hz,
        "payload_bytes": board.payload_bytes,
    }
    if isinstance(board, AcceleratorBoard):
        facts |= {
            "configuration_hash": f"{board.config.configuration_hash():08x}",
            "memory_bytes": board.config.memory_bytes,
            "accelerator": board.config.facts(),
        } | ({"phase_steps": board.phase_steps} if board.phase_steps else {})
    elif isinstance(board, EngineBoard):
        facts |= {
            "entry_queue": board.entry_queue,
            "lmul": bf16.name,
            "engine": dataclasses.asdict(board.config),
        }
    return json.dumps(facts, separators=(",", ":")).encode("ascii")


def sdram_members(board: Board) -> dict[str, wiring.Member]:
    """Return the members of whoever has the pins of a board's SDRAM: none without one.

    With steps of its clock's phase there are outputs for PHASESTEP and PHASEDIR of the PLL.
    """
    if not isinstance(board, AcceleratorBoard) or board.sdram is None:
        return {}
    return {"sdram": Out(pins_signature(board.sdram))} | (
        {"phase_step": Out(1), "phase_back": Out(1)} if board.phase_steps else {})


class LinkedDevice(wiring.Component):
    """Frames, and behind the link either ternary engine and bf16 L-Mul unit, or an accelerator.

    Parameters
    ----------
    board : EngineBoard or AcceleratorBoard
    watchdog_cycles : int, optional
        Cycles after which a request that waits for the device ends with an error. The longest wait
        in a correct sequence is for the engine to clear its accumulators, or to end a product; for
        an accelerator to end a pass.

    Members
    -------
    i, o : In(stream), Out(stream) of {data: 8}
        Bytes from and to the host.
    framing_error : In(1)
        A byte was lost on the line.
    sdram : Out of :func:`hw.memory.sdram.pins_signature`
        Only of a board with SDRAM; in domain ``memory`` if that has a clock of its own.
    """

    i: stream.Interface
    o: stream.Interface
    framing_error: Signal
    sdram: wiring.PureInterface

    def __init__(self, board: EngineBoard | AcceleratorBoard, *,
                 watchdog_cycles: int | None = None):
        self.board = board
        self.watchdog_cycles = watchdog_cycles or (
            1 << (24 if isinstance(board, AcceleratorBoard) else 16))
        super().__init__({"i": In(ByteSignature), "o": Out(ByteSignature), "framing_error": In(1),
                          **sdram_members(board)})

    def elaborate(self, platform):
        m = Module()
        board = self.board
        target = (self._accelerator(m, board) if isinstance(board, AcceleratorBoard)
                  else self._engine(m, board))
        content_bytes = board.payload_bytes + HEADER_BYTES
        m.submodules.receiver = receiver = FrameReceiver(content_bytes=content_bytes)
        m.submodules.transmitter = transmitter = FrameTransmitter(content_bytes=content_bytes)
        requests = receiver.o
        if isinstance(board, AcceleratorBoard):
            # The target is drawn to the device, which fills the chip.
            m.submodules.requests = buffer = StreamBuffer(receiver.o.payload.shape())
            connect_stream(m, receiver.o, buffer.i)
            requests = buffer.o
        for producer, consumer in ((wiring.flipped(self.i), receiver.i), (requests, target.i),
                                   (target.o, transmitter.i),
                                   (transmitter.o, wiring.flipped(self.o))):
            connect_stream(m, producer, consumer)
        m.d.comb += [
            target.framing_error.eq(self.framing_error),
            target.bad_frame.eq(receiver.bad_frame),
            transmitter.repeat.eq(target.repeat),
        ]
        return m

    def _target(self, m, transfers, ends):
        """Join a target with the ends of the device's streams, by the names of the exchanges."""
        m.submodules.target = target = LinkTarget(
            exchanges=transfers.exchanges,
            shapes={name: end.payload.shape() for name, end in ends.items()},
            description=description(self.board), payload_bytes=self.board.payload_bytes,
            watchdog_cycles=self.watchdog_cycles)
        for name, end in ends.items():
            if f"o_{name}" in target.signature.members:
                connect_stream(m, getattr(target, f"o_{name}"), end)
            else:
                connect_stream(m, end, getattr(target, f"i_{name}"))
        return target

    def _engine(self, m, board: EngineBoard):
        slice_ = EngineSlice(board.config)
        lmul = LMul(bf16)
        # The host sends entries ahead of their weights.
        entries = StreamQueue(slice_.i_entries.payload.shape(), depth=board.entry_queue)
        target = self._target(m, EngineTransfers(board.config, bf16.width), {
            "jobs": slice_.i_jobs, "entries": entries.i, "port": slice_.i_port,
            "pairs": lmul.i, "results": slice_.o_results, "products": lmul.o})
        connect_stream(m, entries.o, slice_.i_entries)
        reset = ResetInserter(target.reset_device)
        m.submodules.slice = reset(slice_)
        m.submodules.lmul = reset(lmul)
        m.submodules.entries = reset(entries)
        m.d.comb += [
            target.begins.eq(slice_.i_entries.valid & slice_.i_entries.ready),
            target.works.eq(slice_.o_results.valid & slice_.o_results.ready),
            # The host knows the order of the columns: it made the list.
            slice_.o_columns.ready.eq(1),
        ]
        return target

    def _accelerator(self, m, board: AcceleratorBoard):
        config = board.config
        port = {"address_width": config.address_width, "port_bytes": config.port_bytes}
        accelerator = Accelerator(config)
        shared = SharedPort(**port, reads_ahead=config.queue_words)
        reset_device = Signal()
        memory, refreshing = self._memory(m, board, port, reset_device)
        answers = Answers(config)
        # They do not wait for the host, so a pass takes as long as it takes.
        queue = StreamQueue(answers.o.payload.shape(), depth=board.answer_queue)
        # The link may lie at the other end of the chip, and block RAM delivers late in its cycle.
        program = StreamBuffer(accelerator.i_program.payload.shape())
        tokens = StreamBuffer(accelerator.i_tokens.payload.shape())
        loader = ImageLoader(**port)
        monitor = PortMonitor(**port)
        writes = StreamBuffer(loader.i_data.payload.shape())
        reads = StreamBuffer(shared.i_reads.payload.shape())
        results = StreamBuffer(queue.o.payload.shape())
        ends = {"program": program.i, "tokens": tokens.i, "seek": loader.i_seek,
                "writes": writes.i, "mark": loader.i_mark, "marked": loader.o_mark,
                "reads": reads.i, "data": shared.o_data, "results": results.o}
        if board.phase_steps:
            # A reset of the device is none of the PLL.
            m.submodules.phase = phase = PhaseStepper()
            ends["phase"] = phase.i
            m.d.comb += [self.phase_step.eq(phase.step), self.phase_back.eq(phase.back)]
        target = self._target(m, AcceleratorTransfers(config, bool(board.phase_steps)), ends)
        for producer, consumer in ((program.o, accelerator.i_program),
                                   (tokens.o, accelerator.i_tokens),
                                   (writes.o, loader.i_data), (loader.o_writes, shared.i_writes),
                                   (reads.o, shared.i_reads),
                                   (accelerator.o_top_k, answers.i_top_k),
                                   (accelerator.o_scale, answers.i_scale),
                                   (accelerator.o_faults, answers.i_faults), (answers.o, queue.i),
                                   (queue.o, results.i)):
            connect_stream(m, producer, consumer)
        wiring.connect(m, accelerator.memory, shared.accelerator)
        wiring.connect(m, shared.memory, monitor.user)
        wiring.connect(m, monitor.memory, memory)
        # It outlives a reset of the device, as the memory does.
        m.submodules.loader = loader
        # Reads that a reset cuts off must not be answered behind it: the memory is reset too.
        m.d.comb += reset_device.eq(target.reset_device)
        reset = ResetInserter(reset_device)
        for name, unit in (("accelerator", accelerator), ("shared", shared),
                           ("monitor", monitor), ("program", program), ("tokens", tokens),
                           ("writes", writes), ("reads", reads), ("answers", answers),
                           ("queue", queue), ("results", results)):
            m.submodules[name] = reset(unit)
        working = Signal()
        m.d.sync += working.eq(tokens.o.valid | ~accelerator.i_tokens.ready)
        m.d.comb += [
            target.busy.eq(tokens.o.valid | working),
            target.begins.eq(tokens.o.valid & accelerator.i_tokens.ready),
            target.works.eq(~accelerator.i_tokens.ready),
            loader.program_written.eq(program.i.valid & program.i.ready),
            monitor.begins.eq(target.begins),
            monitor.busy.eq(target.works),
            monitor.refreshing.eq(refreshing),
            *(getattr(target, name).eq(getattr(monitor, name)) for name in MEMORY_COUNTERS),
        ]
        return target

    def _memory(self, m, board: AcceleratorBoard, port: dict[str, int], reset: Signal
                ) -> tuple[wiring.PureInterface, Value]:
        """Add the memory; return its port, and whether it begins a refresh."""
        config = board.config
        if board.sdram is None:
            memory = BlockRamMemory(**port, depth=config.memory_bytes // config.port_bytes,
                                    target=config.engine.target)
            m.submodules.memory = ResetInserter(reset)(memory)
            return memory.port, C(0)
        controller = SdramController(chip=board.sdram, clock_hz=board.sdram_hz, **port,
                                     target=config.engine.target,
                                     pin_cycles=board.sdram_pin_cycles)
        wiring.connect(m, controller.pins, wiring.flipped(self.sdram))
        if board.sdram_divider is None:
            m.submodules.memory = ResetInserter(reset)(controller)
            return controller.port, controller.refreshing
        m.submodules.crossing = crossing = PortCrossing(**port)
        m.submodules.memory = DomainRenamer("memory")(
            ResetInserter(crossing.memory_reset)(controller))
        wiring.connect(m, crossing.memory, controller.port)
        m.d.comb += [crossing.reset.eq(reset), crossing.pulse.eq(controller.refreshing)]
        return crossing.port, crossing.pulse_seen


class BoardSystem(wiring.Component):
    """Serial line, and the device behind it.

    Parameters
    ----------
    board, watchdog_cycles
        As of :class:`LinkedDevice`.

    Members
    -------
    rx : In(1)
        Serial line from the host.
    tx : Out(1)
        Serial line to the host.
    sdram : Out of :func:`hw.memory.sdram.pins_signature`
        Only of a board with SDRAM; in domain ``memory`` if that has a clock of its own.
    """

    rx: Signal
    tx: Signal
    sdram: wiring.PureInterface

    def __init__(self, board: EngineBoard | AcceleratorBoard, *,
                 watchdog_cycles: int | None = None):
        self.divisor = board.divisor
        self.device = LinkedDevice(board, watchdog_cycles=watchdog_cycles)
        super().__init__({"rx": In(1), "tx": Out(1), **sdram_members(board)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.device = device = self.device
        m.submodules.receiver = receiver = UartReceiver(divisor=self.divisor)
        m.submodules.transmitter = transmitter = UartTransmitter(divisor=self.divisor)
        connect_stream(m, receiver.o, device.i)
        connect_stream(m, device.o, transmitter.i)
        m.d.comb += [
            receiver.rx.eq(self.rx),
            self.tx.eq(transmitter.tx),
            device.framing_error.eq(receiver.error),
        ]
        members = sdram_members(self.device.board)
        if members:
            wiring.connect(m, device.sdram, wiring.flipped(self.sdram))
        for name in members.keys() - {"sdram"}:
            m.d.comb += getattr(self, name).eq(getattr(device, name))
        return m
