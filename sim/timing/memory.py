"""How fast the memory of a board is, as the formulas of programs take it."""

from hw.boards.board import AcceleratorBoard
from hw.memory.sdram_chip import columns_per_transfer
from sim.timing.crossing import crossing_cycles
from sim.timing.units import block_ram_memory_cycles, sdram_cycles, sdram_share

__all__ = ["memory_timing"]


def memory_timing(board: AcceleratorBoard) -> tuple[int, float]:
    """Return the latency of a board's memory and the share of cycles without a transfer.

    Parameters
    ----------
    board : AcceleratorBoard

    Returns
    -------
    tuple of int and float
        Cycles from a read that the port accepts to its first transfer; share of the cycles of a
        stream of reads in which no transfer comes: refreshes, and all but one of the cycles that a
        transfer of several columns takes. With a clock of the memory's own, the latency is that of
        the mean phase.
    """
    chip, port_bytes = board.sdram, board.config.port_bytes
    if chip is None:
        return block_ram_memory_cycles([1]) - 1, 0.0
    latency = sdram_cycles(chip, board.sdram_hz, 1, port_bytes=port_bytes,
                           pin_cycles=board.sdram_pin_cycles) - 1
    share = sdram_share(chip, board.sdram_hz, port_bytes=port_bytes)
    rate = share / columns_per_transfer(chip, port_bytes)       # transfers a cycle
    if board.sdram_divider is None:
        return latency, 1 - rate
    ratio = board.clock_hz / board.sdram_hz
    crossing = sum(crossing_cycles(1, ratio)) / 2
    return round(latency * ratio + crossing), max(0.0, 1 - rate / ratio)
