"""The model file: what is written is read back, and what is wrong is said in one line."""

import re
import struct

import gguf
import numpy as np
import pytest

from host.files.errors import ModelFileError
from host.files.tensors import is_bf16, to_bf16
from host.models.examples import split_gguf, tiny_model
from host.models.mmfreelm import write_model
from host.models.registry import model_files, read_model

TQ1_0, TQ2_0, F32 = (gguf.GGMLQuantizationType[name] for name in ("TQ1_0", "TQ2_0", "F32"))


@pytest.fixture(scope="module")
def model():
    return tiny_model(layers=1)


@pytest.fixture(scope="module")
def good(tmp_path_factory, model):
    path = tmp_path_factory.mktemp("model") / "good.gguf"
    write_model(path, model)
    return path


@pytest.fixture
def variant(good, tmp_path):
    """Copy the good file with keys and tensors replaced, added or (None) left out."""
    def make(keys=None, tensors=None):
        keys, tensors = keys or {}, tensors or {}
        reader = gguf.GGUFReader(good)
        path = tmp_path / "variant.gguf"
        architecture = keys.pop("general.architecture", "mmfreelm")
        writer = gguf.GGUFWriter(path, architecture)
        contents = {name: (field.contents(), field.types[0])
                    for name, field in reader.fields.items()
                    if not name.startswith("GGUF.") and name != "general.architecture"}
        for name, entry in {**contents, **keys}.items():
            if entry is None:
                continue
            if entry[1] == gguf.GGUFValueType.ARRAY:
                writer.add_array(name, entry[0])
            else:
                writer.add_key_value(name, *entry)
        data = {tensor.name: (np.array(tensor.data), tensor.tensor_type)
                for tensor in reader.tensors}
        for name, entry in {**data, **tensors}.items():
            if entry is not None:
                writer.add_tensor(name, entry[0], raw_dtype=entry[1])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path
    return make


