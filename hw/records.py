"""The records of docs/results: the only writer, the reader, and what each of them measures.

A record is a JSON file with ``command``, ``versions``, ``configuration`` and ``rows``. Each row has
``sources``, the hash of the sources that it measured. A row whose sources have changed since, or
that has no hash, is stale: its figures may be those of another design.
"""

import ast
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

__all__ = ["CHANGED", "MAKERS", "RESULTS", "ROOT", "Maker", "makers_of", "read_record",
           "source_hash", "stale", "write_record"]

ROOT = pathlib.Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results"

#: ``sources`` of a row whose sources were edited while it was measured: it is stale at once.
CHANGED = "changed while it was measured"

_PACKAGES = ("hw", "sim", "host")
_STARTED = time.time()

Row = Mapping[str, object]


@dataclasses.dataclass(frozen=True)
class Maker:
    """A command that makes records.

    Attributes
    ----------
    records : tuple of str
        Names of the files in docs/results that the command writes, without ``.json``.
    sources : callable
        Takes a row, and returns what the row measures, as :func:`source_hash` takes it.
    """

    records: tuple[str, ...]
    sources: Callable[[Row], tuple[str, ...]]


def _always(*sources: str) -> Callable[[Row], tuple[str, ...]]:
    return lambda row: sources


def _bench_or_board(row: Row) -> tuple[str, ...]:
    bench = f"sim/bench/bench_{row.get('unit')}.py"
    if (ROOT / bench).is_file():
        return (bench.removesuffix(".py").replace("/", "."), "hw/synth/netlist.py",
                "sim/netlist.py", "sim/models/ecp5.v", "sim/models/ecp5_netlist.v")
    return _BOARD_NETLIST


_BOARD_NETLIST = ("hw.boards.top", "hw/synth/netlist.py", "host/measure/board_netlist.py",
                  "sim/models/")
_MODELS = ("host/models/", "sim/golden/")
_SIMULATED = ("sim.fast.machine", "sim/fast/", "sim.timing.program", "host.compiler.compile")
_MASKED = ("host.measure.evaluate", "host.compress.calibrate", *_MODELS)

#: Every command that makes records, by its words behind ``python -m``. The sources are names and
#: no imports: nothing of host or sim is needed here.
MAKERS: dict[str, Maker] = {
    "hw.build": Maker(("boards", "board_parts"), _always("hw.boards.top", "hw/synth/netlist.py")),
    "hw.energy": Maker(("energy",), _always("hw.energy.units", "hw/energy/recorded.npz")),
    "hw.synth": Maker(("units",), lambda row: (str(row.get("module")),)),
    "sim engine": Maker(("engine",), _always("sim.bench.bench_engine")),
    "sim faults": Maker(("faults",), _always("hw/", "sim/bench/", "sim/faults.py")),
    "sim lmul-error": Maker(("lmul_error",), _always("sim.lmul_error")),
    "sim mutate": Maker(("mutants",), _always()),       # its rows have hashes of their own
    "sim netlist": Maker(("netlists",), _bench_or_board),
    "sim programs": Maker(("programs",), _always("sim.programs.command", "sim/fast/")),
    "sim prove": Maker(("proofs",), _always("sim.formal.proofs", "sim.formal.solver")),
    "host attention": Maker(("attention",), _always("host.measure.speed", *_SIMULATED)),
    "host compare": Maker(("transformers",), _always("host.measure.compare", *_MODELS)),
    "host evaluate": Maker(("accuracy", "model"), _always("host.measure.evaluate", *_MODELS)),
    "host fit": Maker((), _always("host.compiler.fit")),
    "host fuzz": Maker(("fuzz",), _always("host.fuzz.fuzz")),
    "host models": Maker(("models",), _always("host.measure.models", *_MODELS, "host/files/")),
    "host prefill": Maker(("prefill",), _always("host.measure.speed", *_SIMULATED)),
    "host soak": Maker(("link_soak",), _always("host.measure.soak", "sim/fast/")),
    "host speed": Maker(("token", "simulator"), _always("host.measure.speed", *_SIMULATED)),
    "host experiment density": Maker(
        ("twell",), _always("host/cli/experiment/density.py", "host.measure.evaluate", *_MODELS)),
    "host experiment wina": Maker(
        ("wina", "together"), _always("host/cli/experiment/wina.py", *_MASKED)),
    "host experiment cycles": Maker(
        ("twell", "wina", "together"),
        _always("host/cli/experiment/cycles.py", "host/cli/experiment/wina.py", *_MASKED,
                *_SIMULATED)),
    "host experiment integer": Maker(
        ("wina_integer",), _always("host/cli/experiment/integer.py", "host.compress.calibrate",
                                   "host.compress.pareto", *_MODELS)),
    "host experiment rotation": Maker(
        ("wina_rotation",), _always("host/cli/experiment/rotation.py", "host.compress.rotation",
                                    *_MODELS)),
    "host experiment l1": Maker(("l1",), _always("host/cli/experiment/l1.py", "host/train/")),
    "host experiment tensor": Maker(
        ("compression",), _always("host.compress.pareto", "host.compress.profile",
                                  "host.compress.heal", *_MODELS)),
    "host experiment device": Maker(
        ("compression_device",), _always("host/cli/experiment/device.py", "host.compress.pareto",
                                         *_SIMULATED)),
    "host experiment board": Maker(
        ("board_tokens",), _always("host.measure.board_tokens", "sim/fast/",
                                   "host.compiler.compile")),
    "host experiment memory": Maker(
        ("memory",), _always("hw.memory.sdram", "hw/synth/netlist.py", "sim.timing.units")),
    "host experiment tokenizers": Maker(
        ("tokenizers",), _always("host/text/", "host/files/vocabulary.py",
                                 "host/measure/tokenization.py")),
    "host experiment energy": Maker(
        ("token_energy", "energy_claims"),
        _always("host.measure.energy", "host.compiler.compile", "host.compress.calibrate",
                "docs/results/energy.json", *_MODELS)),
    "host experiment netlist": Maker(("netlists",), _always(*_BOARD_NETLIST)),
}


