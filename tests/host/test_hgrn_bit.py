"""Published MatMul-free checkpoints: a random one against a float64 network of its own."""

import json
import re

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

import host.__main__ as cli
from host.compile import compile_model
from host.model import ModelFileError, read_model
from hw.config import CoreConfig, EngineConfig
from sim.golden.machine import Machine
from sim.golden.model import ARITHMETICS, ExactProducts, GoldenLM, model_matrices
from tests.golden.test_machine import golden_logits, machine_logits

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
