"""iCEBreaker, a board with an iCE40 UP5K: the engine alone."""

from hw.boards.board import EngineBoard
from hw.config import EngineConfig

__all__ = ["ICEBREAKER"]

# The UP5K has 30 block RAMs, and every lane takes two of them for its accumulators.
ICEBREAKER = EngineBoard(
    name="icebreaker", platform="amaranth_boards.icebreaker.ICEBreakerPlatform",
    loader="ice40_generic", clock_hz=12_000_000, baud=1_000_000, entry_queue=256,
    config=EngineConfig(lanes=8, accumulator_width=24, accumulator_depth=128, max_planes=3,
                        max_batch=2, packing="1in2", port_bytes=1, result_lanes=2))
