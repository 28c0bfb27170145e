"""Shapes that fit a board with an accelerator."""

import dataclasses
import json
import re
import time

import pytest

from host.cli import main as cli
from host.cli.options import DEFAULT_MODEL
from host.compiler.errors import CompileError
from host.compiler.fit import Shape, fit, largest
from hw.boards.board import AcceleratorBoard
from hw.boards.catalog import BOARDS
from hw.config import AcceleratorConfig, EngineConfig

#: A board that is small enough to be filled: 128 KiB of block RAM.
BOARD = AcceleratorBoard(
    name="block-ram", platform="amaranth_boards.ulx3s.ULX3S_85F_Platform", clock_hz=80_000_000,
    baud=2_000_000,
    config=AcceleratorConfig(
        engine=EngineConfig(lanes=32, result_lanes=4, accumulator_width=20, accumulator_depth=16,
                            max_planes=3, max_batch=1, index_width=12, port_bytes=8,
                            target="ecp5"),
        vector_depth=4096, program_depth=512, list_depth=1024, queue_words=64, top_k=16,
        address_width=17))
SHAPE = Shape(width=128, layers=1, ffn_width=256, vocab=256)


@pytest.fixture(autouse=True)
def catalog(monkeypatch):
    """Give the small board a name for as long as a test runs."""
    monkeypatch.setitem(BOARDS, BOARD.name, BOARD)


def test_one_shape():
    found = fit(BOARD, SHAPE)
    matrices = 4 * 128 * 128 + 3 * 128 * 256
    assert found.trits == matrices + 2 * 3 * 256 * 128
    # Whole words of 7 bytes for 32 rows each, a vector of biases, every part in whole transfers.
    bytes_ = 7 * (matrices + 6 * 256 * 128) // 32 + 2 * 128
    assert bytes_ <= found.bytes < bytes_ + 10 * 16
    assert found.bytes + found.left == 2 ** 17
    assert found.cycles > found.trits / 32 * 0.5
    assert found.tokens_per_second == pytest.approx(BOARD.clock_hz / found.cycles)


def test_largest_has_no_room_for_a_layer_more():
    found = largest(BOARD, SHAPE)
    assert found.shape.layers >= 2
    with pytest.raises(CompileError, match=r"^Image must have at most 131072 bytes "):
        fit(BOARD, dataclasses.replace(found.shape, layers=found.shape.layers + 1))


def test_nothing_fits():
    with pytest.raises(CompileError, match=r"^Image must have at most 131072 bytes "):
        largest(BOARD, dataclasses.replace(SHAPE, width=256, ffn_width=512))


def test_far_too_large():
    """It is refused before a model of so many weights is made."""
    began = time.perf_counter()
    trits = 10 * 99999 ** 2 + 2 * 3 * 512 * 99999
    with pytest.raises(CompileError, match=f"^Image must have at most 131072 bytes for board "
                                           f"block-ram, but its {trits:,} trits alone have "
                                           f"{trits // 5:,}$"):
        largest(BOARD, Shape(width=99999, layers=1, ffn_width=2 * 99999, vocab=512))
    assert time.perf_counter() - began < 1


def run(capsys, *arguments):
    status = cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_command(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "80")
    path = tmp_path / "fit.json"
    status, out, err = run(capsys, "fit", BOARD.name, "--width", 64, 128, "--layers", 1,
                           "--json", path)
    assert (status, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 80
    record = json.loads(path.read_text())
    assert [(row["width"], row["ffn_width"], row["layers"]) for row in record["rows"]] == [
        (64, 128, 1), (128, 256, 1)]
    row = record["rows"][1]
    assert re.search(rf"128 +1 +256 +512 +{row['trits']:,} +{row['bytes']:,} +"
                     rf"{row['bytes_left']:,} +{row['cycles']:,} ", out)


def test_some_fit(capsys):
    """A width that does not fit is said, and the others are shown; none is an error."""
    status, out, err = run(capsys, "fit", BOARD.name, "--width", 64, 256)
    assert (status, err) == (0, "")
    assert re.search(r"^Width 256: Image must have at most 131072 bytes ", out, re.MULTILINE)
    status, _, err = run(capsys, "fit", BOARD.name, "--width", 256)
    assert status == 1
    assert err.startswith("tally fit: Width 256: Image must have at most 131072 bytes ")


def test_mistakes(capsys):
    known = ", ".join(repr(name) for name, board in BOARDS.items()
                      if isinstance(board, AcceleratorBoard))
    assert run(capsys, "fit", "ulx3s") == (
        1, "", f"tally fit: 'ulx3s' is not a board with an accelerator (try {known})\n")
    assert run(capsys, "compile", "--board", "x") == (
        1, "", f"tally compile: 'x' is not a board with an accelerator (try {known})\n")
    status, _, err = run(capsys, "compile", "--board", BOARD.name)
    assert status == 1
    assert err.startswith("tally compile: ")


def test_model_on_a_board_with_sdram(capsys, monkeypatch):
    """The shipped model, whose lists are those of a text: the memory port binds."""
    monkeypatch.setenv("COLUMNS", "100")
    status, out, err = run(capsys, "fit", "ulx3s-85f")
    assert (status, err) == (0, "")
    assert re.search(r"What binds +memory port", out)
    rate = float(re.search(r"Tokens a second +([\d.]+) +derived, at the board's clock of 75 MHz",
                           out)[1])
    # 2 bytes in each cycle of the memory are 240 MB/s, of which a sparse token takes 2.2 MB.
    assert 90 < rate < 240 / 2.0


def test_model_that_does_not_fit(capsys):
    status, out, err = run(capsys, "fit", BOARD.name, DEFAULT_MODEL)
    assert (status, out) == (1, "")
    assert err.startswith("tally fit: Image must have at most 131072 bytes for an address width "
                          "of 17, but ")


def test_model_and_shape(capsys):
    assert run(capsys, "fit", "ulx3s-85f", "some.gguf", "--width", 64) == (
        1, "", "tally fit: Option --width finds models of its own: leave it out, or some.gguf\n")
