"""``tally run``: write a text that a device computes."""

import argparse
import contextlib
import functools
import itertools
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from rich.console import Console

from host.cli.chat import converse, open_dialogue
from host.cli.images import compiled_image
from host.cli.options import (
    CLOCK_MHZ,
    DEFAULT_MODEL,
    add_clock,
    add_context,
    add_masks,
    integer,
    penalty,
    read_head_and_tokenizer,
    share,
    temperature,
)
from host.cli.terminal import Report, fact_table, listing_of, progress_bars, say, size, write
from host.compiler.compile import CONTEXT
from host.devices.accelerator import LATENCY, REFRESH, AcceleratorDevice
from host.devices.base import Device
from host.devices.checked import CheckedTokens
from host.devices.engine import EngineDevice
from host.devices.errors import DeviceError
from host.devices.generate import AcceleratorReader, EngineReader, Generator, Phase, check_length
from host.devices.registry import NAMES, DeviceName, open_accelerator, open_engine
from host.devices.serial_accelerator import SerialAccelerator
from host.errors import UserError
from host.files.image import Image, is_image, read_image
from host.models.registry import read_model
from host.text.sampling import REPEATED, Sampler
from host.text.tokenizer import AnyTokenizer, Tokenizer
from host.text.vocabulary import Words, begin
from hw.config import AcceleratorConfig
from sim.timing.program import BITS_PER_TRIT, token_cycles

NAME = "run"
HELP = "write a text that a device computes"
DESCRIPTION = ("Write a text. An accelerator computes whole tokens, and all logits that it "
               "delivers are compared with the golden machine's. An engine computes the matrix "
               "products, each compared with the golden model's, and the host computes the rest. "
               "Speed is reported only after every result matched bit for bit.")

DEFAULT_PROMPT = "Once upon a time"

#: Tokens of a text, and of an answer in a dialogue, where no option says how many.
DEFAULT_TOKENS, DEFAULT_ANSWER = 32, 512

#: How the names of model files end.
SUFFIXES = (".gguf", ".bin", ".safetensors", ".tally", ".image")

Fact = tuple[str, str, str]


def _device(text: str) -> DeviceName:
    try:
        return DeviceName.parse(text)
    except DeviceError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("words", nargs="*", metavar="[MODEL] [PROMPT]",
                        help=f"MODEL: a model file, a folder with a checkpoint or, for an "
                             f"accelerator, an image of 'compile --output' (default: "
                             f"models/{DEFAULT_MODEL.name}). PROMPT: the beginning of the text "
                             f"(default: {DEFAULT_PROMPT!r}). A single argument is the model if it "
                             f"exists as a path, has a path separator in it or ends like a model "
                             f"file, and else the prompt")
    parser.add_argument("--prompt", metavar="TEXT",
                        help="beginning of the text, whatever it looks like")
    parser.add_argument("--device", default="simulated", metavar="DEVICE", type=_device,
                        help=f"one of {', '.join(NAMES)}: an accelerator, or with engine- an "
                             f"engine alone; simulated is the RTL compiled by Verilator, golden "
                             f"the golden model, serial:PORT a board (default: simulated)")
    parser.add_argument("--chat", action="store_true",
                        help="hold a dialogue in the terminal, with the chat template of the "
                             "model: each line is a message, Ctrl-C stops an answer, Ctrl-D ends "
                             "the dialogue; a PROMPT is the first message")
    parser.add_argument("--system", metavar="TEXT",
                        help="with --chat, the system message that the dialogue begins with")
    parser.add_argument("--tokens", type=integer(1), metavar="N",
                        help=f"number of tokens to write (default: {DEFAULT_TOKENS}), or with "
                             f"--chat of an answer at most (default: {DEFAULT_ANSWER})")
    parser.add_argument("--temperature", type=temperature, default=0.7, metavar="T",
                        help="temperature of the draws; 0 always takes the likeliest token "
                             "(default: 0.7)")
    parser.add_argument("--top-k", type=integer(0), metavar="N",
                        help="draw from the N likeliest tokens, or from all with 0 (default: 40, "
                             "or for an accelerator as many as it delivers)")
    parser.add_argument("--top-p", type=share, default=1.0, metavar="P",
                        help="draw from the fewest of the likeliest tokens whose probabilities "
                             "sum to P (default: 1, all)")
    parser.add_argument("--min-p", type=share, default=0.0, metavar="P",
                        help="draw from tokens at least P times as probable as the likeliest one "
                             "(default: 0, all)")
    parser.add_argument("--repeat-penalty", type=penalty, default=1.0, metavar="R",
                        help=f"make the last {REPEATED} tokens less likely: a positive logit is "
                             f"divided by R, a negative one multiplied (default: 1, not at all)")
    parser.add_argument("--seed", type=integer(0), default=1, metavar="N",
                        help="seed of the draws: the same seed writes the same text (default: 1)")
    parser.add_argument("--greedy", action="store_true",
                        help="always take the likeliest token, as --temperature 0 does")
    parser.add_argument("--prefill", type=integer(1), default=1, metavar="N",
                        help="tokens of the prompt that an accelerator reads together, a power of "
                             "two; each weight is read once for them (default: 1)")
    parser.add_argument("--dense", action="store_true",
                        help="read all weight columns, also those whose activation is zero: the "
                             "same text in more cycles")
    add_context(parser, CONTEXT)
    add_clock(parser)
    add_masks(parser)


