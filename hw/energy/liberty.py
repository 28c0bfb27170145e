# Ref: Liberty User Guide, volume 1, "Defining Core Cells" and "Modeling Power and Electromigration"

"""Standard cells as a Liberty file has them: functions, delays, energies, leakage.

Of the format it reads what the energy of a netlist needs. Values are brought to ns, pF, V, pJ and
nW, whatever the units of the file.
"""

import dataclasses
import functools
import pathlib
import re
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

__all__ = ["DEFAULT_LIBRARY", "Cell", "Library", "LibraryError", "Pin", "Table", "find_library",
           "read_library"]

#: The cells of Debian's package qflow-tech-osu018: 180 nm, 1.8 V, under the GPL.
DEFAULT_LIBRARY = pathlib.Path("/usr/share/qflow/tech/osu018/osu018_stdcells.lib")

_TOKEN = re.compile(r'/\*.*?\*/|\\\s*\n|//[^\n]*|"[^"]*"|[{}();:,]|[^\s{}();:,"]+', re.DOTALL)
_SCALE = {"f": 1e-15, "p": 1e-12, "n": 1e-9, "u": 1e-6, "m": 1e-3, "": 1.0}


class LibraryError(Exception):
    """A file of standard cells is missing or cannot be used; the message is one sentence."""


@dataclasses.dataclass
class _Group:
    """``kind (arguments) { attributes and groups }``."""

    kind: str
    arguments: list[str]
    values: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    groups: list["_Group"] = dataclasses.field(default_factory=list)

    def of(self, kind: str) -> list["_Group"]:
        """Return the groups of a kind in this one."""
        return [group for group in self.groups if group.kind == kind]

    def text(self, name: str, default: str = "") -> str:
        """Return an attribute's first value."""
        return self.values.get(name, [default])[0]


def _parse(tokens: Iterator[str], group: _Group) -> None:
    """Read a group up to its closing brace."""
    for word in tokens:
        if word == "}":
            return
        if word == ";":
            continue
        mark = next(tokens)
        if mark == ":":
            value = []
            for part in tokens:
                if part == ";":
                    break
                value.append(part)
            group.values[word] = [" ".join(value)]
            continue
        arguments = []
        for part in tokens:
            if part == ")":
                break
            if part != ",":
                arguments.append(part)
        # A complex attribute may lack its semicolon; a group has a brace.
        following = next(tokens)
        if following == "{":
            group.groups.append(_Group(word, arguments))
            _parse(tokens, group.groups[-1])
        else:
            group.values[word] = arguments
            if following == "}":
                return


def _numbers(texts: list[str]) -> NDArray[np.float64]:
    return np.array([float(word) for text in texts for word in re.split(r"[\s,]+", text.strip())
                     if word])


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """A value by load and slew.

    Attributes
    ----------
    loads, slews : array of float
        pF and ns; one element where the value does not depend on it.
    values : array, shape (loads, slews)
    """

    loads: NDArray[np.float64]
    slews: NDArray[np.float64]
    values: NDArray[np.float64]

    def at(self, load: float, slew: float) -> float:
        """Interpolate linearly; what lies outside the table has the value of its edge."""
        rows = [np.interp(slew, self.slews, row) for row in self.values]
        return float(np.interp(load, self.loads, rows))


@dataclasses.dataclass(frozen=True, eq=False)
class Pin:
    """A pin of a cell.

    Attributes
    ----------
    name : str
    output : bool
    capacitance : float
        Of an input, in pF.
    function : str
        Of an output: a Verilog expression of input pins, or of the flip-flop's state.
    delays : dict of str to list of Table
        ``cell_rise``, ``cell_fall``, ``rise_transition``, ``fall_transition`` of every arc, in ns.
    energies : dict of str to list of Table
        ``rise_power`` and ``fall_power`` of every arc or condition, in pJ: what one change of the
        pin takes inside the cell.
    """

    name: str
    output: bool
    capacitance: float
    function: str
    delays: dict[str, list[Table]]
    energies: dict[str, list[Table]]

    def delay(self, kind: str, load: float, slew: float) -> float:
        """Largest delay or transition of all arcs."""
        return max((table.at(load, slew) for table in self.delays[kind]), default=0.0)

    def energy(self, kind: str, load: float, slew: float) -> float:
        """Mean of the energy over all arcs: which one a change came by is not known."""
        found = [table.at(load, slew) for table in self.energies[kind]]
        return sum(found) / len(found) if found else 0.0


