"""``tally results``: whether the records of docs/results are true, and what has become worse."""

import argparse
import dataclasses
import functools
import json
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console

from host.cli.terminal import listing_of, say, table
from host.errors import UserError
from hw import records
from hw.bars import Bar, sentence, shares

NAME = "results"
HELP = "list and check the records of docs/results"
DESCRIPTION = ("List the records of docs/results, and how many of their rows are stale: measured "
               "on sources that have changed since. With --check or --against, the exit status is "
               "1 if there is an error; warnings and notes are only printed.")

_Row = dict[str, Any]

#: What tells the rows of a record apart.
_KEYS: dict[str, tuple[str, ...]] = {
    "attention": ("model", "layers", "context"),
    "board_parts": ("board", "part"),
    "boards": ("board",),
    "compression_device": ("model", "method"),
    "engine": ("walk", "rows", "columns", "planes", "batch", "mode"),
    "faults": ("unit", "fault"),
    "fuzz": ("reader",),
    "link_soak": ("device",),
    "models": ("architecture", "format", "judge"),
    "mutants": ("unit",),
    "netlists": ("unit", "technology", "configuration"),
    "prefill": ("model", "port_bytes", "batch", "tokens"),
    "programs": ("configuration",),
    "proofs": ("proof", "property"),
    "simulator": ("model", "port_bytes", "lanes"),
    "together": ("mode", "sparsity"),
    "token": ("model", "port_bytes", "lanes", "tokens"),
    "twell": ("mode", "part", "list", "layer"),
    "units": ("name",),
    "wina": ("model", "method", "sparsity", "allocation", "mode"),
}

#: Records whose cycles are those of one program, simulated or derived.
_CYCLES = ("attention", "compression_device", "engine", "prefill", "together", "token", "twell",
           "wina")
_AREA = ("lut4_eq", "lut4", "ff", "block_ram")

