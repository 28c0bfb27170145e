"""A board with SDRAM, from its serial pins to the chip: a model is loaded and writes tokens."""

import dataclasses
import re

import pytest

from host.cli.main import main
from host.compiler.compile import compile_model
from host.devices.checked import CheckedTokens
from host.devices.errors import DeviceError
from host.devices.serial_accelerator import SerialAccelerator
from host.files.image import write_image
from host.models.examples import tiny_model
from hw.boards.board import AcceleratorBoard
from hw.boards.catalog import BOARDS
from hw.boards.ecp5_25f import FAST_SDRAM
from hw.config import AcceleratorConfig, EngineConfig
from hw.memory.sdram_chip import SdramChip
from sim.fast.serial_pins import build_board, serial_port
from sim.timing.phase import pin_timing
from sim.tools import ToolMissing

#: A chip of 512 KiB with the timings of a real one.
CHIP = SdramChip(rows=256, columns=256, cas_latency=3)
CONFIG = AcceleratorConfig(
    engine=EngineConfig(lanes=16, accumulator_width=20, accumulator_depth=32, max_planes=3,
                        max_batch=1, index_width=9, port_bytes=4, result_lanes=4, row_columns=64),
    vector_depth=512, program_depth=128, list_depth=64, queue_words=64, top_k=5, address_width=19)
BOARD = AcceleratorBoard(name="simulated", platform="", clock_hz=75_000_000, baud=15_000_000,
                         config=CONFIG, **FAST_SDRAM | {"sdram": CHIP})
#: The same with one clock for everything, inverted at the chip.
ONE_CLOCK = dataclasses.replace(BOARD, sdram=dataclasses.replace(CHIP, cas_latency=2),
                                sdram_divider=None, sdram_clock_phase=180)
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
        # A transfer takes two cycles of the chip, which has 8 in 5 of the board's.
        assert result.transfers // 7 < status["waits"] < status["cycles"] - result.transfers
        refreshes, cycles = refreshes + status["refreshes"], cycles + status["cycles"]
        token = int(result.top_k[0].rows[0])
    # One is due every 7.8 us, in groups of four; 1 us at the beginning of a reset is lost.
    due = cycles * CHIP.refresh_rows * 1e6 / (BOARD.clock_hz * CHIP.refresh_us)
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


