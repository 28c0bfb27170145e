"""Small random models: transformers as the files that the readers read, and one in memory.

Files are plain bytes: GGUF is written here, since the package writes no type that it does not
know, and no file that is wrong.
"""

import struct
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save
from tokenizers import Tokenizer, models, pre_tokenizers

from host.files.gguf import Header
from host.files.tensors import TernaryMatrix, to_bf16
from host.models.mmfreelm import Layer, TernaryLM
from host.text.tokenizer import byte_symbols
from host.text.vocabulary import Vocabulary

__all__ = ["Tensors", "bitnet_config", "bitnet_gguf", "bitnet_tensors", "checkpoint", "gguf_bytes",
           "i2_s", "llama2c", "llama2c_groups", "llama_checkpoint", "llama_config", "llama_gguf",
           "llama_tensors", "pack_quarters", "pieces", "split_gguf",
           "tiny_model", "tiny_vocabulary", "tokenizer_json", "vocabulary_keys"]

Tensors = dict[str, NDArray]

_ALIGNMENT = 32
_F32 = int(gguf.GGMLQuantizationType.F32)
_I2_S = 36


# GGUF.

def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: object) -> bytes:
    """Type and value of a key: bool, int, float (float32), str, or a list of one kind.

    An integer is a uint32, or of 64 bits if it has to be, or what NumPy's type says.
    """
    kinds = gguf.GGUFValueType
    if isinstance(value, np.uint16 | np.int32):
        return struct.pack("<I", kinds.UINT16 if isinstance(value, np.uint16) else
                           kinds.INT32) + value.tobytes()
    if isinstance(value, bool):
        return struct.pack("<I?", kinds.BOOL, value)
    if isinstance(value, int):
        if value < 0:
            return struct.pack("<Iq", kinds.INT64, value)
        return struct.pack(*("<II", kinds.UINT32) if value < 2**32 else ("<IQ", kinds.UINT64),
                           value)
    if isinstance(value, float):
        return struct.pack("<I", kinds.FLOAT32) + np.float32(value).tobytes()
    if isinstance(value, str):
        return struct.pack("<I", kinds.STRING) + _string(value)
    assert isinstance(value, list)
    entries = [_value(entry) for entry in value]
    kind = entries[0][:4] if entries else struct.pack("<I", kinds.UINT32)
    return (struct.pack("<I", kinds.ARRAY) + kind + struct.pack("<Q", len(entries))
            + b"".join(entry[4:] for entry in entries))


def gguf_bytes(keys: Mapping[str, object],
               tensors: Mapping[str, tuple[tuple[int, ...], int, bytes]]) -> bytes:
    """Write a GGUF file.

    Parameters
    ----------
    keys : mapping of str to bool, int, float, str, or list of one of them
    tensors : mapping of str to (shape, type, data)
        Shapes are those of NumPy, types the numbers of ggml.
    """
    head = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(keys))]
    head += [_string(key) + _value(value) for key, value in keys.items()]
    data = bytearray()
    for name, (shape, kind, content) in tensors.items():
        head.append(_string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape),
                                                *reversed(shape), kind, len(data)))
        data += content + bytes(-len(content) % _ALIGNMENT)
    header = b"".join(head)
    return header + bytes(-len(header) % _ALIGNMENT) + bytes(data)


