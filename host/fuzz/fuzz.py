"""Files that are wrong, by the thousand: each is read, or one line says why not.

Small files are written, changed by :mod:`host.fuzz.mutate`, and read again, in a process that
may use little more memory than before and a few seconds for each. Anything but success or the
reader's own error, of one short line that a terminal can show, is a crash: another exception, a
hang, too much memory, a warning, the end of the process.
"""

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import lzma
import multiprocessing
import platform
import resource
import signal
import tempfile
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import gguf
import numpy as np

from host.checks import LONGEST_MESSAGE, FileError, printable
from host.compress.chains import Choice, compress, layers_of
from host.compress.masks import ListMask, Masks, read_masks, write_masks
from host.files.image import read_image, write_image
from host.files.tensors import TernaryMatrix
from host.fuzz.mutate import Files, mutate
from host.measure.compare import read_llama
from host.models import mmfreelm, mpo_llama
from host.models.examples import (
    bitnet_config,
    bitnet_gguf,
    bitnet_tensors,
    checkpoint,
    llama2c,
    llama_checkpoint,
    llama_config,
    llama_gguf,
    llama_tensors,
    pieces,
    tokenizer_json,
)
from host.models.mmfreelm import Layer, TernaryLM
from host.models.registry import read_model
from host.models.tensor_train import Shape
from host.text.corpus import read_corpus
from host.text.tokenizer import TextError, byte_symbols, open_tokenizer
from host.text.vocabulary import Vocabulary
from hw.config import AcceleratorConfig
from hw.records import write_record

__all__ = ["READERS", "Outcome", "fuzz", "mutate", "read", "write_outcomes"]

#: Address space that a process may take beyond what it had, and that for each byte of the files.
MEMORY = 200_000_000
MEMORY_PER_BYTE = 4

#: Seconds that reading may take; a good file takes some hundredths.
SECONDS = 10


@functools.cache
def _llama() -> dict[str, np.ndarray]:
    return llama_tensors(width=32, ffn_width=32, kv_width=16, layers=1)


@functools.cache
def _bitnet() -> dict[str, np.ndarray]:
    return bitnet_tensors(width=128, ffn_width=128, kv_width=64, layers=1)


def _gguf_files() -> list[Files]:
    kinds = gguf.GGMLQuantizationType
    types = dict(zip(
        (name for name in _llama() if "norm" not in name),
        (kinds.Q8_0, kinds.Q4_0, kinds.Q4_1, kinds.F16, kinds.Q8_0, kinds.BF16, kinds.F32,
         kinds.Q4_0), strict=True))
    stretched = {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0,
                 "llama.rope.scaling.original_context_length": 16}
    return [{"model.gguf": llama_gguf(_llama(), heads=2, kv_heads=1, types=types)},
            {"model.gguf": bitnet_gguf(_bitnet())},
            {"model.gguf": llama_gguf(_llama(), heads=2, kv_heads=1, keys=stretched, changed={
                f"blk.0.{name}.bias": _gains(size) for name, size in (("attn_q", 32),
                                                                      ("ffn_up", 32))})},
            {"model.gguf": llama_gguf(
                _llama(), heads=2, kv_heads=1, architecture="gemma3", changed={
                    f"blk.0.{name}.weight": _gains(size) for name, size in (
                        ("attn_q_norm", 16), ("attn_k_norm", 16), ("post_attention_norm", 32),
                        ("post_ffw_norm", 32))})}]


def _gains(size: int) -> tuple[tuple[int, ...], int, bytes]:
    return (size,), 0, np.linspace(0.5, 1.5, size, dtype="<f4").tobytes()


def _llama2c_files() -> list[Files]:
    return [{"model.bin": data, "tok259.bin": pieces({})} for data in (
        llama2c(_llama(), heads=2, kv_heads=1),
        *(llama2c(_llama(), heads=2, kv_heads=1, version=version) for version in (1, 2)))]


def _checkpoint_files() -> list[Files]:
    words = {"tokenizer.json": tokenizer_json().encode()}
    config = {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                               "high_freq_factor": 4.0, "original_max_position_embeddings": 16},
              "no_rope_layers": [1]}
    return [{".": b"", "config.json": json.dumps(bitnet_config(_bitnet())).encode(),
             "model.safetensors": checkpoint(_bitnet()), **words},
            {".": b"", "config.json": json.dumps(
                llama_config(_llama(), "SmolLM3", heads=2, kv_heads=1) | config).encode(),
             "model.safetensors": llama_checkpoint(_llama()), **words}]


