"""ULX3S, a board with an ECP5 and an SDRAM: the engine alone, and accelerators."""

from hw.boards.board import AcceleratorBoard, EngineBoard
from hw.boards.ecp5_25f import FAST_SDRAM, PLL_25_TO_75, small_accelerator
from hw.config import AcceleratorConfig, EngineConfig

__all__ = ["ULX3S", "ULX3S_12F", "ULX3S_85F"]

# 25 MHz * 3 from the PLL's oscillator at 600 MHz. The FT231X goes up to 3 Mbaud.
ULX3S = EngineBoard(
    name="ulx3s", platform="amaranth_boards.ulx3s.ULX3S_85F_Platform", loader="ulx3s",
    clock_hz=75_000_000,
    pll=PLL_25_TO_75, baud=3_000_000,
    config=EngineConfig(target="ecp5"), high_outputs=("uart_tx_enable",))

# The SDRAM of the boards has 512 columns and 32 MB, or 1,024 and 64 MB, of which a half is used. At
# 120 MHz it gives 3.1 bytes in each cycle of the accelerator, whose 32 lanes take 1.75 of a
# dense list, and more of a sparse one. Accumulators of 16 words are LUT RAM: in block RAM, 128
# deep, the board reached 79 MHz.
ULX3S_85F = AcceleratorBoard(
    name="ulx3s-85f", platform="amaranth_boards.ulx3s.ULX3S_85F_Platform", loader="ulx3s",
    clock_hz=75_000_000, baud=3_000_000,
    config=AcceleratorConfig(
        engine=EngineConfig(lanes=32, result_lanes=4, accumulator_width=20, accumulator_depth=16,
                            max_planes=3, max_batch=1, index_width=12, port_bytes=4,
                            row_columns=256, target="ecp5"),
        vector_depth=8192, program_depth=1024, list_depth=768, queue_words=256, top_k=16, masks=0,
        address_width=25),
    high_outputs=("uart_tx_enable",), **FAST_SDRAM)

# The 12F is a 25F by another name: the same chip, which nextpnr fills as one.
ULX3S_12F = AcceleratorBoard(
    name="ulx3s-12f", platform="amaranth_boards.ulx3s.ULX3S_12F_Platform", loader="ulx3s",
    clock_hz=75_000_000, baud=3_000_000, config=small_accelerator(address_width=25),
    high_outputs=("uart_tx_enable",), **FAST_SDRAM)
