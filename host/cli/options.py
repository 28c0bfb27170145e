"""What options of several commands have in common: numbers, models, texts, configurations."""

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from host.compress.masks import MODES, read_masks
from host.errors import UserError
from host.files.errors import ModelFileError
from host.models.base import LanguageModel
from host.models.registry import read_head, read_model
from host.text.corpus import read_corpus
from host.text.tokenizer import AnyTokenizer, open_tokenizer
from host.text.vocabulary import Words
from hw.boards.board import AcceleratorBoard
from hw.boards.catalog import BOARDS
from hw.config import AcceleratorConfig, EngineConfig
from sim.golden.wina import MaskMap

__all__ = ["CLOCK_MHZ", "DEFAULT_MODEL", "add_clock", "add_context", "add_corpus", "add_fields",
           "add_masks", "add_json", "add_model", "add_workers", "bytes_of", "configuration",
           "accelerator_board", "masks_of", "integer", "output_file", "penalty", "positive",
           "power_of_two", "read_head_and_tokenizer", "read_model_and_tokenizer", "read_texts",
           "share", "temperature", "with_context"]

DEFAULT_MODEL = Path(__file__).parents[2] / "models" / "tally-stories.gguf"

#: Where no board says what its clock is: about what an ECP5 reaches.
CLOCK_MHZ = 80.0


# Numbers.

