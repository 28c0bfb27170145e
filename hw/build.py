"""``python -m hw.build``: Verilog, and bitstreams for boards with a report of area and clock.

::

    python -m hw.build list
    python -m hw.build BOARD [--seed N] [--no-pnr] [--program] [--record] [--lanes N ...]
    python -m hw.build verilog [--unit UNIT] [--lanes N ...] [--output FILE]

Every field of the configuration is an option, for boards as well. docs/verilog.md describes the
ports of what ``verilog`` writes, by default the whole accelerator with an AXI4 memory port.
Unit ``axi-accelerator`` has registers on AXI4-Lite too, and files for Vivado, FuseSoC and LiteX.
"""

import argparse
import collections
import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import json
import math
import pathlib
import re
import shlex
import sys
import time
from collections.abc import Iterable

from hw.boards.board import AcceleratorBoard, Board, EngineBoard
from hw.boards.catalog import BOARDS
from hw.boards.top import BoardTop, load_platform
from hw.config import AcceleratorConfig, EngineConfig
from hw.export import UNITS, write_unit
from hw.formats.minifloat import FORMATS, MiniFloat
from hw.records import read_record, source_hash, write_record
from hw.synth.loader import load_bitstream
from hw.synth.netlist import SYNTHESIS_OPTIONS, NetlistError, checked_netlist
from hw.synth.tool import ToolFailed, run_tool

__all__ = ["AREA", "BuildError", "build", "main"]

#: Columns of the area, each with the cells that count, ECP5's, iCE40's and Gowin's.
AREA = {
    "lut4": ("LUT4", "SB_LUT4", "LUT1", "LUT2", "LUT3"),
    "carry": ("CCU2C", "SB_CARRY", "ALU"),
    "lut_ram": ("TRELLIS_DPR16X4", "RAM16SDP1", "RAM16SDP2", "RAM16SDP4"),
    "ff": ("TRELLIS_FF", "SB_DFF", "DFF", "DFFE", "DFFR", "DFFRE", "DFFS", "DFFSE"),
    "block_ram": ("DP16KD", "PDPW16KD", "SB_RAM40_4K", "SP", "SPX9", "SDPB", "SDPX9B", "DPB",
                  "DPX9B", "pROM", "pROMX9"),
    "dsp": ("MULT18X18D", "ALU54B", "SB_MAC16", "MULT9X9", "MULT18X18", "MULT36X36"),
}

# What nextpnr calls the resources of a device.
_RESOURCES = {
    "TRELLIS_COMB": "LUT4", "TRELLIS_FF": "flip-flops", "TRELLIS_RAMW": "LUT RAM",
    "DP16KD": "block RAM", "ICESTORM_LC": "logic cells", "ICESTORM_RAM": "block RAM",
    "DFF": "flip-flops", "RAM16SDP4": "LUT RAM", "BSRAM": "block RAM",
}

# Families of devices by how their names begin, and the bitstream that each has.
_FAMILIES = {"LFE5": ("ecp5", "top.bit"), "iCE40": ("ice40", "top.bin"),
             "GW2A": ("gowin", "top.fs")}

# Parts of the board's system, by the path of their modules.
_LINK = {"link": ("receiver", "target", "transmitter", "entries", "program", "tokens", "answers",
                  "queue")}
_ENGINE_PARTS = {"engine": ("slice.engine",), "gearbox": ("slice.gearbox",),
                 "lmul": ("lmul",), **_LINK}
_ACCELERATOR_PARTS = {
    "engine": ("accelerator.engine_slice.engine",),
    "gearbox": ("accelerator.engine_slice.gearbox",),
    "control": ("accelerator.dispatch", "accelerator.prefetch"),
    "quantizer and lists": ("accelerator.quantizer", "accelerator.entry_collector",
                            "accelerator.sparse_vector", "accelerator.column_router"),
    "sparsity policy": ("accelerator.sparsity_policy",),
    "vector unit": ("accelerator.vector_unit",),
    "vector memory": ("accelerator.vector_memory", "accelerator.load_store"),
    "write-back": ("accelerator.write_back",),
    "top-k": ("accelerator.top_k",),
    "read engine": ("accelerator.read_engine",),
    "memory": ("memory", "shared"),
    "link": (*_LINK["link"], "requests", "writes", "reads", "results"),
}


class BuildError(Exception):
    """A build cannot be done; the message is one sentence for the user."""


