"""Chains of tensors: as matrices, in a model, and on the machine."""

import dataclasses
import re

import numpy as np
import pytest

import hw.isa as isa
from host.compiler.compile import compile_fitted, compile_model
from host.compiler.errors import CompileError
from host.compress.chains import Choice, compress, layers_of
from host.files.errors import ModelFileError
from host.models.examples import llama_gguf, llama_tensors
from host.models.mpo_llama import ARCHITECTURE, MATRICES, write_model
from host.models.registry import read_model
from host.models.tensor_train import Shape, bond_for, bonds_up_to, full_bonds, shapes, tensorize
from hw.config import AcceleratorConfig
from hw.isa import Batch, Opcode
from sim.golden.arithmetic import ARITHMETICS
from sim.golden.evaluate import ExactProducts, GoldenLM, model_matrices
from tests.host.accelerator_examples import MISSING, SMALL
from tests.host.compiler.test_transformer_program import TOKENS, equal, simulated

needs_simulator = pytest.mark.skipif(bool(MISSING), reason="; ".join(MISSING))

#: Of a matrix of 24 rows and 18 columns; the fourth is one that the machine cannot apply.
SHAPES = [Shape((24,), (18,)), Shape((1, 24), (18, 1)), Shape((4, 6), (9, 2)),
          Shape((2, 3, 4), (3, 3, 2)), Shape((1, 4, 6), (9, 2, 1)),
          Shape((1, 1, 4, 6), (9, 2, 1, 1))]