def run(console: Console, options: argparse.Namespace) -> int:
    """Write the text, then what it took."""
    path, prompt = _model_and_prompt(options)
    if options.system is not None:
        if not options.chat:
            raise UserError("Option --system needs --chat")
        options.system = _utf8(options.system, "Option --system")
    return (_run_engine if options.device.part == "engine" else _run_accelerator)(
        console, options, path, prompt)


def _is_path(word: str) -> bool:
    separators = [separator for separator in (os.sep, os.altsep) if separator]
    return (os.path.exists(word) or any(separator in word for separator in separators)
            or word.lower().endswith(SUFFIXES))


def _model_and_prompt(options: argparse.Namespace) -> tuple[Path, str | None]:
    """Return the model and the prompt, which a dialogue may begin without."""
    words: list[str] = list(options.words)
    model = DEFAULT_MODEL
    if words and (len(words) > 1 or _is_path(words[0])):
        alone = len(words) == 1
        model = Path(words.pop(0))
        if not os.path.exists(model):
            raise UserError(f"{model}: No such file or directory"
                            + "; if it is a prompt, give it with --prompt" * alone)
        if model.is_dir() and not (model / "config.json").exists():
            raise UserError(f"{model}: a folder without a model (config.json)"
                            + "; if it is a prompt, give it with --prompt" * alone)
    if len(words) > 1:
        raise UserError(f"Prompt must be one argument, not {len(words)}; put it in quotes")
    if words and options.prompt is not None:
        raise UserError("Prompt must be given once, not as an argument and with --prompt")
    prompt = words[0] if words else options.prompt
    if prompt is None and options.chat:
        return model, None
    if prompt is None:
        prompt = DEFAULT_PROMPT
    if not prompt.strip():
        raise UserError("Prompt must not be empty")
    return model, _utf8(prompt)


def _utf8(prompt: str, what: str = "Prompt") -> str:
    """Return an argument as the text whose UTF-8 it was typed in, whatever the locale's encoding.

    Python keeps a byte of an argument that the locale's encoding lacks as a lone surrogate.
    """
    try:
        return prompt.encode(errors="surrogateescape").decode()
    except UnicodeError:
        first = next(index for index, character in enumerate(prompt)
                     if 0xd800 <= ord(character) < 0xe000)
        raise UserError(f"{what} must be UTF-8, but character {first + 1} is the byte "
                        f"{ord(prompt[first]) & 0xff:#04x}") from None


def _sampler(options: argparse.Namespace, top_k: int) -> Sampler:
    return Sampler(0.0 if options.greedy else options.temperature,
                   top_k if options.top_k is None else options.top_k, options.seed, options.top_p,
                   options.min_p, options.repeat_penalty)


