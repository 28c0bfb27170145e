"""Synthesized netlists: the options that make them, and what is wrong in one.

Yosys has taken the driver of a wire away before and put the constant x into its place, without a
word. So every netlist that something is built from, or that a bench runs on, is looked through.
"""

import collections
import dataclasses
import json
import pathlib
from collections.abc import Iterator

from amaranth.back import rtlil
from amaranth.lib import wiring

from hw.synth.tool import run_tool

__all__ = ["SYNTHESIS_OPTIONS", "NetlistError", "NetlistFault", "checked_netlist",
           "netlist_faults", "synthesize"]

#: Options of ``synth_ecp5``, ``synth_ice40`` and ``synth_gowin`` for everything that is built or
#: measured; all flatten. nextpnr's timing models expect -abc9, which Gowin's has anyway. There no
#: multiplexer of two LUTs feeds a flip-flop: without them an accelerator takes fewer LUTs.
SYNTHESIS_OPTIONS = {"ecp5": "-nodsp -abc9", "ice40": "-abc9 -device u",
                     "gowin": "-nodsp -nowidelut -family gw2a"}

_UNDEFINED = ("x", "z")

# Block RAMs of Gowin: for each port that writes its data, its write enable and the parameter of its
# width, and for each that reads the same without an enable. A width is a power of two, or nine
# eighths of one.
_GOWIN_PORTS: dict[str, tuple[dict[str, tuple[str, str]], dict[str, str]]] = {
    "SP": ({"DI": ("WRE", "BIT_WIDTH")}, {"DO": "BIT_WIDTH"}),
    "SDPB": ({"DI": ("CEA", "BIT_WIDTH_0")}, {"DO": "BIT_WIDTH_1"}),
    "DPB": ({"DIA": ("WREA", "BIT_WIDTH_0"), "DIB": ("WREB", "BIT_WIDTH_1")},
            {"DOA": "BIT_WIDTH_0", "DOB": "BIT_WIDTH_1"}),
}
_GOWIN_PORTS |= {name: _GOWIN_PORTS[base] for name, base in (
    ("SPX9", "SP"), ("SDPX9B", "SDPB"), ("DPX9B", "DPB"))}


@dataclasses.dataclass(frozen=True)
class NetlistFault:
    """A place of a netlist that cannot do what was described.

    Attributes
    ----------
    kind : str
        ``undefined input``, ``undriven net`` or ``second driver``.
    where : str
        The place, in words: cells by type and name, their ports, nets by name.
    """

    kind: str
    where: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.where}"


@dataclasses.dataclass(frozen=True)
class _End:
    """A bit of a port; ``cell`` is the name of its cell, or empty for the module's own port."""

    cell: str
    kind: str
    port: str
    index: int
    width: int

    def __str__(self) -> str:
        bit = f"{self.port}[{self.index}]" if self.width > 1 else self.port
        return f"port {bit} of {self.kind} {self.cell}" if self.cell else f"pin {bit}"


class NetlistError(Exception):
    """A netlist has a fault; the message is one sentence for the user."""


def synthesize(component: wiring.Component, name: str, folder: pathlib.Path, *, family: str,
               options: str = "", verilog: bool = False) -> dict:
    """Write netlist ``name``.json of a component and return its flat module.

    Parameters
    ----------
    component : Component
    name : str
        Of the module, and of the files in ``folder``.
    folder : path
    family : str
        Key of :data:`SYNTHESIS_OPTIONS`.
    options : str
        More options of the synthesis.
    verilog : bool
        Write the netlist to ``name``.v as well.

    Raises
    ------
    ToolFailed
        If Yosys is missing or stops.
    NetlistError
        If the netlist has a fault.
    """
    (folder / f"{name}.il").write_text(rtlil.convert(component, name=name, emit_src=False))
    script = (f"read_rtlil {name}.il; synth_{family} {SYNTHESIS_OPTIONS[family]} {options} "
              f"-top {name} -json {name}.json")
    if verilog:
        script += f"; write_verilog -noattr {name}.v"
    run_tool(["yosys", "-q", "-p", script], folder)
    return checked_netlist(folder / f"{name}.json", name)


def checked_netlist(path: pathlib.Path, top: str) -> dict:
    """Return the flat module ``top`` of the netlist that Yosys' ``write_json`` wrote.

    Raises
    ------
    NetlistError
        If it has a fault.
    """
    module = json.loads(path.read_text())["modules"][top]
    faults = netlist_faults(module)
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise NetlistError(f"Synthesis left a fault in netlist {path}: {faults[0]}{more}; nothing "
                           f"is made from it")
    return module


