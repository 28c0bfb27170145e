"""``tally experiment energy``: what a token of the shipped model costs in each arithmetic."""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from host.cli.experiment.common import command_line, print_row, versions
from host.cli.options import DEFAULT_MODEL, add_corpus, integer, read_texts
from host.compiler.compile import compile_fitted, compile_model
from host.compress.calibrate import calibrate, calibration_tokens
from host.errors import UserError, need_package
from host.measure.energy import (
    ARITHMETICS,
    MEMORIES,
    Operations,
    claim_summary,
    count_operations,
    matrix_weights,
    token_claims,
    token_parts,
    unit_claims,
)
from host.measure.energy_plot import plot_token_energy
from host.models.base import LanguageModel
from host.models.registry import read_model
from host.text.tokenizer import open_tokenizer
from hw.config import AcceleratorConfig
from hw.records import RESULTS, read_record, write_record

NAME = "energy"
HELP = "count a token's operations and bytes, and add up their energies"
DESCRIPTION = ("Count the operations and bytes of a token on the golden machine, multiply them by "
               "the energies of docs/results/energy.json and by published ones of memories, and "
               "write docs/results/token_energy.json, energy_claims.json and a picture.")

_MAKER = f"host experiment {NAME}"
_SPARSITY = 0.5
_PICTURE = RESULTS.parent / "token_energy.svg"
_OPERANDS = "recorded"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_corpus(parser)
    parser.add_argument("--tokens", type=integer(2), default=33, metavar="N",
                        help="tokens of the first held-out document, the first of which is not "
                             "counted (default: 33)")
    parser.add_argument("--compressed", type=Path, nargs=2, metavar=("MODEL", "SMALL.gguf"),
                        help="count a Llama as well, and what 'python -m host compress' made of "
                             "it; their attention is not counted")
    parser.add_argument("--picture", type=Path, default=_PICTURE, metavar="FILE.svg",
                        help="picture to draw (default: docs/token_energy.svg)")


def run(console: Console, options: argparse.Namespace) -> int:
    """Count, add up, print the rows, write the records and draw the picture."""
    need_package("matplotlib", "--picture", "plot")
    measured = read_record("energy")["rows"]
    if not measured:
        raise UserError("docs/results/energy.json is missing; 'python -m hw.energy --output "
                        "docs/results/energy.json' makes it")
    model = read_model(DEFAULT_MODEL)
    counted = _count_shipped(model, options.corpus, options.tokens)
    rows = list(_rows(model, counted, measured))
    if options.compressed:
        original, small = (read_model(path) for path in options.compressed)
        images = {name: compile_fitted(one, AcceleratorConfig())
                  for name, one in (("ternary", original), ("ternary, compressed", small))}
        tokens = _tokens(original, options.corpus, options.tokens)
        rows += _rows(original, {name: count_operations(image, tokens)
                                 for name, image in images.items()}, measured)
    for row in rows:
        print_row(row)
    write_record(
        "token_energy", maker=_MAKER, command=command_line(), versions=versions(), rows=rows,
        configuration={"tokens": options.tokens - 1, "sparsity": _SPARSITY, "operands": _OPERANDS,
                       "memories": {name: {"picojoules_a_byte": memory.picojoules,
                                           "source": memory.source}
                                    for name, memory in MEMORIES.items()}})
    claims = [*unit_claims(measured), *token_claims(rows)]
    write_record("energy_claims", maker=_MAKER, command=command_line(), versions=versions(),
                 rows=[*claim_summary(claims), *claims], configuration={})
    plot_token_energy([row for row in rows if row["model"] == model.name], options.picture)
    console.print(f"Written to docs/results and {options.picture}")
    return 0


def _tokens(model: LanguageModel, corpus: Path, count: int) -> list[int]:
    text = read_texts(corpus, "heldout", "held-out text")[0]
    return [model.vocabulary.start, *open_tokenizer(model.vocabulary).encode(text)][:count]


def _count_shipped(model: LanguageModel, corpus: Path, count: int) -> dict[str, Operations]:
    """Count dense, without zeros, and with half of the trits masked."""
    calibration = calibration_tokens(
        model, open_tokenizer(model.vocabulary),
        read_texts(corpus, "calibration", "calibration"), 2, 64)
    masks, = calibrate(model, calibration, [_SPARSITY], method="wina", allocation="uniform",
                       workers=1)
    config = AcceleratorConfig()
    images = {
        "ternary": compile_model(model, config),
        "ternary, sparse": compile_model(model, config, sparse=True),
        "ternary, masked": compile_model(model, config, sparse=True, masks=masks.of(model))}
    tokens = _tokens(model, corpus, count)
    return {name: count_operations(image, tokens) for name, image in images.items()}


def _rows(model: LanguageModel, counted: Mapping[str, Operations],
          measured: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Add up each arithmetic with each library; those without trits have the dense program."""
    weights = matrix_weights(model)
    for library, energies in _energies(measured).items():
        for name, arithmetic in ARITHMETICS.items():
            operations = counted.get(name, None if arithmetic.ternary else counted["ternary"])
            if operations is None:
                continue
            for part, count, picojoules, kind in token_parts(arithmetic, operations, weights,
                                                             energies):
                yield {"model": model.name, "arithmetic": name, "library": library, "part": part,
                       "count": round(count), "picojoules": round(picojoules), "kind": kind}


def _energies(measured: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return pJ an operation of each unit in its best form, by library."""
    found: dict[str, dict[str, float]] = {}
    for row in measured:
        if row["operands"] == _OPERANDS and row["best"]:
            found.setdefault(row["library"], {})[row["name"]] = row["picojoules"]
    for library, energies in found.items():
        missing = {unit for arithmetic in ARITHMETICS.values() for unit in arithmetic.units}
        missing -= set(energies)
        if missing:
            raise UserError(f"docs/results/energy.json has no {min(missing)} of {library}; "
                            "'python -m hw.energy --output docs/results/energy.json' measures all")
    return found
