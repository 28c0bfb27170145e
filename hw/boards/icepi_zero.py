"""Icepi Zero, a board in the shape of a Raspberry Pi Zero, with an ECP5-25F and an SDRAM."""

from hw.boards.board import AcceleratorBoard
from hw.boards.ecp5_25f import FAST_SDRAM, small_accelerator

__all__ = ["ICEPI_ZERO"]

# The oscillator has 50 MHz. The FT231X goes up to 3 Mbaud.
ICEPI_ZERO = AcceleratorBoard(
    name="icepi-zero", platform="amaranth_boards.icepi_zero.IcepiZero1_3Platform",
    loader="icepi-zero", clock_hz=75_000_000, baud=3_000_000,
    config=small_accelerator(address_width=25),
    **FAST_SDRAM | {"pll": FAST_SDRAM["pll"] | {"CLKI_DIV": 2}})
