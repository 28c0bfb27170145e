"""``python -m host compress``: a smaller model for a size, a ratio or a divergence."""

import argparse
import os
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from host.cli.terminal import integer, need_package, positive, progress_bars
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
from host.errors import UserError
from host.measure.compare import Text, read_llama, stored_bytes
from host.models.llama import LlamaLM
from host.models.mpo_llama import MATRICES, MpoLlamaLM, write_model
from host.models.tensor_train import Shape, tensorize
from host.text.corpus import read_corpus
from host.text.tokenizer import ByteTokenizer, open_tokenizer
from hw.config import EngineConfig

__all__ = ["add_command", "check_device", "healing_tokens", "run"]

_ROUNDS = 8         # plans that are measured for a divergence, at most
_CLOSE = 0.9        # of the divergence that was asked for is near enough


def add_command(commands: argparse._SubParsersAction) -> None:
    """Add the command's options."""
    command = commands.add_parser(
        "compress", help="make a model smaller: chains of tensors, low rank, trit planes",
        description="Profile how much each matrix of a Llama can lose, choose chain, bonds and "
                    "trit planes of each for a size or a divergence, and write the model.")
    command.add_argument("model", type=Path, metavar="MODEL", help="of the Llama family")
    command.add_argument("--corpus", type=Path, required=True, metavar="DIR",
                         help="directory with splits.tsv; its calibration text is read")
    command.add_argument("--output", type=Path, required=True, metavar="MODEL.gguf")
    target = command.add_mutually_exclusive_group(required=True)
    target.add_argument("--ratio", type=positive, metavar="R",
                        help="float32 bytes of the model over bytes of the result")
    target.add_argument("--budget", type=positive, metavar="BYTES")
    target.add_argument("--max-divergence", type=positive, metavar="D",
                        help="Jensen-Shannon divergence from the float model, bits a token")
    target.add_argument("--speedup", type=positive, metavar="S",
                        help="cycles of a token's matrices, five planes each, over those of the "
                             "result, on an engine of --lanes and --port-bytes")
    command.add_argument("--lanes", type=integer(1), default=64, metavar="N", help="(default: 64)")
    command.add_argument("--port-bytes", type=integer(1), default=8, metavar="N",
                         help="(default: 8)")
    command.add_argument("--method", choices=METHODS, default="joint",
                         help="what a matrix may become (default: joint, all of it)")
    command.add_argument("--chain", action="append", default=[],
                         metavar="MATRIX=ROWS/COLUMNS:BONDS",
                         help="the chain of a matrix in all layers, as "
                              "ffn_up=2x768/288x2:96")
    command.add_argument("--planes", type=int, default=5, choices=range(1, 7),
                         help="trit planes of --chain's matrices (default: 5)")
    command.add_argument("--profile", type=Path, metavar="FILE",
                         help="sensitivities: gone on with if the file is there (default: beside "
                              "the output)")
    command.add_argument("--plot", type=Path, metavar="FILE.svg", help="picture of the profile")
    command.add_argument("--documents", type=integer(1), default=2, metavar="N",
                         help="of the calibration text (default: 2)")
    command.add_argument("--tokens", type=integer(1), default=128, metavar="N",
                         help="of each document (default: 128)")
    command.add_argument("--heal", type=integer(0), default=0, metavar="STEPS",
                         help="train the result on the float model's distributions (needs PyTorch)")
    command.add_argument("--batch", type=integer(1), default=16, metavar="ROWS",
                         help="of 128 tokens, for each step of healing (default: 16)")
    command.add_argument("--rate", type=positive, default=0.01, metavar="R",
                         help="the largest learning rate, in units of the root mean square of "
                              "what is trained; small if little was lost (default: 0.01)")
    command.add_argument("--device", default="cpu", help="of PyTorch (default: cpu)")
    command.set_defaults(function=run)


