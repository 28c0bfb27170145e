"""Phases of the boards' SDRAM clocks: each has the greatest margin that its PLL allows."""

import pytest

from hw.boards.board import AcceleratorBoard
from hw.boards.catalog import BOARDS
from sim.timing.phase import pin_timing

WITH_PHASE = [board for board in BOARDS.values()
              if isinstance(board, AcceleratorBoard) and board.phase_steps]


@pytest.mark.parametrize("board", WITH_PHASE, ids=lambda board: board.name)
def test_phase_has_the_greatest_margin(board):
    timings = [pin_timing(board, k * board.phase_step) for k in range(board.phase_steps)]
    own = pin_timing(board, board.sdram_clock_phase)
    assert own.cycle == board.sdram_pin_cycles
    assert own.margin == max(timing.margin for timing in timings
                             if timing.cycle == board.sdram_pin_cycles) > 1.5


@pytest.mark.parametrize("board", WITH_PHASE, ids=lambda board: board.name)
def test_times_add_up_to_cycles(board):
    period = 1e9 / board.sdram_hz
    for degrees in (0, 33.75, 90, 359):
        timing = pin_timing(board, degrees)
        assert timing.command_before + timing.command_after == pytest.approx(period)
        assert 0 <= timing.data_before < period
        assert timing.data_before + timing.data_after < period
        assert pin_timing(board, degrees + 360) == timing
