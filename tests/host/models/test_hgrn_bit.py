"""Published MatMul-free checkpoints: a random one against a float64 network of its own."""

import json
import re
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer as BPETokenizer
from tokenizers import decoders, models, pre_tokenizers

from host.cli import main as cli
from host.compiler.compile import compile_model
from host.files.errors import ModelFileError
from host.files.image import read_image
from host.models.registry import read_model
from host.text.tokenizer import open_tokenizer
from hw.config import AcceleratorConfig, EngineConfig
from hw.isa import Opcode
from sim.golden.arithmetic import ARITHMETICS, FloatArithmetic
from sim.golden.evaluate import ExactProducts, GoldenLM, model_matrices
from sim.golden.machine import Machine
from tests.sim.golden.test_machine import golden_logits, machine_logits

VOCAB, WIDTH, FFN, LAYERS = 320, 256, 768, 2
CONFIG = {
    "architectures": ["HGRNBitForCausalLM"], "model_type": "hgrn_bit", "vocab_size": VOCAB,
    "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "attn_mode": "fused_recurrent",
    "num_heads": 1, "expand_ratio": 1, "use_short_conv": False, "conv_size": 4,
    "share_conv_kernel": True, "use_lower_bound": True, "hidden_ratio": 4,
    "intermediate_size": None, "hidden_act": "swish", "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False,
    "initializer_range": 0.02, "fuse_cross_entropy": True}


def random_tensors(seed=1, *, gains="random", layers=LAYERS):
    """Tensors by name, in float32; gains are random, all 1, or the same in i, f and g."""
    rng = np.random.default_rng(seed)

    def matrix(rows, columns):
        return rng.normal(0, 0.02, (rows, columns)).astype(np.float32)

    def norm(size):
        if gains == "ones":
            return np.ones(size, np.float32)
        return rng.uniform(0.5, 1.6, size).astype(np.float32)

    tensors = {"model.embeddings.weight": matrix(VOCAB, WIDTH),
               "model.lower_bounds": rng.normal(0, 1, (layers, WIDTH)).astype(np.float32),
               "model.norm.weight": norm(WIDTH),
               "lm_head.weight": matrix(VOCAB, WIDTH), "lm_head.norm.weight": norm(WIDTH)}
    for index in range(layers):
        layer = f"model.layers.{index}"
        tensors[f"{layer}.attn_norm.weight"] = norm(WIDTH)
        tensors[f"{layer}.mlp_norm.weight"] = norm(WIDTH)
        tensors[f"{layer}.attn.g_norm.weight"] = norm(WIDTH)
        shared = norm(WIDTH)
        for name in "ifgo":
            tensors[f"{layer}.attn.{name}_proj.weight"] = matrix(WIDTH, WIDTH)
            tensors[f"{layer}.attn.{name}_proj.norm.weight"] = (
                shared if gains == "shared" and name != "o" else norm(WIDTH))
        tensors[f"{layer}.mlp.gate_proj.weight"] = matrix(2 * FFN, WIDTH)
        tensors[f"{layer}.mlp.gate_proj.norm.weight"] = norm(WIDTH)
        tensors[f"{layer}.mlp.down_proj.weight"] = matrix(WIDTH, FFN)
        tensors[f"{layer}.mlp.down_proj.norm.weight"] = norm(FFN)
    return tensors


