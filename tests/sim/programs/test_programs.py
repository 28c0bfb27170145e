"""Random programs: today's, what they cover, and how one is reduced."""

import dataclasses
from collections import Counter

import numpy as np
import pytest

from hw.formats.minifloat import bf16
from hw.isa import Batch, Fault, Function, Instruction, Opcode, decode, encode
from hw.order import OrderError, check_order
from sim.command_line import main
from sim.golden.machine import Machine
from sim.programs.campaign import Campaign, seed_of_day, verdict
from sim.programs.comparison import expected, read_case, run_case, write_case
from sim.programs.coverage import features, missing_features
from sim.programs.illegal import MISTAKES, with_mistake
from sim.programs.random import CONFIGURATIONS, Case, Timing, random_case
from sim.programs.reduction import reduced
from sim.tools import missing_tools

MISSING = missing_tools("verilator", "g++", "make", "perl")
needs_simulator = pytest.mark.skipif(bool(MISSING), reason="; ".join(MISSING))

LOAD = Instruction(opcode=Opcode.LOAD, target=8, count=64, address=0)
QUANTIZE = Instruction(opcode=Opcode.QUANTIZE, function=Function.DENSE, target=1, a=8, count=64)
STOP = Instruction(opcode=Opcode.STOP)


def matmul(rows, columns=64, **fields):
    return Instruction(opcode=Opcode.MATMUL, function=Function.BY_COLUMN, a=rows, b=1,
                       count=columns, **fields)


def by_row(rows, columns):
    return Instruction(opcode=Opcode.MATMUL, function=Function.BY_ROW, a=rows, b=2, count=columns)


def emit(rows):
    return Instruction(opcode=Opcode.TOP_K, count=rows, constant=bf16.one)


def case_of(configuration, *instructions, passes=((0, 0),), memory=b""):
    size = CONFIGURATIONS[configuration].memory_bytes
    return Case(configuration=configuration, program=tuple(map(encode, instructions)),
                memory=memory.ljust(size, b"\0"), passes=passes)


class BrokenMachine(Machine):
    """A golden machine whose differences have the other sign."""

    def _vector(self, instruction):
        if instruction.function == Function.SUBTRACT:
            instruction = dataclasses.replace(instruction, a=instruction.b, b=instruction.a)
        super()._vector(instruction)


def broken(case):
    return BrokenMachine(case.config, b"".join(case.program), case.memory)


@needs_simulator
@pytest.mark.parametrize("configuration", ["small", "attention"])
def test_programs_of_the_day(configuration, tmp_path):
    """Legal ones are equal, those with a mistake end as documented; new ones each day."""
    campaign = Campaign(configuration, seed_of_day())
    campaign.legal(100)
    campaign.illegal(200)
    assert campaign.failed is None, campaign.report(tmp_path)
    assert campaign.verdicts["equal"] > 100
    assert sum(count for kind, count in campaign.verdicts.items() if "fault" in kind) > 40
    assert set(campaign.mistakes) <= set(MISTAKES)


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_programs_have_every_feature(configuration):
    seen = Counter()
    config = CONFIGURATIONS[configuration]
    for seed in range(400):
        case = random_case(configuration, seed)
        seen += features(case, expected(case).machine)
        if seed >= 50 and not missing_features(config, seen):
            break
    assert missing_features(config, seen) == []
    assert "STOP: that waits" in missing_features(config, Counter())


def test_a_case_is_its_seed():
    assert random_case("wide", (3, 4)) == random_case("wide", (3, 4)) != random_case("wide", (3, 5))


@needs_simulator
def test_a_fault_is_found_and_reduced(tmp_path):
    """The golden machine is wrong in one function: what is left is that, and what shows it."""
    campaign = Campaign("small", 1, broken)
    while campaign.failed is None:
        campaign.legal(5)
    name, case, found = campaign.failed
    assert found.kind == "differs"
    assert len(case.program) > 15
    told = campaign.report(tmp_path)
    small = read_case(tmp_path / f"{name}-small.json")
    program = list(map(decode, small.program))
    assert f"Replay: python -m sim programs --replay {tmp_path / name}-small.json" in told
    assert verdict(small).kind == "equal"       # the golden machine as it is
    assert verdict(small, broken).kind == "differs"
    opcodes = [instruction.opcode for instruction in program]
    assert opcodes.count(Opcode.VECTOR) == 1
    assert len(program) <= 7
    assert len(small.passes) == 1
    assert small.timing == Timing()
    assert np.count_nonzero(np.frombuffer(small.memory, np.uint8)) < 100


