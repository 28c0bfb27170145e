# amaranth: UnusedElaboratable=no

"""Token devices: whole tokens, one line for each mistake, and the device works afterwards."""

import dataclasses
import re

import numpy as np
import pytest

import host.devices.simulated
import sim.fast.machine
from host.compiler.compile import compile_model
from host.devices.accelerator import LATENCY, REFRESH, GoldenAccelerator
from host.devices.checked import CheckedTokens
from host.devices.errors import DeviceError, MismatchError
from host.devices.generate import AcceleratorReader, Generator, candidates
from host.devices.registry import DeviceName, open_accelerator
from host.files.image import ImageError, Program
from host.models.examples import tiny_model
from host.text.sampling import Sampler
from hw.config import AcceleratorConfig
from hw.isa import Function, Instruction, Opcode
from sim.golden.arithmetic import ARITHMETICS
from sim.golden.evaluate import ExactProducts, GoldenLM, model_matrices
from sim.golden.machine import TopKResult
from sim.timing.program import token_cycles
from sim.tools import ToolMissing
from tests.host.accelerator_examples import MISSING, SMALL

MODEL = tiny_model(layers=1)
SIMULATED = pytest.param(
    "simulated", marks=pytest.mark.skipif(bool(MISSING), reason="; ".join(MISSING)))


@pytest.fixture(scope="module")
def image():
    return compile_model(MODEL, SMALL)


@pytest.fixture(params=["golden", SIMULATED])
def device(request):
    device = open_accelerator(DeviceName.parse(request.param), SMALL)
    yield device
    device.close()


def with_program(image, *instructions):
    program = Program(instructions, ("",) * len(instructions), 0, (), {})
    return dataclasses.replace(image, program=program)


def refuses(message, error=DeviceError):
    return pytest.raises(error, match=f"^{re.escape(message)}$")


def test_text(device, image):
    """Greedy tokens are those of the model's golden functions."""
    device.load(image)
    checked = CheckedTokens(device, image)
    generator = Generator(AcceleratorReader(checked, image, image.vocabulary))
    tokens = list(generator.generate([5, 9, 80], 4, Sampler(temperature=0)))
    lm = GoldenLM(MODEL, ARITHMETICS["lmul"], ExactProducts(model_matrices(MODEL)))
    state, expected = lm.start(), []
    for token in [0, 5, 9, 80]:
        hidden = lm.forward(np.array([[token]]), state)
    for _ in range(4):
        expected.append(int(lm.logits(hidden)[0].argmax()))
        hidden = lm.forward(np.array([[expected[-1]]]), state)
    assert tokens == expected
    assert (generator.prompt.tokens, generator.text.tokens) == (4, 3)
    assert checked.checked == 7 * SMALL.top_k
    total = (generator.prompt + generator.text).counters
    assert total.cycles > total.transfers > 7 * image.parts[-1].bytes // SMALL.port_bytes


def test_sequences(device, image):
    """The same sequence gives the same logits again; the golden machine sees both."""
    device.load(image)
    checked = CheckedTokens(device, image)
    first, second = ([checked.token(token, new=token == 3).top_k[0] for token in (3, 4)]
                     for _ in range(2))
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one.values, other.values)


@pytest.mark.skipif(bool(MISSING), reason="; ".join(MISSING))
def test_cycles_of_sparse_lists():
    """The golden machine's formula knows the lists of each token, as the RTL has them."""
    image = compile_model(MODEL, SMALL, sparse=True)
    tokens = np.random.default_rng(3).integers(0, image.vocab, 8).tolist()
    cycles = {}
    for kind in ("golden", "simulated"):
        device = open_accelerator(DeviceName("accelerator", kind), SMALL)
        try:
            device.load(image)
            cycles[kind] = [device.token(token, new=index == 0).cycles
                            for index, token in enumerate(tokens)][2:]
        finally:
            device.close()
    np.testing.assert_allclose(cycles["golden"], cycles["simulated"], rtol=0.002)
    assert sum(cycles["golden"]) == pytest.approx(sum(cycles["simulated"]), rel=0.001)
    dense = token_cycles(SMALL, image.program.instructions, image.program.body, latency=LATENCY,
                         refresh=REFRESH).cycles
    assert dense > 1.05 * max(cycles["golden"])


def test_ends_with_the_document(image):
    class Ends:
        def token(self, token, *, new=False, slot=None):
            best = TopKResult(np.array([0, 7]), np.array([9, 3]), 0x3f80, 0)
            return host.devices.accelerator.TokenResult([best], 1, 1)

    reader = AcceleratorReader(Ends(), image, image.vocabulary)
    assert list(Generator(reader).generate([5], 6, Sampler())) == []


def test_candidates(image):
    """Of two TOP_Ks, equal logits by token."""
    program = dataclasses.replace(image.program, heads=((0, 100), (100, 100)))
    image = dataclasses.replace(image, program=program)
    best = [TopKResult(np.array([7, 2, 4]), np.array([9, 8, 8]), 0x3f80, 0),
            TopKResult(np.array([3, 0, 1]), np.array([20, 16, 2]), 0x3f80, -1)]
    tokens, logits = candidates(image, best)
    assert tokens.tolist() == [103, 7, 2, 4, 100]
    assert logits.tolist() == [10, 9, 8, 8, 8]


