# An accelerator behind the simulated UART pins of its board: tokens of a small model, and what goes
# wrong.

import dataclasses
import re

import pytest
import serial

from host.compiler.compile import compile_model
from host.devices.accelerator import GoldenAccelerator
from host.devices.checked import CheckedTokens
from host.devices.errors import DeviceError
from host.devices.link import StalledError
from host.devices.registry import DeviceName, open_accelerator
from host.devices.serial_accelerator import SerialAccelerator
from host.devices.serial_board import packed
from host.devices.serial_engine import SerialEngine
from host.files.image import ImageError, read_image, write_image
from host.measure.soak import soak_tokens
from host.models.examples import tiny_model
from hw.boards.board import AcceleratorBoard
from hw.config import AcceleratorConfig, EngineConfig
from hw.isa import INSTRUCTION_BYTES, Fault, Function, Instruction, Opcode
from hw.link.protocol import AcceleratorTransfers, Answer, Command
from sim.fast.serial_pins import build_board, serial_port
from sim.timing.units import touched_transfers
from sim.tools import ToolMissing
from tests.host.devices.test_serial import HARMLESS, PATIENCE, SPOILED, FaultyPort

CONFIG = AcceleratorConfig(
    engine=EngineConfig(lanes=8, accumulator_width=20, accumulator_depth=64, max_planes=3,
                        max_batch=1, index_width=9, port_bytes=8, result_lanes=4),
    vector_depth=512, program_depth=128, list_depth=64, queue_words=64, top_k=5, address_width=14)
BOARD = AcceleratorBoard(name="simulated", platform="", clock_hz=5_000_000, baud=1_000_000,
                         config=CONFIG)


@pytest.fixture(scope="module")
def image():
    return compile_model(tiny_model(width=16, ffn_width=32, layers=2), CONFIG)


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    try:
        program = build_board(BOARD, tmp_path_factory.mktemp("board"), watchdog_cycles=20_000)
    except ToolMissing as problem:
        pytest.skip(str(problem))
    with serial_port(program, BOARD) as path:
        yield path


@pytest.fixture(scope="module")
def loaded(port, image):
    """Return an accelerator that has the image; the tests that spoil it load it again."""
    accelerator = SerialAccelerator(port, config=CONFIG, timeout=PATIENCE)
    accelerator.load(image)
    accelerator.verify()
    yield accelerator
    accelerator.close()


def check_sequences(accelerator, image):
    """Two sequences, each token equal to the golden machine's."""
    checked = CheckedTokens(accelerator, image)
    for token, new in ((5, True), (258, False), (0, False), (17, True), (5, False)):
        result = checked.token(token, new=new)
        assert result.cycles > 1000
    assert checked.checked == 5 * CONFIG.top_k * len(image.program.heads)


def test_tokens_equal_golden(loaded, image):
    check_sequences(loaded, image)
    assert loaded.link.repetitions == 0


