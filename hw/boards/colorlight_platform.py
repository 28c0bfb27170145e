# Ref: github.com/wuxx/Colorlight-FPGA-Projects (schematics and pinouts of the module and its board)
# Ref: litex-boards, colorlight_i5.py (the same pins, checked against each other)

"""Pins of the Colorlight i5 v7.0 and i9 v7.2 on their board; amaranth-boards has neither."""

from amaranth.build import Attrs, Clock, Pins, Resource
from amaranth.vendor import LatticeECP5Platform
from amaranth_boards.resources import SDRAMResource, UARTResource

__all__ = ["ColorlightI5Platform", "ColorlightI9Platform"]

_LVCMOS33 = {"IO_TYPE": "LVCMOS33"}


class ColorlightI5Platform(LatticeECP5Platform):
    """The pins that Tally uses: oscillator, serial port, SDRAM.

    The board ties the SDRAM's CS# and DQM low and its CKE high.
    """

    device = "LFE5U-25F"
    package = "BG381"
    speed = "6"
    default_clk = "clk25"       # type: ignore[assignment]
    resources = (               # type: ignore[assignment]
        Resource("clk25", 0, Pins("P3", dir="i"), Clock(25e6), Attrs(**_LVCMOS33)),
        UARTResource(0, rx="H18", tx="J17", attrs=Attrs(**_LVCMOS33, PULLMODE="UP")),
        SDRAMResource(
            0, clk="B9", we_n="A10", cas_n="A9", ras_n="B10", ba="B11 C8",
            a="B13 C14 A16 A17 B16 B15 A14 A13 A12 A11 B12",
            dq="D15 E14 E13 D12 E12 D11 C10 B17 B8 A8 C7 A7 A6 B6 A5 B5 "
               "D5 C5 D6 C6 E7 D7 E8 D8 E9 D9 E11 C11 C12 D13 D14 C15",
            attrs=Attrs(**_LVCMOS33, PULLMODE="NONE", DRIVE="4", SLEWRATE="FAST")),
    )
    connectors = ()             # type: ignore[assignment]


class ColorlightI9Platform(ColorlightI5Platform):
    """The same pins on a larger chip."""

    device = "LFE5U-45F"
