# Ref: S. Cheshire, M. Baker, "Consistent Overhead Byte Stuffing", IEEE/ACM ToN 7(2), 1999

"""Frames on a byte stream: COBS between 0x00, with a CRC-32 at the end."""

from amaranth import *
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.crc.catalog import CRC32_ISO_HDLC
from amaranth.lib.wiring import In, Out

from hw.check import positive_int
from hw.link.protocol import CRC_BYTES, HEADER_BYTES, encoded_bytes
from hw.link.uart import ByteSignature

__all__ = ["FrameReceiver", "FrameSignature", "FrameTransmitter"]

#: A frame's content, byte by byte; ``last`` ends it.
FrameSignature = stream.Signature(data.StructLayout({"data": 8, "last": 1}))


class FrameReceiver(wiring.Component):
    """Bytes to verified frames.

    A frame is decoded into block RAM and delivered only when its code, length and CRC are right;
    any other is dropped. The content begins two cycles after the delimiter, one byte a cycle. Bytes
    that arrive before its end are lost, up to and including the next 0x00.

    Parameters
    ----------
    content_bytes : int
        Longest content.

    Members
    -------
    i : In(stream) of {data: 8}
        Bytes from the line; always ready.
    o : Out(stream) of {data: 8, last: 1}
        Contents of good frames, at least two bytes each, without the CRC.
    bad_frame : Out(1)
        High for the cycle in which a bad frame ends.

    Raises
    ------
    ValueError
        If ``content_bytes`` is not a positive integer.
    """

    i: stream.Interface
    o: stream.Interface
    bad_frame: Signal

    def __init__(self, *, content_bytes: int):
        self.content_bytes = positive_int("Content bytes", content_bytes)
        super().__init__({"i": In(ByteSignature), "o": Out(FrameSignature), "bad_frame": Out(1)})

    def elaborate(self, platform):
        m = Module()

        depth = self.content_bytes + CRC_BYTES
        buffer: memory.Memory
        m.submodules.buffer = buffer = memory.Memory(shape=8, depth=depth, init=[])
        write, read = buffer.write_port(), buffer.read_port()
        m.submodules.crc = crc = CRC32_ISO_HDLC(8).create()

        length = Signal(range(depth + 1))
        block_left = Signal(8)          # data bytes until the next code byte
        zero_due = Signal()             # the next code byte stands for a zero
        begun = Signal()                # a byte has come since the delimiter
        broken = Signal()               # the frame is longer than the buffer
        synchronized = Signal(init=1)   # a delimiter has come since bytes were lost
        position = Signal(range(depth))
        byte = self.i.p.data

        decoded = Signal()              # this byte puts one into the buffer, if there is room
        full = Signal()
        advance = Signal()
        m.d.comb += [
            self.i.ready.eq(1),
            full.eq(length == depth),
            write.addr.eq(length),
            write.en.eq(decoded & ~full),
            crc.data.eq(write.data),
            crc.valid.eq(write.en),
            read.addr.eq(position + advance),
        ]
        with m.If(self.i.valid & (byte == 0)):
            m.d.sync += synchronized.eq(1)
        with m.If(write.en):
            m.d.sync += length.eq(length + 1)
        with m.If(decoded & full):
            m.d.sync += broken.eq(1)
        with m.FSM() as fsm:
            with m.State("RECEIVE"):
                with m.If(self.i.valid & synchronized):
                    with m.If(byte == 0):
                        m.d.sync += begun.eq(0)
                        with m.If(~broken & (block_left == 0) & crc.match_detected
                                  & (length >= HEADER_BYTES + CRC_BYTES)):
                            m.next = "DELIVER"
                        with m.Else():
                            m.d.comb += [self.bad_frame.eq(begun), crc.start.eq(1)]
                            m.d.sync += [length.eq(0), block_left.eq(0), zero_due.eq(0),
                                         broken.eq(0)]
                    with m.Else():
                        m.d.sync += begun.eq(1)
                        with m.If(block_left == 0):
                            m.d.comb += decoded.eq(zero_due)
                            m.d.sync += [block_left.eq(byte - 1), zero_due.eq(byte != 255)]
                        with m.Else():
                            m.d.comb += [write.data.eq(byte), decoded.eq(1)]
                            m.d.sync += block_left.eq(block_left - 1)
            with m.State("DELIVER"):
                with m.If(self.i.valid & (byte != 0)):
                    m.d.sync += synchronized.eq(0)
                # A register behind the block RAM, whose output comes late in its cycle.
                with m.If(advance):
                    m.d.sync += [
                        position.eq(position + 1),
                        self.o.valid.eq(1),
                        self.o.p.data.eq(read.data),
                        self.o.p.last.eq(position == length - CRC_BYTES - 1),
                    ]
                with m.If(self.o.valid & self.o.ready & self.o.p.last):
                    m.d.comb += crc.start.eq(1)
                    m.d.sync += [self.o.valid.eq(0), position.eq(0), length.eq(0),
                                 block_left.eq(0), zero_due.eq(0)]
                    m.next = "RECEIVE"
        m.d.comb += advance.eq(fsm.ongoing("DELIVER") & (~self.o.valid | self.o.ready))

        return m


