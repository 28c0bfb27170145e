"""The sparsity policy's parameters."""

import pytest

from hw.activations.sparsity import SparsityPolicy
from hw.config import AcceleratorConfig, EngineConfig


def test_indices_are_divided_by_powers_of_two():
    with pytest.raises(ValueError,
                       match=r"^Vector lane count of a sparsity policy must be a power of "
                                         r"two, not 3$"):
        SparsityPolicy(AcceleratorConfig(engine=EngineConfig(lanes=9, result_lanes=3),
                                         vector_depth=96))
