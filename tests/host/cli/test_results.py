"""``tally results``: each finding is planted and must be reported; clean records pass."""

import argparse
import json
import subprocess

import pytest

from host.cli import main as cli
from host.cli import results
from hw import records
from hw.bars import sentence
from hw.synth.units import UNITS
from sim import command_line as sim_main


def run(capsys, *arguments):
    """Exit status, and the lines of both streams."""
    status = cli.main(["results", *arguments])
    captured = capsys.readouterr()
    assert (status == 0) or captured.out or captured.err
    return status, captured.out.splitlines(), captured.err.splitlines()


def record(command, *rows):
    return {"command": command, "versions": {}, "configuration": {}, "rows": list(rows)}


def row_of(maker, **fields):
    """Return a row with the hash of today's sources."""
    return {**fields, "sources": records.source_hash(*records.MAKERS[maker].sources(fields))}


@pytest.fixture(scope="module")
def clean():
    """Return records without a finding, by their names."""
    units = [row_of("hw.synth", name=name, bar=sentence(unit.bars), module=unit.module, lut4=1,
                    lut4_eq=1, ff=9, block_ram=0, dsp=0, fmax_mhz=999.0)
             for name, unit in UNITS.items()]
    cycles = row_of("host prefill", model="m", port_bytes=1, batch=8, tokens=64, cycles=900,
                    formula_cycles=901, speedup=6.5)
    return {
        "units": record("python -m hw.synth --output docs/results/units.json", *units),
        "prefill": record("python -m host prefill --json docs/results/prefill.json", cycles),
        "lmul_error": record("python -m sim lmul-error",
                             row_of("sim lmul-error", format="e4m3", pairs=3))}


@pytest.fixture
def folder(monkeypatch, tmp_path, clean):
    """Put the clean records into a folder of their own."""
    monkeypatch.setattr(records, "RESULTS", tmp_path / "docs/results")
    records.RESULTS.mkdir(parents=True)
    for name, kept in clean.items():
        put(name, kept)
    return records.RESULTS


def put(name, kept):
    (records.RESULTS / f"{name}.json").write_text(
        kept if isinstance(kept, str) else json.dumps(kept))


def changed(clean, name, index=0, /, **fields):
    """Return a record with other fields in one row; None takes a field away."""
    copy = json.loads(json.dumps(clean[name]))
    row = copy["rows"][index] | fields
    copy["rows"][index] = {key: value for key, value in row.items() if value is not None}
    return copy