def _check_text(options: argparse.Namespace, prompt: str | None, tokenizer: AnyTokenizer,
                words: Words, context: int) -> None:
    """Refuse what cannot be written, before anything that takes long.

    That is a dialogue with a model that has learned none, or prompt and tokens that a context is
    too short for.
    """
    if options.chat:
        open_dialogue(words, tokenizer, context, options.system)
    elif prompt is not None:
        check_length(len(begin(words, tokenizer.encode(prompt, special=True))),
                     options.tokens or DEFAULT_TOKENS, context)


def _write(console: Console, options: argparse.Namespace, generator: Generator,
           tokenizer: AnyTokenizer, words: Words, context: int, prompt: str | None,
           top_k: int) -> tuple[int, float]:
    """Write a text or hold a dialogue; return the tokens' number and when the first came."""
    sampler = _sampler(options, top_k)
    if prompt is None or options.chat:
        return converse(console, generator,
                        open_dialogue(words, tokenizer, context, options.system), tokenizer,
                        sampler, limit=options.tokens or DEFAULT_ANSWER, context=context,
                        first=prompt)
    count = options.tokens or DEFAULT_TOKENS
    with progress_bars(console) as bar:
        tokens = generator.generate(tokenizer.encode(prompt, special=True), count, sampler,
                                    bar("Reading the prompt"))
        first = list(itertools.islice(tokens, 1))
    came = time.perf_counter()
    decoder, written = tokenizer.stream(), 0
    write(console, prompt, "bold")
    try:
        for token in itertools.chain(first, tokens):
            written += 1
            write(console, decoder.feed(token))
        write(console, decoder.finish())
    finally:
        console.print("\n")
    if written < count:
        say(console, "The text ends here.", "dim")
    return written, came


def _speed(device: Device, options: argparse.Namespace, cycles: float) -> Fact:
    """Tokens a second at a clock."""
    hertz = (options.clock * 1e6 if options.clock else
             float(device.info().get("clock_hz", CLOCK_MHZ * 1e6)))
    return ("Tokens a second", f"{hertz / cycles:,.1f}",
            f"{device.evidence}, at a clock of {hertz / 1e6:g} MHz")


# An engine.

def _run_engine(console: Console, options: argparse.Namespace, path: Path,
                prompt: str | None) -> int:
    """Matrix products on a device, the rest here."""
    began = time.perf_counter()
    if path.is_file() and is_image(path):
        raise UserError(f"{path}: an image needs an accelerator (try --device simulated, golden "
                        f"or serial:PORT)")
    for option, given in (("--masks", options.masks), ("--context", options.context),
                          ("--dense", options.dense), ("--prefill", options.prefill > 1)):
        if given:
            raise UserError(f"Option {option} needs an accelerator, but device "
                            f"{str(options.device)!r} is an engine alone")
    words, tokenizer, context = read_head_and_tokenizer(path)
    _check_text(options, prompt, tokenizer, words, context)
    model = read_model(path)
    with progress_bars(console) as bar:
        device = open_engine(options.device, bar("Opening the device"))
        try:
            reader = EngineReader(model, device, bar("Loading the model"))
        except BaseException:
            device.close()
            raise
    loaded = time.perf_counter()
    with contextlib.closing(device):
        generator = Generator(reader)
        written, first = _write(console, options, generator, tokenizer, words, context, prompt, 40)
        if options.chat and not written:
            return 0
        console.print(fact_table(f"{model.name} on the {device.label}", _engine_facts(
            options, generator, reader, device, written, loaded - began, first - began)))
    return 0