def _area(cells: collections.Counter) -> dict[str, int]:
    """Sum the cells of each column; iCE40 has many kinds of flip-flop and of block RAM."""
    def belongs(cell: str, kinds: tuple[str, ...]) -> bool:
        return any(cell == kind or (kind.startswith("SB_") and cell.startswith(kind))
                   for kind in kinds)
    return {column: sum(count for cell, count in cells.items() if belongs(cell, kinds))
            for column, kinds in AREA.items()}


def _area_by_part(cells: dict[str, dict], parts: dict[str, tuple[str, ...]]) -> list[dict]:
    """Add up the cells of each part of the flat design, by the path in the cell's name."""
    found: dict[str, collections.Counter] = {part: collections.Counter() for part in parts}
    found["other"] = collections.Counter()
    for name, cell in cells.items():
        path = name.removeprefix("system.").removeprefix("device.")
        part = next((part for part, prefixes in parts.items()
                     if path.startswith(tuple(f"{prefix}." for prefix in prefixes))), "other")
        found[part][cell["type"]] += 1
    return [{"part": part, **_area(counts)} for part, counts in found.items()]


def _overflow(log: str) -> str:
    """Sentence about the resources that nextpnr's table says are too few, or an empty string."""
    table = re.findall(r"Info:\s+(\w+):\s*(\d+)/\s*(\d+)\s+\d+%", log)
    return " and ".join(
        f"{int(used):,} {_RESOURCES.get(name, name)} of the {int(available):,} available"
        for name, used, available in table if int(used) > int(available))


def _place_and_route(board: Board, command: list[str], folder: pathlib.Path) -> None:
    try:
        run_tool(command, folder)
    except ToolFailed as problem:
        log = folder / "top.tim"
        needed = _overflow(log.read_text()) if log.exists() else ""
        if needed:
            raise BuildError(f"The configuration does not fit board {board.name}: it needs "
                             f"{needed}") from problem
        raise


def _versions(tools: list[str], folder: pathlib.Path) -> dict[str, str]:
    packages = ["amaranth", "amaranth-boards"]
    # Of Gowin's tools the last, gowin_pack, does not say its version.
    if "nextpnr-himbaechel-gowin" in tools and importlib.util.find_spec("apycula"):
        packages.append("apycula")
    versions = {package: importlib.metadata.version(package) for package in packages}
    for tool in tools:
        line = run_tool([tool, "--version"], folder).strip().splitlines()[-1]
        found = re.search(r"(?:Version |Yosys )(\S+?)\)?(?: |$)", line)
        versions[tool] = found[1] if found else line
    return versions


