"""Vocabularies with more tokens than a product has columns: all ranges, wherever a sequence is."""

import dataclasses
import json
import re

import numpy as np
import pytest

from host.compiler.compile import compile_fitted, compile_model
from host.compiler.errors import CompileError
from host.devices.accelerator import LATENCY, REFRESH, GoldenAccelerator, machine_of
from host.devices.checked import CheckedTokens
from host.devices.errors import DeviceError
from host.devices.generate import candidates
from host.devices.registry import DeviceName, open_accelerator
from host.devices.simulated import SimulatedAccelerator
from host.files.image import listing, read_image, write_image
from host.measure.program import planes_of
from host.models.examples import (
    bitnet_config,
    bitnet_tensors,
    checkpoint,
    llama_gguf,
    llama_tensors,
    tiny_model,
    tokenizer_json,
)
from host.models.registry import read_model
from hw.config import AcceleratorConfig, EngineConfig
from hw.isa import Opcode
from sim.golden.arithmetic import ARITHMETICS
from sim.golden.evaluate import ExactProducts, GoldenLM, model_matrices
from sim.timing.program import token_cycles
from tests.host.accelerator_examples import MISSING, SMALL

SIMULATED = pytest.param(
    "simulated", marks=pytest.mark.skipif(bool(MISSING), reason="; ".join(MISSING)))

#: Columns of a product of :data:`SMALL`.
COLUMNS = 512


def large_model(vocab, **shape):
    """Make a tiny model with more tokens than its vocabulary names."""
    model = tiny_model(**{"width": 64, "ffn_width": 128, "layers": 1} | shape)
    embedding = np.random.default_rng(vocab).integers(-13, 14, (vocab, model.width), np.int8)
    return dataclasses.replace(model, embedding=embedding)


@pytest.fixture(scope="module")
def model():
    """Three ranges of 400 tokens."""
    return large_model(1200)


@pytest.fixture(scope="module")
def image(model):
    return compile_model(model, SMALL)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """As many tokens, and attention, whose positions are counted."""
    path = tmp_path_factory.mktemp("llama") / "example.gguf"
    path.write_bytes(llama_gguf(llama_tensors()))
    model, random = read_model(path), np.random.default_rng(7)
    rows = [random.integers(0, len(model.embedding), 1200) for _ in range(2)]
    return dataclasses.replace(model, embedding=model.embedding[rows[0]], head=model.head[rows[1]])


def small_accelerator():
    engine = dataclasses.replace(SMALL.engine, max_planes=6)
    return dataclasses.replace(SMALL, engine=engine, context=16, address_width=24)


def sequences(program, vocab):
    """First and last tokens of all ranges: each begins a sequence, and follows each."""
    firsts = [first for first, _, _ in program.ranges]
    ends = sorted({*firsts, *(first - 1 for first in firsts[1:]), vocab - 1})
    for number, token in enumerate(ends):
        yield [token, *ends[number:], *ends[:number], token]


def equal(image, model):
    """Every logit of the sequences, one behind the other."""
    machine = machine_of(image)
    golden = GoldenLM(model, ARITHMETICS["lmul"], ExactProducts(model_matrices(model)))
    for sequence in sequences(image.program, image.vocab):
        expected = golden.logits(golden.forward(np.array([sequence]), golden.start()))
        for index, token in enumerate(sequence):
            for one in image.program.passes(token, new=index == 0):
                emissions = machine.run(*one)
            np.testing.assert_array_equal(np.concatenate(
                [emission.integers * emission.scale for emission in emissions]), expected[index])