def split_gguf(path: Path, files: int) -> list[Path]:
    """Write a GGUF file as several, beside it: the first has all keys."""
    header = Header(path)
    names, size = list(header.tensors), -(-len(header.tensors) // files)
    paths = [path.with_name(f"{path.stem}-{number + 1:05}-of-{files:05}.gguf")
             for number in range(files)]
    for number, part in enumerate(paths):
        keys: dict[str, object] = {
            "split.no": np.uint16(number), "split.count": np.uint16(files),
            "split.tensors.count": np.int32(len(names))}
        if number == 0:
            keys |= {key: header.read(key) for key in header.values}
        stored = {}
        for name in names[number * size:(number + 1) * size]:
            tensor = header.tensors[name]
            stored[name] = (tensor.shape, tensor.kind, tensor.data[
                tensor.offset:tensor.offset + tensor.size].tobytes())
        part.write_bytes(gguf_bytes(keys, stored))
    return paths


def i2_s(trits: NDArray[np.integer], scale: float) -> bytes:
    """Pack a matrix as bitnet.cpp does on x86; columns are a multiple of 128."""
    codes = (trits + 1).astype(np.uint8).reshape(-1, 4, 32)
    packed = codes[:, 0] << 6 | codes[:, 1] << 4 | codes[:, 2] << 2 | codes[:, 3]
    return packed.tobytes() + np.float32(scale).tobytes() + bytes(28)


def vocabulary_keys(end: int = 0) -> dict[str, object]:
    """Keys of a byte-level BPE of 259 tokens."""
    return {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2",
            "tokenizer.ggml.tokens": ["<|endoftext|>", *byte_symbols(), "th", "the"],
            "tokenizer.ggml.merges": ["t h", "th e"], "tokenizer.ggml.eos_token_id": end}


_VOCAB = 259


def llama_tensors(*, width: int = 64, ffn_width: int = 96, kv_width: int = 32, layers: int = 2,
                  vocab: int = _VOCAB, seed: int = 1) -> Tensors:
    """Make the matrices of a Llama by their names in a GGUF file, as float32."""
    rng = np.random.default_rng(seed)

    def matrix(rows: int, columns: int) -> NDArray[np.float32]:
        # Rows of different sizes, as trained models have them.
        sizes = rng.lognormal(0, 0.5, (rows, 1))
        return (rng.normal(0, 1, (rows, columns)) * sizes / np.sqrt(columns)).astype(np.float32)

    def gains(size: int) -> NDArray[np.float32]:
        return rng.uniform(0.3, 1.6, size).astype(np.float32)

    tensors = {"token_embd.weight": rng.normal(0, 1, (vocab, width)).astype(np.float32),
               "output_norm.weight": gains(width)}
    for index in range(layers):
        shapes = {"attn_q": (width, width), "attn_k": (kv_width, width),
                  "attn_v": (kv_width, width), "attn_output": (width, width),
                  "ffn_gate": (ffn_width, width), "ffn_up": (ffn_width, width),
                  "ffn_down": (width, ffn_width)}
        tensors |= {f"blk.{index}.{name}.weight": matrix(*shape)
                    for name, shape in shapes.items()}
        tensors |= {f"blk.{index}.{name}.weight": gains(width)
                    for name in ("attn_norm", "ffn_norm")}
    return tensors


def llama_gguf(tensors: Tensors, *, architecture: str = "llama", heads: int = 4,
               kv_heads: int = 2, context: int = 64,
               types: Mapping[str, gguf.GGMLQuantizationType] | None = None,
               keys: Mapping[str, object] | None = None,
               changed: Mapping[str, tuple[tuple[int, ...], int, bytes] | None] | None = None,
               ) -> bytes:
    """Write a Llama; ``types`` quantizes tensors, ``keys`` and ``changed`` replace or leave out.

    Of another architecture, keys that begin with "llama." begin with its name.
    """
    layers = sum(name.endswith(".attn_q.weight") for name in tensors)
    ffn_width, width = tensors["blk.0.ffn_gate.weight"].shape
    facts: dict[str, object] = {
        "general.architecture": "llama", "general.name": "example", "llama.block_count": layers,
        "llama.embedding_length": width, "llama.feed_forward_length": ffn_width,
        "llama.attention.head_count": heads, "llama.attention.head_count_kv": kv_heads,
        "llama.context_length": context, "llama.rope.freq_base": 10000.0,
        "llama.attention.layer_norm_rms_epsilon": 1e-5, **vocabulary_keys()}
    stored: dict[str, tuple[tuple[int, ...], int, bytes] | None] = {}
    for name, values in tensors.items():
        kind = (types or {}).get(name, gguf.GGMLQuantizationType.F32)
        stored[name] = (values.shape, int(kind), gguf.quants.quantize(values, kind).tobytes())
    facts["general.architecture"] = architecture
    facts = {key.replace("llama.", f"{architecture}.", 1) if key.startswith("llama.") else key:
             value for key, value in facts.items()}
    return _replaced(facts, stored, keys, changed)


def _replaced(facts, stored, keys, changed) -> bytes:
    facts, stored = {**facts, **(keys or {})}, {**stored, **(changed or {})}
    return gguf_bytes({key: value for key, value in facts.items() if value is not None},
                      {name: entry for name, entry in stored.items() if entry is not None})


# llama2.c.

_GROUP = 32
_ORDER = ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate",
          "ffn_down", "ffn_up")


