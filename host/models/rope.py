# Ref: J. Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021
# Id: arXiv:2104.09864
# Ref: B. Peng et al., "YaRN: Efficient Context Window Extension of Large Language Models", 2023
# Id: arXiv:2309.00071

"""Rotary embeddings and what stretches them to longer sequences.

A stretched embedding turns each pair of elements more slowly by a divisor of its own, and may scale
cosines and sines: so only the machine's tables of positions differ. The formulas are those of
``transformers`` (modeling_rope_utils.py) for checkpoints, and of llama.cpp for GGUF files, which
holds the divisors of Llama 3 in the tensor ``rope_freqs.weight``.
"""

import dataclasses
import math

import numpy as np
from numpy.typing import NDArray

from host.files.gguf import GGUFFile
from host.files.safetensors import Checkpoint

__all__ = ["BASES", "Rope", "rope_of_checkpoint", "rope_of_gguf"]

#: Bounds of a rotary embedding's base.
BASES = {"least": 1.0, "most": 1e12}

# Bounds of what stretches it: factors, and numbers of positions or of turns.
_FACTORS = {"least": 1e-3, "most": 1e6}
_ORIGINAL = {"least": 1.0, "most": 1e12}


@dataclasses.dataclass(frozen=True)
class Rope:
    """A rotary embedding.

    Attributes
    ----------
    base : float
        Pair ``i`` of a head of ``size`` elements turns by ``base**(-2 i / size)`` a token.
    divisors : tuple of float, optional
        By which the pairs turn more slowly: one for each.
    scale : float
        Factor of all cosines and sines.
    """

    base: float
    divisors: tuple[float, ...] | None = None
    scale: float = 1.0

    def frequencies(self, size: int) -> NDArray[np.float64]:
        """Return by what each pair of a head turns a token, shape (size / 2,)."""
        return self.base ** (-np.arange(0, size, 2) / size) / (
            1.0 if self.divisors is None else np.array(self.divisors))

    def tables(self, size: int, context: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Cosines and sines of the angles of each position, shape (context, size / 2)."""
        angles = np.arange(context)[:, np.newaxis] * self.frequencies(size)
        return self.scale * np.cos(angles), self.scale * np.sin(angles)


def _linear(base: float, size: int, factor: float) -> Rope:
    return Rope(base, (factor,) * (size // 2)) if factor != 1 else Rope(base)


def _llama3(base: float, size: int, factor: float, low: float, high: float,
            original: float) -> Rope:
    """Stretch long waves by a factor, short ones not, and those between by what is between."""
    turns = original * Rope(base).frequencies(size) / (2 * np.pi)   # within the original context
    share = np.clip((turns - low) / (high - low), 0, 1)
    return Rope(base, tuple((1 / ((1 - share) / factor + share)).tolist()))


def _yarn(base: float, size: int, factor: float, original: float, *, fast: float, slow: float,
          scale: float, truncate: bool = True) -> Rope:
    """Stretch pairs with fewer turns than ``slow`` by a factor, with more than ``fast`` not."""
    def pair(turns: float) -> float:
        return size * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base))

    low, high = pair(fast), pair(slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    share = 1 - np.clip((np.arange(size // 2) - low) / max(high - low, 0.001), 0, 1)
    return Rope(base, tuple((1 / ((1 - share) / factor + share)).tolist()), scale)


def _yarn_scale(factor: float, weight: float = 1.0) -> float:
    return 0.1 * weight * math.log(factor) + 1 if factor > 1 else 1.0


def rope_of_gguf(file: GGUFFile, prefix: str, size: int) -> Rope:
    """Read the rotary embedding of heads of ``size`` elements from a GGUF file.

    Raises
    ------
    ModelFileError
        If a key or ``rope_freqs.weight`` is not as it must be, or a kind is not supported.
    """
    base = file.positive_float(f"{prefix}.rope.freq_base", 10000.0, **BASES)
    # A file that says no kind means "linear": llama.cpp, llama_hparams::load.
    kind = file.value(f"{prefix}.rope.scaling.type")
    kind = "linear" if kind is None else kind
    factors = [file.positive_float(f"{prefix}.{key}", 1.0, **_FACTORS)
               for key in ("rope.scaling.factor", "rope.scale_linear")
               if file.value(f"{prefix}.{key}") not in (None, 0.0)]
    factor = factors[0] if factors and kind != "none" else 1.0
    scale = file.positive_float(f"{prefix}.rope.scaling.attn_factor", 1.0, **_FACTORS)
    if kind in ("none", "linear"):
        rope = _linear(base, size, factor)
        rope = dataclasses.replace(rope, scale=scale)
    elif kind == "yarn":
        key = f"{prefix}.rope.scaling"
        original = file.positive_int(f"{key}.original_context_length",
                                     file.positive_int(f"{prefix}.context_length"))
        if file.value(f"{key}.yarn_log_multiplier") not in (None, 0.0):
            raise file.error(f"key {key}.yarn_log_multiplier must be 0: other multipliers are not "
                             f"supported")
        rope = _yarn(base, size, factor, original,
                     fast=file.positive_float(f"{key}.yarn_beta_fast", 32.0, **_ORIGINAL),
                     slow=file.positive_float(f"{key}.yarn_beta_slow", 1.0, **_FACTORS),
                     scale=scale * _yarn_scale(factor))
    else:
        raise file.error(f"key {prefix}.rope.scaling.type must be 'none' or 'linear' or 'yarn', "
                         f"not {kind!r}"[:300])
    if not file.has("rope_freqs.weight"):
        return rope
    found = file.vector("rope_freqs.weight", size // 2).astype(np.float64)
    if not ((found >= _FACTORS["least"]) & (found <= _FACTORS["most"])).all():
        raise file.error(f"tensor rope_freqs.weight must hold numbers from {_FACTORS['least']} to "
                         f"{_FACTORS['most']:g}")
    if kind == "yarn":
        raise file.error("tensor rope_freqs.weight and scaling of type 'yarn' together are not "
                         "supported")
    divisors = found * np.array(rope.divisors or 1.0)
    return dataclasses.replace(rope, divisors=tuple(divisors.tolist()))


def rope_of_checkpoint(file: Checkpoint, size: int, base: float, part: str = "") -> Rope:
    """Read the rotary embedding of heads of ``size`` elements from a checkpoint's configuration.

    It is in ``rope_parameters`` (transformers 5), or in ``rope_theta`` and ``rope_scaling``; in
    both, the former counts. ``base`` is that of a configuration without one, and ``part`` the kind
    of layers that ``rope_parameters`` has an embedding for each of.

    Raises
    ------
    ModelFileError
        If a key is not as it must be, or a kind is not supported.
    """
    new = file.value("rope_parameters") is not None
    where = "rope_parameters" if new else "rope_scaling"
    if new and part:
        where = f"{where}.{part}"
    file.value("original_max_position_embeddings")      # which counts for the kinds that need it
    if file.value(where) is not None and not isinstance(file.value(where), dict):
        raise file.error(f"key {where} of config.json must be an object or null, "
                         f"not {file.value(where)!r}"[:300])
    if new and file.value("rope_scaling") is not None:
        raise file.error("keys rope_parameters and rope_scaling of config.json must not both be "
                         "there")
    base = file.positive_float("rope_theta", base, **BASES)
    if new:
        base = file.positive_float(f"{where}.rope_theta", base, **BASES)
    for key in ("partial_rotary_factor", f"{where}.partial_rotary_factor"):
        file.must_be(key, 1.0, 1, None)
    kind = file.value(f"{where}.rope_type", file.value(f"{where}.type", "default"))
    old = file.value(f"{where}.type", kind)
    if old != kind:
        raise file.error(f"keys rope_type and type in {where} of config.json must be the same, "
                         f"not {kind!r} and {old!r}"[:300])
    if kind in ("default", None):
        return Rope(base)

    def number(key: str, default: float | None = None, least: float = _FACTORS["least"],
               most: float = 1e12) -> float:
        return file.positive_float(f"{where}.{key}", default, least=least, most=most)

    if kind == "linear":
        return _linear(base, size, number("factor"))
    # What a configuration without it means.
    original = float(file.positive_int("original_max_position_embeddings",
                                       file.positive_int("max_position_embeddings")))
    if kind == "llama3":
        low, high = number("low_freq_factor"), number("high_freq_factor")
        if high <= low:
            raise file.error(f"key {where}.high_freq_factor of config.json must be above "
                             f"low_freq_factor, {low}, not {high}")
        return _llama3(base, size, number("factor"), low, high,
                       number("original_max_position_embeddings", original))
    if kind == "yarn":
        factor = number("factor")
        weights = [file.value(f"{where}.{key}") for key in ("mscale", "mscale_all_dim")]
        scale = _yarn_scale(factor)
        if all(weights):
            one, all_dim = (number(key) for key in ("mscale", "mscale_all_dim"))
            scale = _yarn_scale(factor, one) / _yarn_scale(factor, all_dim)
        truncate = file.value(f"{where}.truncate", True)
        if not isinstance(truncate, bool):
            raise file.error(f"key {where}.truncate of config.json must be true or false, "
                             f"not {truncate!r}"[:300])
        return _yarn(base, size, factor, number("original_max_position_embeddings", original),
                     fast=number("beta_fast", 32.0), slow=number("beta_slow", 1.0),
                     scale=number("attention_factor", scale), truncate=truncate)
    raise file.error(f"key {where}.rope_type of config.json must be 'default' or 'linear' or "
                     f"'llama3' or 'yarn', not {kind!r}"[:300])