def netlist_faults(module: dict) -> list[NetlistFault]:
    """Find undefined inputs, nets without a driver and nets with two.

    Parameters
    ----------
    module : dict
        Flat module as Yosys' ``write_json`` has it.

    Returns
    -------
    list of NetlistFault
        An x or z at an input of a memory counts only if something that is read depends on it:
        Yosys fills up words that are narrower than the memory cell, and ports that are not used.
    """
    names: dict[int | str, int | str] = {}
    for name, net in module["netnames"].items():
        for index, bit in enumerate(net["bits"]):
            if bit not in names or net.get("hide_name", 0) == 0:
                names[bit] = f"{name}[{index}]" if len(net["bits"]) > 1 else name
    drivers: dict[int | str, list[tuple[_End, str]]] = collections.defaultdict(list)
    loads: dict[int | str, list[_End]] = collections.defaultdict(list)
    for where, direction, bit in _ends(module):
        if direction != "input":
            drivers[bit].append((where, direction))
        if direction != "output":
            loads[bit].append(where)
    faults = [NetlistFault("undefined input", f"{where} is the constant {bit}")
              for bit in _UNDEFINED for where in loads[bit]
              if not _is_unread(module, where, drivers, loads)]
    for bit, inputs in loads.items():
        if isinstance(bit, int) and bit not in drivers:
            faults.append(NetlistFault("undriven net", f"{names.get(bit, bit)}, which goes to "
                                                       f"{' and '.join(map(str, inputs))}"))
    for bit, ends in drivers.items():
        outputs = [where for where, direction in ends if direction == "output"]
        if len(outputs) + (not isinstance(bit, int)) > 1:
            faults.append(NetlistFault("second driver", f"{names.get(bit, bit)}, which comes from "
                                                        f"{' and '.join(map(str, outputs))}"))
    return faults


def _ends(module: dict) -> Iterator[tuple[_End, str, int | str]]:
    """Yield every end of every net with its direction as seen from the net's cells."""
    inside = {"input": "output", "output": "input", "inout": "inout"}
    for port, pins in module["ports"].items():
        for index, bit in enumerate(pins["bits"]):
            yield (_End("", "", port, index, len(pins["bits"])), inside[pins["direction"]], bit)
    for name, cell in module["cells"].items():
        for port, bits in cell["connections"].items():
            for index, bit in enumerate(bits):
                yield (_End(name, cell["type"], port, index, len(bits)),
                       cell["port_directions"][port], bit)


def _is_unread(module: dict, end: _End, drivers: dict, loads: dict) -> bool:
    """Whether ``end`` is an input of a memory on which nothing that is read depends.

    It is one of a block RAM's port that is switched off, or of a bit that no output reads.
    """
    if not end.cell:
        return False
    cell = module["cells"][end.cell]
    if end.kind in ("TRELLIS_DPR16X4", "RAM16SDP4") and end.port == "DI":
        return not loads.get(cell["connections"]["DO"][end.index])
    if end.kind in _GOWIN_PORTS and end.port in _GOWIN_PORTS[end.kind][0]:
        return not any(loads.get(bit) for bit in _readers_of_gowin(cell, end, drivers))
    if end.kind == "DP16KD" and end.port.startswith("AD"):
        return cell["connections"][f"CE{end.port[2]}"] == ["0"]
    if end.kind == "DP16KD" and end.port.startswith("DI"):
        return not any(loads.get(bit) for bit in _readers_of_block_ram(cell, end.port))
    return False


def _readers_of_block_ram(cell: dict, port: str) -> Iterator[int | str]:
    """Yield the outputs of a DP16KD on which bits that input ``port`` wrote can appear.

    A word is 9 bits or a multiple, or one of 1, 2 and 4 bits of its lowest 8; then all count.
    """
    widths = {side: int(cell["parameters"][f"DATA_WIDTH_{side}"], 2) for side in "AB"}
    side, number = port[2], int(port[3:])
    if widths["A"] == 36 and side == "B":       # port A writes 36 bits through the inputs of both
        side, number = "A", number + 18
    if ["0"] in (cell["connections"][f"WE{side}"], cell["connections"][f"CE{side}"]):
        return
    for reader, width in widths.items():
        step = min(width, widths[side])
        for bit in range(width):
            if step >= 9 and bit % step != number % step:
                continue
            # A port of 36 bits reads through the outputs of both.
            output = (f"DO{reader}{bit}" if width < 36 else
                      f"DOA{bit}" if bit < 18 else f"DOB{bit - 18}")
            yield from cell["connections"].get(output, [])


def _readers_of_gowin(cell: dict, end: _End, drivers: dict) -> Iterator[int | str]:
    """Yield the outputs of a block RAM of Gowin on which what ``end`` wrote can appear."""
    writers, readers = _GOWIN_PORTS[end.kind]
    enable, parameter = writers[end.port]
    width = int(cell["parameters"][parameter], 2)
    # A constant is a net that a cell GND drives.
    written = all(where.kind != "GND" for where, _ in drivers[cell["connections"][enable][0]])
    if not written or end.index >= width:
        return
    for output, of_output in readers.items():
        read_width = int(cell["parameters"][of_output], 2)
        step = min(width, read_width)
        for bit in range(read_width):
            if bit % step == end.index % step:
                yield cell["connections"][output][bit]
