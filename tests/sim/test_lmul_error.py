"""The table of L-Mul's error is that of the operands, counted a second way where that is short."""

import json
from fractions import Fraction

import pytest

from hw.formats.minifloat import bf16, e4m3, e5m2
from hw.records import RESULTS
from sim.lmul_error import error_rows

FORMATS = {fmt.name: fmt for fmt in (e4m3, e5m2, bf16)}


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
def test_the_record_is_up_to_date(fmt):
    record = json.loads((RESULTS / "lmul_error.json").read_text())
    assert [row for row in record["rows"] if row["format"] == fmt.name] == error_rows(fmt)


@pytest.mark.parametrize("fmt", [e4m3, e5m2], ids=lambda fmt: fmt.name)
def test_all_pairs_by_rational_numbers(fmt):
    """Numbers as fractions, and L-Mul by its definition as a value, not as an addition."""
    one = 1 << fmt.mantissa_bits
    offset = Fraction(fmt.mantissa_offset, one)
    numbers = [(exponent, Fraction(mantissa, one)) for exponent in range(1, 1 << fmt.exponent_bits)
               for mantissa in range(one)
               if (exponent << fmt.mantissa_bits) + mantissa <= fmt.largest_finite]
    largest = ((fmt.largest_finite >> fmt.mantissa_bits) - fmt.bias,
               Fraction(fmt.largest_finite % one, one))
    top = (1 + largest[1]) * Fraction(2) ** largest[0]
    errors = {"L-Mul": [], "affine": [], "printed": []}
    for ex, fx in numbers:
        for ey, fy in numbers:
            power = Fraction(2) ** (ex + ey - 2 * fmt.bias)

            def product(offset, fx=fx, fy=fy, power=power):
                total = fx + fy + offset
                slope = (1 + total) if total < 1 else 2 * total if total < 2 else 4 * (total - 1)
                return slope * power

            found = {"L-Mul": product(offset), "affine": product(0),
                     "printed": (1 + fx + fy + offset) * power}
            smallest = Fraction(2) ** (1 - fmt.bias)
            if any(not smallest <= found[name] <= top for name in ("L-Mul", "affine")):
                continue
            for name, value in found.items():
                errors[name].append(value / ((1 + fx) * (1 + fy) * power) - 1)
    for row in error_rows(fmt):
        error = errors[row["product"]]
        assert row["pairs"] == 4 * len(error)           # both signs of both operands
        assert row["mean_error_percent"] == pytest.approx(float(100 * sum(error) / len(error)),
                                                          abs=6e-4)
        assert row["mean_absolute_percent"] == pytest.approx(
            float(100 * sum(map(abs, error)) / len(error)), abs=6e-4)
        assert row["smallest_percent"] == pytest.approx(float(100 * min(error)), abs=6e-4)
        assert row["largest_percent"] == pytest.approx(float(100 * max(error)), abs=6e-4)
