# amaranth: UnusedElaboratable=no
import pytest
from amaranth.sim import Simulator

from hw.engine.trit_decoder import TritDecoder
from hw.formats.trits import PACKINGS


@pytest.mark.parametrize("packing", PACKINGS)
def test_every_code_equals_its_table(packing):
    codec = PACKINGS[packing]
    lanes = 2 * codec.trits
    dut = TritDecoder(packing=packing, lanes=lanes)
    table = codec.decode_table()
    words = [(code, len(table) - 1 - code) for code in range(len(table))]

    async def check(ctx):
        for low, high in words:
            ctx.set(dut.codes, low | (high << codec.bits))
            nonzero, negative = ctx.get(dut.nonzero), ctx.get(dut.negative)
            for lane, trit in enumerate([*table[low], *table[high]]):
                assert (nonzero >> lane) & 1 == (trit != 0)
                if trit:    # the sign of a zero is arbitrary
                    assert (negative >> lane) & 1 == (trit < 0)

    sim = Simulator(dut)
    sim.add_testbench(check)
    sim.run()


def test_lanes_need_not_fill_the_last_code():
    dut = TritDecoder(packing="5in8", lanes=7)
    assert (len(dut.codes), len(dut.nonzero), len(dut.negative)) == (16, 7, 7)


def test_code_0_is_plus_one_in_all_lanes():
    for codec in PACKINGS.values():
        assert set(codec.decode(0)) == {1}


def test_unknown_packing():
    with pytest.raises(ValueError, match=r"^Trit packing must be one of '1in2', '3in5', '5in8', "
                                         r"not '4in7'$"):
        TritDecoder(packing="4in7", lanes=8)


def test_lane_count_must_be_positive():
    with pytest.raises(ValueError, match=r"^Lane count must be a positive integer, not 0$"):
        TritDecoder(packing="5in8", lanes=0)
