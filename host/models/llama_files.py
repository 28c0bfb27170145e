# Ref: H. Touvron et al., "LLaMA: Open and Efficient Foundation Language Models", 2023
# Id: arXiv:2302.13971

"""The Llama family in files: GGUF, checkpoints with safetensors, and those of llama2.c.

What an architecture has is in two tables, one for GGUF (llama.cpp, src/llama-model.cpp) and one for
checkpoints (``transformers``, the configuration and the modules of each). A file may leave out what
its architecture has by default; what it holds beyond that is refused by whoever looks for what
nobody has read.

GGUF files of some architectures, and those of llama2.c, turn neighbouring elements of a head as a
pair. The network wants the pairs' first elements in front of their second ones, so rows of queries
and keys are put in that order, which changes no score.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from host.files.gguf import GGUFFile
from host.files.llama2c import Llama2cFile
from host.files.safetensors import Checkpoint
from host.files.tensors import TernaryMatrix
from host.models.base import Source
from host.models.llama import ACTIVATIONS, AnyMatrix, Layer, Layers, LlamaLM, finished
from host.models.rope import BASES, Rope, rope_of_checkpoint
from host.models.transformer import (
    MULTIPLIERS,
    Attention,
    Floats,
    checkpoint_attention,
    gguf_attention,
    layer_shapes,
)

__all__ = ["CHECKPOINTS", "GGUFS", "attention_of", "read"]

_QKV = ("attn_q", "attn_k", "attn_v")
_ALL = (*_QKV, "attn_output", "ffn_gate", "ffn_up", "ffn_down")

# Heads with norms of their own: each takes some instructions and a vector of the model.
_MOST_NORMED = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class _GGUF:
    """What an architecture of GGUF files has.

    Attributes
    ----------
    neighbours : bool
        Whether neighbouring elements of a head are a pair.
    biases : tuple of str
        Matrices that may have one.
    head_norms : bool
        Whether each head of queries and keys has a norm.
    unturned : int
        Every so many layers, one turns nothing; 0 is none.
    factors : bool
        Whether the keys of Granite's multipliers are its own.
    fused : bool
        Whether queries, keys and values are one matrix, and so gate and up.
    gemma : bool
        Whether the gate is a GELU, and the embedding is multiplied by the root of its width.
    windows : bool
        Whether it is Gemma 3: norms behind each part, and layers with a sliding window, but for
        each sixth, which have a rotary embedding of their own.
    """

    neighbours: bool
    biases: tuple[str, ...] = ()
    head_norms: bool = False
    unturned: int = 0
    factors: bool = False
    fused: bool = False
    gemma: bool = False
    windows: bool = False


#: Architectures by ``general.architecture``.
GGUFS: Mapping[str, _GGUF] = {
    "llama": _GGUF(neighbours=True, biases=_ALL),
    "granite": _GGUF(neighbours=True, biases=_ALL, factors=True),
    "qwen2": _GGUF(neighbours=False, biases=(*_QKV, "attn_output")),
    "qwen3": _GGUF(neighbours=False, head_norms=True),
    # The step is no key: llama.cpp has it as a constant.
    "smollm3": _GGUF(neighbours=True, unturned=4),
    "phi3": _GGUF(neighbours=False, fused=True),
    "gemma": _GGUF(neighbours=False, gemma=True),
    "gemma3": _GGUF(neighbours=False, head_norms=True, gemma=True, windows=True),
}
# Layers of Gemma 3 in llama.cpp, as constants: each sixth attends to all tokens; the largest model
# has another factor of its scores, and is known by its number of layers.
_EACH, _LARGEST_GEMMA = 6, 62
_LOCAL_BASE = 10000.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Checkpoint:
    """What an architecture of checkpoints has.

    Attributes
    ----------
    name : str
        Entry of ``architectures``.
    base : float
        Of the rotary embedding, where the configuration has none.
    head_size : int, optional
        Of a head, where the configuration has none.
    biases : tuple of str
        Matrices that have one, whatever the configuration says.
    attention_bias, mlp_bias : bool
        Whether these keys of the configuration say so of other matrices.
    head_norms : bool
        Whether each head of queries and keys has a norm.
    unturned : bool
        Whether ``no_rope_layers`` says which layers turn nothing.
    factors : bool
        Whether it has Granite's multipliers.
    window : str, optional
        Key that must be true for ``sliding_window`` to count, ``""`` if none must.
    fused, gemma, windows : bool
        As of :class:`_GGUF`; gains of Gemma are one more than the file's.
    """

    name: str
    base: float = 10000.0
    head_size: int | None = None
    biases: tuple[str, ...] = ()
    attention_bias: bool = True
    mlp_bias: bool = False
    head_norms: bool = False
    unturned: bool = False
    factors: bool = False
    window: str | None = None
    fused: bool = False
    gemma: bool = False
    windows: bool = False


#: Architectures by ``model_type``.
CHECKPOINTS: Mapping[str, _Checkpoint] = {
    "llama": _Checkpoint(name="LlamaForCausalLM", mlp_bias=True),
    "mistral": _Checkpoint(name="MistralForCausalLM", attention_bias=False, window=""),
    "qwen2": _Checkpoint(name="Qwen2ForCausalLM", biases=_QKV, attention_bias=False,
                         window="use_sliding_window"),
    "qwen3": _Checkpoint(name="Qwen3ForCausalLM", head_size=128, head_norms=True,
                         window="use_sliding_window"),
    "smollm3": _Checkpoint(name="SmolLM3ForCausalLM", base=2000000.0, mlp_bias=True, unturned=True,
                           window="use_sliding_window"),
    "granite": _Checkpoint(name="GraniteForCausalLM", mlp_bias=True, factors=True),
    "phi3": _Checkpoint(name="Phi3ForCausalLM", attention_bias=False, window="", fused=True),
    "gemma": _Checkpoint(name="GemmaForCausalLM", head_size=256, gemma=True),
    "gemma3_text": _Checkpoint(name="Gemma3ForCausalLM", base=1000000.0, head_size=256,
                               head_norms=True, window="", gemma=True, windows=True),
}

# Tensor of a checkpoint behind "model.layers.N.", by field of Layer.
_NAMES = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
          "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
          "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
          "ffn_down": "mlp.down_proj", "attn_q_norm": "self_attn.q_norm",
          "attn_k_norm": "self_attn.k_norm", "attn_qkv": "self_attn.qkv_proj",
          "ffn_gate_up": "mlp.gate_up_proj"}
# ... and of Gemma 3, which has four norms.
_FOUR_NORMS = {"post_attention_norm": "post_attention_layernorm",
               "ffn_norm": "pre_feedforward_layernorm",
               "post_ffw_norm": "post_feedforward_layernorm"}


def attention_of(source: Source) -> Attention:
    """Read the shape of a model's attention, and no matrix.

    Raises
    ------
    ModelFileError
        As :func:`read` does.
    """
    if isinstance(source, Llama2cFile):
        # The format has no place for the last two; these are llama2.c's own.
        return Attention(heads=source.heads, kv_heads=source.kv_heads,
                         head_size=source.width // source.heads, context=source.context,
                         rope=Rope(10000.0), epsilon=1e-5)
    if isinstance(source, GGUFFile):
        prefix = str(source.architecture)
        attention = gguf_attention(source, prefix, scaled=GGUFS[prefix].factors)
        if GGUFS[prefix].windows:
            multiplier = attention.multiplier
            if source.positive_int(f"{prefix}.block_count") == _LARGEST_GEMMA:
                multiplier = (attention.heads / source.positive_int(
                    f"{prefix}.embedding_length")) ** 0.5
            attention = dataclasses.replace(attention, multiplier=multiplier, local=Rope(
                source.positive_float(f"{prefix}.rope.freq_base_swa", _LOCAL_BASE, **BASES)))
        return attention
    assert isinstance(source, Checkpoint)
    facts = CHECKPOINTS[str(source.architecture)]
    attention = checkpoint_attention(source, base=facts.base, size=facts.head_size,
                                     window=_window(source, facts),
                                     part="full_attention" if facts.windows else "")
    if facts.windows:
        base = source.positive_float("rope_local_base_freq", _LOCAL_BASE, **BASES)
        local = Rope(base)
        if source.value("rope_parameters.sliding_attention") is not None:
            local = rope_of_checkpoint(source, attention.head_size, base, "sliding_attention")
        multiplier = source.positive_float("query_pre_attn_scalar", 256.0, **MULTIPLIERS) ** -0.5
        attention = dataclasses.replace(attention, multiplier=multiplier, local=local)
    if facts.factors:
        attention = dataclasses.replace(attention, multiplier=_factor(source,
                                                                      "attention_multiplier"))
    return attention


def _window(file: Checkpoint, facts: _Checkpoint) -> int | None:
    """Return how many tokens a token of some layer attends to, None if it is all of them."""
    kinds = _layer_kinds(file, facts)
    window = file.value("sliding_window")
    used = facts.window is not None and window is not None
    if facts.window:
        file.must_be(facts.window, False, True)
        used = used and file.value(facts.window) is True
    if kinds is not None:
        if not isinstance(kinds, list) or not all(
                kind in ("full_attention", "sliding_attention") for kind in kinds):
            raise file.error(f"key layer_types of config.json must hold 'full_attention' and "
                             f"'sliding_attention' alone, not {kinds!r}"[:300])
        used = "sliding_attention" in kinds and window is not None
    # Layers from this one on would slide: the context has room for none anyway.
    file.value("max_window_layers")
    return file.positive_int("sliding_window") if used else None


def _layer_kinds(file: Checkpoint, facts: _Checkpoint) -> Any:
    """Return what ``layer_types`` holds, or what a configuration without it means."""
    kinds = file.value("layer_types")
    file.value("_sliding_window_pattern")       # which layer_types, if it is there, has said
    if kinds is None and facts.windows:
        # With or without the underscore: as written, and as transformers 5 saves it.
        each = file.positive_int("sliding_window_pattern",
                                 file.positive_int("_sliding_window_pattern", _EACH))
        kinds = ["full_attention" if (index + 1) % each == 0 else "sliding_attention"
                 for index in range(min(file.positive_int("num_hidden_layers"), 1 << 16))]
    return kinds


def _factor(file: Checkpoint | GGUFFile, key: str) -> float:
    return file.positive_float(key, 1.0, **MULTIPLIERS)


class _Tensors(Protocol):
    """What reads the tensors of one layer, by the names of :class:`Layer`."""

    def vector(self, name: str, size: int) -> Floats:
        """Return gains."""

    def matrix(self, name: str, shape: tuple[int, int]) -> AnyMatrix:
        """Return a matrix."""

    def bias(self, name: str, size: int) -> Floats | None:
        """Return a matrix' bias, if it has one."""