# Sources.

@functools.cache
def _imported(module: str, package: bool, text: str) -> frozenset[str]:
    """Names of the project that the text of a module imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                parts = parts[:len(parts) - node.level + package]
                base = ".".join([*parts, base] if base else parts)
            # A name of a package may be a module of it.
            found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return frozenset(name for name in found if name.partition(".")[0] in _PACKAGES)


def _file(module: str) -> pathlib.Path | None:
    path = ROOT.joinpath(*module.split("."))
    for file in (path.with_name(f"{path.name}.py"), path / "__init__.py"):
        if file.is_file():
            return file
    return None


def _with_imports(module: str) -> set[pathlib.Path]:
    """Files of a module, of the packages around it, and of all that these import."""
    files: dict[str, pathlib.Path] = {}
    todo = [module]
    while todo:
        name = todo.pop()
        # How a row is written changes no figure in it.
        file = None if name in files or name == __name__ else _file(name)
        if file is None:
            continue
        files[name] = file
        todo += _imported(name, file.name == "__init__.py", file.read_text(encoding="utf-8"))
        if "." in name:
            todo.append(name.rpartition(".")[0])
    return set(files.values())


def _files(source: str) -> set[pathlib.Path]:
    path = ROOT / source
    if "/" not in source:
        found = _with_imports(source) if source.partition(".")[0] in _PACKAGES else set()
    elif path.is_dir():
        found = {file for file in path.rglob("*")
                 if file.is_file() and "__pycache__" not in file.parts}
    else:
        found = {path} if path.is_file() else set()
    if not found:
        raise ValueError(f"Source {source!r} is neither a module nor a file of the project")
    return found


def _all_files(sources: Iterable[str]) -> list[pathlib.Path]:
    return sorted({file for source in sources for file in _files(source)})


def source_hash(*sources: str) -> str:
    """Return a hash of files of the project, whatever their order and wherever they lie.

    Parameters
    ----------
    *sources : str
        What is measured. A name with dots, as ``hw.engine.engine``, is a module with all modules of
        the project that it imports, directly or not; a name with a slash, as ``sim/golden/`` or
        ``sim/lmul_error.py``, is a folder with all that is in it, or one file.

    Returns
    -------
    str
        12 hexadecimal digits of SHA-256.

    Raises
    ------
    ValueError
        If there is no such module, folder or file.
    """
    digest = hashlib.sha256()
    for file in _all_files(sources):
        text = file.read_bytes()
        digest.update(f"{file.relative_to(ROOT).as_posix()}\0{len(text)}\0".encode())
        digest.update(text)
    return digest.hexdigest()[:12]


def stale(row: Row, makers: Iterable[str], hash_of: Callable[..., str] | None = None) -> bool:
    """Whether the sources of a row are no more those that it measured.

    Parameters
    ----------
    row : mapping
        A row of a record.
    makers : iterable of str
        Keys of :data:`MAKERS`: the commands that may have made the row.
    hash_of : callable, optional
        Takes the place of :func:`source_hash`, for one that remembers what it found.

    Returns
    -------
    bool
        True as well for a row without a hash, and for sources that are gone.
    """
    for maker in makers:
        try:
            if row.get("sources") == (hash_of or source_hash)(*MAKERS[maker].sources(row)):
                return False
        except ValueError:
            continue
    return True


def makers_of(command: str) -> list[str | None]:
    """Return the key of :data:`MAKERS` of each command of a record.

    Parameters
    ----------
    command : str
        Field ``command`` of a record; several commands have semicolons between them.

    Returns
    -------
    list of (str or None)
        In the order of the commands; None for one that makes no record.
    """
    found: list[str | None] = []
    for part in re.split(r";\s*", command):
        python, _, words = part.partition(" -m ")
        known = [maker for maker in MAKERS
                 if python == "python" and f"{words} ".startswith(f"{maker} ")]
        found.append(max(known, key=len, default=None))
    return found


# Files.

def read_record(name: str | pathlib.Path) -> dict:
    """Read a record.

    Parameters
    ----------
    name : str or path
        Name of a file in docs/results, without ``.json``, or the path of any file.

    Returns
    -------
    dict
        The record; an empty one, without command and rows, if there is no such file.
    """
    try:
        return json.loads(_path(name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {"command": "", "versions": {}, "configuration": {}, "rows": []}


def write_record(name: str | pathlib.Path, *, maker: str, command: str, versions: dict[str, str],
                 configuration: Mapping[str, object], rows: Iterable[Row],
                 key: Sequence[str] = (), keep: Callable[[dict], bool] = lambda row: True,
                 order: Callable[[dict], object] | None = None) -> pathlib.Path:
    """Write a record at once: whoever reads it finds the old one or the new one, and no part.

    Parameters
    ----------
    name : str or path
        Name of a file in docs/results, without ``.json``, or the path of any file.
    maker : str
        Key of :data:`MAKERS`: which command measured the rows.
    command, versions, configuration : str, dict, mapping
        How the rows were made.
    rows : iterable of mapping
        What was measured. A row without ``sources`` gets the hash of what it measured; a row that
        has one keeps it, so that rows may be copied from a record.
    key : sequence of str
        Fields that tell rows apart. Rows of the file whose fields are not those of any new row stay
        as they are, in front of the new ones. Without a key all rows of the file go.
    keep : callable
        Takes a row of the file, and tells whether it may stay.
    order : callable, optional
        Takes a row, and returns what the rows are sorted by.

    Returns
    -------
    path
        The file.
    """
    path = _path(name)
    made = [_stamped(row, maker) for row in rows]
    kept: list[dict] = []
    if key:
        new = [[row.get(field) for field in key] for row in made]
        kept = [row for row in read_record(path)["rows"]
                if keep(row) and [row.get(field) for field in key] not in new]
    written = kept + made if order is None else sorted(kept + made, key=order)  # type: ignore
    record = {"command": command, "versions": versions, "configuration": configuration,
              "rows": written}
    text = json.dumps(record, indent=1) + "\n"
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(handle, "w", encoding="utf-8") as file:
            file.write(text)
        # A temporary file is its owner's alone; a record has the rights of any new file.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    return path


def _path(name: str | pathlib.Path) -> pathlib.Path:
    return name if isinstance(name, pathlib.Path) else RESULTS / f"{name}.json"


def _stamped(row: Row, maker: str) -> dict:
    if "sources" in row:
        return dict(row)
    sources = MAKERS[maker].sources(row)
    edited = max(file.stat().st_mtime for file in _all_files(sources)) > _STARTED
    return {**row, "sources": CHANGED if edited else source_hash(*sources)}
