"""Gate-level simulation in Icarus: every output of every cycle, and how often each net toggles.

Each output of a cell is a continuous assignment with the cell's delays. It swallows pulses that are
shorter than the delay; those that are longer are glitches that take energy.
"""

import collections
import dataclasses
import pathlib
import re
import subprocess
from collections.abc import Mapping, Sequence

from hw.energy.cells import Net, Netlist
from hw.synth.tool import ToolFailed, find_program

__all__ = ["Run", "simulate"]

#: Inputs change this long after the clock edge, as if registers made them; ps.
_INPUT_DELAY = 100


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """What a simulation found.

    Attributes
    ----------
    outputs : dict of str to list of (int or None)
        Each output port at the end of each cycle; None where a bit is unknown.
    rises, falls : dict of Net to int
        Changes of each net in the measured cycles.
    """

    outputs: dict[str, list[int | None]]
    rises: dict[Net, int]
    falls: dict[Net, int]


def _term(net: Net) -> str:
    return f"n{net}" if isinstance(net, int) else f"1'b{net}"


def _renamed(function: str, terms: Mapping[str, str]) -> str:
    """Put terms into a function for its pins; constants, as in 1'b0, stay."""
    return re.sub(r"(?<!')\b[A-Za-z_]\w*", lambda found: terms[found[0]], function)


def _picoseconds(delay: float) -> int:
    return max(1, round(delay * 1000))


def _design(netlist: Netlist) -> str:
    """Write the netlist as a module of scalar nets."""
    names, lines, nets = [], [], set()
    for name, (direction, bits) in netlist.ports.items():
        for index, net in enumerate(bits):
            pin = f"{name}_{index}"
            names.append(f"{direction} {pin}")
            lines.append(f"assign {_term(net)} = {pin};" if direction == "input"
                         else f"assign {pin} = {_term(net)};")
            nets.add(net)
    for number, instance in enumerate(netlist.instances):
        cell = instance.cell
        terms = {pin: _term(instance.nets[pin]) for pin in instance.inputs}
        nets |= set(instance.nets.values())
        if cell.clock:
            terms |= zip(cell.states, (f"q{number}", f"(~q{number})"), strict=False)
            lines.append(f"reg q{number}; always @(posedge {terms[cell.clock]}) "
                         f"q{number} <= {terms[cell.data]};")
        for pin in instance.outputs:
            rise, fall = map(_picoseconds, instance.delays[pin])
            lines.append(f"assign #({rise}, {fall}) {_term(instance.nets[pin])} = "
                         f"{_renamed(cell.pins[pin].function, terms)};")
    wires = [f"wire {_term(net)};" for net in sorted(net for net in nets if isinstance(net, int))]
    return "\n".join([f"module unit({', '.join(names)});", *wires, *lines, "endmodule"])


def _bench(netlist: Netlist, cycles: int, measured: range, period: int) -> str:
    def pins(direction: str) -> list[str]:
        return [f"{name}_{index}" for name, (found, bits) in netlist.ports.items()
                if found == direction and name != "clk" for index in range(len(bits))]

    inputs, outputs = pins("input"), pins("output")
    connections = [".clk_0(clk)", *(f".{pin}(given[{k}])" for k, pin in enumerate(inputs)),
                   *(f".{pin}(found[{k}])" for k, pin in enumerate(outputs))]
    return f"""
module bench;
reg clk = 0;
reg [{len(inputs) - 1}:0] given, stimuli [0:{cycles - 1}];
wire [{len(outputs) - 1}:0] found;
integer cycle, file;
unit unit({', '.join(connections)});
initial begin
  $readmemb("stimuli.txt", stimuli);
  file = $fopen("outputs.txt", "w");
  given = stimuli[0];
  #{period};
  for (cycle = 0; cycle < {cycles}; cycle = cycle + 1) begin
    #{_INPUT_DELAY} given = stimuli[cycle];
    #{period // 2 - _INPUT_DELAY} clk = 0;
    #{period - period // 2 - 1} $fdisplay(file, "%b", found);
    if (cycle == {measured.start - 1}) begin
      $dumpfile("toggles.vcd");
      $dumpvars(1, unit);
    end
    if (cycle == {measured.stop - 1}) $dumpoff;
    #1 clk = 1;
  end
  $finish;
end
endmodule
"""


