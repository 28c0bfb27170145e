"""``tally compile``: a program, an image of the weights, and what a token costs."""

import argparse
import dataclasses
from collections.abc import Callable, Iterable

from rich.console import Console
from rich.table import Table

from host.checks import printable
from host.cli.options import (
    CLOCK_MHZ,
    accelerator_board,
    add_clock,
    add_context,
    add_corpus,
    add_fields,
    add_masks,
    add_model,
    bytes_of,
    configuration,
    integer,
    masks_of,
    output_file,
    read_texts,
    share,
    with_context,
)
from host.cli.terminal import Report, fact_table, listing_of, progress_bars, say, size, table
from host.compiler.compile import CONTEXT, compile_fitted, compile_model, sequence_context
from host.compiler.errors import CompileError
from host.errors import UserError
from host.files.image import Image, listing, write_image
from host.measure.compare import Text, Variant, compare
from host.measure.program import losses, planes_of
from host.models.base import LanguageModel
from host.models.llama import LlamaLM
from host.models.registry import read_model
from hw.config import AcceleratorConfig
from hw.isa import INSTRUCTION_BYTES
from sim.timing.program import BITS_PER_TRIT, TokenCycles, token_cycles

NAME = "compile"
HELP = "make a program and an image of the weights"
DESCRIPTION = ("Compile a model for an accelerator: a program, an image of its weights, and what "
               "a token will cost.")

#: Trit planes that ``--compare-planes`` compares.
CHOICES = (3, 4, 5, 6)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_model(parser)
    parser.add_argument("--output", type=output_file, metavar="FILE", help="write the image")
    parser.add_argument("--listing", action="store_true", help="print the program")
    parser.add_argument("--sparse", action="store_true",
                        help="skip weight columns whose activation is zero where that pays, and, "
                             "if the engine has row_columns, rows of an up projection whose gate "
                             "is zero; the logits do not change")
    add_masks(parser)
    parser.add_argument("--board", metavar="BOARD",
                        help="compile for this board's accelerator (default: for one that is as "
                             "large as the model needs it)")
    add_fields(parser)
    add_context(parser, CONTEXT)
    add_clock(parser)
    parser.add_argument("--latency", type=integer(0), default=20, metavar="CYCLES",
                        help="memory read latency in cycles (default: 20)")
    parser.add_argument("--refresh", type=share, default=0.01, metavar="SHARE",
                        help="share of the cycles in which the memory refreshes itself and does "
                             "not answer (default: 0.01)")
    parser.add_argument("--planes", type=integer(1), metavar="N",
                        help="trit planes of the layers' matrices of a model whose weights are "
                             "not ternary (default: 5)")
    parser.add_argument("--compare-planes", action="store_true",
                        help=f"compare bytes, cycles and accuracy of a model of the Llama family "
                             f"with {listing_of(CHOICES)} trit planes; needs --corpus")
    add_corpus(parser, required=False, use="held-out text for --compare-planes")
    parser.add_argument("--documents", type=integer(1), default=2, metavar="N",
                        help="number of held-out documents that --compare-planes reads "
                             "(default: 2)")
    parser.add_argument("--tokens", type=integer(1), default=128, metavar="N",
                        help="tokens of each document that --compare-planes reads (default: 128)")
    parser.add_argument("--position", type=integer(0), default=0, metavar="TOKENS",
                        help="position of the token whose cycles are derived: for a transformer, "
                             "the tokens that its sequence has before it (default: 0)")
    parser.add_argument("--density", type=share, default=1.0, metavar="SHARE",
                        help="density that --sparse's cycles are derived for: share of the weight "
                             "columns whose activation is not zero (default: 1)")