class TestErrors:
    def test_token(self, device, image):
        """Each mistake is one line; then a new sequence works."""
        with refuses(f"The {device.label} must be given an image first"):
            device.token(0, new=True)
        device.load(image)
        with refuses(f"Token 5 must begin a new sequence: the {device.label} has none that it "
                     f"could continue"):
            device.token(5)
        device.token(5, new=True)
        for token in (-1, 259):
            with refuses(f"Token must be from 0 to 258, as tiny has them, not {token}"):
                device.token(token)
        CheckedTokens(device, image).token(258, new=True)

    def test_fault(self, device, image):
        """The accelerator stops; the sentence says where; after a reset it works."""
        device.load(with_program(
            image, Instruction(opcode=Opcode.TOKEN),
            Instruction(opcode=Opcode.QUANTIZE, function=Function.DENSE, target=0, a=8, count=8),
            Instruction(opcode=Opcode.STOP)))
        for _ in range(2):
            with refuses(f"The {device.label} stopped at instruction 1 (QUANTIZE   DENSE "
                         f"target=0 a=8 count=8): a scalar register is beyond the last one, or "
                         f"register 0 is written"):
                device.token(0, new=True)
            with pytest.raises(DeviceError, match=r"^Token 1 must begin a new sequence: "):
                device.token(1)
        device.load(with_program(image, Instruction(opcode=Opcode.TOKEN)))
        with refuses(f"The {device.label} stopped at instruction 1 (behind the last): the opcode "
                     f"is none, or the program has no STOP"):
            device.token(0, new=True)
        device.load(image)
        CheckedTokens(device, image).token(3, new=True)

    def test_configuration(self, device, image):
        other = dataclasses.replace(
            SMALL, queue_words=64, engine=dataclasses.replace(SMALL.engine, target="ecp5"))
        device.load(image)
        with refuses("Image of tiny: made for another configuration: queue_words 64 (the device "
                     "has 128)", ImageError):
            device.load(dataclasses.replace(image, config=other))
        CheckedTokens(device, image).token(3, new=True)      # what was there before still is

    def test_too_large(self, device, image):
        stop = Instruction(opcode=Opcode.STOP)
        with refuses(f"Image of tiny must have at most 256 instructions for the {device.label}, "
                     f"not 257"):
            device.load(with_program(image, *(stop,) * 257))
        with refuses(f"Image of tiny must have at most 524288 bytes of memory for the "
                     f"{device.label}, not 524289"):
            device.load(dataclasses.replace(image, memory=bytes(524289)))

    def test_truncated_memory(self, device, image):
        """A device without its weights stops; with them it works again."""
        device.load(dataclasses.replace(image, memory=image.memory[:1024]))
        with pytest.raises(DeviceError, match=r"(1024|0x400)"):
            device.token(0, new=True)
        device.load(image)
        CheckedTokens(device, image).token(3, new=True)

    def test_tool_missing(self, monkeypatch):
        def build(*arguments):
            raise ToolMissing("verilator is not installed")

        monkeypatch.setattr(sim.fast.machine, "build_library", build)
        with refuses("The simulator cannot be built: verilator is not installed"):
            open_accelerator(DeviceName("accelerator", "simulated"), AcceleratorConfig())


class TestMismatch:
    @pytest.fixture
    def checked(self, image):
        device = GoldenAccelerator(SMALL)
        device.load(image)
        return CheckedTokens(device, image)

    def change(self, monkeypatch, checked, **changes):
        run = checked.device._token

        def wrong(token, start):
            result = run(token, start)
            best = [dataclasses.replace(result.top_k[0], **{
                name: change(getattr(result.top_k[0], name)) for name, change in changes.items()})]
            return dataclasses.replace(result, top_k=best)

        monkeypatch.setattr(checked.device, "_token", wrong)

    @pytest.mark.parametrize(("changes", "message"), [
        ({"values": lambda values: values + np.eye(1, 5, 3, dtype=int)[0]},
         r"TOP_K 0 of pass 1 \(token 8\) must deliver row (\d+) with (-?\d+) in place 3, but the "
         r"golden machine gave row \1 with (?!\2)-?\d+"),
        ({"rows": lambda rows: rows ^ 1},
         r"TOP_K 0 of pass 1 \(token 8\) must deliver row \d+ with (-?\d+) in place 0, but the "
         r"golden machine gave row \d+ with \1"),
        ({"exponent": lambda exponent: exponent + 1},
         r"TOP_K 0 of pass 1 \(token 8\) must deliver the scale (0x[0-9a-f]{4}) times "
         r"2\*\*-?\d+, but the golden machine gave \1 times 2\*\*-?\d+"),
        ({"rows": lambda rows: rows[:4], "values": lambda values: values[:4]},
         r"TOP_K 0 of pass 1 \(token 8\) must deliver 5 logits, but the golden machine gave 4"),
    ])
    def test_one_difference(self, monkeypatch, checked, changes, message):
        checked.token(7, new=True)
        self.change(monkeypatch, checked, **changes)
        with pytest.raises(MismatchError, match=f"^{message}$"):
            checked.token(8)

    def test_missing_emission(self, monkeypatch, checked):
        run = checked.device._token
        monkeypatch.setattr(checked.device, "_token", lambda token, start: dataclasses.replace(
            run(token, start), top_k=[]))
        with refuses("In pass 0 (token 7) the golden machine must deliver the largest logits 1 "
                     "times, not 0", MismatchError):
            checked.token(7, new=True)

    def test_golden_machine_stops(self, monkeypatch, checked):
        monkeypatch.setattr(checked.machine, "_program", checked.machine._program[:-1])
        with refuses(f"In pass 0 (token 7) the golden machine stopped, but the golden machine did "
                     f"not: Instruction {len(checked.machine._program)}: the opcode is none, or "
                     f"the program has no STOP", MismatchError):
            checked.token(7, new=True)
