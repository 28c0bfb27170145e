"""The mask file: how many entries each list of a model may keep, and where that came from.

JSON, with the fields of :class:`Masks`. The column norms are not in it, since they follow from the
model: for ``wina`` :func:`sim.golden.wina.column_norms` of the matrices that a list drives, for
``teal`` 1. A file is good for one model only, which ``fingerprint`` tells.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from host.checks import LONGEST_JSON, FileError, JSONError, parse_json
from host.models.base import LanguageModel
from sim.golden.graph import Matrix
from sim.golden.wina import Mask, MaskMap, column_norms

__all__ = ["METHODS", "MODES", "MaskFileError", "Masks", "ListMask", "fingerprint", "list_columns",
           "list_norms", "list_rows", "read_masks", "write_masks"]

#: ``wina`` weighs an activation with the norm of its column, ``teal`` does not.
METHODS = ("wina", "teal")

#: Keep a fixed number of activations, or those above a fixed score.
MODES = ("top-k", "threshold")

_FORMAT = "tally-masks 1"


class MaskFileError(FileError):
    """A mask file cannot be used; the message is one line that names file, place and reason."""


def list_columns(matrices: Sequence[Matrix]) -> int:
    """Columns that the list of some matrices chooses from."""
    return matrices[0].weights.shape[1]


def list_rows(matrices: Sequence[Matrix]) -> int:
    """Rows of all matrices that a list drives: what one entry costs."""
    return sum(len(matrix.weights) for matrix in matrices)


def list_norms(matrices: Sequence[Matrix], method: str) -> NDArray[np.uint16]:
    """Column norms of a list; there is one list, so one mask, for all matrices that it drives."""
    if method == "teal":
        return np.ones(list_columns(matrices), np.uint16)
    return column_norms([matrix.weights for matrix in matrices],
                        [matrix.scale for matrix in matrices])


def fingerprint(model: LanguageModel) -> str:
    """16 hexadecimal digits that differ between models whose layers have other weights."""
    digest = hashlib.sha256()
    for matrices in model.network().lists().values():
        for matrix in matrices:
            digest.update(np.array(matrix.weights.shape, "<u4").tobytes())
            digest.update(np.ascontiguousarray(matrix.weights).tobytes())
    return digest.hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class ListMask:
    """Mask of one list, without its norms.

    Attributes
    ----------
    list : str
        Its label, a key of :meth:`sim.golden.graph.Network.lists`.
    columns : int
    keep : int
        Largest number of entries: K.
    threshold : int
        Score that an entry must exceed, for ``keep`` entries in the mean of the calibration text.
    """

    list: str
    columns: int
    keep: int
    threshold: int


@dataclasses.dataclass(frozen=True)
class Masks:
    """Masks of all lists of a model.

    Attributes
    ----------
    model, fingerprint : str
        Name and :func:`fingerprint` of the model.
    method : str
        One of :data:`METHODS`.
    allocation : str
        How the sparsity was shared out between the lists of a layer: ``greedy`` or ``uniform``.
    sparsity : float
        Share of the layers' trits that no list may reach, as asked for.
    lists : tuple of ListMask
        In the order of the model.
    provenance : dict
        Command, calibration text and versions.
    """

    model: str
    fingerprint: str
    method: str
    allocation: str
    sparsity: float
    lists: tuple[ListMask, ...]
    provenance: dict[str, Any]

    def of(self, model: LanguageModel, mode: str = "top-k") -> MaskMap:
        """Masks of ``model`` by the lists' labels.

        Raises
        ------
        MaskFileError
            If they were calibrated for another model, or name a list that it does not have.
        """
        actual = fingerprint(model)
        if actual != self.fingerprint:
            raise MaskFileError(f"Masks were calibrated for model {self.model} with the "
                                f"fingerprint {self.fingerprint}, but model {model.name} has "
                                f"{actual}; calibrate again")
        lists = model.network().lists()
        for mask in self.lists:
            if mask.list not in lists or mask.columns != list_columns(lists[mask.list]):
                raise MaskFileError(f"Masks name a list {mask.list} of {mask.columns} columns, "
                                    f"which model {model.name} does not have; calibrate again")
        return {mask.list: Mask(list_norms(lists[mask.list], self.method), mask.keep,
                                mask.threshold if mode == "threshold" else None)
                for mask in self.lists}

    def dropped(self, model: LanguageModel) -> float:
        """Share of the layers' trits that no list may reach: what :attr:`sparsity` came to."""
        lists = model.network().lists()
        rows = {mask.list: list_rows(lists[mask.list]) for mask in self.lists}
        return 1 - (sum(rows[mask.list] * mask.keep for mask in self.lists)
                    / sum(rows[mask.list] * mask.columns for mask in self.lists))


