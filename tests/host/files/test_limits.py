"""What files make their readers use: memory of 4 times the file and 200 MB, time as their size.

Each file is the worst that its reader can be given in half a megabyte, and is read in a process of
its own; then one twice as large.
"""

import hashlib
import json
import lzma
import math
import multiprocessing
import resource
import struct
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np
import pytest

from host.checks import printable
from host.files.gguf import Header
from host.files.image import MAGIC
from host.fuzz.fuzz import READERS, read
from host.models.examples import (
    bitnet_config,
    bitnet_tensors,
    checkpoint,
    gguf_bytes,
    llama2c,
    llama_gguf,
    llama_tensors,
    pieces,
    tokenizer_json,
)
from host.text.tokenizer import byte_symbols, open_tokenizer
from host.text.vocabulary import PieceVocabulary, Vocabulary

MEGABYTE = 1_000_000

#: Seconds of a process below which its time says nothing of how it grows.
LEAST_SECONDS = 0.3


def _llama(**keys):
    return llama_gguf(llama_tensors(width=32, ffn_width=32, kv_width=16, layers=1), heads=2,
                      kv_heads=1, keys=keys)


def _gguf(**keys):
    return {"model.gguf": gguf_bytes({"general.architecture": "llama", **keys}, {})}


def _words(count):
    return [f"{number:x}" for number in range(count)]


# GGUF: a megabyte of ...