class TestDoctor:
    """A sound board, and faults that are each named."""

    #: Several rows of all four banks; all 512 KiB would take minutes on the serial line.
    BYTES = 1 << 13

    @pytest.fixture(autouse=True)
    def wide(self, monkeypatch):
        """Let no table break its lines."""
        monkeypatch.setenv("COLUMNS", "300")

    def doctor(self, capsys, program, *, board=BOARD, size=BYTES, **fault):
        # A chip that forgives what the board does to it.
        forgiving = dataclasses.replace(board, sdram=dataclasses.replace(
            board.sdram, refresh_us=10 ** 9))
        with serial_port(program, forgiving, **fault) as port:
            status = main(["doctor", "--device", f"serial:{port}", "--memory-bytes", str(size)])
        return status, " ".join(capsys.readouterr().out.split())

    def test_sound(self, capsys, program):
        status, out = self.doctor(capsys, program)
        assert status == 0
        for name in ("addresses", "inverted addresses", "pseudo-random bytes"):
            assert f"Memory, {name} {self.BYTES:,} bytes right written at" in out
        assert re.search(r"Link \d+ round trips a second 0 requests repeated", out)
        assert re.search(r"Known tokens 16 tokens right \d+ logits", out)
        assert "WRONG" not in out

    def test_stuck_address_line(self, capsys, program):
        """Two bits of the column, none of which the mode register has: row, bank, column, byte."""
        for pin, bit in ((2, 3), (3, 4)):
            status, out = self.doctor(capsys, program, stuck_address_pin=pin, size=4096)
            assert status == 1
            assert "Memory, addresses WRONG: address 0x" in out
            assert (f"bit {bit} of the address does nothing: an address line is stuck or not "
                    f"connected") in out

    def test_phase(self, capsys, program):
        """The sweep finds the phases that the times at the pins allow, and comes back."""
        status, out = self.doctor(capsys, program, size=4096)
        right = [k for k in range(-20, 20) if pin_timing(
            BOARD, BOARD.sdram_clock_phase + k * BOARD.phase_step).margin > 0
            and pin_timing(BOARD, BOARD.sdram_clock_phase + k * BOARD.phase_step).cycle == 2]
        assert right == list(range(right[0], right[-1] + 1))
        assert right[0] < 0 < right[-1]
        assert status == 0
        first, last = (BOARD.phase_step * k for k in (right[0], right[-1]))
        assert f"Memory clock right from {first:+.4g} to {last:+.4g} degrees of the" in out

    def test_wrong_phase(self, capsys, program):
        """The chip's clock comes half a cycle later than the board was built for."""
        late = dataclasses.replace(BOARD, sdram_clock_phase=BOARD.sdram_clock_phase + 180)
        status, out = self.doctor(capsys, program, board=late, size=4096)
        assert status == 1
        found = re.search(r"Memory clock WRONG: right from (\S+) to (\S+) degrees of the phase "
                          r"that was built; the middle is at (\S+): change sdram_clock_phase of "
                          r"the board by as much, and build it again", out)
        middle = BOARD.sdram_clock_phase + 180 + float(found[3])
        assert pin_timing(BOARD, middle).margin > 1
        assert "Memory, addresses WRONG: address 0x0 holds" in out
        assert "taken at the wrong time (phase of its clock)" in out

    def test_phase_is_refused_without_steps(self, program):
        with serial_port(program, BOARD) as port:
            accelerator = SerialAccelerator(port, config=CONFIG, timeout=60.0)
            accelerator.phase_steps = 0
            with pytest.raises(DeviceError, match=r"must have a memory clock whose phase can be "
                                                  r"moved$"):
                accelerator.move_phase(1)
            accelerator.close()

    def test_lost_refresh(self, capsys, monkeypatch, tmp_path):
        """A board that never refreshes its memory; what it holds is right for a while."""
        monkeypatch.setattr("hw.memory.sdram.refresh_interval", lambda *arguments: 1 << 30)
        monkeypatch.setitem(BOARDS, ONE_CLOCK.name, ONE_CLOCK)
        status, out = self.doctor(capsys, build_board(ONE_CLOCK, tmp_path), board=ONE_CLOCK,
                                  size=4096)
        assert "Memory clock" not in out
        assert status == 1
        assert "Known tokens 16 tokens right" in out
        assert "Refreshes WRONG: 0 in" in out
        assert "the memory is not refreshed as it must be" in out

    def test_refreshes_are_counted(self, capsys, program, monkeypatch):
        monkeypatch.setitem(BOARDS, BOARD.name, BOARD)
        status, out = self.doctor(capsys, program, size=4096)
        assert status == 0
        assert re.search(r"Refreshes \d+ in [\d,]+ cycles \d+ are due", out)

    def test_other_devices(self, capsys):
        assert main(["doctor", "--device", "golden"]) == 1
        assert "Device 'golden' is no board: give serial:PORT" in capsys.readouterr().err
        assert main(["doctor", "--memory-bytes", "8"]) == 1
        assert "Option --memory-bytes needs a board: give it with --device" in \
            capsys.readouterr().err


@pytest.mark.parametrize(("change", "rule"), [
    ({"t_rcd_ns": 60}, "tRCD"), ({"t_rp_ns": 60}, "tRP"), ({"t_rfc_ns": 140}, "tRFC"),
    ({"t_ras_ns": 1000}, "tRAS"), ({"cas_latency": 2}, "another CAS latency"),
    ({"refresh_us": 16_000}, "late by more than eight intervals")])
def test_a_slower_chip_is_noticed(program, image, change, rule):
    """The board was made for another chip: the simulated one says which rule is broken."""
    # No chip has CAS latency 2 at the clock of BOARD.
    base = ONE_CLOCK if "cas_latency" in change else BOARD
    slower = dataclasses.replace(base, sdram=dataclasses.replace(CHIP, **change))

    def use():
        with serial_port(program, slower) as port:
            accelerator = SerialAccelerator(port, config=CONFIG, timeout=4.0)
            accelerator.load(image)
            write_tokens(accelerator, image)

    with pytest.raises(RuntimeError, match=rf"^The simulation of board simulated has ended: SDRAM, "
                                           rf"cycle \d+: .*({rule})$"):
        use()
