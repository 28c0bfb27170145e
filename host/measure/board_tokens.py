"""Boards with memory, simulated from their serial pins to the chip, with a model in it."""

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path

from host.devices.checked import CheckedTokens
from host.devices.serial_accelerator import SerialAccelerator
from host.files.image import Image
from hw.boards.board import AcceleratorBoard
from hw.records import write_record
from sim.fast.serial_pins import build_board, serial_port
from sim.timing.memory import memory_timing
from sim.timing.program import token_cycles

__all__ = ["BoardTokens", "measure_board_tokens", "record_board_tokens"]

# Seconds for a reply: a token of the shipped model takes some ten seconds of simulation.
_PATIENCE = 600.0


@dataclasses.dataclass(frozen=True)
class BoardTokens:
    """What tokens took on a simulated board. All logits were those of the golden machine.

    Attributes
    ----------
    board, model : str
    tokens : int
    logits : int
        That were compared.
    cycles, formula_cycles, transfers, waits, refreshes : float
        Of a token in the mean: as the board counts them, and as the formula derives the cycles from
        the lists that the tokens had.
    """

    board: str
    model: str
    tokens: int
    logits: int
    cycles: float
    formula_cycles: float
    transfers: float
    waits: float
    refreshes: float


def measure_board_tokens(board: AcceleratorBoard, image: Image, prompt: list[int], count: int, *,
                         report: Callable[[int], None] | None = None) -> BoardTokens:
    """Let a simulated board read a prompt and go on with the likeliest tokens.

    The memory holds the image when the board is switched on; the program goes through the pins.

    Parameters
    ----------
    board : AcceleratorBoard
    image : Image
    prompt : list of int
    count : int
        Tokens, those of the prompt among them.
    report : callable, optional
        Called with the tokens that are done.

    Raises
    ------
    MismatchError
        At the first integer that is not the golden machine's.
    DeviceError
        If the board does not answer.
    RuntimeError
        If the rules of the SDRAM are broken.
    ToolMissing
        If Verilator, or what it needs, is not installed.
    """
    latency, refresh = memory_timing(board)
    # Cells of the FPGA are simulated by their meaning; no bit and no cycle differs.
    engine = dataclasses.replace(board.config.engine, target="generic")
    board = dataclasses.replace(board, config=dataclasses.replace(board.config, engine=engine))
    cycles = transfers = 0
    formula = 0.0
    with tempfile.TemporaryDirectory() as folder:
        program = build_board(board, Path(folder))
        contents = Path(folder) / "contents"
        contents.write_bytes(image.memory)
        with serial_port(program, board, contents=contents) as port:
            accelerator = SerialAccelerator(port, config=board.config, timeout=_PATIENCE)
            accelerator.adopt(image)
            checked = CheckedTokens(accelerator, image)
            token = prompt[0]
            for index in range(count):
                result = checked.token(token, new=index == 0)
                cycles += result.cycles
                transfers += result.transfers
                formula += token_cycles(
                    board.config, image.program.instructions, image.program.body,
                    latency=latency, refresh=refresh,
                    lists=checked.machine.list_counts()).cycles
                checked.machine.lists.clear()
                token = (prompt[index + 1] if index + 1 < len(prompt)
                         else int(result.top_k[0].rows[0]))
                if report is not None:
                    report(index + 1)
            accelerator.close()
    counted = {"cycles": cycles, "transfers": transfers, "waits": accelerator.waits,
               "refreshes": accelerator.refreshes}
    return BoardTokens(board.name, image.model, count, checked.checked,
                       formula_cycles=round(formula / count, 1),
                       **{name: round(total / count, 1) for name, total in counted.items()})


def record_board_tokens(found: BoardTokens, versions: dict[str, str]) -> None:
    """Keep a row of docs/results/board_tokens.json."""
    write_record("board_tokens", maker="host experiment board",
                 command="python -m host experiment board BOARD --record", versions=versions,
                 configuration={"memory": "preloaded", "prompt": "read, then greedy"},
                 rows=[dataclasses.asdict(found) | {"equal": True}], key=("board", "model"))
