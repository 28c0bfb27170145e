"""``tally evaluate``: bits per byte of a model on a text."""

import argparse
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from host.cli.options import (
    add_corpus,
    add_json,
    add_masks,
    add_model,
    add_workers,
    integer,
    output_file,
    read_model_and_tokenizer,
    read_texts,
)
from host.cli.terminal import command_line, listing_of, progress_bars, say, table
from host.compress.masks import read_masks
from host.errors import UserError
from host.measure.evaluate import Measurement, evaluate, fit_logit_scale, write_results
from host.models.base import LanguageModel
from host.models.mmfreelm import TernaryLM, write_model
from host.text.tokenizer import AnyTokenizer
from sim.golden.arithmetic import ARITHMETICS
from sim.golden.wina import MaskMap

NAME = "evaluate"
HELP = "measure bits per byte of a model on a text"
DESCRIPTION = ("Measure bits per byte of a model on a text, and the density of the FFN's hidden "
               "vectors, with the golden functions.")

#: Parts of a corpus by the name that users give them.
TEXTS = {"held-out": "heldout", "calibration": "calibration", "train": "train", "all": "all"}


def _arithmetics(text: str) -> list[str]:
    # Without attention, lmul_attention is the same as exact.
    names = ([name for name in ARITHMETICS if name != "lmul_attention"] if text == "all"
             else text.split(","))
    for name in names:
        if name not in ARITHMETICS:
            known = ", ".join(repr(known) for known in ARITHMETICS)
            raise argparse.ArgumentTypeError(f"{name!r} is not an arithmetic (try {known}, 'all')")
    return names


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_model(parser)
    add_corpus(parser)
    parser.add_argument("--arithmetic", type=_arithmetics, metavar="NAME[,NAME]",
                        dest="arithmetics",
                        help=f"arithmetics to measure: {listing_of(ARITHMETICS, 'or')}; all "
                             f"measures each of them (default: lmul,float, or with --masks lmul)")
    parser.add_argument("--text", choices=TEXTS, default="held-out",
                        help="part of the text to measure (default: held-out)")
    parser.add_argument("--documents", type=integer(1), metavar="N",
                        help="measure only the first N documents")
    add_masks(parser)
    parser.add_argument("--fit", action="store_true",
                        help="first fit each arithmetic's logit scale on the calibration text")
    parser.add_argument("--save", type=output_file, metavar="MODEL.gguf",
                        help="with --fit, write the model with the fitted logit scales")
    add_json(parser)
    add_workers(parser)


def run(console: Console, options: argparse.Namespace) -> int:
    """Measure, and print a table."""
    if options.save and not options.fit:
        raise UserError("Option --save must come with --fit, which finds what there is to save")
    model, tokenizer = read_model_and_tokenizer(options.model)
    if options.save and not isinstance(model, TernaryLM):
        raise UserError(f"Option --save must come with a GGUF file, not {options.model}")
    arithmetics = options.arithmetics or (["lmul"] if options.masks else ["lmul", "float"])
    masks = None
    if options.masks:
        calibrated = read_masks(options.masks)
        masks = calibrated.of(model, options.mask_mode)
    for arithmetic in arithmetics:
        if masks and ARITHMETICS[arithmetic].activations != "int8":
            raise UserError(f"Arithmetic {arithmetic!r} has no int8 codes that --masks "
                            f"could act on")
        if arithmetic not in model.logit_scales and not options.fit:
            raise UserError(f"{options.model}: no logit scale for arithmetic {arithmetic!r}; "
                            f"find it with --fit")
    documents = read_texts(options.corpus, TEXTS[options.text], options.text)
    if options.masks:
        say(console, f"Masked, so not exact: {calibrated.method}, {options.mask_mode}, "
                     f"{calibrated.dropped(model):.1%} of the layers' trits left out")
    if options.fit:
        fitted_on = read_texts(options.corpus, "calibration", "calibration")
        for arithmetic in arithmetics:
            start = model.logit_scales.get(arithmetic, next(iter(model.logit_scales.values())))

            def losses(scales: Sequence[float], arithmetic: str = arithmetic) -> Sequence[float]:
                return _measure(console, model, tokenizer, fitted_on, arithmetic, options.workers,
                                f"Fitting {arithmetic}", scales, masks).bits_per_byte

            scale = fit_logit_scale(losses, start)
            say(console, f"Logit scale for {arithmetic}: {scale} (was {start})")
            model.logit_scales[arithmetic] = scale
        if options.save:
            assert isinstance(model, TernaryLM)     # checked above
            write_model(options.save, model)
            say(console, f"Wrote {options.save}")
    measurements = [_measure(console, model, tokenizer, documents[:options.documents], arithmetic,
                             options.workers, f"Evaluating {arithmetic}", masks=masks)
                    for arithmetic in arithmetics]
    console.print(_summary(model, options.text, measurements))
    if options.json:
        write_results(options.json, command_line(), model, options.text, measurements)
    return 0


def _measure(console: Console, model: LanguageModel, tokenizer: AnyTokenizer,
             documents: Sequence[str], arithmetic: str, workers: int | None, description: str,
             logit_scales: Sequence[float] | None = None,
             masks: MaskMap | None = None) -> Measurement:
    tokens = [tokenizer.encode(document) for document in documents]
    total, done = sum(map(len, tokens)) + len(tokens), 0
    with progress_bars(console) as bar:
        move = bar(description)

        def report(count: int) -> None:
            nonlocal done
            done += count
            move(done / total, f"{done:,} of {total:,} tokens")

        return evaluate(model, tokens, sum(len(document.encode()) for document in documents),
                        arithmetic, logit_scales=logit_scales, masks=masks, workers=workers,
                        report=report)


def _summary(model: LanguageModel, text: str, measurements: Sequence[Measurement]) -> Table:
    first = measurements[0]
    rows = []
    for measurement in measurements:
        layers = [measurement.layer_density(layer) for layer in range(len(measurement.hidden))]
        rows.append((measurement.arithmetic, f"{measurement.bits_per_byte[0]:.4f}",
                     f"{measurement.logit_scales[0]:.5g}", f"{measurement.density:.2%}",
                     f"{max(layer['density_p99'] for layer in layers):.1%}",
                     f"{max(layer['density_max'] for layer in layers):.1%}"))
    return table(f"{model.name} on {text} text: {first.documents} documents, "
                 f"{first.tokens:,} tokens, {first.bytes:,} bytes",
                 ("arithmetic", "bits per byte", "logit scale", "density", "99 %", "maximum"), rows,
                 caption="density: share of non-zero elements of the FFN's hidden vectors; 99 % "
                         "and maximum: over the tokens, in the layer where it is largest")
