"""Nothing that a file holds is left out without a word: it counts, or an error names it."""

import json
import re

import gguf
import numpy as np
import pytest
from safetensors.numpy import load, save

from host.files.errors import ModelFileError
from host.models.examples import (
    bitnet_config,
    bitnet_gguf,
    bitnet_tensors,
    checkpoint,
    llama_checkpoint,
    llama_config,
    llama_gguf,
    llama_tensors,
    tokenizer_json,
)
from host.models.registry import read_model
from sim.golden.arithmetic import ARITHMETICS
from sim.golden.evaluate import ExactProducts, GoldenLM, model_matrices

TOKENS = np.random.default_rng(3).integers(0, 259, 12)
RNG = np.random.default_rng(4)


@pytest.fixture(scope="module")
def tensors():
    return llama_tensors()


def vector(size):
    return (size,), 0, RNG.normal(0, 1, size).astype("<f4").tobytes()


def logits(model):
    model = model.reference()
    lm = GoldenLM(model, ARITHMETICS["float"], ExactProducts(model_matrices(model)))
    return lm.logits(lm.forward(TOKENS[np.newaxis], lm.start()))


@pytest.fixture
def read(tmp_path, tensors):
    """Return what writes a Llama as a GGUF file, and reads it."""
    def make(**options):
        path = tmp_path / "model.gguf"
        path.write_bytes(llama_gguf(tensors, **options))
        return read_model(path)
    return make


@pytest.fixture
def folder(tmp_path, tensors):
    """Return what writes a Llama as a checkpoint, with changes, and reads it."""
    def make(config=None, extra=None):
        stored = load(llama_checkpoint(tensors)) | (extra or {})
        (tmp_path / "model.safetensors").write_bytes(save(stored))
        facts = {key: value for key, value in {**llama_config(tensors), **(config or {})}.items()
                 if value is not None}
        (tmp_path / "config.json").write_text(json.dumps(facts))
        (tmp_path / "tokenizer.json").write_text(tokenizer_json())
        return read_model(tmp_path)
    return make


