import numpy as np
import pytest

from hw.config import EngineConfig
from sim.golden.ternary import row_bound, row_product, ternary_product
from sim.timing.units import engine_cycles, engine_lane_words, engine_period


def wrap(value, width):
    return (value + 2 ** (width - 1)) % 2 ** width - 2 ** (width - 1)


@pytest.mark.parametrize("accumulator_width", [12, 24, 40])
def test_equals_python_integers(accumulator_width):
    rng = np.random.default_rng(1)
    weights = rng.integers(-364, 365, (7, 30))
    values = rng.integers(-128, 128, (20, 3))
    indices = rng.integers(0, 30, 20)
    expected = [[wrap(sum(int(values[k, b]) * int(weights[r, indices[k]]) for k in range(20)),
                      accumulator_width) for r in range(7)] for b in range(3)]
    found = ternary_product(weights, values, accumulator_width=accumulator_width, indices=indices)
    assert found.tolist() == expected


def test_all_columns_by_default():
    weights = np.array([[1, -1, 0], [-1, -1, -1]])
    values = np.array([[5], [7], [9]])
    assert ternary_product(weights, values, accumulator_width=24).tolist() == [[-2, -21]]


def test_empty_list_gives_zeros():
    found = ternary_product(np.ones((4, 3)), np.zeros((0, 2)), accumulator_width=24, indices=[])
    assert found.tolist() == [[0] * 4] * 2


def test_row_bound_is_reached_and_exact():
    weights = np.array([[1, -1, 0, 1], [13, 13, -13, 0]])
    assert row_bound(weights) == 39 * 128
    width = (39 * 128).bit_length() + 1
    values = -128 * np.sign(weights[1])[:, np.newaxis]
    assert ternary_product(weights, values, accumulator_width=width)[0, 1] == -39 * 128


@pytest.mark.parametrize("accumulator_width", [12, 24])
def test_rows_equal_python_integers(accumulator_width):
    rng = np.random.default_rng(2)
    weights = rng.integers(-364, 365, (7, 30))
    activations = rng.integers(-128, 128, 30)
    indices = [3, 0, 6, 3]
    found = row_product(weights, activations, accumulator_width=accumulator_width, indices=indices)
    assert found.tolist() == [
        wrap(sum(int(weights[r, c]) * int(activations[c]) for c in range(30)), accumulator_width)
        for r in indices]
    every = row_product(weights, activations, accumulator_width=accumulator_width)
    assert every[indices].tolist() == found.tolist()
    assert row_product(weights, activations, accumulator_width=24, indices=[]).shape == (0,)


def test_rows_need_an_activation_for_each_column():
    with pytest.raises(ValueError, match=r"^Activations must have shape \(3, batch\), "
                                         r"not \(4, 1\)$"):
        row_product(np.ones((2, 3)), np.ones(4), accumulator_width=24)


def test_activations_need_a_row_for_each_listed_column():
    with pytest.raises(ValueError, match=r"^Activations must have shape \(3, batch\), "
                                         r"not \(4, 1\)$"):
        ternary_product(np.ones((2, 3)), np.ones((4, 1)), accumulator_width=24)


class TestCycles:
    """The bars of the issue; the benches assert that the hardware takes exactly these cycles."""

    @pytest.mark.parametrize("formula", [engine_cycles, engine_period])
    @pytest.mark.parametrize(("rows", "columns", "batch", "bar"), [
        (256, 256, 1, 0.95), (1024, 256, 1, 0.95), (64, 256, 1, 0.90), (192, 576, 1, 0.90),
        (32, 32, 8, 0.80)])
    def test_utilization(self, formula, rows, columns, batch, bar):
        shape = {"rows": rows, "columns": columns, "batch": batch}
        config = EngineConfig()
        assert engine_lane_words(config, **shape) / formula(config, **shape) >= bar

    def test_two_slots_pause(self):
        config = EngineConfig()
        two = engine_period(config, rows=128, columns=10)
        three = engine_period(config, rows=192, columns=10)
        # 11 rounds of 3 cycles either way; the list's end stands in for the last pause.
        assert three - two == 1 + config.result_transfers(192) - config.result_transfers(128)
