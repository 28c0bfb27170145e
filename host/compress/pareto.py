"""Sizes against what they cost: chains beside plain quantization and low-rank products."""

import concurrent.futures
import dataclasses
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from host.compress.chains import Layers, compress
from host.compress.profile import METHODS, BudgetError, Plan, Profile, plan_for
from host.measure.compare import Text, jensen_shannon, log_softmax, stored_bytes
from host.measure.workers import worker_pool
from host.models.base import LanguageModel
from host.models.llama import LlamaLM
from host.models.mpo_llama import MpoLlamaLM, write_model
from host.models.registry import read_model
from sim.golden.arithmetic import ARITHMETICS
from sim.golden.bf16 import to_float32
from sim.golden.evaluate import ExactProducts, GoldenLM, model_matrices
from sim.golden.graph import Kind, Value
from sim.golden.quantizer import Codes
from sim.golden.wina import MaskMap

__all__ = ["Measured", "Tokens", "float_bytes", "logarithms", "measure", "pareto", "row_key"]

_DIGIT = 8      # bits of a second digit


def float_bytes(model: LlamaLM) -> int:
    """Bytes of a model in float32, embedding and head once if they are tied: its size of old."""
    layers = sum(values.size for layer in model.layers for values in vars(layer).values()
                 if isinstance(values, np.ndarray))
    head = 0 if model.head is model.embedding else model.head.size
    return 4 * (layers + model.embedding.size + head + model.norm.size)


@dataclasses.dataclass(frozen=True)
class Measured:
    """What the golden model found on held-out text."""

    bits_per_byte: float
    jsd: float
    top1_agreement: float


class TwoDigits(GoldenLM):
    """Between the cores of a chain, vectors keep two balanced int8 digits in the place of one."""

    def _compute(self, step: Value, operands: Sequence[Any], tokens: NDArray[np.integer]):
        between = step.kind is Kind.CODES and step.operands[0].kind is Kind.LINEAR
        if between:
            codes = self.arithmetic.codes(*operands)
            exponents = codes.exponents - _DIGIT
            numbers = np.ldexp(to_float32(operands[0]).astype(np.float64),
                               -exponents[:, np.newaxis])
            limit = (1 << 7 + _DIGIT) - 1
            return Codes(np.clip(np.rint(numbers), -limit, limit), exponents)
        if step.kind is Kind.LINEAR and step.operands[0].operands[0].kind is Kind.LINEAR:
            # In float64, which is exact: 15 bits of a code, 10 of a weight, 13 of the columns.
            products = self.products
            self.products = lambda _, values: values @ step.weights.weights.T.astype(np.float64)
            try:
                return super()._compute(step, operands, tokens)
            finally:
                self.products = products
        return super()._compute(step, operands, tokens)


def logarithms(model: LanguageModel, arithmetic: str, text: Text,
               lm_class: type[GoldenLM] = GoldenLM,
               masks: MaskMap | None = None) -> NDArray[np.float32]:
    """Return natural logarithms of the probabilities of what follows each token."""
    lm = lm_class(model, ARITHMETICS[arithmetic], ExactProducts(model_matrices(model)), masks)
    hidden = lm.forward(text.tokens[:, :-1], lm.start(len(text.tokens)))
    return log_softmax(lm.logits(hidden))


def measure(model: LanguageModel, text: Text, reference: NDArray[np.float32],
            arithmetic: str = "lmul", digits: int = 1,
            masks: MaskMap | None = None) -> Measured:
    """Measure a model against the reference's logarithms of probabilities."""
    return _judge(logarithms(model, arithmetic, text, TwoDigits if digits == 2 else GoldenLM,
                             masks), text, reference)


def _judge(found: NDArray[np.float32], text: Text, reference: NDArray[np.float32]) -> Measured:
    targets = text.tokens[:, 1:].reshape(-1)
    bits = -found[np.arange(len(found)), targets].sum(dtype=np.float64) / np.log(2)
    return Measured(float(bits) / text.bytes, float(jensen_shannon(found, reference).mean()),
                    float((found.argmax(axis=1) == reference.argmax(axis=1)).mean()))


def _measure_file(path: Path, reference: Path, text: Text, digits: int) -> Measured:
    model = read_model(path)
    return measure(model, text, np.load(reference, mmap_mode="r"), digits=digits)


@dataclasses.dataclass(frozen=True)
class Tokens:
    """What healing reads, and how."""

    tokens: NDArray[np.int64]
    steps: int
    batch: int
    rate: float
    device: str


def _shares(plan: Plan) -> dict[str, Any]:
    """Summarize what a plan has made of the matrices of the layers, for people."""
    choices = [choice for layer in plan.choices for choice in layer.values()]
    methods = Counter(choice.method for choice in choices)
    planes = Counter(choice.planes for choice in choices)
    return {"methods": dict(sorted(methods.items())),
            "planes": {str(key): count for key, count in sorted(planes.items())},
            "embedding_planes": plan.embedding_planes,
            "parameters": sum(choice.shape.parameters(choice.bonds) for choice in choices)}