#: Bars of rows that have certain fields; those of units stand beside the units.
_BARS: dict[str, tuple[tuple[Mapping[str, object], Bar], ...]] = {
    "boards": (({}, Bar("fmax_mhz", ">=", 1, of="clock_mhz")),),
    "fuzz": (({}, Bar("crashes", "<=", 0)),),
    "link_soak": (({}, Bar("wrong", "<=", 0)),),
    "models": (({}, Bar("difference", "<=", 1, of="limit")),),
    "netlists": (({}, Bar("equal", ">=", 1)), ({}, Bar("undefined_inputs", "<=", 0))),
    "prefill": (({"batch": 8, "port_bytes": 1}, Bar("speedup", ">=", 6)),),
    "programs": (({}, Bar("differing", "<=", 0)), ({}, Bar("hangs", "<=", 0))),
    "proofs": (({}, Bar("holds", ">=", 1)),),
    "simulator": (({}, Bar("cycles_per_second", ">=", 500_000)),),
    "twell": (({"mode": "sparse", "part": "ffn"}, Bar("speedup", ">=", 2.2)),
              ({"mode": "sparse", "part": "token"}, Bar("speedup", ">=", 1.45)),
              ({"mode": "sparse"}, Bar("speedup", ">=", 0.85, of="bound"))),
}


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something that is wrong with a record.

    Attributes
    ----------
    level : str
        ``error``, ``warning`` or ``note``.
    name : str
        Name of the record.
    text : str
        What is wrong, and what mends it.
    """

    level: str
    name: str
    text: str

    def __str__(self) -> str:
        return f"{self.level}: {self.name}.json: {self.text}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--check", action="store_true",
                      help="list stale rows, rows that no command makes, units without a row and "
                           "bars that are missed")
    what.add_argument("--against", metavar="COMMIT",
                      help="list cycles that have risen since this commit, and areas and clocks "
                           "that have become worse")


def run(console: Console, options: argparse.Namespace) -> int:
    """Print the table or the findings; an error among these is a failure."""
    if options.check:
        return _report(console, *check())
    if options.against is not None:
        return _report(console, *against(options.against))
    fresh = _freshness()
    rows = []
    for name, record in _read().items():
        if isinstance(record, Finding):
            rows.append((name, record.text, "", ""))
            continue
        makers = records.makers_of(record["command"])
        rows.append((name, listing_of(dict.fromkeys(
            f"python -m {maker}" if maker else record["command"] for maker in makers)),
            f"{len(record['rows']):,}",
            f"{sum(not fresh(name, record, row) for row in record['rows']):,}"))
    console.print(table("Records of docs/results", ("record", "command", "rows", "stale"), rows,
                        names=2, caption="stale: measured on sources that have changed since, or "
                                         "that are not known"))
    return 0


def _report(console: Console, findings: Sequence[Finding], summary: str) -> int:
    for level in ("error", "warning", "note"):
        for finding in findings:
            if finding.level == level:
                say(console, str(finding))
    counts = [f"{count:,} {level}{'' if count == 1 else 's'}"
              for level in ("error", "warning", "note")
              if (count := sum(finding.level == level for finding in findings))]
    say(console, f"{summary}: {listing_of(counts) if counts else 'nothing to report'}")
    return int(any(finding.level == "error" for finding in findings))


# Records.

def _parsed(name: str, text: str) -> _Row | Finding:
    """Read the text of a record, and see that it is one."""
    try:
        record = json.loads(text)
    except ValueError as error:
        return Finding("error", name, f"It is not JSON: {error}; restore it from git")
    if (not isinstance(record, dict) or not isinstance(record.get("command"), str)
            or not isinstance(record.get("rows"), list)
            or not all(isinstance(row, dict) for row in record["rows"])):
        return Finding("error", name, "It has no command, or no rows that are objects; make it "
                                      "anew with the command that measures it")
    return record


def _read() -> dict[str, _Row | Finding]:
    return {path.stem: _parsed(path.stem, path.read_text(encoding="utf-8"))
            for path in sorted(records.RESULTS.glob("*.json"))}


def _key(name: str, row: Mapping[str, object]) -> tuple[object, ...]:
    return tuple(row.get(field) for field in _KEYS[name])


def _label(key: Iterable[object]) -> str:
    return ", ".join(str(value) for value in key if value is not None)


def _freshness() -> Callable[[str, _Row, _Row], bool]:
    """Return what tells whether a row of a record has the hash of today's sources."""
    hashes = functools.cache(records.source_hash)

    def fresh(name: str, record: _Row, row: _Row) -> bool:
        if name == "mutants":
            from sim.mutation.mutants import unit_path
            from sim.mutation.mutate import own_hash
            try:
                return row["sources"] == own_hash(unit_path(row["unit"]), row["benches"])
            except (KeyError, OSError):
                return False
        makers = [maker for maker in records.makers_of(record["command"]) if maker]
        return not records.stale(row, makers, hashes)

    return fresh


# The check.

def check() -> tuple[list[Finding], str]:
    """Check all records of docs/results.

    Returns
    -------
    list of Finding
        In the order of the records.
    str
        What was checked.
    """
    found: list[Finding] = []
    known, fresh = _known_rows(), _freshness()
    read = _read()
    for name, record in read.items():
        if isinstance(record, Finding):
            found.append(record)
            continue
        found += _orphan(name, record)
        if name in known:
            found += _unknown(name, record, known[name])
        stale = [row for row in record["rows"] if not fresh(name, record, row)]
        if stale:
            found.append(Finding("warning", name, f"{len(stale):,} of {len(record['rows']):,} "
                                                  f"rows are stale; run "
                                                  f"{_command(name, record, stale)}"))
        found += _missed(name, record)
    for name, rows in known.items():
        # A file that is not there may be another's business, but units are always measured.
        kept = read.get(name, {"rows": []} if name == "units" else None)
        if isinstance(kept, dict):
            found += _missing(name, kept, rows)
    return found, f"{len(read):,} records"


@dataclasses.dataclass(frozen=True)
class _Known:
    """Rows that a command makes: by which fields they are known, and their values."""

    fields: tuple[str, ...]
    keys: frozenset[tuple[object, ...]]

    def key(self, row: _Row) -> tuple[object, ...]:
        return tuple(row.get(field) for field in self.fields)


