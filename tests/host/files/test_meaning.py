"""Files that are well-formed and make no sense: each reader says what is wrong, and where."""

import dataclasses
import io
import json
import re
import struct
import zlib

import gguf
import numpy as np
import pytest
from rich.console import Console

from host.checks import LONGEST_MESSAGE, FileError, JSONError, parse_json, printable
from host.cli import main as cli
from host.cli.terminal import progress_bars, say, table, write
from host.compress.masks import MaskFileError, read_masks
from host.files.errors import ModelFileError
from host.files.gguf import GGUFFile
from host.files.image import ImageError, read_image
from host.fuzz.fuzz import READERS, read
from host.models.examples import (
    bitnet_config,
    bitnet_gguf,
    bitnet_tensors,
    checkpoint,
    gguf_bytes,
    i2_s,
    llama2c,
    llama_gguf,
    llama_tensors,
    pieces,
    tiny_model,
    tiny_vocabulary,
    tokenizer_json,
    vocabulary_keys,
)
from host.models.mmfreelm import write_model
from host.models.registry import read_head, read_model
from host.text.corpus import CorpusError, read_corpus
from host.text.tokenizer import Tokenizer, open_tokenizer
from tests.host.corpus_examples import write_corpus

#: A name that clears the screen, and one that ends the line.
NAMES = ["\x1b[2J", "two\nlines", "\x9b31m", "back\rward", "\u202eright"]


@pytest.fixture(scope="module")
def llama():
    return llama_tensors(width=32, ffn_width=32, kv_width=16, layers=1)


@pytest.fixture(scope="module")
def bitnet():
    return bitnet_tensors(width=128, ffn_width=128, kv_width=64, layers=1)


@pytest.fixture
def message(tmp_path):
    """Return what tells what is said of a GGUF file of some bytes, without the file's name."""
    def of(data, name="model.gguf"):
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(ModelFileError) as caught:
            open_tokenizer(read_model(path).vocabulary)
        text = str(caught.value)
        assert text.startswith(f"{path}: ")
        assert printable(text) == text
        return text.removeprefix(f"{path}: ")
    return of


class TestPrintable:
    @pytest.mark.parametrize(("text", "shown"), [
        ("\x1b[2J", r"\x1b[2J"), ("a\nb\tc", r"a\nb\tc"), ("\x00\x7f\x9b", r"\x00\x7f\x9b"),
        ("\u2028\u202e", r"\u2028\u202e"), ("\udc80", r"\udc80"),
        ("na\u00efve \\n", "na\u00efve \\n")])
    def test_control_characters(self, text, shown):
        assert printable(text) == shown == printable(shown)

    def test_some_stay(self):
        assert printable("a\n\t\x1b", "\n\t") == "a\n\t\\x1b"

    def test_a_message_is_short(self):
        error = str(FileError("first " + "\x1b" * 10**6 + " last"))
        assert len(error) < 4 * LONGEST_MESSAGE
        assert error.startswith(r"first \x1b")
        assert error.endswith(r"\x1b last")

    @pytest.mark.parametrize("name", NAMES)
    def test_tables_and_progress(self, name):
        for terminal in (True, False):
            file = io.StringIO()
            console = Console(file=file, force_terminal=terminal, width=200, color_system=None)
            console.print(table(name, ["name"], [[name]]))
            say(console, f"[bold]{name}[/]")
            with progress_bars(console) as bar:
                bar(f"[/x]{name}")(0.5, f"[/y]{name}")
            shown = file.getvalue()
            assert name not in shown
            assert f"[bold]{printable(name)}[/]" in shown

    def test_generated_text(self):
        text = "one\ttwo\n\x1b[2J\x07\r\x9b :smile: [red]"
        file = io.StringIO()
        write(Console(file=file, force_terminal=True, color_system=None), text)
        assert file.getvalue().replace(" " * 5, "\t") == (
            "one\ttwo\n\\x1b[2J\\x07\\r\\x9b :smile: [red]")
        file = io.StringIO()
        write(Console(file=file), text)
        assert file.getvalue() == text

    def test_the_command_line(self, capsys, tmp_path):
        path = tmp_path / "\x1b[2J.gguf"
        path.write_bytes(b"GGUF")
        assert cli.main(["compile", str(path)]) == 1
        error = capsys.readouterr().err
        assert "\x1b" not in error
        assert r"\x1b[2J.gguf: truncated" in error

    @pytest.mark.parametrize("name", ["\x1b[2J", "[/]", "[link=http://example.org]x"])
    def test_a_name_in_a_table(self, capsys, tmp_path, name):
        path = tmp_path / "model.gguf"
        write_model(path, dataclasses.replace(tiny_model(), name=name))
        assert cli.main(["compile", str(path)]) == 0
        assert f"{printable(name)} for configuration" in capsys.readouterr().out


