"""``tally compress``: a smaller model for a size, a ratio or a divergence."""

import argparse
import os
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from host.cli.options import add_corpus, bytes_of, integer, output_file, positive, read_texts
from host.cli.terminal import Report, progress_bars, say, size, table
from host.compress.chains import Choice, Layers, compress, layers_of
from host.compress.pareto import Measured, float_bytes, logarithms, measure
from host.compress.profile import (
    EMBEDDING,
    METHODS,
    BudgetError,
    Plan,
    Profile,
    cycles_of,
    plan_for,
    profile,
)
from host.errors import UserError, need_package
from host.measure.compare import Text, read_llama, stored_bytes
from host.models.llama import LlamaLM
from host.models.mpo_llama import MATRICES, MpoLlamaLM, write_model
from host.models.tensor_train import Shape, tensorize
from host.text.tokenizer import ByteTokenizer, open_tokenizer
from hw.config import EngineConfig

NAME = "compress"
HELP = "make a model smaller: chains of tensors, low rank, trit planes"
DESCRIPTION = ("Profile how much each matrix of a Llama can lose, choose chain, bonds and trit "
               "planes of each for a size, a speed or a divergence, and write the model.")

_ROUNDS = 8         # plans that are measured for a divergence, at most
_CLOSE = 0.9        # of the divergence that was asked for is near enough


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("model", type=Path, metavar="MODEL",
                        help="model file of the Llama family")
    add_corpus(parser, use="text whose calibration part is read, and with --heal the training part")
    parser.add_argument("--output", type=output_file, required=True, metavar="MODEL.gguf",
                        help="model file to write")
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--ratio", type=positive, metavar="R",
                        help="size of the result: bytes of the model in float32 over its bytes")
    target.add_argument("--budget", type=positive, metavar="BYTES",
                        help="size of the result in bytes")
    target.add_argument("--max-divergence", type=positive, metavar="D",
                        help="largest Jensen-Shannon divergence from the float model, in bits a "
                             "token; the smallest model that keeps it is written")
    target.add_argument("--speedup", type=positive, metavar="S",
                        help="speed of the result: cycles of a token's matrices with five planes "
                             "each over those of the result, on an engine of --lanes and "
                             "--port-bytes")
    parser.add_argument("--lanes", type=integer(1), default=64, metavar="N",
                        help="lanes of the engine for --speedup (default: 64)")
    parser.add_argument("--port-bytes", type=integer(1), default=8, metavar="N",
                        help="bytes of the engine's weight port for --speedup (default: 8)")
    parser.add_argument("--method", choices=METHODS, default="joint",
                        help="what a matrix may become (default: joint, any of the others)")
    parser.add_argument("--chain", action="append", default=[],
                        metavar="MATRIX=ROWS/COLUMNS:BONDS",
                        help="make a matrix of all layers a chain of tensors with these digits and "
                             "bonds, as ffn_up=2x768/288x2:96; may be repeated")
    parser.add_argument("--planes", type=int, default=5, choices=range(1, 7),
                        help="trit planes of the matrices of --chain (default: 5)")
    parser.add_argument("--profile", type=Path, metavar="FILE",
                        help="sensitivities of the matrices: continued if the file is there "
                             "(default: beside the output)")
    parser.add_argument("--plot", type=output_file, metavar="FILE.svg", help="draw the profile")
    parser.add_argument("--documents", type=integer(1), default=2, metavar="N",
                        help="number of calibration documents (default: 2)")
    parser.add_argument("--tokens", type=integer(1), default=128, metavar="N",
                        help="tokens of each document (default: 128)")
    parser.add_argument("--heal", type=integer(0), default=0, metavar="STEPS",
                        help="train the result for so many steps on the float model's "
                             "distributions (needs PyTorch; default: 0)")
    parser.add_argument("--batch", type=integer(1), default=16, metavar="ROWS",
                        help="rows of 128 tokens in each step of healing (default: 16)")
    parser.add_argument("--rate", type=positive, default=0.01, metavar="R",
                        help="largest learning rate of healing, in units of the root mean square "
                             "of what is trained; take a small one if little was lost "
                             "(default: 0.01)")
    parser.add_argument("--device", default="cpu", metavar="DEVICE",
                        help="device of PyTorch for healing (default: cpu)")


