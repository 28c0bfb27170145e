"""``tally experiment``: the experiments whose records lie in docs/results."""

from host.cli.experiment import (
    board,
    cycles,
    density,
    device,
    energy,
    integer,
    l1,
    memory,
    netlist,
    operands,
    picture,
    rotation,
    tensor,
    tokenizers,
    wina,
)

NAME = "experiment"
HELP = "repeat an experiment of docs/results.md"
DESCRIPTION = "Repeat an experiment of docs/results.md; each writes a file of docs/results."

#: All experiments, in the order of ``--help``.
COMMANDS = (density, wina, cycles, integer, rotation, l1, tensor, device, board, memory,
            netlist, tokenizers, operands, energy, picture)
