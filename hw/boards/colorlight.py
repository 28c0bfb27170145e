"""Colorlight i5 and i9, modules with an ECP5 and an SDRAM of 32 bits, on their extension board."""

import dataclasses

from hw.boards.board import AcceleratorBoard
from hw.boards.ecp5_25f import PLL_25_TO_75, small_accelerator
from hw.config import AcceleratorConfig, EngineConfig
from hw.memory.sdram_chip import SdramChip

__all__ = ["COLORLIGHT_I5", "COLORLIGHT_I9"]

# M12L64322A or EM638325, 4 bytes a cycle: 4,096 AUTO REFRESH in 64 ms, all else as other chips.
_SDRAM = SdramChip(data_bits=32, rows=2048, columns=256, refresh_rows=4096)

# 25 MHz * 16 / 5 from the PLL's oscillator at 480 MHz, and 120 MHz for the SDRAM; its phase is that
# of docs/boards/colorlight.md. The extension board's serial port is that of its CMSIS-DAP probe.
# Accumulators of 16 words are LUT RAM, and cost the shipped model nothing.
COLORLIGHT_I9 = AcceleratorBoard(
    name="colorlight-i9", platform="hw.boards.colorlight_platform.ColorlightI9Platform",
    loader="colorlight-i9", clock_hz=80_000_000,
    pll={"CLKI_DIV": 5, "CLKFB_DIV": 16, "CLKOP_DIV": 6}, baud=1_000_000,
    config=AcceleratorConfig(
        engine=EngineConfig(lanes=32, result_lanes=4, accumulator_width=20, accumulator_depth=16,
                            max_planes=3, max_batch=1, index_width=12, port_bytes=8,
                            row_columns=256, target="ecp5"),
        vector_depth=8192, program_depth=1024, list_depth=768, queue_words=256, top_k=16, masks=0,
        address_width=23),
    sdram=dataclasses.replace(_SDRAM, cas_latency=3), sdram_divider=4, sdram_clock_phase=168.75)

# A port of 4 bytes is as wide as the SDRAM, whose clock need not be faster.
COLORLIGHT_I5 = AcceleratorBoard(
    name="colorlight-i5", platform="hw.boards.colorlight_platform.ColorlightI5Platform",
    loader="colorlight-i5", clock_hz=75_000_000, pll=PLL_25_TO_75, baud=1_000_000,
    config=small_accelerator(address_width=23),
    sdram=_SDRAM, sdram_clock_phase=247.5)