@dataclasses.dataclass(frozen=True, eq=False)
class Cell:
    """A cell.

    Attributes
    ----------
    name : str
    area : float
        In the file's units.
    leakage : float
        nW.
    pins : dict of str to Pin
    clock, data : str
        Names of the input pins of a flip-flop that takes its data at the rising edge, or empty.
    states : tuple of str
        Names of its state and of the state's inverse in functions.
    usable : bool
        Combinational, or such a flip-flop.
    """

    name: str
    area: float
    leakage: float
    pins: dict[str, Pin]
    clock: str
    data: str
    states: tuple[str, ...]
    usable: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Library:
    """Cells of one process at one corner.

    Attributes
    ----------
    name : str
    path : path
    voltage : float
        V.
    temperature : float
        Degrees Celsius.
    cells : dict of str to Cell
    """

    name: str
    path: pathlib.Path
    voltage: float
    temperature: float
    cells: dict[str, Cell]


def find_library(path: pathlib.Path | None = None) -> pathlib.Path:
    """Return the file of standard cells: the one named, else Debian's.

    Raises
    ------
    LibraryError
        If there is none; the message says how to install it.
    """
    if path is not None:
        if not path.is_file():
            raise LibraryError(f"{path} is not a file; name a Liberty file (.lib) of standard "
                               "cells")
        return path
    if not DEFAULT_LIBRARY.is_file():
        raise LibraryError(f"Standard cells are missing: there is no {DEFAULT_LIBRARY}; install "
                           "Debian's package with 'apt install qflow-tech-osu018', or name a "
                           "Liberty file with --library")
    return DEFAULT_LIBRARY


@functools.cache
def read_library(path: pathlib.Path) -> Library:
    """Read a Liberty file.

    Raises
    ------
    LibraryError
        If it is no Liberty file, or lacks what energies need.
    """
    tokens = (word.strip('"') for word in _TOKEN.findall(path.read_text(errors="replace"))
              if not word.startswith(("/*", "//", "\\")))
    root = _Group("", [])
    try:
        _parse(tokens, root)
        library, = root.of("library")
        return _library(library, path)
    except (ValueError, StopIteration, KeyError, IndexError, RuntimeError) as problem:
        raise LibraryError(f"{path} cannot be read as a Liberty file of standard cells: "
                           f"{problem or type(problem).__name__}") from problem


@dataclasses.dataclass(frozen=True)
class _Units:
    time: float             # ns
    capacitance: float      # pF
    energy: float           # pJ
    leakage: float          # nW


def _unit(text: str, base: str, wanted: float) -> float:
    found = re.fullmatch(rf"\s*([\d.]+)\s*([fpnum]?){base}\s*", text)
    if found is None:
        raise ValueError(f"unit {text!r} is not one of {base}")
    return float(found[1]) * _SCALE[found[2]] / wanted


def _library(group: _Group, path: pathlib.Path) -> Library:
    number, prefix = group.values["capacitive_load_unit"]
    capacitance = float(number) * _SCALE[prefix.lower()[0]] / 1e-12
    voltage_unit = _unit(group.text("voltage_unit", "1V"), "V", 1.0)
    units = _Units(_unit(group.text("time_unit"), "s", 1e-9), capacitance,
                   # The guide: energies are in units of capacitance times voltage squared.
                   capacitance * voltage_unit ** 2,
                   _unit(group.text("leakage_power_unit", "1nW"), "W", 1e-9))
    templates = {template.arguments[0]: template
                 for kind in ("lu_table_template", "power_lut_template")
                 for template in group.of(kind)}
    cells = [_cell(cell, units, templates) for cell in group.of("cell")]
    if not cells:
        raise ValueError("it has no cells")
    return Library(group.arguments[0] if group.arguments else path.stem, path,
                   float(group.text("nom_voltage")), float(group.text("nom_temperature", "25")),
                   {cell.name: cell for cell in cells})