class TestGGUF:
    @pytest.mark.parametrize(("name", "size"), [
        ("attn_q", 64), ("attn_k", 32), ("attn_v", 32), ("attn_output", 64), ("ffn_gate", 96),
        ("ffn_up", 96), ("ffn_down", 64)])
    @pytest.mark.parametrize("layer", [0, 1])
    def test_biases_count(self, read, name, size, layer):
        plain, changed = read(), read(changed={f"blk.{layer}.{name}.bias": vector(size)})
        # Scores have a softmax: a bias of the keys moves them, unless they are turned by nothing.
        assert np.abs(logits(changed) - logits(plain)).max() > 0.05

    def test_scaling_without_a_type_is_linear(self, read):
        """As llama.cpp has it; the same of the key that it had before."""
        plain = logits(read())
        expected = logits(read(keys={"llama.rope.scaling.type": "linear",
                                     "llama.rope.scaling.factor": 4.0}))
        assert np.abs(expected - plain).max() > 0.05
        for keys in ({"llama.rope.scaling.factor": 4.0}, {"llama.rope.scale_linear": 4.0}):
            np.testing.assert_array_equal(logits(read(keys=keys)), expected)
        for keys in ({"llama.rope.scaling.factor": 4.0, "llama.rope.scaling.type": "none"},
                     {"llama.rope.scale_linear": 0.0}):
            np.testing.assert_array_equal(logits(read(keys=keys)), plain)

    @pytest.mark.parametrize("keys", [
        {"llama.rope.freq_base": 10000}, {"llama.attention.head_count_kv": [2, 2]},
        {"llama.feed_forward_length": [96, 96]}])
    def test_numbers_as_others_write_them(self, read, keys):
        np.testing.assert_array_equal(logits(read(keys=keys)), logits(read()))

    def test_layers_of_their_own(self, read):
        with pytest.raises(ModelFileError, match=r"key llama\.attention\.head_count_kv must be a "
                                                 r"positive integer, not \[2, 1\]$"):
            read(keys={"llama.attention.head_count_kv": [2, 1]})

    @pytest.mark.parametrize("name", [
        "blk.0.attn_q_norm.weight", "blk.1.attn_k_norm.weight", "rope_factors_long.weight",
        "blk.0.attn_sub_norm.weight", "blk.0.attn_q.scale", "blk.2.attn_norm.weight",
        "other.weight"])
    def test_tensors(self, read, name):
        with pytest.raises(ModelFileError, match=(
                f": tensor {re.escape(name)} is not known for architecture 'llama', and a model "
                f"without it could be another one$")):
            read(changed={name: vector(16)})

    @pytest.mark.parametrize(("key", "value"), [
        ("llama.attention.clamp_kqv", 8.0), ("llama.expert_count", 8),
        ("llama.attn_logit_softcapping", 50.0), ("llama.residual_scale", 0.5),
        ("llama.attention.scale", 0.5), ("tokenizer.ggml.precompiled_charsmap", [1, 2]),
        ("tokenizer.ggml.remove_extra_whitespaces", True)])
    def test_keys(self, read, key, value):
        with pytest.raises(ModelFileError, match=f": key {re.escape(key)} is not known for arch"):
            read(keys={key: value})

    def test_how_many(self, read):
        with pytest.raises(ModelFileError, match=r"key a is not known for architecture 'llama' "
                                                 r"\(nor 2 more\), and"):
            read(keys={"a": 1, "b": 2}, changed={"c": vector(1)})

    def test_layers_beyond_the_last_one(self, read):
        with pytest.raises(ModelFileError, match=r"tensor blk\.1\.\w+\.weight is not known for "
                                                 r"architecture 'llama' \(nor 8 more\)"):
            read(keys={"llama.block_count": 1})

    @pytest.mark.parametrize(("key", "value"), [
        ("general.url", "https://example.org"), ("general.quantization_version", 2),
        ("general.file_type", 1), ("llama.vocab_size", 259), ("llama.expert_count", 0),
        ("tokenizer.chat_template", "{{ messages }}"), ("tokenizer.ggml.padding_token_id", 0),
        ("quantize.imatrix.file", "some.dat"), ("llama.rope.scaling.finetuned", False)])
    def test_what_is_harmless(self, read, key, value):
        np.testing.assert_array_equal(logits(read(keys={key: value})), logits(read()))

    def test_architectures_without_biases(self, tmp_path, tensors):
        for architecture, name in (("qwen2", "ffn_up"), ("smollm3", "attn_q"),
                                   ("qwen3", "attn_q")):
            path = tmp_path / "model.gguf"
            norms = {f"blk.{layer}.{field}.weight": vector(16) for layer in (0, 1)
                     for field in ("attn_q_norm", "attn_k_norm")} if architecture == "qwen3" else {}
            path.write_bytes(llama_gguf(tensors, architecture=architecture, changed={
                **norms, f"blk.1.{name}.bias": vector(96 if name == "ffn_up" else 64)}))
            with pytest.raises(ModelFileError, match=rf"tensor blk\.1\.{name}\.bias is not known "
                                                     f"for architecture '{architecture}'"):
                read_model(path)

    @pytest.mark.parametrize("kind", [gguf.GGMLQuantizationType.TQ1_0, None])
    def test_a_type_without_a_mark(self, tmp_path, kind):
        """I2_S of ARM and of x86 cannot be told apart: the model says how it was read."""
        path = tmp_path / "model.gguf"
        path.write_bytes(bitnet_gguf(bitnet_tensors(width=256, ffn_width=256, kv_width=128),
                                     kind=kind))
        notes = read_model(path).notes
        assert any("on x86" in note for note in notes) == (kind is None)

    def test_half_a_file_of_zeros(self, tmp_path, tensors):
        path = tmp_path / "model.gguf"
        data = llama_gguf(tensors)
        path.write_bytes(data[:len(data) // 2] + bytes(len(data) - len(data) // 2))
        with pytest.raises(ModelFileError, match=r"the last \d+ bytes are zero: the file was not "
                                                 r"written, or not downloaded, to its end$"):
            read_model(path)

    def test_a_matrix_of_zeros(self, tmp_path, tensors):
        path = tmp_path / "model.gguf"
        name = "blk.0.ffn_up.weight"
        path.write_bytes(llama_gguf(tensors | {name: 0 * tensors[name]}))
        with pytest.raises(ModelFileError, match=f"tensor {name} is zero everywhere"):
            read_model(path)


class TestCheckpoint:
    def test_as_the_gguf_file(self, folder, tmp_path, tensors):
        """But for the order of the pairs."""
        found = logits(folder())
        neighbours = {}
        for name, values in tensors.items():
            heads = {"attn_q": 4, "attn_k": 2}.get(name.split(".")[-2])
            if heads:
                values = values.reshape(heads, 2, -1, 64).swapaxes(1, 2).reshape(values.shape)
            neighbours[name] = np.ascontiguousarray(values)
        (tmp_path / "model.gguf").write_bytes(llama_gguf(neighbours))
        np.testing.assert_allclose(logits(read_model(tmp_path / "model.gguf")), found, rtol=0,
                                   atol=1e-4)

    @pytest.mark.parametrize(("config", "key"), [
        ({"attn_logit_softcapping": 30.0}, "attn_logit_softcapping"),
        ({"is_decoder": 7}, "is_decoder"), ({"use_sliding_window": True}, "use_sliding_window"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                           "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
                           "other": 1}}, "rope_scaling.other"),
        ({"rope_scaling": {"rope_type": "default", "factor": 8.0}}, "rope_scaling.factor"),
        ({"residual_multiplier": 0.5}, "residual_multiplier")])
    def test_keys(self, folder, config, key):
        with pytest.raises(ModelFileError, match=f": key {re.escape(key)} is not known for arch"):
            folder(config)

    @pytest.mark.parametrize(("config", "error"), [
        ({"hidden_act": ["silu"]}, "key hidden_act of config.json must be 'silu' or "
                                   "'gelu_pytorch_tanh', not ['silu']"),
        ({"hidden_act": "gelu"}, "key hidden_act of config.json must be 'silu' or "
                                 "'gelu_pytorch_tanh', not 'gelu'"),
        ({"layer_types": [["full_attention"]]},
         "key layer_types of config.json must hold 'full_attention' and 'sliding_attention' alone, "
         "not [['full_attention']]"),
        ({"architectures": ["LlamaForSequenceClassification"]},
         "key architectures of config.json must be ['LlamaForCausalLM'], "
         "not ['LlamaForSequenceClassification']"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}},
         "key rope_scaling.rope_type of config.json must be 'default' or 'linear' or 'llama3' or "
         "'yarn', not 'dynamic'"),
        ({"rope_scaling": {"type": "linear", "rope_type": "yarn", "factor": 2.0}},
         "keys rope_type and type in rope_scaling of config.json must be the same, not 'yarn' and "
         "'linear'"),
        ({"rope_scaling": {"rope_type": "linear"}},
         "key rope_scaling.factor of config.json must be a positive number, not None"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0,
                           "high_freq_factor": 4.0}},
         "key rope_scaling.high_freq_factor of config.json must be above low_freq_factor, 4.0, "
         "not 4.0"),
        ({"rope_scaling": [1]}, "key rope_scaling of config.json must be an object or null, "
                                "not [1]"),
        ({"partial_rotary_factor": 0.5}, "key partial_rotary_factor of config.json must be 1.0 or "
                                         "1 or None, not 0.5"),
        ({"num_attention_heads": 3, "num_key_value_heads": 3},
         "key num_attention_heads of config.json must divide hidden_size, 64, into heads of an "
         "even size, and be a multiple of num_key_value_heads, 3, not 3"),
        ({"head_dim": 1 << 20}, "must not have 4 heads of 1048576 elements: the matrices of so "
                                "many are not in a file of {bytes} bytes"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}},
         "key quantization_config of config.json must have the quant_method 'bitnet', not 'gptq': "
         "the weights of other methods are not supported in safetensors; a GGUF file of the model "
         "may be"),
        ({"attention_bias": "yes"}, "key attention_bias of config.json must be False or True, "
                                    "not 'yes'"),
        ({"model_type": "gemma2"},
         "key model_type of config.json must be 'bitnet' or 'gemma' or 'gemma3_text' or 'granite' "
         "or 'hgrn_bit' or 'llama' or 'mistral' or 'phi3' or 'qwen2' or 'qwen3' or 'smollm3', "
         "not 'gemma2'"),
        ({"model_type": "gemma", "architectures": ["GemmaForCausalLM"], "head_dim": 16,
          "attn_logit_softcapping": 50.0},
         "key attn_logit_softcapping of config.json must be None, not 50.0"),
        ({"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]},
         "tensor model.layers.0.self_attn.q_proj.bias is missing"),
        ({"model_type": "smollm3", "architectures": ["SmolLM3ForCausalLM"],
          "no_rope_layers": [1]},
         "key no_rope_layers of config.json must hold 0 or 1 for each of 2 layers, not [1]")])
    def test_what_is_refused(self, folder, tmp_path, config, error):
        with pytest.raises(ModelFileError) as caught:
            folder(config)
        size = (tmp_path / "model.safetensors").stat().st_size
        assert str(caught.value) == f"{tmp_path}: {error.format(bytes=size)}"

    @pytest.mark.parametrize("name", [
        "model.layers.0.self_attn.q_proj.bias", "model.layers.1.self_attn.q_norm.weight",
        "model.layers.2.input_layernorm.weight", "score.weight"])
    def test_tensors(self, folder, name):
        with pytest.raises(ModelFileError, match=f": tensor {re.escape(name)} is not known for"):
            folder(extra={name: np.ones(64, np.float32)})

    def test_new_and_old_names_of_the_rotary_embedding(self, folder):
        """Transformers 5 writes rope_parameters, which count; older names may stand beside them."""
        found = folder({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}})
        assert found.attention.rope.base == 5e5
        alone = folder({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5},
                        "rope_theta": None})
        np.testing.assert_array_equal(logits(found), logits(alone))
        assert np.abs(logits(found) - logits(folder())).max() > 0.05

    @pytest.mark.parametrize("config", [
        {"torch_dtype": "bfloat16"}, {"use_cache": True}, {"transformers_version": "4.40.0"},
        {"pad_token_id": None, "pretraining_tp": 1}, {"rope_scaling": None},
        {"id2label": {"0": "a"}, "attention_dropout": 0.1}])
    def test_what_is_harmless(self, folder, config):
        np.testing.assert_array_equal(logits(folder(config)), logits(folder()))

    def test_a_head_that_is_not_tied(self, folder, tensors):
        head = {"lm_head.weight": tensors["token_embd.weight"][::-1].copy()}
        assert np.abs(logits(folder(extra=head)) - logits(folder())).max() > 0.05
        with pytest.raises(ModelFileError, match=r"tensor lm_head\.weight must be that of the "
                                                 r"embedding"):
            folder({"tie_word_embeddings": True}, head)

    @pytest.mark.parametrize(("name", "content", "error"), [
        ("model.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n",
         "this is a pointer of git-lfs, and not the file that it points to: fetch that with 'git "
         "lfs pull', or download it"),
        ("config.json", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n",
         "this is a pointer of git-lfs, and not the file that it points to: fetch that with 'git "
         "lfs pull', or download it"),
        ("config.json", b"", "this is an empty file"),
        ("model.safetensors", bytes(1000), "this is zeros: the file was not written, or not "
                                           "downloaded")])
    def test_files_that_are_others(self, folder, tmp_path, name, content, error):
        folder()
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ModelFileError) as caught:
            read_model(tmp_path)
        assert str(caught.value) == f"{tmp_path / name}: {error}"

    def test_folders_without_safetensors(self, folder, tmp_path, tensors):
        folder()
        (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
        with pytest.raises(ModelFileError, match=r": must hold \*\.safetensors: it has weights in "
                                                 r"pytorch_model\*\.bin alone, a pickle, "):
            read_model(tmp_path)
        (tmp_path / "config.json").unlink()
        (tmp_path / "a.gguf").write_bytes(llama_gguf(tensors))
        with pytest.raises(ModelFileError, match=r": a folder with GGUF files: name one of them, "
                                                 r"such as a\.gguf$"):
            read_model(tmp_path)

    def test_norms_within_packed_layers(self, tmp_path):
        made = bitnet_tensors()
        config = bitnet_config(made)
        config["quantization_config"]["use_rms_norm"] = True
        (tmp_path / "config.json").write_text(json.dumps(config))
        (tmp_path / "model.safetensors").write_bytes(checkpoint(made))
        (tmp_path / "tokenizer.json").write_text(tokenizer_json())
        with pytest.raises(ModelFileError, match=r"key quantization_config\.use_rms_norm of "
                                                 r"config\.json must be False, not True$"):
            read_model(tmp_path)
