"""Networks: what is refused, and products by gains as a power of two and a rest."""

import numpy as np
import pytest

from sim.golden.graph import Kind, Matrix, Network


@pytest.fixture
def network():
    return Network()


def matrix(rows, columns):
    return Matrix("w", np.ones((rows, columns), np.int8), 0.5)


class TestGain:
    @pytest.mark.parametrize(("factors", "powers", "rest"), [
        ([1.0, -1.4, 1.6, 0.3, 0.0], [1, -1, 2, 0.25, 0], [0, -0.4, -0.4, 0.05, 0]),
        ([1.0, 1.25, 0.75], None, [0, 0.25, -0.25]),
        ([2.0, -0.5, 0.0], [2, -0.5, 0], None),
    ])
    def test_parts(self, network, factors, powers, rest):
        x = network.constant("x", np.ones(len(factors)))
        network.gain("gain", x, np.array(factors))
        constants = {step.name: step.constant for step in network
                     if step.kind is Kind.CONSTANT and step.factor}
        expected = {"gain.power": powers, "gain.rest": rest}
        assert constants.keys() == {name for name, part in expected.items() if part is not None}
        for name, part in constants.items():
            np.testing.assert_allclose(part, expected[name], atol=1e-15)

    def test_one(self, network):
        x = network.constant("x", np.ones(3))
        assert network.gain("gain", x, np.ones(3)) is x

    def test_rest_is_a_third_at_most(self, network):
        factors = np.random.default_rng(1).lognormal(0, 2, 10000)
        network.gain("gain", network.constant("x", factors), factors)
        rest = network.steps[-3].constant
        assert network.steps[-3].name == "gain.rest"
        assert 0.33 < np.abs(rest / factors).max() <= 1 / 3


class TestErrors:
    def test_elements(self, network):
        x, y = (network.constant(name, np.ones(size)) for name, size in (("x", 4), ("y", 8)))
        with pytest.raises(ValueError, match=r"^Operands of x \+ y must have 4 elements each, "
                                             r"not 8$"):
            network.add(x, y)

    def test_codes_are_no_vector(self, network):
        codes = network.codes("list", network.constant("x", np.ones(4)))
        with pytest.raises(ValueError, match=r"^list must be a vector, not CODES$"):
            network.silu(codes)

    def test_matrix(self, network):
        x = network.constant("x", np.ones(4))
        for operand, what in ((x, "CONSTANT of 4"), (network.codes("list", x), "CODES of 4")):
            with pytest.raises(ValueError, match=f"^Matrix w must be multiplied by codes of 5 "
                                                 f"elements, not by {what}$"):
                network.linear(matrix(3, 5), operand)
        with pytest.raises(ValueError, match=r"^Matrix w must be scaled by a norm, "
                                             r"not by CONSTANT$"):
            network.linear(matrix(3, 4), network.codes("list", x), x)
