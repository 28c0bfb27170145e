"""Checkpoints as they are published: a directory with ``config.json`` and ``*.safetensors`` files.

Several files need ``model.safetensors.index.json``, which says where each tensor is. Every message
names file, key or tensor, and what is wrong.
"""

import math
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from host.checks import LONGEST_JSON, JSONError, parse_json
from host.files.errors import ModelFileError, wrong_number, wrong_scale
from host.files.kinds import foreign
from host.files.tensors import TernaryMatrix
from host.files.vocabulary import read_checkpoint_dialogue
from host.text.vocabulary import TokenizerFile

__all__ = ["Checkpoint"]

_INDEX = "model.safetensors.index.json"
_LONGEST_HEADER = 16 << 20      # bytes; headers in use have less than one million
# Importing ml_dtypes is also what makes bf16 known to safetensors.
_FLOATS = {"BF16": ml_dtypes.bfloat16, "F16": np.float16, "F32": np.float32}


class Checkpoint:
    """Checked access to the configuration and the tensors of one checkpoint.

    Parameters
    ----------
    path : Path
        Directory.

    Attributes
    ----------
    path : Path
    bytes : int
        Size of all files with tensors.
    architecture : object
        What the configuration says that its architecture is.
    notes : list of str
        What reading it had to assume, for people.

    Raises
    ------
    ModelFileError
        By every method as well, if what is asked for is missing or not as it must be.
    """

    architecture_key = "key model_type of config.json"

    def __init__(self, path: Path):
        self.path = path
        self.notes: list[str] = []
        self._asked_keys: set[str] = set()
        self._asked_tensors: set[str] = set()
        self._config = self._json("config.json")
        self.architecture: object = self.value("model_type")
        self._files = self._find()
        self.bytes = sum(path.stat().st_size for path in set(self._files.values()))

    def error(self, message: str) -> ModelFileError:
        """Put the directory's name in front of what is wrong with it."""
        return ModelFileError(f"{self.path}: {message}")

    def _json(self, name: str) -> dict[str, Any]:
        path = self.path / name
        try:
            with open(path, "rb") as file:
                data = file.read(LONGEST_JSON + 1)
            what = foreign(data)
            if what:
                raise ModelFileError(f"{path}: this is {what}")
            content = parse_json(data)
        except OSError as error:
            raise ModelFileError(f"{path}: {error.strerror}") from None
        except JSONError as error:
            raise ModelFileError(f"{path}: not JSON: {error}") from None
        if not isinstance(content, dict):
            raise ModelFileError(f"{path}: must hold an object, not {type(content).__name__}")
        return content

    def _find(self) -> dict[str, Path]:
        """Return the file of each tensor, which is there and whole."""
        if (self.path / _INDEX).is_file():
            places = self._json(_INDEX).get("weight_map")
            if not isinstance(places, dict) or not all(
                    isinstance(name, str) and Path(name).name == name
                    for name in places.values()):
                raise ModelFileError(f"{self.path / _INDEX}: key weight_map must give the name of "
                                     f"a file for each tensor")
            wanted: dict[str, list[str]] = {}
            for tensor, name in places.items():
                wanted.setdefault(name, []).append(tensor)
            for name, tensors in sorted(wanted.items()):
                path = self.path / name
                missing = sorted(set(tensors) - self._tensors(path))
                if missing:
                    raise ModelFileError(f"{path}: tensor {missing[0]} is missing, which {_INDEX} "
                                         f"says is here")
            return {tensor: self.path / name for tensor, name in places.items()}
        found = sorted(self.path.glob("*.safetensors"))
        if not found and any(self.path.glob("pytorch_model*.bin")):
            raise self.error("must hold *.safetensors: it has weights in pytorch_model*.bin alone, "
                             "a pickle, which can run any program; save them as safetensors")
        if len(found) != 1:
            raise self.error(f"must hold one file *.safetensors, or {_INDEX}, "
                             f"not {len(found)} files")
        return dict.fromkeys(self._tensors(found[0]), found[0])

    def _tensors(self, path: Path) -> set[str]:
        """List the tensors of a file; the package checks that it is as long as they need."""
        if not path.is_file():
            raise ModelFileError(f"{path}: No such file")
        try:
            # The package reads a header of any length, and takes it apart.
            with open(path, "rb") as file:
                head = file.read(64)
            what = foreign(head)
            if what:
                raise ModelFileError(f"{path}: this is {what}")
            length, = struct.unpack("<Q", head[:8]) if len(head) >= 8 else (0,)
            if length > _LONGEST_HEADER:
                raise ModelFileError(f"{path}: damaged: the header must have at most "
                                     f"{_LONGEST_HEADER} bytes, not {length}")
            with safe_open(path, "np") as file:
                return set(file.keys())
        except (SafetensorError, OSError) as error:
            raise ModelFileError(f"{path}: damaged or truncated: {error}") from None

    def value(self, key: str, default: object = None) -> Any:
        """Return a value of the configuration, ``default`` where it is missing.

        Parameters
        ----------
        key : str
            With a dot, as ``rope_scaling.factor``: of an object in it.
        default : object
        """
        self._asked_keys.add(key)
        found: Any = self._config
        for name in key.split("."):
            if not isinstance(found, dict) or name not in found:
                return default
            found = found[name]
        return found

    def unread(self) -> list[tuple[str, str]]:
        """List what nobody has asked for: ``("key", name)`` and ``("tensor", name)``.

        Of an object in the configuration, each of its keys counts.
        """
        return [*(("key", key) for key in _names(self._config) if key not in self._asked_keys),
                *(("tensor", name) for name in self._files if name not in self._asked_tensors)]

    def must_be(self, key: str, *allowed: object) -> None:
        """Check that a value of the configuration, if it is there, is one that is supported."""
        value = self.value(key, allowed[0])
        # True equals 1, but is no count.
        if not any(value == known and type(value) is type(known) for known in allowed):
            raise self.error(f"key {key} of config.json must be "
                             f"{' or '.join(map(repr, allowed))}, not {value!r}")

    def positive_int(self, key: str, default: int | None = None, most: int = 2**31 - 1) -> int:
        """Return a value of the configuration that must be a positive integer.

        Where it is missing, or null, it is the default.
        """
        value = self.value(key)
        if value is None:
            value = default
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.error(f"key {key} of config.json must be a positive integer, not {value!r}")
        if value > most:
            raise self.error(f"key {key} of config.json must be at most {most}, not {value}")
        return value

    def positive_float(self, key: str, default: float | None = None, *, least: float = 0.0,
                       most: float = math.inf) -> float:
        """Return a value of the configuration that must be positive, from ``least`` to ``most``.

        Where it is missing, or null, it is the default.
        """
        value = self.value(key)
        if value is None:
            value = default
        if not isinstance(value, int | float) or isinstance(value, bool) or not (
                0 < value < float("inf")):
            raise self.error(f"key {key} of config.json must be a positive number, not {value!r}")
        if not least <= value <= most:
            raise self.error(f"key {key} of config.json must be from {least} to {most}, "
                             f"not {value!r}")
        return float(value)

    def scale(self, name: str) -> float:
        """Return a tensor of one number that a matrix is scaled by."""
        scale = float(self.tensor(name, (1,))[0])
        wrong = wrong_scale(scale)
        if wrong:
            raise self.error(f"tensor {name} {wrong}")
        return scale

    def tensor(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Return a tensor of finite numbers as float32; 16-bit numbers are held exactly."""
        path = self._file(name)
        with safe_open(path, "np") as file:
            part = file.get_slice(name)
            if tuple(part.get_shape()) != shape:
                raise ModelFileError(f"{path}: tensor {name} must have shape {shape}, "
                                     f"not {tuple(part.get_shape())}")
            if part.get_dtype() not in _FLOATS:
                raise ModelFileError(f"{path}: tensor {name} must have type "
                                     f"{' or '.join(_FLOATS)}, not {part.get_dtype()}")
            values = file.get_tensor(name).view(_FLOATS[part.get_dtype()]).astype(
                np.float32, copy=False)
        wrong = wrong_number(values)
        if wrong:
            raise ModelFileError(f"{path}: tensor {name} {wrong}")
        if len(shape) > 1 and not values.any():
            raise ModelFileError(f"{path}: tensor {name} is zero everywhere: the file was not "
                                 f"written, or not downloaded, to its end")
        return values

    def _file(self, name: str) -> Path:
        """Return the file that a tensor is in, which is there."""
        path = self._files.get(name)
        if path is None:
            raise self.error(f"tensor {name} is missing")
        self._asked_tensors.add(name)
        return path

    def has(self, name: str) -> bool:
        """Whether there is a tensor of this name."""
        return name in self._files

    def packed(self, name: str, shape: tuple[int, int]) -> NDArray[np.int8]:
        """Return a matrix of trits that are packed four in a byte, as BitNet has them.

        Byte row ``r`` holds rows ``r + n * rows / 4``, n = 0 in the lowest bits; a trit is its code
        less 1.
        """
        path = self._file(name)
        rows, columns = shape
        with safe_open(path, "np") as file:
            part = file.get_slice(name)
            if tuple(part.get_shape()) != (rows // 4, columns) or rows % 4:
                raise ModelFileError(f"{path}: tensor {name} must have shape "
                                     f"{(rows // 4, columns)}, a quarter of the rows, "
                                     f"not {tuple(part.get_shape())}")
            if part.get_dtype() != "U8":
                raise ModelFileError(f"{path}: tensor {name} must have type U8: trits, packed, "
                                     f"not {part.get_dtype()}")
            data = file.get_tensor(name)
        trits = np.empty((4, rows // 4, columns), np.int8)
        for quarter, part in enumerate(trits):      # one at a time needs less memory
            np.subtract(data >> np.uint8(2 * quarter) & np.uint8(3), 1, out=part, casting="unsafe")
            wrong = np.flatnonzero(part.reshape(-1) > 1)
            if wrong.size:
                row, column = divmod(int(wrong[0]), columns)
                raise ModelFileError(f"{path}: tensor {name} must be ternary, but row "
                                     f"{quarter * (rows // 4) + row} column {column} has code 3")
        return trits.reshape(shape)

    def ternary_reader(self) -> Callable[[str, tuple[int, int]], TernaryMatrix] | None:
        """Return what reads a packed matrix by its name, or None where matrices are not packed.

        Two classes of layers hold the scale under one name: products of ``bitlinear`` are divided
        by it, those of ``autobitlinear`` multiplied.
        """
        if self.value("quantization_config") is None:
            return None
        if self.value("quantization_config.quant_method") != "bitnet":
            raise self.error(f"key quantization_config of config.json must have the quant_method "
                             f"'bitnet', not {self.value('quantization_config.quant_method')!r}: "
                             f"the weights of other methods are not supported in safetensors; a "
                             f"GGUF file of the model may be"[:300])
        self.must_be("quantization_config.use_rms_norm", False)
        kind = self.value("quantization_config.linear_class", "bitlinear")
        if kind not in ("bitlinear", "autobitlinear"):
            raise self.error(f"key linear_class of config.json must be 'bitlinear' or "
                             f"'autobitlinear', not {kind!r}"[:300])

        def read(name: str, shape: tuple[int, int]) -> TernaryMatrix:
            scale = self.scale(f"{name}.weight_scale")
            return TernaryMatrix(self.packed(f"{name}.weight", shape),
                                 1 / scale if kind == "bitlinear" else scale)
        return read

    def vocabulary(self, vocab: int) -> TokenizerFile:
        """Return the tokenizer's file, and the tokens that a document begins and ends with."""
        ends: dict[str, int] = {}
        for key in ("eos_token_id", "bos_token_id"):
            value = self.value(key)
            if isinstance(value, list) and value:
                value = value[0]        # several tokens end an answer; this one ends a document
            if value is None:
                value = ends.get("eos_token_id")
            if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < vocab:
                raise self.error(f"key {key} of config.json must be a token below {vocab}, "
                                 f"not {value!r}")
            ends[key] = value
        return TokenizerFile(self.path / "tokenizer.json", vocab, ends["bos_token_id"],
                             ends["eos_token_id"],
                             **read_checkpoint_dialogue(self.path, self._json, vocab))


def _names(config: dict[str, Any], before: str = "") -> Iterator[str]:
    """List the keys of a configuration, those of an object in it behind its own and a dot."""
    for key, value in config.items():
        if isinstance(value, dict) and value:
            yield from _names(value, f"{before}{key}.")
        else:
            yield before + key
