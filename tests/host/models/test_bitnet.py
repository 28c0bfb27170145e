"""BitNet b1.58: published layouts, byte by byte, against a float64 network of its own."""

import json

import gguf
import numpy as np
import pytest

from host.files.errors import ModelFileError
from host.models.examples import (
    bitnet_config,
    bitnet_gguf,
    bitnet_tensors,
    checkpoint,
    i2_s,
    pack_quarters,
    tokenizer_json,
)
from host.models.registry import read_model
from sim.golden.arithmetic import ARITHMETICS
from sim.golden.evaluate import ExactProducts, GoldenLM, model_matrices

HEADS, KV_HEADS, LAYERS = 4, 2, 2
TOKENS = np.random.default_rng(3).integers(0, 259, 24)
TERNARY = [gguf.GGMLQuantizationType.TQ1_0, gguf.GGMLQuantizationType.TQ2_0]


@pytest.fixture(scope="module")
def tensors():
    # Rows of the TQ types are multiples of 256.
    return bitnet_tensors(width=256, ffn_width=512, kv_width=128, layers=LAYERS)


def write_checkpoint(path, tensors, *, config=None, divides=False, data=None):
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(
        bitnet_config(tensors, divides=divides) | (config or {})))
    (path / "tokenizer.json").write_text(tokenizer_json())
    (path / "model.safetensors").write_bytes(data or checkpoint(tensors, divides=divides))
    return path


def write_gguf(path, tensors, **options):
    (path / "model.gguf").write_bytes(bitnet_gguf(tensors, **options))
    return path / "model.gguf"


class Reference:
    """The published arithmetic in float64; ``codes``: activations become int8 as published."""

    def __init__(self, tensors, *, codes=False, base=500000.0, eps=1e-5):
        self.tensors, self.codes, self.base, self.eps = tensors, codes, base, eps

    def norm(self, x, name):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + self.eps) * self.tensors[name]

    def linear(self, x, name):
        weights = self.tensors[f"{name}.weight"].astype(np.float64)
        if self.codes:
            scale = 127 / np.maximum(np.abs(x).max(-1, keepdims=True), 1e-5)
            x = np.clip(np.rint(x * scale), -128, 127) / scale
        return x @ weights.T * self.tensors[f"{name}.scale"][0]

    def rope(self, x):
        """Turn elements ``i`` and ``i + half`` of each head."""
        tokens, _, size = x.shape
        half = size // 2
        angles = np.arange(tokens)[:, None] * self.base ** (-np.arange(half) / half)
        cos, sin = (np.concatenate([f(angles)] * 2, -1)[:, None] for f in (np.cos, np.sin))
        turned = np.concatenate([-x[..., half:], x[..., :half]], -1)
        return x * cos + turned * sin

    def logits(self, tokens):
        t = self.tensors
        x = t["token_embd.weight"].astype(np.float16).astype(np.float64)[tokens]
        count = len(tokens)
        for index in range(LAYERS):
            blk = f"blk.{index}"
            h = self.norm(x, f"{blk}.attn_norm.weight")
            q = self.rope(self.linear(h, f"{blk}.attn_q").reshape(count, HEADS, -1))
            k = self.rope(self.linear(h, f"{blk}.attn_k").reshape(count, KV_HEADS, -1))
            v = self.linear(h, f"{blk}.attn_v").reshape(count, KV_HEADS, -1)
            out = np.empty_like(q)
            for head in range(HEADS):
                shared = head // (HEADS // KV_HEADS)
                for token in range(count):
                    scores = k[:token + 1, shared] @ q[token, head] / np.sqrt(q.shape[-1])
                    weights = np.exp(scores - scores.max())
                    out[token, head] = weights / weights.sum() @ v[:token + 1, shared]
            mixed = self.norm(out.reshape(count, -1), f"{blk}.attn_sub_norm.weight")
            x = x + self.linear(mixed, f"{blk}.attn_output")
            h = self.norm(x, f"{blk}.ffn_norm.weight")
            gate = np.maximum(self.linear(h, f"{blk}.ffn_gate"), 0) ** 2
            hidden = self.norm(gate * self.linear(h, f"{blk}.ffn_up"), f"{blk}.ffn_sub_norm.weight")
            x = x + self.linear(hidden, f"{blk}.ffn_down")
        return self.norm(x, "output_norm.weight") @ (
            t["token_embd.weight"].astype(np.float16).astype(np.float64).T)


