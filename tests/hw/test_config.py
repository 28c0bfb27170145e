"""The core's configuration: derived sizes, fingerprint, refusals."""

import dataclasses

import pytest

from hw.config import CoreConfig, EngineConfig


def test_derived():
    config = CoreConfig(engine=EngineConfig(port_bytes=16, result_lanes=4), address_width=20)
    assert (config.vector_lanes, config.port_bytes, config.memory_bytes) == (4, 16, 1 << 20)


def test_fingerprint():
    attention = {"context": 64, "group": 4, "attention_heads": 2}
    config = CoreConfig(**attention)
    same = CoreConfig(engine=EngineConfig(target="ecp5", row_columns=1024), **attention)
    assert same.fingerprint() == config.fingerprint()
    others = [CoreConfig(engine=EngineConfig(lanes=128))]
    others += [dataclasses.replace(config, **{field.name: getattr(config, field.name) // 2})
               for field in dataclasses.fields(config) if field.name != "engine"]
    fingerprints = {other.fingerprint() for other in [config, *others]}
    assert len(fingerprints) == len(others) + 1
    assert all(0 <= fingerprint < 2 ** 32 for fingerprint in fingerprints)


class TestErrors:
    @pytest.mark.parametrize("name", ["vector_depth", "best", "product_depth"])
    def test_positive(self, name):
        with pytest.raises(ValueError, match=rf"^Configuration field {name} must be a positive "
                                             rf"integer, not 0$"):
            CoreConfig(**{name: 0})

    @pytest.mark.parametrize("name", ["program_depth", "queue_words"])
    def test_power_of_two(self, name):
        with pytest.raises(ValueError, match=rf"^Configuration field {name} must be a power of "
                                             rf"two, not 48$"):
            CoreConfig(**{name: 48})

    @pytest.mark.parametrize(("name", "limit"), [("vector_depth", 65536), ("list_depth", 65280),
                                                 ("address_width", 32)])
    def test_limit(self, name, limit):
        with pytest.raises(ValueError, match=rf"^Configuration field {name} must be at most "
                                             rf"{limit}, not {limit + 8}$"):
            CoreConfig(**{name: limit + 8})

    def test_tiles(self):
        with pytest.raises(ValueError, match=r"^List depth \(300\) must be a multiple of 256, or "
                                             r"less than that$"):
            CoreConfig(list_depth=300)

    def test_vector_words(self):
        with pytest.raises(ValueError, match=r"^Vector depth \(1020\) must be a multiple of the "
                                             r"result lane count \(8\)$"):
            CoreConfig(vector_depth=1020)

    def test_activations(self):
        with pytest.raises(ValueError, match=r"^Activation width of a core's engine must be 8, "
                                             r"not 5$"):
            CoreConfig(engine=EngineConfig(activation_width=5))
