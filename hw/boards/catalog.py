"""Every board by name."""

from hw.boards.board import AcceleratorBoard, EngineBoard
from hw.boards.colorlight import COLORLIGHT_I5, COLORLIGHT_I9
from hw.boards.icebreaker import ICEBREAKER
from hw.boards.icepi_zero import ICEPI_ZERO
from hw.boards.tang_nano_20k import TANG_NANO_20K
from hw.boards.ulx3s import ULX3S, ULX3S_12F, ULX3S_85F

__all__ = ["BOARDS"]

#: Boards by name.
BOARDS: dict[str, EngineBoard | AcceleratorBoard] = {
    board.name: board for board in (
        ULX3S, ULX3S_12F, ULX3S_85F, ICEPI_ZERO, COLORLIGHT_I5, COLORLIGHT_I9, TANG_NANO_20K,
        ICEBREAKER)}
