"""What the boards with an ECP5-25F and an SDRAM share: the accelerator that fits 56 block RAMs."""

from hw.config import AcceleratorConfig, EngineConfig

__all__ = ["PLL_25_TO_75", "small_accelerator"]

#: Dividers of the PLL from 25 to 75 MHz, its oscillator at 600 MHz.
PLL_25_TO_75 = {"CLKI_DIV": 1, "CLKFB_DIV": 3, "CLKOP_DIV": 8}


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
