"""FID and KID against torchmetrics on the same features and against closed forms, their intervals against the truth."""

import numpy as np
import pytest
import torch

from entscale_jax.errors import UserError
from entscale_jax.metrics.frechet import fid
from entscale_jax.metrics.kernel import FEWEST, kid, kid_difference, kid_interval, polynomial_kernel, unbiased_mmd
from entscale_jax.metrics.moments import Moments

BOUND = 1e-6  # relative, as asked; measured 4e-15 (FID) and 6e-15 (KID) in float64


class _Identity(torch.nn.Module):
    """Takes features for pictures, so that the published class compares features that we choose."""

    num_features = 24

    def forward(self, features):
        return features


@pytest.fixture(scope="module")
def features():
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(24, 24))
    first = np.abs(rng.normal(size=(300, 24)) @ mix)
    return first, np.abs(rng.normal(0.1, 1.1, size=(420, 24)) @ mix)


def _published(metric, first, second):
    metric.set_dtype(torch.float64)
    metric.update(torch.from_numpy(first), real=True)
    metric.update(torch.from_numpy(second), real=False)
    return metric.compute()


def _fid(first, second):
    return fid(Moments.of(first), Moments.of(second))


def test_fid_is_torchmetrics(features):
    from torchmetrics.image.fid import FrechetInceptionDistance

    expected = float(_published(FrechetInceptionDistance(feature=_Identity()), *features))
    found = _fid(*features)
    assert abs(found / expected - 1) < BOUND
    # Controls: covariances divided by n, and correlations between features left out.
    biased = [Moments(m.count + 1, m.mean, m.deviations) for m in map(Moments.of, features)]
    assert abs(fid(*biased) / expected - 1) > 100 * BOUND
    diagonal = [Moments(m.count, m.mean, np.diag(np.diag(m.deviations))) for m in map(Moments.of, features)]
    assert abs(fid(*diagonal) / expected - 1) > 1e3 * BOUND


def test_fid_of_known_gaussians():
    """Commuting covariances have |m1 - m2|^2 + sum (s1 - s2)^2, s the deviations along the common axes."""
    rng = np.random.default_rng(1)
    turn, _ = np.linalg.qr(rng.normal(size=(5, 5)))
    deviations, means = rng.uniform(0.1, 2, (2, 5)), rng.normal(size=(2, 5))
    moments = [
        Moments(11, mean, turn @ np.diag(each**2) @ turn.T * 10) for mean, each in zip(means, deviations, strict=True)
    ]
    expected = np.sum((means[0] - means[1]) ** 2) + np.sum((deviations[0] - deviations[1]) ** 2)
    assert fid(*moments) == pytest.approx(expected, rel=1e-12)