def _known_rows() -> dict[str, _Known]:
    """Return what rows commands make, of the records that have a list of these."""
    # Imported here: of all commands only those that know the hardware need Amaranth.
    from host.fuzz.fuzz import READERS
    from host.measure.models import VARIANTS
    from host.measure.soak import BOARDS as SOAKED
    from hw.boards.catalog import BOARDS
    from hw.synth.units import UNITS
    from sim.faults import FAULTS
    from sim.formal.proofs import PROOFS
    from sim.mutation.mutants import units
    from sim.netlist_cases import CASES
    from sim.programs.random import CONFIGURATIONS

    known: dict[str, set[tuple[object, ...]]] = {
        "board_parts": {(name,) for name in BOARDS},
        "boards": {(name,) for name in BOARDS},
        "faults": {(fault.unit, fault.fault) for fault in FAULTS},
        "fuzz": {(name,) for name in READERS},
        "link_soak": {(name,) for name in SOAKED},
        "models": {(variant.architecture, variant.format, variant.judge)
                   for variant in VARIANTS},
        "netlists": {(bench, family, case) for bench, families in CASES.items()
                     for family, cases in families.items() for case in cases},
        "programs": {(name,) for name in CONFIGURATIONS},
        "proofs": {(proof.name, sentence) for proof in PROOFS for sentence in proof.properties},
        "units": {(name,) for name in UNITS},
    }
    if (records.RESULTS / "mutants.json").exists():
        known["mutants"] = {(unit,) for unit in units()}
    fields = _KEYS | {"board_parts": ("board",)}
    return {name: _Known(fields[name], frozenset(keys)) for name, keys in known.items()}


def _command(name: str, record: _Row, rows: Sequence[_Row]) -> str:
    """Return the command that measures rows, in quotes."""
    if name == "units":
        from hw.synth.units import UNITS
        units = [row["name"] for row in rows if row.get("name") in UNITS]
        return (f"'python -m hw.synth {' '.join(units)}{' ' if units else ''}--output "
                f"docs/results/units.json'")
    makers = [f"'python -m {maker}'" for maker in records.makers_of(record["command"]) if maker]
    if len(record["command"]) > 100:
        return (f"{listing_of(dict.fromkeys(makers))} with the options that the file has"
                if makers else "the command that measures them")
    return f"'{record['command']}'"


def _orphan(name: str, record: _Row) -> Iterator[Finding]:
    """Report a file that its command does not make."""
    makers = records.makers_of(record["command"])
    if None in makers:
        yield Finding("error", name, f"No command makes it: '{record['command']}' is none that "
                                     f"makes records; delete the file, or make it with one that "
                                     f"does")
    elif not any(maker and name in records.MAKERS[maker].records for maker in makers):
        said = listing_of(
            f"'python -m {maker}' makes "
            f"{listing_of([f'{made}.json' for made in records.MAKERS[maker].records] or ['none'])}"
            for maker in dict.fromkeys(makers) if maker)
        yield Finding("error", name, f"No command makes this file: {said}; delete it, or let a "
                                     f"command write it")


def _unknown(name: str, record: _Row, known: _Known) -> Iterator[Finding]:
    """Report rows of what is no more there."""
    from hw.boards.catalog import BOARDS
    gone = list(dict.fromkeys(_label(_key(name, row)) for row in record["rows"]
                              if known.key(row) not in known.keys
                              # Boards have netlists as well, which take hours.
                              and not (name == "netlists" and row.get("unit") in BOARDS)))
    if gone:
        shown = gone if len(gone) <= 12 else [*gone[:3], f"{len(gone) - 3:,} more"]
        mend = ("measure any unit with 'python -m hw.synth UNIT --output docs/results/units.json'"
                if name == "units" else f"run {_command(name, record, [])}")
        yield Finding("error", name, f"No command makes {len(gone):,} of the rows; {mend}, which "
                                     f"drops them: {'; '.join(shown)}")