def write_checkpoint(path, tensors, config=CONFIG, dtype=ml_dtypes.bfloat16, shards=1):
    """Write a checkpoint of 16-bit numbers, and return what they are as float64."""
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    stored = {name: tensor.astype(dtype) for name, tensor in tensors.items()}
    if shards == 1:
        save_file(stored, path / "model.safetensors")
    else:
        places = {name: f"model-{number % shards + 1:05}-of-{shards:05}.safetensors"
                  for number, name in enumerate(stored)}
        for file in set(places.values()):
            save_file({name: stored[name] for name in stored if places[name] == file},
                      path / file)
        (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return {name: tensor.astype(np.float64) for name, tensor in stored.items()}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def silu(x):
    return x * sigmoid(x)


class Reference:
    """The published arithmetic in float64, one token at a time.

    Parameters
    ----------
    tensors : dict
    codes : str
        How activations are rounded: ``none``, ``absmax`` as published, or ``power of two``.
    eps : float
    """

    def __init__(self, tensors, codes="none", eps=1e-6):
        self.tensors, self.codes, self.eps = tensors, codes, eps
        self.layers = len(tensors["model.lower_bounds"])
        bounds = np.exp(tensors["model.lower_bounds"])
        bounds /= bounds.sum(axis=0)
        self.bounds = np.cumsum(bounds, axis=0) - bounds[0]
        self.state = np.zeros((self.layers, WIDTH))

    def norm(self, x, name):
        return x / np.sqrt(np.mean(x * x) + self.eps) * self.tensors[f"{name}.weight"]

    def quantize(self, y):
        if self.codes == "none":
            return y
        unit = np.abs(y).max() / 127
        if self.codes == "power of two":
            unit = 2 ** np.ceil(np.log2(unit))
        return np.rint(y / unit) * unit

    def linear(self, x, name):
        w = self.tensors[f"{name}.weight"]
        mean = np.abs(w).mean()
        trits = np.clip(np.rint(w / mean), -1, 1)
        return mean * trits @ self.quantize(self.norm(x, f"{name}.norm"))

    def token(self, token):
        x = self.tensors["model.embeddings.weight"][token]
        for index in range(self.layers):
            layer = f"model.layers.{index}"
            a = self.norm(x, f"{layer}.attn_norm")
            f = sigmoid(self.linear(a, f"{layer}.attn.f_proj"))
            if index:
                f = self.bounds[index] + (1 - self.bounds[index]) * f
            i = silu(self.linear(a, f"{layer}.attn.i_proj")) * (1 - f)
            h = self.state[index] = f * self.state[index] + i
            g = self.norm(self.linear(a, f"{layer}.attn.g_proj"), f"{layer}.attn.g_norm")
            x = x + self.linear(g * silu(h), f"{layer}.attn.o_proj")
            b = self.norm(x, f"{layer}.mlp_norm")
            p, u = np.split(self.linear(b, f"{layer}.mlp.gate_proj"), 2)
            x = x + self.linear(silu(p) * u, f"{layer}.mlp.down_proj")
        return self.linear(self.norm(x, "model.norm"), "lm_head")


TOKENS = [1, *np.random.default_rng(9).integers(3, VOCAB, 39).tolist()]


def reference_logits(tensors, **options):
    reference = Reference(tensors, **options)
    return np.array([reference.token(token) for token in TOKENS])


def logits_of(model, arithmetic):
    lm = GoldenLM(model, ARITHMETICS[arithmetic], ExactProducts(model_matrices(model)))
    return lm.logits(lm.forward(np.array([TOKENS]), lm.start()))


def error(logits, expected):
    """Root mean square of the difference, relative to that of the logits."""
    return float(np.linalg.norm(logits - expected) / np.linalg.norm(expected))


@pytest.fixture(scope="module", params=["random", "shared", "ones"])
def checkpoint(request, tmp_path_factory):
    """Model, what its tensors are in float64, and how its gains were chosen."""
    path = tmp_path_factory.mktemp("checkpoint")
    tensors = write_checkpoint(path, random_tensors(gains=request.param))
    return read_model(path), tensors, request.param


class TestArithmetic:
    """Errors are root mean squares of 40 tokens' logits, relative to those of the reference."""

    def test_float(self, checkpoint):
        """The same embedding and no epsilon: only float32 is left; then what these two cost."""
        model, tensors, _ = checkpoint
        logits = logits_of(model, "float")
        rounded = tensors | {"model.embeddings.weight": model.embedding * model.embedding_scale}
        assert error(logits, reference_logits(rounded, eps=0.0)) < 2e-6
        assert error(logits, reference_logits(rounded)) < 1e-3
        assert error(logits, reference_logits(tensors)) < 0.015
        assert 0.003 < model.embedding_error < 0.004
        [note] = model.notes
        assert note == (f"Embedding rounded to 6 trit planes: error {model.embedding_error:.2%} "
                        f"(root mean square)")

    def test_codes(self, checkpoint):
        """Codes with a scale that is a power of two lose 1.5 times what published codes lose."""
        model, tensors, _ = checkpoint
        rounded = tensors | {"model.embeddings.weight": model.embedding * model.embedding_scale}
        expected = reference_logits(rounded, eps=0.0)
        published = error(reference_logits(rounded, eps=0.0, codes="absmax"), expected)
        ours = error(reference_logits(rounded, eps=0.0, codes="power of two"), expected)
        assert 0.03 < published < 0.05
        assert 1.3 < ours / published < 1.7
        assert error(logits_of(model, "exact_float32"), expected) == pytest.approx(ours, rel=0.1)

    def test_golden(self, checkpoint):
        """All there is: codes, L-Mul and bf16, beside the published arithmetic in float64."""
        model, tensors, _ = checkpoint
        logits, expected = logits_of(model, "lmul"), reference_logits(tensors)
        assert error(logits, expected) < 0.13
        assert np.corrcoef(logits.reshape(-1), expected.reshape(-1))[0, 1] > 0.99

    def test_gains(self, checkpoint):
        """L-Mul by gains, with all else exact, costs a quarter of what it costs by vectors."""
        model, _, gains = checkpoint
        approximate = ARITHMETICS["lmul_float32"]

        def logits(of_gains, of_vectors):
            def multiply(x, y):
                is_gain = 1 in (x.ndim, y.ndim)
                return (of_gains if is_gain else of_vectors).multiply(x, y)

            arithmetic = FloatArithmetic("float", multiply, of_gains.factor, quantized=False)
            lm = GoldenLM(model, arithmetic, ExactProducts(model_matrices(model)))
            return lm.logits(lm.forward(np.array([TOKENS]), lm.start()))

        exact = ARITHMETICS["float"]
        expected = logits_of(model, "float")
        np.testing.assert_array_equal(logits(exact, exact), expected)
        assert 0.07 < error(logits(exact, approximate), expected) < 0.1
        assert error(logits(approximate, exact), expected) < (0.015 if gains == "ones" else 0.025)


SMALL = AcceleratorConfig(engine=EngineConfig(lanes=32, result_lanes=4, accumulator_depth=4,
                                              port_bytes=4), product_depth=1, top_k=7)


class TestMachine:
    @pytest.mark.parametrize("config", [AcceleratorConfig(), SMALL], ids=["default", "blocks"])
    def test_logits(self, checkpoint, config):
        """Bit for bit, and again after the state was cleared."""
        model, _, _ = checkpoint
        image = compile_model(model, config, sparse=config is SMALL)
        machine = Machine(config, image.program.encoded(), image.memory)
        for tokens in (TOKENS[:12], TOKENS[7:12]):
            logits, _ = machine_logits(image, machine, tokens)
            np.testing.assert_array_equal(logits, golden_logits(model, tokens))

    def test_lists(self, checkpoint):
        """Equal gains share a list, and are multiplied by once."""
        model, _, gains = checkpoint
        image = compile_model(model, AcceleratorConfig())
        opcodes = [instruction.opcode for instruction in image.program.instructions]
        lists = {"random": 6, "shared": 4, "ones": 4}[gains]
        assert opcodes.count(Opcode.QUANTIZE) == LAYERS * lists + 1
        # The gains of each list and of each scalar, twice; the lower bound of all layers but one.
        vectors = {"random": 2 * (6 + 3), "shared": 2 * (4 + 3), "ones": 0}[gains]
        head = 0 if gains == "ones" else 2 * 2
        assert opcodes.count(Opcode.LOAD) == LAYERS * vectors + head + LAYERS - 1
        names = [part.name for part in image.parts]
        assert len(set(names)) == len(names)


class TestFiles:
    def test_shards(self, tmp_path):
        tensors = random_tensors(2)
        write_checkpoint(tmp_path / "one", tensors)
        write_checkpoint(tmp_path / "three", tensors, shards=3)
        one, three = read_model(tmp_path / "one"), read_model(tmp_path / "three")
        np.testing.assert_array_equal(logits_of(one, "lmul"), logits_of(three, "lmul"))

    @pytest.mark.parametrize("dtype", [np.float16, np.float32])
    def test_types(self, tmp_path, dtype):
        stored = write_checkpoint(tmp_path, random_tensors(2), dtype=dtype)
        model = read_model(tmp_path)
        weights = stored["model.layers.1.attn.i_proj.weight"]
        scale = np.abs(weights).mean()
        projection = model.layers[1].i_proj
        assert projection.scale == pytest.approx(scale, rel=1e-6)
        np.testing.assert_array_equal(projection.trits,
                                      np.clip(np.rint(weights / scale), -1, 1))

    def test_alone(self, tmp_path):
        """In a process that has imported nothing else, as these tests have."""
        write_checkpoint(tmp_path, random_tensors(2))
        script = ("from host.models.registry import read_model; "
                  f"print(read_model({str(tmp_path)!r}).width)")
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True,
                              check=True)
        assert done.stdout == f"{WIDTH}\n"

    def test_one_layer(self, tmp_path):
        """No lower bound in layer 0; the FFN's width as it is given."""
        tensors = write_checkpoint(tmp_path, random_tensors(3, layers=1), CONFIG | {
            "num_hidden_layers": 1, "intermediate_size": FFN, "hidden_act": "silu"})
        model = read_model(tmp_path)
        assert (model.width, model.ffn_width, model.vocab, model.layer_count) == (
            WIDTH, FFN, VOCAB, 1)
        assert (model.layers[0].share == 1).all()
        assert error(logits_of(model, "float"), reference_logits(tensors)) < 0.015

    def test_embedding(self, tmp_path):
        """A largest number that bf16 rounds down is clipped by less than a unit."""
        tensors = random_tensors(2)
        largest = 364 * 1.0039
        embedding = np.zeros((VOCAB, WIDTH), np.float32)
        embedding[3, 5] = -largest
        write_checkpoint(tmp_path / "one", tensors | {"model.embeddings.weight": embedding},
                         dtype=np.float32)
        model = read_model(tmp_path / "one")
        assert model.embedding[3, 5] == -364
        assert model.embedding_scale == 1.0
        assert model.embedding_error < 0.004
        write_checkpoint(tmp_path / "two", tensors | {"model.embeddings.weight": 0 * embedding})
        with pytest.raises(ModelFileError, match=r"tensor model.embeddings.weight is zero every"):
            read_model(tmp_path / "two")