def _toggles(path: pathlib.Path) -> tuple[dict[Net, int], dict[Net, int]]:
    """Count changes to 1 and to 0 in a VCD of scalars."""
    header, _, changes = path.read_text().partition("$enddefinitions $end")
    nets = {found[1]: int(found[2])
            for found in re.finditer(r"\$var wire 1 (\S+) n(\d+) \$end", header)}
    start, _, changes = changes.partition("$end")       # of $dumpvars: what the values were
    changes = changes.partition("$dumpoff")[0]
    unknown = [nets[word[1:]] for word in start.split()
               if word[0] in "xz" and word[1:] in nets]
    if unknown:
        raise ToolFailed(f"Gate-level simulation: net {unknown[0]} and {len(unknown) - 1} more "
                         "are unknown when the measurement begins; the unit needs more cycles "
                         "before it")
    counts = collections.Counter(changes.split())
    return ({net: counts[f"1{code}"] for code, net in nets.items()},
            {net: counts[f"0{code}"] for code, net in nets.items()})


def _run(command: list[str], folder: pathlib.Path) -> None:
    program = find_program(command[0])
    if program is None:
        raise ToolFailed(f"{command[0]} is not installed; install Icarus with 'apt install "
                         "iverilog'")
    done = subprocess.run([program, *command[1:]], cwd=folder, capture_output=True, text=True,
                          check=False)
    if done.returncode:
        raise ToolFailed(f"{command[0]} stopped: {(done.stderr or done.stdout).strip()[:300]}")


def simulate(netlist: Netlist, inputs: Mapping[str, Sequence[int]], measured: range, *,
             period_ns: float, folder: pathlib.Path) -> Run:
    """Run a netlist.

    Parameters
    ----------
    netlist : Netlist
    inputs : mapping of str to sequence of int
        Each input port but the clock in each cycle, as an unsigned number.
    measured : range
        Cycles in which toggles are counted.
    period_ns : float
        Of the clock.
    folder : path
        Where the tools work.

    Raises
    ------
    ToolFailed
        If Icarus is missing or stops, or nets are unknown in the measured cycles.
    ValueError
        If the inputs are not those of the netlist.
    """
    wanted = {name: len(bits) for name, (direction, bits) in netlist.ports.items()
              if direction == "input" and name != "clk"}
    if set(wanted) != set(inputs):
        raise ValueError(f"Inputs must be {sorted(wanted)}, not {sorted(inputs)}")
    cycles = len(next(iter(inputs.values())))
    with open(folder / "stimuli.txt", "w", encoding="ascii") as file:
        for cycle in range(cycles):
            # The first port has the lowest bits, and a line begins with the highest.
            file.write("".join(f"{int(inputs[name][cycle]):0{width}b}"
                               for name, width in reversed(wanted.items())) + "\n")
    (folder / "unit.v").write_text(
        "`timescale 1ps/1ps\n" + _design(netlist)
        + _bench(netlist, cycles, measured, round(period_ns * 1000)))
    _run(["iverilog", "-g2012", "-o", "unit.vvp", "-s", "bench", "unit.v"], folder)
    _run(["vvp", "-n", "unit.vvp"], folder)

    lines = (folder / "outputs.txt").read_text().split()
    outputs: dict[str, list[int | None]] = {}
    low = 0
    for name, (direction, bits) in netlist.ports.items():
        if direction == "output":
            high = low + len(bits)
            words = [line[len(line) - high:len(line) - low] for line in lines]
            outputs[name] = [None if set(word) - {"0", "1"} else int(word, 2) for word in words]
            low = high
    return Run(outputs, *_toggles(folder / "toggles.vcd"))
