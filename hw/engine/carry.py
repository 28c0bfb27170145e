"""Adders as ECP5 carry cells, for sums whose logic in front of the carry synthesis cannot merge."""

from amaranth import *

__all__ = ["ADD_GATED", "ADD_OR_SUBTRACT", "ADD_TRIT", "CARRY_IN", "CARRY_IN_BOTH", "carry_chain"]

# One half of a CCU2C: S = LUT4(A, B, C, D) ^ carry. The carry goes on where LUT4 is 1; where it is
# 0, it becomes LUT2(A, B), which is LUT4's table at C = D = 0.

#: ``(A | B) + (C ^ D)``. Where the addends are equal, A | B is the carry.
ADD_OR_SUBTRACT = 0xE11E
#: ``A + (B & C)``. Where the addends are equal, A is the carry.
ADD_GATED = 0x6A6A
#: ``A + ((B ^ C) & D)``. Where the addends are equal, A is the carry.
ADD_TRIT = 0x96AA
#: With C = 1: LUT4 = 0 whatever A is, so the carry becomes A.
CARRY_IN = 0x000A
#: The same for the carry A & B.
CARRY_IN_BOTH = 0x0008


def carry_chain(m: Module, halves):
    """Instantiate halves of carry cells, lowest first, in ``m``.

    Parameters
    ----------
    halves : list of (table, A, B, C, D, S)
        Table and ports of each half; S may be None.
    """
    halves = list(halves)
    if len(halves) % 2:
        halves.append((0, Const(0), Const(0), Const(0), Const(0), None))
    carry: Value = Const(0)
    for k in range(0, len(halves), 2):
        ports = {}
        for half, (table, a, b, c, d, s) in enumerate(halves[k:k + 2]):
            if s is None:
                s = Signal(name=f"unused_{k + half}")
            ports |= {f"p_INIT{half}": Const(table, 16), f"p_INJECT1_{half}": "NO",
                      f"i_A{half}": a, f"i_B{half}": b, f"i_C{half}": c, f"i_D{half}": d,
                      f"o_S{half}": s}
        carry_out = Signal(name=f"carry_{k + 1}")
        m.submodules[f"bits_{k}"] = Instance("CCU2C", i_CIN=carry, o_COUT=carry_out, **ports)
        carry = carry_out