def edited(name, edit):
    """Change one tensor of a checkpoint; None leaves it out."""
    def change(tensors, config):
        value = edit(tensors.pop(name))
        if value is not None:
            tensors[name] = value
    return change


def option(**fields):
    def change(tensors, config):
        config.update(fields)
    return change


def with_nan(tensor):
    tensor.reshape(-1)[-2] = np.nan
    return tensor


UP = "model.layers.1.mlp.gate_proj.weight"
NORM = "model.layers.0.attn.i_proj.norm.weight"


class TestErrors:
    @pytest.mark.parametrize(("change", "message"), [
        (option(model_type="llama2"), "{}: key model_type of config.json must be 'bitnet' or "
                                      "'gemma' or 'gemma3_text' or 'granite' or 'hgrn_bit' or "
                                      "'llama' or 'mistral' or 'phi3' or 'qwen2' or 'qwen3' or "
                                      "'smollm3', not 'llama2'"),
        (option(model_type=None), "{}: key model_type of config.json must be 'bitnet' or "
                                  "'gemma' or 'gemma3_text' or 'granite' or 'hgrn_bit' or "
                                  "'llama' or 'mistral' or 'phi3' or 'qwen2' or 'qwen3' or "
                                  "'smollm3', not None"),
        (option(architectures=["HGRNForCausalLM"]),
         "{}: key architectures of config.json must be ['HGRNBitForCausalLM'], "
         "not ['HGRNForCausalLM']"),
        (option(use_short_conv=True),
         "{}: key use_short_conv of config.json must be False, not True"),
        (option(num_heads=2), "{}: key num_heads of config.json must be 1, not 2"),
        (option(num_heads=True), "{}: key num_heads of config.json must be 1, not True"),
        (option(expand_ratio=2), "{}: key expand_ratio of config.json must be 1, not 2"),
        (option(hidden_act="relu"),
         "{}: key hidden_act of config.json must be 'swish' or 'silu', not 'relu'"),
        (option(use_lower_bound=False),
         "{}: key use_lower_bound of config.json must be True, not False"),
        (option(tie_word_embeddings=True),
         "{}: key tie_word_embeddings of config.json must be False, not True"),
        (option(hidden_size="wide"),
         "{}: key hidden_size of config.json must be a positive integer, not 'wide'"),
        (option(hidden_ratio=1.5),
         "{}: key hidden_ratio of config.json must be a positive integer, not 1.5"),
        (option(intermediate_size=0),
         "{}: key intermediate_size of config.json must be a positive integer, not 0"),
        (option(bos_token_id=320),
         "{}: key bos_token_id of config.json must be a token below 320, not 320"),
        (option(num_hidden_layers=3),
         "{}/model.safetensors: tensor model.lower_bounds must have shape (3, 256), "
         "not (2, 256)"),
        (edited(UP, lambda tensor: None), f"{{}}: tensor {UP} is missing"),
        (edited(UP, lambda tensor: tensor[:-1]),
         f"{{}}/model.safetensors: tensor {UP} must have shape (1536, 256), not (1535, 256)"),
        (edited(UP, with_nan),
         f"{{}}/model.safetensors: tensor {UP} must be finite, but row 1535 column 254 is nan"),
        (edited(NORM, with_nan),
         f"{{}}/model.safetensors: tensor {NORM} must be finite, but element 254 is nan"),
        (edited(NORM, lambda tensor: tensor[:, np.newaxis]),
         f"{{}}/model.safetensors: tensor {NORM} must have shape (256,), not (256, 1)"),
    ])
    def test_checkpoint(self, change, message, tmp_path):
        tensors, config = random_tensors(), dict(CONFIG)
        change(tensors, config)
        write_checkpoint(tmp_path, tensors, config)
        with pytest.raises(ModelFileError) as raised:
            read_model(tmp_path)
        assert str(raised.value) == message.replace("{}", str(tmp_path))

    def test_type(self, tmp_path):
        write_checkpoint(tmp_path, random_tensors(), dtype=np.int8)
        with pytest.raises(ModelFileError, match=r"/model\.safetensors: tensor model\.lower_bounds "
                                                 r"must have type BF16 or F16 or F32, not I8$"):
            read_model(tmp_path)

    @pytest.mark.parametrize("length", [4, 1000, -1])
    def test_truncated(self, tmp_path, length):
        write_checkpoint(tmp_path, random_tensors())
        path = tmp_path / "model.safetensors"
        path.write_bytes(path.read_bytes()[:length])
        with pytest.raises(ModelFileError) as raised:
            read_model(tmp_path)
        assert str(raised.value).startswith(f"{path}: damaged or truncated: ")
        assert "\n" not in str(raised.value)

    @pytest.mark.parametrize(("name", "content", "message"), [
        ("config.json", None, "{}/config.json: No such file or directory"),
        ("config.json", "{", "{}/config.json: not JSON: Expecting property name enclosed in double "
                             "quotes: line 1 column 2 (char 1)"),
        ("config.json", "[]", "{}/config.json: must hold an object, not list"),
        ("model.safetensors", None, "{}: must hold one file *.safetensors, or "
                                    "model.safetensors.index.json, not 0 files"),
        ("other.safetensors", "", "{}: must hold one file *.safetensors, or "
                                  "model.safetensors.index.json, not 2 files"),
        ("model.safetensors.index.json", '{"weight_map": {"a": "../x"}}',
         "{}/model.safetensors.index.json: key weight_map must give the name of a file for each "
         "tensor"),
        ("model.safetensors.index.json", '{"weight_map": {"a": "x.safetensors"}}',
         "{}/x.safetensors: No such file"),
        ("model.safetensors.index.json", '{"weight_map": {"a": "model.safetensors"}}',
         "{}/model.safetensors: tensor a is missing, which model.safetensors.index.json says is "
         "here"),
    ])
    def test_files(self, name, content, message, tmp_path):
        write_checkpoint(tmp_path, random_tensors())
        if content is None:
            (tmp_path / name).unlink()
        else:
            (tmp_path / name).write_text(content)
        with pytest.raises(ModelFileError) as raised:
            read_model(tmp_path)
        assert str(raised.value) == message.replace("{}", str(tmp_path))


