"""``tally experiment device``: compressed models on the simulated accelerator."""

import argparse
import dataclasses
from pathlib import Path

from rich.console import Console

from host.cli.experiment.common import command_line, print_row, versions
from host.cli.options import add_corpus, integer, read_texts
from host.compiler.compile import compile_fitted, compile_model
from host.compress.pareto import logarithms, measure
from host.devices.accelerator import LATENCY, REFRESH
from host.devices.checked import CheckedTokens
from host.errors import UserError
from host.measure.compare import Text, read_llama
from host.models.registry import read_model
from hw.config import AcceleratorConfig, EngineConfig
from hw.records import write_record
from sim.timing.program import token_cycles

NAME = "device"
HELP = "measure compressed models on the simulated accelerator"
DESCRIPTION = ("Measure compressed models on the simulated accelerator beside the original, and "
               "write docs/results/compression_device.json.")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("models", type=Path, nargs="+", metavar="MODEL",
                        help="model file of the original, then those that 'experiment tensor "
                             "--output' or 'compress' wrote")
    add_corpus(parser)
    parser.add_argument("--tokens", type=integer(1), default=18, metavar="N",
                        help="tokens of a held-out document (default: 18)")


#: An accelerator on a board whose memory gives a byte a cycle: it waits for weights.
_NARROW = AcceleratorConfig(engine=EngineConfig(lanes=16, result_lanes=8, port_bytes=1),
                            attention_elements=1)
_CLOCK_HZ = 75e6


def run(console: Console, options: argparse.Namespace) -> int:
    """Measure, print the rows and write the record."""
    # Imported where it is asked for: no other experiment needs Amaranth and a simulator.
    from host.devices.simulated import SimulatedAccelerator

    reference = read_llama(options.models[0])
    models = [read_model(path) for path in options.models[1:]]
    try:
        text = Text.read(reference, read_texts(options.corpus, "heldout", "held-out text"), 8, 160)
    except ValueError as error:
        raise UserError(str(error)) from None
    expected = logarithms(reference.reference(), "float", text)
    base = dataclasses.replace(_NARROW, context=64)
    fitted = [compile_fitted(model, base).config for model in (reference, *models)]
    # One simulator for all of them.
    config = dataclasses.replace(fitted[0], **{
        name: max(getattr(found, name) for found in fitted)
        for name in ("program_depth", "vector_depth", "list_depth")})
    prompt = [reference.vocabulary.start, *text.tokens[0, 1:options.tokens].tolist()]
    rows: list[dict[str, object]] = []
    first = 0.0
    for path, model in zip(options.models, (reference, *models), strict=True):
        image = compile_model(model, config)
        device = SimulatedAccelerator(config)
        cycles, formula, moved = 0, 0.0, 0
        try:
            device.load(image)
            checked = CheckedTokens(device, image)      # every logit is the golden machine's
            for position, token in enumerate(prompt):
                result = checked.token(token, new=position == 0)
                if position < 2:                        # not yet in its stride
                    continue
                cycles, moved = cycles + result.cycles, moved + result.transfers
                formula += token_cycles(config, image.program.instructions, image.program.body,
                                        latency=LATENCY, refresh=REFRESH,
                                        position=position).cycles
        finally:
            device.close()
        count = len(prompt) - 2
        first = first or cycles / count
        found = measure(model, text, expected)
        rows.append({
            "model": options.models[0].stem, "method": path.stem, "image_bytes": image.memory_bytes,
            "bytes": round(moved * config.port_bytes / count), "cycles": round(cycles / count),
            "formula_cycles": round(formula / count),
            "milliseconds": round(1000 * cycles / count / _CLOCK_HZ, 3),
            "speedup": round(first * count / cycles, 3),
            "bits_per_byte": round(found.bits_per_byte, 4), "jsd": round(found.jsd, 4),
            "top1_agreement": round(found.top1_agreement, 4)})
        print_row(rows[-1])
    write_record("compression_device", maker=f"host experiment {NAME}", command=command_line(),
                 versions=versions(), configuration={
        **dataclasses.asdict(config), "latency": LATENCY, "refresh": REFRESH,
        "clock_hz": _CLOCK_HZ, "tokens": len(prompt)}, rows=rows)
    return 0