def run(console: Console, options: argparse.Namespace) -> int:
    """Compile, print what a token costs, and write the image."""
    if options.refresh == 1:
        raise UserError("Option --refresh must be below 1: the memory must answer some time")
    with progress_bars(console) as bar:
        bar("Reading the model")(0.0, "")
        model = read_model(options.model)
    if options.planes:
        model = _with_planes(model, options.planes)
    compared = _text_to_compare(options, model)
    board = accelerator_board(options.board) if options.board else None
    if board and options.context:
        raise UserError(f"Option --context cannot change the context of board {board.name}")
    base = with_context(configuration(board.config if board else AcceleratorConfig(),
                                      options.fields),
                        options.context, options.model, model.context)
    context = sequence_context(model.context, base, fitted=board is None)
    if context <= options.position != 0:
        raise UserError(f"Option --position must be below {context}, the tokens of a sequence, "
                        f"not {options.position}" if model.context else
                        f"Option --position is for transformers, but {model.name} has no attention")
    clock = options.clock * 1e6 if options.clock else board.clock_hz if board else CLOCK_MHZ * 1e6

    def compiled(model: LanguageModel, report: Report | None = None) -> Image:
        return (compile_model if board else compile_fitted)(
            model, base, sparse=options.sparse, masks=masks_of(options, model), progress=report)

    def costs(image: Image) -> TokenCycles:
        return token_cycles(image.config, image.program.instructions, image.program.body,
                            latency=options.latency, refresh=options.refresh,
                            density=options.density, position=options.position)

    def weighed(model: LanguageModel) -> tuple[list[str], int]:
        image = compiled(model)
        used = len(image.memory)
        return ([size(used), f"{used / file_bytes:.1%}", f"{costs(image).cycles:,.0f}"],
                image.config.engine.accumulator_width)

    file_bytes = bytes_of(options.model)
    with progress_bars(console) as bar:
        image = compiled(model, bar("Compiling"))
    if options.listing:
        print(printable(listing(image.program), "\n"))
    cost = costs(image)
    console.print(fact_table(
        f"{image.model} for configuration {image.config.configuration_hash():08x}",
        _facts(image, cost, f"{options.latency} cycles latency, {options.refresh:.1%} refresh"
               + f", position {options.position}" * bool(image.context), file_bytes, clock)))
    console.print(_by_planes(image, cost))
    for note in model.notes:
        say(console, note)
    if options.output:
        write_image(options.output, image)
        say(console, f"Wrote {options.output}")
    if compared:
        assert isinstance(model, LlamaLM)       # checked above
        del image       # no two of them at a time
        _compare_planes(console, model, compared, weighed)
    return 0


def _facts(image: Image, cost: TokenCycles, memory: str, file_bytes: int,
           clock: float) -> Iterable[tuple[str, str, str]]:
    """List what a program needs and what a token costs."""
    config, program = image.config, image.program
    count = len(program.instructions)
    yield ("Instructions", f"{count:,}", f"{size(count * INSTRUCTION_BYTES)}; "
           f"{len(program.token()):,} for a token")
    yield ("Vector memory", f"{sum(elements for _, elements in program.vectors.values()):,}",
           f"elements of {config.vector_depth:,}")
    for kind, what in (("trits", "Matrices"), ("vector", "Vectors of constants")):
        parts = [part for part in image.parts if part.kind == kind]
        useful = BITS_PER_TRIT / 8 * sum(part.trits for part in parts)
        yield (what, size(sum(part.bytes for part in parts)),
               f"{len(parts)}" + (f"; {size(useful)} without padding" if useful else ""))
    yield ("Image", size(len(image.memory)),
           f"{len(image.memory) / file_bytes:.1%} of the file's {size(file_bytes)}")
    if image.context:
        yield "Keys and values", size(image.room), f"of {image.context:,} tokens"
    yield "Cycles per token", f"{cost.cycles:,.0f}", f"derived: {memory}"
    yield "Tokens a second", f"{clock / cost.cycles:,.1f}", f"derived, at {clock / 1e6:g} MHz"
    for name, cycles in (("memory port", cost.port), ("engine", cost.engine),
                         ("vector unit", cost.execution)):
        yield f"... {name} alone", f"{cycles:,.0f}", "derived"
    yield "What takes longest", cost.limit, ""
    yield ("Memory port, useful", f"{cost.port_utilization(config):.2%}",
           f"derived, of {config.port_bytes} bytes a cycle without refresh")
    for reason, lost in losses(image, cost):
        if lost >= 0.0005:
            yield "... lost", f"{lost:.2%}", reason


