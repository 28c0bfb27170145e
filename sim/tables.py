"""The tables in the docs, made from docs/results/*.json."""

import json
import re

from hw import records
from hw.records import ROOT

__all__ = ["DOCUMENTS", "render_document"]

DOCUMENTS = tuple(ROOT / "docs" / name for name in ("results.md", "model.md", "numerics.md",
                                                "assurance.md", "energy.md", "league.md"))

_BLOCK = re.compile(r"(<!-- table (?P<name>\w+)(?P<filter>( \w+=\S+)*): (?P<columns>[\w, ]+) -->\n)"
                    r".*?<!-- end -->", re.DOTALL)


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.5g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)


def _table(name: str, columns: list[str], wanted: dict[str, str]) -> str:
    record = json.loads((records.RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    rows = [row for row in record["rows"]
            if all(str(row.get(key)).replace(" ", "_") == value for key, value in wanted.items())]
    lines = [" | ".join(["", *(column.replace("_", " ") for column in columns), ""]).strip(),
             "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(_cell(row.get(column)) for column in columns) + " |"
              for row in rows]
    versions = ", ".join(f"{tool} {version}" for tool, version in record["versions"].items())
    # A record of several models has the commands of each.
    command = record["configuration"].get(wanted.get("model"), record)["command"]
    return "\n".join([*lines, "", f"Made by `{command}` ({versions})."]) + "\n"


def render_document(text: str) -> str:
    """Return ``text`` with every table between its markers made anew.

    A table stands between ``<!-- table NAME KEY=VALUE...: column, column -->`` and
    ``<!-- end -->``; NAME is a file in docs/results, KEY=VALUE keeps only matching rows, with
    underscores for the spaces of a value, and KEY=None those without that key.
    """
    def replace(match: re.Match) -> str:
        wanted = dict(pair.split("=", 1) for pair in match["filter"].split())
        columns = [column.strip() for column in match["columns"].split(",")]
        return match[1] + _table(match["name"], columns, wanted) + "<!-- end -->"
    return _BLOCK.sub(replace, text)
