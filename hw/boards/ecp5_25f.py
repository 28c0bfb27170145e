"""What boards with an ECP5 and an SDRAM share: clocks, and the accelerator that fits a 25F."""

from typing import Any

from hw.config import AcceleratorConfig, EngineConfig
from hw.memory.sdram_chip import SdramChip

__all__ = ["FAST_SDRAM", "PLL_25_TO_75", "small_accelerator"]

#: Dividers of the PLL from 25 to 75 MHz, its oscillator at 600 MHz.
PLL_25_TO_75 = {"CLKI_DIV": 1, "CLKFB_DIV": 3, "CLKOP_DIV": 8}

#: An SDRAM of 16 bits at 120 MHz beside 75, as fields of a board: the PLL's oscillator has 600. At
#: 131.25 MHz, of 525, controller and crossing closed with one of two placements.
#: The phase of the chip's clock is that with the greatest margin (:mod:`sim.timing.phase`).
FAST_SDRAM: dict[str, Any] = {
    "pll": PLL_25_TO_75, "sdram_divider": 5,
    "sdram": SdramChip(cas_latency=3), "sdram_clock_phase": 171}


def small_accelerator(*, address_width: int) -> AcceleratorConfig:
    """Return the configuration: 32 lanes, which any of these memories keeps busy.

    Accumulators and activations by row are LUT RAM; 2 result lanes halve the tables of the vector
    unit and cost the shipped model 1.5 % of its cycles, but a port is no wider than both of them;
    the vector memory is just what it needs.
    Left out are sparsity policy, attention, batches.

    Parameters
    ----------
    address_width : int
        Of the SDRAM's bytes.
    """
    return AcceleratorConfig(
        engine=EngineConfig(lanes=32, result_lanes=2, accumulator_width=20, accumulator_depth=16,
                            max_planes=3, max_batch=1, index_width=12, port_bytes=4,
                            row_columns=256, target="ecp5"),
        vector_depth=7168, program_depth=1024, list_depth=768, queue_words=256, top_k=16, masks=0,
        address_width=address_width)