def run(console: Console, options: argparse.Namespace) -> int:
    """Run the command and return the exit status."""
    # Mistakes that would be noticed after minutes.
    if options.heal:
        check_device(options.device)
    if options.plot:
        need_package("matplotlib", "--plot", "plot")
    model = read_llama(options.model)
    documents = read_texts(options.corpus, "calibration", "calibration")
    layers = layers_of(model)
    fixed = dict(_fixed(layers, text, options.planes) for text in options.chain)
    try:
        text = Text.read(model, documents, options.documents, options.tokens)
        healing = (healing_tokens(model, read_texts(options.corpus, "train", "training"),
                                  options.heal * options.batch, 128) if options.heal else None)
        found = _profile(console, options, layers, text)
        console.print(_table(found))
        if options.plot:
            from host.compress.plots import plot_profile
            plot_profile(found, options.plot)
            say(console, f"Wrote {options.plot}")
        reference = logarithms(model.reference(), "float", text)
        with progress_bars(console) as bar:
            plan, made, result = _search(options, layers, found, text, reference, fixed,
                                         bar("Searching"))
    except ValueError as error:
        raise UserError(str(error)) from None
    _say(console, options, layers, found, plan, made, result)
    if healing is not None:
        healed = _heal(console, options, layers, plan, made, healing)
        after = measure(healed, text, reference)
        say(console, f"Healed    {after.bits_per_byte:.4f} bits a byte, divergence "
                     f"{after.jsd:.4f}, top 1 {after.top1_agreement:.1%}   (calibration text)")
        if after.jsd < result.jsd:
            made = healed
        else:
            say(console, "That is not nearer to the original, so the model is written as it was "
                         "before (try a smaller --rate, a larger --batch or more steps)")
    # A run that is interrupted leaves no half of a file.
    part = options.output.with_name(options.output.name + ".part")
    write_model(part, made)
    os.replace(part, options.output)
    say(console, f"Wrote {options.output}: {size(options.output.stat().st_size)}")
    return 0


def check_device(device: str) -> None:
    """Raise a UserError if PyTorch is missing, or has no such device."""
    need_package("torch", "--heal", "train")
    import torch
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"Option --device must be one that PyTorch has, not {device!r}: "
                        f"{str(error).splitlines()[0]}") from None


def _fixed(layers: Layers, text: str, planes: int) -> tuple[str, Choice]:
    """Take an option --chain apart, and check it on layer 0."""
    parts = re.fullmatch(r"(\w+)=([\dx]+)/([\dx]+)(?::([\d,]+))?", text)
    if parts is None or parts[1] not in MATRICES:
        raise UserError(f"Option --chain must be MATRIX=ROWS/COLUMNS:BONDS with a matrix of "
                        f"{', '.join(MATRICES)}, as ffn_up=2x768/288x2:96, not {text!r}")
    name = parts[1]
    try:
        shape = Shape(*(tuple(int(digit) for digit in group.split("x"))
                        for group in parts.group(2, 3)))
        bonds = tuple(int(bond) for bond in parts[4].split(",")) if parts[4] else ()
        if shape.obstacle:
            raise ValueError(shape.obstacle)
        tensorize(layers.matrices[0][name], shape, bonds)
    except ValueError as error:
        raise UserError(f"Option --chain for {name}: {error}") from None
    return name, Choice(shape, bonds, planes)


def _profile(console: Console, options: argparse.Namespace, layers: Layers,
             text: Text) -> Profile:
    path = options.profile or options.output.with_suffix(".profile.jsonl")
    with progress_bars(console) as bar:
        return profile(layers, text.tokens, path, bar("Profiling"))


