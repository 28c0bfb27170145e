"""An accelerator without the sparsity policy: everything but masked lists."""

import dataclasses

import numpy as np
import pytest

from host.compiler.compile import compile_model
from host.compiler.errors import CompileError
from host.devices.accelerator import GoldenAccelerator
from host.devices.checked import CheckedTokens
from host.devices.errors import DeviceError
from host.devices.simulated import SimulatedAccelerator
from host.models.examples import tiny_model
from hw.isa import MASKED, Function, Instruction, Opcode
from hw.legality import functions
from sim.golden.wina import Mask
from tests.host.accelerator_examples import MISSING, SMALL

CONFIG = dataclasses.replace(SMALL, masks=0)


@pytest.fixture(scope="module")
def model():
    return tiny_model(width=64, ffn_width=128, layers=2)


def test_functions():
    assert not set(MASKED) & set(functions(CONFIG)[Opcode.QUANTIZE])
    assert set(functions(SMALL)[Opcode.QUANTIZE]) == {
        *MASKED, *functions(CONFIG)[Opcode.QUANTIZE]}


def test_masks_are_refused(model):
    with pytest.raises(CompileError, match=r"^Masks need configuration field masks to be 1, but "
                                           r"this accelerator has no sparsity policy$"):
        compile_model(model, CONFIG, masks={"blk.0.mix_in": Mask(np.ones(64, np.uint16), 8)})


@pytest.mark.skipif(bool(MISSING), reason="; ".join(MISSING))
def test_simulated(model):
    """Tokens of a sparse program are equal; a masked QUANTIZE is no function of its opcode."""
    image = compile_model(model, CONFIG, sparse=True)
    device, golden = SimulatedAccelerator(CONFIG), GoldenAccelerator(CONFIG)
    try:
        for each in (device, golden):
            each.load(image)
        checked = CheckedTokens(device, image)
        for index, token in enumerate((3, 4, 250, 7)):
            result, derived = checked.token(token, new=index == 0), golden.token(
                token, new=index == 0)
            assert result.cycles == pytest.approx(derived.cycles, rel=0.01)
            assert result.transfers == derived.transfers
        instructions = list(image.program.instructions)
        instructions[image.program.body] = Instruction(
            opcode=Opcode.QUANTIZE, function=Function.KEEP_TOP_K, target=1, a=8, count=8,
            constant=2)
        wrong = dataclasses.replace(image, program=dataclasses.replace(
            image.program, instructions=tuple(instructions)))
        for each in (device, golden):
            each.load(wrong)
            with pytest.raises(DeviceError, match=r"the function is none of this opcode$"):
                each.token(3, new=True)
    finally:
        device.close()