def test_transfers_are_counted_by_the_board(loaded, image):
    """They are those of the formula, which takes a column of the embedding for one transfer."""
    golden = GoldenAccelerator(CONFIG)
    golden.load(image)
    parts = [part for part in image.parts if part.name.startswith("embedding")]
    for index, token in enumerate((7, 30, 31, 33)):
        counted = loaded.token(token, new=index == 0)
        derived = golden.token(token, new=index == 0)
        touched = sum(touched_transfers(CONFIG, part.bytes // image.vocab, [token])
                      for part in parts)
        assert counted.transfers == derived.transfers + touched - len(parts)
        status = loaded.status()
        assert status["transfers"] == counted.transfers
        assert 0 < status["waits"] < status["cycles"]


def requests_of(accelerator, monkeypatch):
    """List the commands that are sent from now on."""
    sent, request = [], accelerator.link.request

    def noted(command, payload=b""):
        sent.append(command)
        return request(command, payload)

    monkeypatch.setattr(accelerator.link, "request", noted)
    return sent


def test_an_image_is_sent_once(loaded, port, image, monkeypatch):
    """A second start finds it there; another image is sent."""
    loaded.load(image)
    again = SerialAccelerator(port, config=CONFIG, timeout=PATIENCE)
    sent, told = requests_of(again, monkeypatch), []
    again.load(image, lambda share, what: told.append((share, what)))
    assert sent == [Command.RESET, Command.MARKED]
    assert told == [(1.0, "the board holds the image already")]
    check_sequences(again, image)
    sent.clear()
    other = dataclasses.replace(image, memory=bytes(len(image.memory)))
    again.load(other)
    assert {Command.WRITE, Command.PROGRAM, Command.MARK} <= set(sent)
    again.verify()
    again.load(image)
    again.verify()
    again.close()


def test_a_load_that_was_cut_off_begins_again(loaded, port, image, monkeypatch):
    """Cut off at the first and at the last part of the weights, and at the mark."""
    other = dataclasses.replace(image, memory=bytes(image.memory)[::-1])
    for cut in (Command.PROGRAM, Command.WRITE, Command.MARK):
        loaded.load(other)
        broken = SerialAccelerator(port, config=CONFIG, timeout=PATIENCE)
        request = broken.link.request

        def dropped(command, payload=b"", cut=cut, request=request):
            if command == cut:
                raise DeviceError("dropped")
            return request(command, payload)

        monkeypatch.setattr(broken.link, "request", dropped)
        with pytest.raises(DeviceError, match=r"^dropped$"):
            broken.load(image)
        broken.close()
        fresh = SerialAccelerator(port, config=CONFIG, timeout=PATIENCE)
        fresh.load(image)
        fresh.verify()
        check_sequences(fresh, image)
        fresh.close()
    loaded.load(image)


def test_info(loaded):
    info = loaded.info()
    assert (info["board"], info["clock_hz"]) == ("simulated", 5_000_000)
    assert info["configuration"] == dataclasses.asdict(CONFIG)
    assert info["configuration_hash"] == f"{CONFIG.configuration_hash():08x}"


def test_memory_is_read_back(loaded, image):
    assert loaded.read(64, 1000) == image.memory[64:1064]
    for address, size in ((4, 8), (0, 12), (16384, 8), (-8, 8)):
        with pytest.raises(ValueError, match=r"^Memory must be read in multiples of 8 bytes below "
                                             r"16,384, not "):
            loaded.read(address, size)


@pytest.mark.parametrize("fault", [*SPOILED, *HARMLESS])
def test_faults_on_the_line_change_nothing(loaded, port, image, monkeypatch, fault):
    monkeypatch.setattr(FaultyPort, "faults", [], raising=False)
    monkeypatch.setattr("host.devices.serial_board.serial.Serial", FaultyPort)
    accelerator = SerialAccelerator(port, config=CONFIG, timeout=4.0)
    accelerator._image = image         # the device has it
    FaultyPort.faults[:] = ["none", fault, "none", fault]
    check_sequences(accelerator, image)
    assert (accelerator.link.repetitions >= 2) == (fault in SPOILED)
    accelerator.close()


def test_noise_makes_no_result_wrong(loaded, image):
    outcome = soak_tokens(loaded, 8.0, seed=3, rate=0.008, timeout=1.0)
    assert outcome.right > 1
    assert sum(outcome.faults.values()) > 3
    assert (outcome.wrong, outcome.mismatches) == (0, [])
    loaded.load(image)
    check_sequences(loaded, image)


def test_garbage_between_tokens(loaded, port, image):
    with serial.Serial(port) as raw:
        raw.write(b"\x00garbage\x00\x01\x02\xff" + bytes(range(1, 200)))
    check_sequences(loaded, image)


def test_verify_names_the_part(loaded, image):
    part = image.parts[3]
    where = part.address + 1
    other = bytearray(image.memory)
    other[where] ^= 0x10
    loaded._image = dataclasses.replace(image, memory=bytes(other))
    message = (f"must hold {other[where]:#04x} at address {where:#x} ({part.name}), "
               f"not {image.memory[where]:#04x}")
    with pytest.raises(DeviceError, match=re.escape(message)):
        loaded.verify()
    loaded._image = image


@pytest.mark.parametrize("token", [-1, 259])
def test_token_out_of_vocabulary(loaded, image, token):
    with pytest.raises(DeviceError, match=rf"^Token must be from 0 to 258, as tiny has them, "
                                          rf"not {token}$"):
        loaded.token(token)
    check_sequences(loaded, image)


def with_program(image, change):
    instructions = list(image.program.instructions)
    change(instructions)
    return dataclasses.replace(image, program=dataclasses.replace(
        image.program, instructions=tuple(instructions)))


def test_fault_is_a_sentence_and_a_new_sequence_is_right(loaded, port, image):
    where = image.program.body + 4
    wrong = Instruction(opcode=Opcode.VECTOR, function=Function.COPY, target=6, a=4, count=4)
    loaded.load(with_program(image, lambda program: program.__setitem__(where, wrong)))
    message = (f"The accelerator on {port} stopped at instruction {where} (VECTOR     COPY "
               f"target=6 a=4 b=0 count=4): a vector is empty, not aligned to the vector lanes, "
               f"ends beyond the vector memory, or is longer than the list that it becomes")
    for _ in range(2):
        with pytest.raises(DeviceError, match=f"^{re.escape(message)}$"):
            loaded.token(3, new=True)
    loaded.load(image)
    check_sequences(loaded, image)


def test_error_of_the_memory_is_a_sentence(loaded, port, image, monkeypatch):
    """No board of today has a memory that fails: its answers are put in place of the results."""
    where, request = image.program.body, loaded.link.request
    failed = [{"kind": Answer.TOP_K, "index": 1, "value": 9, "last": 0},
              {"kind": Answer.ERROR, "index": 0x2340, "value": 6, "last": 0},
              {"kind": Answer.ERROR, "index": 0x1, "value": 6, "last": 0},
              {"kind": Answer.FAULT, "index": where, "value": Fault.MEMORY, "last": 1}]
    fields = AcceleratorTransfers(CONFIG).result
    answers = b"".join(packed(fields, **answer) for answer in failed)

    def answered(command, payload=b""):
        data = request(command, payload)
        return answers if command == Command.RESULTS else data

    with monkeypatch.context() as patch:
        patch.setattr(loaded.link, "request", answered)
        message = (f"The accelerator on {port} stopped at instruction {where} (TOKEN): the memory "
                   f"answered a write to address 0x12340 with SLVERR")
        with pytest.raises(DeviceError, match=f"^{re.escape(message)}$"):
            loaded.token(3, new=True)
    check_sequences(loaded, image)


def test_program_without_stop(loaded, port, image):
    loaded.load(with_program(image, lambda program: program.pop()))
    index = len(image.program.instructions) - 1
    # The results come first; the fault is what the next token finds.
    loaded.token(3, new=True)
    with pytest.raises(DeviceError,
                       match=f"^The accelerator on {port} stopped at instruction {index} "):
        loaded.token(3)
    loaded.load(image)
    check_sequences(loaded, image)


def test_no_results_stall_and_the_next_token_is_right(loaded, port, image, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(loaded, "_send", lambda *arguments: [])
        message = (f"The accelerator behind {port} stalled in RESULTS; check that its bitstream "
                   f"was built from this version of the project")
        with pytest.raises(StalledError, match=f"^{re.escape(message)}$"):
            loaded.token(4, new=True)
    check_sequences(loaded, image)


def test_pass_that_was_left_alone(loaded, port, image):
    """What another program has begun ends with the reset of the next one."""
    loaded._send(Command.TOKEN, b"\x01\x00\x00\x00")
    other = SerialAccelerator(port, timeout=PATIENCE)
    other._image = image
    check_sequences(other, image)
    other.close()


def test_image_of_another_configuration(loaded, image):
    other = compile_model(tiny_model(width=16, ffn_width=32, layers=2), dataclasses.replace(
        CONFIG, engine=dataclasses.replace(CONFIG.engine, packing="1in2"), top_k=4))
    message = ("Image of tiny: made for another configuration: packing '1in2' (the device has "
               "'5in8'), top_k 4 (the device has 5)")
    with pytest.raises(ImageError, match=f"^{re.escape(message)}$"):
        loaded.load(other)
    loaded.load(image)
    check_sequences(loaded, image)


def test_image_too_large(loaded, port, image):
    large = dataclasses.replace(image, memory=bytes(16392))
    message = (f"Image of tiny must have at most 16384 bytes of memory for the accelerator on "
               f"{port}, not 16392")
    with pytest.raises(DeviceError, match=f"^{re.escape(message)}$"):
        loaded.load(large)
    long = with_program(image, lambda program: program.extend(program * 2))
    with pytest.raises(DeviceError,
                       match=r"must have at most 128 instructions for the accelerator on "):
        loaded.load(long)
    check_sequences(loaded, image)


@pytest.mark.parametrize(("damage", "message"), [
    (lambda data: data[:-9], "truncated: part head ends at byte"),
    (lambda data: data[:-20] + b"x" + data[-19:], "damaged: part head must have the CRC-32"),
    (lambda data: data[:30], "truncated: the header ends at byte"),
])
def test_broken_image_never_reaches_the_accelerator(loaded, image, tmp_path, damage, message):
    path = tmp_path / "tiny.tally"
    write_image(path, image)
    assert len(path.read_bytes()) > len(image.program.instructions) * INSTRUCTION_BYTES
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ImageError, match=f"^{re.escape(f'{path}: {message}')}"):
        loaded.load(read_image(path, loaded.config))
    check_sequences(loaded, image)


def test_no_image(port):
    accelerator = SerialAccelerator(port, timeout=PATIENCE)
    for call in (lambda: accelerator.token(1, new=True), accelerator.verify):
        with pytest.raises(DeviceError,
                           match=f"^The accelerator on {port} must be given an image first$"):
            call()
    accelerator.close()


def test_other_configuration_names_the_fields(port):
    expected = dataclasses.replace(CONFIG, top_k=9, engine=dataclasses.replace(
        CONFIG.engine, lanes=16, target="ecp5"))
    message = (f"The accelerator of board 'simulated' on {port} has another configuration: lanes "
               f"must be 16, not 8; top_k must be 9, not 5")
    with pytest.raises(DeviceError, match=f"^{re.escape(message)}$"):
        SerialAccelerator(port, config=expected, timeout=PATIENCE)


def test_device_by_its_name(port):
    device = open_accelerator(DeviceName.parse(f"serial:{port}"), CONFIG)
    assert device.config == CONFIG
    device.close()


def test_engine_is_no_accelerator(port):
    message = f"Board 'simulated' on {port} must hold a ternary engine, not an accelerator"
    with pytest.raises(DeviceError, match=f"^{re.escape(message)}$"):
        SerialEngine(port, timeout=PATIENCE)
