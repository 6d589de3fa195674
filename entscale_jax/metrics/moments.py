"""Mean and covariance of features that never lie in memory together: gathered batch by batch, merged, stopped, resumed.

What is kept of n features x_i of width d is n, their mean and `deviations`, the sum of (x_i - mean)(x_i - mean)^T, in
float64: 8 d^2 bytes whatever n is. Sums of deviations, unlike sums of squares, lose no digits where the mean is large.
"""

import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Shaped

from ..errors import UserError

_FIELDS = ("count", "mean", "deviations", "extractor", "batches")


@dataclass(frozen=True, eq=False)
class Moments:
    """Of some features."""

    count: int
    mean: Float[np.ndarray, "width"]
    deviations: Float[np.ndarray, "width width"]
    """The sum over features of the outer product of their differences from the mean."""
    extractor: str = ""
    """Names what made the features, resize included; moments of different ones are not compared."""
    batches: int = 0
    """How many batches `gather` has put into these moments."""

    @classmethod
    def empty(cls, width: int, *, extractor: str = "") -> "Moments":
        """Of no features."""
        return cls(0, np.zeros(width), np.zeros((width, width)), extractor)

    @classmethod
    def of(cls, features: Shaped[np.ndarray, "count width"], *, extractor: str = "") -> "Moments":
        """Of features that are all there, of any floating-point type.

        Raises UserError where a feature is no number.
        """
        wide = np.asarray(features, np.float64)
        if not np.isfinite(wide).all():
            bad = int(np.flatnonzero(~np.isfinite(wide).all(axis=1))[0])
            raise UserError(f"features of picture {bad} are no numbers (NaN or infinite): leave that picture out")
        if not len(wide):
            return cls.empty(wide.shape[1], extractor=extractor)
        mean = wide.mean(axis=0)
        away = wide - mean
        return cls(len(wide), mean, away.T @ away, extractor)

    @property
    def width(self) -> int:
        """Of a feature."""
        return len(self.mean)

    @property
    def covariance(self) -> Float[np.ndarray, "width width"]:
        """Unbiased. Raises UserError for fewer than two features."""
        if self.count < 2:
            raise UserError(f"a covariance of {self.count} features: give two pictures or more")
        return self.deviations / (self.count - 1)

    def merge(self, other: "Moments") -> "Moments":
        """Of the features of both.

        Source: Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances",
        1979. Raises UserError where the features are of different extractors or widths.
        """
        check_same_features(self, other)
        count = self.count + other.count
        if not count:
            return self
        step = other.mean - self.mean
        between = np.outer(step, step * (self.count * other.count / count))
        between += self.deviations
        between += other.deviations
        mean = self.mean + step * (other.count / count)
        return Moments(count, mean, between, self.extractor, self.batches + other.batches)

    def add(self, features: Shaped[np.ndarray, "count width"]) -> "Moments":
        """Of these and of `features`."""
        return self.merge(Moments.of(features, extractor=self.extractor))

    def save(self, file: str | Path) -> None:
        """Writes an npz file, which appears whole or not at all."""
        file = Path(file)
        part = file.with_name(f"{file.name}.{os.getpid()}.part")
        with part.open("wb") as stream:
            np.savez(stream, allow_pickle=False, **{name: np.asarray(getattr(self, name)) for name in _FIELDS})
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(file)

    @classmethod
    def load(cls, file: str | Path) -> "Moments":
        """What `save` wrote, bit by bit. Raises UserError for a file that holds no moments."""
        try:
            with Path(file).open("rb") as stream, np.load(stream, allow_pickle=False) as content:
                count, mean, deviations, extractor, batches = (content[name] for name in _FIELDS)
        except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile) as error:
            raise UserError(f"{file} holds no moments ({error or type(error).__name__}): make them again") from None
        if mean.dtype != np.float64 or mean.ndim != 1 or deviations.shape != (len(mean), len(mean)):
            raise UserError(f"{file} holds moments of shapes {mean.shape} and {deviations.shape}: make them again")
        return cls(int(count), mean, deviations, str(extractor), int(batches))


def gather(
    batch: Callable[[int], Shaped[np.ndarray, "count width"]],
    count: int,
    file: str | Path,
    *,
    extractor: str = "",
    every: int = 50,
) -> Moments:
    """Moments of `count` batches, kept in `file` after each `every` of them; a stopped run goes on after the last kept.

    Args:
        batch: index -> features. Called once for each, in order, for batches that `file` does not hold yet.
        count: of batches.
        file: npz; what it holds at the end is what is returned.
        extractor: names what makes the features.
        every: batches between two writings.

    The sums are taken in the order of the batches, so a run that was stopped gives the same bits as one that was not.
    Raises UserError where `file` holds moments of another extractor, or of more batches.
    """
    file = Path(file)
    found = Moments.load(file) if file.exists() else None
    if found is not None and found.extractor != extractor:
        raise UserError(f"{file} holds moments of {found.extractor!r}, asked for are {extractor!r}: give another file")
    if found is not None and found.batches > count:
        raise UserError(f"{file} holds {found.batches} batches, asked for are {count}: give another file")
    for index in range(found.batches if found else 0, count):
        features = batch(index)
        found = found or Moments.empty(features.shape[1], extractor=extractor)
        merged = found.add(features)
        found = Moments(merged.count, merged.mean, merged.deviations, extractor, index + 1)
        if found.batches % every == 0 or found.batches == count:
            found.save(file)
    if found is None:
        raise UserError("moments of no batches: give one or more")
    return found


def check_same_features(first: Moments, second: Moments) -> None:
    """Raises UserError where two moments are not of the same kind of features."""
    if first.extractor != second.extractor:
        raise UserError(
            f"features of {first.extractor or 'an unnamed extractor'} can't be compared with those of "
            f"{second.extractor or 'an unnamed extractor'}: extract both with the same one"
        )
    if first.width != second.width:
        raise UserError(f"features of width {first.width} can't be compared with features of width {second.width}")