def many_keys(size):
    return _gguf(**{f"{number:x}": True for number in range(min(size // 18, 60_000))})


def many_arrays(size):
    return _gguf(**{f"{number:x}": [True] for number in range(min(size // 30, 60_000))})


def long_array(size):
    return {"model.gguf": _llama(**{"tokenizer.ggml.token_type": [True] * min(size, 1 << 20)})}


def empty_strings(size):
    return {"model.gguf": _llama(**{"general.tags": [""] * (size // 8)})}


def many_tokens(size):
    return {"model.gguf": _llama(**{"tokenizer.ggml.tokens": _words(size // 13)})}


def many_merges(size):
    return {"model.gguf": _llama(**{"tokenizer.ggml.merges": ["t h"] * (size // 11)})}


def long_merge(size):
    return {"model.gguf": _llama(**{"tokenizer.ggml.merges": ["t" * (size // 2) + " h"]})}


def long_architecture(size):
    return _gguf(**{"general.architecture": "\0" * size})


def many_tensors(size):
    return {"model.gguf": gguf_bytes({"general.architecture": "llama"}, {
        f"{number:x}": ((1,), 0, bytes(4)) for number in range(min(size // 80, 60_000))})}


def many_digits(size):
    """Make a chain of many sites: the product of their digits is a number of a megabyte."""
    data = READERS["own"]()[1]["model.gguf"]
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        header = Header(Path(file.name))
    keys = {key: header.read(key) for key in header.values}
    keys["mpo_llama.blk.0.attn_q.rows"] = [2**31] * (size // 4)
    return {"model.gguf": gguf_bytes(keys, {
        name: (tensor.shape, tensor.kind, data[tensor.offset:tensor.offset + tensor.size])
        for name, tensor in header.tensors.items()})}


def long_context(size):
    """Tables of positions that are as large as they may be."""
    width = 2 * int(math.sqrt(size / 60) / 2)
    tensors = llama_tensors(width=width, ffn_width=8, kv_width=width, layers=1)
    return {"model.gguf": llama_gguf(tensors, heads=1, kv_heads=1,
                                     context=(1 << 22) // (width // 2))}


# SentencePiece.

def _substrings(size):
    """All parts of a text: each is made of two others in every way."""
    length = round((6 * size) ** (1 / 3))
    text = "".join(np.random.default_rng(1).choice(list("abcdefgh"), length))
    return sorted({text[first:last] for first in range(length)
                   for last in range(first + 1, length + 1)})


def _pieces(words):
    count = 259 + len(words)
    tensors = llama_tensors(width=2, ffn_width=2, kv_width=2, layers=1, vocab=count)
    return {"model.bin": llama2c(tensors, heads=1, kv_heads=1),
            f"tok{count}.bin": pieces({word: -float(index) for index, word in enumerate(words)})}


def long_piece(size):
    return _pieces(["a", "b", "a" * size])


def long_pieces(size):
    return _pieces([f"{number:07}" * 73 for number in range(size // 520)])


def substrings(size):
    return _pieces(_substrings(0.65 * size))


def many_pieces(size):
    return _pieces(_words(size // 13))


# Checkpoints.

def _checkpoint(**files):
    tensors = bitnet_tensors(width=128, ffn_width=128, kv_width=64, layers=1)
    return {".": b"", "config.json": json.dumps(bitnet_config(tensors)).encode(),
            "model.safetensors": checkpoint(tensors),
            "tokenizer.json": tokenizer_json().encode(),
            **{name.replace("_", "."): data for name, data in files.items()}}


def deep_config(size):
    return _checkpoint(config_json=b'{"a":' * (size // 5))


def wide_config(size):
    return _checkpoint(config_json=b'{"a":[' + b"{}," * (size // 3) + b"0]}")


def long_header(size):
    one = '"{:x}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'
    head = "{" + ",".join(one.format(number) for number in range(size // 55)) + "}"
    return _checkpoint(model_safetensors=struct.pack("<Q", len(head)) + head.encode())


def long_index(size):
    index = {"weight_map": {f"{number:x}": f"{number:x}" for number in range(size // 20)}}
    return _checkpoint() | {"model.safetensors.index.json": json.dumps(index).encode()}


def long_tokenizer(size):
    tree = json.loads(tokenizer_json())
    tree["model"]["vocab"] |= {"a" * (size // 2): 257, "b" * (size // 2): 258}
    return _checkpoint(tokenizer_json=json.dumps(tree).encode())


# Images, masks and corpora.

def _image(header):
    text = json.dumps(header).encode() if not isinstance(header, bytes) else header
    return {"model.tally": MAGIC + struct.pack("<II", len(text), zlib.crc32(text)) + text}


def wide_image(size):
    return _image(b'{"parts":[' + b"[]," * (size // 3) + b"0]}")


def deep_image(size):
    return _image(b"[" * size)


def overlapping_parts(size):
    """Parts that are all the memory, each with a checksum."""
    files = READERS["image"]()[0]
    data = files["model.tally"]
    length, = struct.unpack_from("<I", data, 8)
    header = json.loads(data[16:16 + length])
    whole = {"name": "x", "kind": "trits", "address": 0, "bytes": header["memory_bytes"],
             "trits": 0, "crc32": zlib.crc32(data[-header["memory_bytes"]:])}
    header["parts"] = [whole] * (size // 90)
    return {"model.tally": _image(header)["model.tally"] + data[16 + length:]}


def many_masks(size):
    masks = json.loads(READERS["masks"]()[0]["masks.json"])
    masks["lists"] = [{"list": f"{number:x}", "columns": 1, "keep": 1, "threshold": 0}
                      for number in range(size // 60)]
    return {"masks.json": json.dumps(masks).encode()}


def deep_masks(size):
    return {"masks.json": b"[" * size}


def packed_text(size):
    """Pack a text that is seven thousand times as large as its file."""
    text = lzma.compress(bytes(100 * size), preset=0)
    return {**READERS["corpus"]()[0], "tales.txt.xz": text}


def one_document(size):
    """Name a long document again and again."""
    files = READERS["corpus"]()[0]
    document = bytes(range(65, 91)) * (size // 26)
    line = f"tales\t20\ttrain\t{hashlib.sha256(document).hexdigest()[:16]}\n".encode()
    text = lzma.decompress(files["tales.txt.xz"]) + document
    return {"splits.tsv": b"#\n" + line * (size // len(line)),
            "tales.txt.xz": lzma.compress(text)}


CASES = [many_keys, many_arrays, long_array, empty_strings, many_tokens, many_merges, long_merge,
         long_architecture, many_tensors, many_digits, long_context, long_piece, long_pieces,
         substrings, many_pieces, deep_config, wide_config, long_header, long_index,
         long_tokenizer, wide_image, deep_image, overlapping_parts, many_masks, deep_masks,
         packed_text, one_document]


# What a fork of the server has loaded before it begins.
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["tests.host.files.test_limits", "host.files.safetensors",
                                "host.files.llama2c",
                                "host.models.llama", "host.models.bitnet"])


def _read(directory, files, pipe):
    """Read files; send the error, and the memory and the time that it took."""
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
    resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    began = time.process_time()
    try:
        error = read(directory, files)
    except Exception as problem:
        error = problem
    taken = time.process_time() - began
    pipe.send((error, 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, taken))


def measure(directory, files):
    """Read files in a process of its own."""
    receiver, sender = _SERVER.Pipe(duplex=False)
    process = _SERVER.Process(target=_read, args=(directory, files, sender))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        pytest.fail("the process ended")
    finally:
        process.join()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_memory_and_time(tmp_path, case):
    small, large = MEGABYTE // 2, MEGABYTE
    seconds = {small: math.inf, large: math.inf}
    # The least of a few times is the one that other work on the machine has stretched least.
    for _ in range(3):
        for size in seconds:
            files = case(size)
            error, memory, taken = measure(tmp_path, files)
            assert error is None or (isinstance(error, str) and printable(error) == error), error
            assert error is None or len(error) < 3000
            assert memory < 4 * sum(map(len, files.values())) + 200 * MEGABYTE
            seconds[size] = min(seconds[size], taken)
        # Twice is linear, and four times is quadratic.
        if seconds[large] < 3 * max(seconds[small], LEAST_SECONDS):
            break
    assert seconds[large] < 3 * max(seconds[small], LEAST_SECONDS)


def test_a_sparse_file_is_not_read(tmp_path):
    """A terabyte of nothing, of which the header says nothing."""
    for name, head in (("model.bin", llama2c(llama_tensors())[:28]), ("model.gguf", b"GGUF"),
                       ("model.tally", MAGIC + struct.pack("<II", 2, 0)),
                       ("masks.json", b""), ("model.gguf", _llama()[:2000])):
        path = tmp_path / name
        with open(path, "wb") as file:
            file.write(head)
            file.truncate(1 << 40)
        error, memory, taken = measure(tmp_path, {name: None})
        assert isinstance(error, str)
        assert memory < 200 * MEGABYTE
        assert taken < 10


@pytest.mark.parametrize("character", ["t", " ", "\n", "7", "!", "\U0001f409"])
@pytest.mark.parametrize("split", ["gpt-2", "smollm", "llama-bpe", "default", "tekken",
                                   "deepseek-v3", "pieces"])
def test_text_without_words(split, character):
    """A text that is one word takes time as its length, but for a logarithm."""
    if split == "pieces":
        words = pieces({"\u2581": 0.0, "t": 0.0, "tt": -1.0, "tttt": -2.0})
        tokenizer = open_tokenizer(PieceVocabulary(*zip(*_entries(words), strict=True),
                                                   start=1, end_of_document=2))
    else:
        tokenizer = open_tokenizer(Vocabulary(
            ("<|endoftext|>", *byte_symbols(), "tt", "tttt"), ("t t", "tt tt"), 0, split=split))
    seconds = []
    for length in (25_000, 100_000):
        began = time.process_time()
        tokenizer.encode(character * length)
        seconds.append(time.process_time() - began)
    # Four times the text: 16 times the time would be quadratic.
    assert seconds[1] < 9 * max(seconds[0], LEAST_SECONDS / 20)


def _entries(data):
    """Yield tokens and scores of a tokenizer of llama2.c."""
    offset = 4
    while offset < len(data):
        score, length = struct.unpack_from("<fi", data, offset)
        offset += 8 + length
        yield data[offset - length:offset].decode(), score
