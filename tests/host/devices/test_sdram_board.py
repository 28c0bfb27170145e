"""A board with SDRAM, from its serial pins to the chip: a model is loaded and writes tokens."""

import dataclasses
import re

import pytest

from host.cli.main import main
from host.compiler.compile import compile_model
from host.devices.checked import CheckedTokens
from host.devices.serial_accelerator import SerialAccelerator
from host.files.image import write_image
from host.models.examples import tiny_model
from hw.boards.board import AcceleratorBoard
from hw.config import AcceleratorConfig, EngineConfig
from hw.memory.sdram_chip import SdramChip
from sim.fast.serial_pins import build_board, serial_port
from sim.tools import ToolMissing

#: A chip of 512 KiB with the timings of a real one.
CHIP = SdramChip(rows=256, columns=256)
CONFIG = AcceleratorConfig(
    engine=EngineConfig(lanes=16, accumulator_width=20, accumulator_depth=32, max_planes=3,
                        max_batch=1, index_width=9, port_bytes=4, result_lanes=4, row_columns=64),
    vector_depth=512, program_depth=128, list_depth=64, queue_words=64, top_k=5, address_width=19)
BOARD = AcceleratorBoard(name="simulated", platform="", clock_hz=80_000_000, baud=16_000_000,
                         config=CONFIG, sdram=CHIP)
TOKENS = 16


@pytest.fixture(scope="module")
def image():
    return compile_model(tiny_model(width=32, ffn_width=64, layers=2), CONFIG, sparse=True)


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    try:
        return build_board(BOARD, tmp_path_factory.mktemp("board"))
    except ToolMissing as problem:
        pytest.skip(str(problem))


def write_tokens(accelerator, image):
    checked = CheckedTokens(accelerator, image)
    token, refreshes, cycles = 5, 0, 0
    for index in range(TOKENS):
        result = checked.token(token, new=index == 0)
        status = accelerator.status()
        assert result.transfers == status["transfers"] > 0
        # A transfer takes two cycles of the chip.
        assert result.transfers // 2 < status["waits"] < status["cycles"] - result.transfers
        refreshes, cycles = refreshes + status["refreshes"], cycles + status["cycles"]
        token = int(result.top_k[0].rows[0])
    # One is due every 7.8 us, in groups of four; 1 us at the beginning of a reset is lost.
    due = cycles * CHIP.refresh_rows / CHIP.cycles(BOARD.clock_hz).refresh_window
    assert 0.8 * due - 8 < refreshes < 1.2 * due + 8
    assert checked.checked == TOKENS * CONFIG.top_k * len(image.program.heads)


def test_through_the_pins(program, image):
    with serial_port(program, BOARD) as port:
        accelerator = SerialAccelerator(port, config=CONFIG, timeout=60.0)
        accelerator.load(image)
        accelerator.verify()
        write_tokens(accelerator, image)
        # A reset initializes the chip again, which keeps what it holds.
        accelerator.load(image)
        accelerator.verify()
        write_tokens(accelerator, image)
        accelerator.close()


def test_preloaded(program, image, tmp_path):
    contents = tmp_path / "contents"
    contents.write_bytes(image.memory)
    with serial_port(program, BOARD, contents=contents) as port:
        accelerator = SerialAccelerator(port, config=CONFIG, timeout=60.0)
        accelerator.adopt(image)
        accelerator.verify()
        write_tokens(accelerator, image)
        accelerator.close()


def test_run(program, image, tmp_path, capsys):
    """Nothing is sent at the second start, and the counters of the board are shown."""
    path = tmp_path / "image"
    write_image(path, image)
    with serial_port(program, BOARD) as port:
        for _ in range(2):
            assert main(["run", str(path), "a", "--device", f"serial:{port}", "--tokens", "3"]) == 0
            out = capsys.readouterr().out
            assert re.search(r"Logits delivered +\d+ +all equal to the golden machine", out)
            assert re.search(r"Memory port, used +\d+\.\d% +measured", out)
            assert re.search(r"\.\.\. waits, refreshes +[\d,]+, \d+ +measured", out)


@pytest.mark.parametrize(("change", "rule"), [
    ({"t_rcd_ns": 60}, "tRCD"), ({"t_rp_ns": 60}, "tRP"), ({"t_rfc_ns": 140}, "tRFC"),
    ({"t_ras_ns": 1000}, "tRAS"), ({"cas_latency": 3}, "another CAS latency"),
    ({"refresh_us": 16_000}, "late by more than eight intervals")])
def test_a_slower_chip_is_noticed(program, image, change, rule):
    """The board was made for another chip: the simulated one says which rule is broken."""
    slower = dataclasses.replace(BOARD, sdram=dataclasses.replace(CHIP, **change))

    def use():
        with serial_port(program, slower) as port:
            accelerator = SerialAccelerator(port, config=CONFIG, timeout=4.0)
            accelerator.load(image)
            write_tokens(accelerator, image)

    with pytest.raises(RuntimeError, match=rf"^The simulation of board simulated has ended: SDRAM, "
                                           rf"cycle \d+: .*({rule})$"):
        use()
