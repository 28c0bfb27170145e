"""Every board by name."""

from hw.boards.board import AcceleratorBoard, EngineBoard
from hw.boards.icebreaker import ICEBREAKER
from hw.boards.ulx3s import ULX3S, ULX3S_85F, ULX3S_ACCELERATOR

__all__ = ["BOARDS"]

#: Boards by name.
BOARDS: dict[str, EngineBoard | AcceleratorBoard] = {
    board.name: board for board in (
        ULX3S, ULX3S_ACCELERATOR, ULX3S_85F, ICEBREAKER)}