def _cell(group: _Group, units: _Units, templates: dict[str, _Group]) -> Cell:
    pins = {}
    for pin in group.of("pin"):
        for name in pin.arguments:
            pins[name] = _pin(name, pin, units, templates)
    leakage = [float(part.text("value")) for part in group.of("leakage_power")]
    if "cell_leakage_power" in group.values:
        leakage = [float(group.text("cell_leakage_power"))]
    clock = data = ""
    states: tuple[str, ...] = ()
    usable = not group.of("latch") and not group.of("statetable")
    for flip_flop in group.of("ff"):
        states = tuple(flip_flop.arguments)
        clock, data = (flip_flop.text(name).strip("() ") for name in ("clocked_on", "next_state"))
        usable = (len(group.of("ff")) == 1 and clock in pins and data in pins
                  and not {"clear", "preset"} & set(flip_flop.values))
    outputs = [pin for pin in pins.values() if pin.output]
    usable &= bool(outputs) and all(pin.function for pin in outputs) and not any(
        "three_state" in pin.values for pin in group.of("pin"))
    return Cell(group.arguments[0], float(group.text("area", "0")),
                sum(leakage) / max(len(leakage), 1) * units.leakage, pins, clock, data, states,
                usable)


def _pin(name: str, group: _Group, units: _Units, templates: dict[str, _Group]) -> Pin:
    output = group.text("direction") == "output"
    delays: dict[str, list[Table]] = {kind: [] for kind in ("cell_rise", "cell_fall",
                                                            "rise_transition", "fall_transition")}
    energies: dict[str, list[Table]] = {"rise_power": [], "fall_power": []}
    for found, parts, unit in ((delays, group.of("timing"), units.time),
                               (energies, group.of("internal_power"), units.energy)):
        for part in parts:
            for kind, tables in found.items():
                tables += [_table(table, unit, units, templates) for table in part.of(kind)]
            if found is energies:
                for table in part.of("power"):
                    for tables in found.values():
                        tables.append(_table(table, unit, units, templates))
    return Pin(name, output, float(group.text("capacitance", "0")) * units.capacitance,
               _verilog(group.text("function")), delays, energies)


def _table(group: _Group, unit: float, units: _Units, templates: dict[str, _Group]) -> Table:
    template = templates.get(group.arguments[0]) if group.arguments else None
    axes = {"load": np.zeros(1), "slew": np.zeros(1)}
    order = []
    for number in ("1", "2"):
        variable = template.text(f"variable_{number}") if template is not None else ""
        if variable:
            axis = "load" if "output_net_capacitance" in variable else "slew"
            index = group.values.get(f"index_{number}") or (
                template.values[f"index_{number}"] if template is not None else [])
            axes[axis] = _numbers(index) * (units.capacitance if axis == "load" else units.time)
            order.append(axis)
    values = _numbers(group.values["values"]) * unit
    values = values.reshape([len(axes[axis]) for axis in order] or [1])
    if order == ["slew", "load"]:
        values = values.T
    return Table(axes["load"], axes["slew"], values.reshape(len(axes["load"]), len(axes["slew"])))


_WORD = re.compile(r"\s*([A-Za-z_]\w*|[01]|[!'()*&+|^])")


def _verilog(function: str) -> str:
    """Rewrite a function of Liberty: ``'`` negates what is before it, a space is an AND."""
    words = _WORD.findall(function)
    if re.sub(r"\s", "", function) != "".join(words):
        raise ValueError(f"function {function!r} has an unknown sign")

    def choice() -> str:
        terms = [exclusive()]
        while words and words[0] in "+|":
            words.pop(0)
            terms.append(exclusive())
        return f"({' | '.join(terms)})" if terms[1:] else terms[0]

    def exclusive() -> str:
        terms = [product()]
        while words and words[0] == "^":
            words.pop(0)
            terms.append(product())
        return f"({' ^ '.join(terms)})" if terms[1:] else terms[0]

    def product() -> str:
        terms = [factor()]
        while words and words[0] not in "+|^)":
            if words[0] in "*&":
                words.pop(0)
            terms.append(factor())
        return f"({' & '.join(terms)})" if terms[1:] else terms[0]

    def factor() -> str:
        word = words.pop(0)
        if word == "!":
            return f"(~{factor()})"
        if word == "(":
            inner = choice()
            words.pop(0)
        else:
            inner = f"1'b{word}" if word in "01" else word
        while words and words[0] == "'":
            words.pop(0)
            inner = f"(~{inner})"
        return inner

    return choice() if words else ""
