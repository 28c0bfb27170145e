"""The device's end of the link: executes the requests of frames on streams."""

from amaranth import *
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out

from hw.check import positive_int
from hw.link.frames import FrameSignature
from hw.link.protocol import (
    COUNT_BYTES,
    COUNTERS,
    MEMORY_COUNTERS,
    Command,
    Exchange,
    Fields,
    Status,
    transfer_bytes,
)

__all__ = ["LinkTarget"]

#: Commands of every device; they have no payload.
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
    """Requests in, replies out, and between them the streams of a device.

    A request is executed as its bytes come from the frame buffer, so only whole, verified frames
    reach the streams. A transfer that is not accepted, or does not come, within ``watchdog_cycles``
    ends the request with :attr:`Status.STALLED`; its ``valid`` is then withdrawn, which no stream
    may do otherwise, and ``RESET`` must follow.

    Parameters
    ----------
    exchanges : dict of Command to Exchange
        What each command moves, beside those of every device.
    shapes : dict of str to layout
        Payload of each stream of the device, by the name in the exchanges.
    description : bytes
        Data of ``HELLO``.
    payload_bytes : int
        Longest payload of a request and longest data of a reply.
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
    reset_device : Out(1)
        High for one cycle, from a register: the device starts anew.
    busy : In(1)
        The device works on its own.
    transfers, waits, refreshes : In(32)
        Counters of the memory port, sent with the target's own.
    begins, works : In(1)
        For the counter of cycles: the first one counts, and the latest one in which it ``works``.
    o_NAME, i_NAME : Out(stream), In(stream)
        To the device and from it, for each NAME of the exchanges.

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
    reset_device: Signal
    busy: Signal
    begins: Signal
    works: Signal
    transfers: Signal
    waits: Signal
    refreshes: Signal

    def __init__(self, *, exchanges: dict[Command, Exchange], shapes: dict[str, data.StructLayout],
                 description: bytes, payload_bytes: int, watchdog_cycles: int):
        self.exchanges = exchanges
        self.payload_bytes = positive_int("Payload bytes", payload_bytes)
        self.watchdog_cycles = positive_int("Watchdog cycles", watchdog_cycles)
        if len(description) > payload_bytes:
            raise ValueError(f"Description must have at most {payload_bytes} bytes, "
                             f"not {len(description)}")
        self.description = description
        members = {}
        for exchange in exchanges.values():
            for flow, prefix, name, fields in ((Out, "o", exchange.into, exchange.payload),
                                               (In, "i", exchange.out_of, exchange.data)):
                if name:
                    _check_widths(fields, shapes[name])
                    members[f"{prefix}_{name}"] = flow(stream.Signature(shapes[name]))
        super().__init__({
            "i": In(FrameSignature),
            "o": Out(FrameSignature),
            "repeat": Out(1),
            "bad_frame": In(1),
            "framing_error": In(1),
            "reset_device": Out(1),
            "busy": In(1),
            "begins": In(1),
            "works": In(1),
            **dict.fromkeys(MEMORY_COUNTERS, In(32)),
            **members,
        })

    def elaborate(self, platform):
        m = Module()
        pushing = {code: exchange for code, exchange in self.exchanges.items() if exchange.into}
        pulling = {code: exchange for code, exchange in self.exchanges.items() if exchange.out_of}
        counted = [code for code in pulling if code not in pushing]
        asking = [code for code in pulling if code in pushing]
        closing = [code for code, exchange in pushing.items() if exchange.closes]
        starting = [code for code, exchange in pushing.items() if exchange.starts]
        idle = [code for code, exchange in pushing.items() if exchange.idle]

        description: memory.Memory
        m.submodules.description = description = memory.Memory(
            shape=8, depth=len(self.description), init=self.description)
        description_read = description.read_port()

        sequence = Signal(8)
        # The command, one flag for each: nothing behind it has to decode it again.
        is_ = {code: Signal(name=f"is_{code.name.lower()}")
               for code in (*_PLAIN, *self.exchanges)}
        status = Signal(8)
        answered = Signal()             # the transmitter holds the reply to `sequence`
        repeated = Signal()
        ended = Signal()                # the request's last byte has been taken
        executing = Signal()            # in a state that waits for the device
        progress = Signal()
        expired = Signal()
        silence = Signal(range(self.watchdog_cycles))
        position = Signal(range(len(self.description) + 1))

        def is_one_of(codes) -> Value:
            return Cat(is_[code] for code in codes).any()

        def chosen(values: dict[Command, Value]) -> Value:
            """Return the value of the present command, 0 if it has none."""
            result: Value = C(0)
            for code, value in values.items():
                result |= Mux(is_[code], value, 0)
            return result

        cycles, executed, bad_frames, framing_errors = own = [
            Signal(32, name=name) for name in COUNTERS if name not in MEMORY_COUNTERS]
        counters = [*own, *(getattr(self, name) for name in MEMORY_COUNTERS)]
        clock = Signal(32)
        timing = Signal()
        with m.If(self.bad_frame):
            m.d.sync += bad_frames.eq(bad_frames + 1)
        with m.If(self.framing_error):
            m.d.sync += framing_errors.eq(framing_errors + 1)
        with m.If(timing):
            m.d.sync += clock.eq(clock + 1)
        with m.Elif(self.begins):
            m.d.sync += [timing.eq(1), clock.eq(2)]     # of the next cycle, from 1
        with m.If(self.works):
            m.d.sync += cycles.eq(clock)

        # Bytes enter at the top: a transfer of n bytes ends in the upper n.
        sizes = {code: transfer_bytes(exchange.payload) for code, exchange in pushing.items()}
        sizes |= dict.fromkeys(counted, COUNT_BYTES)
        longest = max(sizes.values())
        collected = Signal(8 * longest)
        collected_bytes = Signal(range(longest + 1))
        needed = Signal(range(longest + 1))
        spare = Signal(range(longest + 1))      # bytes of padding in the final transfer
        m.d.comb += needed.eq(chosen({code: C(size) for code, size in sizes.items()}))
        for code, exchange in pushing.items():
            payload = getattr(self, f"o_{exchange.into}").p
            m.d.comb += _unpack(exchange.payload, collected[8 * (longest - sizes[code]):], payload)
            if exchange.closes:
                m.d.comb += [payload.last.eq(is_[code] & ended), payload.spare.eq(spare)]

        # Transfers that the reply has room for, and that are still wanted.
        limits = {code: self.payload_bytes // transfer_bytes(exchange.data)
                  for code, exchange in pulling.items()}
        room = Signal(range(max(limits.values()) + 1))
        remaining = Signal.like(room)
        m.d.comb += room.eq(chosen({code: C(limit) for code, limit in limits.items()}))
        count = collected[8 * (longest - COUNT_BYTES):]

        # What is emitted is loaded as long as it may come: whether it has, is known late.
        outputs = {code: _pack(exchange.data, getattr(self, f"i_{exchange.out_of}").p)
                   for code, exchange in pulling.items()}
        outputs[Command.STATUS] = Cat(counters)
        emitted = Signal(max(len(value) for value in outputs.values()))
        emitted_bytes = Signal(range(len(emitted) // 8 + 1))
        load = [emitted.eq(chosen(outputs)),
                emitted_bytes.eq(chosen({code: C(len(value) // 8)
                                         for code, value in outputs.items()}))]

        def pull(codes: list[Command]):
            """Take a transfer of the command's stream and send it; it may end the wait."""
            m.d.comb += executing.eq(1)
            m.d.sync += load
            sources = {code: getattr(self, f"i_{pulling[code].out_of}") for code in codes}
            m.d.comb += progress.eq(chosen({code: source.valid
                                            for code, source in sources.items()}))
            m.d.comb += [source.ready.eq(is_[code]) for code, source in sources.items()]
            with m.If(progress):
                m.d.sync += remaining.eq(remaining - 1)
                with m.If(chosen({code: source.p.last for code, source in sources.items()
                                  if code in counted})):
                    m.d.sync += remaining.eq(0)
                m.next = "TOP_K"
            with m.Elif(expired):
                finish(Status.STALLED)

        def finish(code: Status):
            m.d.sync += status.eq(code)
            m.next = "FINISH"

        m.d.sync += self.reset_device.eq(0)
        with m.If(~executing | progress):
            m.d.sync += silence.eq(0)
        with m.Else():
            m.d.sync += silence.eq(silence + 1)
        m.d.comb += [
            expired.eq(silence == self.watchdog_cycles - 1),
            description_read.addr.eq(position),
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
                    m.d.sync += [flag.eq(self.i.p.data == code) for code, flag in is_.items()]
                    m.d.sync += [collected_bytes.eq(0), spare.eq(0)]
                    m.next = "BEGIN"
                    with m.If(repeated & (self.i.p.data != Command.HELLO)):
                        m.next = "REPEAT"
            with m.State("REPEAT"):
                m.d.comb += self.repeat.eq(ended)
                with m.If(ended & self.o.ready):
                    m.next = "SEQUENCE"
            with m.State("BEGIN"):
                m.d.comb += [self.o.valid.eq(1), self.o.p.data.eq(sequence)]
                m.d.sync += remaining.eq(room)
                with m.If(self.o.ready):
                    m.d.sync += [answered.eq(1), executed.eq(executed + 1)]
                    with m.If(is_one_of(_PLAIN)):
                        with m.If(~ended):
                            finish(Status.WRONG_LENGTH)
                        with m.Elif(is_[Command.HELLO]):
                            m.next = "DESCRIBE"
                        with m.Elif(is_[Command.STATUS]):
                            m.d.sync += load
                            m.next = "TOP_K"
                        with m.Else():
                            m.d.sync += [self.reset_device.eq(1), timing.eq(0), cycles.eq(0)]
                            finish(Status.DONE)
                    with m.Elif(is_one_of(self.exchanges)):
                        m.next = "COLLECT"
                        with m.If(is_one_of(starting)):
                            m.d.sync += timing.eq(timing & self.busy)
                        with m.If(is_one_of(idle) & self.busy):
                            finish(Status.BUSY)
                        with m.If(ended):
                            finish(Status.WRONG_LENGTH)
                    with m.Else():
                        finish(Status.UNKNOWN_COMMAND)
            with m.State("COLLECT"):
                with m.If(self.i.valid):
                    m.d.sync += [collected.eq(Cat(collected[8:], self.i.p.data)),
                                 collected_bytes.eq(collected_bytes + 1)]
                    with m.If(collected_bytes + 1 == needed):
                        m.d.sync += collected_bytes.eq(0)
                        m.next = "PUSH"
                        with m.If(is_one_of(counted)):
                            m.next = "COUNT"
                        with m.Elif(is_one_of(asking) & (remaining == 0)):
                            finish(Status.WRONG_LENGTH)
                    with m.Elif(self.i.p.last):
                        finish(Status.WRONG_LENGTH)
                        if closing:
                            with m.If(is_one_of(closing)):
                                m.next = "PAD"
            if closing:
                with m.State("PAD"):
                    m.d.sync += [collected.eq(collected >> 8), spare.eq(spare + 1),
                                 collected_bytes.eq(collected_bytes + 1)]
                    with m.If(collected_bytes + 1 == needed):
                        m.next = "PUSH"
            with m.State("PUSH"):
                m.d.comb += executing.eq(1)
                m.d.comb += progress.eq(chosen({
                    code: getattr(self, f"o_{exchange.into}").ready
                    for code, exchange in pushing.items()}))
                for into in dict.fromkeys(exchange.into for exchange in pushing.values()):
                    m.d.comb += getattr(self, f"o_{into}").valid.eq(is_one_of(
                        code for code, exchange in pushing.items() if exchange.into == into))
                with m.If(progress):
                    m.next = "COLLECT"
                    with m.If(is_one_of(asking)):
                        m.next = "ANSWER"
                    with m.Elif(ended):
                        finish(Status.DONE)
                with m.Elif(expired):
                    finish(Status.STALLED)
            with m.State("ANSWER"):
                pull(asking)
            with m.State("COUNT"):
                m.d.sync += remaining.eq(Mux(count > room, room, count))
                m.next = "RESULT"
                with m.If(~ended):
                    finish(Status.WRONG_LENGTH)
            with m.State("RESULT"):
                with m.If(remaining == 0):
                    finish(Status.DONE)
                with m.Else():
                    pull(counted)
            with m.State("TOP_K"):
                m.d.comb += [self.o.valid.eq(1), self.o.p.data.eq(emitted[:8])]
                with m.If(self.o.ready):
                    m.d.sync += [emitted.eq(emitted >> 8), emitted_bytes.eq(emitted_bytes - 1)]
                    with m.If(emitted_bytes == 1):
                        with m.If(is_one_of(counted)):
                            m.next = "RESULT"
                        with m.Elif(is_[Command.HELLO] & (position != len(self.description))):
                            m.next = "DESCRIBE"
                        with m.Elif(~is_one_of(asking) | ended):
                            m.d.sync += position.eq(0)
                            finish(Status.DONE)
                        with m.Else():
                            m.next = "COLLECT"
            with m.State("DESCRIBE"):
                m.d.sync += [emitted[:8].eq(description_read.data), emitted_bytes.eq(1),
                             position.eq(position + 1)]
                m.next = "TOP_K"
            with m.State("FINISH"):
                m.d.comb += [self.o.valid.eq(ended), self.o.p.data.eq(status), self.o.p.last.eq(1)]
                with m.If(ended & self.o.ready):
                    m.next = "SEQUENCE"

        listening = Cat(fsm.ongoing(state) for state in ("SEQUENCE", "COMMAND", "COLLECT")).any()
        skipping = Cat(fsm.ongoing(state) for state in ("REPEAT", "FINISH")).any()
        m.d.comb += self.i.ready.eq(listening | (skipping & ~ended))

        return m
