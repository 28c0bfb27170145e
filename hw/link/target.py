"""The device's end of the link: executes the requests of frames on streams."""

from amaranth import *
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.wiring import In, Out

from hw.common.check import positive_int
from hw.link.frames import FrameSignature
from hw.link.protocol import (
    COUNT_BYTES,
    COUNTERS,
    Command,
    Fields,
    Status,
    Transfers,
    transfer_bytes,
)

__all__ = ["LinkTarget"]

#: Commands that push transfers into a stream, and those that have no payload.
_PUSHING = (Command.JOB, Command.ENTRIES, Command.WEIGHTS, Command.WEIGHTS_LAST, Command.LMUL)
_PLAIN = (Command.HELLO, Command.RESET, Command.STATUS)


def _leaves(view) -> list[Value]:
    """Values of a payload's fields in order, those of an array one by one."""
    leaves: list[Value] = []
    for name, field in view.shape():
        if isinstance(field.shape, data.ArrayLayout):
            leaves += [view[name][k] for k in range(field.shape.length)]
        else:
            leaves.append(view[name])
    return leaves


def _unpack(fields: Fields, packed: Value, payload) -> list:
    """Assign the fields in the bytes ``packed`` to the payload of a stream."""
    statements, start = [], 0
    for (_, size), leaf in zip(fields, _leaves(payload), strict=False):
        statements.append(leaf.eq(packed[start:start + len(leaf)]))
        start += 8 * size
    return statements


def _pack(fields: Fields, payload) -> Value:
    """Return the bytes of a payload; signed fields are sign-extended."""
    parts = []
    for (_, size), leaf in zip(fields, _leaves(payload), strict=True):
        sign = leaf[-1] if leaf.shape().signed else Const(0)
        parts.append(Cat(leaf, sign.replicate(8 * size - len(leaf))))
    return Cat(parts)


def _check_widths(fields: Fields, layout: data.StructLayout) -> None:
    """Raise ``ValueError`` if a field of a stream is wider than its bytes on the link."""
    sizes = dict(fields)
    for name, field in layout:
        shape = field.shape.elem_shape if isinstance(field.shape, data.ArrayLayout) else field.shape
        width = Shape.cast(shape).width
        if name in sizes and width > 8 * sizes[name]:
            raise ValueError(f"Field {name} must have at most {8 * sizes[name]} bits on the link, "
                             f"not {width}")


