"""Image files: back as they were, and refused with the part or the field that is wrong."""

import dataclasses
import json
import re
import zlib

import pytest

from host.compiler.compile import compile_model
from host.files.image import ImageError, listing, read_image, write_image
from host.models.examples import tiny_model
from hw.config import AcceleratorConfig, EngineConfig
from hw.isa import Opcode


@pytest.fixture(scope="module")
def image():
    return compile_model(tiny_model(), AcceleratorConfig())


@pytest.fixture
def path(tmp_path, image):
    path = tmp_path / "tiny.tally"
    write_image(path, image)
    return path


def refused(path, message, config=None):
    with pytest.raises(ImageError, match=f"^{re.escape(f'{path}: {message}')}$"):
        read_image(path, config)


def offsets(path):
    """Where header, program and memory begin."""
    data = path.read_bytes()
    length = int.from_bytes(data[8:12], "little")
    header = json.loads(data[16:16 + length])
    return 16, 16 + length, 16 + length + header["program"]["bytes"]


def damage(path, offset):
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x10
    path.write_bytes(data)
    return data


@pytest.mark.parametrize("config", [None, AcceleratorConfig(),
                                    AcceleratorConfig(engine=EngineConfig(target="ecp5",
                                                                          row_columns=1024))])
def test_round_trip(path, image, config):
    again = read_image(path, config)
    assert again.config == (config or image.config)
    assert (again.model, again.vocab) == (image.model, image.vocab)
    assert again.program == image.program
    assert again.parts == image.parts
    assert again.memory == image.memory
    assert again.vocabulary == image.vocabulary


def test_listing(image):
    lines = listing(image.program).split("\n")
    assert len(lines) == len(image.program.instructions) + 1
    assert lines[image.program.body] == "body:"
    assert re.fullmatch(r" {4}0  VECTOR     COPY target=8 a=0 b=0 count=8 +; new sequence: "
                        r"state 0\.\. = 0", lines[0])
    assert re.fullmatch(r" +\d+  STOP +; head: the token is done", lines[-1])


class TestErrors:
    def test_missing(self, tmp_path):
        refused(tmp_path / "none.tally", "No such file or directory")

    @pytest.mark.parametrize("text", [b"", b"TALLY", b"GGUF and more"])
    def test_no_image(self, tmp_path, text):
        path = tmp_path / "x.tally"
        path.write_bytes(text)
        refused(path, rf"not an image: it must begin with b'TALLY\x00\x05\n', not {text[:8]!r}")

    def test_no_header(self, path):
        path.write_bytes(path.read_bytes()[:12])
        refused(path, "truncated: the header begins at byte 16, the file has 12")

    def test_truncated(self, path):
        _, program, memory = offsets(path)
        data = path.read_bytes()
        for end, what, needed in (
                (20, "the header", program), (program + 5, "the program", memory),
                (memory + 50000, "part blk.0.forget", memory + 40408 + 13312),
                (len(data) - 5, "part head", len(data))):
            path.write_bytes(data[:end])
            refused(path, f"truncated: {what} ends at byte {needed}, the file has {end}")

    @pytest.mark.parametrize(("section", "offset", "what"), [
        (0, 9, "the header"), (1, 100, "the program"), (2, 0, "part embedding"),
        (2, 40403, "part embedding"), (2, 40408, "part blk.0.forget"),
        (2, 40408 + 13312 + 511, "part blk.0.forget_bias")])
    def test_damaged(self, path, section, offset, what):
        begins = [*offsets(path), path.stat().st_size]
        damage(path, begins[section] + offset)
        with pytest.raises(ImageError, match=rf"^{re.escape(str(path))}: damaged: {what} must have "
                                             rf"the CRC-32 [0-9a-f]{{8}}, not [0-9a-f]{{8}}$"):
            read_image(path)

    def test_crc_is_that_of_zlib(self, path):
        _, program, memory = offsets(path)
        data = damage(path, program + 1)
        header = json.loads(data[16:program])
        expected, actual = header["program"]["crc32"], zlib.crc32(data[program:memory])
        refused(path, f"damaged: the program must have the CRC-32 {expected:08x}, "
                      f"not {actual:08x}")

    def test_order(self, path, image):
        """More products are queued than the queue holds before one is taken."""
        instructions = list(image.program.instructions)
        index = next(k for k, instruction in enumerate(instructions)
                     if instruction.opcode is Opcode.MATMUL)
        more = [instructions[index]] * image.config.product_depth
        instructions[index:index] = more
        program = dataclasses.replace(image.program, instructions=tuple(instructions),
                                      notes=(*image.program.notes, *[""] * len(more)))
        write_image(path, dataclasses.replace(image, program=program))
        with pytest.raises(ImageError, match=rf"^{re.escape(str(path))}: its program cannot be "
                                             r"executed: Instruction \d+: More than 4 products "
                                             r"are not taken"):
            read_image(path)

    def test_another_configuration(self, path):
        refused(path, "made for another configuration: lanes 64 (the device has 128), packing "
                      "'5in8' (the device has '3in5'), queue_words 1024 (the device has 512)",
                AcceleratorConfig(engine=EngineConfig(lanes=128, packing="3in5", target="ecp5",
                                                      row_columns=1024), queue_words=512))
