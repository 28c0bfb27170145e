"""The accelerator's configuration: derived sizes, configuration_hash, refusals."""

import dataclasses

import pytest

from hw.config import AcceleratorConfig, EngineConfig


def test_derived():
    config = AcceleratorConfig(engine=EngineConfig(port_bytes=16, result_lanes=4), address_width=20)
    assert (config.vector_lanes, config.port_bytes, config.memory_bytes) == (4, 16, 1 << 20)


def test_fingerprint():
    attention = {"context": 64, "group": 4, "attention_heads": 2}
    config = AcceleratorConfig(**attention)
    same = AcceleratorConfig(engine=EngineConfig(target="ecp5", row_columns=1024), **attention)
    assert same.configuration_hash() == config.configuration_hash()
    others = [AcceleratorConfig(engine=EngineConfig(lanes=128))]
    others += [dataclasses.replace(config, **{field.name: getattr(config, field.name) // 2})
               for field in dataclasses.fields(config) if field.name != "engine"]
    configuration_hashes = {other.configuration_hash() for other in [config, *others]}
    assert len(configuration_hashes) == len(others) + 1
    assert all(0 <= configuration_hash < 2 ** 32 for configuration_hash in configuration_hashes)


class TestErrors:
    @pytest.mark.parametrize("name", ["vector_depth", "top_k", "product_depth"])
    def test_positive(self, name):
        with pytest.raises(ValueError, match=rf"^Configuration field {name} must be a positive "
                                             rf"integer, not 0$"):
            AcceleratorConfig(**{name: 0})

    @pytest.mark.parametrize("name", ["program_depth", "queue_words"])
    def test_power_of_two(self, name):
        with pytest.raises(ValueError, match=rf"^Configuration field {name} must be a power of "
                                             rf"two, not 48$"):
            AcceleratorConfig(**{name: 48})

    @pytest.mark.parametrize(("name", "limit"), [("vector_depth", 65536), ("list_depth", 65280),
                                                 ("address_width", 32)])
    def test_limit(self, name, limit):
        with pytest.raises(ValueError, match=rf"^Configuration field {name} must be at most "
                                             rf"{limit}, not {limit + 8}$"):
            AcceleratorConfig(**{name: limit + 8})

    def test_tiles(self):
        with pytest.raises(ValueError, match=r"^List depth \(300\) must be a multiple of 256, or "
                                             r"less than that$"):
            AcceleratorConfig(list_depth=300)

    def test_vector_words(self):
        with pytest.raises(ValueError, match=r"^Vector depth \(1020\) must be a multiple of the "
                                             r"result lane count \(8\)$"):
            AcceleratorConfig(vector_depth=1020)

    def test_activations(self):
        with pytest.raises(ValueError,
                           match=r"^Activation width of an accelerator's engine must be 8, "
                                             r"not 5$"):
            AcceleratorConfig(engine=EngineConfig(activation_width=5))
