"""The registers of hw/link/registers.py, between AXI4-Lite and the streams of an accelerator."""

import json

from amaranth import *
from amaranth.lib import fifo, memory, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for, exact_log2

from hw.common.stream import accepted
from hw.config import AcceleratorConfig
from hw.control.dispatch import fault_layout, token_layout
from hw.control.program import program_layout
from hw.link.answers import answer_layout
from hw.link.axi_lite import DECERR, OKAY, SLVERR, AxiLiteSubordinate, axi_lite_signature
from hw.link.protocol import Answer
from hw.link.registers import (
    ADDRESS_BITS,
    DESCRIPTION_ADDRESS,
    DESCRIPTION_BYTES,
    IDENTIFICATION,
    INTERRUPTS,
    MAP_VERSION,
    PAGE_BITS,
    PROGRAM_WORDS,
    REGISTERS,
)

__all__ = ["ControlRegisters", "description", "result_depth"]

#: Instructions that PROGRAM_INDEX and FIRST can name.
_MOST_INSTRUCTIONS = 1 << 16


def result_depth(config: AcceleratorConfig) -> int:
    """Return how many results can wait: those of two TOP_Ks."""
    return 2 * (config.top_k + 1)


def description(config: AcceleratorConfig) -> bytes:
    """Return what a driver must know of the accelerator, as JSON in ASCII.

    Raises
    ------
    ValueError
        If there is no room for it.
    """
    text = json.dumps({
        "configuration_hash": f"{config.configuration_hash():08x}",
        "memory_bytes": config.memory_bytes,
        "results": result_depth(config),
        "accelerator": config.facts(),
    }, separators=(",", ":")).encode("ascii")
    if len(text) > DESCRIPTION_BYTES:
        raise ValueError(f"Description must have at most {DESCRIPTION_BYTES} bytes, "
                         f"not {len(text)}")
    return text