class TestCheck:
    def test_clean(self, capsys, folder):
        assert run(capsys, "--check") == (0, ["3 records: nothing to report"], [])

    @pytest.mark.parametrize("sources", [None, "0123456789ab", records.CHANGED])
    def test_stale_rows_are_a_warning(self, capsys, folder, clean, sources):
        put("lmul_error", changed(clean, "lmul_error", sources=sources))
        assert run(capsys, "--check") == (0, [
            "warning: lmul_error.json: 1 of 1 rows are stale; run 'python -m sim lmul-error'",
            "3 records: 1 warning"], [])

    def test_stale_units_are_named(self, capsys, folder, clean):
        put("units", changed(clean, "units", list(UNITS).index("gearbox"), sources="x"))
        status, out, _ = run(capsys, "--check")
        assert status == 0
        assert out[0] == (f"warning: units.json: 1 of {len(UNITS)} rows are stale; run 'python -m "
                          f"hw.synth gearbox --output docs/results/units.json'")

    @pytest.mark.parametrize(("name", "command", "message"), [
        ("lmul_error", "python -m sim lmul", "No command makes it: 'python -m sim lmul' is none "
         "that makes records; delete the file, or make it with one that does"),
        ("lmul_error", "", "No command makes it: '' is none that makes records; delete the file, "
         "or make it with one that does"),
        ("other", "python -m sim lmul-error", "No command makes this file: 'python -m sim "
         "lmul-error' makes lmul_error.json; delete it, or let a command write it"),
        ("other", "python -m host fit ulx3s", "No command makes this file: 'python -m host fit' "
         "makes none; delete it, or let a command write it")])
    def test_files_that_no_command_makes(self, capsys, folder, clean, name, command, message):
        put(name, clean["lmul_error"] | {"command": command})
        status, out, _ = run(capsys, "--check")
        assert status == 1
        assert out[0] == f"error: {name}.json: {message}"

    @pytest.mark.parametrize("text", ["{", "[]", "{}", '{"command": "x", "rows": [1]}'])
    def test_files_that_are_no_records(self, capsys, folder, text):
        put("token", text)
        status, out, _ = run(capsys, "--check")
        assert status == 1
        assert out[0].startswith("error: token.json: It ")
        assert run(capsys)[0] == 0

    @pytest.mark.parametrize(("name", "command", "row", "label"), [
        ("boards", "python -m hw.build BOARD --record", {"board": "x", "fmax_mhz": 2,
                                                         "clock_mhz": 1}, "x"),
        ("board_parts", "python -m hw.build BOARD --record", {"board": "x", "part": "y"}, "x, y"),
        ("faults", "python -m sim faults", {"unit": "x", "fault": "y"}, "x, y"),
        ("fuzz", "python -m host fuzz", {"reader": "x", "crashes": 0}, "x"),
        ("link_soak", "python -m host soak", {"device": "x", "wrong": 0}, "x"),
        ("models", "python -m host models", {"architecture": "x", "format": "y", "judge": "z",
                                             "difference": 0, "limit": 1}, "x, y, z"),
        ("mutants", "python -m sim mutate", {"unit": "x"}, "x"),
        ("netlists", "python -m sim netlist", {"unit": "x", "technology": "y", "configuration": "z",
                                               "equal": True, "undefined_inputs": 0}, "x, y, z"),
        ("programs", "python -m sim programs", {"configuration": "x", "differing": 0, "hangs": 0},
         "x"),
        ("proofs", "python -m sim prove --record", {"proof": "x", "property": "y", "holds": True},
         "x, y")])
    def test_rows_that_no_command_makes(self, capsys, folder, name, command, row, label):
        put(name, record(command, row))
        status, out, _ = run(capsys, "--check")
        assert status == 1
        assert out[0] == (f"error: {name}.json: No command makes 1 of the rows; run '{command}', "
                          f"which drops them: {label}")
        assert not out[1].startswith("error")
        assert any(line.startswith(f"warning: {name}.json: ") and " are not measured, as '" in line
                   for line in out)

    def test_units_that_are_gone(self, capsys, folder, clean):
        put("units", changed(clean, "units", name="x"))
        status, out, _ = run(capsys, "--check")
        assert status == 1
        assert out[0] == (
            "error: units.json: No command makes 1 of the rows; measure any unit with 'python -m "
            "hw.synth UNIT --output docs/results/units.json', which drops them: x")
        assert out[1] == (f"error: units.json: 1 of {len(UNITS)} units have no row; run 'python "
                          f"-m hw.synth {next(iter(UNITS))} --output docs/results/units.json'")

    def test_no_units_at_all(self, capsys, folder):
        (folder / "units.json").unlink()
        status, out, _ = run(capsys, "--check")
        assert status == 1
        assert out[0].startswith(f"error: units.json: {len(UNITS)} of {len(UNITS)} units have no "
                                 f"row; run ")

    @pytest.mark.parametrize(("fields", "message"), [
        ({"lut4_eq": 64 * 44 + 1}, "<= 44 LUT4-eq per lane: lut4_eq_per_lane is 44.02"),
        ({"fmax_mhz": 149.9}, ">= 150 MHz: fmax_mhz is 149.9"),
        ({"fmax_mhz": None}, ">= 150 MHz: fmax_mhz was not measured"),
        ({"dsp": 1}, "0 DSP: dsp is 1")])
    def test_bars_of_units(self, capsys, folder, clean, fields, message):
        put("units", changed(clean, "units", list(UNITS).index("engine"), **fields))
        assert run(capsys, "--check") == (1, [
            f"error: units.json: Row 'engine' misses its bar {message}; mend what it measures, "
            f"then run 'python -m hw.synth engine --output docs/results/units.json'",
            "3 records: 1 error"], [])

    def test_bars_that_have_changed(self, capsys, folder, clean):
        put("units", changed(clean, "units", list(UNITS).index("gearbox"), bar="<= 1 LUT4"))
        assert run(capsys, "--check") == (0, [
            "warning: units.json: Unit gearbox has another bar by now, <= 12 LUT4-eq per lane; run "
            "'python -m hw.synth gearbox --output docs/results/units.json'",
            "3 records: 1 warning"], [])

    @pytest.mark.parametrize(("name", "row", "message"), [
        ("boards", {"board": "ulx3s", "fmax_mhz": 74.9, "clock_mhz": 75},
         "Row 'ulx3s' misses its bar fmax mhz >= clock mhz: fmax_mhz is 74.9"),
        ("fuzz", {"reader": "gguf", "crashes": 1},
         "Row 'gguf' misses its bar crashes <= 0: crashes is 1"),
        ("link_soak", {"device": "engine", "wrong": 2},
         "Row 'engine' misses its bar wrong <= 0: wrong is 2"),
        ("models", {"architecture": "Llama", "format": "safetensors", "judge": "transformers",
                    "difference": 0.0011, "limit": 0.001},
         "Row 'Llama, safetensors, transformers' misses its bar difference <= limit: difference is "
         "0.0011"),
        ("netlists", {"unit": "ulx3s", "equal": False, "undefined_inputs": 0},
         "Row 'ulx3s' misses its bar equal >= 1: equal is False"),
        ("prefill", {"port_bytes": 1, "batch": 8, "speedup": 5.9},
         "Row '1, 8' misses its bar speedup >= 6: speedup is 5.9"),
        ("programs", {"configuration": "small", "differing": 0, "hangs": 1},
         "Row 'small' misses its bar hangs <= 0: hangs is 1"),
        ("simulator", {"model": "m", "cycles_per_second": 499_999},
         "Row 'm' misses its bar cycles per second >= 500000: cycles_per_second is 499999"),
        ("twell", {"mode": "sparse", "part": "ffn", "speedup": 2.5, "bound": 3},
         "Row 'sparse, ffn' misses its bar speedup >= 85 % of bound: speedup is 2.5")])
    def test_bars_of_records(self, capsys, folder, name, row, message):
        maker = next(maker for maker, made in records.MAKERS.items() if name in made.records)
        put(name, record(f"python -m {maker}", row))
        status, out, _ = run(capsys, "--check")
        assert status == 1
        assert out[0] == (f"error: {name}.json: {message}; mend what it measures, then run "
                          f"'python -m {maker}'")
        assert not out[1].startswith("error")


