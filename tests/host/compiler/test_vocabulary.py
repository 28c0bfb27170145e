"""Large vocabularies: more tokens than 16 bits can name."""

import dataclasses
import json

import numpy as np
import pytest

from host.compiler.compile import compile_fitted, compile_model
from host.compiler.errors import CompileError
from host.devices.accelerator import GoldenAccelerator, machine_of
from host.devices.checked import CheckedTokens
from host.devices.errors import DeviceError
from host.devices.generate import candidates
from host.devices.simulated import SimulatedAccelerator
from host.models.examples import (
    bitnet_config,
    bitnet_tensors,
    checkpoint,
    tiny_model,
    tokenizer_json,
)
from host.models.registry import read_model
from hw.config import AcceleratorConfig, EngineConfig
from sim.golden.arithmetic import ARITHMETICS
from sim.golden.evaluate import ExactProducts, GoldenLM, model_matrices
from tests.host.accelerator_examples import MISSING, SMALL

#: The last one has 17 bits.
VOCAB = 66_000
TOKENS = [0, 65_535, 65_536, VOCAB - 1, 1]


def large_model(vocab, **shape):
    """Make a tiny model with more tokens than its vocabulary names."""
    model = tiny_model(**{"width": 16, "ffn_width": 32, "layers": 1} | shape)
    embedding = np.random.default_rng(vocab).integers(-13, 14, (vocab, model.width), np.int8)
    return dataclasses.replace(model, embedding=embedding)


@pytest.fixture(scope="module")
def model():
    return large_model(VOCAB)


@pytest.fixture(scope="module")
def image(model):
    """Compile for a configuration with indices of 9 bits, which the compiler widens."""
    return compile_fitted(model, dataclasses.replace(SMALL, address_width=24))


def logits_of(model, tokens):
    golden = GoldenLM(model, ARITHMETICS["lmul"], ExactProducts(model_matrices(model)))
    return golden.logits(golden.forward(np.array([tokens]), golden.start()))


def test_index_width(image):
    assert image.config.engine.index_width == 17
    assert image.config == dataclasses.replace(
        SMALL, address_width=24, engine=dataclasses.replace(SMALL.engine, index_width=17))


def test_equals_the_model(image, model):
    machine, expected = machine_of(image), logits_of(model, TOKENS)
    for index, token in enumerate(TOKENS):
        emissions = machine.run(token, image.program.start(new=index == 0))
        np.testing.assert_array_equal(np.concatenate(
            [emission.integers * emission.scale for emission in emissions]), expected[index])


@pytest.mark.skipif(bool(MISSING), reason="; ".join(MISSING))
def test_simulated_accelerator(image):
    device = SimulatedAccelerator(image.config)
    try:
        device.load(image)
        golden, checked = GoldenAccelerator(image.config), CheckedTokens(device, image)
        golden.load(image)
        for index, token in enumerate(TOKENS):
            result = checked.token(token, new=index == 0)
            expected = golden.token(token, new=index == 0)
            assert result.cycles == pytest.approx(expected.cycles, rel=0.005)
            assert result.transfers == expected.transfers
        for token in (-1, VOCAB):
            with pytest.raises(DeviceError, match=rf"^Token must be from 0 to {VOCAB - 1}, as tiny "
                                                  rf"has them, not {token}$"):
                device.token(token, new=True)
    finally:
        device.close()


def test_rows_beyond_a_field():
    """An engine with 131,072 accumulators: a product has at most 65,535 rows."""
    engine = EngineConfig(lanes=512, accumulator_depth=256, result_lanes=8)
    image = compile_fitted(large_model(65_600), AcceleratorConfig(engine=engine))
    assert image.program.heads == ((0, 32768), (32768, 32768), (65536, 64))
    assert image.config.engine.index_width == 17


def test_fixed_configuration():
    with pytest.raises(CompileError, match=r"^Matrix embedding must have at most 512 columns for "
                                           r"this engine, not 513 \(engine field index_width\)$"):
        compile_model(large_model(513), SMALL)


def test_too_many_tokens():
    """A field of an instruction counts columns in 22 bits."""
    with pytest.raises(CompileError, match=r"^Model tiny: Index width of an accelerator's engine "
                                           r"must be at most 22, not 23$"):
        compile_fitted(large_model(2 ** 22 + 1, width=2, ffn_width=8), SMALL)


def test_128256_tokens(tmp_path):
    """The vocabulary of BitNet b1.58 2B4T and Llama 3, in a model that is tiny otherwise."""
    tensors = bitnet_tensors(width=64, ffn_width=64, kv_width=32, layers=1, vocab=128_256)
    (tmp_path / "config.json").write_text(json.dumps(bitnet_config(tensors)))
    (tmp_path / "tokenizer.json").write_text(tokenizer_json())
    (tmp_path / "model.safetensors").write_bytes(checkpoint(tensors))
    model = read_model(tmp_path)
    image = compile_fitted(model, AcceleratorConfig())
    assert (image.vocab, image.config.engine.index_width) == (128_256, 17)
    assert sum(rows for _, rows in image.program.heads) == 128_256
    machine, tokens = machine_of(image), [128_000, 64_127, 128_255]
    expected = logits_of(model, tokens)
    for index, token in enumerate(tokens):
        emissions = machine.run(token, image.program.start(new=index == 0))
        best, logits = candidates(image, emissions)
        order = np.argsort(-expected[index], kind="stable")[:image.config.top_k]
        np.testing.assert_array_equal(best, order)
        np.testing.assert_array_equal(logits, expected[index][order])
        assert best.max() > 65_535