class TestGoldenMachine:
    @pytest.mark.parametrize(("vocab", "firsts"), [
        (513, [0, 257]), (700, [0, 350]), (1024, [0, 512]), (1200, [0, 400, 800]),
        (2047, [0, 512, 1024, 1536])])
    def test_equals_the_model(self, vocab, firsts):
        model = large_model(vocab)
        image = compile_model(model, SMALL)
        assert [first for first, _, _ in image.program.ranges] == firsts
        equal(image, model)

    def test_sparse(self, model):
        engine = dataclasses.replace(SMALL.engine, row_columns=256)
        config = dataclasses.replace(SMALL, engine=engine)
        equal(compile_model(model, config, sparse=True), model)

    def test_products_across_ranges(self):
        """Rows of 96, three times; 128 fit a product. A word is a whole transfer of the port."""
        engine = EngineConfig(lanes=32, accumulator_depth=4, index_width=9, port_bytes=64)
        model = large_model(1200, width=96)
        image = compile_model(model, AcceleratorConfig(engine=engine))
        assert [part.name for part in image.parts if part.name.startswith("embedding")] == [
            "embedding[0:128]", "embedding[128:256]", "embedding[256:288]"]
        equal(image, model)

    def test_attention(self, llama):
        """A token in the middle of a sequence is one pass: its position is one more."""
        image = compile_fitted(llama, small_accelerator())
        assert len(image.program.ranges) == 3
        equal(image, llama)

    def test_trits(self, image, model):
        """What fills up the last range is no weight."""
        part = image.parts[0]
        assert (part.name, part.trits) == ("embedding", model.embedding.size * 3)
        other = compile_model(large_model(1199), SMALL).parts[0]
        assert (other.bytes, other.trits) == (part.bytes, part.trits - 64 * 3)
        assert planes_of(image)[3].products == 1 + len(image.program.heads)


class TestProgram:
    def test_one_range(self, tmp_path):
        """As many tokens as columns: nothing is divided, and old drivers read the file."""
        image = compile_model(large_model(COLUMNS), SMALL)
        program = image.program
        assert program.ranges == ()
        assert [instruction.constant for instruction in program.instructions
                if instruction.opcode is Opcode.STOP] == [0]
        assert program.passes(7, new=True) == ((7, 0),)
        assert program.passes(7, new=False) == ((7, program.body),)
        write_image(tmp_path / "image", image)
        assert (tmp_path / "image").read_bytes()[:8] == b"TALLY\x00\x03\n"

    def test_passes(self, image):
        program = image.program
        (_, _, _), (second, start, announced), (third, body, _) = program.ranges
        assert program.passes(second, new=True) == ((0, announced), (0, 0))
        assert program.passes(second, new=False) == ((0, start),)
        assert program.passes(third - 1, new=False) == ((399, start),)
        assert program.passes(1199, new=False) == ((399, body),)
        # What a token costs is that of the longest way.
        assert body == program.body < start
        assert [program.emissions(place) for place in (0, body, start, announced)] == [2, 2, 2, 0]
        assert program.token()[-1].opcode is Opcode.STOP
        assert program.token()[-2].opcode is Opcode.TOP_K

    def test_file(self, image, tmp_path):
        path = tmp_path / "image"
        write_image(path, image)
        assert path.read_bytes()[:8] == b"TALLY\x00\x04\n"
        again = read_image(path, SMALL)
        assert (again.program, again.parts, again.memory) == (image.program, image.parts,
                                                              image.memory)

    def test_listing(self, image):
        text = listing(image.program)
        assert "\nbody:\ntoken from 800:\n" in text
        assert "\ntoken from 0:\n" in text
        assert re.search(r"\nnew sequence, token from 400:\n +\d+  LOAD ", text)

    def test_rows_beyond_a_field(self):
        """An engine with 131,072 accumulators: a product has at most 65,535 rows."""
        engine = EngineConfig(lanes=512, accumulator_depth=256, result_lanes=8)
        model = large_model(65_600, width=16, ffn_width=32)
        image = compile_model(model, AcceleratorConfig(engine=engine))
        assert image.program.heads == ((0, 32768), (32768, 32768), (65536, 64))
        assert [first for first, _, _ in image.program.ranges] == [0, 32800]

    def test_prompts(self):
        engine = dataclasses.replace(SMALL.engine, max_batch=4)
        config = dataclasses.replace(SMALL, engine=engine)
        with pytest.raises(CompileError, match=r"^Model tiny must have at most 512 tokens for "
                                               r"prompts that are read together, not 513$"):
            compile_model(large_model(513), config, prefill=2)