def test_reduction_keeps_what_differs():
    """Without a simulator: the smallest case with a NORM of a register above 4 has nothing else."""
    def differs(case):
        program = [decode(data) for data in case.program]
        return any(instruction.opcode is Opcode.NORM and instruction.target > 4
                   for instruction in program)

    case = next(case for seed in range(100)
                if differs(case := random_case("equal", seed)))
    small = reduced(case, differs)
    assert [decode(data).opcode for data in small.program] == [Opcode.NORM]
    assert not any(small.memory)
    assert small.passes == ((0, 0),)


#: What waits for ever, with the reason why hosts refuse it.
HANGS = {
    "queue": (case_of("small", LOAD, QUANTIZE, *[matmul(8)] * 5, *[emit(8)] * 5, STOP),
              "Instruction 6: More than 4 products are not taken"),
    "columns": (case_of("small", LOAD, QUANTIZE, matmul(128, 8), matmul(128, 8), emit(128),
                        emit(128), STOP),
                "Instruction 2: The matrix has 8 columns, but the list was made of 64"),
    "products left": (case_of("small", LOAD, QUANTIZE, matmul(8), STOP, passes=((0, 0),) * 6),
                      "Instruction 3: the program stops, but 1 products were not taken"),
    "start": (case_of("small", Instruction(opcode=Opcode.STORE, count=8), LOAD, QUANTIZE,
                      matmul(8), emit(8), STOP, passes=((0, 0), (0, 2), (0, 2))),
              "A pass begins at instruction 2, but prefetch begins at the first one and waits "
              "for instruction 0"),
    "stop before": (case_of("small", STOP, LOAD, QUANTIZE, STOP, passes=((0, 0), (0, 1))),
                    "A pass begins at instruction 1, but prefetch turns back at the STOP at 0"),
    "mix": (case_of("attention", LOAD, Instruction(
        opcode=Opcode.KV_APPEND, function=Function.BF16, a=8, count=8, address=4096), Instruction(
        opcode=Opcode.PV, function=Function.BF16, target=8, count=8, constant=8,
        address=4096), STOP), "Instruction 2: Values of 8 elements are mixed"),
}


class TestOrder:
    """What hosts refuse: some of it, on the accelerator, would wait for ever."""

    @needs_simulator
    @pytest.mark.parametrize("name", HANGS)
    def test_accelerator_waits_for_ever(self, name):
        case, message = HANGS[name]
        found = verdict(case)
        assert found.kind == "refused"
        assert found.why.startswith(message)
        assert run_case(case, None).hangs

    @pytest.mark.parametrize(("rows", "fits"), [(896, True), (904, False)])
    def test_load_behind_products(self, rows, fits):
        """The engine begins the third product when it has delivered the first two."""
        program = [LOAD, QUANTIZE, matmul(rows), matmul(1024), matmul(1024), LOAD, emit(rows),
                   emit(1024), emit(1024), STOP]
        config = CONFIGURATIONS["wide"]
        if fits:
            check_order(config, program, [0])
            return
        with pytest.raises(OrderError, match=r"^Instruction 5: Products that are not taken have "
                                             r"241 result transfers, of which the engine delivers "
                                             r"240: the instruction would wait for one behind it$"):
            check_order(config, program, [0])
        # The third list is written where the first one was.
        lists = [LOAD, QUANTIZE, matmul(rows), matmul(1024), matmul(1024), QUANTIZE, QUANTIZE,
                 emit(rows), emit(1024), emit(1024), STOP]
        with pytest.raises(OrderError, match=r"^Instruction 6: Products that are not taken have 2"):
            check_order(config, lists, [0])
        check_order(config, [*lists[:6], *lists[7:]], [0])

    def test_load_behind_rows(self):
        config = CONFIGURATIONS["wide"]
        drain = Instruction(opcode=Opcode.WRITE_BACK, function=Function.COPY, target=8, count=240,
                            constant=bf16.one)
        rows = Instruction(opcode=Opcode.QUANTIZE, function=Function.NONZERO, a=8, count=240)
        program = [LOAD, QUANTIZE, rows, by_row(240, 64), LOAD, drain, STOP]
        with pytest.raises(OrderError, match=r"^Instruction 4: Products that are not taken have "
                                             r"241 result transfers"):
            check_order(config, program, [0])
        # One row less is listed.
        few = dataclasses.replace(rows, function=Function.KEEP_TOP_K, target=1, constant=239)
        again = dataclasses.replace(QUANTIZE, count=240)
        check_order(config, [LOAD, again, few, by_row(240, 240), LOAD, drain, STOP], [0])

    @needs_simulator
    @pytest.mark.slow
    @pytest.mark.parametrize(("rows", "hangs"), [(896, False), (960, True)])
    def test_accelerator_waits_for_its_results(self, rows, hangs):
        """Products of more words than the gearbox and the queue hold; a LOAD behind them."""
        case = case_of("wide", LOAD, QUANTIZE, matmul(rows), matmul(1024), matmul(1024), LOAD,
                       emit(rows), emit(1024), emit(1024), STOP)
        assert verdict(case).kind == ("refused" if hangs else "equal")
        assert run_case(case, None).hangs == hangs

    def test_lists_of_batches(self):
        config = CONFIGURATIONS["small"]
        first = dataclasses.replace(QUANTIZE, count=8, constant=Batch(log2=1).constant)
        second = dataclasses.replace(first, constant=Batch(log2=1, slot=1).constant)
        with pytest.raises(OrderError, match="the program stops, but one of a batch has only 1"):
            check_order(config, [LOAD, first, STOP], [0])
        check_order(config, [LOAD, first, second, STOP], [0])
        with pytest.raises(OrderError, match="Vector 1 of a batch of 2 is packed, of 4 elements, "
                                             "but the list has 1 of 2, of 8"):
            check_order(config, [LOAD, first, dataclasses.replace(second, count=4), STOP], [0])
        with pytest.raises(OrderError, match="Vector 1 of a batch is packed, but the list has 0"):
            check_order(config, [LOAD, second, STOP], [0])

    def test_product_in_the_middle_of_a_batch(self):
        """Its matrix is read whole, as the nearest QUANTIZE says; so must be its list."""
        config = CONFIGURATIONS["small"]
        first = dataclasses.replace(QUANTIZE, count=8, constant=Batch(log2=1).constant)
        second = dataclasses.replace(first, constant=Batch(log2=1, slot=1).constant)
        sparse = dataclasses.replace(QUANTIZE, function=Function.SPARSE)
        check_order(config, [LOAD, QUANTIZE, first, matmul(8), second, emit(8), STOP], [0])
        with pytest.raises(OrderError, match=r"^Instruction 3: A matrix is multiplied by a list "
                                             r"that is not DENSE, but one of a batch that has 1 of "
                                             r"its vectors is$"):
            check_order(config, [LOAD, sparse, first, matmul(8), second, emit(8), STOP], [0])

    def test_behind_a_fault_nothing_is_checked(self):
        config = CONFIGURATIONS["small"]
        check_order(config, [LOAD, None, matmul(8), STOP], [0])
        check_order(config, [LOAD, emit(8), matmul(8), STOP], [0])

    def test_scores_come_before_finite_vectors(self):
        """Heads that are not as many as the vector has are no fault, whatever it holds."""
        infinite = np.full(64, bf16.infinity, "<u2").tobytes()
        score = Instruction(opcode=Opcode.QK, function=Function.BF16, target=1, a=8, count=64,
                            constant=8, address=4096)
        found = verdict(case_of("attention", LOAD, score, STOP, memory=infinite))
        assert found.why == "Instruction 1: 1 heads of 8 elements have 8, not 64"