@dataclasses.dataclass(frozen=True)
class _Shape:
    """What layers are made of, whatever file they are in."""

    attention: Attention
    width: int
    ffn_width: int
    head_norms: bool
    neighbours: bool = False
    residual: float = 1.0
    fused: bool = False
    post_norms: bool = False

    def layer(self, tensors: _Tensors, *, turned: bool = True, local: bool = False) -> Layer:
        """Read a layer."""
        shape = self.attention
        heads = {"attn_q": shape.heads, "attn_k": shape.kv_heads}
        norms = ("post_attention_norm", "post_ffw_norm") if self.post_norms else ()
        fields: dict[str, Any] = {name: tensors.vector(name, self.width)
                                  for name in ("attn_norm", "ffn_norm", *norms)}
        biases = {}
        sizes = layer_shapes(shape, self.width, self.ffn_width)
        parts = self._parts(tensors, sizes) if self.fused else {}
        for name, size in sizes.items():
            matrix = parts[name] if name in parts else tensors.matrix(name, size)
            bias = tensors.bias(name, size[0])
            if name in heads and self.neighbours:
                matrix = _split_pairs(matrix, heads[name])
                bias = bias if bias is None else _split_rows(bias, heads[name])
            if name in ("attn_output", "ffn_down") and self.residual != 1:
                matrix = (matrix * np.float32(self.residual)
                          if not isinstance(matrix, TernaryMatrix) else dataclasses.replace(
                              matrix, scale=matrix.scale * self.residual))
                bias = bias if bias is None else bias * np.float32(self.residual)
            fields[name] = matrix
            if bias is not None:
                biases[name] = bias
        if self.head_norms:
            fields |= {name: tensors.vector(name, shape.head_size)
                       for name in ("attn_q_norm", "attn_k_norm")}
        return Layer(**fields, biases=biases, turned=turned, local=local)

    def _parts(self, tensors: _Tensors,
               sizes: Mapping[str, tuple[int, int]]) -> dict[str, AnyMatrix]:
        """Read matrices that hold several, one below the other."""
        found: dict[str, AnyMatrix] = {}
        for whole, names in (("attn_qkv", _QKV), ("ffn_gate_up", ("ffn_gate", "ffn_up"))):
            rows = [sizes[name][0] for name in names]
            matrix = tensors.matrix(whole, (sum(rows), self.width))
            assert not isinstance(matrix, TernaryMatrix)
            found |= zip(names, np.split(matrix, np.cumsum(rows)[:-1]), strict=True)
        return found