class TestDevice:
    @pytest.fixture(params=["golden", SIMULATED])
    def device(self, request):
        device = open_accelerator(DeviceName.parse(request.param), SMALL)
        yield device
        device.close()

    def test_tokens(self, device, image):
        """Each with the golden machine's logits, and cycles beside the formula's."""
        device.load(image)
        checked = CheckedTokens(device, image)
        golden = GoldenAccelerator(SMALL)
        golden.load(image)
        program, count = image.program, 0
        for sequence in sequences(program, image.vocab):
            for index, token in enumerate(sequence):
                result = checked.token(token, new=index == 0)
                expected = golden.token(token, new=index == 0)
                count += 1
                # Both passes of a token that begins a sequence.
                assert result.cycles == pytest.approx(expected.cycles, rel=0.01)
                assert result.transfers == expected.transfers
                if index:
                    (_, start), = program.passes(token, new=False)
                    cost = token_cycles(SMALL, program.instructions, start, latency=LATENCY,
                                        refresh=REFRESH)
                    assert result.cycles == pytest.approx(cost.cycles, rel=0.005)
        assert checked.checked == count * 2 * SMALL.top_k

    def test_no_such_token(self, device, image):
        device.load(image)
        for token in (-1, 1200):
            with pytest.raises(DeviceError, match=rf"^Token must be from 0 to 1199, as tiny has "
                                                  rf"them, not {token}$"):
                device.token(token, new=True)
        CheckedTokens(device, image).token(1199, new=True)

    def test_another_image(self, device, image):
        """What one leaves behind in the vector memory does not matter to the next one."""
        device.load(image)
        device.token(900, new=True)
        other = compile_model(large_model(700), SMALL)
        device.load(other)
        checked = CheckedTokens(device, other)
        for index, token in enumerate((0, 699, 349, 350)):
            checked.token(token, new=index == 0)


@pytest.mark.skipif(bool(MISSING), reason="; ".join(MISSING))
@pytest.mark.slow       # the simulator of an accelerator with attention is built in minutes
def test_attention_on_the_simulated_accelerator(llama):
    image = compile_fitted(llama, small_accelerator())
    device, golden = SimulatedAccelerator(image.config), GoldenAccelerator(image.config)
    try:
        for each in (device, golden):
            each.load(image)
        checked = CheckedTokens(device, image)
        for sequence in sequences(image.program, image.vocab):
            for index, token in enumerate(sequence):
                result = checked.token(token, new=index == 0)
                expected = golden.token(token, new=index == 0)
                assert result.cycles == pytest.approx(expected.cycles, rel=0.005)
                assert result.transfers == expected.transfers
    finally:
        device.close()


def test_128256_tokens(tmp_path):
    """The vocabulary of BitNet b1.58 2B4T and Llama 3, in a model that is tiny otherwise."""
    tensors = bitnet_tensors(width=64, ffn_width=64, kv_width=32, layers=1, vocab=128_256)
    (tmp_path / "config.json").write_text(json.dumps(bitnet_config(tensors)))
    (tmp_path / "tokenizer.json").write_text(tokenizer_json())
    (tmp_path / "model.safetensors").write_bytes(checkpoint(tensors))
    model = read_model(tmp_path)
    image = compile_fitted(model, AcceleratorConfig())
    assert (image.vocab, [first for first, _, _ in image.program.ranges]) == (128_256, [0, 64_128])
    assert sum(rows for _, rows in image.program.heads) == 128_256
    golden = GoldenLM(model, ARITHMETICS["lmul"], ExactProducts(model_matrices(model)))
    machine, tokens = machine_of(image), [128_000, 64_127, 128_255]
    expected = golden.logits(golden.forward(np.array([tokens]), golden.start()))
    for index, token in enumerate(tokens):
        for one in image.program.passes(token, new=index == 0):
            emissions = machine.run(*one)
        best, logits = candidates(image, emissions)
        order = np.argsort(-expected[index], kind="stable")[:image.config.top_k]
        np.testing.assert_array_equal(best, order)
        np.testing.assert_array_equal(logits, expected[index][order])
        assert best.max() > 65_535
