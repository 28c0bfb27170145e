"""Small random models of every supported kind, against independent judges.

Each variant is written by ``transformers``, converted where another kind of file is meant, and
read as ``python -m host`` reads any model. The float reference's log-probabilities of every next
token of a sequence are compared with those of ``transformers``, or of llama.cpp (package
``xllamacpp``) that reads the same GGUF file; beside that stands how far the golden model is from
the float reference.

Quantized GGUF files have ``transformers`` as their judge, which gets the weights that the package
``gguf`` makes of them: llama.cpp multiplies quantized weights by activations in int8.
"""

import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import platform
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from host.files.tensors import to_bf16
from host.measure.compare import jensen_shannon, log_softmax
from host.models.examples import (
    gguf_bytes,
    llama2c,
    llama2c_groups,
    pack_quarters,
    pieces,
    split_gguf,
    tokenizer_json,
    vocabulary_keys,
)
from host.models.registry import read_model
from host.models.transformer import Transformer
from hw.records import write_record
from sim.golden.arithmetic import ARITHMETICS
from sim.golden.evaluate import ExactProducts, GoldenLM, model_matrices

__all__ = ["LIMIT", "MISSING", "VARIANTS", "Outcome", "Variant", "measure", "write_outcomes"]

#: Largest difference of log-probabilities from a judge's that is none, and where llama.cpp computes
#: GELU: it looks it up by fp16 numbers. With the same roundings, transformers is as far from the
#: true GELU (0.0013 and 0.0016 from llama.cpp without them, 0.0003 and 0.0008 with them).
LIMIT, GELU_LIMIT = 1e-3, 2e-3

#: Judges that are not installed: extra ``judges`` of the package.
MISSING = [name for name in ("torch", "transformers", "xllamacpp")
           if not importlib.util.find_spec(name)]

_VOCAB = 259
_LETTER = 73        # "H"
_TOKENS = 40        # beyond the original contexts of the variants that are stretched
_Type = gguf.GGMLQuantizationType
Weights = dict[str, NDArray]
_NOTHING: Mapping[str, Any] = {}


@dataclasses.dataclass(frozen=True)
class Variant:
    """A kind of model in a kind of file.

    Attributes
    ----------
    architecture, format, judge : str
        For people; the judge is ``transformers`` or ``llama.cpp``.
    write : callable
        Writes the files into a folder, and returns what is read and the weights of the judge: of a
        model of ``transformers``, by its configuration.
    limit : float
        Largest difference of log-probabilities from the judge's that is none.
    """

    architecture: str
    format: str
    judge: str
    write: Callable[[Path], "Written"]
    limit: float = LIMIT

    @property
    def name(self) -> str:
        """What tells it from all others."""
        return f"{self.architecture}, {self.format}, {self.judge}"


