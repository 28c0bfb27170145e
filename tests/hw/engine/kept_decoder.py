"""The decoder that Yosys 0.70 synthesizes wrong within an engine: its state has attribute keep."""

from amaranth import Cat, Mux, Signal

__all__ = ["decode_with_kept_state"]


def decode_with_kept_state(self, m, code, k):
    """Stand in for ``TritDecoder._decode_5in8``: right as logic, wrong as a netlist."""
    b0, b1, b2, s0, s1, p0, p1, p2 = code
    escape = Signal(name=f"escape_{k}", attrs={"keep": 1})
    signs = Signal(3, name=f"signs_{k}", attrs={"keep": 1})
    state = Signal(2, name=f"state_{k}", attrs={"keep": 1})
    m.d.comb += [
        escape.eq(s1 & b2 & Mux(s0, b0, b1)),
        signs.eq(Mux(escape, code[5:8], code[:3])),
        state.eq(Cat(s0, Mux(escape, Mux(s0, b1, b0), s1))),
    ]
    low, high = state
    zeros = [low & (~high | signs[2]), Mux(high, ~low, low & signs[0]),
             Mux(high, low | signs[1], low & signs[0] & signs[1]),
             escape | (p2 & ~p0), escape | (p2 & p0)]
    return [~zero for zero in zeros], [*signs, Mux(p2, p1, p0), p1]
