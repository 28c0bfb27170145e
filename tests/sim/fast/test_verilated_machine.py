# amaranth: UnusedElaboratable=no

"""The simulated accelerator: its results, its cycles, and every message."""

import dataclasses

import numpy as np
import pytest

import sim.fast.machine
from host.compiler.compile import compile_model
from host.models.examples import tiny_model
from hw.accelerator import Accelerator
from hw.config import AcceleratorConfig, EngineConfig
from hw.isa import Fault, Instruction, Opcode, encode
from sim.bench.bench_accelerator import CONFIGURATIONS, attending
from sim.fast.library import SimulatorStopped
from sim.fast.machine import DESIGN, VerilatedAccelerator
from sim.golden.machine import Machine, MachineFault
from sim.golden.wina import Mask
from sim.timing.program import token_cycles
from tests.host.accelerator_examples import MISSING, SMALL

pytestmark = pytest.mark.skipif(bool(MISSING), reason="; ".join(MISSING))

TOKENS = [0, 17, 200, 258]


@pytest.fixture(scope="module")
def image():
    return compile_model(tiny_model(layers=1), SMALL)


def program(*instructions):
    return b"".join(map(encode, instructions))


def equal(best, emission):
    np.testing.assert_array_equal(best.rows, emission.rows)
    np.testing.assert_array_equal(best.values, emission.values)
    assert (best.number, best.exponent) == (emission.number, emission.exponent)


@pytest.mark.parametrize(("latency", "refresh", "stall"),
                         [(20, 0.01, 0.0), (1, 0.0, 0.0), (7, 0.2, 0.3)])
def test_tokens_equal_golden(image, latency, refresh, stall):
    code = image.program.encoded()
    golden = Machine(SMALL, code, image.memory)
    passes = [(token, image.program.body if k else 0) for k, token in enumerate(TOKENS)]
    with VerilatedAccelerator(SMALL, latency=latency, refresh=refresh, stall=stall) as machine:
        machine.load(code, image.memory)
        runs = machine.run(passes)
        for run, one in zip(runs, passes, strict=True):
            expected = golden.run(*one)
            assert len(run.emissions) == len(expected) == len(image.program.heads)
            for best, emission in zip(run.emissions, expected, strict=True):
                equal(best, emission)
        np.testing.assert_array_equal(machine.memory[:len(image.memory)], golden.memory)
    if not stall:
        cost = token_cycles(SMALL, image.program.instructions, image.program.body,
                            latency=latency, refresh=refresh)
        for run in runs[2:]:
            assert run.cycles == pytest.approx(cost.cycles, rel=0.01)
            assert run.reads + run.writes == pytest.approx(cost.transfers, rel=0.01)


def test_tokens_one_by_one_take_the_same_cycles(image):
    """Between calls no cycle passes, so that nothing is read ahead meanwhile."""
    passes = [(token, image.program.body if k else 0) for k, token in enumerate(TOKENS)]
    cycles = []
    for calls in ([passes], [[one] for one in passes]):
        with VerilatedAccelerator(SMALL) as machine:
            machine.load(image.program.encoded(), image.memory)
            cycles.append([run.cycles for call in calls for run in machine.run(call)])
    assert cycles[0] == cycles[1]


@pytest.mark.parametrize("stall", [0.0, 0.3])
def test_units_that_stand_still_change_nothing(monkeypatch, stall):
    """With a clock for each unit, or with one for all: the same cycles, transfers and integers."""
    model = tiny_model(layers=2)
    config = dataclasses.replace(SMALL, engine=dataclasses.replace(SMALL.engine, row_columns=256))
    label = "blk.0.mix_in"
    masks = {label: Mask(np.ones(model.width, np.uint16), keep=5)}
    one_clock = dataclasses.replace(DESIGN, name="accelerator-one-clock", component=Accelerator,
                                    clocks=lambda config: ())
    for options in ({}, {"sparse": True}, {"sparse": True, "masks": masks}):
        image = compile_model(model, config, **options)
        passes = [(token, image.program.body if k else 0) for k, token in enumerate(TOKENS)]
        runs = []
        for design in (DESIGN, one_clock):
            monkeypatch.setattr(sim.fast.machine, "DESIGN", design)
            with VerilatedAccelerator(config, stall=stall) as machine:
                machine.load(image.program.encoded(), image.memory)
                runs.append((machine.run(passes), machine.profile()))
        (runs_a, profile_a), (runs_b, profile_b) = runs
        for a, b in zip(runs_a, runs_b, strict=True):
            assert (a.cycles, a.reads, a.writes) == (b.cycles, b.reads, b.writes)
            for best, emission in zip(a.emissions, b.emissions, strict=True):
                equal(best, emission)
        np.testing.assert_array_equal(profile_a, profile_b)


