"""Prompts whose tokens are read together: the same states and logits as token by token."""

import dataclasses

import numpy as np
import pytest

from host.compiler.compile import compile_fitted, compile_model
from host.compiler.errors import CompileError
from host.devices.accelerator import GoldenAccelerator, machine_of
from host.devices.checked import CheckedTokens
from host.devices.generate import AcceleratorReader, Generator
from host.files.image import read_image, write_image
from host.models.examples import tiny_model
from host.text.sampling import Sampler
from hw.config import AcceleratorConfig, EngineConfig

CONFIG = AcceleratorConfig(engine=EngineConfig(row_columns=64))


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("batch", [2, 4, 8])
def test_batches_equal_single_tokens(model, batch, sparse):
    image = compile_fitted(model, CONFIG, sparse=sparse, prefill=batch)
    start = image.program.start
    assert image.program.prefill_tokens == batch
    tokens = np.random.default_rng(1).integers(0, model.vocab, 2 * batch + 3).tolist()
    single, together = machine_of(image), machine_of(image)
    for index, token in enumerate(tokens):
        expected = single.run(token, start(new=index == 0))
        slot = index % batch if index < 2 * batch else None
        found = together.run(token, start(new=index == 0, slot=slot))
        assert bool(found) == (slot in (None, batch - 1))
        for one, other in zip(found, expected, strict=bool(found)):
            assert (one.integers == other.integers).all()
            assert one.scale == other.scale
    # Single tokens of this program are those of one without batches.
    plain = compile_model(model, image.config, sparse=sparse)
    alone = machine_of(plain)
    for index, token in enumerate(tokens):
        expected = alone.run(token, plain.program.start(new=index == 0))
    assert (found[0].integers == expected[0].integers).all()


def test_generator_and_file(model, tmp_path):
    prompt, sampler = list(range(1, 8)), Sampler(temperature=0.0)
    texts = []
    for batch in (1, 4):
        image = compile_fitted(model, CONFIG, prefill=batch)
        write_image(tmp_path / "image", image)
        image = read_image(tmp_path / "image")
        device = GoldenAccelerator(image.config)
        device.load(image)
        generator = Generator(AcceleratorReader(CheckedTokens(device, image), image,
                                                model.vocabulary))
        texts.append(list(generator.generate(prompt, 5, sampler)))
    assert texts[0] == texts[1]


@pytest.mark.parametrize(("prefill", "message"), [
    (3, "must be a power of two up to 8, not 3"),
    (16, "must be a power of two up to 8, not 16")])
def test_wrong_batches(model, prefill, message):
    with pytest.raises(CompileError, match=message):
        compile_model(model, CONFIG, prefill=prefill)


def test_too_many_rows(model):
    small = dataclasses.replace(CONFIG, engine=dataclasses.replace(
        CONFIG.engine, accumulator_depth=4))
    with pytest.raises(CompileError, match=r"at most 32 rows for 8 tokens at once \(engine field "
                                           r"accumulator_depth\)"):
        compile_model(model, small, prefill=8)