class TestChain:
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_full_rank_is_the_matrix(self, shape):
        rng = np.random.default_rng(1)
        matrix, x = rng.normal(size=(24, 18)), rng.normal(size=(3, 18))
        chain = tensorize(matrix, shape)
        assert chain.bonds == full_bonds(shape)
        assert chain.parameters == shape.parameters(chain.bonds)
        np.testing.assert_allclose(chain.dense(), matrix, rtol=0, atol=1e-12)
        for vector in x:
            np.testing.assert_allclose(chain.contract(vector), matrix @ vector, rtol=0, atol=1e-12)
        if not shape.obstacle:
            np.testing.assert_allclose(chain.apply(x), x @ matrix.T, rtol=0, atol=1e-12)

    @pytest.mark.parametrize("shape", SHAPES[1:], ids=str)
    def test_truncated(self, shape):
        """All ways to apply a chain are the same, and the error is what was cut off."""
        rng = np.random.default_rng(2)
        matrix, x = rng.normal(size=(24, 18)), rng.normal(size=18)
        bonds = bonds_up_to(shape, max(full_bonds(shape)) // 2)
        chain = tensorize(matrix, shape, bonds)
        assert chain.bonds == bonds
        dense = chain.dense()
        np.testing.assert_allclose(chain.contract(x), dense @ x, rtol=0, atol=1e-12)
        if not shape.obstacle:
            np.testing.assert_allclose(chain.apply(x[np.newaxis])[0], dense @ x, rtol=0, atol=1e-12)
        if shape.sites == 2:
            digits = matrix.reshape(*shape.rows, *shape.columns).transpose(0, 2, 1, 3)
            values = np.linalg.svd(digits.reshape(shape.rows[0] * shape.columns[0], -1))[1]
            assert np.linalg.norm(dense - matrix) == pytest.approx(
                np.linalg.norm(values[bonds[0]:]), rel=1e-12)

    def test_same_signs(self):
        """The largest element of a left singular vector is positive."""
        matrix = np.random.default_rng(4).normal(size=(24, 18))
        for sign in (1, -1):
            core = tensorize(sign * matrix, SHAPES[2]).cores[0].reshape(-1, 12)
            assert (core[np.abs(core).argmax(axis=0), range(12)] > 0).all()

    def test_zero(self):
        assert not tensorize(np.zeros((24, 18)), SHAPES[2]).dense().any()

    @pytest.mark.parametrize(("shape", "bonds", "message"), [
        (Shape((5, 5), (9, 2)), None,
         "Digits of 24 rows must multiply to 24, not 5x5 = 25; the nearest for the last digits "
         "is 4"),
        (Shape((4, 6), (9, 3)), None,
         "Digits of 18 columns must multiply to 18, not 9x3 = 27; the nearest for the last digits "
         "is 3"),
        (Shape((4, 6), (9, 2)), (13,),
         "Bond 1 of 4x6/9x2 must be in 1..12, where 12 is full rank, not 13"),
        (Shape((4, 6), (9, 2)), (1, 1), "Chain of 2 sites must have 1 bonds, not 2")])
    def test_refused(self, shape, bonds, message):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            tensorize(np.ones((24, 18)), shape, bonds)

    def test_shapes(self):
        found = list(shapes(96, 64, 2))
        assert Shape((1, 96), (64, 1)) in found
        assert Shape((4, 24), (8, 8)) in found
        assert Shape((8, 12), (64, 1)) not in found     # 12 rows do not fill words
        assert all(not shape.obstacle for shape in found)
        assert {shape.rows[0] for shape in shapes(96, 64, 2, row_digits=False)} == {1}
        assert all(shape.sites == 3 and not shape.obstacle for shape in shapes(96, 64, 3))
        with pytest.raises(ValueError, match="a positive number of digits"):
            Shape((2, 3), (4,))
        assert Shape((16, 6), (32, 2)).obstacle == (
            "16x6/32x2 multiplies a core by 16 vectors, which must be a power of two up to 8")

    def test_bond(self):
        shape = Shape((2, 48), (16, 4))
        bond = bond_for(shape, 0.5 * 96 * 64)
        assert shape.parameters((bond,)) <= 0.5 * 96 * 64 < shape.parameters((bond + 8,))
        assert bond_for(shape, 1) == 8


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    path = tmp_path_factory.mktemp("llama") / "example.gguf"
    path.write_bytes(llama_gguf(llama_tensors()))
    return read_model(path)


#: Of each matrix of layer 0, and in another order of layer 1: one, two and three sites.
CHOICES = {
    "attn_q": Choice(Shape((1, 64), (16, 4)), (16,), 4),
    "attn_k": Choice(Shape((1, 32), (64, 1)), (16,), 3),
    "attn_v": Choice(Shape((2, 16), (32, 2)), (24,), 5),
    "attn_output": Choice(Shape((1, 4, 16), (32, 2, 1)), (24, 16), 5),
    "ffn_gate": Choice(Shape((96,), (64,)), (), 2),
    "ffn_up": Choice(Shape((1, 1, 96), (32, 2, 1)), (16, 24), 4),
    "ffn_down": Choice(Shape((2, 32), (24, 4)), (40,), 6)}


@pytest.fixture(scope="module")
def model(llama):
    layers = layers_of(llama)
    plain = {name: Choice(Shape((len(matrix),), (matrix.shape[1],)), (), 4)
             for name, matrix in layers.matrices[1].items()}
    chosen = (CHOICES, plain | {name: CHOICES[name] for name in ("attn_v", "ffn_down")})
    return compress(layers, tuple(
        {name: layers.chain(index, name, choices[name]) for name in MATRICES}
        for index, choices in enumerate(chosen)), 4)


def logits(model, arithmetic="lmul"):
    golden = GoldenLM(model, ARITHMETICS[arithmetic], ExactProducts(model_matrices(model)))
    return golden.logits(golden.forward(TOKENS[np.newaxis], golden.start()))


class TestModel:
    def test_one_site_is_the_model(self, llama):
        """Of matrices that are left alone, with as many planes, every logit is the same."""
        layers = layers_of(llama)
        chains = tuple({name: layers.chain(index, name, Choice(
            Shape((len(matrix),), (matrix.shape[1],)), (), llama.planes))
            for name, matrix in matrices.items()} for index, matrices in enumerate(layers.matrices))
        whole = compress(layers, chains, 6)
        np.testing.assert_array_equal(logits(whole), logits(llama))

    def test_full_rank_in_floats(self, llama):
        """At full rank, and with as many planes as there are, a chain is its matrix."""
        layers = layers_of(llama)
        for name, matrix in layers.matrices[0].items():
            shape = CHOICES[name].shape
            chain = tensorize(matrix, shape)
            np.testing.assert_allclose(chain.dense(), matrix, rtol=0, atol=1e-12)
        shape = Shape((2, 48), (16, 4))
        found = layers.chain(0, "ffn_up", Choice(shape, full_bonds(shape), 6))
        exact = layers.matrices[0]["ffn_up"]
        x = np.random.default_rng(5).normal(size=(1, 64))
        y = x
        for core, vectors in zip(found.cores, shape.vectors, strict=True):
            across = y.reshape(1, -1, vectors).swapaxes(1, 2)
            y = (across @ (core.weights * core.scale).T).reshape(1, -1)
        y = y * np.tile(found.cores[-1].factors, 2)
        assert np.abs(y - x @ exact.T).max() < 0.02 * np.abs(x @ exact.T).max()

    def test_file(self, model, tmp_path):
        write_model(tmp_path / "model.gguf", model)
        read = read_model(tmp_path / "model.gguf")
        np.testing.assert_array_equal(logits(read), logits(model))
        assert read.layers[0]["attn_output"].bonds == (24, 16)
        assert read.vocabulary == model.vocabulary

    @pytest.mark.parametrize(("change", "message"), [
        (lambda core: core[:5], "must have a multiple of 2 rows, not 5"),
        (lambda core: core[:, :3], r"must have shape \(48, 32\), not \(48, 3\)")])
    def test_refused_core(self, model, tmp_path, change, message):
        layer = model.layers[0]
        chain = layer["attn_v"]
        core = dataclasses.replace(chain.cores[0], weights=change(chain.cores[0].weights))
        wrong = dataclasses.replace(model, layers=({**layer, "attn_v": dataclasses.replace(
            chain, cores=(core, *chain.cores[1:]))}, *model.layers[1:]))
        write_model(tmp_path / "wrong.gguf", wrong)
        with pytest.raises(ModelFileError, match=f"tensor blk.0.attn_v.0.weight {message}"):
            read_model(tmp_path / "wrong.gguf")

    @pytest.mark.parametrize(("rows", "message"), [
        ((3, 11), f"key {ARCHITECTURE}.blk.0.attn_v.rows must be at most 8 positive integers that "
                  f"multiply to 32, not "),
        ((16, 2), "tensor blk.0.attn_v: 16x2/32x2 multiplies a core by 16 vectors")])
    def test_refused_shape(self, model, tmp_path, rows, message):
        layer = model.layers[0]
        chain = dataclasses.replace(layer["attn_v"], shape=Shape(rows, (32, 2)))
        wrong = dataclasses.replace(model, layers=({**layer, "attn_v": chain}, *model.layers[1:]))
        write_model(tmp_path / "wrong.gguf", wrong)
        with pytest.raises(ModelFileError, match=message):
            read_model(tmp_path / "wrong.gguf")


class TestMachine:
    def test_equals_the_model(self, model):
        image = compile_fitted(model, AcceleratorConfig())
        equal(image, model)
        batches = {(Batch.of(instruction.constant).vectors, Batch.of(instruction.constant).across)
                   for instruction in image.program.instructions
                   if instruction.opcode is Opcode.QUANTIZE and instruction.constant}
        assert batches == {(2, True), (4, True)}
        assert isa.disassemble(image.program.instructions[-1]) == "STOP"

    def test_refused(self, model, llama):
        config = compile_fitted(model, AcceleratorConfig()).config
        engine = dataclasses.replace(config.engine, max_batch=2)
        with pytest.raises(CompileError, match=r"^Matrix blk.0.attn_q.0 must be multiplied by a "
                                               r"power of two of vectors up to 2 \(engine field "
                                               r"max_batch\), not 4$"):
            compile_model(model, dataclasses.replace(config, engine=engine))
        layers = layers_of(llama)
        turned = Choice(Shape((2, 32), (32, 2)), (8,), 3)
        chain = layers.chain(0, "attn_q", turned)
        wrong = dataclasses.replace(model, layers=({**model.layers[0], "attn_q": chain},
                                                   *model.layers[1:]))
        with pytest.raises(CompileError, match=r"^Vector blk.0.attn_q must lie in order to be a "
                                               r"matrix of 2 columns, but its heads are turned"):
            compile_fitted(wrong, AcceleratorConfig())

    @needs_simulator
    @pytest.mark.slow       # the simulator of a core with attention is built in minutes
    def test_simulated(self, model):
        engine = dataclasses.replace(SMALL.engine, max_planes=6, max_batch=4)
        simulated(compile_fitted(model, dataclasses.replace(
            SMALL, engine=engine, context=16, address_width=24)))