def _pieces_files() -> list[Files]:
    """Write a GGUF file with a tokenizer of SentencePiece."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)),
              "\u2581", "t", "h", "e", "th", "the", "\u2581the"]
    keys = {"tokenizer.ggml.model": "llama", "tokenizer.ggml.pre": None,
            "tokenizer.ggml.merges": None, "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.scores": [0.0] * 259 + [-1.0 - index for index in range(7)],
            "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, *[1] * 7],
            "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2}
    tensors = llama_tensors(width=32, ffn_width=32, kv_width=16, layers=1, vocab=len(tokens))
    return [{"model.gguf": llama_gguf(tensors, heads=2, kv_heads=1, keys=keys)}]


@functools.cache
def _ternary() -> TernaryLM:
    """Make a MatMul-free model of the smallest width that a file can hold."""
    rng = np.random.default_rng(1)

    def matrix(rows: int, columns: int) -> TernaryMatrix:
        return TernaryMatrix(rng.integers(-1, 2, (rows, columns), np.int8), 0.0625)

    width = 256
    words = Vocabulary(tokens=("<|endoftext|>", *byte_symbols(), "th", "the"),
                       merges=("t h", "th e"), end_of_document=0)
    layer = Layer(**{field.name: matrix(width, width) for field in dataclasses.fields(Layer)
                     if field.name != "forget_bias"}, forget_bias=np.zeros(width, np.float32))
    return TernaryLM(name="example", embedding=rng.integers(-13, 14, (259, width), np.int8),
                     embedding_scale=0.0625, layers=(layer,),
                     logit_scales={"lmul": 0.0625, "float": 0.0625}, vocabulary=words, metadata={})


def _written(name: str, write: Callable[[Path], None]) -> Files:
    """Return what a function writes to a file of some name."""
    with tempfile.TemporaryDirectory() as directory:
        write(Path(directory, name))
        return {name: Path(directory, name).read_bytes()}


def _own_files() -> list[Files]:
    """Write the GGUF files that only this project writes."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "llama.gguf")
        path.write_bytes(_gguf_files()[0]["model.gguf"])
        layers = layers_of(read_llama(path))
    choices = {name: Choice(Shape((rows,), (columns,)), (), 5)
               for name, (rows, columns) in ((name, matrix.shape)
                                             for name, matrix in layers.matrices[0].items())}
    choices["ffn_up"] = Choice(Shape((2, 16), (16, 2)), (4,), 3)
    chains = compress(layers, layers.chains([choices]), 6)
    return [_written("model.gguf", lambda path: mmfreelm.write_model(path, _ternary())),
            _written("model.gguf", lambda path: mpo_llama.write_model(path, chains))]


def _image_files() -> list[Files]:
    from host.compiler.compile import compile_model
    image = compile_model(_ternary(), AcceleratorConfig())
    return [_written("model.tally", lambda path: write_image(path, image))]


def _masks_files() -> list[Files]:
    masks = Masks("example", "0123456789abcdef", "wina", "greedy", 0.5,
                  tuple(ListMask(f"blk.{index}.mix_in", 256, 128, 7) for index in range(3)),
                  {"command": "none"})
    return [_written("masks.json", lambda path: write_masks(path, masks))]


def _corpus_files() -> list[Files]:
    documents = [f"Once upon a time, number {number}." for number in range(20)]
    text = "".join(f"{document}\n<|endoftext|>\n" for document in documents)
    lines = ["# text\tdocument\tpart\tdigest"] + [
        f"tales\t{number}\t{'heldout' if number % 3 == 0 else 'train'}\t"
        f"{hashlib.sha256(document.encode()).hexdigest()[:16]}"
        for number, document in enumerate(documents)]
    return [{"splits.tsv": ("\n".join(lines) + "\n").encode(),
             "tales.txt.xz": lzma.compress(text.encode(), preset=0)}]


#: Files to begin with, by the reader that is tried.
READERS: dict[str, Callable[[], list[Files]]] = {
    "gguf": _gguf_files, "checkpoint": _checkpoint_files, "llama2c": _llama2c_files,
    "pieces": _pieces_files, "own": _own_files, "image": _image_files, "masks": _masks_files,
    "corpus": _corpus_files}

_TEXT = "Once upon a time, there were the 3 others.\n"