@needs_simulator
def test_mistakes_end_in_their_fault():
    """An undefined opcode, a program without an end, and a vector that is not finite."""
    infinite = np.full(64, bf16.infinity, "<u2").tobytes()
    for program, memory, fault in (
            ((LOAD, STOP), b"", None), ((LOAD,), b"", Fault.OPCODE),
            ((LOAD, QUANTIZE, STOP), infinite, Fault.NOT_FINITE)):
        found = verdict(case_of("small", *program, memory=memory))
        assert found.kind == (f"fault {fault.name}" if fault else "equal")
    undefined = dataclasses.replace(case_of("small", LOAD, STOP), program=(
        encode(LOAD), b"\xff" * 16, encode(STOP)))
    assert verdict(undefined).kind == "fault OPCODE"


def test_every_mistake_is_made():
    rng = np.random.default_rng(1)
    cases = [random_case("attention", seed) for seed in range(30)]
    made = Counter(with_mistake(cases[k % len(cases)], rng)[0] for k in range(300))
    assert set(made) == set(MISTAKES)


class TestCommand:
    @needs_simulator
    def test_replay(self, tmp_path, capsys):
        path = tmp_path / "case.json"
        case = case_of("small", LOAD, STOP)
        write_case(case, "nothing", path)
        assert read_case(path) == case
        assert main(["programs", "--replay", str(path)]) == 0
        told = capsys.readouterr().out.splitlines()
        assert told[2] == "   0  LOAD       target=8 count=64 address=0x0"
        assert told[-1] == "equal"

    @needs_simulator
    def test_errors(self, tmp_path, capsys):
        path = tmp_path / "case.json"
        path.write_text("{}")
        assert main(["programs", "--replay", str(path)]) == 2
        assert capsys.readouterr().err == (f"File {path} holds no case of random programs: "
                                           f"KeyError('configuration')\n")
        assert main(["programs", "--replay", str(tmp_path / "none")]) == 2
        assert "No such file or directory" in capsys.readouterr().err
        assert main(["programs", "--seed", "-1"]) == 2
        assert capsys.readouterr().err.startswith("Seed and counts must be at least 0")