def write_masks(path: str | os.PathLike, masks: Masks) -> None:
    """Write a mask file."""
    fields = {"format": _FORMAT, **dataclasses.asdict(masks)}
    lists = ",\n".join("  " + json.dumps(mask) for mask in fields.pop("lists"))
    head = json.dumps(fields, indent=1).removesuffix("\n}")
    Path(path).write_text(f'{head},\n "lists": [\n{lists}\n ]\n}}\n', encoding="utf-8")


def _checked(path: Path, fields: dict[str, Any], name: str, kind: type) -> Any:
    value = fields.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise MaskFileError(f"{path}: field {name!r} must be of type {kind.__name__}, "
                            f"not {value!r}"[:300])
    return value


def read_masks(path: str | os.PathLike) -> Masks:
    """Read and check a mask file.

    Raises
    ------
    MaskFileError
        If it cannot be opened, is no mask file, or a field is missing or out of range.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            fields = parse_json(file.read(LONGEST_JSON + 1))
    except OSError as error:
        raise MaskFileError(f"{path}: {error.strerror}") from None
    except JSONError as error:
        raise MaskFileError(f"{path}: not a mask file: {error}") from None
    if not isinstance(fields, dict) or fields.get("format") != _FORMAT:
        raise MaskFileError(f"{path}: not a mask file: field 'format' must be {_FORMAT!r}")
    lists: list[ListMask] = []
    names: set[str] = set()
    for entry in _checked(path, fields, "lists", list):
        if not isinstance(entry, dict):
            raise MaskFileError(f"{path}: field 'lists' must hold objects, not {entry!r}"[:300])
        mask = ListMask(list=_checked(path, entry, "list", str),
                        **{name: _checked(path, entry, name, int)
                           for name in ("columns", "keep", "threshold")})
        place = f"{path}: list {mask.list}"
        if not 1 <= mask.keep <= mask.columns:
            raise MaskFileError(f"{place} must keep 1 to {mask.columns} entries, not {mask.keep}")
        if mask.threshold < 0:
            raise MaskFileError(f"{place} must have a threshold of at least 0, "
                                f"not {mask.threshold}")
        if mask.threshold >> 63:
            raise MaskFileError(f"{place} must have a threshold below 2**63, not {mask.threshold}")
        if mask.list in names:
            raise MaskFileError(f"{place} comes twice")
        names.add(mask.list)
        lists.append(mask)
    method = _checked(path, fields, "method", str)
    if method not in METHODS:
        raise MaskFileError(f"{path}: field 'method' must be {' or '.join(METHODS)}, "
                            f"not {method!r}")
    sparsity = _checked(path, fields, "sparsity", float)
    if not 0 <= sparsity <= 1:
        raise MaskFileError(f"{path}: field 'sparsity' must be from 0 to 1, not {sparsity}")
    return Masks(
        model=_checked(path, fields, "model", str),
        fingerprint=_checked(path, fields, "fingerprint", str), method=method,
        allocation=_checked(path, fields, "allocation", str),
        sparsity=sparsity, lists=tuple(lists),
        provenance=_checked(path, fields, "provenance", dict))