def build(board: EngineBoard | AcceleratorBoard, folder: pathlib.Path, *, seed: int = 1,
          route: bool = True, say=lambda text: None) -> dict:
    """Build a board's bitstream and report on it.

    Parameters
    ----------
    board : EngineBoard or AcceleratorBoard
    folder : path
        Where all files go.
    seed : int
        Of the placement.
    route : bool
        Whether to place and route; if not, there is no clock and no bitstream.
    say : callable
        Takes a line for every step.

    Returns
    -------
    dict
        ``board``, ``device``, ``configuration``, the columns of :data:`AREA`, ``parts`` with the
        same by part, ``lanes``, ``port_bytes``, ``clock_mhz``, ``versions``; of an accelerator
        ``memory_bytes`` and ``weight_trits``, as many as fill it; and if routed ``fmax_mhz``,
        ``meets_clock``, ``bitstream`` (its path) and ``bitstream_sha256``. An SDRAM with a clock of
        its own has ``sdram_clock_mhz`` and ``sdram_fmax_mhz``.

    Raises
    ------
    BuildError
        If the configuration does not fit the device.
    ToolFailed
        If a tool is missing or stops.
    NetlistError
        If the synthesized netlist has a fault.
    """
    try:
        platform = load_platform(board)
    except ModuleNotFoundError as problem:
        raise BuildError("amaranth-boards is not installed; pip install -e '.[build]'") \
            from problem
    family, bitstream_name = next(found for prefix, found in _FAMILIES.items()
                                  if platform.device.startswith(prefix))
    # Of Gowin nextpnr derives no constraint of the PLL's clock.
    constraint = f" --freq {board.clock_hz / 1e6:g}" if family == "gowin" else ""
    plan = platform.build(
        BoardTop(board), do_build=False, synth_opts=SYNTHESIS_OPTIONS[family],
        script_after_synth="write_verilog -noattr top.v",
        nextpnr_opts=f"--seed {seed} --timing-allow-fail --report nextpnr.json{constraint}")
    folder.mkdir(parents=True, exist_ok=True)
    plan.extract(folder)

    # The platform's own commands, run one by one: a failure belongs to a step.
    script = (folder / "build_top.sh").read_text()
    named = {tool.upper().replace("-", "_"): tool for tool in platform.required_tools}
    commands = {}
    for line in script.splitlines():
        if line.startswith('"$'):
            variable, *arguments = shlex.split(line)
            tool = named[variable.removeprefix("$")]
            commands[tool] = [tool, *arguments]
    synthesis, place_and_route, pack = commands
    say(f"{board.name}: synthesis")
    run_tool(commands[synthesis], folder)
    cells = checked_netlist(folder / "top.json", "top")["cells"]
    parts = _area_by_part(cells, _ACCELERATOR_PARTS if isinstance(board, AcceleratorBoard)
                          else _ENGINE_PARTS)
    tools = [synthesis, place_and_route] if route else [synthesis]
    clocks = _clocks(board)
    report: dict = {
        "board": board.name, "device": platform.device,
        "configuration": dataclasses.asdict(board.config),
        "lanes": _engine(board.config).lanes, "port_bytes": board.config.port_bytes,
        **{f"{name}clock_mhz": mhz for name, mhz in clocks.items()},
        "baud": board.baud, "seed": seed,
        **{column: sum(part[column] for part in parts) for column in AREA}, "parts": parts,
        "versions": _versions(tools, folder), "sources": source_hash("hw"),
    }
    if isinstance(board, AcceleratorBoard):
        engine = board.config.engine
        report |= {"memory_bytes": board.config.memory_bytes,
                   "weight_trits": board.config.memory_bytes // engine.word_bytes * engine.lanes}
    if route:
        say(f"{board.name}: place and route")
        _place_and_route(board, commands[place_and_route], folder)
        say(f"{board.name}: bitstream")
        run_tool(commands[pack], folder)
        fmax = _fmax(board, json.loads((folder / "nextpnr.json").read_text())["fmax"].values())
        bitstream = folder / bitstream_name
        report |= {
            **{f"{name}fmax_mhz": round(mhz, 2) for name, mhz in fmax.items()},
            "meets_clock": all(fmax[name] >= mhz for name, mhz in clocks.items()),
            "bitstream": bitstream.as_posix(),
            "bitstream_sha256": hashlib.sha256(bitstream.read_bytes()).hexdigest(),
        }
    (folder / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    return report


def _clocks(board: EngineBoard | AcceleratorBoard) -> dict[str, float]:
    """Return the clocks in MHz, by what precedes their columns of the report."""
    clocks = {"": board.clock_hz / 1e6}
    if isinstance(board, AcceleratorBoard) and board.sdram_divider is not None:
        clocks["sdram_"] = board.sdram_hz / 1e6
    return clocks


def _fmax(board: EngineBoard | AcceleratorBoard, found: Iterable[dict[str, float]]
          ) -> dict[str, float]:
    """Return what nextpnr achieved for each of :func:`_clocks`, known by its constraint.

    With a PLL the oscillator's own net clocks nothing and is not among those ``found``.
    """
    clocks = _clocks(board)
    achieved = dict.fromkeys(clocks, math.inf)
    for clock in found:
        name = min(clocks, key=lambda name: abs(clocks[name] - clock["constraint"]))
        achieved[name] = min(achieved[name], clock["achieved"])
    return achieved


def _built(board: Board, folder: pathlib.Path, seed: int) -> dict | None:
    """Return the report of a bitstream in ``folder`` that a build would make again."""
    try:
        report = json.loads((folder / "report.json").read_text())
        bitstream = pathlib.Path(report["bitstream"]).read_bytes()
    except (OSError, ValueError, KeyError):
        return None
    same = (report["board"] == board.name and report["seed"] == seed
            and report["configuration"] == dataclasses.asdict(board.config)
            and report["sources"] == source_hash("hw")
            and report["bitstream_sha256"] == hashlib.sha256(bitstream).hexdigest())
    return report if same else None


def _print_report(report: dict) -> None:
    print(f"{'part':16}" + "".join(f"{column:>10}" for column in AREA))
    for row in [*report["parts"], {"part": "whole board", **report}]:
        print(f"{row['part']:16}" + "".join(f"{row[column]:10,}" for column in AREA))
    configuration = dict(report["configuration"])
    engine = configuration.pop("engine", None)
    for what, fields in (("accelerator", configuration), ("engine", engine)) if engine else (
            ("engine", configuration),):
        listed = ", ".join(f"{name} {value}" for name, value in fields.items())
        print(f"{f'{what}:':10} {listed}")
    if "memory_bytes" in report:
        print(f"model:     {report['memory_bytes']:,} bytes of memory, full with "
              f"{report['weight_trits']:,} trits; 'python -m host fit {report['board']}' says "
              f"which shapes fit")
    if "fmax_mhz" in report:
        verdict = "met" if report["meets_clock"] else "NOT MET"
        print(f"clock:     {report['fmax_mhz']} MHz achieved, {report['clock_mhz']:g} MHz "
              f"requested: {verdict}")
        if "sdram_fmax_mhz" in report:
            print(f"SDRAM:     {report['sdram_fmax_mhz']} MHz achieved, "
                  f"{report['sdram_clock_mhz']:g} MHz requested")
        print(f"bitstream: {report['bitstream']}, SHA-256 {report['bitstream_sha256']}")
    print("tools:     " + ", ".join(f"{tool} {version}"
                                    for tool, version in report["versions"].items()))


def _record(report: dict) -> None:
    """Put a report into docs/results: one row for the board, and one for each of its parts."""
    whole = {name: value for name, value in report.items()
             if name not in ("parts", "versions", "bitstream", "sources")}
    parts = [{"board": report["board"], **part} for part in report["parts"]]
    for name, rows in (("boards", [whole]), ("board_parts", parts)):
        write_record(name, maker="hw.build", command="python -m hw.build BOARD --record",
                     versions=read_record(name)["versions"] | report["versions"],
                     configuration={"synthesis": "-abc9, no DSP"}, rows=rows, key=("board",),
                     keep=lambda row: row["board"] in BOARDS,
                     order=lambda row: list(BOARDS).index(row["board"]))


def _engine(config: EngineConfig | AcceleratorConfig) -> EngineConfig:
    return config.engine if isinstance(config, AcceleratorConfig) else config


def _changed(board: EngineBoard | AcceleratorBoard, engine: dict,
             accelerator: dict) -> EngineBoard | AcceleratorBoard:
    """Return the board with other fields of its configuration."""
    if isinstance(board, AcceleratorBoard):
        changed = dataclasses.replace(board.config.engine, **engine)
        return dataclasses.replace(board, config=dataclasses.replace(board.config, engine=changed,
                                                                     **accelerator))
    if accelerator:
        raise ValueError(f"Board {board.name} has an engine and no accelerator: there is no "
                         f"{', '.join(accelerator)} to be set")
    return dataclasses.replace(board, config=dataclasses.replace(board.config, **engine))


def _list_boards() -> None:
    print(f"{'board':12} {'clock':>8} {'baud':>10}  engine")
    for board in BOARDS.values():
        accelerator = board.config if isinstance(board.config, AcceleratorConfig) else None
        engine = _engine(board.config)
        whole = (f"; a whole accelerator, {accelerator.memory_bytes // 1024} KiB of memory"
                 if accelerator else "")
        print(f"{board.name:12} {board.clock_hz / 1e6:4g} MHz {board.baud:10,}  "
              f"{engine.lanes} lanes, {engine.packing}, accumulators "
              f"{engine.accumulator_depth} x {engine.accumulator_width} bits{whole}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m hw.build", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", metavar="BOARD|verilog|list", help="a board of 'list'")
    parser.add_argument("--output", type=pathlib.Path,
                        help="folder of a board's files (default: build/BOARD), or Verilog file")
    parser.add_argument("--seed", type=int, help="seed of a board's placement (default: 1)")
    parser.add_argument("--no-pnr", action="store_true",
                        help="stop a board's build after synthesis")
    parser.add_argument("--program", action="store_true",
                        help="load the bitstream into the board, which is connected; one that was "
                             "built of the same sources and options is not built again")
    parser.add_argument("--record", action="store_true",
                        help="keep a board's report in docs/results/boards.json")
    parser.add_argument("--unit", metavar="UNIT",
                        help=f"unit that 'verilog' writes, of {', '.join(UNITS)} "
                             f"(default: accelerator)")
    parser.add_argument("--format", choices=FORMATS,
                        help="number format of a unit that has one (default: bf16)")
    for what, names in (("engine", EngineConfig),
                        ("accelerator, for a board with one", AcceleratorConfig)):
        fields = parser.add_argument_group(f"configuration of the {what}")
        for field in dataclasses.fields(names):
            if field.name != "engine":
                fields.add_argument(f"--{field.name.replace('_', '-')}", type=field.type,
                                    metavar=field.name.rsplit("_", 1)[-1].upper(),
                                    help=f"default: {field.default}, or the board's")
    return parser


def _refuse(why: str, options: argparse.Namespace, *fields: dict, but: tuple[str, ...] = ()
            ) -> None:
    """Refuse every option that was given."""
    given = [name for name in ("output", "seed", "no_pnr", "program", "record", "unit", "format")
             if getattr(options, name) and name not in but]
    given += [name for group in fields for name in group]
    if given:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ValueError(f"{why}: leave out {names}")


def _write_verilog(options: argparse.Namespace, engine: dict, accelerator: dict) -> int:
    """Write a unit as Verilog, of the configuration that was given."""
    name = options.unit or "accelerator"
    if name not in UNITS:
        raise ValueError(f"'{name}' is no unit (try {', '.join(UNITS)})")
    needs = UNITS[name].needs
    unfit: list[dict] = []
    needed: AcceleratorConfig | EngineConfig | MiniFloat | None
    if needs is AcceleratorConfig:
        # A walk by row belongs to an accelerator.
        base = AcceleratorConfig().engine
        needed = AcceleratorConfig(engine=dataclasses.replace(base, **engine), **accelerator)
    elif needs is EngineConfig:
        needed, unfit = EngineConfig(**engine), [accelerator]
    else:
        needed = FORMATS[options.format or "bf16"] if needs is MiniFloat else None
        unfit = [engine, accelerator]
    also = ("output", "unit", *(["format"] if needs is MiniFloat else []))
    _refuse(f"Unit '{name}' has no such setting", options, *unfit, but=also)
    written = write_unit(name, needed, options.output
                         or pathlib.Path("build") / f"tally_{name.replace('-', '_')}.v")
    print(f"{name} written to {written[0]}, an example of its instantiation to {written[1]}")
    for what, path in zip(("Vivado", "FuseSoC", "LiteX"), written[2:], strict=False):
        print(f"for {what}: {path}")
    return 0


def _run(options: argparse.Namespace) -> int:
    given, given_accelerator = (
        {field.name: getattr(options, field.name) for field in dataclasses.fields(names)
         if field.name != "engine" and getattr(options, field.name) is not None}
        for names in (EngineConfig, AcceleratorConfig))
    if options.what == "list":
        _refuse("'list' takes no options", options, given, given_accelerator)
        _list_boards()
        return 0
    if options.what == "verilog":
        return _write_verilog(options, given, given_accelerator)
    for name in ("unit", "format"):
        if getattr(options, name) is not None:
            raise ValueError(f"Option --{name} applies to 'verilog', not to a board")
    if options.what not in BOARDS:
        tried = ", ".join(f"'{name}'" for name in BOARDS)
        raise ValueError(f"'{options.what}' is not a board (try {tried})")
    board = _changed(BOARDS[options.what], given, given_accelerator)
    if options.record and (given or given_accelerator or options.no_pnr):
        raise ValueError("Option --record keeps routed builds of a board's own configuration only")
    started = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - started:4.0f} s] {text}", file=sys.stderr, flush=True)

    if options.program and options.no_pnr:
        raise ValueError("Option --program needs a bitstream: leave out --no-pnr")
    folder = options.output or pathlib.Path("build") / board.name
    seed = 1 if options.seed is None else options.seed
    report = _built(board, folder, seed) if options.program else None
    if report is None:
        say("YoWASP tools compile themselves on first use, half a minute each")
        report = build(board, folder, seed=seed, route=not options.no_pnr, say=say)
    else:
        say(f"{report['bitstream']} is of the same sources and options: it is not built again")
    _print_report(report)
    if options.program:
        if not report["meets_clock"]:
            raise BuildError(f"The bitstream is not loaded, since it does not meet its clock of "
                             f"{report['clock_mhz']:g} MHz; try another --seed")
        say(f"{board.name}: loading the bitstream")
        load_bitstream(board.name, board.loader, pathlib.Path(report["bitstream"]))
    if options.record:
        _record(report)
    return 0 if report.get("meets_clock", True) else 1


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    options = _parser().parse_args(arguments)
    try:
        return _run(options)
    except ValueError as problem:
        print(problem, file=sys.stderr)
        return 2
    except (BuildError, NetlistError, ToolFailed) as problem:
        print(problem, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
