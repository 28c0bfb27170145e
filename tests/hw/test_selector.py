"""The selector's parameters."""

import pytest

from hw.activations.sparsity import Selector
from hw.config import CoreConfig, EngineConfig


def test_indices_are_divided_by_powers_of_two():
    with pytest.raises(ValueError, match=r"^Vector lane count of a selector must be a power of "
                                         r"two, not 3$"):
        Selector(CoreConfig(engine=EngineConfig(lanes=9, result_lanes=3), vector_depth=96))
