"""A netlist of standard cells: its synthesis, and the load, slew and delay of every cell.

There is no placement, so a net is loaded by the pins that it goes to and by nothing else.
"""

import dataclasses
import graphlib
import pathlib
import shutil

from amaranth.back import rtlil
from amaranth.lib import wiring

from hw.energy.liberty import Cell, Library, LibraryError
from hw.synth.netlist import checked_netlist
from hw.synth.tool import run_tool

__all__ = ["FORMS", "PORT_SLEW", "Instance", "Net", "Netlist", "map_to_cells"]

#: How Yosys may build multiplications and additions of more than two numbers: options of ``synth``.
FORMS = {"plain": "", "booth": "-booth", "compressor tree": "-arith_tree"}

#: Slew of the clock and of all other inputs of a unit, ns.
PORT_SLEW = 0.1

Net = int | str     # a number of Yosys, or a constant


@dataclasses.dataclass(eq=False)
class Instance:
    """A cell of a netlist.

    Attributes
    ----------
    cell : Cell
    nets : dict of str to Net
        What each pin is connected to.
    slew : float
        At its inputs, in ns: their mean.
    delays : dict of str to tuple of float
        Of each output: until it rises and until it falls, in ns.
    """

    cell: Cell
    nets: dict[str, Net]
    slew: float = 0.0
    delays: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)

    @property
    def inputs(self) -> list[str]:
        """Pins that signals come in by."""
        return [pin for pin in self.nets if not self.cell.pins[pin].output]

    @property
    def outputs(self) -> list[str]:
        """Pins that signals leave by."""
        return [pin for pin in self.nets if self.cell.pins[pin].output]


class Netlist:
    """Cells, nets and their electrical values.

    Parameters
    ----------
    module : dict
        Flat module as Yosys' ``write_json`` has it.
    library : Library

    Attributes
    ----------
    ports : dict of str to tuple of (str, list of Net)
        Direction and nets of each port.
    instances : list of Instance
    loads : dict of Net to float
        pF.
    slews : dict of Net to float
        ns, of each net that a cell drives: the mean of rising and falling.
    path_ns : float
        Longest time from a clock edge or an input to a stable net.

    Raises
    ------
    LibraryError
        If a cell is none that can be simulated.
    """

    def __init__(self, module: dict, library: Library):
        self.library = library
        self.ports = {name: (port["direction"], port["bits"])
                      for name, port in module["ports"].items()}
        self.instances = []
        for cell in module["cells"].values():
            known = library.cells.get(cell["type"])
            if known is None or not known.usable:
                raise LibraryError(f"Netlist has a cell {cell['type']}, which is neither "
                                   f"combinational nor a plain flip-flop of {library.path}")
            self.instances.append(Instance(
                known, {pin: bits[0] for pin, bits in cell["connections"].items() if bits}))
        self.loads: dict[Net, float] = {}
        for instance in self.instances:
            for pin in instance.inputs:
                net = instance.nets[pin]
                self.loads[net] = (self.loads.get(net, 0.0)
                                   + instance.cell.pins[pin].capacitance)
        self.slews: dict[Net, float] = {}
        self.path_ns = self._time()

    @property
    def area(self) -> float:
        """Sum of the cells' areas."""
        return sum(instance.cell.area for instance in self.instances)

    def _time(self) -> float:
        """Set slews and delays, from the inputs and the flip-flops on."""
        drivers = {instance.nets[pin]: instance for instance in self.instances
                   for pin in instance.outputs}
        before = {instance: ([] if instance.cell.clock else
                             [drivers[instance.nets[pin]] for pin in instance.inputs
                              if instance.nets[pin] in drivers])
                  for instance in self.instances}
        arrivals: dict[Net, float] = {}
        for instance in graphlib.TopologicalSorter(before).static_order():
            cell = instance.cell
            pins = [cell.clock] if cell.clock else instance.inputs
            nets = [instance.nets[pin] for pin in pins]
            instance.slew = (sum(self.slews.get(net, PORT_SLEW) for net in nets) / len(nets)
                             if nets else PORT_SLEW)
            arrival = max((arrivals.get(net, 0.0) for net in nets), default=0.0)
            for name in instance.outputs:
                pin, net = cell.pins[name], instance.nets[name]
                rise, fall, rising, falling = (
                    pin.delay(kind, self.loads.get(net, 0.0), instance.slew)
                    for kind in ("cell_rise", "cell_fall", "rise_transition", "fall_transition"))
                instance.delays[name] = (rise, fall)
                self.slews[net] = (rising + falling) / 2
                arrivals[net] = arrival + max(rise, fall)
        return max(arrivals.values(), default=0.0)


def map_to_cells(component: wiring.Component, library: Library, folder: pathlib.Path, *,
                 form: str = "plain") -> Netlist:
    """Synthesize a component onto standard cells.

    Parameters
    ----------
    component : Component
    library : Library
    folder : path
        Where the tools work.
    form : str
        Key of :data:`FORMS`.

    Raises
    ------
    ToolFailed
        If Yosys is missing or stops.
    NetlistError
        If the netlist has a fault.
    LibraryError
        If it has a cell that cannot be simulated.
    """
    (folder / "unit.il").write_text(rtlil.convert(component, name="unit", emit_src=False))
    shutil.copyfile(library.path, folder / "cells.lib")
    unusable = " ".join(f"-dont_use {cell.name}" for cell in library.cells.values()
                        if not cell.usable)
    # Values of flip-flops at power-on would keep dfflibmap from its cells; a reset sets them.
    run_tool(["yosys", "-q", "-p",
              f"read_rtlil unit.il; synth -flatten -top unit {FORMS[form]}; "
              f"setattr -unset init; dfflibmap {unusable} -liberty cells.lib; "
              f"abc {unusable} -liberty cells.lib; opt_clean -purge; "
              "read_liberty -lib -ignore_miss_func cells.lib; write_json unit.json"],
             folder)
    return Netlist(checked_netlist(folder / "unit.json", "unit"), library)