def read(directory: Path, files: Files) -> str | None:
    """Write files, read them as ``python -m host`` does, and return the error if there is one."""
    for name, data in files.items():
        if name != "." and data is not None:    # what lies there already
            (directory / name).write_bytes(data)
    opened = next(iter(files))
    try:
        if opened == "model.tally":
            words = read_image(directory / opened).vocabulary
            if words is not None:
                open_tokenizer(words).encode(_TEXT)
        elif opened == "masks.json":
            read_masks(directory / opened)
        elif opened == "splits.tsv":
            read_corpus(directory)
        else:
            model = read_model(directory / opened)
            open_tokenizer(model.vocabulary).encode(_TEXT)
            model.network()
    except (FileError, TextError) as error:
        return str(error)
    finally:
        for name in files:
            if name != ".":
                (directory / name).unlink()
    return None


@dataclasses.dataclass
class Outcome:
    """What became of the files of one reader.

    Attributes
    ----------
    reader : str
    files, errors, models : int
        How many there were, could not be read, and could.
    crashes : list of str
        Number of the file and what happened.
    """

    reader: str
    files: int = 0
    errors: int = 0
    models: int = 0
    crashes: list[str] = dataclasses.field(default_factory=list)


def _alarm(signum: int, frame: object) -> None:
    raise TimeoutError("no answer")


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


Reading = Callable[[Path, Files], str | None]


def _work(reader: str, first: int, last: int, reading: Reading, seconds: int,
          pipe: Connection) -> None:
    """Read files and send the number of each, with what became of it."""
    warnings.simplefilter("error")
    originals = READERS[reader]()
    signal.signal(signal.SIGALRM, _alarm)
    # A file system in memory, where there is one.
    shared = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=shared) as directory:
        for files in originals:     # loads all that is loaded late, before memory is counted
            error = read(Path(directory), files)
            assert error is None, error
        size = max(sum(map(len, files.values())) for files in originals)
        limit = _address_space() + MEMORY + MEMORY_PER_BYTE * size
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        for number in range(first, last):
            rng = np.random.default_rng([list(READERS).index(reader), number])
            files = mutate(originals[number % len(originals)], rng)
            signal.alarm(seconds)
            try:
                error = reading(Path(directory), files)
                what = "model" if error is None else "error"
                if error is not None and printable(error) != error:
                    what = f"message that is not one printable line: {error!r}"
                if error is not None and len(error) > 2 * LONGEST_MESSAGE:
                    what = f"message of {len(error)} characters: {error[:80]!r}"
            except BaseException as problem:    # what a library lets through is what is sought
                what = f"{type(problem).__name__}: {problem}"
            finally:
                signal.alarm(0)
            pipe.send((number, what))


def fuzz(reader: str, files: int,
         report: Callable[[float, str], None] = lambda done, what: None, *,
         reading: Reading = read, seconds: int = SECONDS) -> Outcome:
    """Read changed files.

    Parameters
    ----------
    reader : str
        A key of :data:`READERS`.
    files : int
    report : callable
        Called with the share that is done, and what was found.
    reading : callable
        What reads a model's files in a directory, and returns an error.
    seconds : int
        That it may take.
    """
    context = multiprocessing.get_context("spawn")
    outcome = Outcome(reader)
    while outcome.files < files:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(
            reader, outcome.files, files, reading, seconds, sender))
        process.start()
        sender.close()
        try:
            while outcome.files < files:
                if not receiver.poll(30 + 2 * seconds):
                    raise EOFError
                number, what = receiver.recv()
                outcome.files = number + 1
                if what == "error":
                    outcome.errors += 1
                elif what == "model":
                    outcome.models += 1
                else:
                    outcome.crashes.append(f"file {number}: {what}")
                report(outcome.files / files, f"{len(outcome.crashes)} crashes")
        except EOFError:
            process.kill()
            outcome.crashes.append(f"file {outcome.files}: the process ended or hung")
            outcome.files += 1
        except BaseException:
            process.kill()
            raise
        process.join()
    return outcome


def write_outcomes(path: Path, command: str, outcomes: list[Outcome]) -> None:
    """Write outcomes as docs/results has them."""
    write_record(
        path, maker="host fuzz", command=command,
        versions={"python": platform.python_version(), "numpy": np.__version__,
                  **{name: importlib.metadata.version(name)
                     for name in ("gguf", "safetensors", "tokenizers")}},
        configuration={"memory_bytes": MEMORY, "memory_per_byte": MEMORY_PER_BYTE,
                       "seconds": SECONDS},
        rows=[{"reader": outcome.reader, "files": outcome.files, "errors": outcome.errors,
               "models": outcome.models, "crashes": len(outcome.crashes)}
              for outcome in outcomes])
