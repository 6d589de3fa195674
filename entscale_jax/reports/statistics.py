"""Means with their uncertainty: a sweep draws few images a size, so no mean of the report stands alone."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from ..errors import UserError

RESAMPLES = 10_000
LEVEL = 0.95
_CHUNK = 2_000_000  # values drawn at once, so that thousands of images need no gigabytes


@dataclass(frozen=True)
class Interval:
    """A mean of `count` values and the bounds of its bootstrap interval."""

    mean: float
    low: float
    high: float
    count: int

    @property
    def holds_zero(self) -> bool:
        """Whether 0 is among the values that the interval does not rule out."""
        return self.low <= 0.0 <= self.high

    def scaled(self, factor: float) -> "Interval":
        """The same in another unit; `factor` is positive."""
        return Interval(self.mean * factor, self.low * factor, self.high * factor, self.count)


def bootstrap_mean(values: Float[np.ndarray, "count columns"], *, seed: int = 0) -> tuple[Interval, ...]:
    """The mean of each column with its percentile interval at 95%, the rows resampled with replacement.

    The columns share the resampled rows. The same values and seed give the same interval. For the difference of two
    methods give the differences of their pairs, a row a pair.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13. Raises UserError for no rows.
    """
    count = len(values)
    if count == 0:
        raise UserError("no values to take a mean of: give one or more")
    rng = np.random.default_rng(seed)
    means = np.concatenate([_resampled(values, size, rng) for size in _batches(count)])
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    columns = zip(values.mean(axis=0), low, high, strict=True)
    return tuple(Interval(float(mean), float(below), float(above), count) for mean, below, above in columns)


def _batches(count: int) -> list[int]:
    size = max(1, min(RESAMPLES, _CHUNK // count))
    return [min(size, RESAMPLES - start) for start in range(0, RESAMPLES, size)]


def _resampled(
    values: Float[np.ndarray, "count columns"], size: int, rng: np.random.Generator
) -> Float[np.ndarray, "size columns"]:
    rows = rng.integers(0, len(values), (size, len(values)))
    return values[rows].mean(axis=1)