def test_attention():
    """Whole contexts and a new sequence; the cycles of a token to half a percent."""
    config = CONFIGURATIONS["attention"]
    writer, body = attending(config, 1)
    code = b"".join(map(encode, writer.program))
    golden = Machine(config, code, writer.contents())
    passes = [(1, 0), *((token, body) for token in range(1, config.context)), (3, 0), (4, body)]
    with VerilatedAccelerator(config, latency=20, refresh=0.0) as machine:
        machine.load(code, writer.contents())
        for run, one in zip(machine.run(passes), passes, strict=True):
            for best, emission in zip(run.emissions, golden.run(*one), strict=True):
                equal(best, emission)
            if one[1]:
                cost = token_cycles(config, writer.program, body, position=golden.position)
                assert run.cycles == pytest.approx(cost.cycles, rel=0.005)
        np.testing.assert_array_equal(machine.memory[:len(golden.memory)], golden.memory)


def test_memory_is_written():
    """STORE, and a LOAD behind it that sees it; stalls on every stream."""
    code = program(
        Instruction(opcode=Opcode.LOAD, target=8, count=64, address=128),
        Instruction(opcode=Opcode.STORE, a=8, count=32, address=256),
        Instruction(opcode=Opcode.LOAD, target=8, count=64, address=256),
        Instruction(opcode=Opcode.STORE, a=8, count=64, address=0),
        Instruction(opcode=Opcode.STOP))
    memory = np.random.default_rng(3).integers(0, 256, 384, np.uint8).tobytes()
    golden = Machine(SMALL, code, memory)
    golden.run(0)
    for stall in (0.0, 0.4):
        with VerilatedAccelerator(SMALL, stall=stall) as machine:
            machine.load(code, memory)
            run = machine.run([(0, 0)])[0]
            np.testing.assert_array_equal(machine.memory, golden.memory)
            assert (run.emissions, run.reads, run.writes) == ([], 64, 48)


def test_a_fault_stops_the_accelerator_until_its_reset(image):
    code = program(Instruction(opcode=Opcode.STOP), Instruction(opcode=Opcode.QUANTIZE))
    with VerilatedAccelerator(SMALL) as machine:
        machine.load(code, b"")
        assert [run.emissions for run in machine.run([(0, 0)])] == [[]]
        for start, fault in ((1, Fault.FUNCTION), (2, Fault.OPCODE)):
            with pytest.raises(MachineFault) as error:
                machine.run([(0, start)])
            assert (error.value.fault, error.value.instruction) == (fault, start)
            machine.reset()
            machine.run([(0, 0)])
        machine.load(image.program.encoded(), image.memory)
        assert len(machine.run([(3, 0)])[0].emissions) == 1


class TestErrors:
    def test_beyond_the_memory(self, image):
        with VerilatedAccelerator(SMALL) as machine:
            machine.load(image.program.encoded(), image.memory[:4096])
            with pytest.raises(SimulatorStopped,
                               match=r"^The simulated accelerator, in cycle \d+, reads "
                               r"\d+ transfers from address 0x[0-9a-f]+, but the memory has 0x1000 "
                               r"bytes$"):
                machine.run([(0, 0)])
            machine.load(program(Instruction(opcode=Opcode.STORE, a=0, count=4, address=64),
                                 Instruction(opcode=Opcode.STOP)), bytes(64))
            with pytest.raises(SimulatorStopped,
                               match=r"^The simulated accelerator, in cycle \d+, writes "
                               r"to address 0x40, but the memory has 0x40 bytes$"):
                machine.run([(0, 0)])

    def test_no_progress(self, image, monkeypatch):
        with VerilatedAccelerator(SMALL, latency=10_000) as machine:
            machine.load(image.program.encoded(), image.memory)
            monkeypatch.setattr(sim.fast.machine, "PATIENCE", 100)
            with pytest.raises(SimulatorStopped,
                               match=r"^The simulated accelerator, in cycle \d+, has "
                               r"moved nothing for 100 cycles$"):
                machine.run([(0, 0)])

    def test_too_large(self):
        with VerilatedAccelerator(SMALL) as machine:
            with pytest.raises(ValueError, match=r"^Program must have at most 256 instructions, "
                                                 r"not 257$"):
                machine.load(bytes(257 * 16), b"")
            with pytest.raises(ValueError, match=r"^Memory must have at most 524288 bytes, "
                                                 r"not 524289$"):
                machine.load(b"", bytes(524289))

    @pytest.mark.parametrize(("arguments", "message"), [
        ({"latency": 0}, r"^Latency of the memory must be at least 1 cycle, not 0$"),
        ({"refresh": 0.0005}, r"^Refresh must be a multiple of 1/1000 below 1, not 0\.0005$"),
        ({"refresh": 1.0}, r"^Refresh must be a multiple of 1/1000 below 1, not 1\.0$"),
        ({"stall": 1.0}, r"^Stall must be a probability below 1, not 1\.0$"),
    ])
    def test_arguments(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            VerilatedAccelerator(SMALL, **arguments)

    def test_too_wide(self):
        config = AcceleratorConfig(engine=EngineConfig(accumulator_width=33))
        with pytest.raises(ValueError, match=r"^Accumulator width must be at most 32 in the "
                                             r"simulator, not 33$"):
            VerilatedAccelerator(config)