def _with_planes(model: LanguageModel, planes: int) -> LanguageModel:
    """Change the trit planes of a model whose weights were not ternary."""
    if not isinstance(model, LlamaLM):
        raise UserError(f"Option --planes needs a model of the Llama family: the matrices of "
                        f"{model.name} are ternary")
    return dataclasses.replace(model, planes=planes)


def _by_planes(image: Image, cost: TokenCycles) -> Table:
    """List matrices by the number of their trit planes."""
    rows = []
    for planes, found in planes_of(image).items():
        cycles = found.token_bytes / image.config.port_bytes / (1 - cost.refresh)
        rows.append((str(planes), str(found.products), f"{found.weights:,}", size(found.bytes),
                     f"{cycles:,.0f}", f"{cycles / cost.cycles:.1%}"))
    return table("Matrices by trit planes",
                 ("planes", "products", "weights", "bytes", "cycles", "share"), rows, names=0,
                 caption="cycles: derived, of the memory port for a token if it never waits")


def _text_to_compare(options: argparse.Namespace, model: LanguageModel) -> Text | None:
    """Read the text for ``--compare-planes``, if that is asked for."""
    if not options.compare_planes:
        if options.corpus:
            raise UserError("Option --corpus must come with --compare-planes")
        return None
    if not isinstance(model, LlamaLM):
        raise UserError(f"Option --compare-planes needs a model of the Llama family: the matrices "
                        f"of {model.name} are ternary")
    if not options.corpus:
        raise UserError("Option --compare-planes needs --corpus, whose held-out text it reads")
    if options.masks:
        raise UserError("Option --compare-planes must come without --masks: "
                        "it compares whole lists")
    try:
        return Text.read(model, read_texts(options.corpus, "heldout", "held-out text"),
                         options.documents, options.tokens)
    except ValueError as error:
        raise UserError(f"{options.model}: {error}") from None


def _compare_planes(console: Console, model: LlamaLM, text: Text,
                    weigh: Callable[[LanguageModel], tuple[list[str], int]]) -> None:
    """Print what each number of planes costs: what an image of it weighs, and how a text fares.

    ``weigh`` returns what the table says of an image, and how wide its accelerator's accumulators
    are.
    """
    weights: dict[int, list[str]] = {}
    widths: dict[int, int] = {}
    misfits: list[str] = []
    with progress_bars(console) as bar:
        report = bar("Compiling")
        for done, planes in enumerate(CHOICES):
            report(done / len(CHOICES), f"{planes} planes")
            try:
                weights[planes], widths[planes] = weigh(dataclasses.replace(model, planes=planes))
            except CompileError as reason:
                weights[planes] = ["", "", ""]
                misfits.append(f"{planes} planes do not fit: {reason}")
        report(1, "")
        wanted = [Variant("lmul", planes, model.rows, model.cache) for planes in CHOICES]
        reference, *found = compare(model, text, wanted, bar("Measuring"))
    documents, tokens = len(text.tokens), len(reference.bits)
    rows = []
    for one, (planes, weight) in zip(found, weights.items(), strict=True):
        cost, error = one.cost(reference)
        rows.append([str(planes), *weight, f"{one.bits_per_byte:.4f}", f"{cost:.2f}",
                     f"{error:.2f}", f"{one.top1_agreement:.1%}", f"{one.jsd:.4f}"])
    console.print(table(
        f"{model.name} by trit planes of the layers' matrices",
        ("planes", "bytes", "of file", "cycles", "bits/byte", "+%", "±", "top 1", "JSD"), rows,
        names=0,
        caption=f"of file: bytes of the image over those of the model file; cycles: of a token, "
                f"derived. The rest is of a small text, the first {tokens // documents} tokens of "
                f"{documents} held-out documents, {text.bytes:,} bytes, in the accelerator's "
                f"arithmetic: +%, bits more than the float reference needs, "
                f"{reference.bits_per_byte:.4f} a byte, and their standard error; top 1: likeliest "
                f"token is the same; JSD: Jensen-Shannon divergence in bits"))
    for planes, width in widths.items():
        if width > min(widths.values()):
            say(console, f"{planes} planes: an accelerator with accumulators of {width} bits, "
                         f"not {min(widths.values())}")
    for misfit in misfits:
        say(console, misfit)