def write_tokenizer(path):
    """Write a tokenizer of letters, with the two special tokens in front."""
    letters = {"<unk>": 0, "<s>": 1, "</s>": 2} | {
        symbol: 3 + number for number, symbol in enumerate("▁abcdefghijklmnopqrstuvwxyz")}
    tokenizer = BPETokenizer(models.BPE(vocab=letters, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.save(str(path / "tokenizer.json"))


class TestCommandLine:
    @pytest.fixture
    def path(self, tmp_path):
        write_checkpoint(tmp_path, random_tensors())
        return tmp_path

    def run(self, capsys, *arguments):
        status = cli.main(list(map(str, arguments)))
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    def test_compile(self, capsys, monkeypatch, path, tmp_path):
        monkeypatch.setenv("COLUMNS", "140")
        output = tmp_path / "image.tally"
        status, out, err = self.run(capsys, "compile", path, "--output", output)
        assert (status, err) == (0, "")
        assert re.search(r"Embedding rounded to 6 trit planes: error 0\.\d\d% \(root mean square\)",
                         out)
        image = read_image(output, AcceleratorConfig())
        assert image.memory == compile_model(read_model(path), AcceleratorConfig()).memory

    def test_run(self, capsys, path):
        """A document begins with token 1; the text is that of the tokens."""
        write_tokenizer(path)
        status, out, err = self.run(capsys, "run", path, "once upon", "--device", "engine-golden",
                                    "--tokens", 5, "--greedy")
        assert (status, err) == (0, "")
        assert "all equal to the golden model" in out
        model = read_model(path)
        tokenizer = open_tokenizer(model.vocabulary)
        tokens = tokenizer.encode("once upon")
        assert tokenizer.decode(tokens) == "once upon"
        assert len(tokens) == 10
        lm = GoldenLM(model, ARITHMETICS["lmul"], ExactProducts(model_matrices(model)))
        state = lm.start()
        tokens, stream, text = [1, *tokens], tokenizer.stream(), ""
        for _ in range(5):
            logits = lm.logits(lm.forward(np.array([tokens]), state)[-1:])[0]
            tokens = [int(logits.argmax())]
            text += stream.feed(tokens[0])
        text += stream.finish()
        assert out.startswith(f"once upon{text}\n")

    @pytest.mark.parametrize(("content", "message"), [
        (None, r"tokenizer\.json: No such file or directory"),
        ("{}", r"tokenizer\.json: not a tokenizer: .*"),
        ("many", r"tokenizer\.json must have at most 320 tokens, not 400")])
    def test_tokenizer(self, capsys, path, content, message):
        file = path / "tokenizer.json"
        if content == "many":
            vocabulary = {str(number): number for number in range(400)}
            BPETokenizer(models.WordLevel(vocabulary, unk_token="0")).save(str(file))
        elif content:
            file.write_text(content)
        status, _, err = self.run(capsys, "run", path, "a", "--device", "engine-golden")
        assert status == 1
        assert re.fullmatch(f"tally run: {re.escape(str(path))}: {message}\n", err)

    def test_save(self, capsys, path):
        write_tokenizer(path)
        status, _, err = self.run(capsys, "evaluate", path, "--corpus", path, "--fit", "--save",
                                  "x.gguf")
        assert (status, err) == (1, f"tally evaluate: Option --save must come with a GGUF "
                                    f"file, not {path}\n")
