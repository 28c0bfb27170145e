"""Where the engine's block RAMs lie on an LFE5U-85F.

Its 208 block RAMs lie in four rows across the chip. The placer puts the first ones that it meets in
one row and a few of the rest far from their lanes, which costs a quarter of the clock; with the
block RAMs fixed it finds the rest by itself.
"""

import re

__all__ = ["block_ram_site"]

# Columns of one row; the sites of a tile are EBR0 to EBR3 in turn.
_COLUMNS = (4, 6, 8, 10, 13, 15, 17, 19, 22, 24, 26, 28, 31, 33, 35, 37, 40, 42, 44, 46, 49, 51, 53,
            55, 58, 60, 62, 64, 69, 71, 73, 75, 78, 80, 82, 84, 87, 89, 91, 93, 96, 98, 100, 102,
            105, 107, 109, 111, 114, 116, 118, 120)


def _site(index: int, row: int) -> str:
    return f"X{_COLUMNS[index]}/Y{row}/EBR{index % 4}"


# 32 lanes in the middle of each of two rows, the result queue in the middle of the second.
_LANES = [*(_site(index, 22) for index in range(10, 42)),
          *(_site(index, 46) for index in [*range(7, 23), *range(29, 45)])]
_QUEUE = [_site(index, 46) for index in range(23, 29)]


def block_ram_site(cell: str) -> str | None:
    """Return nextpnr's name of the site for the block RAM ``cell`` of an engine of 64 lanes.

    None leaves the choice to the placer.
    """
    lane = re.search(r"accumulators_(\d+)\.bits_0$", cell)
    if lane:
        return _LANES[int(lane[1])]
    queue = re.search(r"queue\.bits_(\d+)$", cell)
    if queue and int(queue[1]) // 36 < len(_QUEUE):
        return _QUEUE[int(queue[1]) // 36]
    return None
