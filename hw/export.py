"""Units as Verilog for other projects: named ports, modules with the project's prefix, an example.

A port of a struct becomes one port for each field, named after the path to it; a stream's ``i_`` or
``o_`` goes. The whole accelerator has AXI4 as its memory port, with the bus's own names; with
registers on AXI4-Lite, what other tools need to use it lies beside it (hw/packaging.py).
"""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Iterator

from amaranth import *
from amaranth.back import verilog
from amaranth.hdl import ValueCastable
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from hw.accelerator import Accelerator
from hw.activations.quantizer import Quantizer
from hw.activations.router import ColumnRouter, EntryCollector
from hw.activations.sparse_vector import SparseVectorMemory
from hw.activations.sparsity import SparsityPolicy
from hw.arith.bf16_add import Bf16Adder
from hw.arith.dequantize import ScaleUnit
from hw.arith.exact import ExactMultiplier
from hw.arith.lmul import LMul
from hw.arith.lmul_dot import LMulDot
from hw.attention.unit import AttentionUnit
from hw.axi_accelerator import AxiAccelerator
from hw.config import AcceleratorConfig, EngineConfig
from hw.control.decode import Decoder
from hw.control.dispatch import Dispatch
from hw.control.prefetch import Prefetch
from hw.engine.engine import TernaryEngine
from hw.engine.gearbox import Gearbox
from hw.engine.slice import EngineSlice
from hw.formats.minifloat import MiniFloat
from hw.memory.axi4 import AXI4_IDENTIFIERS, Axi4Master
from hw.memory.load_store import LoadStore
from hw.memory.read_engine import ReadEngine
from hw.output.top_k import TopK
from hw.output.writeback import WriteBack
from hw.packaging import interface_attributes, write_packaging
from hw.vector.unit import VectorUnit

__all__ = ["LINT_WAIVERS", "UNITS", "Unit", "write_unit"]

#: Before the name of every module.
PREFIX = "tally_"

#: Warnings of ``verilator -Wall`` that the files switch off, and why they mean nothing here.
LINT_WAIVERS = {
    "DECLFILENAME": "all modules of a unit are in one file",
    "UNUSEDSIGNAL": "Amaranth names fields and halves of sums that nobody reads",
    "PROCASSINIT": "registers have their value after power-up at their declaration",
    "WIDTHEXPAND": "Yosys writes sums and comparisons at the width of the wider operand",
    "WIDTHTRUNC": "Yosys cuts sums to the width of what they are assigned to",
    "CASEINCOMPLETE": "what no case assigns keeps the value assigned before it",
    "CMPCONST": "a configuration can make a comparison true for all values",
    "UNSIGNED": "a configuration can make a comparison true for all values",
    "SYMRSVDWORD": "a port is called interrupt, which is a function of the C library too",
}


@dataclasses.dataclass(frozen=True)
class Unit:
    """A unit that can be written.

    Attributes
    ----------
    what : str
        One line for people.
    build : callable
        Makes the component, of what ``needs`` says.
    needs : type
        :class:`AcceleratorConfig`, :class:`EngineConfig` or :class:`MiniFloat`.
    """

    what: str
    build: Callable[..., wiring.Component]
    needs: type = AcceleratorConfig


class _AcceleratorAxi4(wiring.Component):
    """An accelerator whose memory port is an AXI4 manager; ``rst`` is the reset of both."""

    def __init__(self, config: AcceleratorConfig):
        self._accelerator = Accelerator(config)
        self._manager = Axi4Master(address_width=config.address_width,
                                   port_bytes=config.port_bytes)
        members = self._accelerator.signature.members
        self._passed = [name for name in members if name not in ("memory", "active")]
        super().__init__({**{name: members[name] for name in self._passed},
                          # Identifiers stay 0: subordinates expect them.
                          "m_axi": Out(wiring.Signature(
                              {**self._manager.bus.signature.members, **AXI4_IDENTIFIERS}))})

    def elaborate(self, platform):
        m = Module()
        m.submodules.accelerator = accelerator = self._accelerator
        m.submodules.axi4 = manager = self._manager
        wiring.connect(m, accelerator.memory, manager.port)
        for name, member in manager.bus.signature.members.items():
            inner, outer = getattr(manager.bus, name), getattr(self.m_axi, name)
            m.d.comb += outer.eq(inner) if member.flow is Out else inner.eq(outer)
        for name in self._passed:
            inner, outer = getattr(accelerator, name), getattr(self, name)
            if accelerator.signature.members[name].is_port:
                m.d.comb += outer.eq(inner)
            else:
                wiring.connect(m, wiring.flipped(outer), inner)
        return m


