"""``tally experiment l1``: trainings with and without the L1 term."""

import argparse
import json
from pathlib import Path

import numpy as np
from rich.console import Console

from host.cli.experiment.common import command_line, print_row, versions
from host.errors import UserError
from hw.records import write_record

NAME = "l1"
HELP = "compare trainings with and without the L1 term"
DESCRIPTION = ("Put the reports of trainings with and without the L1 term side by side, and write "
               "docs/results/l1.json.")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("reports", type=Path, nargs="+", metavar="REPORT.json",
                        help="reports of 'python -m host train --report'")


def _report(path: Path) -> dict:
    """Read a report, and see that it has what is asked of it."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        if report["settings"]["l1"] >= 0 and all(
                row["arithmetic"] and row["bits_per_byte"] and row["density"]
                for row in report["rows"]):
            return report
    except (ValueError, LookupError, TypeError):
        pass
    raise UserError(f"{path}: not a report of 'python -m host train --report'")


def run(console: Console, options: argparse.Namespace) -> int:
    """Read the reports, print the rows and write the record."""
    rows = []
    for path in options.reports:
        report = _report(path)
        for row in report["rows"]:
            rows.append({"l1": report["settings"]["l1"], "arithmetic": row["arithmetic"],
                         "bits_per_byte": round(row["bits_per_byte"], 5),
                         "density_mean": round(float(np.mean(row["density"])), 5),
                         "density_least": round(min(row["density"]), 5),
                         "density_most": round(max(row["density"]), 5)})
            print_row(rows[-1])
    settings = {key: value for key, value in report["settings"].items()
                if isinstance(value, int | float) and key not in ("l1", "smoke")}
    write_record("l1", maker=f"host experiment {NAME}", command=command_line(),
                 versions=versions(), configuration=settings, rows=rows)
    return 0