def _engine_facts(options: argparse.Namespace, generator: Generator, reader: EngineReader,
                  device: EngineDevice, written: int, loading: float,
                  first: float) -> Iterable[Fact]:
    """List what it took: only reached when every product equalled the golden model's."""
    prompt, text, config = generator.prompt, generator.text, device.config
    total = prompt + text
    counters = total.counters
    columns = counters.entries + counters.skipped

    def moved(count: int) -> str:
        return size(count / total.tokens)

    yield "Matrix products", f"{counters.products:,}", "all equal to the golden model"
    yield "Tokens", f"{written:,}", f"after {prompt.tokens} of the prompt"
    for name, phase in (("prompt", prompt), ("text", text)):
        done = phase.counters
        if not phase.tokens:
            continue
        yield (f"Cycles per token, {name}", f"{done.cycles / phase.tokens:,.0f}",
               f"{device.evidence}, of the engine")
        yield (f"Trits added per cycle, {name}", f"{done.additions / done.cycles:.1f}",
               f"{device.evidence}, by {config.lanes} lanes")
        used = done.weight_bytes / (done.cycles * config.port_bytes)
        yield (f"Weight port used, {name}", f"{used:.1%}",
               f"{device.evidence}, of {config.port_bytes} bytes a cycle")
    name, value, evidence = _speed(device, options, counters.cycles / total.tokens)
    yield f"{name}, products", value, evidence
    yield ("Bytes moved per token",
           moved(counters.weight_bytes + counters.list_bytes + counters.result_bytes),
           f"derived: {moved(counters.weight_bytes)} of weights")
    yield "Weights on the device", size(reader.driver.loaded_bytes), "derived"
    yield "Columns skipped", f"{counters.skipped / columns:.1%}", "derived: activation zero"
    yield "Density of the FFN", f"{reader.live / reader.hidden:.1%}", "derived: hidden, not zero"
    yield from _times(total, loading, first)
    if device.evidence == "simulated":
        yield "Simulated cycles", f"{counters.cycles / total.seconds:,.0f} / s", "measured"


def _times(total: Phase, loading: float, first: float) -> Iterable[Fact]:
    yield "First token after", f"{first:.1f} s", f"measured; loading {loading:.1f} s"
    yield ("Time per token", f"{total.seconds / total.tokens:.2f} s",
           f"measured; {total.seconds:.1f} s in all")


# An accelerator.

def _check_top_k(options: argparse.Namespace, config: AcceleratorConfig) -> None:
    """Refuse to draw from more logits than an accelerator delivers."""
    if options.top_k is not None and not 1 <= options.top_k <= config.top_k:
        raise UserError(f"Option --top-k must be from 1 to {config.top_k} on device "
                        f"{str(options.device)!r}, which delivers so many logits, "
                        f"not {options.top_k}")


def _say_top_k(console: Console, options: argparse.Namespace, top_k: int) -> None:
    """Say what an accelerator's few logits mean for the options that are given."""
    given = [name for name, is_given in (
        ("--top-p", options.top_p < 1), ("--min-p", options.min_p > 0),
        ("--repeat-penalty", options.repeat_penalty > 1)) if is_given]
    if given:
        say(console, f"The accelerator delivers the {top_k} largest logits: "
                     f"{listing_of(given)} count these tokens alone.", "dim")


def _image(console: Console, path: Path, prompt: str | None, options: argparse.Namespace,
           device: AcceleratorDevice | None,
           bar: Callable[[str], Report]) -> tuple[Image, AnyTokenizer, Words]:
    """Read an image, or compile a model for the device, or for an accelerator that fits it."""
    accept = functools.partial(_check_text, options, prompt)
    if path.is_file() and is_image(path):
        image = read_image(path)
        if image.vocabulary is None:
            raise UserError(f"{path}: no vocabulary in it; give the model that it was made of")
        for option, given in (("--dense", options.dense), ("--masks", options.masks),
                              ("--prefill", options.prefill > 1), ("--context", options.context)):
            if given:
                raise UserError(f"{path}: option {option} needs the model that the image was made "
                                f"of, since the image is compiled already")
        _check_top_k(options, image.config)
        tokenizer = Tokenizer(image.vocabulary)
        accept(tokenizer, image.vocabulary, image.context)
        return image, tokenizer, image.vocabulary
    if device and options.context:
        raise UserError(f"Option --context cannot change the context of device "
                        f"{str(options.device)!r}")
    # An accelerator that fits a model has as large a top_k as any.
    config = device.config if device else AcceleratorConfig()
    _check_top_k(options, config)
    return compiled_image(console, path, config, bar, fitted=device is None,
                          sparse=not options.dense, options=options, accept=accept)