def message(path):
    with pytest.raises(ModelFileError) as caught:
        read_model(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    return text.removeprefix(f"{path}: ")


def integer(value):
    return value, gguf.GGUFValueType.UINT32


def text(value):
    return value, gguf.GGUFValueType.STRING


def array(value):
    return value, gguf.GGUFValueType.ARRAY


def blocks(good, name):
    """Bytes of a TQ1_0 tensor, one row a block of 256 trits."""
    tensor, = (tensor for tensor in gguf.GGUFReader(good).tensors if tensor.name == name)
    return np.array(tensor.data).reshape(-1, 54), tensor.data.shape


def with_scale(good, name, scale, *, block=slice(None)):
    data, shape = blocks(good, name)
    data[block, -2:] = np.array([scale], "<f2").view(np.uint8)
    return {name: (data.reshape(shape), TQ1_0)}


# What is written is read back.

def test_round_trip_keeps_every_number(good, model):
    read = read_model(good)
    np.testing.assert_array_equal(read.embedding, model.embedding)
    for actual, expected in zip(read.layers, model.layers, strict=True):
        for field in ("forget", "candidate", "gate", "output", "ffn_gate", "ffn_up", "ffn_down"):
            np.testing.assert_array_equal(getattr(actual, field).trits,
                                          getattr(expected, field).trits)
            assert getattr(actual, field).trits.dtype == np.int8
            assert getattr(actual, field).scale == getattr(expected, field).scale
        np.testing.assert_array_equal(actual.forget_bias, expected.forget_bias)
    for field in ("name", "embedding_scale", "logit_scales", "vocabulary", "metadata",
                  "width", "ffn_width", "vocab", "planes"):
        assert getattr(read, field) == getattr(model, field)


def test_embedding_planes_weigh_1_3_9(good, model):
    planes = [gguf.quants.dequantize(tensor.data, tensor.tensor_type)
              for tensor in gguf.GGUFReader(good).tensors if tensor.name.startswith("token_embd")]
    total = sum(3 ** index * plane for index, plane in enumerate(planes))
    np.testing.assert_array_equal(np.rint(total / model.embedding_scale), model.embedding)


def test_tq2_0_is_read_as_well(variant, model):
    matrix = model.layers[0].ffn_down
    values = matrix.trits * np.float32(matrix.scale)
    path = variant(tensors={"blk.0.ffn_down.weight": (gguf.quants.quantize(values, TQ2_0), TQ2_0)})
    read = read_model(path).layers[0].ffn_down
    np.testing.assert_array_equal(read.trits, matrix.trits)
    assert read.scale == matrix.scale


def test_a_block_of_zeros_may_have_scale_zero(good, variant, model):
    data, shape = blocks(good, "blk.0.ffn_up.weight")
    data[3] = gguf.quants.quantize(np.zeros((1, 256), np.float32), TQ1_0)
    read = read_model(variant(tensors={"blk.0.ffn_up.weight": (data.reshape(shape), TQ1_0)}))
    assert not read.layers[0].ffn_up.trits[3].any()


def test_bf16_rounding_is_to_nearest_even():
    assert to_bf16(1 + 2 ** -8) == 1
    assert to_bf16(1 + 3 * 2 ** -8) == 1 + 2 ** -6
    assert is_bf16(1 + 2 ** -7)
    assert not is_bf16(1 + 2 ** -8)
    assert not is_bf16(float("nan"))


@pytest.mark.parametrize("scale", [0.1, 0.0, -0.5, 2.0 ** -30])
def test_a_scale_that_the_file_cannot_hold_is_refused(tmp_path, scale):
    model = tiny_model(layers=1)
    object.__setattr__(model.layers[0].gate, "scale", scale)
    with pytest.raises(ValueError, match=re.escape(
            f"Scale of tensor blk.0.mix_gate.weight must be positive and exact in bf16 and fp16, "
            f"not {scale!r}")):
        write_model(tmp_path / "model.gguf", model)


# Files that are no model.

def test_missing_file(tmp_path):
    assert message(tmp_path / "none.gguf") == "No such file or directory"


@pytest.mark.parametrize(("content", "what"), [
    (b"", "this is an empty file"),
    (b"GG", "not a GGUF file: it must begin with b'GGUF', not b'GG'"),
    (b"hello", "neither a GGUF file nor one of llama2.c: it begins with b'hell' and has 5 bytes"),
    (b"PK\x03\x04" + bytes(100), "this is a zip archive, as PyTorch writes checkpoints: .*"),
    (b"\x80\x02}q\x00" + bytes(100), "this is a pickle of Python, which can run any program; .*"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n",
     "this is a pointer of git-lfs, and not the file that it points to: fetch that with 'git lfs "
     "pull', or download it"),
    (b"tjgg\x03\0\0\0" + bytes(100), "this is a GGJT file, which llama.cpp wrote before GGUF: .*"),
    (b"fmgg" + bytes(100), "this is a GGMF file, .*"),
    (b"lmgg" + bytes(100), "this is a GGML file, .*"),
    (b"<!DOCTYPE html><html>", "this is a page of HTML, and not the file that was to be .*"),
    (bytes(1000), "this is zeros: the file was not written, or not downloaded"),
    (b"\x40\0\0\0\0\0\0\0{\"a\": {}}" + bytes(100),
     "this is a safetensors file: name the folder that it lies in, with config.json and "
     "tokenizer.json")])
@pytest.mark.parametrize("name", ["other.gguf", "other.bin", "other"])
def test_other_kinds_of_files(tmp_path, name, content, what):
    path = tmp_path / name
    path.write_bytes(content)
    assert re.fullmatch(what, message(path))


class TestSeveralFiles:
    """A GGUF file that was split, as llama-gguf-split does."""

    @pytest.fixture
    def parts(self, good, tmp_path):
        path = tmp_path / "model.gguf"
        path.write_bytes(good.read_bytes())
        return split_gguf(path, 3)

    def test_any_of_them_is_the_model(self, good, parts, model):
        expected = read_model(good)
        for path in parts:
            found = read_model(path)
            assert found.vocabulary == expected.vocabulary
            np.testing.assert_array_equal(found.embedding, expected.embedding)
            np.testing.assert_array_equal(found.layers[0].ffn_down.trits,
                                          model.layers[0].ffn_down.trits)
            assert model_files(path) == parts

    def test_one_is_missing(self, parts):
        parts[1].unlink()
        with pytest.raises(ModelFileError, match=f"^{re.escape(str(parts[1]))}: No such file"):
            read_model(parts[0])

    def test_names_that_do_not_fit(self, parts, tmp_path):
        parts[1].write_bytes(parts[2].read_bytes())
        with pytest.raises(ModelFileError, match=r"-00002-of-00003\.gguf: key split\.no must be 1, "
                                                 r"not 2: "):
            read_model(parts[0])
        alone = tmp_path / "alone.gguf"
        alone.write_bytes(parts[0].read_bytes())
        assert message(alone).startswith("key split.count must be 1, not 3: ")

    def test_a_tensor_in_two_files(self, parts):
        # The number of a part is a uint16 behind its key.
        data = bytearray(parts[1].read_bytes())
        at = data.index(b"split.no") + 8 + 4
        data[at] = 2
        parts[2].write_bytes(data)
        with pytest.raises(ModelFileError, match=r"-00003-of-00003\.gguf: tensor \S+ is in another "
                                                 r"file as well$"):
            read_model(parts[0])


def test_cut_in_the_header(tmp_path, good):
    path = tmp_path / "cut.gguf"
    content = good.read_bytes()
    for size in [4, 11, 30, 100, 1000, 5000]:
        path.write_bytes(content[:size])
        assert re.fullmatch(rf"truncated: bytes up to \d+ are needed, the file has {size}",
                            message(path))


def test_cut_in_the_data(tmp_path, good):
    path = tmp_path / "cut.gguf"
    content = good.read_bytes()
    path.write_bytes(content[:len(content) // 2])
    assert re.fullmatch(rf"truncated: tensor \S+ ends at byte \d+, the file has "
                        rf"{len(content) // 2}", message(path))


def test_an_array_longer_than_the_file_is_not_walked(tmp_path, good):
    content = bytearray(good.read_bytes())
    key = b"tokenizer.ggml.token_type"
    at = content.index(key) + len(key) + 4 + 4      # behind the types of the value and its entries
    content[at:at + 8] = struct.pack("<Q", 2 ** 60)
    path = tmp_path / "long.gguf"
    path.write_bytes(content)
    assert message(path) == (f"the array at byte {at - 4} must have at most 1048576 entries, "
                             f"not {2 ** 60}")


def test_unsupported_version(tmp_path, good):
    content = bytearray(good.read_bytes())
    content[4:8] = struct.pack("<I", 99)
    path = tmp_path / "version.gguf"
    path.write_bytes(content)
    assert message(path).startswith("malformed GGUF header: ")


def test_other_byte_order(tmp_path):
    path = tmp_path / "big.gguf"
    writer = gguf.GGUFWriter(path, "mmfreelm", endianess=gguf.GGUFEndian.BIG)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert message(path).startswith("a big-endian GGUF file, or a big-endian machine: both must ")


def test_a_damaged_header_never_ends_in_another_exception(tmp_path, good):
    content = good.read_bytes()
    header = gguf.GGUFReader(good).data_offset
    rng = np.random.default_rng(11)
    path = tmp_path / "damaged.gguf"
    # Beginning and end of the header, where the counts, keys and tensor shapes lie.
    places = np.concatenate([rng.integers(4, 600, 16), rng.integers(header - 1200, header, 16)])
    refused = []
    for place in places.tolist():
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            read_model(path)
        except ModelFileError as error:
            refused.append(str(error))
    assert len(refused) > len(places) // 2
    assert all(error.startswith(f"{path}: ") and "\n" not in error for error in refused)


# Models with something wrong.

@pytest.mark.parametrize(("keys", "expected"), [
    ({"general.architecture": "llama2"},
     "key general.architecture must be 'bitnet' or 'bitnet-25' or 'bitnet-b1.58' or 'gemma' or "
     "'gemma3' or 'granite' or 'llama' or 'mmfreelm' or 'mpo_llama' or 'phi3' or 'qwen2' or "
     "'qwen3' or 'smollm3', not 'llama2'"),
    ({"mmfreelm.block_count": None},
     "key mmfreelm.block_count must be a positive integer, not None"),
    ({"mmfreelm.block_count": integer(0)},
     "key mmfreelm.block_count must be a positive integer, not 0"),
    ({"mmfreelm.block_count": integer(2)}, "tensor blk.1.mix_forget.weight is missing"),
    ({"mmfreelm.embedding_length": text("256")},
     "key mmfreelm.embedding_length must be a positive integer, not '256'"),
    ({"mmfreelm.feed_forward_length": integer(500)},
     "key mmfreelm.feed_forward_length must be a multiple of 256, not 500"),
    ({"mmfreelm.embedding_planes": integer(2)},
     "key mmfreelm.embedding_planes must be 3, not 2"),
    ({"mmfreelm.vocab_size": integer(260)},
     "key tokenizer.ggml.tokens must hold 260 tokens, not 259"),
    ({"mmfreelm.embedding_length": integer(512)},
     "tensor token_embd.plane0.weight must have shape (259, 512), not (259, 256)"),
    ({"mmfreelm.logit_scale.lmul": None, "mmfreelm.logit_scale.float": None},
     "keys mmfreelm.logit_scale.ARITHMETIC are missing"),
    ({"mmfreelm.logit_scale.lmul": (-1.0, gguf.GGUFValueType.FLOAT32)},
     "key mmfreelm.logit_scale.lmul must be a positive bf16 number, not -1.0"),
    ({"mmfreelm.logit_scale.lmul": (1 + 2.0 ** -8, gguf.GGUFValueType.FLOAT32)},
     "key mmfreelm.logit_scale.lmul must be a positive bf16 number, not 1.00390625"),
    ({"tokenizer.ggml.model": None}, "tokenizer is missing: key tokenizer.ggml.model"),
    ({"tokenizer.ggml.model": text("llama")},
     "key tokenizer.ggml.model must be 'gpt2', not 'llama'"),
    ({"tokenizer.ggml.tokens": None},
     "key tokenizer.ggml.tokens must be an array of strings, not None"),
    ({"tokenizer.ggml.tokens": array(["a"] * 259)},
     "key tokenizer.ggml.tokens holds a token twice: token 1, 'a'"),
    ({"tokenizer.ggml.merges": array([1, 2])},
     "key tokenizer.ggml.merges must be an array of strings, not [1, 2]"),
    ({"tokenizer.ggml.merges": array(["t h", "q th"])},
     "key tokenizer.ggml.merges has the entry 'q th', whose parts or result are no tokens"),
    ({"tokenizer.ggml.eos_token_id": integer(259)},
     "key tokenizer.ggml.eos_token_id must be a token below 259, not 259"),
])
def test_wrong_keys(variant, keys, expected):
    assert message(variant(keys=dict(keys))) == expected


def test_key_that_is_not_utf8(tmp_path, good):
    content = good.read_bytes().replace(b"Apache-2.0", b"Apache\xff\xff.0")
    path = tmp_path / "latin.gguf"
    path.write_bytes(content)
    assert message(path) == "key general.license is not valid UTF-8"


def test_missing_tensor(variant):
    path = variant(tensors={"token_embd.plane2.weight": None})
    assert message(path) == "tensor token_embd.plane2.weight is missing"


def test_wrong_shape(variant):
    square = gguf.quants.quantize(np.ones((256, 256), np.float32), TQ1_0)
    assert message(variant(tensors={"blk.0.ffn_up.weight": (square, TQ1_0)})) == (
        "tensor blk.0.ffn_up.weight must have shape (512, 256), not (256, 256)")


def test_wrong_type(variant):
    path = variant(tensors={"blk.0.mix_gate.weight": (np.ones((256, 256), np.float32), F32)})
    assert message(path) == "tensor blk.0.mix_gate.weight must have type TQ1_0 or TQ2_0 or I2_S, " \
                            "not F32"


@pytest.mark.parametrize(("kind", "what"), [
    (250, ""), (142, " (Ternary Bonsai's, which is not supported)")])
def test_unknown_type(tmp_path, good, kind, what):
    content = bytearray(good.read_bytes())
    name = b"blk.0.mix_gate.weight"
    at = content.index(name) + len(name) + 4 + 2 * 8
    content[at:at + 4] = struct.pack("<I", kind)
    path = tmp_path / "type.gguf"
    path.write_bytes(content)
    assert message(path) == f"tensor blk.0.mix_gate.weight has the unknown type {kind}{what}"


@pytest.mark.parametrize(("scale", "shown"), [(0.0, "0.0"), (-0.5, "-0.5"), (np.nan, "nan"),
                                              (np.inf, "inf")])
def test_scale_that_is_not_positive(good, variant, scale, shown):
    path = variant(tensors=with_scale(good, "blk.0.mix_gate.weight", scale))
    assert message(path) == (f"tensor blk.0.mix_gate.weight must have a positive and finite scale, "
                             f"not {shown}")


def test_scale_that_is_not_bf16(good, variant):
    path = variant(tensors=with_scale(good, "blk.0.mix_gate.weight", 1 + 2 ** -10))
    assert message(path) == ("tensor blk.0.mix_gate.weight must have a scale that bf16 holds "
                             "exactly, not 1.0009765625")


def test_two_scales_in_a_matrix(good, variant):
    tensors = with_scale(good, "blk.0.mix_gate.weight", 0.5)
    data, kind = tensors["blk.0.mix_gate.weight"]
    data.reshape(-1, 54)[7, -2:] = np.array([0.25], "<f2").view(np.uint8)
    path = variant(tensors={"blk.0.mix_gate.weight": (data, kind)})
    assert message(path) == ("tensor blk.0.mix_gate.weight must have one scale, but block 7 has "
                             "0.25 and another block has 0.5")


def test_two_scales_among_planes(good, variant, model):
    path = variant(tensors=with_scale(good, "token_embd.plane1.weight", 0.5))
    assert message(path) == ("tensor token_embd.plane1.weight must have the scale of plane 0, "
                             f"{model.embedding_scale!r}, not 0.5")


def test_value_that_is_not_ternary(variant):
    data = gguf.quants.quantize(np.ones((256, 256), np.float32), TQ2_0)
    data[5, 0] |= 3         # the lowest two bits of byte 0: column 0
    path = variant(tensors={"blk.0.mix_gate.weight": (data, TQ2_0)})
    assert message(path) == ("tensor blk.0.mix_gate.weight must be ternary, but row 5 column 0 "
                             "holds 2 times the scale")


def test_bias_that_is_not_finite(variant):
    bias = np.zeros(256, np.float32)
    bias[9] = np.nan
    path = variant(tensors={"blk.0.mix_forget.bias": (bias, F32)})
    assert message(path) == "tensor blk.0.mix_forget.bias must be finite, but element 9 is nan"


def test_bias_that_is_not_bf16(variant):
    bias = np.full(256, 1 + 2 ** -8, np.float32)
    path = variant(tensors={"blk.0.mix_forget.bias": (bias, F32)})
    assert message(path) == ("tensor blk.0.mix_forget.bias must hold bf16 numbers, "
                             "not 1.00390625")
