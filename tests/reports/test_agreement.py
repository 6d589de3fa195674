"""Krippendorff's alpha against the values that its author and others published, and where it has none."""

import math

import pytest

from entscale_jax.reports.rating.agreement import Metric, krippendorff_alpha

# Krippendorff, "Computing Krippendorff's Alpha-Reliability", 2011, section D: four observers, twelve units.
FOUR_OBSERVERS = ("123321412...", "1233224125.3", ".3332342251.", "12332441251.")
# The example of three coders and fifteen units in Wikipedia's article on alpha.
THREE_CODERS = (".....34121133.3", "1.213343.......", "..21344.21133.4")


def units(rows):
    assert len({len(row) for row in rows}) == 1
    return [[int(score) for score in column if score != "."] for column in zip(*rows, strict=True)]


@pytest.mark.parametrize(
    ("rows", "metric", "published"),
    [
        (FOUR_OBSERVERS, Metric.ORDINAL, 0.815),
        (FOUR_OBSERVERS, Metric.INTERVAL, 0.849),
        (THREE_CODERS, Metric.INTERVAL, 0.811),
    ],
)
def test_published_examples(rows, metric, published):
    alpha = krippendorff_alpha(units(rows), metric=metric)
    assert alpha.mean == pytest.approx(published, abs=5e-4)
    assert alpha.low < alpha.mean < alpha.high <= 1


def test_the_metrics_differ_where_ratings_lie_unevenly():
    # Two pictures, two raters each: interval distances are 0, 9 and 10, ordinal ones are by what lies between.
    ratings = [[1, 1], [1, 10], [10, 10], [9, 10]]
    values = {metric: krippendorff_alpha(ratings, metric=metric).mean for metric in Metric}
    # By hand for interval: n = 8 with 1 three times, 9 once, 10 four times; observed 2 (81 + 1), expected
    # 2 (3 1 64 + 3 4 81 + 1 4 1) / 7.
    assert values[Metric.INTERVAL] == pytest.approx(1 - 164 / (2 * (192 + 972 + 4) / 7))
    # Ordinal: distances of 1 to 9 is 3/2 + 1/2 = 2, 1 to 10 is 3/2 + 1 + 2 = 4.5, 9 to 10 is 1/2 + 2 = 2.5.
    observed, expected = 2 * (4.5**2 + 2.5**2), 2 * (3 * 2**2 + 12 * 4.5**2 + 4 * 2.5**2) / 7
    assert values[Metric.ORDINAL] == pytest.approx(1 - observed / expected)


def test_full_agreement_is_one_and_chance_is_none():
    same = krippendorff_alpha([[1, 1], [5, 5], [10, 10, 10]])
    assert (same.mean, same.low, same.high) == (1, 1, 1)
    crossed = krippendorff_alpha([[1, 10], [10, 1]] * 50)
    assert crossed.mean < -0.9


def test_pictures_of_one_rater_count_nowhere():
    ratings = units(FOUR_OBSERVERS)
    assert krippendorff_alpha([*ratings, [7], []]) == krippendorff_alpha(ratings)
    assert krippendorff_alpha(ratings).count == 11


@pytest.mark.parametrize("ratings", [[], [[3]], [[3], [4]], [[5, 5], [5, 5]]])
def test_alpha_without_a_value(ratings):
    assert krippendorff_alpha(ratings) is None


def test_the_interval_narrows_with_pictures():
    few = krippendorff_alpha(units(FOUR_OBSERVERS))
    many = krippendorff_alpha(units(FOUR_OBSERVERS) * 20)
    assert many.high - many.low < (few.high - few.low) / 2
    assert not math.isnan(few.low)