def _missing(name: str, record: _Row, known: _Known) -> Iterator[Finding]:
    """Report what has no row; a unit without one is an error."""
    have = {known.key(row) for row in record["rows"]}
    if name == "units":
        from hw.synth.units import UNITS
        absent = [unit for unit in UNITS if (unit,) not in have]
        if absent:
            yield Finding("error", name, f"{len(absent):,} of {len(UNITS):,} units have no row; "
                                         f"run 'python -m hw.synth {' '.join(absent)} --output "
                                         f"docs/results/units.json'")
    elif absent_keys := known.keys - have:
        example = min(_label(key) for key in absent_keys)
        yield Finding("warning", name, f"{len(absent_keys):,} of {len(known.keys):,} rows are "
                                       f"not measured, as '{example}'; run "
                                       f"{_command(name, record, [])}")


def _missed(name: str, record: _Row) -> Iterator[Finding]:
    """Report bars that a row does not reach."""
    bars: list[tuple[_Row, Bar]] = []
    if name == "units":
        from hw.synth.units import UNITS
        for row in record["rows"]:
            unit = UNITS.get(str(row.get("name")))
            if unit is None:
                continue
            if row.get("bar", "") != sentence(unit.bars):
                yield Finding("warning", name, f"Unit {row['name']} has another bar by now, "
                                               f"{sentence(unit.bars) or 'none'}; run "
                                               f"{_command(name, record, [row])}")
            counted = {**row, **shares(row, lane=unit.lanes, trit=unit.trits)}
            bars += [(counted, bar) for bar in unit.bars]
    else:
        bars = [(row, bar) for wanted, bar in _BARS.get(name, ()) for row in record["rows"]
                if wanted.items() <= row.items()]
    for row, bar in bars:
        if not bar.met(row):
            value = row.get(bar.field)
            had = "was not measured" if value is None else f"is {value}"
            yield Finding("error", name, f"Row '{_label(_key(name, row))}' misses its bar {bar}: "
                                         f"{bar.field} {had}; mend what it measures, then run "
                                         f"{_command(name, record, [row])}")


# The comparison.

def against(commit: str) -> tuple[list[Finding], str]:
    """Compare the records with those of a commit, row by row.

    Parameters
    ----------
    commit : str
        Name of a commit of this repository.

    Returns
    -------
    list of Finding
        Cycles that rose are errors, areas and clocks that became worse are notes.
    str
        How much was compared.

    Raises
    ------
    UserError
        If there is no such commit.
    """
    resolved = _git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{commit}^{{commit}}")
    if resolved is None:
        raise UserError(f"{commit!r} is not a commit of this repository (try 'git log')")
    found: list[Finding] = []
    compared = total = 0
    folder = records.RESULTS.relative_to(records.ROOT).as_posix()
    for name, record in _read().items():
        if isinstance(record, Finding):
            found.append(record)
            continue
        if name not in (*_CYCLES, "boards", "board_parts", "units"):
            continue
        total += len(record["rows"])
        text = _git("show", f"{resolved.strip()}:{folder}/{name}.json")
        before = _parsed(name, text) if text is not None else {"rows": []}
        if isinstance(before, Finding):
            continue
        old = {_key(name, row): row for row in before["rows"]}
        for row in record["rows"]:
            key = _key(name, row)
            if key in old:
                compared += 1
                found += _worse(name, key, old[key], row)
    return found, (f"{compared:,} of {total:,} rows with cycles, areas or clocks compared with "
                   f"{commit}")


def _git(*arguments: str) -> str | None:
    """Return what git prints, or None if it fails."""
    done = subprocess.run(["git", *arguments], cwd=records.ROOT, capture_output=True, text=True,
                          encoding="utf-8")
    return done.stdout if done.returncode == 0 else None


def _worse(name: str, key: tuple[object, ...], old: _Row, new: _Row) -> Iterator[Finding]:
    for field, value in new.items():
        before = old.get(field)
        if not (_is_number(value) and _is_number(before)):
            continue
        change = f"{field} of '{_label(key)}'"
        if name in _CYCLES and "cycles" in field and "per_second" not in field:
            if value > before:
                yield Finding("error", name, f"The {change} rose from {before:,} to {value:,}; "
                                             f"mend it, or say in the change why it must")
        elif field in _AREA and value > before:
            yield Finding("note", name, f"The {change} grew from {before:,} to {value:,}")
        elif field == "fmax_mhz" and value < before:
            yield Finding("note", name, f"The {change} fell from {before:,} to {value:,}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