#: Every unit by the name that the command line takes.
UNITS: dict[str, Unit] = {
    "accelerator": Unit("the whole accelerator, its memory port an AXI4 manager",
                        _AcceleratorAxi4),
    "axi-accelerator": Unit("the whole accelerator with AXI4 to its memory and AXI4-Lite to its "
                            "registers", AxiAccelerator),
    "slice": Unit("ternary engine behind a weight port of any width", EngineSlice, EngineConfig),
    "engine": Unit("ternary engine", TernaryEngine, EngineConfig),
    "gearbox": Unit("transfers to weight words of another width", Gearbox, EngineConfig),
    "quantizer": Unit("bf16 vector to int8 codes and a power-of-two scale", Quantizer),
    "sparsity-policy": Unit("top-K and threshold of scored entries", SparsityPolicy),
    "entry-collector": Unit("entries on their way to the sparse vector memory", EntryCollector),
    "sparse-vector-memory": Unit("sparse activation vectors as TwELL tiles", SparseVectorMemory),
    "column-router": Unit("entries to the engine, columns to the read engine", ColumnRouter),
    "write-back": Unit("integer results to bf16 in the vector memory", WriteBack),
    "top-k": Unit("the largest integers of a product", TopK),
    "vector-unit": Unit("bf16 operations on vectors", VectorUnit),
    "dispatch": Unit("the program's execution", Dispatch),
    "decoder": Unit("an instruction's fields and faults", Decoder),
    "prefetch": Unit("the program's reads, ahead of execution", Prefetch),
    "read-engine": Unit("bursts of reads, and what comes of them", ReadEngine),
    "load-store": Unit("vectors between vector memory and memory", LoadStore),
    "attention": Unit("QK and PV with L-Mul", AttentionUnit),
    "scale": Unit("integers times a number and a power of two, to bf16", ScaleUnit),
    "axi4": Unit("memory port to AXI4 manager", lambda config: Axi4Master(
        address_width=config.address_width, port_bytes=config.port_bytes)),
    "lmul": Unit("floating-point product by one addition", LMul, MiniFloat),
    "lmul-dot": Unit("dot product of L-Mul products", LMulDot, MiniFloat),
    "multiplier": Unit("exact floating-point multiplier", ExactMultiplier, MiniFloat),
    "adder": Unit("bf16 adder", Bf16Adder, type(None)),
}


@dataclasses.dataclass(frozen=True)
class _Port:
    """A port of the written module.

    Attributes
    ----------
    signal : Signal
        Its name is the port's.
    flow : In or Out
    """

    signal: Signal
    flow: wiring.Flow


def _fields(name: str, value: ValueCastable | Value) -> Iterator[tuple[str, Value]]:
    """Take a value apart into the fields of its struct; what has no bits is left out."""
    if isinstance(value, data.View) and isinstance(value.shape(), data.StructLayout):
        for field, _ in value.shape():
            yield from _fields(f"{name}_{field}", value[field])
    elif len(Value.cast(value)):
        yield name, Value.cast(value)


def _expose(m: Module, component: wiring.Component) -> list[_Port]:
    """Give every field of the component's ports a port of its own."""
    ports = []
    for path, member, value in component.signature.flatten(component):
        name = "_".join(str(part) for part in path if part != "payload")
        if path[-1] == "payload" and not isinstance(value, data.View):
            name += "_data"
        for field, bits in _fields(name, value):
            signal = Signal(bits.shape(), name=field)
            m.d.comb += bits.eq(signal) if member.flow is In else signal.eq(bits)
            ports.append(_Port(signal, member.flow))
    return ports


