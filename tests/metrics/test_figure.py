"""Figures say what they depend on, and intervals of means and of pairs are those of the bootstrap."""

from dataclasses import replace

import numpy as np
import pytest

from entscale_jax.errors import UserError
from entscale_jax.metrics.figure import Figure, bootstrap_interval, paired_interval

FIGURE = Figure(name="fid", value=1.0, count=512, reference="scenes 128x128", reference_count=512, extractor="abc")


def test_only_like_figures_compare():
    FIGURE.check_comparable(replace(FIGURE, value=2.0, remark="another size"))
    with pytest.raises(UserError, match="count is 512 and 64; resize is 'none' and 'bicubic'"):
        FIGURE.check_comparable(replace(FIGURE, count=64, resize="bicubic"))
    with pytest.raises(UserError, match="extractor is 'abc' and 'abd'"):
        FIGURE.check_comparable(replace(FIGURE, extractor="abd"))


def test_the_interval_of_a_mean_is_near_the_normal_one():
    values = np.random.default_rng(0).normal(5, 2, 400)
    found = bootstrap_interval(values)
    half = 1.96 * values.std() / 20
    assert (found.mean, found.count) == (pytest.approx(values.mean()), 400)
    assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)


def test_pairs_are_compared_as_pairs():
    rng = np.random.default_rng(1)
    second = rng.normal(0, 10, 100)
    first = second + rng.normal(1, 0.5, 100)
    found = paired_interval(first, second)
    assert 0.85 < found.low < 1 < found.high < 1.15
    assert paired_interval(first, second[::-1]).holds_zero
    with pytest.raises(UserError, match="100 and 99 values are no pairs"):
        paired_interval(first, second[1:])