def row_key(row: Mapping[str, Any]) -> tuple:
    """Return what tells the rows of a model apart; a row that was not healed has no rate."""
    return row["method"], row["budget"], row["digits"], row.get("rate")


def pareto(name: str, layers: Layers, found: Profile, text: Text, budgets: Sequence[float],
           healing: Tokens | None, workers: int, keep: Path | None = None,
           report: Callable[[str], None] = lambda line: None, *,
           methods: Sequence[str] = tuple(METHODS),
           known: Container[tuple] = ()) -> Iterator[dict[str, Any]]:
    """Measure methods at all budgets, healed or not.

    Parameters
    ----------
    name : str
        Of the model, in the rows.
    layers : Layers
    found : Profile
    text : Text
        Held out.
    budgets : sequence of float
        Bytes.
    healing : Tokens, optional
    workers : int
        Processes that measure.
    keep : Path, optional
        Where the models go; otherwise they are dropped.
    report : callable
        Takes a line for every step.
    methods : sequence of str
        Of :data:`host.compress.profile.METHODS`.
    known : container of tuple
        :func:`row_key` of what needs not be measured.
    """
    model = layers.model
    floats = float_bytes(model)
    with tempfile.TemporaryDirectory() as temporary:
        folder = keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        reference = Path(temporary) / "reference.npy"
        expected = logarithms(model.reference(), "float", text)
        np.save(reference, expected)
        same = {"model": name, "tokens": len(expected)}
        one = _judge(expected, text, expected)
        yield {**same, "method": "float32", "budget": floats, "bytes": floats, "ratio": 1.0,
               "healed": False, "digits": 0,
               **{key: round(value, 5) for key, value in dataclasses.asdict(one).items()}}
        waiting: deque[tuple[dict[str, Any], concurrent.futures.Future[Measured]]] = deque()

        def measured(*, all_: bool) -> Iterator[dict[str, Any]]:
            """Yield the rows that are there: a run that is cut off keeps them."""
            while waiting and (all_ or waiting[0][1].done()):
                row, future = waiting.popleft()
                result = dataclasses.asdict(future.result())
                yield {**row, **{key: round(value, 5) for key, value in result.items()}}

        with worker_pool(workers) as pool:

            def missing(made: MpoLlamaLM, row: Mapping[str, Any]) -> list[int]:
                deep = any(len(chain.cores) > 1 for layer in made.layers
                           for chain in layer.values())
                return [digits for digits in ((1, 2) if deep else (1,))
                        if row_key({**row, "digits": digits}) not in known]

            def submit(made: MpoLlamaLM, row: Mapping[str, Any]) -> None:
                size = stored_bytes(made)
                label = "-".join(str(row[key]) for key in ("method", "budget"))
                path = folder / f"{label}{'-healed' if row['healed'] else ''}.gguf"
                write_model(path, made)
                for digits in missing(made, row):
                    waiting.append(({**same, **row, "bytes": size,
                                     "ratio": round(floats / size, 3), "digits": digits},
                                    pool.submit(_measure_file, path, reference, text, digits)))

            for method in methods:
                found.prepare(method, workers)
            for budget in budgets:
                for method in methods:
                    try:
                        plan = plan_for(found, method, budget)
                    except BudgetError as error:
                        report(f"{method} at {budget:,.0f}: {error}")
                        continue
                    made = compress(layers, layers.chains(plan.choices, workers),
                                    plan.embedding_planes)
                    row = {"method": method, "budget": round(budget), "healed": False,
                           "predicted": round(plan.divergence, 4), **_shares(plan)}
                    report(f"{method} at {budget:,.0f}: {stored_bytes(made):,} bytes, "
                           f"{row['methods']}, planes {row['planes']}")
                    submit(made, row)
                    if healing:
                        row |= {"healed": True, "rate": healing.rate}
                    if healing and missing(made, row):
                        from host.compress.heal import heal
                        healed = heal(layers, plan.choices, plan.embedding_planes, made,
                                      healing.tokens, steps=healing.steps, batch=healing.batch,
                                      rate=healing.rate, device=healing.device)
                        report(f"  healed: loss {healed.first_loss:.4f} to {healed.last_loss:.4f}, "
                               f"{healed.seconds_per_step:.3f} s a step, of the original "
                               f"{healed.original_seconds_per_step:.3f}")
                        submit(healed.model, {
                            **row, "steps": healing.steps,
                            "seconds_per_step": round(healed.seconds_per_step, 4),
                            "original_seconds_per_step": round(
                                healed.original_seconds_per_step, 4),
                            "first_loss": round(healed.first_loss, 4),
                            "last_loss": round(healed.last_loss, 4)})
                    yield from measured(all_=False)
            yield from measured(all_=True)