def test_table(capsys, folder, clean):
    put("lmul_error", changed(clean, "lmul_error", sources=None))
    status, out, err = run(capsys)
    assert (status, err) == (0, [])
    rows = [line.split() for line in out]
    assert ["lmul_error", "python", "-m", "sim", "lmul-error", "1", "1"] in rows
    assert ["units", "python", "-m", "hw.synth", str(len(UNITS)), "0"] in rows


class TestAgainst:
    @pytest.fixture
    def repository(self, monkeypatch, folder):
        """Commit the clean records."""
        root = folder.parent.parent
        for arguments in (["init", "-q"], ["add", "-A"],
                          ["-c", "user.name=x", "-c", "user.email=x", "commit", "-qm", "x"]):
            subprocess.run(["git", *arguments], cwd=root, check=True)
        monkeypatch.setattr(records, "ROOT", root)
        return folder

    def test_the_same(self, capsys, repository):
        count = len(UNITS) + 1
        assert run(capsys, "--against", "HEAD") == (0, [
            f"{count} of {count} rows with cycles, areas or clocks compared with HEAD: nothing to "
            f"report"], [])

    @pytest.mark.parametrize("field", ["cycles", "formula_cycles"])
    def test_cycles_that_rise_are_errors(self, capsys, repository, clean, field):
        before = clean["prefill"]["rows"][0][field]
        put("prefill", changed(clean, "prefill", **{field: before + 200}))
        status, out, _ = run(capsys, "--against", "HEAD")
        assert (status, out[0]) == (1, (
            f"error: prefill.json: The {field} of 'm, 1, 8, 64' rose from {before} to "
            f"{before + 200:,}; mend it, or say in the change why it must"))
        put("prefill", changed(clean, "prefill", **{field: before - 1}))
        assert run(capsys, "--against", "HEAD")[0] == 0

    @pytest.mark.parametrize(("field", "value", "message"), [
        ("lut4_eq", 2000, "lut4_eq of 'engine' grew from 1 to 2,000"),
        ("lut4", 2, "lut4 of 'engine' grew from 1 to 2"),
        ("ff", 10, "ff of 'engine' grew from 9 to 10"),
        ("block_ram", 1, "block_ram of 'engine' grew from 0 to 1"),
        ("fmax_mhz", 998.5, "fmax_mhz of 'engine' fell from 999.0 to 998.5")])
    def test_area_and_clock_are_notes(self, capsys, repository, clean, field, value, message):
        put("units", changed(clean, "units", list(UNITS).index("engine"), **{field: value}))
        status, out, _ = run(capsys, "--against", "HEAD")
        assert (status, out[0]) == (0, f"note: units.json: The {message}")

    def test_what_cannot_be_compared(self, capsys, repository, clean):
        put("units", changed(clean, "units", name="other"))
        put("token", record("python -m host speed", {"model": "m", "cycles": 1},
                            {"model": "m", "cycles": 2}))
        status, out, _ = run(capsys, "--against", "HEAD")
        assert (status, out) == (0, [
            f"{len(UNITS)} of {len(UNITS) + 3} rows with cycles, areas or clocks compared with "
            f"HEAD: nothing to report"])

    def test_a_rate_is_no_count(self, capsys, repository, clean):
        slower = changed(clean, "prefill", cycles_per_second=1)
        put("prefill", slower)
        assert run(capsys, "--against", "HEAD")[0] == 0

    def test_a_broken_record(self, capsys, repository):
        put("prefill", "{")
        status, out, _ = run(capsys, "--against", "HEAD")
        assert status == 1
        assert out[0].startswith("error: prefill.json: It is not JSON: ")

    @pytest.mark.parametrize("commit", ["nosuch", "-x", ""])
    def test_no_commit(self, capsys, repository, commit):
        assert run(capsys, f"--against={commit}") == (1, [], [
            f"tally results: '{commit}' is not a commit of this repository (try 'git log')"])


def test_makers_are_commands():
    """Each command that is said to make records is there."""
    hosts = set()
    for command in cli.COMMANDS:
        for sub in getattr(command, "COMMANDS", ()):
            hosts.add(f"host {command.NAME} {sub.NAME}")
        hosts.add(f"host {command.NAME}")
    sims = {f"sim {module.NAME}" for module in sim_main._COMMANDS} | {"sim engine", "sim faults"}
    assert set(records.MAKERS) <= hosts | sims | {"hw.build", "hw.energy", "hw.synth"}


def test_keys_tell_the_kept_rows_apart():
    for name, fields in results._KEYS.items():
        rows = records.read_record(name)["rows"]
        keys = [tuple(row.get(field) for field in fields) for row in rows]
        assert len(set(keys)) == len(keys), name


def test_options_exclude_each_other(capsys):
    parser = argparse.ArgumentParser()
    results.add_arguments(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(["--check", "--against", "HEAD"])
    assert "not allowed with" in capsys.readouterr().err
