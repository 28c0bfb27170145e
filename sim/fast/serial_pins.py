"""A simulated board behind a serial port: its UART's bits go through a pseudo-terminal."""

import contextlib
import os
import pathlib
import shutil
import subprocess
import tty
from collections.abc import Iterator

from amaranth.back import verilog

from hw.boards.board import AcceleratorBoard, EngineBoard
from hw.boards.system import BoardSystem
from sim.tools import ToolMissing, missing_tools, simulation_environment, spaceless

__all__ = ["build_board", "serial_port"]


def build_board(board: EngineBoard | AcceleratorBoard, work_dir: pathlib.Path, *,
                watchdog_cycles: int | None = None,
                netlist: str | None = None) -> pathlib.Path:
    """Compile what is between the pins of ``board`` and return the program for :func:`serial_port`.

    Parameters
    ----------
    board : EngineBoard or AcceleratorBoard
    work_dir : path
        Where the program and all that it is made of go.
    watchdog_cycles : int, optional
        As of :class:`BoardSystem`.
    netlist : str, optional
        Verilog that is compiled instead: module ``board`` with the ports of :class:`BoardSystem`.

    Raises
    ------
    ToolMissing
        If Verilator, or what it needs, is not installed.
    RuntimeError
        If the compilation fails.
    """
    missing = missing_tools("verilator", "g++", "make", "perl")
    if missing:
        raise ToolMissing("; ".join(missing))
    work_dir = work_dir.resolve()
    text = netlist or verilog.convert(BoardSystem(board, watchdog_cycles=watchdog_cycles),
                                      name="board", emit_src=False, strip_internal_attrs=True)
    (work_dir / "board.v").write_text(text)
    # The benches of the units mind Verilator's warnings; here they would only stop the build.
    command = ["verilator", "--cc", "--exe", "--build", "--top-module", "board", "-O3",
               "--Wno-lint", "--Wno-style", "--CFLAGS", "-O1", "--MAKEFLAGS",
               "CFG_CXXFLAGS_PCH_I=-include", "--Mdir", "build", "board.v",
               str(spaceless(pathlib.Path(__file__).parent) / "serial_pins.cpp")]
    environment = simulation_environment()
    command[0] = shutil.which(command[0], path=environment["PATH"]) or command[0]
    result = subprocess.run(command, cwd=work_dir, env=environment, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"Verilator cannot compile board {board.name}: {result.stderr[-2000:]}")
    return work_dir / "build" / "Vboard"


@contextlib.contextmanager
def serial_port(program: pathlib.Path, divisor: int) -> Iterator[str]:
    """Run a simulated board and yield the path of its serial port."""
    master, slave = os.openpty()
    tty.setraw(slave)
    process = subprocess.Popen([program, str(master), str(divisor)], pass_fds=[master])
    try:
        yield os.ttyname(slave)
    finally:
        process.terminate()
        process.wait()
        os.close(master)
        os.close(slave)
