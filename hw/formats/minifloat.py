# Ref: OCP 8-bit Floating Point Specification (OFP8), revision 1.0, 2023: e4m3 and e5m2
# Ref: H. Luo, W. Sun, "Addition is All You Need for Energy-efficient Language Models", 2024
# Id: arXiv:2410.00907, the offset exponent l(m)

"""Floating-point formats as plain data: sign, exponent and mantissa, from the top bit down.

The **magnitude** of a number is its bits without the sign, an integer: exponent field, then
mantissa field. L-Mul adds magnitudes. An exponent field of 0 means zero everywhere in this project,
subnormals included.
"""

import dataclasses

__all__ = ["DEFAULT_WINDOW", "FORMATS", "WINDOWS", "MiniFloat", "bf16", "e4m3", "e5m2", "fp16",
           "fp32"]


@dataclasses.dataclass(frozen=True)
class MiniFloat:
    """A floating-point format of at most 32 bits.

    Attributes
    ----------
    name : str
    exponent_bits : int
    mantissa_bits : int
        Stored bits of the significand.
    bias : int
        Exponent field of 1.0.
    has_infinity : bool
        If true, the largest exponent field means infinity (mantissa 0) or NaN, as in IEEE 754. If
        false, the only NaN magnitude is all ones, there is no infinity, and overflow saturates.
    """

    name: str
    exponent_bits: int
    mantissa_bits: int
    bias: int
    has_infinity: bool = True

    @property
    def width(self) -> int:
        """Bits of a number."""
        return 1 + self.magnitude_width

    @property
    def magnitude_width(self) -> int:
        """Bits of a magnitude."""
        return self.exponent_bits + self.mantissa_bits

    @property
    def magnitude_mask(self) -> int:
        """All bits but the sign."""
        return (1 << self.magnitude_width) - 1

    @property
    def one(self) -> int:
        """Magnitude of 1.0."""
        return self.bias << self.mantissa_bits

    @property
    def smallest_normal(self) -> int:
        """Magnitude of the smallest number that is not zero."""
        return 1 << self.mantissa_bits

    @property
    def largest_finite(self) -> int:
        """Magnitude of the largest finite number."""
        return (self.infinity if self.has_infinity else self.nan) - 1

    @property
    def infinity(self) -> int:
        """Magnitude of infinity, where there is one."""
        return ((1 << self.exponent_bits) - 1) << self.mantissa_bits

    @property
    def nan(self) -> int:
        """Magnitude of the NaN that units deliver."""
        if self.has_infinity:
            return self.infinity | 1 << (self.mantissa_bits - 1)
        return self.magnitude_mask

    @property
    def mantissa_offset(self) -> int:
        """L-Mul's default offset in units of the last place: ``2**(m - l(m))``."""
        m = self.mantissa_bits
        offset_exponent = m if m <= 3 else 3 if m == 4 else 4
        return 1 << (m - offset_exponent)

    def constant(self, offset: int | None = None) -> int:
        """Return what L-Mul subtracts from the sum of two magnitudes.

        Parameters
        ----------
        offset : int, optional
            Units of the last place, ``0 <= offset < 2**mantissa_bits``; 0 gives the
            piecewise-affine product, the default is :attr:`mantissa_offset`.

        Raises
        ------
        ValueError
            If ``offset`` is out of range.
        """
        if offset is None:
            offset = self.mantissa_offset
        if not 0 <= offset < 1 << self.mantissa_bits:
            raise ValueError(f"Offset of {self.name} must be in "
                             f"0..{(1 << self.mantissa_bits) - 1}, not {offset!r}")
        return self.one - offset


e4m3 = MiniFloat("e4m3", 4, 3, 7, has_infinity=False)
e5m2 = MiniFloat("e5m2", 5, 2, 15)
fp16 = MiniFloat("fp16", 5, 10, 15)
bf16 = MiniFloat("bf16", 8, 7, 127)
fp32 = MiniFloat("fp32", 8, 23, 127)

#: Bits that a bf16 product may have in the sum of an L-Mul dot product.
WINDOWS = range(10, 33)
#: Truncation takes less than ``n * 2**-23`` of the largest product from a sum of n products: less
#: than half a unit in the last place of bf16 for n up to 16,384, where the sum is that large.
DEFAULT_WINDOW = 24

#: Every format by name.
FORMATS = {fmt.name: fmt for fmt in (e4m3, e5m2, fp16, bf16, fp32)}
