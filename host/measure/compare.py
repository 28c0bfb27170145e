"""What arithmetics, planes and caches cost a transformer, against its float reference.

Every variant reads the same beginnings of documents, from the token that documents begin with, and
its distribution of each next token is compared with the reference's: bits per byte of the text,
how often both find the same token likeliest, and the Jensen-Shannon divergence, in bits.
"""

import dataclasses
import importlib.metadata
import math
import platform
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from host.compiler.pack import planes_needed
from host.files.errors import ModelFileError
from host.models.base import LanguageModel
from host.models.llama import PLANES, LlamaLM
from host.models.planes import ROWS
from host.models.registry import read_model
from host.text.tokenizer import ByteTokenizer, open_tokenizer
from hw.records import write_record
from sim.golden.arithmetic import ARITHMETICS
from sim.golden.evaluate import ExactProducts, GoldenLM, Hidden, model_matrices
from sim.golden.graph import CACHES
from sim.timing.program import BITS_PER_TRIT

__all__ = ["REFERENCE", "Comparison", "Text", "Variant", "compare", "jensen_shannon",
           "log_softmax", "read_llama", "rows_of", "stored_bytes", "variants", "write_comparisons"]

_TOKENS = 128       # whose distributions over the vocabulary are held at a time


@dataclasses.dataclass(frozen=True)
class Variant:
    """A way to compute a model.

    Attributes
    ----------
    arithmetic : str
        A key of :data:`sim.golden.arithmetic.ARITHMETICS`.
    planes : int or None
        Trit planes of the layers' matrices; None: as they were read.
    rows : str
        What their rows have of their own, one of :data:`host.models.planes.ROWS`.
    cache : str
        Format of keys and values.
    """

    arithmetic: str
    planes: int | None = PLANES
    rows: str = ROWS[-1]
    cache: str = CACHES[0]

    def of(self, model: LlamaLM) -> LlamaLM:
        """Return the model with these settings."""
        return dataclasses.replace(model, integers=self.planes is not None,
                                   planes=self.planes or PLANES, rows=self.rows, cache=self.cache)


#: The float reference.
REFERENCE = Variant("float", None)


def variants() -> list[Variant]:
    """List what is compared: weights alone, then codes, then bf16 and L-Mul."""
    found = [Variant("float", planes) for planes in (3, 4, 5, 6)]
    found += [Variant("float", planes, rows) for planes in (4, 5) for rows in ROWS[:-1]]
    found += [Variant("exact_float32", None), Variant("exact_float32")]
    found += [Variant(arithmetic, cache=cache) for cache in CACHES
              for arithmetic in ("exact", "lmul_attention", "lmul")]
    return found + [Variant("lmul", planes) for planes in (3, 4, 6)] + [Variant("lmul", 5, "power")]


@dataclasses.dataclass(frozen=True, eq=False)
class Text:
    """Beginnings of documents.

    Attributes
    ----------
    tokens : integer array, shape (documents, 1 + steps)
        The first is the one that documents begin with.
    bytes : int
        Of the text, without the first tokens.
    """

    tokens: NDArray[np.int64]
    bytes: int

    @classmethod
    def read(cls, model: LlamaLM, documents: Sequence[str], count: int, steps: int) -> "Text":
        """Take the beginnings of the first documents that are long enough.

        Raises
        ------
        ValueError
            If there are not so many, or the model's context is too short.
        """
        if steps > model.attention.context:
            raise ValueError(f"Tokens of a document must be at most {model.attention.context}, "
                             f"the model's context, not {steps}")
        tokenizer = open_tokenizer(model.vocabulary)
        assert isinstance(tokenizer, ByteTokenizer)     # of every GGUF file and llama2.c's
        rows: list[list[int]] = []
        for document in documents:
            # A token is at least a byte, hardly ever more than 16 in the mean.
            tokens = tokenizer.encode(document[:16 * steps])[:steps]
            if len(tokens) == steps and len(rows) < count:
                rows.append([model.vocabulary.start, *tokens])
        if len(rows) < count:
            raise ValueError(f"Documents of {steps} tokens must be {count}, not {len(rows)}")
        size = sum(len(tokenizer.decode_bytes(row[1:])) for row in rows)
        return cls(np.array(rows), size)


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """What :func:`compare` found of one variant.

    Attributes
    ----------
    variant : Variant
    bits : float64 array, shape (tokens,)
        Of each token of the text.
    text_bytes : int
    top1_agreement, jsd : float
    bytes : int or None
        Of the matrices in trits and of the constants, None if they are no integers.
    """

    variant: Variant
    bits: NDArray[np.float64]
    text_bytes: int
    top1_agreement: float
    jsd: float
    bytes: int | None

    @property
    def bits_per_byte(self) -> float:
        """Mean over the text."""
        return float(self.bits.sum()) / self.text_bytes

    def cost(self, other: "Comparison") -> tuple[float, float]:
        """Percent of bits more than another variant needs, and their standard error."""
        more = self.bits - other.bits
        scale = 100 / float(other.bits.sum())
        return float(more.sum()) * scale, float(more.std()) * math.sqrt(len(more)) * scale


