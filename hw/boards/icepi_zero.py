"""Icepi Zero, a board in the shape of a Raspberry Pi Zero, with an ECP5-25F and an SDRAM."""

from hw.boards.board import AcceleratorBoard
from hw.boards.ecp5_25f import small_accelerator
from hw.memory.sdram_chip import SdramChip

__all__ = ["ICEPI_ZERO"]

# 50 MHz * 3 / 2 from the PLL's oscillator at 600 MHz. The FT231X goes up to 3 Mbaud.
ICEPI_ZERO = AcceleratorBoard(
    name="icepi-zero", platform="amaranth_boards.icepi_zero.IcepiZero1_3Platform",
    loader="icepi-zero", clock_hz=75_000_000,
    pll={"CLKI_DIV": 2, "CLKFB_DIV": 3, "CLKOP_DIV": 8}, baud=3_000_000,
    config=small_accelerator(address_width=25),
    sdram=SdramChip(), sdram_clock_phase=270)
