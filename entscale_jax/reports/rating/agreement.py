"""How far raters agree: Krippendorff's alpha, which takes any number of raters and images that not all of them rated.

Source: Krippendorff, "Computing Krippendorff's Alpha-Reliability", 2011, section D. 1 is full agreement, 0 what
chance gives, and below 0 raters disagree by system.
"""

from collections.abc import Sequence
from enum import StrEnum

import numpy as np
from jaxtyping import Float

from ...statistics import LEVEL, Interval

RESAMPLES = 2_000
_SHARE = (1 - LEVEL) / 2


class Metric(StrEnum):
    """What the distance of two ratings is."""

    ORDINAL = "ordinal"
    """By how many ratings lie between them: nothing is said of how far 3 is from 4 against 8 from 9."""
    INTERVAL = "interval"
    """Their difference."""


def krippendorff_alpha(
    ratings: Sequence[Sequence[float]], *, metric: Metric = Metric.ORDINAL, seed: int = 0
) -> Interval | None:
    """Alpha with its 95% percentile interval, images resampled.

    `ratings` holds, for each image, the scores of those who rated it; images of fewer than two count nowhere, and
    `count` of the answer is that of the others. None where alpha has no value: no image was rated twice, or all scores
    are the same. The interval is of those resamples that have a value.
    """
    rated = [scores for scores in ratings if len(scores) > 1]
    scale = np.unique([score for scores in rated for score in scores])
    if len(scale) < 2:
        return None
    images = np.stack([_coincidences(scores, scale) for scores in rated])
    (alpha,) = _alphas(images.sum(axis=0)[None], scale, metric)
    draws = np.random.default_rng(seed).multinomial(len(rated), [1 / len(rated)] * len(rated), size=RESAMPLES)
    resampled = _alphas(np.tensordot(draws.astype(float), images, axes=1), scale, metric)
    low, high = np.nanquantile(resampled, (_SHARE, 1 - _SHARE))
    return Interval(float(alpha), float(low), float(high), len(rated))


def _coincidences(scores: Sequence[float], scale: Float[np.ndarray, " values"]) -> Float[np.ndarray, "values values"]:
    """How often an image has each pair of scores by two different raters, over the number of its raters less one."""
    counts = (np.asarray(scores)[:, None] == scale).sum(axis=0).astype(float)
    return (np.outer(counts, counts) - np.diag(counts)) / (len(scores) - 1)


def _alphas(
    coincidences: Float[np.ndarray, "draws values values"], scale: Float[np.ndarray, " values"], metric: Metric
) -> Float[np.ndarray, " draws"]:
    """1 less observed over expected disagreement; NaN where none is expected."""
    counts = coincidences.sum(axis=2)
    total = counts.sum(axis=1)
    distance = _distances(counts, scale, metric)
    observed = (coincidences * distance).sum(axis=(1, 2))
    expected = (counts[:, :, None] * counts[:, None, :] * distance).sum(axis=(1, 2)) / (total - 1)
    return 1 - np.divide(observed, expected, out=np.full_like(expected, np.nan), where=expected > 0)


def _distances(
    counts: Float[np.ndarray, "draws values"], scale: Float[np.ndarray, " values"], metric: Metric
) -> Float[np.ndarray, "draws values values"]:
    """The squared distance of each two values."""
    # A value's place among all ratings is in the middle of those that are equal to it.
    place = scale[None] if metric is Metric.INTERVAL else counts.cumsum(axis=1) - counts / 2
    return (place[:, :, None] - place[:, None, :]) ** 2
