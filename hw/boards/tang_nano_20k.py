"""Tang Nano 20K, a board with a Gowin GW2AR-18 and an SDRAM of 32 bits in its package."""

from hw.boards.board import AcceleratorBoard
from hw.config import AcceleratorConfig, EngineConfig
from hw.memory.sdram_chip import SdramChip

__all__ = ["TANG_NANO_20K"]

# 16 lanes take 4 bytes of a dense list each cycle, what the memory gives. The device is full at two
# thirds of its LUTs and flip-flops (docs/boards/tang-nano-20k.md), so the walk by row is left out,
# and there are but 4 largest logits, which cost comparators and registers each. Accumulators have
# the width that the shipped model needs. A vector memory of 8,192 elements takes two block RAMs
# more than one of 7,168, and no multiplexer behind them.
# 27 MHz * 2 from the rPLL's oscillator at 864 MHz.
TANG_NANO_20K = AcceleratorBoard(
    name="tang-nano-20k", platform="hw.boards.tang_nano_20k_platform.TangNano20KPlatform",
    loader="tangnano20k", clock_hz=54_000_000,
    pll={"IDIV_SEL": 0, "FBDIV_SEL": 1, "ODIV_SEL": 16}, baud=1_000_000, answer_queue=16,
    config=AcceleratorConfig(
        engine=EngineConfig(lanes=16, result_lanes=2, accumulator_width=19, accumulator_depth=16,
                            max_planes=3, max_batch=1, index_width=12, port_bytes=4),
        vector_depth=8192, program_depth=1024, list_depth=768, queue_words=256, top_k=4, masks=0,
        address_width=23),
    sdram=SdramChip(data_bits=32, rows=2048, columns=256, refresh_rows=4096),
    sdram_clock_phase=292.5)
