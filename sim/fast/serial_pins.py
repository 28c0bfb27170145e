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
from sim.timing.phase import pin_timing
from sim.tools import ToolMissing, missing_tools, simulation_environment, spaceless

__all__ = ["build_board", "serial_port"]

_PIN_REGISTERS = 2      # cycles of hw.boards.sdram_pins.SdramPins, there and back


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
               "--Wno-lint", "--Wno-style", "--Wno-SPECIFYIGN", "--CFLAGS",
               " ".join(["-O1", *_definitions(board, netlist)]), "--MAKEFLAGS",
               "CFG_CXXFLAGS_PCH_I=-include", "--Mdir", "build", "board.v",
               str(spaceless(pathlib.Path(__file__).parent) / "serial_pins.cpp")]
    environment = simulation_environment()
    command[0] = shutil.which(command[0], path=environment["PATH"]) or command[0]
    result = subprocess.run(command, cwd=work_dir, env=environment, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"Verilator cannot compile board {board.name}: {result.stderr[-2000:]}")
    return work_dir / "build" / "Vboard"


def _definitions(board: EngineBoard | AcceleratorBoard, netlist: str | None) -> list[str]:
    """Return what serial_pins.cpp is compiled with: the parts that the board has."""
    if not isinstance(board, AcceleratorBoard) or board.sdram is None:
        return []
    parts = ["-DSDRAM"]
    if board.sdram_divider is not None:
        parts.append("-DMEMORY_CLOCK")
    # The phase's outputs of a whole top end in its PLL.
    if board.phase_steps and netlist is None:
        parts.append("-DPHASE")
    return parts


def _sdram_arguments(board: EngineBoard | AcceleratorBoard, contents: pathlib.Path | None,
                     stuck_address_pin: int | None, has_pins: bool) -> list[str]:
    """Return what the program must know of the chip, as it says itself."""
    if not isinstance(board, AcceleratorBoard) or board.sdram is None:
        return []
    chip = board.sdram
    cycles = chip.cycles(board.sdram_hz)
    fields = (chip.data_bits, chip.rows, chip.columns, chip.cas_latency, cycles.t_rp, cycles.t_rcd,
              cycles.t_wr, cycles.t_rfc, cycles.t_ras, cycles.t_rc, cycles.t_rrd, cycles.t_mrd,
              cycles.power_up, cycles.refresh_window, chip.refresh_rows)
    periods = (board.pll["CLKOP_DIV"], board.sdram_divider) if board.sdram_divider else (1, 1)
    stuck = -1 if stuck_address_pin is None else stuck_address_pin
    phase, delays = 0, [board.sdram_pin_cycles]
    if board.phase_steps and not has_pins:
        phase = round(board.sdram_clock_phase / board.phase_step)
        timings = [pin_timing(board, k * board.phase_step) for k in range(board.phase_steps)]
        delays = [timing.cycle if timing.margin > 0 else -1 for timing in timings]
    elif has_pins:
        delays = [board.sdram_pin_cycles - _PIN_REGISTERS]
    return [*map(str, (*periods, stuck, phase, len(delays), *delays, *fields)),
            str(contents or "")]


@contextlib.contextmanager
def serial_port(program: pathlib.Path, board: EngineBoard | AcceleratorBoard, *,
                contents: pathlib.Path | None = None,
                stuck_address_pin: int | None = None, has_pins: bool = False) -> Iterator[str]:
    """Run a simulated board and yield the path of its serial port.

    Parameters
    ----------
    program : path
        As :func:`build_board` returns it.
    board : EngineBoard or AcceleratorBoard
    contents : path, optional
        File with what the SDRAM holds from address 0 on; all else is random.
    stuck_address_pin : int, optional
        A fault: this address pin of the SDRAM is always 0.
    has_pins : bool
        What was compiled contains the registers of the SDRAM's pins, as a whole top does.

    Raises
    ------
    RuntimeError
        When the simulation has ended by itself, as it does when the SDRAM's rules are broken.
    """
    master, slave = os.openpty()
    tty.setraw(slave)
    process = subprocess.Popen([program, str(master), str(board.divisor),
                                *_sdram_arguments(board, contents, stuck_address_pin,
                                                 has_pins)],
                               pass_fds=[master],
                               stderr=subprocess.PIPE, text=True)
    try:
        yield os.ttyname(slave)
    finally:
        ended = process.poll()
        process.terminate()
        _, errors = process.communicate()
        os.close(master)
        os.close(slave)
        if ended is not None:
            raise RuntimeError(f"The simulation of board {board.name} has ended: {errors.strip()}")
