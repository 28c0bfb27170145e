"""The tables in the docs are those of the kept results."""

import json

import pytest

from hw import records
from sim import tables


@pytest.mark.parametrize("document", tables.DOCUMENTS, ids=lambda path: path.stem)
def test_tables_are_up_to_date(document):
    text = document.read_text()
    assert "<!-- table " in text
    assert tables.render_document(text) == text


@pytest.mark.parametrize("path", sorted(records.RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_record_has_its_fields(path):
    record = json.loads(path.read_text())
    assert set(record) >= {"command", "versions", "configuration", "rows"}
    assert record["rows"]


def test_rows_are_selected_and_formatted(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "RESULTS", tmp_path)
    rows = [{"a": 1, "b": 0.123456}, {"a": 2, "b": None}, {"a": 12345, "b": "x"}]
    records.write_record("t", maker="sim lmul-error", command="make it", versions={"tool": "1"},
                         configuration={}, rows=rows)
    text = "<!-- table t a=1: a, b -->\nold\n<!-- end -->\n<!-- table t: a -->\n<!-- end -->"
    rendered = tables.render_document(text)
    assert "| 1 | 0.12346 |" in rendered
    assert "| 12,345 |" in rendered
    assert "old" not in rendered
    assert "Made by `make it` (tool 1)." in rendered
    assert tables.render_document(rendered) == rendered