def _split_rows(values: np.ndarray, heads: int) -> np.ndarray:
    """Put the first rows of each head's pairs in front of their second ones."""
    pairs = values.reshape(heads, len(values) // heads // 2, 2, *values.shape[1:])
    return pairs.swapaxes(1, 2).reshape(values.shape)


def _split_pairs(matrix: AnyMatrix, heads: int) -> AnyMatrix:
    if isinstance(matrix, TernaryMatrix):
        return dataclasses.replace(matrix, trits=_split_rows(matrix.trits, heads))
    return _split_rows(matrix, heads)


def read(source: Source) -> LlamaLM:
    """Read and check a model of the family.

    Raises
    ------
    ModelFileError
        If a key or a tensor is missing or not as it must be, or an option is not supported.
    """
    attention = attention_of(source)
    if isinstance(source, Llama2cFile):
        return _read_llama2c(source, attention)
    if isinstance(source, GGUFFile):
        return _read_gguf(source, attention)
    assert isinstance(source, Checkpoint)
    return _read_checkpoint(source, attention)


def _checked(source: Source, attention: Attention, head_norms: bool) -> None:
    if head_norms and attention.heads > _MOST_NORMED:
        raise source.error(f"heads with norms of their own must be at most {_MOST_NORMED}, "
                           f"not {attention.heads}")


def _read_llama2c(file: Llama2cFile, attention: Attention) -> LlamaLM:
    def read_layer(index: int) -> Layer:
        fields = {name: file.arrays[name][index] for name in ("attn_norm", "ffn_norm", *_ALL)}
        fields |= {name: _split_rows(fields[name], heads) for name, heads in (
            ("attn_q", file.heads), ("attn_k", file.kv_heads))}
        return Layer(**fields)

    return finished(file, name=file.path.stem, vocabulary=file.vocabulary(), attention=attention,
                    layers=Layers(file.layers, read_layer),
                    **{name: file.arrays[name] for name in ("embedding", "head", "norm")})


# GGUF.

@dataclasses.dataclass(frozen=True)
class _GGUFTensors:
    file: GGUFFile
    layer: int
    biases: tuple[str, ...]
    ternary: bool

    def _name(self, name: str) -> str:
        return f"blk.{self.layer}.{name}"

    def vector(self, name: str, size: int) -> Floats:
        return self.file.vector(f"{self._name(name)}.weight", size)

    def matrix(self, name: str, shape: tuple[int, int]) -> AnyMatrix:
        full = f"{self._name('ffn_up' if name == 'ffn_gate_up' else name)}.weight"
        if self.ternary:
            return self.file.ternary(full, shape, exact=False)
        return self.file.matrix(full, shape)

    def bias(self, name: str, size: int) -> Floats | None:
        full = f"{self._name(name)}.bias"
        if name not in self.biases or not self.file.has(full):
            return None
        return self.file.vector(full, size)


def _read_gguf(file: GGUFFile, attention: Attention) -> LlamaLM:
    prefix = str(file.architecture)
    facts = GGUFS[prefix]
    _checked(file, attention, facts.head_norms)
    width = file.positive_int(f"{prefix}.embedding_length")
    ffn_width = file.positive_int(f"{prefix}.feed_forward_length")
    count = file.positive_int(f"{prefix}.block_count")
    vocabulary = file.vocabulary()
    vocab = vocabulary.size
    factors = {name: _factor(file, f"{prefix}.{name}") if facts.factors else 1.0
               for name in ("embedding_scale", "residual_scale", "logit_scale")}
    shape = _Shape(attention, width, ffn_width, facts.head_norms, facts.neighbours,
                   factors["residual_scale"], facts.fused, facts.windows)
    # Trits stay trits: with gains in their columns they would need several planes.
    ternary = all(file.is_ternary(f"blk.{index}.{name}.weight")
                  for index in range(min(count, 1 << 16)) for name in _ALL)

    def read_layer(index: int) -> Layer:
        return shape.layer(_GGUFTensors(file, index, facts.biases, ternary),
                           turned=not facts.unturned or (index + 1) % facts.unturned != 0,
                           local=facts.windows and (index + 1) % _EACH != 0)

    layers = Layers(count, read_layer)
    for _ in layers:        # which checks them
        pass
    embedding = file.matrix("token_embd.weight", (vocab, width))
    head = embedding
    if file.has("output.weight"):
        head = file.matrix("output.weight", (vocab, width))
    norm = file.vector("output_norm.weight", width) / np.float32(factors["logit_scale"])
    return finished(file, name=str(file.general().get("name", file.path.stem)),
                    vocabulary=vocabulary, embedding=embedding, head=head, norm=norm,
                    layers=layers, attention=attention,
                    activation="gelu_pytorch_tanh" if facts.gemma else "silu",
                    embedding_factor=width ** 0.5 if facts.gemma else factors["embedding_scale"])


# Checkpoints.

@dataclasses.dataclass(frozen=True)
class _CheckpointTensors:
    file: Checkpoint
    layer: int
    biases: tuple[str, ...]
    ternary: Callable[[str, tuple[int, int]], TernaryMatrix] | None
    facts: _Checkpoint

    def _name(self, name: str) -> str:
        names = {**_NAMES, **_FOUR_NORMS} if self.facts.windows else _NAMES
        return f"model.layers.{self.layer}.{names[name]}"

    def vector(self, name: str, size: int) -> Floats:
        gains = self.file.tensor(f"{self._name(name)}.weight", (size,))
        return gains + np.float32(1) if self.facts.gemma else gains

    def matrix(self, name: str, shape: tuple[int, int]) -> AnyMatrix:
        if self.ternary:
            return self.ternary(self._name(name), shape)
        return self.file.tensor(f"{self._name(name)}.weight", shape)

    def bias(self, name: str, size: int) -> Floats | None:
        if name not in self.biases:
            return None
        return self.file.tensor(f"{self._name(name)}.bias", (size,))


def _read_checkpoint(file: Checkpoint, attention: Attention) -> LlamaLM:
    facts = CHECKPOINTS[str(file.architecture)]
    _checked(file, attention, facts.head_norms)
    file.must_be("architectures", [facts.name])
    activation = _activation(file, facts)
    if facts.gemma:
        file.must_be("use_bidirectional_attention", False, None)
        for key in ("final_logit_softcapping", "attn_logit_softcapping"):
            file.must_be(key, None)
    width, ffn_width = file.positive_int("hidden_size"), file.positive_int("intermediate_size")
    count, vocab = file.positive_int("num_hidden_layers"), file.positive_int("vocab_size")
    vocabulary = file.vocabulary(vocab)
    biases = list(facts.biases)
    for said, key, names in ((facts.attention_bias, "attention_bias", _ALL[:4]),
                             (facts.mlp_bias, "mlp_bias", _ALL[4:])):
        if said:
            file.must_be(key, False, True)
            biases += names if file.value(key) else ()
    factors = {name: _factor(file, name) if facts.factors else 1.0
               for name in ("embedding_multiplier", "residual_multiplier", "logits_scaling")}
    turned = _turned(file, count) if facts.unturned else (True,) * min(count, 1 << 16)
    shape = _Shape(attention, width, ffn_width, facts.head_norms,
                   residual=factors["residual_multiplier"], fused=facts.fused,
                   post_norms=facts.windows)
    kinds = _layer_kinds(file, facts) if facts.windows else None
    ternary = file.ternary_reader()

    def read_layer(index: int) -> Layer:
        return shape.layer(_CheckpointTensors(file, index, tuple(biases), ternary, facts),
                           turned=index >= len(turned) or turned[index],
                           local=kinds is not None and index < len(kinds)
                           and kinds[index] == "sliding_attention")

    layers = Layers(count, read_layer)
    for _ in layers:        # which checks them
        pass
    embedding = file.tensor("model.embed_tokens.weight", (vocab, width))
    head = embedding
    # Classes differ in what they tie by default; files do not hold what is tied.
    if file.has("lm_head.weight"):
        head = file.tensor("lm_head.weight", (vocab, width))
    if file.value("tie_word_embeddings", False) is True and not np.array_equal(head, embedding):
        raise file.error("tensor lm_head.weight must be that of the embedding, as key "
                         "tie_word_embeddings of config.json says")
    norm = file.tensor("model.norm.weight", (width,)) / np.float32(factors["logits_scaling"])
    if facts.gemma:
        norm = norm + np.float32(1)
    return finished(file, name=file.path.resolve().name, vocabulary=vocabulary,
                    embedding=embedding, head=head, norm=norm, layers=layers,
                    attention=attention, activation=activation, embedding_factor=width ** 0.5
                    if facts.gemma else factors["embedding_multiplier"])


def _activation(file: Checkpoint, facts: _Checkpoint) -> str:
    """Return what the gate goes through."""
    found = file.value("hidden_act", "silu")
    key = "hidden_act"
    if facts.gemma:
        # The older key said "gelu", and the class computes its approximation all the same.
        key = "hidden_activation"
        found = file.value(key) or "gelu_pytorch_tanh"
    if not isinstance(found, str) or found not in ACTIVATIONS:
        raise file.error(f"key {key} of config.json must be {' or '.join(map(repr, ACTIVATIONS))}, "
                         f"not {found!r}"[:300])
    return found


def _turned(file: Checkpoint, count: int) -> tuple[bool, ...]:
    """Return of each layer whether it turns queries and keys."""
    found = file.value("no_rope_layers")
    every = file.positive_int("no_rope_layer_interval", 4)
    if found is None:
        return tuple((index + 1) % every != 0 for index in range(min(count, 1 << 16)))
    if not isinstance(found, list) or len(found) != count or not all(
            type(one) is int and one in (0, 1) for one in found):
        raise file.error(f"key no_rope_layers of config.json must hold 0 or 1 for each of {count} "
                         f"layers, not {found!r}"[:300])
    return tuple(one == 1 for one in found)