def _table(found: Profile) -> Table:
    """List the divergence of each matrix at half its elements, and of each layer."""
    layers: dict[int, dict[str, list[str]]] = {}
    worst: dict[int, float] = {}
    for row in found.rows:
        if row.matrix != EMBEDDING:
            cell = layers.setdefault(row.layer, {}).setdefault(row.matrix, [])
            cell.append(f"{1000 * row.jsd:.1f}")
            worst[row.layer] = max(worst.get(row.layer, 0.0), row.perplexity)
    # A line for each change of a matrix: side by side they would not fit 80 columns.
    rows = []
    for layer, cells in layers.items():
        for index, change in enumerate(("1/2", "1/4", "planes")):
            rows.append([str(layer) if index == 0 else "", change,
                         *(cells[name][index] for name in MATRICES),
                         f"{worst[layer]:.2f}" if index == 0 else ""])
    return table("Divergence, in thousandths of a bit a token, with one matrix changed",
                 ["layer", "change", *(name.removeprefix("attn_").removeprefix("ffn_")
                                       for name in MATRICES), "perplexity"], rows, names=2,
                 caption="1/2, 1/4: low rank with half and a quarter of the elements; planes: two "
                         "trit planes; perplexity: the largest of the layer's three lines")


def _search(options: argparse.Namespace, layers: Layers, found: Profile, text: Text,
            reference: NDArray[np.float32], fixed: Mapping[str, Choice],
            report: Report) -> tuple[Plan, MpoLlamaLM, Measured]:
    """Find a plan, and measure it."""
    report(0, "preparing")
    found.prepare(options.method, os.cpu_count() or 1)
    plans = 1 + (_ROUNDS if options.max_divergence else 0)
    tried = 0
    floats = float_bytes(layers.model)
    engine = None
    if options.speedup:
        engine = EngineConfig(lanes=options.lanes, port_bytes=options.port_bytes,
                              result_lanes=min(8, options.lanes))

    def attempt(budget: float) -> tuple[Plan, MpoLlamaLM, Measured]:
        nonlocal tried
        tried += 1
        report((tried - 0.5) / plans, f"plan {tried} of at most {plans}")
        plan = plan_for(found, options.method, budget, fixed=fixed, engine=engine)
        made = compress(layers, layers.chains(plan.choices, os.cpu_count() or 1),
                        plan.embedding_planes)
        return plan, made, measure(made, text, reference)

    if engine:
        cycles = cycles_of(layers, engine)
        try:
            return attempt(cycles / options.speedup)
        except BudgetError as error:
            raise UserError(f"Speedup of method {options.method} must be at most "
                                f"{cycles / error.least:.2f}, not {options.speedup:g}") from None
    if not options.max_divergence:
        budget = options.budget or floats / options.ratio
        try:
            return attempt(budget)
        except BudgetError as error:
            if not options.ratio:
                raise
            raise UserError(f"Ratio of method {options.method} must be at most "
                                f"{floats / error.least:.2f}, not {options.ratio:g}") from None
    # Of the largest plan that the method has; then sizes in between.
    best = attempt(float("inf"))
    if best[2].jsd > options.max_divergence:
        raise UserError(f"Divergence of method {options.method} must be at least "
                        f"{best[2].jsd:.4f}, not {options.max_divergence:g}")
    low, high = 0.0, float(best[0].bytes)
    for _ in range(_ROUNDS):
        middle = (low + high) / 2
        try:
            made = attempt(middle)
        except BudgetError:
            low = middle
            continue
        if made[2].jsd <= options.max_divergence:
            best, high = made, middle
            if made[2].jsd >= _CLOSE * options.max_divergence:
                break
        else:
            low = middle
    return best