class TestJSON:
    @pytest.mark.parametrize(("text", "error"), [
        ("[" * 10**6, "objects and arrays are nested too deeply"),
        ('{"a": 1, "a": 2}', "key 'a' comes twice in an object"),
        ("[NaN]", "number NaN is not finite"), ("[1e999]", "number 1e999 is not finite"),
        ("[" + "{}," * (1 << 20) + "0]",
         f"must have at most {1 << 20} objects and arrays, not {(1 << 20) + 1}"),
        (" " * (16 << 20) + "1", f"must have at most {16 << 20} bytes, not {(16 << 20) + 1}")])
    def test_errors(self, text, error):
        for data in (text, text.encode()):
            with pytest.raises(JSONError, match=f"^{re.escape(error)}$"):
                parse_json(data)


class TestGGUF:
    @pytest.mark.parametrize("name", NAMES)
    def test_names_are_shown_with_escapes(self, message, llama, name):
        shown = printable(name)
        assert message(gguf_bytes({}, {name: ((1,), 250, bytes(4))})) == (
            f"tensor {shown} has the unknown type 250")
        assert message(gguf_bytes({}, {name: ((1, 2**40), 0, bytes(4))})).startswith(
            f"truncated: tensor {shown} ends at byte")
        data = gguf_bytes({name: 1}, {}) + bytes(64)
        twice = data[:16] + struct.pack("<Q", 2) + 2 * data[24:24 + 8 + len(name.encode()) + 8]
        assert message(twice) == f"key {shown} comes twice"
        assert message(llama_gguf(llama, heads=2, kv_heads=1,
                                  keys={"general.architecture": name})).endswith(f"not {name!r}")

    @pytest.mark.parametrize(("merges", "error"), [
        (["t h", "th <|endoftext|>"], "has the entry 'th <|endoftext|>', but '<|endoftext|>' is a "
                                      "control token, which stands for no text"),
        (["t h", "< |"], "has the entry '< |', but '<|' is a control token, which stands for no "
                         "text"),
        (["<| t"], "has the entry '<| t', but '<|' is a control token, which stands for no text"),
        (["t h", "t\x1bh"], "has the entry 't\\x1bh', whose parts or result are no tokens"),
        (["t h t"], "has the entry 't h t', whose parts or result are no tokens"),
        (["t h"] * (2**19 + 1), f"must hold at most {2**19} entries, not {2**19 + 1}")])
    def test_merges(self, message, merges, error):
        tokens = [*vocabulary_keys()["tokenizer.ggml.tokens"], "<|", "<|t"]
        kinds = [3] + [1] * 258 + [3, 1]
        tensors = llama_tensors(width=32, ffn_width=32, kv_width=16, layers=1, vocab=261)
        assert message(llama_gguf(tensors, heads=2, kv_heads=1, keys={
            "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.merges": merges,
            "tokenizer.ggml.token_type": kinds})) == f"key tokenizer.ggml.merges {error}"

    @pytest.mark.parametrize(("scale", "error"), [
        (3e38, f"the scale of tensor blk.0.attn_q.weight must be from 2**-40 to 2**24, "
               f"not {float(np.float32(3e38))!r}"),
        (1e-40, f"the scale of tensor blk.0.attn_q.weight must be from 2**-40 to 2**24, "
                f"not {float(np.float32(1e-40))!r}"),
        (2.0**24, "the scale of tensor blk.0.attn_q.weight must be from 2**-40 to 2**24, "
                  "not 16777216.0"),
        (0.0, "tensor blk.0.attn_q.weight must have a positive and finite scale, not 0.0"),
        (-1.0, "tensor blk.0.attn_q.weight must have a positive and finite scale, not -1.0"),
        (np.inf, "tensor blk.0.attn_q.weight must have a positive and finite scale, not inf"),
        (np.nan, "tensor blk.0.attn_q.weight must have a positive and finite scale, not nan")])
    def test_scales(self, message, bitnet, scale, error):
        data = i2_s(bitnet["blk.0.attn_q.weight"], scale)
        assert message(bitnet_gguf(bitnet, changed={
            "blk.0.attn_q.weight": ((128, 128), 36, data)})) == error

    @pytest.mark.parametrize(("keys", "error"), [
        ({"llama.rope.freq_base": 1e30},
         f"key llama.rope.freq_base must be from 1.0 to {1e12}, not {float(np.float32(1e30))!r}"),
        ({"llama.rope.freq_base": 0.5},
         f"key llama.rope.freq_base must be from 1.0 to {1e12}, not 0.5"),
        ({"llama.attention.layer_norm_rms_epsilon": 2.0},
         "key llama.attention.layer_norm_rms_epsilon must be from 1e-20 to 1.0, not 2.0"),
        ({"llama.attention.layer_norm_rms_epsilon": 0.0},
         "key llama.attention.layer_norm_rms_epsilon must be a positive number, not 0.0"),
        ({"llama.block_count": 2**40},
         f"key llama.block_count must be at most {2**31 - 1}, not {2**40}"),
        ({"general.alignment": 24}, "key general.alignment must be a power of two, not 24"),
        ({"tokenizer.ggml.tokens": []},
         "key tokenizer.ggml.tokens must hold 1 to 524288 tokens, not 0"),
        ({"tokenizer.ggml.token_type": [1.0] * 259},
         "key tokenizer.ggml.token_type must be an array of 259 integers"),
        ({"tokenizer.ggml.tokens": ["x" * 513, *map(str, range(258))]},
         "key tokenizer.ggml.tokens must hold tokens of at most 512 characters, but token 0 has "
         "513")])
    def test_keys(self, message, llama, keys, error):
        assert message(llama_gguf(llama, heads=2, kv_heads=1, keys=keys)) == error

    @pytest.mark.parametrize(("width", "heads", "most"), [(128, 1, 2**16), (32, 2, 2**17)])
    def test_positions(self, tmp_path, width, heads, most):
        """Tables of positions are as long as the file allows, and the model says so."""
        tensors = llama_tensors(width=width, ffn_width=8, kv_width=width // heads, layers=1)
        path = tmp_path / "model.gguf"
        path.write_bytes(llama_gguf(tensors, heads=heads, kv_heads=1, context=2**17 + 1))
        model = read_model(path)
        assert model.context == read_head(path)[1] == most
        assert model.notes == (f"Context of {most:,} tokens and not {2**17 + 1:,}: that is what "
                               f"the tables of positions allow",)

    def test_places_of_tensors(self, message):
        def file(*offsets):
            data = gguf_bytes({}, {name: ((8,), 0, bytes(32)) for name in "ab"})
            for name, offset in zip(b"ab", offsets, strict=True):
                at = data.index(struct.pack("<QB", 1, name)) + 9 + 4 + 8 + 4
                data = data[:at] + struct.pack("<Q", offset) + data[at + 8:]
            return data
        assert message(file(0, 0)) == "tensor b overlaps tensor a"
        assert message(file(32, 4)) == "tensor b must be at a multiple of 32 bytes, not at 4"
        assert message(file(0, 2**63)).startswith("truncated: tensor b ends at byte 92233720368547")

    def test_dimensions(self, message):
        assert message(gguf_bytes({}, {"a": ((1,) * 5, 0, bytes(4))})) == (
            "tensor a must have at most 4 dimensions, not 5")
        assert message(gguf_bytes({}, {"a": ((2**63, 2**63), 0, b"")})).startswith(
            f"truncated: tensor a ends at byte {2**128 + 96}")
        assert message(gguf_bytes({}, {"a": ((2, 255), 34, bytes(108))})) == (
            "tensor a must have a multiple of 256 columns, not 255")

    @pytest.mark.parametrize(("at", "number", "error"), [
        (8, 2**60, f"malformed GGUF header: must have at most 65536 tensors, not {2**60}"),
        (16, 2**60, f"malformed GGUF header: must have at most 65536 keys, not {2**60}"),
        (24, 2**60, f"the name of the key at byte 24 must have at most 65535 bytes, not {2**60}")])
    def test_counts(self, message, at, number, error):
        data = bytearray(gguf_bytes({"a": 1}, {}))
        data[at:at + 8] = struct.pack("<Q", number)
        assert message(bytes(data)) == error

    def test_all_arrays_together(self, message):
        head = b"GGUF" + struct.pack("<IQQ", 3, 0, 5)
        for name in b"abcde":
            head += struct.pack("<QBIIQ", 1, name, 9, 0, 1 << 20) + bytes(1 << 20)
        assert message(head) == (f"all arrays up to key e must have at most {1 << 22} entries, "
                                 f"not {5 << 20}")

    def test_arrays_of_arrays(self, message):
        head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<QBIIQ", 1, 97, 9, 9, 1)
        assert message(head + bytes(64)) == "key a has the unknown type 9"

    def test_cut_at_every_byte(self, tmp_path):
        path = tmp_path / "model.gguf"
        data = gguf_bytes({"general.architecture": "llama", "a": [1, 2], "b": ["x", "yz"],
                           "c": 1.5}, {"t": ((2, 4), 0, bytes(32))})
        path.write_bytes(data)
        file = GGUFFile(path)
        assert [file.value(key) for key in "abc"] == [[1, 2], ["x", "yz"], 1.5]
        for size in range(len(data)):
            path.write_bytes(data[:size])
            with pytest.raises(ModelFileError,
                               match=r"truncated: |not a GGUF file: |an empty file"):
                GGUFFile(path)

    def test_values_equal_those_of_the_package(self, tmp_path, bitnet):
        path = tmp_path / "model.gguf"
        path.write_bytes(bitnet_gguf(bitnet, kind=gguf.GGMLQuantizationType.Q8_0))
        theirs, ours = gguf.GGUFReader(path), GGUFFile(path)
        keys = [key for key in theirs.fields if not key.startswith("GGUF.")]
        assert ours.keys("") == keys
        for key in keys:
            assert ours.value(key) == theirs.fields[key].contents()
        for tensor in theirs.tensors:
            shape = tuple(reversed(tensor.shape.tolist()))
            found = ours.vector(tensor.name, *shape) if len(shape) == 1 else ours.matrix(
                tensor.name, shape)
            np.testing.assert_array_equal(
                found, gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(shape))


class TestOthers:
    """llama2.c, checkpoints, images, masks and corpora."""

    def test_a_piece_that_comes_twice(self, tmp_path, llama):
        (tmp_path / "model.bin").write_bytes(llama2c(llama_tensors(vocab=261), heads=4))
        (tmp_path / "tok261.bin").write_bytes(
            pieces({"a": 1.0}) + struct.pack("<fi", 1.0, 1) + b"a")
        with pytest.raises(ModelFileError, match=r"tok261.bin: holds a token twice: token 260, "):
            read_model(tmp_path / "model.bin")

    def checkpoint(self, folder, bitnet, change=lambda config: None, data=None, words=None):
        config = bitnet_config(bitnet)
        change(config)
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "model.safetensors").write_bytes(data or checkpoint(bitnet))
        (folder / "tokenizer.json").write_text(words or tokenizer_json())
        with pytest.raises(FileError) as caught:
            open_tokenizer(read_model(folder).vocabulary)
        return str(caught.value).removeprefix(f"{folder}: ")

    @pytest.mark.parametrize(("key", "value", "error"), [
        ("rope_theta", 1e300, "key rope_theta of config.json must be from 1.0 to 1000000000000.0, "
                              "not 1e+300"),
        ("rms_norm_eps", 5, "key rms_norm_eps of config.json must be from 1e-20 to 1.0, not 5"),
        ("hidden_size", 10**30, f"key hidden_size of config.json must be at most {2**31 - 1}, "
                                f"not {10**30}")])
    def test_configuration(self, tmp_path, bitnet, key, value, error):
        assert self.checkpoint(tmp_path, bitnet,
                               lambda config: config.update({key: value})) == error

    @pytest.mark.parametrize("scale", [3e38, 1e-40, 0.0, -1.0])
    def test_scale_of_a_checkpoint(self, tmp_path, bitnet, scale):
        changed = {**bitnet, "blk.0.attn_q.scale": np.array([scale], np.float32)}
        assert re.fullmatch(
            r"tensor model.layers.0.self_attn.q_proj.weight_scale must be (from 2\*\*-40 to "
            r"2\*\*24|below 2\*\*24 in magnitude), .*",
            self.checkpoint(tmp_path, bitnet, data=checkpoint(changed)).split(": ")[-1])

    def test_header_of_safetensors(self, tmp_path, bitnet):
        data = struct.pack("<Q", 1 << 40) + checkpoint(bitnet)[8:]
        assert self.checkpoint(tmp_path, bitnet, data=data).endswith(
            f"damaged: the header must have at most {16 << 20} bytes, not {1 << 40}")

    def test_token_beyond_the_vocabulary(self, tmp_path, bitnet):
        words = json.loads(tokenizer_json())
        words["model"]["vocab"]["\u0100"] = 999
        assert self.checkpoint(tmp_path, bitnet, words=json.dumps(words)) == (
            "tokenizer.json must have tokens below 259, not 999")

    @pytest.mark.parametrize(("change", "error"), [
        (lambda h: h.pop("program"), "program must be an object, not None"),
        (lambda h: h["program"].update(body=10**6), r"field program.body must be an integer from 0 "
                                                    r"to \d+, not 1000000"),
        (lambda h: h.update(room=2**40), r"field room must be an integer from 0 to \d+, not \d+"),
        (lambda h: h.update(vocab=0), r"field vocab must be an integer from 1 to \d+, not 0"),
        (lambda h: h["parts"].append(h["parts"][0]),
         r"field parts\[\d+\].address must be an integer from \d+ to \d+, not 0"),
        (lambda h: h["configuration"].update(other=1), "configuration: .*unexpected keyword.*"),
        (lambda h: h["configuration"]["engine"].update(lanes=2**40),
         r"field configuration.engine.lanes must be an integer from 0 to \d+, not \d+"),
        (lambda h: h["vocabulary"].update(merges=["t h", "th <|endoftext|>"]),
         "field vocabulary.merges has the entry .*"),
        (lambda h: h["parts"][0].update(name="\x1b[2J\n", crc32=0), None)])
    def test_images(self, tmp_path, change, error):
        path = tmp_path / "model.tally"
        data = READERS["image"]()[0]["model.tally"]
        length, = struct.unpack_from("<I", data, 8)
        header = json.loads(data[16:16 + length])
        change(header)
        text = json.dumps(header).encode()
        path.write_bytes(data[:8] + struct.pack("<II", len(text), zlib.crc32(text)) + text
                         + data[16 + length:])
        wanted = f"the header: {error}" if error else r"damaged: part \\x1b\[2J\\n must have .*"
        with pytest.raises(ImageError, match=f"^{re.escape(str(path))}: {wanted}$"):
            read_image(path)

    @pytest.mark.parametrize(("old", "new", "error"), [
        ('"threshold": 7', '"threshold": 99999999999999999999',
         "list blk.0.mix_in must have a threshold below 2**63, not 99999999999999999999"),
        ("blk.1.", "blk.0.", "list blk.0.mix_in comes twice"),
        ("blk.1.", r"\u001b[2J", r"list \x1b[2Jmix_in must keep 1 to 0 entries, not 128"),
        ('"sparsity": 0.5', '"sparsity": 1.5', "field 'sparsity' must be from 0 to 1, not 1.5"),
        ('"sparsity": 0.5', '"sparsity": NaN', "not a mask file: number NaN is not finite"),
        ("{", "[" * 10**5, "not a mask file: objects and arrays are nested too deeply")])
    def test_masks(self, tmp_path, old, new, error):
        path = tmp_path / "masks.json"
        text = READERS["masks"]()[0]["masks.json"].decode()
        assert old in text
        text = text.replace(old, new, 1)
        if "keep 1 to 0" in error:
            text = text.replace('mix_in", "columns": 256', 'mix_in", "columns": 0')
            text = text.replace('"blk.0.mix_in", "columns": 0', '"blk.0.mix_in", "columns": 256')
        path.write_text(text)
        with pytest.raises(MaskFileError, match=f"^{re.escape(f'{path}: {error}')}$"):
            read_masks(path)

    @pytest.mark.parametrize(("old", "new", "error"), [
        ("\t1\t", "\t\u00b2\t", "line 3 must be text, document number, .*"),
        ("\t1\t", "\t" + "9" * 5000 + "\t", "line 3 must be text, document number, .*"),
        ("tales\t1", "../tales\t1", "line 3 must be text, document number, .*"),
        ("\t1\t", "\t0\t", "line 3 names document 0 of tales again"),
        ("tales\t1", "\x1b[2J\t1", r"line 3 must be text, .*, not '\\x1b\[2J\\t1.*")])
    def test_corpora(self, tmp_path, old, new, error):
        write_corpus(tmp_path, ["one", "two", "three"], held_out=lambda number: False)
        path = tmp_path / "splits.tsv"
        path.write_text(path.read_text().replace(old, new))
        with pytest.raises(CorpusError, match=f"^{re.escape(str(path))}: {error}$"):
            read_corpus(tmp_path)

    def test_a_table_that_is_not_utf8(self, tmp_path):
        write_corpus(tmp_path, ["one"], held_out=lambda number: False)
        (tmp_path / "splits.tsv").write_bytes(b"#\n\xff\n")
        with pytest.raises(CorpusError, match=r"splits.tsv: is not valid UTF-8$"):
            read_corpus(tmp_path)

    def test_merges_of_a_vocabulary(self):
        words = tiny_vocabulary()
        with pytest.raises(FileError, match=r"^Merges of the vocabulary: the list has the entry "
                                            r"'t h', but 'th' is a control token"):
            Tokenizer(dataclasses.replace(words, controls=(words.tokens.index("th"),)))


@pytest.mark.parametrize("reader", READERS)
def test_cut_anywhere(tmp_path, reader):
    """Every 61st byte of the header's part, and the last ones."""
    files = READERS[reader]()[-1]
    for name, data in files.items():
        for size in [*range(0, min(len(data), 3000), 61), *range(len(data) - 3, len(data))]:
            if name == "." or size < 0:
                continue
            error = read(tmp_path, {**files, name: data[:size]})
            assert error is None or printable(error) == error
            # Spaces at the end of a text say nothing; nor do the last lines of a table.
            assert error is not None or name == "splits.tsv" or not data[size:].strip()
