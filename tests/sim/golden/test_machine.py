"""The golden machine: instructions, faults and hazards, and whole models against GoldenLM."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

from host.compiler.compile import compile_model
from host.measure.evaluate import evaluate
from host.models.examples import tiny_model
from host.models.registry import read_model
from host.text.corpus import read_corpus
from host.text.tokenizer import Tokenizer
from hw.config import AcceleratorConfig, EngineConfig
from hw.formats.minifloat import bf16
from hw.isa import Batch, Fault, Function, Instruction, Opcode, encode
from sim.golden.arithmetic import ARITHMETICS
from sim.golden.bf16 import NAN, add, from_float, subtract, to_float32
from sim.golden.dequantize import scale
from sim.golden.evaluate import ExactProducts, GoldenLM, model_matrices
from sim.golden.function_table import rsqrt_table, sigmoid_table, silu_table
from sim.golden.lmul import exact_product, lmul, lmul_dot
from sim.golden.machine import HazardError, Machine, MachineFault
from sim.golden.quantizer import quantize
from sim.golden.ternary import ternary_product
from sim.golden.trits import pack_words, planes

ROOT = Path(__file__).parents[3]
SHIPPED = ROOT / "models" / "tally-stories.gguf"
CORPUS = ROOT / "tests" / "data" / "corpus"
CONFIG = AcceleratorConfig(engine=EngineConfig(lanes=8, accumulator_depth=8, max_planes=3,
                                               accumulator_width=16, result_lanes=4, index_width=8),
                           vector_depth=256, program_depth=64, list_depth=64, product_depth=3,
                           top_k=5, address_width=16)
STOP = Instruction(opcode=Opcode.STOP)


def program(*instructions):
    return b"".join(map(encode, instructions))


def load(target, count, address):
    return Instruction(opcode=Opcode.LOAD, target=target, count=count, address=address)


def vector(function, target, a, b=0, *, count):
    return Instruction(opcode=Opcode.VECTOR, function=function, target=target, a=a, b=b,
                       count=count)


def pack(a, count, target=1, function=Function.DENSE):
    return Instruction(opcode=Opcode.QUANTIZE, function=function, target=target, a=a, count=count)


def matmul(rows, columns, address, count=1):
    return Instruction(opcode=Opcode.MATMUL, function=Function.BY_COLUMN, a=rows, b=count,
                       count=columns, address=address)


def drain(target, count, a=0, b=0, constant=bf16.one):
    return Instruction(opcode=Opcode.WRITE_BACK, function=Function.COPY, target=target, a=a, b=b,
                       count=count, constant=constant)


def emit(count, a=0, b=0, constant=bf16.one):
    return Instruction(opcode=Opcode.TOP_K, a=a, b=b, count=count, constant=constant)


def norm(a, count, target=2):
    return Instruction(opcode=Opcode.NORM, target=target, a=a, count=count)


TOKEN = Instruction(opcode=Opcode.TOKEN)


def random_vector(seed, count):
    return from_float(np.random.default_rng(seed).normal(0, 3, count))


def memory_of(*arrays):
    """Bytes of the arrays, each at a multiple of the port, and the addresses."""
    data, addresses = b"", []
    for array in arrays:
        addresses.append(len(data))
        data += array.tobytes()
        data += bytes(-len(data) % CONFIG.port_bytes)
    return data, addresses


class TestInstructions:
    @pytest.mark.parametrize(("function", "expected"), [
        (Function.ADD, add),
        (Function.SUBTRACT, subtract),
        (Function.LMUL, lambda x, y: lmul(bf16, x, y)),
        (Function.COPY, lambda x, y: x),
        (Function.RELU, lambda x, y: from_float(np.maximum(to_float32(x), 0))),
        (Function.SIGMOID_OF_NEGATIVE, lambda x, y: sigmoid_table()[x ^ 0x8000]),
        (Function.SILU, lambda x, y: silu_table()[x]),
    ])
    def test_vector(self, function, expected):
        x, y = random_vector(1, 64), random_vector(2, 64)
        data, _ = memory_of(x, y)
        binary = function in (Function.ADD, Function.SUBTRACT, Function.LMUL)
        for target in (4, 68, 132) if binary else (4, 132):
            machine = Machine(CONFIG, program(
                load(4, 64, 0), load(68, 64, 128),
                vector(function, target, 4, 68 if binary else 0, count=64), STOP), data)
            machine.run(0)
            np.testing.assert_array_equal(machine.vectors[target:target + 64], expected(x, y))
            assert not machine.vectors[196:].any()
            assert machine.executed == 4

    def test_store(self):
        x = random_vector(3, 32)
        data, _ = memory_of(x, np.zeros(64, np.uint8))
        machine = Machine(CONFIG, program(
            load(4, 32, 0), Instruction(opcode=Opcode.STORE, a=4, count=32, address=64),
            load(64, 32, 64), STOP), data)
        machine.run(0)
        assert machine.memory[64:128].tobytes() == x.tobytes()
        np.testing.assert_array_equal(machine.vectors[64:96], x)

    def test_store_into_a_matrix(self):
        """The matrix that the first MATMUL unpacked is not the one that the second finds."""
        trits = np.random.default_rng(4).integers(-1, 2, (2, 8, 16), dtype=np.int8)
        images = [pack_words(matrix, CONFIG.engine) for matrix in trits]
        x = random_vector(5, 16)
        data, (first, second, where) = memory_of(*images, x)
        count = images[1].nbytes // 2
        machine = Machine(CONFIG, program(
            load(4, 16, where), pack(4, 16), matmul(8, 16, first), drain(32, 8),
            load(64, count, second),
            Instruction(opcode=Opcode.STORE, a=64, count=count, address=first),
            matmul(8, 16, first), drain(40, 8), STOP), data)
        machine.run(0)
        codes = quantize(x).values.astype(int)
        for at, matrix in zip((32, 40), trits, strict=True):
            np.testing.assert_array_equal(machine.vectors[at:at + 8],
                                          from_float((matrix @ codes).astype(float)))

    @pytest.mark.parametrize("function", [Function.DENSE, Function.SPARSE])
    @pytest.mark.parametrize("count", [1, 3])
    def test_product(self, count, function):
        rng = np.random.default_rng(6)
        limit = (3 ** count - 1) // 2
        weights = rng.integers(-limit, limit + 1, (28, 32))
        x = random_vector(7, 32)
        x[::3] = 0
        data, (where, matrix) = memory_of(x, pack_words(planes(weights, count), CONFIG.engine))
        constant = int(from_float(np.array(0.3)))
        machine = Machine(CONFIG, program(
            load(4, 32, where), pack(4, 32, 3, function), norm(4, 32, 5),
            matmul(28, 32, matrix, count), drain(64, 28, 3, 5, constant), STOP), data)
        machine.run(0)
        codes = quantize(x)
        product = ternary_product(weights, codes.values[:, np.newaxis],
                                  accumulator_width=CONFIG.engine.accumulator_width)
        inverse = rsqrt_table()[lmul_dot(bf16, x[np.newaxis], x[np.newaxis])]
        factor = exact_product(bf16, np.array([constant], np.uint16), inverse)
        np.testing.assert_array_equal(
            machine.vectors[64:92], scale(product.astype(np.int32), factor, codes.exponents)[0])

    def test_sums_wrap(self):
        """No compiler lets this happen; the adders would do it."""
        weights = np.full((8, 64), 13)
        x = from_float(np.full(64, 127.0))
        data, (where, matrix) = memory_of(x, pack_words(planes(weights, 3), CONFIG.engine))
        machine = Machine(CONFIG, program(load(4, 64, where), pack(4, 64), matmul(8, 64, matrix, 3),
                                          emit(8), STOP), data)
        [emission] = machine.run(0)
        assert 127 * 13 * 64 == 2 * 2 ** 16 - 25408
        assert emission.integers.tolist() == [-25408] * 8

    def test_products_keep_their_list(self):
        """A product that was queued before the next QUANTIZE takes the list of its time."""
        weights = np.eye(8, dtype=np.int8)
        x, y = from_float(np.arange(1.0, 9)), from_float(np.arange(-8.0, 0))
        data, (first, second, matrix) = memory_of(x, y, pack_words(weights, CONFIG.engine))
        machine = Machine(CONFIG, program(
            load(4, 8, first), load(12, 8, second), pack(4, 8, 1), matmul(8, 8, matrix),
            pack(12, 8, 2), matmul(8, 8, matrix), drain(20, 8, 1), drain(28, 8, 2), STOP), data)
        machine.run(0)
        np.testing.assert_array_equal(machine.vectors[20:28], x)
        np.testing.assert_array_equal(machine.vectors[28:36], y)

    def test_parts(self):
        """Rows of a product are taken one after the other, each with a scalar of its own."""
        x = random_vector(11, 32)
        weights = np.random.default_rng(12).integers(-1, 2, (27, 32))
        data, (where, first, second) = memory_of(x, pack_words(weights, CONFIG.engine),
                                                 pack_words(-weights, CONFIG.engine))
        half = int(from_float(np.array(0.5)))
        machine = Machine(CONFIG, program(
            load(4, 32, where), pack(4, 32), matmul(27, 32, first), matmul(27, 32, second),
            drain(64, 4, 1, constant=half), drain(68, 20, 1), emit(3),
            drain(100, 8, 1), emit(19), STOP), data)
        emissions = machine.run(0)
        codes = quantize(x)
        product = weights @ codes.values.astype(int)
        unit = 2.0 ** codes.exponents
        np.testing.assert_array_equal(
            machine.vectors[64:88],
            from_float(np.concatenate([product[:4] * unit / 2, product[4:24] * unit])))
        np.testing.assert_array_equal(machine.vectors[100:108], from_float(-product[:8] * unit))
        for emission, rest in zip(emissions, (product[24:], -product[8:]), strict=True):
            np.testing.assert_array_equal(emission.integers, rest)
            np.testing.assert_array_equal(emission.values, rest[emission.rows])

    def test_product_by_row_is_taken_whole(self):
        config = dataclasses.replace(CONFIG, engine=dataclasses.replace(CONFIG.engine,
                                                                        row_columns=16))
        by_row = Instruction(opcode=Opcode.MATMUL, function=Function.BY_ROW, a=8, b=1, count=16)
        for take in (drain(64, 4), drain(64, 12), emit(8)):
            machine = Machine(config, program(
                load(4, 16, 0), pack(4, 16), pack(4, 8, function=Function.NONZERO), by_row, take,
                STOP), bytes(1024))
            with pytest.raises(MachineFault) as error:
                machine.run(0)
            assert (error.value.fault, error.value.instruction) == (Fault.NO_PRODUCT, 4)

    def test_masked_list_by_row(self):
        """By row, what a masked list leaves out is zero."""
        config = dataclasses.replace(CONFIG, engine=dataclasses.replace(CONFIG.engine,
                                                                        row_columns=16))
        x = random_vector(13, 16)
        weights = np.random.default_rng(14).integers(-1, 2, (12, 16))
        data, (where, matrix) = memory_of(x, pack_words(weights.T, config.engine))
        ones = from_float(np.ones(12))
        data += bytes(-len(data) % 8) + ones.tobytes()
        codes = quantize(x)
        for function, mask in ((Function.KEEP_TOP_K, {"constant": 5}),
                               (Function.KEEP_ABOVE, {"address": 900})):
            machine = Machine(config, program(
                load(4, 16, where), load(32, 12, len(data) - ones.nbytes),
                Instruction(opcode=Opcode.QUANTIZE, function=function, target=1, a=4, count=16,
                            **mask),
                pack(32, 12, function=Function.NONZERO),
                Instruction(opcode=Opcode.MATMUL, function=Function.BY_ROW, a=12, b=1, count=16,
                            address=matrix), drain(64, 12, 1), STOP), data)
            machine.run(0)
            _, found, kept = machine.lists[2]
            assert machine.lists[3] == [1, 12, 12]
            squares = codes.values.astype(int) ** 2
            order = np.argsort(-squares, kind="stable")[:kept]
            assert kept == (5 if function == Function.KEEP_TOP_K
                            else np.count_nonzero(squares > 900))
            assert kept < found == np.count_nonzero(squares)
            values = np.zeros(16, int)
            values[order] = codes.values[order]
            np.testing.assert_array_equal(machine.vectors[64:76],
                                          from_float(weights @ values * 2.0 ** codes.exponents))

    def test_token_and_emit(self):
        weights = np.random.default_rng(8).integers(-1, 2, (30, 200))
        data, (matrix,) = memory_of(pack_words(weights, CONFIG.engine))
        constant = int(from_float(np.array(-1.5)))
        machine = Machine(CONFIG, program(TOKEN, matmul(30, 200, matrix),
                                          emit(30, constant=constant), STOP), data)
        for token in (0, 77, 199):
            [emission] = machine.run(token)
            expected = sorted(range(30), key=lambda row: (-weights[row, token], row))[:5]
            assert emission.rows.tolist() == expected
            assert emission.values.tolist() == weights[expected, token].tolist()
            assert emission.integers.tolist() == weights[:, token].tolist()
            assert emission.scale == -1.5

    def test_fewer_rows_than_the_best(self):
        data, (matrix,) = memory_of(pack_words(np.array([[1], [0], [1]]), CONFIG.engine))
        machine = Machine(CONFIG, program(TOKEN, matmul(3, 1, matrix), emit(3), STOP), data)
        [emission] = machine.run(0)
        assert emission.rows.tolist() == [0, 2, 1]

    def test_norm_of_zero(self):
        machine = Machine(CONFIG, program(norm(0, 4), pack(0, 4), STOP), b"")
        machine.run(0)
        assert [(register.number, register.exponent) for register in machine.registers[:3]] == [
            (bf16.one, 0), (bf16.one, 0), (0, 0)]

    def test_start(self):
        data, _ = memory_of(random_vector(9, 4), random_vector(10, 4))
        machine = Machine(CONFIG, program(load(4, 4, 0), STOP, load(4, 4, 8), STOP), data)
        machine.run(0)
        np.testing.assert_array_equal(machine.vectors[4:8], random_vector(9, 4))
        machine.run(0, 2)
        np.testing.assert_array_equal(machine.vectors[4:8], random_vector(10, 4))


def matrix_program(**fields):
    return program(TOKEN, Instruction(opcode=Opcode.MATMUL,
                                      **{"function": Function.BY_COLUMN, "a": 8, "b": 1,
                                         "count": 8} | fields), STOP)


class TestFaults:
    @pytest.mark.parametrize(("code", "fault", "instruction"), [
        (bytes(16), Fault.OPCODE, 0),
        (b"\xff" * 16, Fault.OPCODE, 0),
        (b"", Fault.OPCODE, 0),
        (program(TOKEN), Fault.OPCODE, 1),
        (program(TOKEN, pack(4, 4, function=Function.ADD)), Fault.FUNCTION, 1),
        (program(vector(Function.DENSE, 4, 8, count=4)), Fault.FUNCTION, 0),
        (program(vector(0x1F, 4, 8, count=4)), Fault.FUNCTION, 0),
        (program(load(4, 0, 0)), Fault.VECTOR_ADDRESS, 0),
        (program(load(4, 6, 0)), Fault.VECTOR_ADDRESS, 0),
        (program(load(6, 4, 0)), Fault.VECTOR_ADDRESS, 0),
        (program(load(256, 4, 0)), Fault.VECTOR_ADDRESS, 0),
        (program(load(248, 12, 0)), Fault.VECTOR_ADDRESS, 0),
        (program(Instruction(opcode=Opcode.STORE, a=254, count=4)), Fault.VECTOR_ADDRESS, 0),
        (program(vector(Function.COPY, 4, 254, count=4)), Fault.VECTOR_ADDRESS, 0),
        (program(vector(Function.ADD, 4, 8, 254, count=4)), Fault.VECTOR_ADDRESS, 0),
        (program(vector(Function.COPY, 254, 8, count=4)), Fault.VECTOR_ADDRESS, 0),
        (program(norm(3, 4)), Fault.VECTOR_ADDRESS, 0),
        (program(pack(3, 4)), Fault.VECTOR_ADDRESS, 0),
        (program(pack(4, 68)), Fault.VECTOR_ADDRESS, 0),
        (program(drain(2, 4)), Fault.VECTOR_ADDRESS, 0),
        (program(pack(4, 4, target=16)), Fault.REGISTER, 0),
        (program(pack(4, 4, target=0)), Fault.REGISTER, 0),
        (program(norm(4, 4, target=0)), Fault.REGISTER, 0),
        (program(norm(4, 4, target=0x100)), Fault.REGISTER, 0),
        (program(drain(4, 4, a=16)), Fault.REGISTER, 0),
        (program(emit(4, b=16)), Fault.REGISTER, 0),
        (program(load(4, 4, 4)), Fault.MEMORY_ADDRESS, 0),
        (program(load(4, 4, 0xFFFFFFF8)), Fault.MEMORY_ADDRESS, 0),
        (program(load(4, 8, 0xFFF8)), Fault.MEMORY_ADDRESS, 0),
        (program(Instruction(opcode=Opcode.STORE, a=0, count=4, address=0x10000)),
         Fault.MEMORY_ADDRESS, 0),
        (matrix_program(address=12), Fault.MEMORY_ADDRESS, 1),
        (matrix_program(address=0x10000 - 8), Fault.MEMORY_ADDRESS, 1),
        (matrix_program(a=0), Fault.MATRIX, 1),
        (matrix_program(a=65), Fault.MATRIX, 1),
        (matrix_program(b=0), Fault.MATRIX, 1),
        (matrix_program(b=4), Fault.MATRIX, 1),
        (matrix_program(count=0), Fault.MATRIX, 1),
        (matrix_program(count=257), Fault.MATRIX, 1),
        (program(drain(4, 4)), Fault.NO_PRODUCT, 0),
        (program(emit(4)), Fault.NO_PRODUCT, 0),
        (program(TOKEN, matmul(8, 8, 0), drain(4, 12)), Fault.NO_PRODUCT, 2),
        (program(TOKEN, matmul(8, 8, 0), emit(4)), Fault.NO_PRODUCT, 2),
        (program(TOKEN, matmul(8, 8, 0), emit(9)), Fault.NO_PRODUCT, 2),
        (program(TOKEN, matmul(8, 8, 0), matmul(8, 8, 0), drain(4, 4, constant=0), drain(4, 8)),
         Fault.NO_PRODUCT, 4),
        (program(TOKEN, matmul(8, 8, 0), drain(4, 8, constant=0), drain(4, 4)),
         Fault.NO_PRODUCT, 3),
    ])
    def test_fault(self, code, fault, instruction):
        machine = Machine(CONFIG, code, bytes(1024))
        for _ in range(2):          # it stays stopped
            with pytest.raises(MachineFault) as error:
                machine.run(0)
            assert (error.value.fault, error.value.instruction) == (fault, instruction)
            assert str(error.value) == f"Instruction {instruction}: {fault.sentence}"
        assert not machine.vectors.any()
        machine.reset()
        assert machine.fault is None

    @pytest.mark.parametrize("bits", [bf16.infinity, 0x8000 | bf16.infinity, NAN, 0xFFFF])
    def test_not_finite(self, bits):
        data, _ = memory_of(np.array([0, 0x3F80, bits, 0], np.uint16))
        machine = Machine(CONFIG, program(load(4, 4, 0), pack(4, 4), STOP), data)
        with pytest.raises(MachineFault, match=r"^Instruction 1: a vector to be packed, appended "
                                               r"or scored holds an infinity or a NaN$"):
            machine.run(0)

    def test_works_again_after_reset(self):
        machine = Machine(CONFIG, program(drain(4, 4), STOP, TOKEN, matmul(8, 8, 0), emit(8), STOP),
                          bytes(64))
        with pytest.raises(MachineFault):
            machine.run(0)
        machine.reset()
        [emission] = machine.run(3, 2)
        assert emission.integers.tolist() == [1] * 8        # code 0 is five times +1

    def test_program_too_long(self):
        with pytest.raises(ValueError, match=r"^Program must have at most 64 instructions, "
                                             r"not 65$"):
            Machine(CONFIG, bytes(65 * 16), b"")


class TestHazards:
    @pytest.mark.parametrize(("instructions", "message"), [
        ([vector(Function.COPY, 4, 8, count=4)], "0: Element 8 is read, but was never written"),
        ([load(8, 4, 0), vector(Function.ADD, 8, 8, 16, count=4)],
         "1: Element 16 is read, but was never written"),
        ([load(8, 4, 0), norm(8, 8)], "1: Element 12 is read, but was never written"),
        ([load(0, 4, 0)], "0: The first word is written, but must stay zero"),
        ([load(8, 16, 0), vector(Function.COPY, 12, 8, count=8)],
         "1: The vector at 12 must be one of its operands or apart from them, but 8 overlaps it"),
        ([matmul(8, 8, 0)], "0: A matrix is multiplied, but there is no list"),
        ([load(8, 16, 0), pack(8, 16), matmul(8, 8, 0)],
         "2: The matrix has 8 columns, but the list was made of 16 elements"),
        ([TOKEN, matmul(8, 8, 0)], "1: The token must be below 8, not 9"),
        ([TOKEN] + 4 * [matmul(8, 16, 0)],
         "4: More than 3 products are not taken: the instruction would wait for one behind it"),
        ([TOKEN, matmul(8, 16, 0), drain(4, 8, a=2)],
         "2: Register 2 is read, but was never written"),
        ([load(8, 8, 0), load(12, 8, 0), pack(8, 8, function=Function.KEEP_ABOVE)],
         "2: A vector is packed by a masked QUANTIZE while the LOAD before it has yet to write it"),
        ([load(8, 16, 1008)], "0: Memory up to byte 1040 is used, but only 1024 are defined"),
        ([TOKEN, matmul(8, 16, 0), STOP], "2: the program stops, but 1 products were not taken"),
    ])
    def test_hazard(self, instructions, message):
        machine = Machine(CONFIG, program(*instructions, STOP), bytes(1024))
        with pytest.raises(HazardError) as error:
            machine.run(9)
        assert str(error.value) == f"Instruction {message}"


def test_activations_by_row_are_in_use():
    config = dataclasses.replace(CONFIG, engine=dataclasses.replace(CONFIG.engine, row_columns=16))
    by_row = Instruction(opcode=Opcode.MATMUL, function=Function.BY_ROW, a=8, b=1, count=16)
    before = [load(4, 16, 0), pack(4, 16), pack(4, 8, function=Function.NONZERO), by_row]
    masked = Instruction(opcode=Opcode.QUANTIZE, function=Function.KEEP_TOP_K, target=1, a=4,
                         count=16, constant=2)
    for again in (pack(4, 16), masked):
        machine = Machine(config, program(*before, again, drain(64, 8), STOP), bytes(1024))
        with pytest.raises(HazardError, match=r"^Instruction 4: A list of activations by row is "
                                              r"made while a product by row was not taken$"):
            machine.run(0)
    Machine(config, program(*before, pack(4, 16, function=Function.SPARSE), drain(64, 8), STOP),
            bytes(1024)).run(0)


def golden_logits(model, tokens):
    """Logits of a whole sequence at once: teacher forcing."""
    lm = GoldenLM(model, ARITHMETICS["lmul"], ExactProducts(model_matrices(model)))
    return lm.logits(lm.forward(np.array([tokens]), lm.start()))


def machine_logits(image, machine, tokens):
    """Logits of the token program, and the best of them as they are delivered."""
    logits, best = [], []
    for position, token in enumerate(tokens):
        emissions = machine.run(token, image.program.body if position else 0)
        logits.append(np.concatenate([emission.integers * emission.scale
                                      for emission in emissions]))
        best.append({first + row: value * emission.scale
                     for (first, _), emission in zip(image.program.heads, emissions, strict=True)
                     for row, value in zip(emission.rows.tolist(), emission.values.tolist(),
                                           strict=True)})
    return np.array(logits), best


SMALL = AcceleratorConfig(engine=EngineConfig(lanes=32, result_lanes=4, accumulator_depth=4,
                                              port_bytes=4,
                                              packing="3in5"), vector_depth=8192, top_k=7)
TWO_GROUPS = AcceleratorConfig(engine=EngineConfig(lanes=128, port_bytes=32))


class TestModels:
    """Bit for bit: the logits of the program are those of the whole sequence."""

    @pytest.mark.parametrize("sparse", [False, True])
    @pytest.mark.parametrize("config", [AcceleratorConfig(), SMALL, TWO_GROUPS],
                             ids=["default", "rows split in blocks", "two groups split"])
    def test_random_model(self, config, sparse):
        model = tiny_model()
        image = compile_model(model, config, sparse=sparse)
        machine = Machine(config, image.program.encoded(), image.memory)
        tokens = np.random.default_rng(1).integers(0, model.vocab, 12).tolist()
        expected = golden_logits(model, tokens)
        logits, best = machine_logits(image, machine, tokens)
        np.testing.assert_array_equal(logits, expected)
        for position, largest in enumerate(best):
            order = np.argsort(-expected[position], kind="stable")[:config.top_k].tolist()
            assert set(order) <= set(largest)
            assert all(expected[position, token] == logit for token, logit in largest.items())

        # A new sequence begins with the zero state, whatever was before.
        again, _ = machine_logits(image, machine, tokens[5:])
        np.testing.assert_array_equal(again, golden_logits(model, tokens[5:]))

    def test_shipped_model(self):
        """64 tokens from a prompt, the likeliest each time, then all of them at once."""
        model = read_model(SHIPPED)
        config = AcceleratorConfig()
        image = compile_model(model, config)
        machine = Machine(config, image.program.encoded(), image.memory)
        tokens = [model.vocabulary.end_of_document,
                  *Tokenizer(model.vocabulary).encode("Once upon a time")]
        logits = []
        for position in range(64):
            [emission] = machine.run(tokens[position], image.program.body if position else 0)
            logits.append(emission.integers * emission.scale)
            if position + 1 == len(tokens):
                tokens.append(int(emission.rows[0]))
            assert math.isfinite(emission.scale)
        np.testing.assert_array_equal(np.array(logits), golden_logits(model, tokens[:64]))

    def test_evaluation(self):
        """Bits per byte: held-out documents as matrices side by side, and token by token."""
        model = read_model(SHIPPED)
        tokenizer, end = Tokenizer(model.vocabulary), model.vocabulary.end_of_document
        texts = [text[:240] for text in read_corpus(CORPUS)["heldout"][:2]]
        texts[1] = texts[1][:100]
        documents = [tokenizer.encode(text) for text in texts]
        image = compile_model(model, AcceleratorConfig())
        machine = Machine(AcceleratorConfig(), image.program.encoded(), image.memory)
        bits = 0.0
        for document in documents:
            logits, _ = machine_logits(image, machine, [end, *document])
            np.testing.assert_array_equal(logits, golden_logits(model, [end, *document]))
            for target, row in zip([*document, end], logits, strict=True):
                bits -= (row[target] - row.max() - np.log(np.exp(row - row.max()).sum())) \
                    / math.log(2)
        byte_count = sum(len(text.encode()) for text in texts)
        measured = evaluate(model, documents, byte_count, "lmul", workers=1)
        assert measured.tokens == sum(map(len, documents)) + len(documents)
        assert measured.bits_per_byte[0] == pytest.approx(bits / byte_count, rel=1e-6)


class TestBatches:
    """Lists of several vectors, against one vector after the other."""

    COUNT, ROWS = 16, 12

    def machine(self, *instructions, vectors=4):
        rng = np.random.default_rng(9)
        weights = rng.integers(-1, 2, (self.ROWS, self.COUNT))
        data, addresses = memory_of(pack_words(planes(weights, 1), CONFIG.engine),
                                    random_vector(3, vectors * self.COUNT))
        first = load(8, vectors * self.COUNT, addresses[1])
        return Machine(CONFIG, program(first, *instructions, STOP), data + bytes(64))

    def slot(self, slot, log2=2, count=COUNT, across=False):
        part = Batch(log2=log2, slot=slot, across=across)
        return dataclasses.replace(pack(8 + slot * count, count, 3 + slot),
                                   constant=part.constant)

    def product(self, vectors):
        return dataclasses.replace(matmul(self.ROWS, self.COUNT, 0), target=vectors)

    def test_slots_equal_single_lists(self):
        count, rows = self.COUNT, self.ROWS
        together = self.machine(*map(self.slot, range(4)), self.product(4),
                                *(drain(128 + k * rows, rows, 3 + k) for k in range(4)))
        together.run(0)
        single = self.machine(*(instruction for k in range(4) for instruction in (
            pack(8 + k * count, count, 3 + k), matmul(rows, count, 0),
            drain(128 + k * rows, rows, 3 + k))))
        single.run(0)
        found, expected = (machine.vectors[128:128 + 4 * rows] for machine in (together, single))
        assert (found == expected).all()
        assert len(set(found.tolist())) > rows
        assert together.trits == single.trits // 4

    @pytest.mark.parametrize("log2", [1, 2])
    def test_across(self, log2):
        """Elements of a vector are columns of all vectors, one after the other."""
        count = self.COUNT << log2
        machine = self.machine(
            self.slot(0, log2, count, across=True), self.product(1 << log2),
            drain(160, self.ROWS << log2), vectors=1 << log2)
        machine.run(0)
        codes = quantize(machine.vectors[8:8 + count])
        weights = np.random.default_rng(9).integers(-1, 2, (self.ROWS, self.COUNT))
        integers = (weights @ codes.values.reshape(self.COUNT, -1).astype(np.int64)).T.reshape(-1)
        expected = scale(integers[np.newaxis], np.array([bf16.one], np.uint16),
                         np.array([0], np.int32))[0]
        assert (machine.vectors[160:160 + len(expected)] == expected).all()

    @pytest.mark.parametrize("constant", [
        1 << 11, Batch(log2=0, slot=1).constant, Batch(log2=4).constant,
        Batch(log2=1, slot=2).constant, Batch(log2=1, slot=1, across=True).constant,
        Batch(log2=3).constant])
    def test_faults_of_pack(self, constant):
        machine = self.machine(dataclasses.replace(pack(8, 12), constant=constant))
        with pytest.raises(MachineFault, match=Fault.BATCH.sentence):
            machine.run(0)

    @pytest.mark.parametrize(("rows", "vectors", "function"), [
        (12, 3, Function.BY_COLUMN), (12, 16, Function.BY_COLUMN), (10, 2, Function.BY_COLUMN),
        (24, 4, Function.BY_COLUMN)])
    def test_faults_of_matmul(self, rows, vectors, function):
        wrong = Instruction(opcode=Opcode.MATMUL, function=function, target=vectors, a=rows, b=1,
                            count=16)
        machine = self.machine(*map(self.slot, range(4)), wrong)
        with pytest.raises(MachineFault, match=Fault.BATCH.sentence):
            machine.run(0)

    def test_hazards(self):
        for message, *instructions in (
                ("has only 1 of its vectors", self.slot(0), TOKEN),
                ("has only 2 of its vectors", self.slot(0), self.slot(1), pack(8, 16)),
                ("Vector 2 of a batch of 4 is packed, of 16 elements, but the list has 1 of 4",
                 self.slot(0), self.slot(2)),
                ("the list has 4", *map(self.slot, range(4)), self.product(2)),
                ("the list has 1", pack(8, 16), self.product(2))):
            with pytest.raises(HazardError, match=message):
                self.machine(*instructions).run(0)

    def test_stops_are_alike(self):
        waits = Instruction(opcode=Opcode.STOP, constant=1)
        with pytest.raises(ValueError, match="both STOPs that wait and STOPs that do not"):
            Machine(CONFIG, program(waits, STOP), b"")