def test_fid_of_fewer_features_than_their_width():
    """A covariance of low rank, where roots of products come out complex: the mixed trace is over what both share."""
    rng = np.random.default_rng(2)
    first, second = rng.normal(size=(2, 8, 32))
    roots = np.linalg.svd((first - first.mean(axis=0)) @ (second - second.mean(axis=0)).T, compute_uv=False)
    traces = sum(np.trace(np.cov(each, rowvar=False)) for each in (first, second))
    expected = np.sum((first.mean(axis=0) - second.mean(axis=0)) ** 2) + traces - 2 * roots.sum() / 7
    assert _fid(first, second) == pytest.approx(expected, rel=1e-7)
    assert _fid(first, first) == pytest.approx(0, abs=1e-5)


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance` will save all extracted features")
def test_kid_is_torchmetrics(features):
    """With subsets of everything, so that the two libraries' random numbers play no part."""
    from torchmetrics.image.kid import KernelInceptionDistance

    first, second = features[0], features[1][:300]
    metric = KernelInceptionDistance(feature=_Identity(), subsets=1, subset_size=300)
    expected = float(_published(metric, first, second)[0])
    assert abs(kid(first, second, subsets=1).mean / expected - 1) < BOUND
    assert abs(kid_interval(first, second, resamples=2).mean / expected - 1) < BOUND
    biased = polynomial_kernel(first, first).mean() + polynomial_kernel(second, second).mean()
    assert abs((biased - 2 * polynomial_kernel(first, second).mean()) / expected - 1) > 1e3 * BOUND


def test_kid_is_the_sum_over_pairs():
    """Of unequal counts, and by loops over scalars."""
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(5, 3)), rng.normal(size=(4, 3))

    def mean(first, second, skip):
        values = [
            (sum(p * q for p, q in zip(a, b, strict=True)) / 3 + 1) ** 3
            for i, a in enumerate(first.tolist())
            for j, b in enumerate(second.tolist())
            if not (skip and i == j)
        ]
        return sum(values) / len(values)

    expected = mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)
    assert unbiased_mmd(x, y) == pytest.approx(expected, rel=1e-12)
    narrow = x.astype(np.float32), y.astype(np.float32)
    assert unbiased_mmd(*narrow) == unbiased_mmd(*(each.astype(np.float64) for each in narrow))


def test_kid_of_many_rows_is_the_same_in_pieces(features, monkeypatch):
    whole = unbiased_mmd(*features)
    monkeypatch.setattr("entscale_jax.metrics.kernel._ROWS", 7)
    monkeypatch.setattr("entscale_jax.metrics.kernel._COLUMNS", 11)
    assert unbiased_mmd(*features) == pytest.approx(whole, rel=1e-11)


def test_kid_is_unbiased_where_sets_are_alike():
    rng = np.random.default_rng(4)
    values = [unbiased_mmd(*rng.normal(size=(2, 40, 8))) for _ in range(300)]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(300)
    biased = [value + 2 * (9 / 8) / 40 for value in values]  # the diagonal that an estimate with bias keeps, at least
    assert np.mean(biased) > 3 * np.std(values) / np.sqrt(300)


def test_small_sets_take_subsets_of_the_smaller(features):
    found = kid(features[0], features[1], subsets=3)
    assert (found.subsets, found.subset_size) == (3, 300)
    assert found == kid(features[0], features[1], subsets=3, subset_size=300)
    assert found.deviation > 0
    assert found.mean != kid(features[0], features[1], subsets=3, seed=1).mean


@pytest.mark.parametrize(("count", "low", "high"), [(150, 0.89, 0.99), (FEWEST, 0.81, 0.91), (4, 0.57, 0.77)])
def test_the_interval_holds_the_truth_as_often_as_it_says(count, low, high):
    """X of N(0, 1) and Y of N(shift, 1) in one dimension: E (xy + 1)^3 = sum_k C(3, k) E x^k E y^k."""
    shift = 0.8
    moments = np.array([1, shift, 1 + shift**2, shift**3 + 3 * shift]), np.array([1, 0, 1, 0])
    terms = np.array([1, 3, 3, 1])
    truth = terms @ (moments[0] ** 2 + moments[1] ** 2 - 2 * moments[0] * moments[1])
    rng, held, repetitions = np.random.default_rng(5), 0, 200
    for _ in range(repetitions):
        x, y = rng.normal(size=(count, 1)), rng.normal(shift, size=(count, 1))
        interval = kid_interval(x, y, resamples=200)
        held += interval.low <= truth <= interval.high
    assert low <= held / repetitions <= high


@pytest.mark.parametrize("count", [2, 3, 4])
def test_resamples_of_few_features_are_numbers(count):
    """Of two features half of all resamples are one of them twice, which has no pair."""
    rng = np.random.default_rng(8)
    first, second, reference = rng.normal(size=(3, count, 5))
    found = kid_interval(first, reference), kid_difference(first, second, reference)
    assert all(np.isfinite([each.low, each.high]).all() and each.low <= each.high for each in found)
    assert found[0].mean == pytest.approx(unbiased_mmd(first, reference))


def test_pairs_cancel_what_they_share():
    """Two methods that differ by little beside what a prompt decides: only as pairs is the difference seen."""
    rng = np.random.default_rng(6)
    prompts, reference = rng.normal(size=(120, 4)), rng.normal(size=(120, 4))
    first, second = prompts + 0.3 + 0.02 * rng.normal(size=(120, 4)), prompts + 0.2
    paired = kid_difference(first, second, reference, resamples=300)
    apart = [kid_interval(features, reference, resamples=300) for features in (first, second)]
    assert paired.mean == pytest.approx(apart[0].mean - apart[1].mean)
    assert not paired.holds_zero
    assert paired.low > 0
    assert apart[0].low < apart[1].high  # intervals of the two by themselves overlap
    unpaired = kid_difference(first, rng.permutation(second), reference, resamples=300)
    assert unpaired.high - unpaired.low > 2 * (paired.high - paired.low)


def test_mistakes_are_told(features):
    first, _ = features
    with pytest.raises(UserError, match="of a can't be compared with those of b"):
        fid(Moments.of(first, extractor="a"), Moments.of(first, extractor="b"))
    with pytest.raises(UserError, match="set of 1 pictures: give two or more"):
        fid(Moments.of(first), Moments.of(first[:1]))
    with pytest.raises(UserError, match="set of 1 pictures: give two or more"):
        kid(first, first[:1])
    with pytest.raises(UserError, match="width 24 can't be compared with those of width 23"):
        kid_interval(first, first[:, 1:])
    with pytest.raises(UserError, match="300 and 299 pictures are no pairs"):
        kid_difference(first, first[1:], first)
    with pytest.raises(UserError, match="are no numbers"):
        unbiased_mmd(first, np.full((3, 24), np.nan))
