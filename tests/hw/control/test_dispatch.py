# amaranth: UnusedElaboratable=no
"""Parameter checks of the dispatch's parts; bench_dispatch has the rest."""

import pytest

from hw.config import AcceleratorConfig, EngineConfig
from hw.control.decode import Decoder


@pytest.mark.parametrize(("engine", "message"), [
    ({"lanes": 24}, "Lane count of an accelerator must be a power of two, not 24"),
    ({"lanes": 6, "result_lanes": 3}, "Lane count of an accelerator must be a power of two, not 6"),
    ({"port_bytes": 12}, "Port width in bytes of an accelerator must be a power of two, not 12"),
])
def test_addresses_are_divided_by_powers_of_two(engine, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        Decoder(AcceleratorConfig(engine=EngineConfig(**engine), vector_depth=96))
