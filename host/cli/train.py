"""``tally train``: a model from a corpus, with PyTorch."""

import argparse
import importlib.util
from pathlib import Path

from rich.console import Console

from host.cli.options import add_corpus, integer, output_file, positive, share
from host.errors import UserError

NAME = "train"
HELP = "train a model (needs PyTorch)"
DESCRIPTION = ("Train a ternary MatMul-free language model on a corpus, measure it on held-out "
               "text and write it as GGUF. One H100 trains the default in 90 seconds; a CPU takes "
               "days, and --smoke a few seconds.")

#: What --smoke trains: a tiny model, for a few steps.
SMOKE = {"vocab": 512, "layers": 1, "ffn": 256, "batch": 2, "length": 32, "epochs": 0.02}

# Options that are numbers: what converts them, the default, and what they are.
_NUMBERS = {
    "vocab": (integer(1), 4096, "tokens of the vocabulary"),
    "width": (integer(1), 256, "elements of the residual stream, a multiple of 256"),
    "layers": (integer(1), 16, "number of layers"),
    "ffn": (integer(1), 768, "width of the feed-forward networks, a multiple of 256"),
    "epochs": (positive, 28.0, "times that the training text is read"),
    "batch": (integer(1), 32, "sequences in a step"),
    "length": (integer(1), 512, "tokens of a sequence, a power of two"),
    "rate": (positive, 6e-3, "peak learning rate of AdamW"),
    "decay": (share, 0.1, "weight decay of the first half"),
    "dropout": (share, 0.25, "share of activations that are dropped"),
    "l1": (share, 1.5e-4, "weight of the L1 norm of the FFN's hidden vector in the loss"),
    "seed": (integer(0), 1, "seed of the weights, of the order of the documents and of dropout")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_corpus(parser)
    parser.add_argument("--out", type=output_file, required=True, metavar="FILE",
                        help="GGUF file to write")
    parser.add_argument("--report", type=output_file, metavar="FILE",
                        help="write the final measurements as JSON")
    parser.add_argument("--cache", type=Path, metavar="FILE",
                        help="file that keeps the tokenized corpus")
    parser.add_argument("--smoke", action="store_true",
                        help="train a tiny model for a few steps, whatever the options of its size "
                             "say")
    parser.add_argument("--name", default="tally-stories", metavar="TEXT",
                        help="name of the model (default: tally-stories)")
    for name, (convert, default, what) in _NUMBERS.items():
        parser.add_argument(f"--{name}", type=convert, default=default, metavar="N",
                            help=f"{what} (default: {default:g})")
    parser.add_argument("--device", metavar="DEVICE",
                        help="device of PyTorch (default: cuda if there is one, and else cpu)")


def run(console: Console, options: argparse.Namespace) -> int:
    """Train, measure, and write the model and the report."""
    names = ("corpus", "out", "report", "cache", "smoke", "name", *_NUMBERS, "device")
    settings = argparse.Namespace(**{name: getattr(options, name) for name in names})
    if settings.smoke:
        vars(settings).update(SMOKE)
    for name in ("width", "ffn"):
        if getattr(settings, name) % 256:
            raise UserError(f"Option --{name} must be a multiple of 256, "
                            f"not {getattr(settings, name)}")
    if settings.length & (settings.length - 1):
        raise UserError(f"Option --length must be a power of two, not {settings.length}")
    if importlib.util.find_spec("torch") is None:
        raise UserError("Training needs PyTorch, an optional extra: pip install -e '.[train]'")
    from host.train.run import train

    train(settings)
    return 0
