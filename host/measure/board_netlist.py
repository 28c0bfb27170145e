"""Synthesized netlists of whole boards, used through their pins by the host's own driver."""

import pathlib
import re
from collections.abc import Mapping

import numpy as np
from amaranth import Shape
from amaranth.lib.wiring import In

from host.compiler.compile import compile_model
from host.devices.checked import CheckedTokens
from host.devices.engine import Driver, GoldenEngine
from host.devices.serial_accelerator import SerialAccelerator
from host.devices.serial_engine import SerialEngine
from host.models.examples import tiny_model
from hw.boards.board import AcceleratorBoard, EngineBoard
from hw.boards.catalog import BOARDS
from hw.build import build
from hw.memory.sdram import pins_signature
from hw.records import ROOT
from hw.synth.netlist import checked_netlist
from hw.synth.tool import run_tool
from sim import gowin_cells
from sim.fast.serial_pins import build_board, serial_port
from sim.netlist import NetlistResult, cell_models

__all__ = ["run_board"]

#: Of this one sim/models/ecp5_pins.v has what Verilator can simulate.
_PIN = r"(?ms)^module TRELLIS_IO\b.*?^endmodule$"
_LUT = r"(?ms)^module LUT4\b.*?^endmodule$"

_CELLS_THAT_STAY = ("PDPW16KD DP16KD EHXPLLL ODDRX1F TRELLIS_IO SB_RAM40_4K* SB_IO "
                    f"{gowin_cells.BLOCK_RAMS} IBUF OBUF TBUF IOBUF ODDR rPLL")

#: Models of the cells at the pins; of iCE40 Yosys' own do.
_PIN_MODELS = {"ecp5": ROOT / "sim" / "models" / "ecp5_pins.v", "gowin": gowin_cells.PIN_MODELS}

#: Cell of each data pin of the SDRAM, and its inputs: what it drives, and that it does not.
_DATA_PINS = {"ecp5": (r"\sdram.dq.buf.buf{}", "I", "T"),
              "gowin": (r"\sdram.dq.buf_{}", "I", "OEN")}

#: Signals of module ``board`` by the pins of a top. The SDRAM's clock is the simulated chip's own.
_PIN_SIGNALS = {
    r"clk\d+_0__io": "clk", "uart_0__rx__io": "rx", "uart_0__tx__io": "tx",
    "uart_tx_enable_0__io": "", "sdram_0__clk__io": "", "sdram_0__clk_en__io": "sdram__cke",
    "sdram_0__dq__io": "sdram__dq_i", "sdram_0__a__io": "sdram__a", "sdram_0__ba__io": "sdram__ba",
    "sdram_0__dqm__io": "sdram__dqm", "sdram_0__cs__io": "sdram__cs_n",
    "sdram_0__ras__io": "sdram__ras_n", "sdram_0__cas__io": "sdram__cas_n",
    "sdram_0__we__io": "sdram__we_n",
}

#: What a board ties instead of having the pin.
_TIED = {"sdram_0__clk_en__io": ("sdram__cke", "1"), "sdram_0__cs__io": ("sdram__cs_n", "0"),
         "sdram_0__dqm__io": ("sdram__dqm", "0")}

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
    kinds = {cell["type"] for cell in netlist["cells"].values()}
    family = ("gowin" if "rPLL" in kinds else
              "ice40" if any(kind.startswith("SB_") for kind in kinds) else "ecp5")
    pins = _PIN_MODELS[family].read_text() if family in _PIN_MODELS else ""
    text = "\n".join([_simulated(folder, family), pins, _wrapper(board, family, netlist["ports"])])
    program = build_board(board, folder, netlist=text)
    with serial_port(program, board, has_pins=True) as port:
        compared, equal = (_check_accelerator(port, board) if isinstance(board, AcceleratorBoard)
                           else _check_engine(port, board))
    return NetlistResult(name, family, "the board's own", compared, 1, equal)


def _simulated(folder: pathlib.Path, family: str) -> str:
    """Return Verilog that stands for netlist ``top.v`` in ``folder``, without its wires' names.

    They are most of it, and the time that Verilator takes.
    """
    if family == "gowin":
        models = gowin_cells.gowin_models()
        cells = models + _PIN_MODELS[family].read_text()
    else:
        models = cell_models(family)
        cells = _with_short_lut(models)
    (folder / "cells.v").write_text(cells)
    run_tool(["yosys", "-q", "-p",
              f"read_verilog top.v cells.v; blackbox {_CELLS_THAT_STAY}; hierarchy -top top; proc; "
              "flatten; opt_expr; opt_clean -purge; rename -hide w:*; "
              "write_verilog -noattr simulated.v"], folder)
    text = (folder / "simulated.v").read_text()
    # The simulated board has an input where the top has a tristate pin.
    text = re.sub(r'\bTRELLIS_IO #\(\s*\.DIR\("(\w+)"\)\s*\)', r"\1_pin", text)
    return re.sub(r"(?m)^  inout\b", "  input", text) + re.sub(_PIN, "", models)


def _with_short_lut(models: str) -> str:
    """Return models of cells with an assignment instead of the seven wires of Yosys' LUT4.

    Both are proved equal (tests/hw/test_ecp5.py).
    """
    lut = re.search(_LUT, (ROOT / "sim" / "models" / "ecp5.v").read_text())
    assert lut, "sim/models/ecp5.v has a model of LUT4"
    return re.sub(_LUT, lut.group(), models)


def _wrapper(board: EngineBoard | AcceleratorBoard, family: str,
             pins: Mapping[str, object]) -> str:
    """Return module ``board``, with the ports of :class:`BoardSystem`, around the top's ``pins``.

    Raises
    ------
    ValueError
        If the board has pins that nothing is known of.
    """
    # The clock of an SDRAM that has its own; others leave it as it is.
    ports = ["input clk, rst, rx, memory_clk", "output tx"]
    wired, inner = [], ""
    if isinstance(board, AcceleratorBoard) and board.sdram is not None:
        chip = pins_signature(board.sdram)
        for name, member in chip.members.items():
            direction = "input" if member.flow is In else "output"
            ports.append(f"{direction} [{Shape.cast(member.shape).width - 1}:0] sdram__{name}")
        cell, value, off = _DATA_PINS[family]
        driven = ", ".join(f"top.{cell.format(bit)} .{value}"
                           for bit in reversed(range(board.sdram.data_bits)))
        inner = (f"    assign sdram__dq_o = {{{driven}}};\n"
                 f"    assign sdram__dq_oe = !top.{cell.format(0)} .{off};\n")
        for pin, (tied, level) in _TIED.items():
            if pin not in pins:
                inner += f"    assign {tied} = {level};\n"
    for pin in pins:
        signal = next((signal for pattern, signal in _PIN_SIGNALS.items()
                       if re.fullmatch(pattern, pin)), None)
        if signal is None:
            raise ValueError(f"Pin {pin} of board {board.name} belongs to no signal that is "
                             f"simulated: add it to _PIN_SIGNALS")
        wired.append(f".{pin}({signal})")
    return (f"module board ({', '.join(ports)});\n{inner}"
            f"    top top ({', '.join(wired)});\nendmodule\n")


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