def _say(console: Console, options: argparse.Namespace, layers: Layers, found: Profile,
         plan: Plan, made: MpoLlamaLM, result: Measured) -> None:
    rows = []
    for name in MATRICES:
        kinds: dict[str, list[tuple[int, Choice]]] = {}
        for index, layer in enumerate(plan.choices):
            kinds.setdefault(layer[name].method, []).append((index, layer[name]))
        for kind, members in kinds.items():
            sizes = sum(layers.matrices[index][name].size for index, _ in members)
            kept = sum(choice.shape.parameters(choice.bonds) for _, choice in members)
            planes = Counter(choice.planes for _, choice in members)
            rows.append((name, "planes only" if kind == "quantized" else kind,
                         _ranges([index for index, _ in members]),
                         ", ".join(sorted({str(choice.shape) for _, choice in members})),
                         ", ".join(f"{count} x {number}" for number, count
                                   in sorted(planes.items())), f"{kept / sizes:.0%}"))
    console.print(table(
        f"What became of the {7 * len(layers.matrices)} matrices of the layers",
        ("matrix", "became", "layers", "rows/columns", "planes", "kept"), rows, names=6,
        caption="planes: matrices x trit planes; kept: elements over those of before"))
    if options.method == "joint":
        why = [found.why_alone(index, name, layer[name]) for index, layer
               in enumerate(plan.choices) for name in MATRICES if layer[name].shape.sites == 1]
        if why:
            times = [factor for factor in why if np.isfinite(factor)]
            say(console, f"{len(why)} matrices were not factored: with as many bytes, the best "
                         f"chain would have {np.median(times):.1f} times their divergence "
                         f"(median; from {min(times):.1f} to {max(times):.1f} times)"
                         if times else f"{len(why)} matrices were not factored: no chain has so "
                                       f"few bytes")
    floats, stored = float_bytes(layers.model), stored_bytes(made)
    before = bytes_of(options.model)
    say(console, f"Size      {size(stored)} of weights as an accelerator reads them: "
                 f"{stored / before:.1%} of the {size(before)} of {options.model.name}; "
                 f"{stored:,} bytes of {floats:,} in float32, ratio {floats / stored:.2f}; "
                 f"embedding and head {plan.embedding_planes} planes")
    say(console, f"Measured  {result.bits_per_byte:.4f} bits a byte, divergence {result.jsd:.4f} "
                 f"(predicted {plan.divergence:.4f}), top 1 {result.top1_agreement:.1%}   "
                 f"(golden model, calibration text)")


def _ranges(numbers: list[int]) -> str:
    """Write numbers as ``0-4, 7``."""
    found: list[list[int]] = []
    for number in numbers:
        if found and found[-1][-1] == number - 1:
            found[-1][1:] = [number]
        else:
            found.append([number])
    return ", ".join("-".join(map(str, ends)) for ends in found)


def healing_tokens(model: LlamaLM, documents: list[str], rows: int,
                   steps: int) -> NDArray[np.int64]:
    """Cut documents into rows of tokens: :func:`host.compress.heal.pack_tokens`."""
    from host.compress.heal import pack_tokens
    tokenizer = open_tokenizer(model.vocabulary)
    assert isinstance(tokenizer, ByteTokenizer)
    return pack_tokens(tokenizer, model.vocabulary.start, documents, rows, steps)


def _heal(console: Console, options: argparse.Namespace, layers: Layers, plan: Plan,
          made: MpoLlamaLM, tokens: NDArray[np.int64]) -> MpoLlamaLM:
    from host.compress.heal import heal
    with progress_bars(console) as bar:
        report = bar("Healing")
        found = heal(layers, plan.choices, plan.embedding_planes, made, tokens,
                     steps=options.heal, batch=options.batch, rate=options.rate,
                     device=options.device,
                     report=lambda step, loss: report(step / options.heal, f"loss {loss:.4f}"))
    say(console, f"Healing   {options.heal} steps of {found.seconds_per_step:.2f} s; a step of "
                 f"the original takes {found.original_seconds_per_step:.2f} s   (measured)")
    return found.model
