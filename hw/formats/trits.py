"""Trit packings: what each code of a packed field means.

All packings share one idea: **the sign bits of non-zero trits lie in the code as they are**, and a
zero trit frees its sign bit to say which trits are zero. So a decoder computes little more than
the zero flags, and the sign that it delivers for a zero trit is arbitrary: lanes that skip a zero
trit never look at it. Code 0 of every packing is all ``+1``.

``5in8`` nests ``3in5``: 3 bits hold two trits except (0, 0); that ninth pair borrows codes that
three trits in five bits leave free. docs/numerics.md draws it; ``hw.engine.trit_decoder`` is the
logic, proved equal to these tables code by code.
"""

import dataclasses
from collections.abc import Callable

__all__ = ["PACKINGS", "Packing"]

Trits = tuple[int, ...]


def _signed(zero: tuple[bool, ...], negative: tuple[int, ...]) -> Trits:
    return tuple(0 if z else 1 - 2 * n for z, n in zip(zero, negative, strict=True))


def _decode_1in2(code: int) -> Trits:
    """Bit 0 is the zero flag, bit 1 the sign."""
    return _signed((bool(code & 1),), (code >> 1,))


def _triple(s1: int, s0: int, b0: int, b1: int, b2: int) -> Trits:
    """Three trits: signs b0, b1, b2, and a state (s1, s0) that names the first zero trit.

    State 0: no zero. State k: trit k - 1 is zero, and its sign bit says whether the trit before it
    (cyclically) is zero as well; in state 1 the sign bit of that second zero makes the third zero.
    """
    state = 2 * s1 + s0
    zero0 = state == 1 or (state == 3 and b2 == 1)
    zero1 = state == 2 or (state == 1 and b0 == 1)
    zero2 = state == 3 or (state == 2 and b1 == 1) or (state == 1 and b0 == 1 and b1 == 1)
    return _signed((zero0, zero1, zero2), (b0, b1, b2))


def _decode_3in5(code: int) -> Trits:
    b0, b1, b2, s0, s1 = ((code >> k) & 1 for k in range(5))
    return _triple(s1, s0, b0, b1, b2)


def _decode_5in8(code: int) -> Trits:
    b0, b1, b2, s0, s1, p0, p1, p2 = ((code >> k) & 1 for k in range(8))
    escape = s1 == 1 and b2 == 1 and (b0 if s0 else b1) == 1
    if escape:          # trits 3 and 4 are zero; the pair's bits are the signs of trits 0 to 2
        return (*_triple(b1 if s0 else b0, s0, p0, p1, p2), 0, 0)
    pair_zero = p2 == 1
    pair = _signed((pair_zero and not p0, pair_zero and bool(p0)), (p1 if p2 else p0, p1))
    return (*_triple(s1, s0, b0, b1, b2), *pair)


@dataclasses.dataclass(frozen=True)
class Packing:
    """A fixed number of trits in a fixed number of bits.

    Attributes
    ----------
    name : str
    trits : int
        Trits in a code.
    bits : int
        Bits of a code.
    decode : callable
        Trits of a code, each -1, 0 or +1. Every code has a meaning.
    """

    name: str
    trits: int
    bits: int
    decode: Callable[[int], Trits]

    def decode_table(self) -> list[Trits]:
        """Trits of every code, in code order."""
        return [self.decode(code) for code in range(2 ** self.bits)]

    def encode_table(self) -> dict[Trits, int]:
        """Smallest code of every combination of trits."""
        table: dict[Trits, int] = {}
        for code, trits in enumerate(self.decode_table()):
            table.setdefault(trits, code)
        return table


#: Every packing by name. ``1in2`` where logic is scarce, ``5in8`` where bandwidth is.
PACKINGS = {packing.name: packing for packing in (
    Packing("1in2", 1, 2, _decode_1in2),
    Packing("3in5", 3, 5, _decode_3in5),
    Packing("5in8", 5, 8, _decode_5in8),
)}
