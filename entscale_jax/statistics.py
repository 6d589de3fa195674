"""Means with their uncertainty: a measurement has few pictures at each size, so no mean stands alone."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from .errors import UserError

RESAMPLES = 10_000
LEVEL = 0.95
_CHUNK = 2_000_000  # values drawn at once, so that thousands of images need no gigabytes


@dataclass(frozen=True)
class Interval:
    """A mean of `count` values and the bounds of its bootstrap interval."""

    mean: float
    low: float
    high: float
    """Bounds at the level `LEVEL`."""
    count: int
    """Values, of pictures as a rule."""

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


def bootstrap(
    values: Float[np.ndarray, "count columns"],
    of: Callable[[Float[np.ndarray, "... columns"]], Float[np.ndarray, "... results"]],
    *,
    seed: int = 0,
) -> tuple[Interval, ...]:
    """What `of` makes of the columns' means, such as a ratio or a slope, with intervals as `bootstrap_mean` has them.

    The columns share the resampled rows, those of `bootstrap_mean`. In each interval `mean` is what `of` makes of the
    means themselves. Raises UserError for no rows.
    """
    count = len(values)
    if count == 0:
        raise UserError("no values to resample: give one or more")
    rng = np.random.default_rng(seed)
    found = np.concatenate([of(_shares(count, size, rng) @ values) for size in _batches(count)])
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    columns = zip(of(values.mean(axis=0)), low, high, strict=True)
    return tuple(Interval(float(mean), float(below), float(above), count) for mean, below, above in columns)


def _shares(count: int, size: int, rng: np.random.Generator) -> Float[np.ndarray, "size count"]:
    """How much of each resampled mean is each row's."""
    rows = rng.integers(0, count, (size, count)) + count * np.arange(size)[:, None]
    return np.bincount(rows.ravel(), minlength=size * count).reshape(size, count) / count


def _batches(count: int) -> list[int]:
    size = max(1, min(RESAMPLES, _CHUNK // count))
    return [min(size, RESAMPLES - start) for start in range(0, RESAMPLES, size)]


def _resampled(
    values: Float[np.ndarray, "count columns"], size: int, rng: np.random.Generator
) -> Float[np.ndarray, "size columns"]:
    rows = rng.integers(0, len(values), (size, len(values)))
    return values[rows].mean(axis=1)


def interval(value: Interval, digits: int) -> str:
    """A mean with its interval: `0.25 (−0.10 to 0.40)`."""
    mean, low, high = (number(one, digits) for one in (value.mean, value.low, value.high))
    return f"{mean} ({low} to {high})"


def percent(value: Interval) -> str:
    """A share in per cent with its interval: `25.0% (10.0 to 40.0)`."""
    return f"{value.mean:.1f}% ({value.low:.1f} to {value.high:.1f})"


def signed(value: Interval, digits: int) -> str:
    """A difference with its interval, every number with its sign but those that round to zero."""
    mean, low, high = (signed_number(one, digits) for one in (value.mean, value.low, value.high))
    return f"{mean} ({low} to {high})"


def number(value: float, digits: int) -> str:
    """A number with a minus where it is negative, but not where it rounds to zero."""
    return signed_number(value, digits).removeprefix("+")


def signed_number(value: float, digits: int) -> str:
    """A number with its sign, but not where it rounds to zero."""
    text = f"{abs(value):.{digits}f}"
    sign = "+" if value > 0 else "−" if value < 0 else ""
    return text if float(text) == 0 else f"{sign}{text}"
