"""A word of the vector memory, the unit in which vectors move on the chip."""

from amaranth import *
from amaranth.lib import data

from hw.config import AcceleratorConfig
from hw.formats.minifloat import bf16

__all__ = ["word_layout"]


def word_layout(config: AcceleratorConfig) -> data.ArrayLayout:
    """Layout of a word."""
    return data.ArrayLayout(bf16.width, config.vector_lanes)