class FrameTransmitter(wiring.Component):
    """Contents to frames on a byte stream.

    A COBS code byte comes before the bytes that it counts, so a frame is encoded into block RAM,
    one byte a cycle, and sent after its end. The memory keeps it until the next one begins:
    ``repeat`` sends it again. Cycles from the first byte taken to the first delimiter:
    :func:`sim.timing.units.frame_cycles`.

    Parameters
    ----------
    content_bytes : int
        Longest content. The producer keeps to it.

    Members
    -------
    i : In(stream) of {data: 8, last: 1}
        Contents, without the CRC.
    repeat : In(1)
        Send the latest frame again; taken between frames, in a cycle in which ``i.ready`` is high
        and ``i.valid`` low.
    o : Out(stream) of {data: 8}
        Bytes for the line.

    Raises
    ------
    ValueError
        If ``content_bytes`` is not a positive integer.
    """

    i: stream.Interface
    repeat: Signal
    o: stream.Interface

    def __init__(self, *, content_bytes: int):
        self.content_bytes = positive_int("Content bytes", content_bytes)
        super().__init__({"i": In(FrameSignature), "repeat": In(1), "o": Out(ByteSignature)})

    def elaborate(self, platform):
        m = Module()

        depth = encoded_bytes(self.content_bytes)
        buffer: memory.Memory
        m.submodules.buffer = buffer = memory.Memory(shape=8, depth=depth, init=[])
        write, read = buffer.write_port(), buffer.read_port()
        m.submodules.crc = crc = CRC32_ISO_HDLC(8).create()

        code_position = Signal(range(depth))
        end = Signal(range(depth + 1), init=1)  # of what is written
        run = Signal(range(255))                # bytes since the code byte's place
        byte = Signal(8)
        offered = Signal()
        check_left = Signal(range(CRC_BYTES + 1))
        length = Signal.like(end, init=0)
        position = Signal.like(end, init=0)

        # One byte of content or CRC; `taken` when the memory's port was free for it.
        taken = Signal()
        with m.If(offered):
            with m.If(run == 254):              # close the full block, without a zero
                m.d.comb += [write.en.eq(1), write.addr.eq(code_position), write.data.eq(255)]
                m.d.sync += [code_position.eq(end), end.eq(end + 1), run.eq(0)]
            with m.Elif(byte == 0):
                m.d.comb += [taken.eq(1), write.en.eq(1), write.addr.eq(code_position),
                             write.data.eq(run + 1)]
                m.d.sync += [code_position.eq(end), end.eq(end + 1), run.eq(0)]
            with m.Else():
                m.d.comb += [taken.eq(1), write.en.eq(1), write.addr.eq(end), write.data.eq(byte)]
                m.d.sync += [end.eq(end + 1), run.eq(run + 1)]

        m.d.comb += [
            crc.data.eq(self.i.p.data),
            crc.valid.eq(self.i.valid & self.i.ready),
            read.addr.eq(position),
            self.o.p.data.eq(read.data),
        ]
        with m.FSM() as fsm:
            with m.State("CONTENT"):
                m.d.comb += [byte.eq(self.i.p.data), offered.eq(self.i.valid),
                             self.i.ready.eq(run != 254)]
                with m.If(taken & self.i.p.last):
                    m.next = "CRC"
                with m.Elif(~self.i.valid & self.repeat):
                    m.next = "BEGIN"
            with m.State("CRC"):
                m.d.comb += [byte.eq(crc.crc.word_select(check_left, 8)), offered.eq(1)]
                with m.If(taken):
                    m.d.sync += check_left.eq(check_left + 1)
                    with m.If(check_left == CRC_BYTES - 1):
                        m.next = "CLOSE"
            with m.State("CLOSE"):
                m.d.comb += [write.en.eq(1), write.addr.eq(code_position), write.data.eq(run + 1)]
                m.d.sync += [length.eq(end), code_position.eq(0), end.eq(1), run.eq(0),
                             check_left.eq(0)]
                m.next = "BEGIN"
            with m.State("BEGIN"):
                m.d.comb += self.o.p.data.eq(0)
                with m.If(self.o.ready):
                    m.next = "SEND"
            with m.State("SEND"):
                with m.If(self.o.ready):
                    m.d.comb += read.addr.eq(position + 1)
                    m.d.sync += position.eq(position + 1)
                    with m.If(position == length - 1):
                        m.next = "END"
            with m.State("END"):
                m.d.comb += self.o.p.data.eq(0)
                with m.If(self.o.ready):
                    m.d.sync += position.eq(0)
                    m.next = "CONTENT"
        sending = [fsm.ongoing(state) for state in ("BEGIN", "SEND", "END")]
        m.d.comb += [self.o.valid.eq(Cat(sending).any()), crc.start.eq(fsm.ongoing("CLOSE"))]

        return m
