"""Model files that are wrong, by the thousand: each gives a model or one line that says why not.

Small models are written, bytes of them are changed, and they are read again, in a process that may
use little more memory than before and a few seconds for each file. Anything but a model or a
:class:`host.files.errors.ModelFileError` of one line is a crash: another exception, a hang, too
much memory, a warning, the end of the process.
"""

import dataclasses
import functools
import importlib.metadata
import json
import multiprocessing
import platform
import resource
import signal
import struct
import tempfile
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import gguf
import numpy as np

from host.files.errors import ModelFileError
from host.files.examples import (
    bitnet_config,
    bitnet_gguf,
    bitnet_tensors,
    checkpoint,
    llama2c,
    llama_gguf,
    llama_tensors,
    pieces,
    tokenizer_json,
)
from host.models.registry import read_model
from host.text.tokenizer import open_tokenizer

__all__ = ["READERS", "Outcome", "fuzz", "mutate", "read", "write_outcomes"]

#: Address space that a process may take beyond what it had, for files of a few hundred kilobytes.
MEMORY = 256 << 20

#: Seconds that reading may take; a good file takes some hundredths.
SECONDS = 10

#: A model as its files; the first is what is opened, "." the directory.
Files = dict[str, bytes]


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
    return [{"model.gguf": llama_gguf(_llama(), heads=2, kv_heads=1, types=types)},
            {"model.gguf": bitnet_gguf(_bitnet())}]


def _llama2c_files() -> list[Files]:
    return [{"model.bin": llama2c(_llama(), heads=2, kv_heads=1),
             "tok259.bin": pieces({})}]


def _checkpoint_files() -> list[Files]:
    return [{".": b"", "config.json": json.dumps(bitnet_config(_bitnet())).encode(),
             "model.safetensors": checkpoint(_bitnet()),
             "tokenizer.json": tokenizer_json().encode()}]


#: Files to begin with, by the reader that is tried.
READERS: dict[str, Callable[[], list[Files]]] = {
    "gguf": _gguf_files, "checkpoint": _checkpoint_files, "llama2c": _llama2c_files}

_NUMBERS = (0, 1, 2, 3, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1,
            2**40, 2**63 - 1, 2**63, 2**64 - 1)
_VALUES: tuple[object, ...] = (None, True, -1, 0, 1, 3, 2**40, 1e300, "", "other", [], [0], {},
                               {"a": 1})


def mutate(files: Files, rng: np.random.Generator) -> Files:
    """Change one file of a model, in one to four places."""
    name = str(rng.choice([name for name, data in files.items() if data]))
    data = bytearray(files[name])
    if name == "config.json" and rng.random() < 0.8:
        return {**files, name: _change_json(bytes(data), rng)}
    for _ in range(int(rng.integers(1, 5))):
        # Mostly where the structure is: weights can be anything.
        end = len(data) if rng.random() < 0.3 else min(len(data), 12000 if rng.random() < 0.5
                                                       else 600)
        at = int(rng.integers(0, max(end, 1)))
        match int(rng.integers(0, 7)):
            case 0 | 1:
                data[at:at + 1] = bytes([int(rng.integers(0, 256))])
            case 2:
                data[at:at + 1] = bytes([data[at] ^ 1 << int(rng.integers(0, 8))]) if data else b""
            case 3 | 4:
                width = "<I" if rng.random() < 0.5 else "<Q"
                size = struct.calcsize(width)
                number = _NUMBERS[int(rng.integers(0, len(_NUMBERS)))] & (1 << 8 * size) - 1
                data[at:at + size] = struct.pack(width, number)
            case 5:
                del data[at:at + int(rng.integers(1, 64))]
            case 6:
                if rng.random() < 0.5:
                    del data[at:]
                else:
                    data[at:at] = data[at:at + int(rng.integers(1, 64))]
    return {**files, name: bytes(data)}


def _change_json(data: bytes, rng: np.random.Generator) -> bytes:
    """Replace or leave out one value, also of an object within."""
    config = json.loads(data)
    place = config
    if rng.random() < 0.2:
        place = config["quantization_config"]
    key = str(rng.choice(list(place)))
    if rng.random() < 0.2:
        del place[key]
    else:
        place[key] = _VALUES[int(rng.integers(0, len(_VALUES)))]
    return json.dumps(config).encode()


def read(directory: Path, files: Files) -> str | None:
    """Write a model's files, read them as ``python -m host`` does, and return the error if any."""
    for name, data in files.items():
        if name != ".":
            (directory / name).write_bytes(data)
    opened = next(iter(files))
    try:
        model = read_model(directory / opened)
        try:
            open_tokenizer(model.vocabulary)
        except ValueError as error:
            raise ModelFileError(str(error)) from None
        model.network()
    except ModelFileError as error:
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
        limit = _address_space() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        for number in range(first, last):
            rng = np.random.default_rng([list(READERS).index(reader), number])
            files = mutate(originals[number % len(originals)], rng)
            signal.alarm(seconds)
            try:
                error = reading(Path(directory), files)
                what = "model" if error is None else "error"
                if error is not None and "\n" in error:
                    what = f"message of several lines: {error!r}"
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
    record = {
        "command": command,
        "versions": {"python": platform.python_version(), "numpy": np.__version__,
                     **{name: importlib.metadata.version(name)
                        for name in ("gguf", "safetensors", "tokenizers")}},
        "configuration": {"memory_bytes": MEMORY, "seconds": SECONDS},
        "rows": [{"reader": outcome.reader, "files": outcome.files, "errors": outcome.errors,
                  "models": outcome.models, "crashes": len(outcome.crashes)}
                 for outcome in outcomes]}
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