class LinkTarget(wiring.Component):
    """Requests in, replies out, and between them the streams of the engine and of the L-Mul unit.

    A request is executed as its bytes come from the frame buffer, so only whole, verified frames
    reach the streams. A transfer that is not accepted, or does not come, within ``watchdog_cycles``
    ends the request with :attr:`Status.STALLED`; its ``valid`` is then withdrawn, which no stream
    may do otherwise, and ``RESET`` must follow.

    Parameters
    ----------
    transfers : Transfers
        Fields of the transfers.
    shapes : dict of str to layout
        Payload of each stream to the engine and the L-Mul unit, by the member's name.
    description : bytes
        Data of ``HELLO``.
    payload_bytes : int
        Longest payload of a request and longest data of a reply.
    entry_queue : int
        Entries that the engine may be given before their weights.
    watchdog_cycles : int
        Cycles without progress after which a request ends.

    Members
    -------
    i : In(stream) of {data: 8, last: 1}
        Contents of requests, at least two bytes each.
    o : Out(stream) of {data: 8, last: 1}
        Contents of replies.
    repeat : Out(1)
        Asks the frame transmitter for the latest reply again.
    bad_frame, framing_error : In(1)
        Events to count.
    reset_engine : Out(1)
        High for one cycle: the engine and the L-Mul unit start anew.
    o_jobs, o_entries, o_port, o_pairs : Out(stream)
        To the engine and to the L-Mul unit.
    i_results, i_products : In(stream)
        From them.

    Raises
    ------
    ValueError
        If a parameter is not a positive integer, the description does not fit a reply, or a field
        is wider on a stream than in its transfer.
    """

    i: stream.Interface
    o: stream.Interface
    repeat: Signal
    bad_frame: Signal
    framing_error: Signal
    reset_engine: Signal
    o_jobs: stream.Interface
    o_entries: stream.Interface
    o_port: stream.Interface
    o_pairs: stream.Interface
    i_results: stream.Interface
    i_products: stream.Interface

    def __init__(self, *, transfers: Transfers, shapes: dict[str, data.StructLayout],
                 description: bytes, payload_bytes: int, entry_queue: int,
                 watchdog_cycles: int):
        self.transfers = transfers
        self.payload_bytes = positive_int("Payload bytes", payload_bytes)
        self.entry_queue = positive_int("Entry queue", entry_queue)
        self.watchdog_cycles = positive_int("Watchdog cycles", watchdog_cycles)
        if len(description) > payload_bytes:
            raise ValueError(f"Description must have at most {payload_bytes} bytes, "
                             f"not {len(description)}")
        self.description = description
        for name, fields in (("o_jobs", transfers.job), ("o_entries", transfers.entry),
                             ("o_port", transfers.weights), ("o_pairs", transfers.pair),
                             ("i_results", transfers.result), ("i_products", transfers.product)):
            _check_widths(fields, shapes[name])
        super().__init__({
            "i": In(FrameSignature),
            "o": Out(FrameSignature),
            "repeat": Out(1),
            "bad_frame": In(1),
            "framing_error": In(1),
            "reset_engine": Out(1),
            **{name: Out(stream.Signature(shapes[name]))
               for name in ("o_jobs", "o_entries", "o_port", "o_pairs")},
            **{name: In(stream.Signature(shapes[name])) for name in ("i_results", "i_products")},
        })

    def elaborate(self, platform):
        m = Module()
        transfers = self.transfers

        description: memory.Memory
        m.submodules.description = description = memory.Memory(
            shape=8, depth=len(self.description), init=self.description)
        description_read = description.read_port()
        entry_shape = self.o_entries.payload.shape()
        queue = SyncFIFOBuffered(width=entry_shape.size, depth=self.entry_queue)
        m.submodules.queue = ResetInserter(self.reset_engine)(queue)
        entry = Signal(entry_shape)
        m.d.comb += [
            queue.w_data.eq(entry),
            self.o_entries.payload.eq(queue.r_data),
            self.o_entries.valid.eq(queue.r_rdy),
            queue.r_en.eq(self.o_entries.ready),
        ]

        sequence = Signal(8)
        command = Signal(8)
        status = Signal(8)
        answered = Signal()             # the transmitter holds the reply to `sequence`
        repeated = Signal()
        ended = Signal()                # the request's last byte has been taken
        executing = Signal()            # in a state that waits for the engine
        progress = Signal()
        expired = Signal()
        silence = Signal(range(self.watchdog_cycles))
        position = Signal(range(len(self.description) + 1))

        counters = [Signal(32, name=name) for name in COUNTERS]
        cycles, executed, bad_frames, framing_errors = counters
        clock = Signal(32)
        timing = Signal()
        with m.If(self.bad_frame):
            m.d.sync += bad_frames.eq(bad_frames + 1)
        with m.If(self.framing_error):
            m.d.sync += framing_errors.eq(framing_errors + 1)
        with m.If(timing):
            m.d.sync += clock.eq(clock + 1)
        with m.Elif(self.o_entries.valid & self.o_entries.ready):
            m.d.sync += [timing.eq(1), clock.eq(2)]     # of the next cycle, from 1
        with m.If(self.i_results.valid & self.i_results.ready):
            m.d.sync += cycles.eq(clock)

        # Bytes enter at the top: a transfer of n bytes ends in the upper n.
        pushing = {
            Command.JOB: (transfers.job, self.o_jobs.payload),
            Command.ENTRIES: (transfers.entry, entry),
            Command.WEIGHTS: (transfers.weights, self.o_port.payload),
            Command.LMUL: (transfers.pair, self.o_pairs.payload),
        }
        sizes = {code: transfer_bytes(fields) for code, (fields, _) in pushing.items()}
        sizes[Command.WEIGHTS_LAST] = sizes[Command.WEIGHTS]
        sizes[Command.RESULTS] = COUNT_BYTES
        longest = max(sizes.values())
        collected = Signal(8 * longest)
        collected_bytes = Signal(range(longest + 1))
        needed = Signal(range(longest + 1))
        spare = Signal(range(longest + 1))      # bytes of padding in the port's last transfer
        with m.Switch(command):
            for code, size in sizes.items():
                with m.Case(code):
                    m.d.comb += needed.eq(size)
        for code, (fields, payload) in pushing.items():
            m.d.comb += _unpack(fields, collected[8 * (longest - sizes[code]):], payload)
        count = collected[8 * (longest - COUNT_BYTES):]
        count_limit = self.payload_bytes // transfer_bytes(transfers.result)
        results_left = Signal(range(count_limit + 1))

        outputs = {
            Command.RESULTS: _pack(transfers.result, self.i_results.payload),
            Command.LMUL: _pack(transfers.product, self.i_products.payload),
            Command.STATUS: Cat(counters),
        }
        emitted = Signal(max(len(value) for value in outputs.values()))
        emitted_bytes = Signal(range(len(emitted) // 8 + 1))

        def emit(code: Command):
            """Send the bytes of ``outputs[code]`` as data."""
            m.d.sync += [emitted.eq(outputs[code]), emitted_bytes.eq(len(outputs[code]) // 8)]
            m.next = "EMIT"

        def finish(code: Status):
            m.d.sync += status.eq(code)
            m.next = "FINISH"

        with m.If(~executing | progress):
            m.d.sync += silence.eq(0)
        with m.Else():
            m.d.sync += silence.eq(silence + 1)
        m.d.comb += [
            expired.eq(silence == self.watchdog_cycles - 1),
            description_read.addr.eq(position),
            self.o_port.p.last.eq((command == Command.WEIGHTS_LAST) & ended),
            self.o_port.p.spare.eq(spare),
        ]
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += ended.eq(self.i.p.last)

        with m.FSM() as fsm:
            with m.State("SEQUENCE"):
                with m.If(self.i.valid):
                    m.d.sync += [sequence.eq(self.i.p.data),
                                 repeated.eq(answered & (self.i.p.data == sequence))]
                    m.next = "COMMAND"
            with m.State("COMMAND"):
                with m.If(self.i.valid):
                    m.d.sync += [command.eq(self.i.p.data), collected_bytes.eq(0), spare.eq(0)]
                    m.next = "BEGIN"
                    with m.If(repeated & (self.i.p.data != Command.HELLO)):
                        m.next = "REPEAT"
            with m.State("REPEAT"):
                m.d.comb += self.repeat.eq(ended)
                with m.If(ended & self.o.ready):
                    m.next = "SEQUENCE"
            with m.State("BEGIN"):
                m.d.comb += [self.o.valid.eq(1), self.o.p.data.eq(sequence)]
                with m.If(self.o.ready):
                    m.d.sync += [answered.eq(1), executed.eq(executed + 1)]
                    with m.Switch(command):
                        with m.Case(*_PLAIN):
                            with m.If(~ended):
                                finish(Status.WRONG_LENGTH)
                            with m.Elif(command == Command.HELLO):
                                m.next = "DESCRIBE"
                            with m.Elif(command == Command.STATUS):
                                emit(Command.STATUS)
                            with m.Else():
                                m.d.comb += self.reset_engine.eq(1)
                                m.d.sync += [timing.eq(0), cycles.eq(0)]
                                finish(Status.DONE)
                        with m.Case(*sizes):
                            with m.If(ended):
                                finish(Status.WRONG_LENGTH)
                            with m.Else():
                                m.next = "COLLECT"
                        with m.Default():
                            finish(Status.UNKNOWN_COMMAND)
            with m.State("COLLECT"):
                with m.If(self.i.valid):
                    m.d.sync += [collected.eq(Cat(collected[8:], self.i.p.data)),
                                 collected_bytes.eq(collected_bytes + 1)]
                    with m.If(collected_bytes + 1 == needed):
                        m.d.sync += collected_bytes.eq(0)
                        m.next = "PUSH"
                        with m.If(command == Command.RESULTS):
                            m.next = "COUNT"
                    with m.Elif(self.i.p.last):
                        finish(Status.WRONG_LENGTH)
                        with m.If(command == Command.WEIGHTS_LAST):
                            m.next = "PAD"
            with m.State("PAD"):
                m.d.sync += [collected.eq(collected >> 8), spare.eq(spare + 1),
                             collected_bytes.eq(collected_bytes + 1)]
                with m.If(collected_bytes + 1 == needed):
                    m.next = "PUSH"
            with m.State("PUSH"):
                m.d.comb += executing.eq(1)
                with m.Switch(command):
                    with m.Case(Command.JOB):
                        m.d.comb += [self.o_jobs.valid.eq(1), progress.eq(self.o_jobs.ready)]
                        m.d.sync += timing.eq(0)
                    with m.Case(Command.ENTRIES):
                        m.d.comb += [queue.w_en.eq(1), progress.eq(queue.w_rdy)]
                    with m.Case(Command.WEIGHTS, Command.WEIGHTS_LAST):
                        m.d.comb += [self.o_port.valid.eq(1), progress.eq(self.o_port.ready)]
                    with m.Case(Command.LMUL):
                        m.d.comb += [self.o_pairs.valid.eq(1), progress.eq(self.o_pairs.ready)]
                with m.If(progress):
                    m.next = "COLLECT"
                    with m.If(command == Command.LMUL):
                        m.next = "PRODUCT"
                    with m.Elif(ended):
                        finish(Status.DONE)
                with m.Elif(expired):
                    finish(Status.STALLED)
            with m.State("PRODUCT"):
                m.d.comb += [executing.eq(1), self.i_products.ready.eq(1),
                             progress.eq(self.i_products.valid)]
                with m.If(progress):
                    emit(Command.LMUL)
                with m.Elif(expired):
                    finish(Status.STALLED)
            with m.State("COUNT"):
                m.d.sync += results_left.eq(Mux(count > count_limit, count_limit, count))
                m.next = "RESULT"
                with m.If(~ended):
                    finish(Status.WRONG_LENGTH)
            with m.State("RESULT"):
                with m.If(results_left == 0):
                    finish(Status.DONE)
                with m.Else():
                    m.d.comb += [executing.eq(1), self.i_results.ready.eq(1),
                                 progress.eq(self.i_results.valid)]
                    with m.If(progress):
                        m.d.sync += results_left.eq(
                            Mux(self.i_results.p.last, 0, results_left - 1))
                        emit(Command.RESULTS)
                    with m.Elif(expired):
                        finish(Status.STALLED)
            with m.State("EMIT"):
                m.d.comb += [self.o.valid.eq(1), self.o.p.data.eq(emitted[:8])]
                with m.If(self.o.ready):
                    m.d.sync += [emitted.eq(emitted >> 8), emitted_bytes.eq(emitted_bytes - 1)]
                    with m.If(emitted_bytes == 1):
                        with m.If(command == Command.RESULTS):
                            m.next = "RESULT"
                        with m.Elif((command == Command.HELLO)
                                    & (position != len(self.description))):
                            m.next = "DESCRIBE"
                        with m.Elif((command != Command.LMUL) | ended):
                            m.d.sync += position.eq(0)
                            finish(Status.DONE)
                        with m.Else():
                            m.next = "COLLECT"
            with m.State("DESCRIBE"):
                m.d.sync += [emitted[:8].eq(description_read.data), emitted_bytes.eq(1),
                             position.eq(position + 1)]
                m.next = "EMIT"
            with m.State("FINISH"):
                m.d.comb += [self.o.valid.eq(ended), self.o.p.data.eq(status), self.o.p.last.eq(1)]
                with m.If(ended & self.o.ready):
                    m.next = "SEQUENCE"

        listening = Cat(fsm.ongoing(state) for state in ("SEQUENCE", "COMMAND", "COLLECT")).any()
        skipping = Cat(fsm.ongoing(state) for state in ("REPEAT", "FINISH")).any()
        m.d.comb += self.i.ready.eq(listening | (skipping & ~ended))

        return m
