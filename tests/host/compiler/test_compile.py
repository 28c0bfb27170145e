"""Programs and images: what is placed where, and what is refused."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

from host.cli import main as cli
from host.compiler.compile import compile_model
from host.compiler.errors import CompileError
from host.files.image import listing, read_image
from host.measure.program import losses
from host.models.examples import tiny_model
from host.models.mmfreelm import TernaryLM, write_model
from host.models.registry import read_model
from hw.config import AcceleratorConfig, EngineConfig
from hw.isa import REGISTERS, Function, Opcode
from sim.golden.arithmetic import ARITHMETICS
from sim.golden.bf16 import to_float32
from sim.golden.evaluate import ExactProducts, GoldenLM, model_matrices
from sim.golden.graph import Matrix, Network
from sim.golden.machine import Machine
from sim.golden.trits import combine_planes, unpack_words
from sim.golden.wina import Mask, column_norms
from sim.timing.program import token_cycles

SHIPPED = Path(__file__).parents[3] / "models" / "tally-stories.gguf"
BLOCKS = AcceleratorConfig(engine=EngineConfig(lanes=32, accumulator_depth=4))


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def image(model):
    return compile_model(model, AcceleratorConfig())


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
        image = compile_model(model, AcceleratorConfig(engine=EngineConfig(port_bytes=port_bytes)))
        end = 0
        for part in image.parts:
            assert part.address == -(-end // port_bytes) * port_bytes
            end = part.address + part.bytes
        assert len(image.memory) == -(-end // port_bytes) * port_bytes


class TestProgram:
    @pytest.mark.parametrize("config",
                             [AcceleratorConfig(), BLOCKS, AcceleratorConfig(product_depth=1)])
    @pytest.mark.parametrize("sparse", [False, True])
    def test_queue(self, model, config, sparse):
        """No more products wait than there is room for; a QUANTIZE comes behind all of them."""
        program = compile_model(model, config, sparse=sparse).program
        waiting = most = 0
        for instruction in program.instructions:
            match instruction.opcode:
                case Opcode.MATMUL:
                    waiting += 1
                case Opcode.WRITE_BACK | Opcode.TOP_K:
                    waiting -= 1
                case Opcode.QUANTIZE | Opcode.TOKEN | Opcode.STOP:
                    assert waiting == 0
            assert 0 <= waiting <= config.product_depth
            most = max(most, waiting)
        assert most == min(3, config.product_depth) or config is BLOCKS
        packs = [instruction.function for instruction in program.instructions
                 if instruction.opcode is Opcode.QUANTIZE]
        layers = len(model.layers) if sparse else 0
        assert packs.count(Function.SPARSE) == 2 * layers
        assert packs.count(Function.NONZERO) == (layers if config.engine.row_columns else 0)
        drains = [instruction.function for instruction in program.instructions
                  if instruction.opcode is Opcode.WRITE_BACK]
        assert drains.count(Function.RELU) >= len(model.layers)

    @pytest.mark.parametrize("rows", [0, 1024])
    def test_sparse_is_exact(self, model, rows):
        """What is left out is zero: every integer of the head is the same."""
        config = AcceleratorConfig(engine=EngineConfig(row_columns=rows))
        images = [compile_model(model, config, sparse=sparse) for sparse in (False, True)]
        machines = [Machine(config, image.program.encoded(), image.memory) for image in images]
        for index, token in enumerate([3, 1, 4, 1, 5, 9, 2, 6]):
            dense, sparse = (machine.run(token, image.program.body if index else 0)
                             for machine, image in zip(machines, images, strict=True))
            for expected, found in zip(dense, sparse, strict=True):
                np.testing.assert_array_equal(found.integers, expected.integers)
                assert (found.number, found.exponent) == (expected.number, expected.exponent)
        assert machines[0].skipped == 0
        assert machines[1].trits + machines[1].skipped == machines[0].trits
        listed, of = machines[1].rows
        assert 0 < listed < of if rows else of == 0

    @pytest.mark.parametrize(("mode", "config", "sparse"), [
        ("norms", AcceleratorConfig(), True), ("norms", AcceleratorConfig(), False),
        ("magnitudes", BLOCKS, True), ("threshold", AcceleratorConfig(), True)])
    def test_masks(self, model, mode, config, sparse):
        """A masked program computes what the golden model computes with the same masks.

        The walk by row changes nothing.
        """
        masks = {}
        for label, matrices in model.network().lists().items():
            columns = matrices[0].weights.shape[1]
            norms = np.ones(columns, np.uint16)
            if mode == "norms":
                norms = column_norms([matrix.weights for matrix in matrices])
            masks[label] = Mask(norms, columns // 2, 900 if mode == "threshold" else None)
        image = compile_model(model, config, sparse=sparse, masks=masks)
        machine = Machine(config, image.program.encoded(), image.memory)
        golden = GoldenLM(model, ARITHMETICS["lmul"], ExactProducts(model_matrices(model)),
                          masks=masks)
        state = golden.start()
        for index, token in enumerate([3, 1, 4, 1, 5, 9, 2, 6]):
            emissions = machine.run(token, image.program.body if index else 0)
            logits = golden.logits(golden.forward(np.array([[token]]), state))[0]
            np.testing.assert_array_equal(np.concatenate(
                [emission.integers * emission.scale for emission in emissions]), logits)
        assert machine.skipped > 0.4 * (machine.skipped + machine.trits)
        assert (machine.rows[1] > 0) == (sparse and config.engine.row_columns > 0)

    def test_masked_products(self, model):
        """Rows of one list are divided so that columns are whole transfers, but for the last."""
        config = AcceleratorConfig()
        masks = {"blk.0.mix_in": Mask(np.ones(256, np.uint16), 128),
                 "blk.1.ffn_in": Mask(np.ones(256, np.uint16), 128)}
        image = compile_model(model, config, masks=masks)
        names = [part.name for part in image.parts]
        assert {"blk.0.forget + blk.0.candidate", "blk.0.gate"} <= {*names}
        assert {"blk.1.forget", "blk.1.candidate", "blk.1.ffn_gate", "blk.1.ffn_up"} <= {*names}
        # 96 rows are a word and a half: the next matrix begins within a word.
        engine = EngineConfig(lanes=64, port_bytes=4)
        narrow = tiny_model(width=96)
        image = compile_model(narrow, AcceleratorConfig(engine=engine), masks={
            "blk.0.mix_in": Mask(np.ones(96, np.uint16), 48)})
        names = [part.name for part in image.parts]
        assert ["blk.0.forget + blk.0.candidate + blk.0.gate[0:64]", "blk.0.gate[64:96]"] == [
            name for name in names if name.startswith("blk.0") and "gate" in name
            and "ffn" not in name]

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
        image = compile_model(read_model(SHIPPED), AcceleratorConfig())
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
        with pytest.raises(CompileError, match=f"^{re.escape(message)}$"):
            compile_model(model, AcceleratorConfig(**fields))

    def test_vector_memory(self, model):
        self.refused(model, "Vectors must fit 1024 elements of vector memory, but the model needs "
                            "2312", vector_depth=1024)

    def test_states(self):
        """State that the fields of an instruction cannot reach."""
        layer = tiny_model(layers=1).layers[0]
        large = dataclasses.replace(tiny_model(layers=1), layers=(layer,) * 256)
        self.refused(large, "Vectors must fit 16384 elements of vector memory, but the model needs "
                            "at least 65800")

    def test_program(self, model):
        self.refused(model, "Program must have at most 64 instructions, not 81", program_depth=64)

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
                            "not 259 (engine field index_width)",
                     engine=EngineConfig(index_width=8))

    def test_accumulator(self, model):
        """The embedding fits, since a token is one column; the head is the widest matrix."""
        with pytest.raises(CompileError, match=r"^Matrix head row \d+ could reach \d+, which "
                           r"must be below 2\*\*16 for accumulators of 17 "
                           r"bits$"):
            compile_model(model, AcceleratorConfig(engine=EngineConfig(accumulator_width=17)))

    def other_network(self, describe):
        """Make the tiny model with a network that ``describe`` appends to its embedding."""
        class Other(TernaryLM):
            def network(self):
                network = Network()
                network.part = "blk.0"
                describe(network, network.embed(Matrix("embedding", self.embedding.T, 1.0), "x"),
                         self.embedding)
                return network

        model = tiny_model(layers=1)
        return Other(**{field.name: getattr(model, field.name)
                        for field in dataclasses.fields(model)})

    def test_list_is_gone(self):
        """Codes that are used after the next ones were made."""
        def describe(network, x, weights):
            first, norm = network.codes("first", x), network.norm(x)
            network.codes("second", x)
            network.head("head", weights, first, norm)

        self.refused(self.other_network(describe),
                     "Network must multiply head by first before it makes the next codes")

    def test_norms(self):
        """More norms than there are registers for."""
        def describe(network, x, weights):
            norms = [network.norm(x) for _ in range(REGISTERS - 1)]
            codes = network.codes("list", x)
            for number, norm in enumerate(norms):
                network.linear(Matrix(f"w{number}", np.eye(256, dtype=np.int8), 1.0), codes, norm)
            network.head("head", weights, codes, norms[0])

        self.refused(self.other_network(describe),
                     "blk.0: at most 14 norms can wait to be used, but 1 / |x| is one more")

    def test_width(self, model):
        """What fills a vector up would not stay zero in a sigmoid."""
        self.refused(model, "Model tiny must have a width that is a multiple of 512 for this "
                            "configuration, not 256", engine=EngineConfig(port_bytes=1024))

    def test_logit_scale(self, model):
        other = dataclasses.replace(model, logit_scales={"float": 1.0})
        with pytest.raises(CompileError, match=r"^Model tiny must have a logit scale for "
                                               r"arithmetic 'lmul'; find it with 'python -m host "
                                               r"evaluate --fit'$"):
            compile_model(other, AcceleratorConfig())


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
        assert read_image(output, AcceleratorConfig()).memory == image.memory
        cost = token_cycles(image.config, image.program.instructions, image.program.body,
                            refresh=0.01)
        for label, value in (
                ("Instructions", r"81 +1 KB; 74 for a token"),
                ("Vector memory", r"2,312 +elements of 16,384"),
                ("Vectors of constants", r"1 KB +2"),
                ("Cycles per token", rf"{cost.cycles:,.0f} +derived: 20 cycles latency, 1\.0%"),
                (r"\.\.\. engine alone", rf"{cost.engine:,.0f} +derived"),
                ("Tokens a second", rf"{8e7 / cost.cycles:,.1f} +derived, at 80 MHz"),
                ("What takes longest", cost.limit),
                ("Memory port, useful", rf"{cost.port_utilization(image.config):.2%} +derived"),
                (r"\.\.\. lost", r"\d\.\d\d% +padding of weight words and columns")):
            assert re.search(f"{label} +{value}", out), label
        assert f"Wrote {output}" in out.replace("\n", "")

        status, out, err = self.run(capsys, "disassemble", output)
        assert (status, out, err) == (0, f"{listing(image.program)}\n", "")

    def test_listing(self, capsys, model_path, model):
        status, out, err = self.run(capsys, "compile", model_path, "--listing", "--sparse",
                                    "--set", "product_depth=2", "--set", "packing=3in5")
        assert (status, err) == (0, "")
        config = AcceleratorConfig(engine=EngineConfig(packing="3in5", row_columns=1024),
                                   product_depth=2)
        assert out.startswith(listing(compile_model(model, config, sparse=True).program))

    @pytest.mark.parametrize(("arguments", "message"), [
        (["--set", "speed=3"], r"'speed' is not a field of the configuration \(try 'lanes', .*, "
                               r"'address_width', .*\)"),
        (["--set", "lanes"], r"Configuration field lanes must be a positive integer, not ''"),
        (["--set", "program_depth=64"], r"Program must have at most 64 instructions, not 81"),
        (["--refresh", "1"], r"Option --refresh must be below 1: the memory must answer some "
                             r"time"),
        (["--output", "none/x.tally"], r"argument --output: 'none/x.tally' must be a file in a "
                                       r"folder that exists")])
    def test_mistakes(self, capsys, model_path, arguments, message):
        status, _, err = self.run(capsys, "compile", model_path, *arguments)
        assert status == (2 if message.startswith("argument") else 1)
        assert re.fullmatch(rf"tally compile: {message}\n", err)

    @pytest.mark.parametrize("value", ["-0.1", "1.1", "nan", "much"])
    def test_share(self, capsys, value):
        status, _, err = self.run(capsys, "compile", f"--refresh={value}")
        assert (status, err) == (2, f"tally compile: argument --refresh: must be a number "
                                    f"from 0 to 1, not '{value}'\n")

    def test_no_image(self, capsys, model_path):
        status, _, err = self.run(capsys, "disassemble", model_path)
        assert (status, err) == (1, f"tally disassemble: {model_path}: not an image: it "
                                    f"must begin with b'TALLY\\x00\\x05\\n', "
                                    f"not b'GGUF\\x03\\x00\\x00\\x00'\n")
