# amaranth: UnusedElaboratable=no
"""Attention: which configurations it takes."""

import pytest

from hw.attention.unit import AttentionUnit
from hw.config import AcceleratorConfig, EngineConfig


def test_needs_a_context():
    with pytest.raises(ValueError, match="needs a configuration with a context"):
        AttentionUnit(AcceleratorConfig())


def test_vector_lanes_divide_rows():
    config = AcceleratorConfig(engine=EngineConfig(lanes=9, result_lanes=3), vector_depth=48,
                               context=4, head_elements=3, attention_elements=1)
    with pytest.raises(ValueError, match="power of two, not 3"):
        AttentionUnit(config)


@pytest.mark.parametrize(("fields", "message"), [
    ({"context": 1}, "context must be at least 2, not 1"),
    ({"context": 48}, "context must be a power of two, not 48"),
    ({"context": 65536}, "context must be at most 32768"),
    ({"attention_elements": 3}, "attention_elements must be a power of two, not 3"),
    ({"attention_elements": 16}, "attention_elements must be at most 8"),
    ({"attention_heads": 4}, "attention_heads must be at most 3"),
    ({"head_elements": 136}, "head_elements must be at most 128"),
    ({"head_elements": 12}, "must be a multiple of the result lane count"),
    ({"group": 17}, "group must be at most 16"),
    ({"caches": 0}, "caches must be a positive integer"),
])
def test_configurations_that_cannot_be(fields, message):
    with pytest.raises(ValueError, match=message):
        AcceleratorConfig(**{"context": 64} | fields)


def test_without_context_nothing_changes():
    """Images that were made before there was attention stay valid."""
    def hashed(**fields):
        return AcceleratorConfig(**fields).configuration_hash()
    assert hashed() == hashed(group=8, caches=1)
    assert hashed() != hashed(context=64)
    assert hashed(context=64) != hashed(context=64, group=8)
