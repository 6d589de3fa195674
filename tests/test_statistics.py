"""Bootstrap intervals against closed forms."""

import numpy as np
import pytest

from entscale_jax import statistics
from entscale_jax.errors import UserError
from entscale_jax.statistics import Interval, bootstrap, bootstrap_mean, interval, number, signed, signed_number


def test_equal_values_have_an_interval_without_width():
    (found,) = bootstrap_mean(np.full((6, 1), 2.5))
    assert found == Interval(2.5, 2.5, 2.5, 6)


def test_two_values_reach_both():
    # The mean of two resampled values is 0, 0.5 or 1 with probability 1/4, 1/2, 1/4.
    (found,) = bootstrap_mean(np.array([[0.0], [1.0]]))
    assert (found.mean, found.low, found.high) == (0.5, 0.0, 1.0)


def test_width_is_that_of_the_normal_law_for_many_values():
    values = np.random.default_rng(3).normal(5.0, 2.0, (1500, 1))
    (found,) = bootstrap_mean(values)
    half = 1.96 * values.std() / np.sqrt(1500)
    assert found.high - found.mean == pytest.approx(half, rel=0.05)
    assert found.mean - found.low == pytest.approx(half, rel=0.05)


def test_more_values_narrow_the_interval():
    rng = np.random.default_rng(0)
    few, many = (bootstrap_mean(rng.normal(size=(count, 1)))[0] for count in (10, 1000))
    assert many.high - many.low < (few.high - few.low) / 5


def test_columns_are_resampled_together():
    # Row by row the columns add up to 1, so every resampled mean does, and the bounds mirror each other.
    first = np.random.default_rng(1).random(40)
    one, other = bootstrap_mean(np.stack([first, 1 - first], axis=1))
    assert other.low == pytest.approx(1 - one.high)
    assert other.high == pytest.approx(1 - one.low)


def test_pairs_show_a_difference_that_separate_samples_hide():
    scores = np.random.default_rng(2).normal(0.0, 1.0, 30)
    better = scores + 0.1
    (paired,) = bootstrap_mean((better - scores)[:, None])
    shuffled = np.random.default_rng(4).permutation(scores)
    (separate,) = bootstrap_mean((better - shuffled)[:, None])
    assert not paired.holds_zero
    assert separate.holds_zero


def test_chunks_change_little(monkeypatch):
    values = np.random.default_rng(5).random((50, 2))
    whole = bootstrap_mean(values)
    monkeypatch.setattr(statistics, "_CHUNK", 700)
    for one, other in zip(whole, bootstrap_mean(values), strict=True):
        assert other.mean == one.mean
        assert abs(other.low - one.low) < 0.005
        assert abs(other.high - one.high) < 0.005


def test_the_same_seed_gives_the_same_interval_and_another_does_not():
    values = np.random.default_rng(6).normal(size=(20, 1))
    assert bootstrap_mean(values) == bootstrap_mean(values)
    assert bootstrap_mean(values) != bootstrap_mean(values, seed=1)


def test_no_values_are_an_error():
    with pytest.raises(UserError, match="no values"):
        bootstrap_mean(np.zeros((0, 3)))


def test_of_the_means_themselves_it_is_the_same_interval():
    values = np.random.default_rng(7).normal(size=(30, 2))
    for one, other in zip(bootstrap(values, lambda means: means), bootstrap_mean(values), strict=True):
        assert (one.mean, one.low, one.high) == pytest.approx((other.mean, other.low, other.high))
        assert one.count == other.count


def test_a_ratio_is_one_of_means_and_not_a_mean_of_ratios():
    values = np.array([[1.0, 1.0], [9.0, 3.0]])  # ratios 1 and 3, of the means 10 / 4
    (ratio,) = bootstrap(values, lambda means: means[..., :1] / means[..., 1:])
    assert (ratio.mean, ratio.low, ratio.high, ratio.count) == (2.5, 1.0, 3.0, 2)
    with pytest.raises(UserError, match="no values"):
        bootstrap(np.zeros((0, 2)), lambda means: means)


@pytest.mark.parametrize(("low", "high", "holds"), [(-1, 1, True), (0, 2, True), (-2, 0, True), (0.1, 2, False)])
def test_zero_on_a_bound_is_held(low, high, holds):
    assert Interval(0.5, low, high, 3).holds_zero is holds


def test_numbers_have_a_minus_and_a_rounded_zero_has_none():
    assert interval(Interval(-1.0, -2.04, -0.04, 3), 1) == "−1.0 (−2.0 to 0.0)"
    assert signed(Interval(1.0, -2.04, -0.04, 3), 1) == "+1.0 (−2.0 to 0.0)"
    assert [number(value, 2) for value in (-0.004, 0.004, -0.005001, 1234.5)] == ["0.00", "0.00", "−0.01", "1234.50"]
    assert [signed_number(value, 1) for value in (-0.04, 0.04, 0.06, -3.0)] == ["0.0", "0.0", "+0.1", "−3.0"]
    assert number(float("nan"), 1) == "nan"
