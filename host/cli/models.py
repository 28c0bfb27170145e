"""``tally models``: every supported kind of model against independent judges."""

import argparse

from rich.console import Console

from host.cli.options import add_json
from host.cli.terminal import command_line, progress_bars, table
from host.errors import TallyError, UserError
from host.measure.models import LIMIT, MISSING, VARIANTS, measure, write_outcomes

NAME = "models"
HELP = "compare every supported kind of model with transformers and llama.cpp"
DESCRIPTION = (f"Make a small random model of every supported architecture in every supported "
               f"format, and compare the log-probabilities of its float reference with those of "
               f"transformers or llama.cpp: they may differ by {LIMIT:g}. Needs the extra 'judges' "
               f"of this package.")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("names", nargs="*", metavar="NAME",
                        help="words that the architecture or the format of a model must contain, "
                             "such as Qwen3 or Q4_K (default: all models)")
    add_json(parser)


def run(console: Console, options: argparse.Namespace) -> int:
    """Measure, and print a table; a difference beyond the limit, or an error, is a failure."""
    wanted = [variant for variant in VARIANTS
              if not options.names or any(name in variant.name for name in options.names)]
    if not wanted:
        raise UserError(f"No model has {' or '.join(map(repr, options.names))} in its name")
    if MISSING:
        raise UserError(f"{' and '.join(MISSING)} must be installed: pip install -e '.[judges]'")
    outcomes, errors = [], []
    with progress_bars(console) as bar:
        report = bar("Models")
        for index, variant in enumerate(wanted):
            report(index / len(wanted), variant.name)
            try:
                outcomes.append(measure(variant))
            except TallyError as error:
                errors.append([variant.architecture, variant.format, str(error)])
        report(1.0, "done")
    console.print(table(
        f"{len(outcomes)} models, largest difference "
        f"{max((outcome.difference for outcome in outcomes), default=0):.2g}",
        ["architecture", "format", "judge", "difference", "JSD"],
        [[outcome.variant.architecture, outcome.variant.format, outcome.variant.judge,
          f"{outcome.difference:.2g}", f"{outcome.golden_jsd:.5f}"] for outcome in outcomes],
        names=3, caption="difference: largest, of the float reference's log-probabilities from the "
                         "judge's; JSD: Jensen-Shannon divergence of the golden model from the "
                         "float reference in bits a token"))
    if errors:
        console.print(table("Not read", ["architecture", "format", "error"], errors, names=3))
    if options.json:
        write_outcomes(options.json, command_line(), outcomes)
    return int(bool(errors) or any(outcome.difference > outcome.variant.limit
                                   for outcome in outcomes))