def _run_accelerator(console: Console, options: argparse.Namespace, path: Path,
                     prompt: str | None) -> int:
    """Whole tokens on a device."""
    began = time.perf_counter()
    device: AcceleratorDevice | None = None
    if options.masks:
        say(console, "Activations are masked: the text is not that of the whole model.", "dim")
    with progress_bars(console) as bar:
        try:
            if options.device.kind == "serial":
                # What a model becomes depends on the board's accelerator.
                device = open_accelerator(options.device)
            image, tokenizer, words = _image(console, path, prompt, options, device, bar)
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
        checked = None if options.device.kind == "golden" else CheckedTokens(device, image)
        generator = Generator(AcceleratorReader(checked or device, image, words))
        _say_top_k(console, options, image.config.top_k)
        written, first = _write(console, options, generator, tokenizer, words, image.context,
                                prompt, image.config.top_k)
        if options.chat and not written:
            return 0
        console.print(fact_table(f"{image.model} on the {device.label}", _accelerator_facts(
            options, generator, device, checked, image, written, loaded - began, first - began)))
    return 0


def _accelerator_facts(options: argparse.Namespace, generator: Generator,
                       device: AcceleratorDevice, checked: CheckedTokens | None, image: Image,
                       written: int, loading: float, first: float) -> Iterable[Fact]:
    """List what it took: only reached when every logit equalled the golden machine's."""
    config, prompt = image.config, generator.prompt
    total = prompt + generator.text
    counters = total.counters
    if checked:
        yield "Logits delivered", f"{checked.checked:,}", "all equal to the golden machine"
    yield "Tokens", f"{written:,}", f"after {prompt.tokens} of the prompt"
    cycles = counters.cycles / total.tokens
    yield "Cycles per token", f"{cycles:,.0f}", device.evidence
    yield _speed(device, options, cycles)
    if checked:
        machine = checked.machine
        latency, refresh = LATENCY, REFRESH
        if isinstance(device, SerialAccelerator):
            latency, refresh = device.memory_timing() or (LATENCY, 0.0)
        cost = token_cycles(config, image.program.instructions, image.program.body,
                            latency=latency, refresh=refresh, lists=machine.list_counts(),
                            position=total.tokens // 2)
        yield ("... by the formula", f"{cost.cycles:,.0f}",
               f"derived; {cost.cycles / cycles - 1:+.2%}")
        trits = machine.trits / total.tokens
        useful = BITS_PER_TRIT * trits / (8 * config.port_bytes * cycles * (1 - refresh))
        yield ("Trits added per cycle", f"{trits / cycles:.1f}",
               f"{device.evidence}, by {config.engine.lanes} lanes")
        yield ("Memory port, useful", f"{useful:.1%}", f"{device.evidence}, refresh not counted")
        if isinstance(device, SerialAccelerator):
            moved = counters.transfers / total.tokens / (cycles * (1 - refresh))
            yield ("Memory port, used", f"{moved:.1%}",
                   f"{device.evidence}, of what the memory can give")
            yield ("... waits, refreshes",
                   f"{device.waits / total.tokens:,.0f}, {device.refreshes / total.tokens:,.0f}",
                   f"{device.evidence}: cycles with a transfer pending, a token")
        if machine.skipped:
            yield ("Weights not read",
                   f"{machine.skipped / (machine.trits + machine.skipped):.1%}",
                   "derived: activation zero or masked; --dense reads them")
            saved = BITS_PER_TRIT / 8 * machine.skipped / total.tokens
            yield "... bytes saved per token", size(saved), "derived: 1.6 bits a trit"
        if machine.rows[1]:
            yield ("Live rows of the FFN", f"{machine.rows[0] / machine.rows[1]:.1%}",
                   "derived: gate not zero")
    yield ("Bytes moved per token", size(config.port_bytes * counters.transfers / total.tokens),
           device.evidence)
    caches = f"; {size(image.room)} for {image.context:,} keys and values" * bool(image.context)
    yield "Image on the device", size(len(image.memory)), f"derived{caches}"
    yield from _times(total, loading, first)
    if checked:
        yield ("Simulated cycles" if device.evidence == "simulated" else "Cycles",
               f"{counters.cycles / (total.seconds - checked.seconds):,.0f} / s",
               "measured, without the golden machine")
