"""How tokens are drawn: what is left of a distribution, by hand."""

import numpy as np
import pytest

from host.text.sampling import Sampler

#: Probabilities 0.5, 0.25, 0.125, 0.0625, 0.0625, in another order.
LOGITS = np.log(np.array([0.0625, 0.5, 0.125, 0.25, 0.0625]))


def drawn(count=400, logits=LOGITS, **options):
    """Draw at a temperature at which all that is left is about as likely."""
    choose = Sampler(**({"temperature": 50.0, "top_k": 0} | options)).choices()
    return {choose(logits) for _ in range(count)}


@pytest.mark.parametrize(("share", "left"), [
    (0.0, {1}), (0.4, {1}), (0.5, {1}), (0.51, {1, 3}), (0.74, {1, 3}), (0.76, {1, 2, 3}),
    (0.9, {0, 1, 2, 3}), (1.0, {0, 1, 2, 3, 4})])
def test_top_p(share, left):
    """Of equals the first stays; the temperature changes nothing of what is left."""
    assert drawn(top_p=share) == left
    assert drawn(top_p=share, temperature=1e3) == left


@pytest.mark.parametrize(("share", "left"), [
    (0.0, {0, 1, 2, 3, 4}), (0.12, {0, 1, 2, 3, 4}), (0.2, {1, 2, 3}), (0.3, {1, 3}), (0.6, {1}),
    (1.0, {1})])
def test_min_p(share, left):
    assert drawn(min_p=share) == left


def test_top_p_counts_what_top_k_leaves():
    assert drawn(top_k=2, top_p=0.6) == {1}      # 0.5 of 0.75 are two thirds
    assert drawn(top_k=2, top_p=0.7) == {1, 3}


class TestRepetition:
    REPEATED = np.array([False, True, False, False, False])

    def test_positive_and_negative_logits(self):
        choose = Sampler(temperature=0, repetition_penalty=2.0).choices()
        logits = np.array([1.0, 3.0, 1.6, 0.0, -1.0])
        assert choose(logits, np.zeros(5, bool)) == 1
        assert choose(logits, self.REPEATED) == 2            # 3 / 2 < 1.6
        negative = np.array([-3.5, -2.0, -3.0, -9.0, -9.0])
        assert choose(negative, self.REPEATED) == 2          # -2 * 2 < -3
        assert choose(logits, ~self.REPEATED) == 1

    def test_comes_before_all_others(self):
        choose = Sampler(temperature=1.0, top_k=1, repetition_penalty=2.0).choices()
        assert choose(np.array([1.0, 3.0, 1.6, 0.0, -1.0]), self.REPEATED) == 2

    def test_one_changes_nothing(self):
        logits = np.array([1.0, 3.0])
        ours, plain = Sampler().choices(), Sampler().choices()
        assert [ours(logits, np.array([True, False])) for _ in range(50)] == [
            plain(logits) for _ in range(50)]


def test_all_together_is_reproducible():
    options = {"temperature": 0.9, "top_k": 4, "top_p": 0.95, "min_p": 0.05,
               "repetition_penalty": 1.1, "seed": 3}
    first, second = Sampler(**options).choices(), Sampler(**options).choices()
    assert [first(LOGITS, LOGITS > -1) for _ in range(50)] == [
        second(LOGITS, LOGITS > -1) for _ in range(50)]
