"""``python -m hw.synth`` and ``hw.build --record``: what they keep, without the tools."""

import json

import pytest

from hw import build, records
from hw.synth import __main__ as synth
from hw.synth.units import UNITS
from sim import netlist

AREA = {"lut4": 100, "ccu2c": 10, "dpr16x4": 0, "lut4_eq": 120, "ff": 9, "block_ram": 0, "dsp": 0}


@pytest.fixture
def folder(monkeypatch, tmp_path):
    monkeypatch.setattr(records, "RESULTS", tmp_path)
    monkeypatch.setattr(synth, "tool_versions", lambda: {"yosys": "1"})
    monkeypatch.setattr(synth, "measure", lambda unit, **settings: AREA | {"fmax_mhz": 200.0})
    return tmp_path


def test_units(folder, capsys):
    output = folder / "units.json"
    assert synth.main(["--output", str(output)]) == 0
    rows = {row["name"]: row for row in json.loads(output.read_text())["rows"]}
    assert list(rows) == list(UNITS)
    engine = rows["engine"]
    assert (engine["lut4_eq_per_lane"], engine["module"]) == (1.88, "hw.engine.engine")
    assert engine["bar"] == "<= 44 LUT4-eq per lane at >= 150 MHz, 0 DSP"
    assert engine["sources"] == records.source_hash("hw.engine.engine")
    assert rows["decoder-5in8"]["lut4_eq_per_trit"] == 2.0
    assert "lut4_per_lane" not in engine
    assert "1.88 / lane" in capsys.readouterr().out


def test_one_unit_leaves_the_others(folder, capsys):
    output = folder / "units.json"
    assert synth.main(["lmul-bf16", "gearbox", "--output", str(output)]) == 0
    record = json.loads(output.read_text())
    assert [row["name"] for row in record["rows"]] == ["gearbox", "lmul-bf16"]
    old = [{"name": "gearbox"}, {"name": "gone"}, {"name": "lmul-bf16"}]
    output.write_text(json.dumps(record | {"rows": old}))
    assert synth.main(["gearbox", "--output", str(output)]) == 0
    rows = json.loads(output.read_text())["rows"]
    assert rows[0]["sources"] == records.source_hash("hw.engine.gearbox")
    assert rows[1:] == [{"name": "lmul-bf16"}]
    assert synth.main(["gearbox", "--seeds", "1", "--output", str(output)]) == 2
    assert "Rows of single units must have the configuration of" in capsys.readouterr().err


def test_boards(folder):
    old = {"command": "", "versions": {"old": "1"}, "configuration": {},
           "rows": [{"board": "icebreaker"}, {"board": "gone"}, {"board": "ulx3s", "lut4": 1}]}
    for name in ("boards", "board_parts"):
        (folder / f"{name}.json").write_text(json.dumps(old))
    build._record({"board": "ulx3s", "lut4": 2, "bitstream": "x", "versions": {"new": "2"},
                   "parts": [{"part": "engine", "lut4": 1}, {"part": "link", "lut4": 1}]})
    boards, parts = records.read_record("boards"), records.read_record("board_parts")
    now = records.source_hash(*records.MAKERS["hw.build"].sources({}))
    assert boards["versions"] == {"old": "1", "new": "2"}
    assert boards["rows"] == [{"board": "ulx3s", "lut4": 2, "sources": now},
                              {"board": "icebreaker"}]
    assert [(row["board"], row.get("part")) for row in parts["rows"]] == [
        ("ulx3s", "engine"), ("ulx3s", "link"), ("icebreaker", None)]


def test_netlists(folder, monkeypatch):
    monkeypatch.setattr(netlist, "icarus_version", lambda: "1")
    for result in (netlist.NetlistResult("uart", "ecp5", "divisors", 1, 1, True),
                   netlist.NetlistResult("ulx3s", "ecp5", "board", 1, 1, True),
                   netlist.NetlistResult("uart", "ecp5", "divisors", 2, 2, True)):
        netlist.record(result)
    rows = records.read_record("netlists")["rows"]
    assert [(row["unit"], row["vectors"]) for row in rows] == [("uart", 2), ("ulx3s", 1)]
    assert len({row["sources"] for row in rows}) == 2
