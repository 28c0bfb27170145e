"""Synthesized netlists of whole boards, used through their pins by the host's own driver."""

import pathlib

import numpy as np

from host.compiler.compile import compile_model
from host.devices.checked import CheckedTokens
from host.devices.engine import Driver, GoldenEngine
from host.devices.serial_accelerator import SerialAccelerator
from host.devices.serial_engine import SerialEngine
from host.models.examples import tiny_model
from hw.boards.board import AcceleratorBoard, EngineBoard
from hw.boards.catalog import BOARDS
from hw.build import build
from hw.synth.netlist import checked_netlist
from sim.fast.serial_pins import build_board, serial_port
from sim.netlist import NetlistResult, write_simulated

__all__ = ["run_board"]

# Seconds for a reply of a whole board; on a busy machine a frame can take minutes.
_PATIENCE = 1200.0


def run_board(name: str, folder: pathlib.Path) -> NetlistResult:
    """Build a board's netlist as ``hw.build`` does, and have the host's driver use its pins.

    The whole top is simulated, under Verilator: oscillator's pin, PLL (which hands the clock on),
    reset, pins, link and device. An engine multiplies a matrix, and its L-Mul unit numbers; an
    accelerator loads a model and makes tokens. All of it equals the golden functions.

    Parameters
    ----------
    name : str
        Key of :data:`hw.boards.catalog.BOARDS`.
    folder : path
        Where all files go.

    Raises
    ------
    BuildError, NetlistError, ToolFailed, ToolMissing
        If the netlist cannot be made, or has a fault.
    RuntimeError
        If Verilator does not compile it.
    """
    board = BOARDS[name]
    build(board, folder, route=False)
    netlist = checked_netlist(folder / "top.json", "top")
    family = "ice40" if any(cell["type"].startswith("SB_") for cell in netlist["cells"].values()) \
        else "ecp5"
    wired = ", ".join(f".{pin}({_signal_of(pin)})" for pin in netlist["ports"])
    sources = write_simulated(folder, "top", family)
    text = "\n".join([*(source.read_text() for source in sources),
                      "module board (input clk, rst, rx, output tx);\n"
                      f"    top top ({wired});\nendmodule\n"])
    program = build_board(board, folder, netlist=text)
    with serial_port(program, board) as port:
        compared, equal = (_check_accelerator(port, board) if isinstance(board, AcceleratorBoard)
                           else _check_engine(port, board))
    return NetlistResult(name, family, "the board's own", compared, 1, equal)


def _signal_of(pin: str) -> str:
    """Signal of the simulated board that belongs to a pin of the top, or nothing."""
    return next((signal for part, signal in (("clk", "clk"), ("__rx__", "rx"), ("__tx__", "tx"))
                 if part in pin), "")


def _check_engine(port: str, board: EngineBoard) -> tuple[int, bool]:
    """Compare a product and L-Mul products; return how many numbers, and whether all are equal."""
    rng = np.random.default_rng(13)
    config = board.config
    device, golden = SerialEngine(port, config=config, timeout=_PATIENCE), GoldenEngine(config)
    weights = rng.integers(-4, 5, (config.lanes + 3, 9))
    activations = rng.integers(-128, 128, (1, 9)).astype(np.int8)
    x, y = (rng.integers(0, 1 << 16, 40, dtype=np.uint16) for _ in range(2))
    results = []
    for each in (device, golden):
        driver = Driver(each)
        driver.load("W", weights)
        results.append(np.concatenate([driver("W", activations).ravel(), each.lmul(x, y)]))
    device.close()
    return results[1].size, np.array_equal(results[0], results[1])


def _check_accelerator(port: str, board: AcceleratorBoard) -> tuple[int, bool]:
    """Compare the tokens of a small model; return how many logits; a wrong one raises."""
    image = compile_model(tiny_model(width=16, ffn_width=16, layers=1), board.config)
    accelerator = SerialAccelerator(port, config=board.config, timeout=_PATIENCE)
    accelerator.load(image)
    checked = CheckedTokens(accelerator, image)
    for token, new in ((5, True), (258, False)):
        checked.token(token, new=new)
    accelerator.close()
    return checked.checked, True
