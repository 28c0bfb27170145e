"""UARTs of all small divisors and some large ones, judged by cocotbext-uart as their peer."""

import random

import cocotb
from amaranth import *
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from cocotb.clock import Clock
from cocotb.triggers import ReadOnly, RisingEdge, Timer
from cocotbext.uart import UartSink, UartSource

from hw.common.stream import connect_stream
from hw.link.uart import ByteSignature, UartReceiver, UartTransmitter, uart_tolerance

#: The smallest permitted ones, those of the boards (12, 25, 40), and a slow line.
DIVISORS = (*range(5, 17), 25, 40, 104)
#: Clock period; cocotbext-uart counts a bit in whole nanoseconds.
CLOCK_NS = 1000
#: Cycles that a test lets each divisor send for, at most, and bytes.
CYCLES, BYTES = 8_000, 60


class Uarts(wiring.Component):
    """A receiver and a transmitter of each divisor, side by side."""

    def __init__(self):
        members = {}
        for divisor in DIVISORS:
            members |= {f"rx_{divisor}": In(1), f"tx_{divisor}": Out(1),
                        f"error_{divisor}": Out(1), f"i_{divisor}": In(ByteSignature),
                        f"o_{divisor}": Out(ByteSignature)}
        super().__init__(members)

    def elaborate(self, platform):
        """Put them side by side."""
        m = Module()
        for divisor in DIVISORS:
            m.submodules[f"receiver_{divisor}"] = receiver = UartReceiver(divisor=divisor)
            m.submodules[f"transmitter_{divisor}"] = sender = UartTransmitter(divisor=divisor)
            connect_stream(m, receiver.o, wiring.flipped(getattr(self, f"o_{divisor}")))
            connect_stream(m, wiring.flipped(getattr(self, f"i_{divisor}")), sender.i)
            m.d.comb += [
                receiver.rx.eq(getattr(self, f"rx_{divisor}")),
                getattr(self, f"error_{divisor}").eq(receiver.error),
                getattr(self, f"tx_{divisor}").eq(sender.tx),
            ]
        return m


DUTS = {"divisors": Uarts}


async def begin(dut) -> None:
    """Start the clock with idle lines and reset."""
    for divisor in DIVISORS:
        dut[f"rx_{divisor}"].value = 1
        dut[f"i_{divisor}__valid"].value = 0
        dut[f"i_{divisor}__payload"].value = 0
        dut[f"o_{divisor}__ready"].value = 1
    dut.rst.value = 1
    Clock(dut.clk, CLOCK_NS, unit="ns").start()
    for _ in range(4):
        await RisingEdge(dut.clk)
    dut.rst.value = 0
    await Timer(CLOCK_NS * 3 // 10, unit="ns")      # edges of the line are none of the clock


def message(divisor: int) -> bytes:
    """Return what is sent with this divisor: random bytes, and all equal and alternating bits."""
    count = min(BYTES, CYCLES // (10 * divisor)) - 3
    return b"\x00\xff\x55" + random.Random(divisor).randbytes(count)


def peer(kind: type, line, divisor: int, rate: float):
    """Make a peer whose bits are ``rate`` times as long as they should be."""
    end = kind(line, baud=1e9 / (CLOCK_NS * divisor * rate))
    end.log.setLevel("WARNING")
    return end


async def received(dut, divisor: int, rate: float, *, gaps: bool = False) -> tuple[bytes, int]:
    """Let a peer send :func:`message`; return the bytes received and the framing errors."""
    source = peer(UartSource, dut[f"rx_{divisor}"], divisor, rate)
    rng = random.Random(divisor)
    taken, errors = bytearray(), 0

    async def take():
        while True:
            await RisingEdge(dut[f"o_{divisor}__valid"])
            await ReadOnly()
            taken.append(dut[f"o_{divisor}__payload"].value.to_unsigned())

    async def count():
        nonlocal errors
        while True:
            error = dut[f"error_{divisor}"]
            await RisingEdge(error)
            await ReadOnly()                    # what it settles at in this step
            errors += int(error.value)

    tasks = [cocotb.start_soon(take()), cocotb.start_soon(count())]
    for byte in message(divisor):
        await source.write([byte])
        if gaps:
            await source.wait()
            await Timer(rng.randrange(1, 3 * CLOCK_NS * divisor), unit="ns")
    await source.wait()
    await Timer(12 * CLOCK_NS * divisor, unit="ns")
    for task in tasks:
        task.cancel()
    return bytes(taken), errors


async def all_received(dut, rates: dict[int, float], **options) -> dict[int, tuple[bytes, int]]:
    """Let the peers of all divisors send at once, each with its rate."""
    tasks = {divisor: cocotb.start_soon(received(dut, divisor, rate, **options))
             for divisor, rate in rates.items()}
    return {divisor: await task for divisor, task in tasks.items()}


@cocotb.test(timeout_time=100, timeout_unit="ms")
@cocotb.parametrize(rate=[0.97, 1.0, 1.03], gaps=[False, True])
async def receives_from_a_peer_within_three_percent(dut, rate, gaps):
    """Lose nothing, with bytes that follow one another at once and with idle time between."""
    await begin(dut)
    found = await all_received(dut, dict.fromkeys(DIVISORS, rate), gaps=gaps)
    for divisor, (data, errors) in found.items():
        assert (data, errors) == (message(divisor), 0), divisor


@cocotb.test(timeout_time=100, timeout_unit="ms")
@cocotb.parametrize(beyond=[False, True], longer=[False, True])
async def tolerance_equals_formula(dut, beyond, longer):
    """Understand a peer that is off by the formula's share, and not one that is 0.6 % beyond."""
    await begin(dut)
    rates = {}
    for divisor in DIVISORS:
        long, short = map(float, uart_tolerance(divisor))
        share = (long if longer else short) + (0.006 if beyond else -0.001)
        rates[divisor] = 1 + share if longer else 1 - share
    for divisor, (data, errors) in (await all_received(dut, rates)).items():
        assert ((data, errors) == (message(divisor), 0)) == (not beyond), divisor


@cocotb.test(timeout_time=100, timeout_unit="ms")
@cocotb.parametrize(rate=[0.97, 1.0, 1.03])
async def sends_to_a_peer_within_three_percent(dut, rate):
    """Send without gaps to a peer that samples each bit once, in its middle."""
    await begin(dut)

    async def send(divisor):
        sink = peer(UartSink, dut[f"tx_{divisor}"], divisor, rate)
        valid, ready = dut[f"i_{divisor}__valid"], dut[f"i_{divisor}__ready"]
        for byte in message(divisor):
            dut[f"i_{divisor}__payload"].value = byte
            valid.value = 1
            await RisingEdge(dut.clk)
            while not ready.value:
                # A byte takes long: no need to look in every cycle.
                await RisingEdge(ready)
                await RisingEdge(dut.clk)
        valid.value = 0
        await Timer(12 * CLOCK_NS * divisor, unit="ns")
        assert bytes(sink.read_nowait()) == message(divisor), divisor

    for task in [cocotb.start_soon(send(divisor)) for divisor in DIVISORS]:
        await task