def _module(name: str, component: wiring.Component, *, axi: bool) -> tuple[str, list[_Port]]:
    """Return the Verilog of module ``name``, and its ports; AXI has its own clock and reset.

    Ports of an :class:`AxiAccelerator` have the attributes by which Vivado knows its interfaces.
    """
    m = Module()
    m.submodules.unit = component
    ports = _expose(m, component)
    m.domains.sync = domain = ClockDomain("sync")
    if axi:
        clock, reset = Signal(name="aclk"), Signal(name="aresetn")
        m.d.comb += [domain.clk.eq(clock), domain.rst.eq(~reset)]
    else:
        clock, reset = domain.clk, domain.rst
    ports = [_Port(clock, In), _Port(reset, In), *ports]
    text = verilog.convert(m, name=name, ports=[port.signal for port in ports], emit_src=False,
                           strip_internal_attrs=True)
    # Amaranth names a module after the path of its instance, and declares what has no bits.
    text = re.sub(r"^ *wire \[-1:0\] \S+ *;\n", "", text, flags=re.MULTILINE)
    for module in sorted(re.findall(r"^module \\(\S+)", text, re.MULTILINE), key=len, reverse=True):
        text = text.replace(f"\\{module} ", _module_name(module) + " ")
    if isinstance(component, AxiAccelerator):
        text = _with_attributes(text, name, interface_attributes(
            (port.signal.name for port in ports), port_bytes=component.config.port_bytes))
    return text, ports


def _with_attributes(text: str, module: str, attributes: dict[str, dict[str, str]]) -> str:
    """Return Verilog with attributes at the ports of a module.

    Those of an Amaranth signal would go to whatever wires Yosys finds equal to it.
    """
    def declared(found: re.Match) -> str:
        lines = [f'  (* {name} = "{value}" *)\n' for name, value in attributes[found[1]].items()]
        return "".join((*lines, found[0]))
    before, top = text.split(f"module {module}(", 1)
    top, end, behind = top.partition("endmodule")
    top = re.sub(r"^  (?:input|output) (?:\[\d+:0\] )?(\w+);$", declared, top, flags=re.MULTILINE)
    return f"{before}module {module}({top}{end}{behind}"


def _module_name(path: str) -> str:
    """Return a plain name for a module that Amaranth named after the path of its instance."""
    return re.sub(r"\W", "_", re.sub(r"\.(?:unit|accelerator)(?=\.)", "", path))


def _range(port: _Port) -> str:
    return f"[{len(port.signal) - 1}:0] " if len(port.signal) > 1 else ""


def _example(name: str, ports: list[_Port]) -> str:
    """Return a module that instantiates ``name`` with a wire for each port."""
    lines = [f"// How module {name} is instantiated.", f"module {name}_example;"]
    for port in ports:
        kind = "reg " if port.flow is In else "wire"
        lines.append(f"  {kind} {_range(port)}{port.signal.name};")
    connections = ",\n".join(f"    .{port.signal.name}({port.signal.name})" for port in ports)
    return "\n".join([*lines, f"  {name} unit (", connections, "  );", "endmodule", ""])


def write_unit(unit: str, needed: AcceleratorConfig | EngineConfig | MiniFloat | None,
               output: pathlib.Path) -> list[pathlib.Path]:
    """Write a unit as Verilog, and beside it an example of its instantiation.

    Beside ``axi-accelerator`` lies what :func:`hw.packaging.write_packaging` writes, too.

    Parameters
    ----------
    unit : str
        Key of :data:`UNITS`; the module's name has ``tally_`` before it.
    needed : AcceleratorConfig, EngineConfig, MiniFloat or None
        What the unit is made of, as its ``needs`` says.
    output : path
        File of the unit.

    Returns
    -------
    list of path
        The unit, the example, and what else was written.

    Raises
    ------
    ValueError
        If the unit cannot be made of this configuration.
    """
    component = UNITS[unit].build(*([] if needed is None else [needed]))
    name = PREFIX + unit.replace("-", "_")
    text, ports = _module(name, component, axi=unit in ("accelerator", "axi-accelerator"))
    waivers = "\n".join(f"/* verilator lint_off {rule} */  // {reason}"
                        for rule, reason in LINT_WAIVERS.items())
    header = (f"// {UNITS[unit].what}, of Tally (Apache-2.0).\n// Made by 'python -m hw.build "
              f"verilog --unit {unit}' of {needed}.\n// Ports: docs/verilog.md.\n{waivers}\n")
    example = output.with_name(f"{output.stem}_example.v")
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(header + re.sub(r"^/\* Generated by .*\n", "", text, flags=re.MULTILINE))
    example.write_text(_example(name, ports))
    packaging = []
    if isinstance(component, AxiAccelerator):
        packaging = write_packaging(name, output, port_bytes=component.config.port_bytes)
    return [output, example, *packaging]
