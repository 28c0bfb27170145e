"""Records: what is written, what stays, and what the hash of the sources counts."""

import json
import os
import stat
import time

import pytest

from hw import records
from hw.bars import Bar, sentence, shares
from hw.synth.units import UNITS


@pytest.fixture
def project(monkeypatch, tmp_path):
    """Make a small project: hw.a imports hw.b.c, and that hw.b.d, in a function."""
    files = {
        "hw/__init__.py": "", "hw/b/__init__.py": "",
        "hw/a.py": "import json\nfrom hw.b import c\n",
        "hw/b/c.py": "def f():\n    from .d import g\n    return g\n",
        "hw/b/d.py": "g = 1\n", "hw/other.py": "import hw.a\n", "sim/x.cpp": "int x;\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "docs/results").mkdir(parents=True)
    monkeypatch.setattr(records, "ROOT", tmp_path)
    monkeypatch.setattr(records, "RESULTS", tmp_path / "docs/results")
    monkeypatch.setattr(records, "_STARTED", time.time() + 3600)
    monkeypatch.setitem(records.MAKERS, "sim x", records.Maker(
        ("x",), lambda row: (str(row.get("module", "hw.a")),)))
    return tmp_path


def write(rows, **more):
    return records.write_record("x", maker="sim x", command="python -m sim x", versions={"v": "1"},
                                configuration={}, rows=rows, **more)


class TestHash:
    def test_imports_count_and_nothing_else_does(self, project):
        before = records.source_hash("hw.a")
        assert len(before) == 12
        (project / "hw/other.py").write_text("import hw.b.d\n")
        (project / "hw/new.py").write_text("")
        assert records.source_hash("hw.a") == before
        for name in ("hw/a.py", "hw/b/__init__.py", "hw/b/c.py", "hw/b/d.py"):
            text = (project / name).read_text()
            (project / name).write_text(f"{text}# more\n")
            assert records.source_hash("hw.a") != before, name
            (project / name).write_text(text)
        assert records.source_hash("hw.a") == before

    def test_folders_and_files(self, project):
        before = records.source_hash("hw/b/", "sim/x.cpp")
        assert records.source_hash("sim/x.cpp", "hw/b/") == before
        cache = project / "hw/b/__pycache__/c.pyc"
        cache.parent.mkdir()
        cache.write_text("")
        assert records.source_hash("hw/b/", "sim/x.cpp") == before
        (project / "hw/b/e.txt").write_text("")
        assert records.source_hash("hw/b/", "sim/x.cpp") != before
        assert records.source_hash("hw/b/c.py") != records.source_hash("hw.b.c")

    @pytest.mark.parametrize("source", ["hw.nosuch", "hw/nosuch/", "json", "None"])
    def test_what_is_not_there(self, project, source):
        with pytest.raises(ValueError, match=f"^Source '{source}' is neither a module nor a file"):
            records.source_hash(source)

    def test_stale(self, project):
        row = {"sources": records.source_hash("hw.a")}
        assert not records.stale(row, ["sim x"])
        assert records.stale({}, ["sim x"])
        assert records.stale(row, [])
        assert records.stale(row | {"module": "hw.gone"}, ["sim x"])
        (project / "hw/b/d.py").write_text("g = 2\n")
        assert records.stale(row, ["sim x"])


class TestWrite:
    def test_new_rows_get_the_hash_and_others_stay(self, project):
        old = [{"n": 1, "v": "old"}, {"n": 2, "v": "old", "sources": "x"}, {"n": 4, "v": "old"}]
        path = project / "docs/results/x.json"
        path.write_text(json.dumps({"command": "", "versions": {}, "configuration": {},
                                    "rows": old}))
        assert write([{"n": 0, "v": "new"}, {"n": 2, "v": "new"}], key=("n",),
                     keep=lambda row: row["n"] != 4, order=lambda row: row["n"]) == path
        new = records.source_hash("hw.a")
        assert records.read_record("x")["rows"] == [
            {"n": 0, "v": "new", "sources": new}, {"n": 1, "v": "old"},
            {"n": 2, "v": "new", "sources": new}]
        write([{"n": 7, "sources": "own"}])
        assert records.read_record("x")["rows"] == [{"n": 7, "sources": "own"}]
        assert path.read_text().endswith("}\n")

    def test_atomic(self, project, monkeypatch):
        path = write([{"n": 1}])
        mask = os.umask(0)
        os.umask(mask)
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask
        before = path.read_text()

        def stop(*arguments):
            raise KeyboardInterrupt

        monkeypatch.setattr(os, "replace", stop)
        with pytest.raises(KeyboardInterrupt):
            write([{"n": 2}])
        assert path.read_text() == before
        assert [file.name for file in path.parent.iterdir()] == ["x.json"]

    def test_sources_that_are_edited_meanwhile(self, project, monkeypatch):
        monkeypatch.setattr(records, "_STARTED", time.time() - 3600)
        write([{"n": 1}])
        row, = records.read_record("x")["rows"]
        assert row["sources"] == records.CHANGED
        assert records.stale(row, ["sim x"])

    def test_no_record(self, project):
        assert records.read_record("nosuch") == {
            "command": "", "versions": {}, "configuration": {}, "rows": []}


@pytest.mark.parametrize(("command", "makers"), [
    ("python -m host experiment tensor x", ["host experiment tensor"]),
    ("python -m sim lmul-error", ["sim lmul-error"]),
    ("python -m sim engines; python -m hw.build B", [None, "hw.build"]),
    ("python -m host", [None]), ("make it", [None]), ("", [None])])
def test_makers(command, makers):
    assert records.makers_of(command) == makers


def test_sources_of_every_maker_are_there():
    for name, maker in records.MAKERS.items():
        for unit in ({"unit": "lmul", "module": "hw.arith.lmul"},
                     {"unit": "ulx3s", "module": "hw.arith.lmul"}):
            if name != "sim mutate":
                assert records.source_hash(*maker.sources(unit)), name


class TestBars:
    @pytest.mark.parametrize(("bars", "text"), [
        ((Bar("lut4_eq_per_lane", "<=", 44), Bar("fmax_mhz", ">=", 150), Bar("dsp", "<=", 0)),
         "<= 44 LUT4-eq per lane at >= 150 MHz, 0 DSP"),
        ((Bar("lut4_per_trit", "<=", 8), Bar("fmax_mhz", ">=", 200), Bar("block_ram", "<=", 0)),
         "<= 8 LUT4 per trit at >= 200 MHz, no block RAM"),
        ((Bar("fmax_mhz", ">=", 95),), ">= 95 MHz"),
        ((Bar("speedup", ">=", 0.85, of="bound"),), "speedup >= 85 % of bound"),
        ((Bar("fmax_mhz", ">=", 1, of="clock_mhz"),), "fmax mhz >= clock mhz"),
        ((Bar("cycles_per_second", ">=", 5),), "cycles per second >= 5"),
        ((), "")])
    def test_sentence(self, bars, text):
        assert sentence(bars) == text

    def test_met(self):
        most, least = Bar("a", "<=", 3), Bar("a", ">=", 0.5, of="b")
        assert [most.met({"a": a}) for a in (2.9, 3, 3.1, None, "2")] == [
            True, True, False, False, False]
        assert [least.met({"a": 2, "b": b}) for b in (4, 4.1, None)] == [True, False, False]
        assert not most.met({})

    def test_shares(self):
        assert shares({"lut4_eq": 100, "lut4": 64}, lane=32, trit=0) == {
            "lut4_eq_per_lane": 3.12, "lut4_per_lane": 2.0}

    def test_those_of_units_are_of_figures_that_are_measured(self):
        row = dict.fromkeys(("lut4", "ccu2c", "dpr16x4", "lut4_eq", "ff", "block_ram", "dsp"), 1)
        for name, unit in UNITS.items():
            known = row | {"fmax_mhz": 1} | shares(row, lane=unit.lanes, trit=unit.trits)
            assert {bar.field for bar in unit.bars} <= set(known), name
            assert unit.module.startswith("hw."), name