def run(console: Console, options: argparse.Namespace) -> int:
    """Run the command and return the exit status."""
    # Mistakes that would be noticed after minutes.
    for path in (options.output, options.plot):
        if path and (path.is_dir() or not path.parent.is_dir()):
            raise UserError(f"{path}: must be a file in a directory that exists")
    if options.heal:
        check_device(options.device)
    if options.plot:
        need_package("matplotlib", "--plot", "plot")
    model = read_llama(options.model)
    corpus = read_corpus(options.corpus)
    layers = layers_of(model)
    fixed = dict(_fixed(layers, text, options.planes) for text in options.chain)
    try:
        text = Text.read(model, corpus["calibration"], options.documents, options.tokens)
        healing = (healing_tokens(model, corpus["train"], options.heal * options.batch, 128)
                   if options.heal else None)
        found = _profile(console, options, layers, text)
        console.print(_table(found))
        if options.plot:
            from host.compress.plots import plot_profile
            plot_profile(found, options.plot)
            console.print(f"Wrote {options.plot}", markup=False, highlight=False, soft_wrap=True)
        reference = logarithms(model.reference(), "float", text)
        plan, made, result = _search(options, layers, found, text, reference, fixed)
    except ValueError as error:
        raise UserError(str(error)) from None
    _say(console, layers, found, plan, made, result, options.method)
    if healing is not None:
        healed = _heal(console, options, layers, plan, made, healing)
        after = measure(healed, text, reference)
        console.print(f"Healed    {after.bits_per_byte:.4f} bits a byte, divergence "
                      f"{after.jsd:.4f}, top 1 {after.top1_agreement:.1%}   (calibration text)",
                      highlight=False)
        if after.jsd < result.jsd:
            made = healed
        else:
            console.print("That is not nearer to the original, so the model is written as it was "
                          "before (try a smaller --rate, a larger --batch or more steps)",
                          highlight=False, soft_wrap=True)
    # A run that is interrupted leaves no half of a file.
    part = options.output.with_name(options.output.name + ".part")
    write_model(part, made)
    os.replace(part, options.output)
    console.print(f"Wrote {options.output}", markup=False, highlight=False, soft_wrap=True)
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
    table = Table(box=SIMPLE_HEAD, title_style="bold", title_justify="left",
                  title="Divergence, in thousandths of a bit a token, with one matrix changed",
                  caption_justify="left",
                  caption="low rank at half and at a quarter of the elements / two trit planes; "
                          "perplexity: the largest of the row")
    table.add_column("layer")
    for name in MATRICES:
        table.add_column(name, justify="right")
    table.add_column("perplexity", justify="right")
    layers: dict[int, dict[str, list[str]]] = {}
    worst: dict[int, float] = {}
    for row in found.rows:
        if row.matrix != EMBEDDING:
            cell = layers.setdefault(row.layer, {}).setdefault(row.matrix, [])
            cell.append(f"{1000 * row.jsd:.1f}")
            worst[row.layer] = max(worst.get(row.layer, 0.0), row.perplexity)
    for layer, cells in layers.items():
        table.add_row(str(layer), *(" ".join([*cells[name][:2], "/", cells[name][2]])
                                    for name in MATRICES), f"{worst[layer]:.2f}")
    return table


def _search(options: argparse.Namespace, layers: Layers, found: Profile, text: Text,
            reference: NDArray[np.float32], fixed: Mapping[str, Choice],
            ) -> tuple[Plan, MpoLlamaLM, Measured]:
    """Find a plan, and measure it."""
    found.prepare(options.method, os.cpu_count() or 1)
    floats = float_bytes(layers.model)
    engine = None
    if options.speedup:
        engine = EngineConfig(lanes=options.lanes, port_bytes=options.port_bytes,
                              result_lanes=min(8, options.lanes))

    def attempt(budget: float) -> tuple[Plan, MpoLlamaLM, Measured]:
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
            tried = attempt(middle)
        except BudgetError:
            low = middle
            continue
        if tried[2].jsd <= options.max_divergence:
            best, high = tried, middle
            if tried[2].jsd >= _CLOSE * options.max_divergence:
                break
        else:
            low = middle
    return best


def _say(console: Console, layers: Layers, found: Profile, plan: Plan, made: MpoLlamaLM,
         result: Measured, method: str) -> None:
    floats, size = float_bytes(layers.model), stored_bytes(made)
    table = Table(box=SIMPLE_HEAD, title_style="bold", title_justify="left",
                  title=f"What became of the {7 * len(layers.matrices)} matrices of the layers")
    for name in ("matrix", "became", "layers", "rows/columns", "planes", "elements kept"):
        table.add_column(name)
    for name in MATRICES:
        kinds: dict[str, list[tuple[int, Choice]]] = {}
        for index, layer in enumerate(plan.choices):
            kinds.setdefault(layer[name].method, []).append((index, layer[name]))
        for kind, members in kinds.items():
            sizes = sum(layers.matrices[index][name].size for index, _ in members)
            kept = sum(choice.shape.parameters(choice.bonds) for _, choice in members)
            planes = Counter(choice.planes for _, choice in members)
            table.add_row(name, "left alone" if kind == "quantized" else kind,
                          _ranges([index for index, _ in members]),
                          ", ".join(sorted({str(choice.shape) for _, choice in members})),
                          ", ".join(f"{count} x {number}" for number, count
                                    in sorted(planes.items())), f"{kept / sizes:.0%}")
    console.print(table)
    if method == "joint":
        why = [found.why_alone(index, name, layer[name]) for index, layer
               in enumerate(plan.choices) for name in MATRICES if layer[name].shape.sites == 1]
        if why:
            times = [factor for factor in why if np.isfinite(factor)]
            console.print(f"{len(why)} matrices were left alone: of as many bytes, the best chain "
                          f"would cost {np.median(times):.1f} times their divergence (the middle "
                          f"one; from {min(times):.1f} to {max(times):.1f} times)"
                          if times else f"{len(why)} matrices were left alone: no chain has so "
                                        f"few bytes", highlight=False)
    console.print(f"Size      {size:,} bytes, of {floats:,} in float32: ratio {floats / size:.2f}; "
                  f"embedding and head {plan.embedding_planes} planes", highlight=False)
    console.print(f"Measured  {result.bits_per_byte:.4f} bits a byte, divergence {result.jsd:.4f} "
                  f"(predicted {plan.divergence:.4f}), top 1 {result.top1_agreement:.1%}   "
                  f"(golden model, calibration text)", highlight=False)


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
    console.print(f"Healing   {options.heal} steps of {found.seconds_per_step:.2f} s; a step of "
                  f"the original takes {found.original_seconds_per_step:.2f} s   (measured)",
                  highlight=False)
    return found.model