def llama2c(tensors: Tensors, *, heads: int = 4, kv_heads: int = 2, context: int = 64,
            version: int = 0) -> bytes:
    """Write the same Llama as export.py of llama2.c does; version 2 has groups of 32."""
    layers = sum(name.endswith(".attn_q.weight") for name in tensors)
    ffn_width, width = tensors["blk.0.ffn_gate.weight"].shape
    vocab = len(tensors["token_embd.weight"])
    tied = "output.weight" not in tensors
    if version:
        header = struct.pack("<4si7iB", b"24ka", version, width, ffn_width, layers, heads, kv_heads,
                             vocab, context, tied)
        header += struct.pack("<i", _GROUP) if version == 2 else b""
        norms = [*(f"blk.{index}.{name}.weight" for name in ("attn_norm", "ffn_norm")
                   for index in range(layers)), "output_norm.weight"]
        matrices = ["token_embd.weight", *(f"blk.{index}.{name}.weight" for name in _ORDER
                                           if "norm" not in name for index in range(layers)),
                    *(() if tied else ("output.weight",))]
        data = [tensors[name].astype("<f4").tobytes() for name in norms]
        for name in matrices:
            codes, scales = llama2c_groups(tensors[name])
            data += [codes.tobytes(), scales.tobytes()] if version == 2 else [
                tensors[name].astype("<f4").tobytes()]
        return header.ljust(256, b"\0") + b"".join(data)
    parts = [tensors["token_embd.weight"]]
    parts += [tensors[f"blk.{index}.{name}.weight"] for name in _ORDER for index in range(layers)]
    parts += [tensors["output_norm.weight"], np.zeros(context * width // heads, np.float32)]
    parts += [] if tied else [tensors["output.weight"]]
    header = struct.pack("<7i", width, ffn_width, layers, heads, kv_heads,
                         vocab if tied else -vocab, context)
    return header + b"".join(part.astype("<f4").tobytes() for part in parts)


def llama2c_groups(values: NDArray) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Quantize a matrix as version 2 does: codes, shape (groups, 32), and their scales."""
    groups = values.reshape(-1, _GROUP)
    scales = (np.abs(groups).max(axis=1) / np.float32(127)).astype("<f4")
    return np.rint(groups / scales[:, np.newaxis]).astype(np.int8), scales


def pieces(words: Mapping[str, float]) -> bytes:
    """Write a tokenizer of llama2.c: three controls, all bytes, and words with their scores."""
    tokens = [("<unk>", 0.0), ("\n<s>\n", 0.0), ("\n</s>\n", 0.0),
              *((f"<0x{byte:02X}>", 0.0) for byte in range(256)), *words.items()]
    data = [struct.pack("<i", max(len(token.encode()) for token, _ in tokens))]
    for token, score in tokens:
        data += [struct.pack("<fi", score, len(token.encode())), token.encode()]
    return b"".join(data)


# BitNet.

def bitnet_tensors(*, width: int = 128, ffn_width: int = 256, kv_width: int = 64, layers: int = 2,
                   vocab: int = _VOCAB, seed: int = 1) -> Tensors:
    """Make a BitNet by the names of a GGUF file: trits as int8, scales as ``NAME.scale``."""
    rng = np.random.default_rng(seed)
    tensors: Tensors = {
        "token_embd.weight": rng.normal(0, 1, (vocab, width)).astype(np.float32),
        "output_norm.weight": rng.uniform(0.5, 1.6, width).astype(np.float32)}
    for index in range(layers):
        shapes = {"attn_q": (width, width), "attn_k": (kv_width, width),
                  "attn_v": (kv_width, width), "attn_output": (width, width),
                  "ffn_gate": (ffn_width, width), "ffn_up": (ffn_width, width),
                  "ffn_down": (width, ffn_width)}
        for name, (rows, columns) in shapes.items():
            tensors[f"blk.{index}.{name}.weight"] = rng.integers(-1, 2, (rows, columns)).astype(
                np.int8)
            # A number that bf16 and fp16 hold: a checkpoint's scale is bf16, that of TQ1_0 fp16.
            scale = np.float32(rng.integers(128, 256) / 128 / 2 ** np.ceil(np.log2(columns) / 2))
            tensors[f"blk.{index}.{name}.scale"] = np.array([scale])
        for name, size in {"attn_norm": width, "attn_sub_norm": width, "ffn_norm": width,
                           "ffn_sub_norm": ffn_width}.items():
            tensors[f"blk.{index}.{name}.weight"] = rng.uniform(0.5, 1.6, size).astype(np.float32)
    return tensors


def bitnet_gguf(tensors: Tensors, *, heads: int = 4, kv_heads: int = 2, context: int = 64,
                kind: gguf.GGMLQuantizationType | None = None,
                keys: Mapping[str, object] | None = None,
                changed: Mapping[str, tuple[tuple[int, ...], int, bytes] | None] | None = None,
                ) -> bytes:
    """Write a BitNet with matrices of type ``kind``, or I2_S."""
    layers = sum(name.endswith(".attn_q.weight") for name in tensors)
    ffn_width, width = tensors["blk.0.ffn_gate.weight"].shape
    prefix = "bitnet-b1.58"
    facts: dict[str, object] = {
        "general.architecture": prefix, "general.name": "example",
        f"{prefix}.block_count": layers, f"{prefix}.embedding_length": width,
        f"{prefix}.feed_forward_length": ffn_width, f"{prefix}.attention.head_count": heads,
        f"{prefix}.attention.head_count_kv": kv_heads, f"{prefix}.context_length": context,
        f"{prefix}.rope.freq_base": 500000.0,
        f"{prefix}.attention.layer_norm_rms_epsilon": 1e-5, **vocabulary_keys()}
    stored: dict[str, tuple[tuple[int, ...], int, bytes] | None] = {}
    for name, values in tensors.items():
        if name.endswith(".scale"):
            continue
        if values.dtype != np.int8:
            half = name == "token_embd.weight"
            stored[name] = (values.shape, int(gguf.GGMLQuantizationType.F16) if half else _F32,
                            values.astype(np.float16 if half else np.float32).tobytes())
            continue
        scale = tensors[name.replace(".weight", ".scale")][0]
        stored[name] = (values.shape, _I2_S if kind is None else int(kind),
                        i2_s(values, scale) if kind is None else
                        gguf.quants.quantize(values * np.float32(scale), kind).tobytes())
    return _replaced(facts, stored, keys, changed)


def pack_quarters(trits: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Pack four quarters of the rows into each byte, as published checkpoints have them."""
    codes = (trits + 1).astype(np.uint8).reshape(4, -1, trits.shape[1])
    return codes[0] | codes[1] << 2 | codes[2] << 4 | codes[3] << 6


_CHECKPOINT_NAMES = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm",
    "attn_sub_norm": "self_attn.attn_sub_norm", "ffn_norm": "post_attention_layernorm",
    "ffn_sub_norm": "mlp.ffn_sub_norm"}


def checkpoint(tensors: Tensors, *, divides: bool = False) -> bytes:
    """Write a BitNet's tensors as a safetensors file; ``divides``: scales are one over theirs."""
    stored = {"model.embed_tokens.weight": tensors["token_embd.weight"],
              "model.norm.weight": tensors["output_norm.weight"]}
    for name, values in tensors.items():
        part, _, last = name.rpartition(".")
        if not part.startswith("blk."):
            continue
        _, index, field = part.split(".")
        full = f"model.layers.{index}.{_CHECKPOINT_NAMES[field]}"
        if last == "scale":
            stored[f"{full}.weight_scale"] = 1 / values if divides else values
        else:
            stored[f"{full}.weight"] = pack_quarters(values) if values.dtype == np.int8 else values
    return save(stored)


def llama_checkpoint(tensors: Tensors) -> bytes:
    """Write the tensors of :func:`llama_tensors` as a safetensors file.

    Rows of queries and keys are taken as they are: halves of a head in the place of neighbours.
    """
    whole = {"token_embd.weight": "model.embed_tokens.weight",
             "output_norm.weight": "model.norm.weight", "output.weight": "lm_head.weight"}
    stored = {}
    for name, values in tensors.items():
        if name in whole:
            stored[whole[name]] = values
        else:
            _, index, field, _ = name.split(".")
            stored[f"model.layers.{index}.{_CHECKPOINT_NAMES[field]}.weight"] = values
    return save(stored)


def llama_config(tensors: Tensors, kind: str = "Llama", *, heads: int = 4,
                 kv_heads: int = 2) -> dict[str, object]:
    """Return the configuration that belongs to :func:`llama_checkpoint`."""
    ffn_width, width = tensors["blk.0.ffn_gate.weight"].shape
    return {"architectures": [f"{kind}ForCausalLM"], "model_type": kind.lower(),
            "vocab_size": len(tensors["token_embd.weight"]), "hidden_size": width,
            "intermediate_size": ffn_width,
            "num_hidden_layers": sum(name.endswith(".attn_q.weight") for name in tensors),
            "num_attention_heads": heads, "num_key_value_heads": kv_heads,
            "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
            "bos_token_id": 0, "eos_token_id": 0}


def bitnet_config(tensors: Tensors, *, divides: bool = False) -> dict[str, object]:
    """Return the configuration that belongs to :func:`checkpoint`."""
    ffn_width, width = tensors["blk.0.ffn_gate.weight"].shape
    return {"architectures": ["BitNetForCausalLM"], "model_type": "bitnet",
            "vocab_size": len(tensors["token_embd.weight"]), "hidden_size": width,
            "intermediate_size": ffn_width,
            "num_hidden_layers": sum(name.endswith(".attn_q.weight") for name in tensors),
            "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_act": "relu2",
            "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "max_position_embeddings": 64,
            "tie_word_embeddings": True, "bos_token_id": 0, "eos_token_id": 0,
            "quantization_config": {
                "quant_method": "bitnet", "quantization_mode": "offline",
                "linear_class": "bitlinear" if divides else "autobitlinear"}}


def tokenizer_json() -> str:
    """Return a byte-level BPE of 257 tokens as the file that checkpoints have."""
    tokens = ["<|endoftext|>", *byte_symbols()]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer.to_str()


# A model without attention.

def tiny_vocabulary() -> Vocabulary:
    """All bytes, two merges and the end of a document: 259 tokens."""
    return Vocabulary(tokens=("<|endoftext|>", *byte_symbols(), "th", "the"),
                      merges=("t h", "th e"), end_of_document=0)


def tiny_model(*, width: int = 256, ffn_width: int = 512, layers: int = 2,
               seed: int = 5) -> TernaryLM:
    """Make a random model of the smallest width that a file can hold."""
    rng = np.random.default_rng(seed)
    vocabulary = tiny_vocabulary()

    def matrix(rows: int, columns: int) -> TernaryMatrix:
        return TernaryMatrix(rng.integers(-1, 2, (rows, columns), dtype=np.int8),
                             to_bf16(rng.uniform(0.01, 0.1)))

    def layer() -> Layer:
        bias = np.array([to_bf16(value) for value in rng.uniform(0, 4, width)], np.float32)
        return Layer(forget=matrix(width, width), candidate=matrix(width, width),
                     gate=matrix(width, width), output=matrix(width, width),
                     ffn_gate=matrix(ffn_width, width), ffn_up=matrix(ffn_width, width),
                     ffn_down=matrix(width, ffn_width), forget_bias=bias)

    return TernaryLM(
        name="tiny",
        embedding=rng.integers(-13, 14, (len(vocabulary.tokens), width), dtype=np.int8),
        embedding_scale=to_bf16(0.07), layers=tuple(layer() for _ in range(layers)),
        logit_scales={"lmul": to_bf16(0.011), "float": to_bf16(0.01)}, vocabulary=vocabulary,
        metadata={"license": "Apache-2.0", "datasets": ("first", "second")})