def integer(least: int) -> Callable[[str], int]:
    """Return what converts an option to an integer of at least so much."""
    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"must be an integer of at least {least}, "
                                             f"not {text!r}")
        return value
    return convert


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def positive(text: str) -> float:
    """Convert an option to a positive number."""
    value = _number(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a positive number, not {text!r}")
    return value


def temperature(text: str) -> float:
    """Convert an option to a number of at least 0."""
    value = _number(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number of at least 0, not {text!r}")
    return value


def share(text: str) -> float:
    """Convert an option to a number from 0 to 1."""
    value = _number(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 1, not {text!r}")
    return value


def penalty(text: str) -> float:
    """Convert an option to a number of at least 1."""
    value = _number(text)
    if not 1 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number of at least 1, not {text!r}")
    return value


def power_of_two(count: int) -> int:
    """Round up to a power of two."""
    return 2 ** (count - 1).bit_length()


def output_file(text: str) -> Path:
    """Convert an option to a file that can be written; else minutes of work could be lost."""
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} must be a file in a folder that exists")
    return path


# Models and texts.

def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the model, which may be left out."""
    parser.add_argument("model", nargs="?", type=Path, default=DEFAULT_MODEL, metavar="MODEL",
                        help=f"model file (GGUF, llama2.c) or folder with a checkpoint (default: "
                             f"models/{DEFAULT_MODEL.name})")


def read_head_and_tokenizer(path: Path) -> tuple[Words, AnyTokenizer, int]:
    """Read a model's vocabulary, what turns text into its tokens, and how many it may read."""
    words, context = read_head(path)
    try:
        return words, open_tokenizer(words), context
    except ValueError as error:
        raise ModelFileError(f"{path}: {error}") from None


def read_model_and_tokenizer(path: Path) -> tuple[LanguageModel, AnyTokenizer]:
    """Read a model and what turns text into its tokens."""
    model = read_model(path)
    try:
        return model, open_tokenizer(model.vocabulary)
    except ValueError as error:
        raise ModelFileError(f"{path}: {error}") from None


def bytes_of(path: Path) -> int:
    """Count the bytes of a model file, or of the files with a checkpoint's tensors."""
    files = path.glob("*.safetensors") if path.is_dir() else (path,)
    return sum(file.stat().st_size for file in files)


def add_corpus(parser: argparse.ArgumentParser, *, required: bool = True,
               use: str = "text to read") -> None:
    """Add the texts."""
    parser.add_argument("--corpus", type=Path, required=required, metavar="TEXT",
                        help=f"{use}: a plain text file, a folder of them (*.txt), or a folder "
                             f"with splits.tsv; docs/texts.md says how documents are divided "
                             f"into held-out, calibration and training text")


def read_texts(path: Path, part: str, use: str) -> list[str]:
    """Read the documents of one part of a corpus, or of all; there must be some."""
    parts = read_corpus(path)
    documents = [text for each in parts.values() for text in each] if part == "all" else parts[part]
    if not documents:
        raise UserError(f"{path}: has no document for {use} (docs/texts.md says which document is "
                        f"for what)")
    return documents


# Activation sparsity.

def add_masks(parser: argparse.ArgumentParser) -> None:
    """Add the masks of activations."""
    parser.add_argument("--masks", type=Path, metavar="FILE",
                        help="keep only the activations that this mask file of 'calibrate' lets "
                             "pass; results change")
    parser.add_argument("--mask-mode", choices=MODES, default=MODES[0],
                        help=f"with --masks, keep a fixed number of activations, or those above a "
                             f"fixed score (default: {MODES[0]})")


def masks_of(options: argparse.Namespace, model: LanguageModel) -> MaskMap | None:
    """Read the mask file that was asked for."""
    return read_masks(options.masks).of(model, options.mask_mode) if options.masks else None


# Configurations.

def add_fields(parser: argparse.ArgumentParser) -> None:
    """Add changes of the configuration."""
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE",
                        dest="fields", help="change a field of the accelerator's configuration "
                                            "(hw/config.py lists them); may be repeated")


def add_context(parser: argparse.ArgumentParser, most: int) -> None:
    """Add the context of a transformer."""
    parser.add_argument("--context", type=integer(2), metavar="TOKENS",
                        help=f"tokens that a sequence of a transformer may have, rounded up to a "
                             f"power of two (default: the model's context, at most {most:,})")


def with_context(base: AcceleratorConfig, context: int | None, model: Path,
                 most: int) -> AcceleratorConfig:
    """Set the context that was asked for, of a model whose sequences have at most some tokens."""
    if context is None:
        return base
    if not most:
        raise UserError(f"Option --context is for transformers, but {model} has no attention: its "
                        f"sequences may have any length")
    return dataclasses.replace(base, context=power_of_two(context))


def add_clock(parser: argparse.ArgumentParser) -> None:
    """Add the clock at which times are stated."""
    parser.add_argument("--clock", type=positive, metavar="MHZ",
                        help=f"clock at which tokens a second are stated, in MHz (default: the "
                             f"board's, or {CLOCK_MHZ:g})")


def configuration(base: AcceleratorConfig, fields: Sequence[str]) -> AcceleratorConfig:
    """Change fields of a configuration; each has the form ``name=value``."""
    accelerator = dataclasses.asdict(base)
    engine = accelerator.pop("engine")
    for text in fields:
        name, _, value = text.partition("=")
        part = next((part for part in (engine, accelerator) if name in part), None)
        if part is None:
            raise UserError(f"{name!r} is not a field of the configuration "
                            f"(try {', '.join(map(repr, [*engine, *accelerator]))})")
        part[name] = int(value) if value.isdecimal() else value
    try:
        return AcceleratorConfig(engine=EngineConfig(**engine), **accelerator)
    except ValueError as error:
        raise UserError(str(error)) from None


def accelerator_board(name: str) -> AcceleratorBoard:
    """Find a board with an accelerator."""
    boards = {board.name: board for board in BOARDS.values() if isinstance(board, AcceleratorBoard)}
    if name not in boards:
        raise UserError(f"{name!r} is not a board with an accelerator "
                        f"(try {', '.join(map(repr, boards))})")
    return boards[name]


# Results.

def add_json(parser: argparse.ArgumentParser) -> None:
    """Add the file for the results."""
    parser.add_argument("--json", type=output_file, metavar="FILE",
                        help="write the results as JSON")


def add_workers(parser: argparse.ArgumentParser) -> None:
    """Add the number of processes."""
    parser.add_argument("--workers", type=integer(1), metavar="N",
                        help="number of processes (default: one for each CPU, at most 4)")
