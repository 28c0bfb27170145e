"""``python -m sim lmul-error``: L-Mul's error against the true product, over all operands."""

import argparse
import importlib.metadata

import numpy as np

from hw.formats.minifloat import MiniFloat, bf16, e4m3, e5m2
from hw.records import write_record
from sim.golden.lmul import lmul

__all__ = ["HELP", "NAME", "add_arguments", "error_rows", "run"]

NAME = "lmul-error"
HELP = "measure the error of L-Mul over all pairs of operands, and keep the table"


def _finite(fmt: MiniFloat) -> np.ndarray:
    """All normal numbers of an 8-bit format; of a wider one those in [1, 2)."""
    if fmt.width == 8:
        words = np.arange(256)
    else:
        words = fmt.one + np.arange(1 << fmt.mantissa_bits)
    magnitudes = words & fmt.magnitude_mask
    return words[(magnitudes >= fmt.smallest_normal) & (magnitudes <= fmt.largest_finite)]


def _fields(fmt: MiniFloat, words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mantissa fractions in [0, 1), and the powers of two with their signs."""
    magnitudes = words.astype(np.int64) & fmt.magnitude_mask
    fractions = (magnitudes % (1 << fmt.mantissa_bits)) / (1 << fmt.mantissa_bits)
    powers = np.ldexp(1.0, (magnitudes >> fmt.mantissa_bits) - fmt.bias)
    return fractions, np.where(words > fmt.magnitude_mask, -powers, powers)


def error_rows(fmt: MiniFloat) -> list[dict]:
    """Return the record's rows of a format: of L-Mul as it is here, and of the printed formula.

    The relative error of a product p of x and y is ``p / (x * y) - 1``, exact but for the rounding
    of float64. Pairs are those of two normal numbers whose products by ``L-Mul`` and ``affine``
    are normal numbers as well, neither zero nor above the largest finite number. Of a format of 8
    bits these are all pairs; of a wider one all pairs of mantissas, at one exponent.

    ``L-Mul`` is :func:`sim.golden.lmul.lmul` with its default offset ``2**-l``, ``affine`` the same
    with offset 0, and ``printed`` the formula of arXiv:2410.00907,
    ``(1 + fx + fy + 2**-l) * 2**(ex + ey)``, not rounded.
    """
    words = _finite(fmt).astype(f"u{fmt.width // 8}")
    x, y = np.repeat(words, len(words)), np.tile(words, len(words))
    (fx, px), (fy, py) = _fields(fmt, x), _fields(fmt, y)
    true = (1 + fx) * px * (1 + fy) * py
    products = {"L-Mul": None, "affine": 0}
    values, normal = {}, np.ones(len(x), bool)
    for product, offset in products.items():
        found = lmul(fmt, x, y, offset=offset)
        magnitudes = (found & fmt.magnitude_mask).astype(np.int64)
        # Not by the product: where there is no infinity, what is above the largest number is it.
        above = ((x & fmt.magnitude_mask).astype(np.int64) + (y & fmt.magnitude_mask)
                 - fmt.constant(offset)) > fmt.largest_finite
        normal &= (magnitudes >= fmt.smallest_normal) & ~above
        fractions, powers = _fields(fmt, found.astype(np.int64))
        values[product] = (1 + fractions) * powers
    offset_value = fmt.mantissa_offset / (1 << fmt.mantissa_bits)
    values["printed"] = (1 + fx + fy + offset_value) * px * py
    rows = []
    for product, value in values.items():
        error = 100 * (value / true - 1)[normal]
        rows.append({
            "format": fmt.name, "product": product,
            "operands": "all numbers" if fmt.width == 8 else "all mantissas",
            "offset": 0.0 if product == "affine" else offset_value,
            "pairs": int(normal.sum()),
            "mean_error_percent": round(float(error.mean()), 3),
            "mean_absolute_percent": round(float(np.abs(error).mean()), 3),
            "smallest_percent": round(float(error.min()), 3),
            "largest_percent": round(float(error.max()), 3)})
    return rows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """There are none."""


def run(options: argparse.Namespace) -> int:
    """Measure, print and keep the table."""
    rows = [row for fmt in (e4m3, e5m2, bf16) for row in error_rows(fmt)]
    for row in rows:
        print("  ".join(f"{name} {value}" for name, value in row.items()))
    write_record("lmul_error", maker=f"sim {NAME}", command=f"python -m sim {NAME}",
                 versions={"numpy": importlib.metadata.version("numpy")}, configuration={},
                 rows=rows)
    return 0