class _Run:
    """A variant that has read the text."""

    def __init__(self, model: LlamaLM, variant: Variant, text: Text):
        made = variant.of(model)
        self.bytes = stored_bytes(made) if made.integers else None
        self._lm = GoldenLM(made, ARITHMETICS[variant.arithmetic],
                            ExactProducts(model_matrices(made)))
        self._hidden: Hidden = self._lm.forward(text.tokens[:, :-1],
                                                self._lm.start(len(text.tokens)))

    def logarithms(self, tokens: slice) -> NDArray[np.float32]:
        """Natural logarithms of the probabilities of what follows some tokens."""
        return log_softmax(self._lm.logits(self._hidden[tokens]))


def log_softmax(logits: NDArray, dtype: type = np.float32) -> NDArray:
    """Natural logarithms of probabilities, from logits of shape (tokens, vocabulary)."""
    shifted = (logits - logits.max(axis=1, keepdims=True)).astype(dtype)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def stored_bytes(model: LanguageModel) -> int:
    """Bytes of a model's matrices, 1.6 bits a trit, and of its constants.

    Planes that are zero everywhere are not stored.
    """
    bits = 0.0
    for step in model.network():
        if step.matrix is not None:
            weights = step.matrix.weights
            largest = max(-int(weights.min()), int(weights.max()))
            bits += BITS_PER_TRIT * weights.size * planes_needed(largest)
        elif step.constant is not None:
            bits += 16 * step.constant.size
    return round(bits / 8)


def compare(model: LlamaLM, text: Text, wanted: Sequence[Variant],
            report: Callable[[float, str], None] = lambda done, what: None) -> list[Comparison]:
    """Measure the float reference, then each variant.

    Parameters
    ----------
    model : LlamaLM
    text : Text
    wanted : sequence of Variant
    report : callable
        Called with the share that is done, and what is done next.
    """
    report(0, REFERENCE.arithmetic)
    reference = _Run(model, REFERENCE, text)
    found = [_measure(REFERENCE, reference, reference, text)]
    for variant in wanted:
        report(len(found) / (len(wanted) + 1), variant.arithmetic)
        found.append(_measure(variant, _Run(model, variant, text), reference, text))
    return found


def jensen_shannon(found: NDArray[np.float32],
                   expected: NDArray[np.float32]) -> NDArray[np.float64]:
    """Jensen-Shannon divergence of distributions, in bits.

    Parameters
    ----------
    found, expected : array, shape (tokens, vocabulary)
        Natural logarithms of probabilities.
    """
    middle = np.logaddexp(found, expected) - np.float32(math.log(2))
    both = (np.exp(found) * (found - middle) + np.exp(expected) * (expected - middle)) / 2
    return both.sum(axis=1, dtype=np.float64) / math.log(2)


def _measure(variant: Variant, run: _Run, reference: _Run, text: Text) -> Comparison:
    targets = text.tokens[:, 1:].reshape(-1)
    bits, agreed, divergence = [], 0, 0.0
    for first in range(0, len(targets), _TOKENS):
        part = slice(first, first + _TOKENS)
        found, expected = run.logarithms(part), reference.logarithms(part)
        bits.append(-found[np.arange(len(found)), targets[part]] / math.log(2))
        agreed += int((found.argmax(axis=1) == expected.argmax(axis=1)).sum())
        divergence += float(jensen_shannon(found, expected).sum())
    count = len(targets)
    return Comparison(variant, np.concatenate(bits).astype(np.float64), text.bytes, agreed / count,
                      divergence / count, run.bytes)


def rows_of(path: Path, documents: int, found: Sequence[Comparison]) -> Iterator[dict[str, object]]:
    """Rows of a record: costs are those over the reference, and of attention over true products."""
    reference = found[0]
    for one in found:
        variant = one.variant
        cost, error = one.cost(reference)
        row: dict[str, object] = {
            "model": path.stem, "arithmetic": variant.arithmetic, "planes": variant.planes,
            "rows": None if variant.planes is None else variant.rows,
            "kv": "float32" if "float" in variant.arithmetic else variant.cache,
            "bits_per_byte": round(one.bits_per_byte, 4), "cost_percent": round(cost, 2),
            "cost_error_percent": round(error, 2),
            "top1_agreement": round(one.top1_agreement, 4), "jsd": round(one.jsd, 5)}
        exact = next((other for other in found if variant.arithmetic == "lmul_attention"
                      and other.variant == dataclasses.replace(variant, arithmetic="exact")), None)
        if exact:
            cost, error = one.cost(exact)
            row |= {"attention_cost_percent": round(cost, 2),
                    "attention_cost_error_percent": round(error, 2)}
        yield row | {"bytes": one.bytes, "file_bytes": path.stat().st_size,
                     "documents": documents, "tokens": len(one.bits),
                     "text_bytes": one.text_bytes}


def read_llama(path: Path) -> LlamaLM:
    """Read a model of the Llama family.

    Raises
    ------
    ModelFileError
        If it is not one, or cannot be read.
    """
    model = read_model(path)
    if not isinstance(model, LlamaLM):
        raise ModelFileError(f"{path}: must be of the Llama family to be compared with its float "
                             f"reference")
    return model


def write_comparisons(path: Path, command: str, rows: Sequence[dict[str, object]]) -> None:
    """Write rows as the JSON that the tables of the docs are made from."""
    write_record(path, maker="host compare", command=command,
                 versions={"python": platform.python_version(), "numpy": np.__version__,
                           "gguf": importlib.metadata.version("gguf")},
                 configuration={"text": "beginnings of held-out documents"}, rows=rows)
