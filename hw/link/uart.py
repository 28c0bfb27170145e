"""UART, 8 data bits, no parity, 1 stop bit, as byte streams."""

from fractions import Fraction

from amaranth import *
from amaranth.lib import data, stream, wiring
from amaranth.lib.cdc import FFSynchronizer
from amaranth.lib.wiring import In, Out

from hw.check import positive_int

__all__ = ["ByteSignature", "UartReceiver", "UartTransmitter", "uart_tolerance"]

#: A stream of bytes.
ByteSignature = stream.Signature(data.StructLayout({"data": 8}))

#: Clock cycles per bit from which on a peer's may be 3 % off: see :func:`uart_tolerance`. With 4
#: it is 2.5 %.
_LEAST_DIVISOR = 5


def uart_tolerance(divisor: int) -> tuple[Fraction, Fraction]:
    """Return by which share of a bit a peer's bits may be longer and shorter, at most.

    The receiver finds the start bit up to a cycle late: it samples the line ``p`` cycles after the
    edge for the first time, ``0 <= p < 1``. From then on the middle sample of bit ``k`` is taken
    at ``p + divisor // 2 + k * divisor``, and the majority of three is right if that one lies in
    the bit: between ``k`` and ``k + 1`` of the peer's bits. The last of them, ``k = 9``, is the
    first to be missed: with long bits by the earliest sample (``p = 0``), with short ones by the
    latest.
    """
    half = divisor // 2
    return Fraction(half, 9 * divisor), Fraction(divisor - half - 1, 10 * divisor)


def _check_divisor(divisor: int) -> int:
    if positive_int("UART divisor", divisor) < _LEAST_DIVISOR:
        raise ValueError(f"UART divisor must be at least {_LEAST_DIVISOR}, so that a peer's clock "
                         f"may be 3 % off, not {divisor}")
    return divisor


class UartReceiver(wiring.Component):
    """Serial line to bytes.

    The line is sampled every clock cycle; a bit is the majority of the three samples around its
    middle, so a spike of one cycle does no harm if the peer's clock is right. Without spikes that
    clock may be off as :func:`uart_tolerance` says: 3 % at every divisor. A byte whose stop bit is
    low is dropped, and the next start bit is awaited only after the line has been high. A byte that
    is not taken before the next one ends is kept, and the next one lost.

    Parameters
    ----------
    divisor : int
        Clock cycles per bit, at least 5.

    Members
    -------
    rx : In(1)
        Serial line, asynchronous, high when idle.
    o : Out(stream) of {data: 8}
        Received bytes.
    error : Out(1)
        High for the cycle in which a byte without a stop bit ends.

    Raises
    ------
    ValueError
        If ``divisor`` is less than 5.
    """

    rx: Signal
    o: stream.Interface
    error: Signal

    def __init__(self, *, divisor: int):
        self.divisor = _check_divisor(divisor)
        super().__init__({"rx": In(1), "o": Out(ByteSignature), "error": Out(1)})

    def elaborate(self, platform):
        m = Module()

        line = Signal(init=1)
        m.submodules.synchronizer = FFSynchronizer(self.rx, line, init=1)
        history = Signal(2, init=0b11)
        m.d.sync += history.eq(Cat(line, history[0]))
        bit = Signal()
        m.d.comb += bit.eq((line & history[0]) | (line & history[1]) | (history[0] & history[1]))

        timer = Signal(range(self.divisor))
        bits_left = Signal(range(10))
        shift = Signal(9)

        with m.If(self.o.ready):
            m.d.sync += self.o.valid.eq(0)
        with m.FSM():
            with m.State("IDLE"):
                # The majority lags the line by one cycle.
                with m.If(~bit):
                    m.d.sync += [timer.eq(self.divisor // 2 - 1), bits_left.eq(9)]
                    m.next = "BIT"
            with m.State("BIT"):
                m.d.sync += timer.eq(timer - 1)
                with m.If(timer == 0):
                    m.d.sync += [
                        timer.eq(self.divisor - 1),
                        bits_left.eq(bits_left - 1),
                        shift.eq(Cat(shift[1:], bit)),
                    ]
                    with m.If((bits_left == 9) & bit):      # no start bit: a spike
                        m.next = "IDLE"
                    with m.If(bits_left == 0):
                        with m.If(bit):
                            m.next = "IDLE"     # at once: a fast peer's start bit may be here
                            with m.If(~self.o.valid | self.o.ready):
                                m.d.sync += [self.o.valid.eq(1), self.o.p.data.eq(shift[1:])]
                        with m.Else():
                            m.d.comb += self.error.eq(1)
                            m.next = "HIGH"
            with m.State("HIGH"):
                with m.If(bit):
                    m.next = "IDLE"

        return m


class UartTransmitter(wiring.Component):
    """Bytes to serial line; a byte takes ``10 * divisor`` cycles, without a gap between bytes.

    Parameters
    ----------
    divisor : int
        Clock cycles per bit, at least 5.

    Members
    -------
    i : In(stream) of {data: 8}
        Bytes to send.
    tx : Out(1)
        Serial line, high when idle.

    Raises
    ------
    ValueError
        If ``divisor`` is less than 5.
    """

    i: stream.Interface
    tx: Signal

    def __init__(self, *, divisor: int):
        self.divisor = _check_divisor(divisor)
        super().__init__({"i": In(ByteSignature), "tx": Out(1)})

    def elaborate(self, platform):
        m = Module()

        timer = Signal(range(self.divisor))
        bits_left = Signal(range(11))
        # Start bit, data and stop bit; what follows them is the idle line.
        line = Signal(init=1)
        shift = Signal(9, init=0x1ff)
        bit_ends = Signal()
        m.d.comb += [
            self.tx.eq(line),
            bit_ends.eq(timer == 0),
            self.i.ready.eq((bits_left == 0) | (bits_left == 1) & bit_ends),
        ]
        with m.If(self.i.ready & self.i.valid):
            m.d.sync += [
                line.eq(0),
                shift.eq(Cat(self.i.p.data, 1)),
                bits_left.eq(10),
                timer.eq(self.divisor - 1),
            ]
        with m.Elif(bits_left != 0):
            m.d.sync += timer.eq(timer - 1)
            with m.If(bit_ends):
                m.d.sync += [
                    Cat(line, shift).eq(Cat(shift, 1)),
                    bits_left.eq(bits_left - 1),
                    timer.eq(self.divisor - 1),
                ]

        return m