def run(model, arithmetic, tokens=TOKENS):
    lm = GoldenLM(model, ARITHMETICS[arithmetic], ExactProducts(model_matrices(model)))
    return lm.logits(lm.forward(tokens[np.newaxis], lm.start()))


def error(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


class TestLayouts:
    def test_quarters_of_rows(self, tmp_path):
        """Byte vectors of published checkpoints."""
        trits = np.array([[0, -1], [-1, 1], [-1, 1], [-1, 1], [1, 0], [0, -1], [1, -1], [1, -1]])
        assert pack_quarters(trits).tolist() == [[0xA1, 0x18], [0x90, 0x0A]]
        pattern = (4 * np.arange(8)[:, None] + np.arange(4)) % 3 - 1
        assert pack_quarters(pattern).tolist() == [[24, 97, 134, 24], [97, 134, 24, 97]]

    def test_i2_s(self):
        trits = np.arange(128)[None] % 3 - 1
        assert i2_s(trits, 1.0) == (b"\x24\x49\x92" * 11)[:32] + b"\0\0\x80\x3f" + bytes(28)

    def test_reader_of_a_checkpoint(self, tensors, tmp_path):
        model = read_model(write_checkpoint(tmp_path, tensors))
        self.check(model, tensors)

    def test_scale_that_divides(self, tensors, tmp_path):
        """A checkpoint of class 'bitlinear' has the same tensors, one over the scales."""
        model = read_model(write_checkpoint(tmp_path, tensors, divides=True))
        self.check(model, tensors)

    @pytest.mark.parametrize("kind", [None, *TERNARY])
    def test_reader_of_gguf(self, tensors, tmp_path, kind):
        self.check(read_model(write_gguf(tmp_path, tensors, kind=kind)), tensors)

    @staticmethod
    def check(model, tensors):
        for index, layer in enumerate(model.layers):
            for field in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up",
                          "ffn_down"):
                matrix = getattr(layer, field)
                np.testing.assert_array_equal(matrix.trits, tensors[f"blk.{index}.{field}.weight"])
                assert matrix.scale == pytest.approx(
                    float(tensors[f"blk.{index}.{field}.scale"][0]), rel=1e-6)


class TestNetwork:
    def test_float_reference(self, tensors, tmp_path):
        model = read_model(write_gguf(tmp_path, tensors)).reference()
        assert error(run(model, "float"), Reference(tensors).logits(TOKENS)) < 1e-5

    def test_checkpoint_is_the_same_model(self, tensors, tmp_path):
        half = tensors["token_embd.weight"].astype(np.float16).astype(np.float32)
        one = read_model(write_checkpoint(tmp_path / "checkpoint",
                                          tensors | {"token_embd.weight": half}))
        two = read_model(write_gguf(tmp_path, tensors))
        np.testing.assert_array_equal(run(one, "lmul"), run(two, "lmul"))

    def test_golden(self, tensors, tmp_path):
        """What Q and L-Mul cost, beside the published codes in float64."""
        model = read_model(write_gguf(tmp_path, tensors))
        expected = Reference(tensors).logits(TOKENS)
        published = error(Reference(tensors, codes=True).logits(TOKENS), expected)
        found = {name: error(run(model, name), expected)
                 for name in ("exact_float32", "exact", "lmul")}
        assert 0.005 < published < 0.05
        assert found["exact_float32"] < 2.5 * published
        assert found["exact"] < 3 * published
        assert found["lmul"] < 0.2

    def test_token_by_token(self, tensors, tmp_path):
        model = read_model(write_gguf(tmp_path, tensors))
        lm = GoldenLM(model, ARITHMETICS["lmul"], ExactProducts(model_matrices(model)))
        state = lm.start()
        alone = [lm.logits(lm.forward(np.array([[token]]), state))[0] for token in TOKENS]
        np.testing.assert_array_equal(np.array(alone), run(model, "lmul"))


