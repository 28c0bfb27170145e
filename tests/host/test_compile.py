"""Programs and images: what is placed where, and what is refused."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

import host.__main__ as cli
from host.compile import CompileError, compile_model, losses
from host.device import DeviceError
from host.image import listing, read_image
from host.model import read_model, write_model
from hw.config import CoreConfig, EngineConfig
from hw.isa import Function, Opcode
from sim.golden.bf16 import to_float32
from sim.golden.schedule import token_cycles
from sim.golden.trits import combine_planes, unpack_words
from tests.host.model_examples import tiny_model

SHIPPED = Path(__file__).parents[2] / "models" / "tally-stories.gguf"
BLOCKS = CoreConfig(engine=EngineConfig(lanes=32, accumulator_depth=4))


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def image(model):
    return compile_model(model, CoreConfig())


@pytest.fixture(scope="module")
def model_path(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    write_model(path, model)
    return str(path)


def matrices(image):
    """Integers of every matrix that the program multiplies, by the name of its part."""
    engine = image.config.engine
    parts = {part.address: part for part in image.parts}
    found = {}
    for instruction in image.program.instructions:
        if instruction.opcode is Opcode.MATMUL:
            rows, columns, planes = instruction.a, instruction.count, instruction.b
            part = parts[instruction.address]
            data = np.frombuffer(image.memory, np.uint8)[part.address:]
            shape = (columns, planes, engine.groups(rows), engine.word_bytes)
            assert part.bytes == np.prod(shape)
            assert part.trits == rows * columns * planes
            found[part.name] = combine_planes(
                unpack_words(data[:part.bytes].reshape(shape), rows, engine))
    return found


class TestImage:
    def test_matrices(self, model, image):
        found = matrices(image)
        expected = {f"blk.{index}.{field.name}": getattr(layer, field.name).trits
                    for index, layer in enumerate(model.layers)
                    for field in dataclasses.fields(layer) if field.name != "forget_bias"}
        expected |= {"embedding": model.embedding.T, "head": model.embedding}
        assert found.keys() == expected.keys()
        for name, weights in expected.items():
            np.testing.assert_array_equal(found[name], weights)

    def test_blocks(self, model):
        """Rows beyond the accumulators: 128 of each block, and 3 of the head in the last."""
        image = compile_model(model, BLOCKS)
        found = matrices(image)
        ffn = np.concatenate([found[f"blk.1.ffn_up[{first}:{first + 128}]"]
                              for first in range(0, 512, 128)])
        np.testing.assert_array_equal(ffn, model.layers[1].ffn_up.trits)
        assert image.program.heads == ((0, 128), (128, 128), (256, 3))
        assert image.program.heads[-1][1] == 3

    def test_vectors(self, model, image):
        loads = [instruction for instruction in image.program.instructions
                 if instruction.opcode is Opcode.LOAD]
        assert len(loads) == len(model.layers)
        for instruction, layer in zip(loads, model.layers, strict=True):
            data = np.frombuffer(image.memory, "<u2", instruction.count, instruction.address)
            np.testing.assert_array_equal(to_float32(data), layer.forget_bias)

    @pytest.mark.parametrize("port_bytes", [1, 8, 64])
    def test_places(self, model, port_bytes):
        image = compile_model(model, CoreConfig(engine=EngineConfig(port_bytes=port_bytes)))
        end = 0
        for part in image.parts:
            assert part.address == -(-end // port_bytes) * port_bytes
            end = part.address + part.bytes
        assert len(image.memory) == -(-end // port_bytes) * port_bytes


class TestProgram:
    @pytest.mark.parametrize("config", [CoreConfig(), BLOCKS, CoreConfig(product_depth=1)])
    @pytest.mark.parametrize("sparse", [False, True])
    def test_queue(self, model, config, sparse):
        """No more products wait than the queue has room for, and all are taken before a PACK."""
        program = compile_model(model, config, sparse=sparse).program
        waiting = most = 0
        for instruction in program.instructions:
            match instruction.opcode:
                case Opcode.MATMUL:
                    waiting += 1
                case Opcode.DRAIN | Opcode.EMIT:
                    waiting -= 1
                case Opcode.PACK | Opcode.TOKEN | Opcode.STOP:
                    assert waiting == 0
            assert 0 <= waiting <= config.product_depth
            most = max(most, waiting)
        assert most == min(3, config.product_depth) or config is BLOCKS
        packs = [instruction.function for instruction in program.instructions
                 if instruction.opcode is Opcode.PACK]
        assert packs.count(Function.SPARSE) == (len(model.layers) if sparse else 0)

    def test_nothing_reads_memory_before_the_body(self, image):
        program = image.program
        before = program.instructions[:program.body]
        assert {instruction.opcode for instruction in before} == {Opcode.VECTOR}
        assert program.instructions[program.body].opcode is Opcode.TOKEN
        assert program.instructions[-1].opcode is Opcode.STOP
        cleared = sorted((instruction.target, instruction.count) for instruction in before)
        first, count = program.vectors["states"]
        for target, size in cleared:
            assert target == first
            first += size
        assert first == program.vectors["states"][0] + count

    def test_vectors_are_apart(self, image):
        end = 0
        for first, count in image.program.vectors.values():
            assert first == end
            end += count
        assert image.program.vectors["zero"] == (0, image.config.vector_lanes)


class TestShippedModel:
    def test_port_utilization(self):
        """Issue 3: at least 95 % of the port for useful weights, with 1 % refresh."""
        image = compile_model(read_model(SHIPPED), CoreConfig())
        cost = token_cycles(image.config, image.program.instructions, image.program.body,
                            latency=20, refresh=0.01)
        assert cost.limit == "memory port"
        utilization = cost.port_utilization(image.config)
        assert utilization >= 0.95
        # Whatever is not used is accounted for.
        lost = sum(share for _, share in losses(image, cost))
        assert utilization + lost == pytest.approx(1, abs=1e-9)


class TestErrors:
    def refused(self, model, message, **fields):
        with pytest.raises(DeviceError, match=f"^{re.escape(message)}$"):
            compile_model(model, CoreConfig(**fields))

    def test_vector_memory(self, model):
        self.refused(model, "Vectors must fit 1024 elements of vector memory, but the model needs "
                            "2824", vector_depth=1024)

    def test_program(self, model):
        self.refused(model, "Program must have at most 64 instructions, not 83", program_depth=64)

    def test_list(self, model):
        self.refused(model, "List must have at most 256 entries, but blk.0 packs 512",
                     list_depth=256)

    def test_memory(self, model):
        self.refused(model, "Image must have at most 65536 bytes for an address width of 16, but "
                            "blk.0.candidate ends at byte 67544", address_width=16)

    def test_planes(self, model):
        self.refused(model, "Matrix embedding must fit 2 trit planes, but its largest weight 13 "
                            "needs 3", engine=EngineConfig(max_planes=2))

    def test_columns(self, model):
        self.refused(model, "Matrix embedding must have at most 256 columns for this engine, "
                            "not 259", engine=EngineConfig(index_width=8))

    def test_accumulator(self, model):
        with pytest.raises(DeviceError, match=r"^Matrix embedding row \d+ could reach \d+, which "
                                              r"must be below 2\*\*16 for accumulators of 17 "
                                              r"bits$"):
            compile_model(model, CoreConfig(engine=EngineConfig(accumulator_width=17)))

    def test_width(self, model):
        self.refused(model, "Model tiny must have a width that is a multiple of 512 for this "
                            "configuration, not 256", engine=EngineConfig(port_bytes=1024))

    def test_field(self):
        """A field of an instruction is too narrow for the vocabulary."""
        model = tiny_model(layers=1)
        large = dataclasses.replace(model, embedding=np.zeros((65536, 256), np.int8))
        self.refused(large, "embedding: Field count of MATMUL must be in 0..65535, not 65536")

    def test_logit_scale(self, model):
        other = dataclasses.replace(model, logit_scales={"float": 1.0})
        with pytest.raises(CompileError, match=r"^Model tiny must have a logit scale for "
                                               r"arithmetic 'lmul'; find it with 'python -m host "
                                               r"evaluate --fit'$"):
            compile_model(other, CoreConfig())


class TestCommandLine:
    def run(self, capsys, *arguments):
        """Exit status and what was printed."""
        try:
            status = cli.main([str(argument) for argument in arguments])
        except SystemExit as exit_:
            status = exit_.code
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    def test_compile(self, capsys, monkeypatch, model_path, image, tmp_path):
        monkeypatch.setenv("COLUMNS", "140")
        output = tmp_path / "tiny.tally"
        status, out, err = self.run(capsys, "compile", model_path, "--output", output)
        assert (status, err) == (0, "")
        assert read_image(output, CoreConfig()).memory == image.memory
        cost = token_cycles(image.config, image.program.instructions, image.program.body,
                            refresh=0.01)
        for label, value in (
                ("Instructions", r"83 +1 KB; 76 for a token"),
                ("Vector memory", r"2,824 +elements of 16,384"),
                ("Vectors of constants", r"1 KB +2"),
                ("Cycles per token", rf"{cost.cycles:,.0f} +derived: 20 cycles latency, 1\.0%"),
                (r"\.\.\. the engine alone", rf"{cost.engine:,.0f} +derived"),
                ("What binds", cost.limit),
                ("Weight port used", rf"{cost.port_utilization(image.config):.2%} +derived"),
                (r"\.\.\. lost", r"\d\.\d\d% +padding of weight words and columns")):
            assert re.search(f"{label} +{value}", out), label
        assert f"Wrote {output}" in out.replace("\n", "")

        status, out, err = self.run(capsys, "disassemble", output)
        assert (status, out, err) == (0, f"{listing(image.program)}\n", "")

    def test_listing(self, capsys, model_path, model):
        status, out, err = self.run(capsys, "compile", model_path, "--listing", "--sparse",
                                    "--set", "product_depth=2", "--set", "packing=3in5")
        assert (status, err) == (0, "")
        config = CoreConfig(engine=EngineConfig(packing="3in5"), product_depth=2)
        assert out.startswith(listing(compile_model(model, config, sparse=True).program))

    @pytest.mark.parametrize(("arguments", "message"), [
        (["--set", "speed=3"], r"'speed' is not a field of the configuration \(try 'lanes', .*, "
                               r"'address_width'\)"),
        (["--set", "lanes"], r"Configuration field lanes must be a positive integer, not ''"),
        (["--set", "program_depth=64"], r"Program must have at most 64 instructions, not 83"),
        (["--refresh", "1"], r"Option --refresh must be below 1: the memory must answer some "
                             r"time"),
        (["--output", "none/x.tally"], r"none/x.tally: No such file or directory")])
    def test_mistakes(self, capsys, model_path, arguments, message):
        status, _, err = self.run(capsys, "compile", model_path, *arguments)
        assert status == 1
        assert re.fullmatch(rf"python -m host compile: {message}\n", err)

    @pytest.mark.parametrize("value", ["-0.1", "1.1", "nan", "much"])
    def test_share(self, capsys, value):
        status, _, err = self.run(capsys, "compile", f"--refresh={value}")
        assert (status, err) == (2, f"python -m host compile: argument --refresh: must be a number "
                                    f"from 0 to 1, not '{value}'\n")

    def test_no_image(self, capsys, model_path):
        status, _, err = self.run(capsys, "disassemble", model_path)
        assert (status, err) == (1, f"python -m host disassemble: {model_path}: not an image: it "
                                    f"must begin with b'TALLY\\x00\\x02\\n', "
                                    f"not b'GGUF\\x03\\x00\\x00\\x00'\n")
