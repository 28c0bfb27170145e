"""What the experiments have in common: their records, texts and points."""

import argparse
import importlib.metadata
import platform
from collections.abc import Mapping
from pathlib import Path

from host.checks import printable
from host.cli import terminal
from host.cli.options import DEFAULT_MODEL, add_corpus, add_workers, integer, read_texts
from host.errors import UserError
from host.models.base import LanguageModel
from host.text.tokenizer import AnyTokenizer, open_tokenizer
from hw import records

#: Shares of the trits that are not to be read.
SPARSITIES = (0.25, 0.40, 0.50, 0.65)
CALIBRATION_DOCUMENTS, CALIBRATION_TOKENS = 8, 256


def versions() -> dict[str, str]:
    """Versions that a record keeps."""
    return {"python": platform.python_version(), "numpy": importlib.metadata.version("numpy")}


def command_line() -> str:
    """Return the command that runs, without --keep, which changes no result."""
    return " ".join(word for word in terminal.command_line().split(" ") if word != "--keep")


def print_row(row: Mapping[str, object]) -> None:
    """Print a row as soon as it is known."""
    print(printable("  ".join(f"{key} {value}" for key, value in row.items())), flush=True)


def read_record(name: str, made_by: str) -> dict:
    """Read a record that another experiment has written."""
    record = records.read_record(name)
    if not record["rows"]:
        raise UserError(f"docs/results/{name}.json is missing: this command adds to what "
                        f"'python -m host experiment {made_by}' writes")
    return record


def add_model_and_text(parser: argparse.ArgumentParser) -> None:
    """Add the options of experiments with the shipped model."""
    add_corpus(parser)
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL, metavar="MODEL.gguf",
                        help=f"model file (default: models/{DEFAULT_MODEL.name})")
    parser.add_argument("--documents", type=integer(1), metavar="N",
                        help="read only the first N held-out documents")
    add_workers(parser)


def held_out(model: LanguageModel, corpus: Path,
             documents: int | None) -> tuple[AnyTokenizer, list[str]]:
    """Read held-out documents, and what turns them into tokens."""
    return (open_tokenizer(model.vocabulary),
            read_texts(corpus, "heldout", "held-out text")[:documents])