class ControlRegisters(wiring.Component):
    """All registers; hw/link/registers.py says what each access does and is answered with.

    A pass that is started is offered until it is accepted; results wait in a queue, and when it is
    full the accelerator waits for them. None of this makes the bus wait.

    Parameters
    ----------
    config : AcceleratorConfig

    Members
    -------
    bus : In of :func:`hw.link.axi_lite.axi_lite_signature`
    o_program : Out(stream) of :func:`hw.control.program.program_layout`
    o_tokens : Out(stream) of :func:`hw.control.dispatch.token_layout`
    i_answers : In(stream) of :func:`hw.link.answers.answer_layout`
        TOP_K and SCALE only.
    i_faults : In(stream) of :func:`hw.control.dispatch.fault_layout`
    idle : In(1)
        The accelerator is in no pass and has no fault.
    reset : Out(1)
        The accelerator is reset with this cycle's clock edge. What is here of it is reset too; base
        and INTERRUPT_ENABLE stay.
    draining : In(1)
        The memory's bus owes something of before the reset, from the cycle after ``reset`` on.
    reads, writes, waits : In(1)
        A transfer on R, on W, a cycle in which R owed data and had none.
    base : Out(64)
        Address of the image, a multiple of 4 KiB. It changes only while the accelerator asks for
        nothing, and its bus owes nothing.
    interrupt : Out(1)
        High while a bit of INTERRUPT_STATUS is set that INTERRUPT_ENABLE has too.

    Raises
    ------
    ValueError
        If the program has more instructions than the registers can name, or there is no room for
        the description.
    """

    bus: wiring.PureInterface
    o_program: stream.Interface
    o_tokens: stream.Interface
    i_answers: stream.Interface
    i_faults: stream.Interface
    idle: Signal
    reset: Signal
    draining: Signal
    reads: Signal
    writes: Signal
    waits: Signal
    base: Signal
    interrupt: Signal

    def __init__(self, config: AcceleratorConfig):
        if config.program_depth > _MOST_INSTRUCTIONS:
            raise ValueError(f"Program depth must be at most {_MOST_INSTRUCTIONS} behind "
                             f"registers, not {config.program_depth}")
        self.config = config
        self._description = description(config)
        super().__init__({
            "bus": In(axi_lite_signature(address_width=ADDRESS_BITS)),
            "o_program": Out(stream.Signature(program_layout(config))),
            "o_tokens": Out(stream.Signature(token_layout(config))),
            "i_answers": In(stream.Signature(answer_layout(config))),
            "i_faults": In(stream.Signature(fault_layout(config))),
            "idle": In(1), "reset": Out(1), "draining": In(1),
            "reads": In(1), "writes": In(1), "waits": In(1),
            "base": Out(64), "interrupt": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        config, tokens, faults = self.config, self.o_tokens, self.i_faults
        m.submodules.lite = lite = AxiLiteSubordinate(address_width=ADDRESS_BITS)
        wiring.connect(m, wiring.flipped(self.bus), lite.bus)
        # All that begins anew with the accelerator is here.
        work = Module()
        m.submodules.work = ResetInserter(self.reset)(work)

        values = {name: Signal(32, name=name.lower()) for name in REGISTERS}
        interrupts = len(INTERRUPTS)
        enabled, happened = Signal(interrupts), Signal(interrupts)
        program_index = Signal(bits_for(config.program_depth))
        words = [Signal(32, name=f"word_{number}") for number in range(len(PROGRAM_WORDS))]
        token, first = Signal.like(tokens.p.token), Signal.like(tokens.p.start)
        fault = Signal(fault_layout(config))
        opened = Signal(init=1)             # no pass has begun since the reset
        busy, faulted, resetting = Signal(), Signal(), Signal()
        m.d.comb += [
            busy.eq(tokens.valid | ~(self.idle | faulted)),
            resetting.eq(self.reset | self.draining),
        ]

        results = fifo.SyncFIFOBuffered(width=self.i_answers.payload.shape().size,
                                        depth=result_depth(config))
        work.submodules.results = results
        oldest = self._results(m, results)

        index_fits = program_index < config.program_depth
        written, data = self._writes(m, lite.write, {
            "CONTROL": ~lite.write.data[:2].all() & ~(lite.write.data[1]
                                                      & (busy | faulted | resetting)),
            "BASE_LOW": opened & ~resetting,
            "BASE_HIGH": opened & ~resetting,
            "PROGRAM_INDEX": lite.write.data < config.program_depth,
            "TOKEN": ~tokens.valid & ~lite.write.data[len(token):].any(),
            "FIRST": ~tokens.valid & (lite.write.data < config.program_depth),
            PROGRAM_WORDS[-1]: opened & ~resetting & index_fits & ~self.o_program.valid,
            "RESULT_POP": ~data_bit(lite.write, "RESULT_POP", "pop") | oldest["valid"],
        })

        # What a reset leaves.
        m.d.sync += self.reset.eq(written["CONTROL"] & data["CONTROL", "reset"])
        with m.If(written["INTERRUPT_ENABLE"]):
            m.d.sync += enabled.eq(lite.write.data)
        with m.If(written["BASE_LOW"]):
            m.d.sync += self.base[PAGE_BITS:32].eq(data["BASE_LOW", "address"])
        with m.If(written["BASE_HIGH"]):
            m.d.sync += self.base[32:].eq(data["BASE_HIGH", "address"])

        # The program.
        m.d.comb += [
            self.o_program.p.index.eq(program_index - 1),   # it has gone one up
            self.o_program.p.instruction.eq(Cat(words)),
        ]
        with work.If(self.o_program.ready):
            work.d.sync += self.o_program.valid.eq(0)
        with work.If(written["PROGRAM_INDEX"]):
            work.d.sync += program_index.eq(lite.write.data)
        for name, word in zip(PROGRAM_WORDS, words, strict=True):
            with work.If(written[name]):
                work.d.sync += word.eq(lite.write.data)
        with work.If(written[PROGRAM_WORDS[-1]]):
            work.d.sync += [self.o_program.valid.eq(1), program_index.eq(program_index + 1)]

        # A pass.
        begins, was_busy = Signal(), Signal()
        m.d.comb += [
            begins.eq(written["CONTROL"] & data["CONTROL", "start"]),
            tokens.p.token.eq(token),
            tokens.p.start.eq(first),
            faults.ready.eq(1),
            results.r_en.eq(written["RESULT_POP"] & data["RESULT_POP", "pop"]),
        ]
        work.d.sync += was_busy.eq(busy)
        with work.If(tokens.ready):
            work.d.sync += tokens.valid.eq(0)
        with work.If(begins):
            work.d.sync += [tokens.valid.eq(1), opened.eq(0)]
        with work.If(written["TOKEN"]):
            work.d.sync += token.eq(lite.write.data)
        with work.If(written["FIRST"]):
            work.d.sync += first.eq(lite.write.data)
        with work.If(accepted(faults) & ~faulted):
            work.d.sync += [faulted.eq(1), fault.eq(faults.p)]

        happens = {"done": was_busy & ~busy & ~faulted,
                   "results": accepted(self.i_answers) & (self.i_answers.p.kind == Answer.SCALE),
                   "fault": accepted(faults) & ~faulted}
        cleared = Mux(written["INTERRUPT_STATUS"], lite.write.data[:interrupts], 0)
        work.d.sync += [
            happened.eq((happened & ~cleared) | Cat(happens[field.name] for field in INTERRUPTS)),
            self.interrupt.eq((happened & enabled).any()),
        ]

        for name, counts in (("CYCLES", 1), ("READS", self.reads), ("WRITES", self.writes),
                             ("WAITS", self.waits)):
            with work.If(begins):
                work.d.sync += values[name].eq(0)
            with work.Elif(busy & counts):
                work.d.sync += values[name].eq(values[name] + 1)

        m.d.comb += [values[name].eq(value) for name, value in {
            "IDENTIFICATION": IDENTIFICATION,
            "VERSION": REGISTERS["VERSION"].pack(major=MAP_VERSION[0], minor=MAP_VERSION[1]),
            "CONFIGURATION": config.configuration_hash(),
            "DESCRIPTION": len(self._description),
            "INTERRUPT_ENABLE": enabled,
            "INTERRUPT_STATUS": happened,
            "BASE_LOW": self.base[:32],
            "BASE_HIGH": self.base[32:],
            "PROGRAM_INDEX": program_index,
            "TOKEN": token,
            "FIRST": first,
            "RESULTS": results.level,
            "RESULT_INDEX": oldest["index"],
            "RESULT_VALUE": oldest["value"],
            "FAULT": fault.fault,
            "FAULT_INSTRUCTION": fault.instruction,
            "FAULT_ADDRESS": fault.address,
        }.items()]
        for name, fields in {
                "STATUS": {"busy": busy, "fault": faulted, "results": oldest["valid"],
                           "open": opened & ~resetting, "resetting": resetting},
                "RESULT": {"valid": oldest["valid"], "kind": oldest["kind"]},
                "FAULT_ACCESS": {"response": fault.response, "write": fault.write}}.items():
            places = {field.name: field for field in REGISTERS[name].fields}
            m.d.comb += [values[name][places[field].low:][:places[field].width].eq(value)
                         for field, value in fields.items()]
        self._reads(m, lite.read, values)
        return m

    def _results(self, m, results):
        """Fill the queue, and return the fields of the oldest result: 0 if there is none."""
        m.d.comb += [
            results.w_data.eq(self.i_answers.payload),
            results.w_en.eq(self.i_answers.valid),
            self.i_answers.ready.eq(results.w_rdy),
        ]
        found = Signal(answer_layout(self.config))
        with m.If(results.r_rdy):
            m.d.comb += found.eq(results.r_data)
        return {"valid": results.r_rdy, "kind": found.kind == Answer.SCALE,
                "index": found.index, "value": found.value}

    @staticmethod
    def _writes(m, write, allowed):
        """Answer writes; return when each register is written, and its fields by their names."""
        known, writable, fits, may = Signal(), Signal(), Signal(), Signal()
        done = Signal()
        written = {name: Signal(name=f"{name.lower()}_written")
                   for name, register in REGISTERS.items() if register.writable}
        with m.Switch(write.address):
            for name, register in REGISTERS.items():
                with m.Case(register.address):
                    m.d.comb += known.eq(1)
                    if register.writable:
                        m.d.comb += [
                            writable.eq(1),
                            fits.eq(~(write.data & ~C(register.mask, 32)).any()),
                            may.eq(allowed.get(name, 1)),
                            written[name].eq(done),
                        ]
        with m.If(_in_description(write.address)):
            m.d.comb += known.eq(1)
        m.d.comb += done.eq(write.valid & write.strobe.all() & writable & fits & may)
        with m.If(~known):
            m.d.comb += write.response.eq(DECERR)
        with m.Elif(write.strobe.any() & ~(write.strobe.all() & writable & fits & may)):
            m.d.comb += write.response.eq(SLVERR)
        with m.Else():
            m.d.comb += write.response.eq(OKAY)
        return written, {(name, field.name): data_bit(write, name, field.name)
                         for name in written for field in REGISTERS[name].fields}

    def _reads(self, m, read, values):
        """Answer reads."""
        text = self._description.ljust(DESCRIPTION_BYTES, b"\0")
        m.submodules.text = rom = memory.Memory(shape=32, depth=len(text) // 4, init=[
            int.from_bytes(text[place:place + 4], "little") for place in range(0, len(text), 4)])
        port = rom.read_port()
        m.d.comb += [
            port.addr.eq(read.address[2:2 + exact_log2(rom.depth)]),
            port.en.eq(read.valid),
            read.response.eq(DECERR),
        ]
        with m.Switch(read.address):
            for name, register in REGISTERS.items():
                with m.Case(register.address):
                    m.d.comb += [
                        read.response.eq(OKAY if register.readable else SLVERR),
                        read.data.eq(values[name] if register.readable else 0),
                    ]
        with m.If(_in_description(read.address)):
            m.d.comb += [read.response.eq(OKAY), read.data.eq(port.data)]


def data_bit(write, name: str, field: str) -> Value:
    """Return the bits of a field in what is written."""
    place = next(place for place in REGISTERS[name].fields if place.name == field)
    return write.data[place.low:place.low + place.width]


def _in_description(address: Value) -> Value:
    """Whether there is a word of the description at an address; it fills the upper half."""
    assert DESCRIPTION_ADDRESS == DESCRIPTION_BYTES == 1 << ADDRESS_BITS - 1
    return address[-1] & (address[:2] == 0)