def message(path):
    with pytest.raises(ModelFileError) as caught:
        read_model(path)
    text = str(caught.value)
    assert "\n" not in text
    return text.replace(str(path), "MODEL")


class TestErrors:
    @pytest.mark.parametrize(("config", "expected"), [
        ({"hidden_act": "silu"}, "key hidden_act of config.json must be 'relu2', not 'silu'"),
        ({"quantization_config": None},
         "key quantization_config of config.json must have the quant_method 'bitnet': matrices "
         "must be packed"),
        ({"quantization_config": {"quant_method": "bitnet", "linear_class": "other"}},
         "key linear_class of config.json must be 'bitlinear' or 'autobitlinear', not 'other'"),
        ({"num_attention_heads": 7},
         "key num_attention_heads of config.json must divide hidden_size, 256, into heads of an "
         "even size, and be a multiple of num_key_value_heads, 2, not 7"),
        ({"max_position_embeddings": 1 << 31},
         "key max_position_embeddings of config.json must be at most 2147483647, not 2147483648"),
        ({"rope_theta": "big"},
         "key rope_theta of config.json must be a positive number, not 'big'"),
    ])
    def test_config(self, tensors, tmp_path, config, expected):
        assert message(write_checkpoint(tmp_path, tensors, config=config)) == f"MODEL: {expected}"

    def test_code_3(self, tensors, tmp_path):
        path = write_checkpoint(tmp_path, tensors)
        data = bytearray((path / "model.safetensors").read_bytes())
        length = int.from_bytes(data[:8], "little")
        start = json.loads(data[8:8 + length])["model.layers.0.self_attn.q_proj.weight"][
            "data_offsets"][0]
        data[8 + length + start + 256 + 5] = 0b00110000     # third quarter, row 1, column 5
        (path / "model.safetensors").write_bytes(data)
        assert message(path) == ("MODEL/model.safetensors: tensor "
                                 "model.layers.0.self_attn.q_proj.weight must be ternary, but row "
                                 "129 column 5 has code 3")

    def test_masters_that_are_not_packed(self, tensors, tmp_path):
        masters = {name: values.astype(np.float32) if values.dtype == np.int8 else values
                   for name, values in tensors.items()}
        path = write_checkpoint(tmp_path, tensors, data=checkpoint(masters))
        assert message(path) == ("MODEL/model.safetensors: tensor "
                                 "model.layers.0.self_attn.q_proj.weight must have shape "
                                 "(64, 256), a quarter of the rows, not (256, 256)")

    @pytest.mark.parametrize(("keys", "changed", "expected"), [
        ({"general.architecture": "bitnet"}, {},
         "key bitnet.embedding_length must be a positive integer, not None"),
        ({}, {"blk.1.ffn_up.weight": None}, "tensor blk.1.ffn_up.weight is missing"),
        ({}, {"blk.0.attn_q.weight": ((128, 256), 36, bytes(128 * 64 + 32))},
         "tensor blk.0.attn_q.weight must have shape (256, 256), not (128, 256)"),
        ({}, {"blk.0.attn_q.weight": ((256, 256), 36, bytes(256 * 64 + 32))},
         "tensor blk.0.attn_q.weight must have a positive and finite scale, not 0.0"),
        ({}, {"blk.0.attn_q.weight": ((256, 256), 36, bytes([255]) * 256 * 64
                                      + b"\0\0\x80\x3f" + bytes(28))},
         "tensor blk.0.attn_q.weight must be ternary, but row 0 column 0 holds 2 times the scale"),
        ({}, {"token_embd.weight": ((259, 256), 36, bytes(259 * 64 + 32))},
         "tensor token_embd.weight must have type of floating-point or quantized numbers, "
         "not I2_S"),
    ])
    def test_gguf(self, tensors, tmp_path, keys, changed, expected):
        path = write_gguf(tmp_path, tensors, keys=keys, changed=changed)
        assert message(path) == f"MODEL: {expected}"

    def test_i2_s_that_is_cut_off(self, tensors, tmp_path):
        path = write_gguf(tmp_path, tensors, changed={
            "blk.9.last.weight": ((4096, 4096), 36, bytes(32))})
        assert "truncated: tensor blk.9.last.weight ends at byte" in message(path)
