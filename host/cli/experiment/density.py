"""``tally experiment density``: how many columns of each activation vector are live."""

import argparse

from rich.console import Console

from host.cli.experiment.common import (
    add_model_and_text,
    command_line,
    held_out,
    print_row,
    versions,
)
from host.measure.evaluate import evaluate
from host.models.registry import read_model
from hw.records import write_record

NAME = "density"
HELP = "measure the density of each activation vector, layer by layer"
DESCRIPTION = ("Measure which share of each activation vector's columns is not zero, layer by "
               "layer, and write docs/results/twell.json.")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_model_and_text(parser)


def run(console: Console, options: argparse.Namespace) -> int:
    """Measure, print the rows and write the record."""
    model = read_model(options.model)
    tokenizer, documents = held_out(model, options.corpus, options.documents)
    measurement = evaluate(model, [tokenizer.encode(text) for text in documents],
                           sum(len(text.encode()) for text in documents), "lmul",
                           workers=options.workers)
    rows = []
    for label in measurement.live:
        part, _, name = label.rpartition(".")
        shares = measurement.list_density(label)
        rows.append({"list": name, "layer": int(part.rpartition(".")[2]),
                     "density_mean": round(shares["density"], 5),
                     "density_p99": round(shares["density_p99"], 5),
                     "density_max": round(shares["density_max"], 5)})
    for row in rows:
        print_row(row)
    write_record("twell", maker=f"host experiment {NAME}", command=command_line(),
                 versions=versions(),
                 configuration={"model": model.name, "documents": measurement.documents,
                                "tokens": measurement.tokens, "bytes": measurement.bytes},
                 rows=rows)
    return 0