@dataclasses.dataclass(frozen=True)
class Written:
    """What is in a folder.

    Attributes
    ----------
    path : Path
        What is read.
    judge : callable
        Takes tokens, and returns the logarithms of the probabilities of what follows each.
    """

    path: Path
    judge: Callable[[NDArray[np.int64]], NDArray[np.float64]]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What was found of a variant.

    Attributes
    ----------
    variant : Variant
    difference : float
        Largest difference of the float reference's log-probabilities from the judge's.
    golden_jsd : float
        Jensen-Shannon divergence of the golden model from the float reference, bits a token.
    """

    variant: Variant
    difference: float
    golden_jsd: float


# Models of transformers.

def _random_model(config: Any, seed: int = 1) -> Any:
    """Make a model whose every parameter is random, gains and biases as well."""
    import torch
    import transformers
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(seed)
    gemma = config.model_type.startswith("gemma")
    with torch.no_grad():
        for name, values in model.named_parameters():
            if values.ndim > 1:
                size = values.shape[1] ** -0.5
                # Gemma multiplies its embedding by the root of its width. Where it is the head,
                # logits are not so far apart that probabilities are no float32 numbers.
                if "embed_tokens" in name and not gemma:
                    size = 4 * size if config.tie_word_embeddings else 1.0
                values.normal_(0, size, generator=generator)
            elif name.endswith("bias"):
                values.normal_(0, 0.3, generator=generator)
            else:                       # gains, to which Gemma adds one
                least = -0.5 if gemma else 0.5
                values.uniform_(least, least + 1, generator=generator)
    return model


def _config(kind: str, fields: Mapping[str, Any]) -> Any:
    """Make a small configuration of a class of transformers."""
    import transformers
    facts: dict[str, Any] = {
        "vocab_size": _VOCAB, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
        "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None,
        "tie_word_embeddings": False, "rms_norm_eps": 1e-5}
    return getattr(transformers, f"{kind}Config")(**{**facts, **fields})


def _logarithms(model: Any, tokens: NDArray[np.int64]) -> NDArray[np.float64]:
    import torch
    with torch.no_grad():
        logits = model(torch.from_numpy(tokens[np.newaxis])).logits[0]
    return log_softmax(logits.numpy(), np.float64)


def _judge(model: Any) -> Callable[[NDArray[np.int64]], NDArray[np.float64]]:
    return lambda tokens: _logarithms(model, tokens)


def _with_weights(config: Any, weights: Weights) -> Any:
    """Make a model of given weights, by their names."""
    import torch
    import transformers
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    found = model.load_state_dict({name: torch.from_numpy(np.ascontiguousarray(
        values, np.float32)) for name, values in weights.items()}, strict=False)
    assert not found.unexpected_keys
    assert set(found.missing_keys) <= {"lm_head.weight"}
    model.tie_weights()
    return model


def _weights(model: Any) -> Weights:
    tied = model.config.tie_word_embeddings
    return {name: values.numpy() for name, values in model.state_dict().items()
            if not (tied and name == "lm_head.weight")}


# Checkpoints.

def _checkpoint(kind: str, fields: Mapping[str, Any] = _NOTHING, *, dtype: str = "float32",
                shards: str = "1GB", changed: Callable[[dict], object] | None = None,
                ) -> Callable[[Path], Written]:
    """Save a model as transformers does; ``changed`` edits config.json afterwards."""
    def write(folder: Path) -> Written:
        import torch
        config = _config(kind, fields)
        model = _random_model(config).to(getattr(torch, dtype))
        model.save_pretrained(folder, max_shard_size=shards)
        (folder / "tokenizer.json").write_text(tokenizer_json())
        if changed:
            written = json.loads((folder / "config.json").read_text())
            changed(written)
            (folder / "config.json").write_text(json.dumps(written))
        # A model of its own: 16-bit numbers are those of the weights alone.
        return Written(folder, _judge(_with_weights(config, _weights(model.float()))))
    return write


def _old_rope(config: dict) -> None:
    """Say the rotary embedding as transformers 4 did."""
    new = config.pop("rope_parameters")
    config["rope_theta"] = new.pop("rope_theta")
    kind = new.pop("rope_type")
    config["rope_scaling"] = None if kind == "default" else {"type": kind, **new}


def _old_gemma3(config: dict) -> None:
    """Say the same of Gemma 3, and which layers have a sliding window."""
    config.pop("rope_parameters")
    config.pop("layer_types")
    config |= {"rope_theta": 1000000.0, "rope_local_base_freq": 10000.0,
               "rope_scaling": {"rope_type": "linear", "factor": 8.0},
               "sliding_window_pattern": 6}


def _is_ternary(name: str) -> bool:
    return "_proj.weight" in name


def _ternary_weights(model: Any, seed: int = 2) -> tuple[Weights, Weights, dict[str, float]]:
    """Make matrices of trits with a scale that fp16 and bf16 hold; return all weights, and those.

    The first are those of the judge, the second the trits, the third the scales.
    """
    rng = np.random.default_rng(seed)
    weights, trits, scales = _weights(model), {}, {}
    for name, values in weights.items():
        if _is_ternary(name):
            trits[name] = rng.integers(-1, 2, values.shape).astype(np.int8)
            scales[name] = to_bf16(float(rng.uniform(1, 1.9)) * values.shape[1] ** -0.5)
            weights[name] = trits[name] * np.float32(scales[name])
    return weights, trits, scales


def _packed(kind: str, fields: Mapping[str, Any] = _NOTHING, *, divides: bool = False,
            ) -> Callable[[Path], Written]:
    """Save a model whose matrices are trits, four in a byte, as transformers packs them."""
    def write(folder: Path) -> Written:
        model = _random_model(_config(kind, fields))
        weights, trits, scales = _ternary_weights(model)
        stored = {name: pack_quarters(trits[name]) if name in trits else values
                  for name, values in weights.items()}
        for name, scale in scales.items():
            stored[f"{name}_scale"] = np.array([1 / scale if divides else scale], np.float32)
        save_file(stored, folder / "model.safetensors")
        config = {**model.config.to_dict(), "architectures": [type(model).__name__],
                  "quantization_config": {
            "quant_method": "bitnet", "modules_to_not_convert": None,
            "linear_class": "bitlinear" if divides else "autobitlinear",
            "quantization_mode": "offline"}}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "tokenizer.json").write_text(tokenizer_json())
        return Written(folder, _judge(_with_weights(model.config, weights)))
    return write


# GGUF.

_GGUF_NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "self_attn.attn_sub_norm": "attn_sub_norm",
    "mlp.ffn_sub_norm": "ffn_sub_norm", "self_attn.qkv_proj": "attn_qkv",
    "mlp.gate_up_proj": "ffn_up"}
# ... and of Gemma 3, which has four norms.
_GEMMA3_NAMES = {"post_attention_layernorm": "post_attention_norm",
                 "pre_feedforward_layernorm": "ffn_norm",
                 "post_feedforward_layernorm": "post_ffw_norm"}

# Architectures whose heads have neighbouring elements as pairs.
_NEIGHBOURS = ("llama", "granite", "smollm3")


def _gguf_name(name: str, prefix: str = "llama") -> str:
    part, _, last = name.rpartition(".")
    names = {**_GGUF_NAMES, **(_GEMMA3_NAMES if prefix == "gemma3" else {})}
    if part.startswith("model.layers."):
        _, _, index, part = part.split(".", 3)
        return f"blk.{index}.{names[part]}.{last}"
    return f"{_GGUF_NAMES[part]}.{last}"


def _neighbours(name: str, values: NDArray, config: Any) -> NDArray:
    """Put the rows of queries and keys in the order of llama.cpp's converter."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    kind = name.split(".")[-2]
    if kind not in heads:
        return values
    pairs = values.reshape(heads[kind], 2, -1, *values.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(values.shape)


def _facts(prefix: str, config: Any) -> dict[str, object]:
    """Return the keys of a GGUF file."""
    facts: dict[str, object] = {
        "general.architecture": prefix, "general.name": "example", "general.file_type": 0,
        f"{prefix}.block_count": config.num_hidden_layers,
        f"{prefix}.embedding_length": config.hidden_size,
        f"{prefix}.feed_forward_length": config.intermediate_size,
        f"{prefix}.attention.head_count": config.num_attention_heads,
        f"{prefix}.attention.head_count_kv": config.num_key_value_heads,
        f"{prefix}.context_length": config.max_position_embeddings,
        f"{prefix}.vocab_size": _VOCAB,
        f"{prefix}.rope.freq_base": float(config.rope_parameters.get(
            "full_attention", config.rope_parameters)["rope_theta"]),
        f"{prefix}.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "tokenizer.ggml.add_bos_token": False, **vocabulary_keys()}
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    facts |= {f"{prefix}.rope.dimension_count": size, f"{prefix}.attention.key_length": size,
              f"{prefix}.attention.value_length": size}
    if prefix == "gemma3":
        facts |= {"gemma3.attention.sliding_window": config.sliding_window,
                  "gemma3.rope.scaling.type": "linear", "gemma3.rope.scaling.factor":
                      config.rope_parameters["full_attention"]["factor"]}
    if prefix == "granite":
        facts |= {"granite.embedding_scale": config.embedding_multiplier,
                  "granite.residual_scale": config.residual_multiplier,
                  "granite.attention.scale": config.attention_multiplier,
                  "granite.logit_scale": config.logits_scaling}
    return facts


# Where a block has its fp16 scales, if not in its first bytes alone.
_SCALES_AT = {_Type.Q2_K: (80, 82), _Type.Q3_K: (108,), _Type.Q4_K: (0, 2), _Type.Q5_K: (0, 2),
              _Type.Q6_K: (208,)}


def _quantized(values: NDArray[np.float32], kind: _Type, rng: np.random.Generator) -> bytes:
    """Quantize a matrix, or, to a type that the package only reads, make random blocks.

    Their numbers are about as large as those of the matrix.
    """
    with contextlib.suppress(NotImplementedError):
        return gguf.quants.quantize(values, kind).tobytes()
    block, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (values.size // block, size), np.uint8)
    if kind is _Type.NVFP4:             # four scales of 8 bits each, 3 of them for the mantissa
        blocks[:, :4] = rng.integers(0x20, 0x28, blocks[:, :4].shape)
        made = gguf.quants.dequantize(blocks.reshape(-1), kind)
        blocks[:, :4] += np.uint8(8 * int(np.rint(np.log2(values.std() / made.std()))) & 0xFF)
        return blocks.tobytes()
    scale = 0.01
    for _ in range(2):
        number = np.float16(scale)
        for at in _SCALES_AT.get(kind, (0,)) if kind is not _Type.IQ1_M else ():
            blocks[:, at:at + 2] = np.frombuffer(number.tobytes(), np.uint8)
        for place in range(4) if kind is _Type.IQ1_M else ():   # in the highest bits of four words
            blocks[:, 49 + 2 * place] &= 0x0F
            blocks[:, 49 + 2 * place] |= (int(number.view(np.uint16)) >> 4 * place & 15) << 4
        made = gguf.quants.dequantize(blocks.reshape(-1), kind)
        scale *= float(values.std() / made.std())
    return blocks.tobytes()


def _gguf(prefix: str, kind: str, fields: Mapping[str, Any] = _NOTHING, *,
          types: Callable[[str], _Type] | None = None,
          keys: Callable[[Any], dict[str, object]] | None = None,
          tensors: Callable[[Any], Weights] | None = None, ternary: bool = False,
          files: int = 1, judge: str = "llama.cpp") -> Callable[[Path], Written]:
    """Write a model as a GGUF file of some architecture, and of some types."""
    def write(folder: Path) -> Written:
        rng = np.random.default_rng(5)
        config = _config(kind, fields)
        model = _random_model(config)
        weights = _weights(model)
        if ternary:
            weights, _, _ = _ternary_weights(model)
        stored = {}
        for name, values in weights.items():
            wanted = types(name) if types and values.ndim == 2 else _Type.F32
            laid = _neighbours(name, values, config) if prefix in _NEIGHBOURS else values
            if prefix.startswith("gemma") and values.ndim == 1:
                laid = laid + np.float32(1)         # as llama.cpp's converter does
            data = _quantized(laid, wanted, rng)
            stored[_gguf_name(name, prefix)] = (values.shape, int(wanted), data)
            if wanted is not _Type.F32:
                # What the judge computes with, in the order that it has.
                found = gguf.quants.dequantize(np.frombuffer(data, np.uint8), wanted).reshape(
                    values.shape)
                weights[name] = _back(name, found, config) if prefix in _NEIGHBOURS else found
        stored |= {name: (values.shape, 0, values.astype("<f4").tobytes())
                   for name, values in (tensors(config) if tensors else {}).items()}
        facts = _facts(prefix, config) | (keys(config) if keys else {})
        path = folder / "model.gguf"
        path.write_bytes(gguf_bytes(facts, stored))
        if files > 1:
            path, *_ = split_gguf(path, files)
        if judge == "llama.cpp":
            return Written(path, lambda tokens: llama_cpp_logarithms(path, tokens))
        return Written(path, _judge(_with_weights(config, weights)))
    return write


def _silu_bitnet(folder: Path) -> Written:
    """Write the BitNet that llama.cpp has: of trits, and the same in F32 for the judge."""
    fields = {"hidden_size": 256, "intermediate_size": 256, "hidden_act": "relu2",
              "tie_word_embeddings": True}
    written = [_gguf("bitnet", "BitNet", fields, ternary=True, types=types)
               for types in (_trits_of(_Type.TQ2_0, _Type.F32), None)]
    (folder / "judge").mkdir()
    trits, judge = written[0](folder), written[1](folder / "judge")
    return Written(trits.path, judge.judge)


def _back(name: str, values: NDArray, config: Any) -> NDArray:
    """Undo :func:`_neighbours`."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    kind = name.split(".")[-2]
    if kind not in heads:
        return values
    pairs = values.reshape(heads[kind], -1, 2, *values.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(values.shape)


def llama_cpp_logarithms(path: Path, tokens: NDArray[np.int64]) -> NDArray[np.float64]:
    """Ask llama.cpp for the logarithms of the probabilities of what follows each token."""
    import xllamacpp
    options = xllamacpp.CommonParams()
    options.model.path = str(path)
    options.n_ctx, options.n_parallel, options.warmup, options.verbosity = 256, 1, False, -1
    options.cpuparams.n_threads = options.cpuparams_batch.n_threads = 1
    # Keys and values as they are.
    options.cache_type_k = options.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    options.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    found = np.full((len(tokens), _VOCAB), -np.inf)
    with _quiet():
        server = xllamacpp.Server(options)
        for place in range(len(tokens)):
            answer = server.handle_completions({
                "prompt": tokens[:place + 1].tolist(), "n_predict": 1, "n_probs": _VOCAB,
                "temperature": 0.0, "cache_prompt": False,
                # It answers nothing where the token is a part of a character. The bias is for the
                # choice of a token alone, not for the probabilities.
                "logit_bias": [[_LETTER, 1000.0]]})
            answer = json.loads(answer) if isinstance(answer, str) else answer
            for entry in answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]:
                found[place, entry["id"]] = entry["logprob"]
        del server
    assert np.isfinite(found).all()
    return found


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what a library in C writes to the terminal from it."""
    kept = os.dup(2)
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


# llama2.c.

def _llama2c(version: int, fields: Mapping[str, Any] = _NOTHING) -> Callable[[Path], Written]:
    """Write a Llama as export.py of llama2.c does."""
    def write(folder: Path) -> Written:
        config = _config("Llama", fields)
        model = _random_model(config)
        weights = _weights(model)
        laid = {_gguf_name(name): _neighbours(name, values, config)
                for name, values in weights.items()}
        path = folder / "model.bin"
        path.write_bytes(llama2c(laid, version=version))
        for name, values in weights.items():
            if version == 2 and values.ndim == 2:
                codes, scales = llama2c_groups(laid[_gguf_name(name)])
                weights[name] = _back(name, (codes * scales[:, np.newaxis]).reshape(values.shape),
                                      config)
        (folder / f"tok{_VOCAB}.bin").write_bytes(pieces({}))
        return Written(path, _judge(_with_weights(config, weights)))
    return write


# What is compared.

def _rope(kind: str, **fields: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **fields}}


_LINEAR = _rope("linear", factor=4.0)
_LLAMA3 = _rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                original_max_position_embeddings=16)
_YARN = _rope("yarn", factor=4.0, original_max_position_embeddings=16)
_GRANITE = {"embedding_multiplier": 12.0, "attention_multiplier": 0.2,
            "residual_multiplier": 0.22, "logits_scaling": 8.0}
_GEMMA3 = {"head_dim": 32, "query_pre_attn_scalar": 32, "num_hidden_layers": 7,
           "sliding_window": _TOKENS, "rope_parameters": {
               "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
               "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}}
_BIASES = {"attention_bias": True, "mlp_bias": True}


def _llama3_divisors(config: Any) -> Weights:
    """Make ``rope_freqs.weight`` as llama.cpp's converter does."""
    facts = config.rope_parameters
    size = config.head_dim or config.hidden_size // config.num_attention_heads
    waves = 2 * np.pi * facts["rope_theta"] ** (np.arange(0, size, 2) / size)
    low, high, original = (facts[name] for name in (
        "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"))
    found = []
    for wave in waves:
        if wave < original / high:
            found.append(1.0)
        elif wave > original / low:
            found.append(facts["factor"])
        else:
            smooth = (original / wave - low) / (high - low)
            found.append(1 / ((1 - smooth) / facts["factor"] + smooth))
    return {"rope_freqs.weight": np.array(found, np.float32)}


def _scaling(kind: str | None, prefix: str = "llama") -> Callable[[Any], dict[str, object]]:
    """Return the keys of a stretched rotary embedding; without a kind, as older files have them."""
    def keys(config: Any) -> dict[str, object]:
        factor = config.rope_parameters["factor"]
        if kind is None:
            return {f"{prefix}.rope.scale_linear": factor}
        found = {f"{prefix}.rope.scaling.type": kind, f"{prefix}.rope.scaling.factor": factor}
        if kind == "yarn":
            found[f"{prefix}.rope.scaling.original_context_length"] = config.rope_parameters[
                "original_max_position_embeddings"]
        return found
    return keys


def _every_key_of_yarn(config: Any) -> dict[str, object]:
    key = "llama.rope.scaling"
    return {**_scaling("yarn")(config), f"{key}.attn_factor": 1.3,
            f"{key}.yarn_beta_fast": 16.0, f"{key}.yarn_beta_slow": 2.0}


def _all_of(kind: _Type) -> Callable[[str], _Type]:
    """Store every matrix in a type."""
    return lambda name: kind


def _trits_of(kind: _Type, rest: _Type) -> Callable[[str], _Type]:
    """Store the layers' matrices in a ternary type, and embedding and head in another one."""
    return lambda name: kind if _is_ternary(name) else rest


def _variants() -> Iterator[Variant]:
    def of(architecture: str, file: str, write: Callable[[Path], Written],
           judge: str = "transformers", limit: float = LIMIT) -> Variant:
        return Variant(architecture, file, judge, write, limit)

    tied = {"tie_word_embeddings": True}
    yield of("Llama", "safetensors", _checkpoint("Llama"))
    yield of("Llama, tied", "safetensors", _checkpoint("Llama", tied))
    yield of("Llama", "safetensors, bf16", _checkpoint("Llama", dtype="bfloat16"))
    yield of("Llama", "safetensors, f16", _checkpoint("Llama", dtype="float16"))
    yield of("Llama", "safetensors, several files", _checkpoint("Llama", shards="100KB"))
    for count, what in ((1, "one head"), (4, "all heads")):
        yield of(f"Llama, {what} of keys", "safetensors",
                 _checkpoint("Llama", {"num_key_value_heads": count}))
    yield of("Llama, heads of 32", "safetensors", _checkpoint("Llama", {"head_dim": 32}))
    yield of("Llama, biases", "safetensors", _checkpoint("Llama", _BIASES))
    yield of("Llama, GELU", "safetensors",
             _checkpoint("Llama", {"hidden_act": "gelu_pytorch_tanh"}))
    for name, fields in (("linear", _LINEAR), ("llama3", _LLAMA3), ("yarn", _YARN)):
        yield of(f"Llama, RoPE {name}", "safetensors", _checkpoint("Llama", fields))
        yield of(f"Llama, RoPE {name}", "safetensors, configuration of transformers 4",
                 _checkpoint("Llama", fields, changed=_old_rope))
    yield of("Llama, ternary", "safetensors, packed", _packed("Llama"))
    yield of("Llama, ternary", "safetensors, packed, scales divide",
             _packed("Llama", divides=True))
    yield of("Mistral", "safetensors", _checkpoint("Mistral", {"sliding_window": None}))
    yield of("Mistral, sliding window", "safetensors",
             _checkpoint("Mistral", {"sliding_window": _TOKENS}))
    yield of("Qwen2", "safetensors", _checkpoint("Qwen2"))
    yield of("Qwen2, tied", "safetensors", _checkpoint("Qwen2", tied))
    yield of("Qwen3", "safetensors", _checkpoint("Qwen3", {"head_dim": 32}))
    yield of("Qwen3, tied, biases", "safetensors",
             _checkpoint("Qwen3", {"head_dim": 16, "attention_bias": True, **tied}))
    yield of("SmolLM3", "safetensors", _checkpoint("SmolLM3", {"num_hidden_layers": 4}))
    yield of("SmolLM3, tied, layers by a list", "safetensors",
             _checkpoint("SmolLM3", {"no_rope_layers": [1, 0, 1], **tied}))
    yield of("Granite", "safetensors", _checkpoint("Granite", _GRANITE))
    yield of("Granite, tied, biases", "safetensors",
             _checkpoint("Granite", {**tied, **_GRANITE, **_BIASES}))
    yield of("Phi-3", "safetensors", _checkpoint("Phi3"))
    yield of("Gemma", "safetensors", _checkpoint("Gemma", {"head_dim": 32, **tied}))
    yield of("Gemma 3", "safetensors", _checkpoint("Gemma3Text", {**_GEMMA3, **tied}))
    yield of("Gemma 3", "safetensors, configuration of transformers 4",
             _checkpoint("Gemma3Text", {**_GEMMA3, **tied}, changed=_old_gemma3))
    yield of("BitNet b1.58", "safetensors, packed",
             _packed("BitNet", {"hidden_act": "relu2", **tied}))

    cpp = "llama.cpp"
    yield of("Llama", "GGUF, F32", _gguf("llama", "Llama"), cpp)
    yield of("Llama, tied", "GGUF, F32", _gguf("llama", "Llama", tied), cpp)
    yield of("Llama", "GGUF, F32, three files", _gguf("llama", "Llama", files=3), cpp)
    yield of("Llama, heads of 32", "GGUF, F32", _gguf("llama", "Llama", {"head_dim": 32}), cpp)
    yield of("Llama, RoPE llama3", "GGUF, F32",
             _gguf("llama", "Llama", _LLAMA3, tensors=_llama3_divisors), cpp)
    yield of("Llama, RoPE linear", "GGUF, F32",
             _gguf("llama", "Llama", _LINEAR, keys=_scaling("linear")), cpp)
    yield of("Llama, RoPE linear", "GGUF, F32, key scale_linear",
             _gguf("llama", "Llama", _LINEAR, keys=_scaling(None)), cpp)
    yield of("Llama, RoPE yarn", "GGUF, F32",
             _gguf("llama", "Llama", _YARN, keys=_scaling("yarn")), cpp)
    yield of("Llama, RoPE yarn, all of its keys", "GGUF, F32",
             _gguf("llama", "Llama", _YARN, keys=_every_key_of_yarn), cpp)
    yield of("Llama, RoPE llama3 and linear", "GGUF, F32",
             _gguf("llama", "Llama", _LLAMA3, tensors=_llama3_divisors, keys=_scaling("linear")),
             cpp)
    yield of("Llama, biases", "GGUF, F32", _gguf("llama", "Llama", _BIASES), cpp)
    yield of("Qwen2", "GGUF, F32", _gguf("qwen2", "Qwen2"), cpp)
    yield of("Qwen2, RoPE yarn", "GGUF, F32",
             _gguf("qwen2", "Qwen2", _YARN, keys=_scaling("yarn", "qwen2")), cpp)
    yield of("Qwen3", "GGUF, F32", _gguf("qwen3", "Qwen3", {"head_dim": 32}), cpp)
    yield of("SmolLM3", "GGUF, F32", _gguf("smollm3", "SmolLM3", {"num_hidden_layers": 4}), cpp)
    yield of("Granite", "GGUF, F32", _gguf("granite", "Granite", _GRANITE), cpp)
    yield of("Granite, tied, biases", "GGUF, F32",
             _gguf("granite", "Granite", {**tied, **_GRANITE, **_BIASES}), cpp)

    yield of("BitNet b1.58, with SiLU", "GGUF, TQ2_0, that of the judge in F32", _silu_bitnet, cpp)
    yield of("Phi-3", "GGUF, F32", _gguf("phi3", "Phi3"), cpp)
    for name, of_kind, fields in (("Gemma", "Gemma", {"head_dim": 32, **tied}),
                                  ("Gemma 3", "Gemma3Text", {**_GEMMA3, **tied})):
        prefix = name.lower().replace(" ", "")
        yield of(name, "GGUF, F32", _gguf(prefix, of_kind, fields), cpp, GELU_LIMIT)
        yield of(name, "GGUF, F32", _gguf(prefix, of_kind, fields, judge="transformers"))

    wide = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 2}
    ternary = (_Type.TQ1_0, _Type.TQ2_0)
    for kind in (_Type.F16, *gguf.quants._type_traits):
        if kind not in ternary:
            yield of("Llama", f"GGUF, {kind.name}", _gguf(
                "llama", "Llama", wide, types=_all_of(kind), judge="transformers"))
    for kind in ternary:
        yield of("Llama, ternary", f"GGUF, {kind.name}", _gguf(
            "llama", "Llama", wide, ternary=True, judge="transformers",
            types=_trits_of(kind, _Type.F16)))
        yield of("BitNet b1.58", f"GGUF, {kind.name}", _gguf(
            "bitnet-b1.58", "BitNet", {**wide, "hidden_act": "relu2"}, ternary=True,
            judge="transformers", types=_trits_of(kind, _Type.Q6_K)))
    for version in (0, 1, 2):
        yield of("Llama", f"llama2.c, version {version}", _llama2c(version))
    yield of("Llama, tied", "llama2.c, version 2", _llama2c(2, tied))


#: Every variant, in the order of the table.
VARIANTS: tuple[Variant, ...] = tuple(_variants())


def measure(variant: Variant) -> Outcome:
    """Write a variant, read it, and compare it with its judge.

    Raises
    ------
    ModelFileError
        If it cannot be read.
    """
    tokens = np.random.default_rng(3).integers(1, 257, _TOKENS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        written = variant.write(folder)
        expected = written.judge(tokens)
        model = read_model(written.path)
        assert isinstance(model, Transformer)
        found = {}
        for arithmetic, one in (("float", model.reference()), ("lmul", model)):
            lm = GoldenLM(one, ARITHMETICS[arithmetic], ExactProducts(model_matrices(one)))
            found[arithmetic] = log_softmax(lm.logits(lm.forward(tokens[np.newaxis], lm.start())),
                                            np.float64)
    return Outcome(variant, float(np.abs(found["float"] - expected).max()),
                   float(jensen_shannon(found["lmul"], found["float"]).mean()))


def write_outcomes(path: Path, command: str, outcomes: Sequence[Outcome]) -> None:
    """Write a row for each variant."""
    packages = ("numpy", "gguf", "torch", "transformers", "xllamacpp")
    write_record(path, maker="host models", command=command,
                 versions={"python": platform.python_version(),
                           **{name: importlib.metadata.version(name) for name in packages}},
                 configuration={"tokens": _TOKENS, "vocabulary": _VOCAB},
                 rows=[{"architecture": outcome.variant.architecture,
                        "format": outcome.variant.format, "judge": outcome.variant.judge,
                        "difference": float(f"{outcome.difference:.2g}"),
                        "limit": outcome.variant.limit,
                        "golden_jsd": round(outcome.golden_jsd, 5)} for outcome in outcomes])
