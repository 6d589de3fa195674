"""A measured number with all that it depends on: two figures compare where everything but the pictures is the same."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Num

from ..errors import UserError
from ..statistics import Interval, bootstrap_mean


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure of a set of pictures."""

    name: str
    """As its column is called: `fid`, `scenes_kid`, `clip`."""
    value: float
    count: int
    """Pictures, or crops of them."""
    reference: str = ""
    """What they were compared with, if with anything: a name and where possible a hash."""
    reference_count: int = 0
    pictures: int = 0
    """What `count` crops are of; 0 where pictures are counted."""
    reference_pictures: int = 0
    resize: str = "none"
    """How pictures were brought to the extractor's size."""
    crop: str = "none"
    extractor: str = ""
    """Hash of the weights that looked at them."""
    interval: Interval | None = None
    """At 95%, where the estimate is unbiased: a Frechet distance has none."""
    remark: str = ""
    """What a reader should know before using it."""

    def check_comparable(self, other: "Figure") -> None:
        """Raises UserError naming what else than the pictures differs."""
        names = ("name", "count", "reference", "reference_count", "resize", "crop", "extractor")
        differing = [name for name in names if getattr(self, name) != getattr(other, name)]
        if differing:
            told = "; ".join(f"{name} is {getattr(self, name)!r} and {getattr(other, name)!r}" for name in differing)
            raise UserError(f"figures {self.name} and {other.name} do not compare: {told}")


def bootstrap_interval(values: Num[np.ndarray, "_count"], *, seed: int = 0) -> Interval:
    """The mean of a value a picture (a CLIP score, an object count) with its interval at 95%."""
    (found,) = bootstrap_mean(np.asarray(values, np.float64)[:, None], seed=seed)
    return found


def paired_interval(first: Num[np.ndarray, "_count"], second: Num[np.ndarray, "count"], *, seed: int = 0) -> Interval:
    """The mean of `first` less `second`, of which row i is a pair (the same prompt and seed), with its interval.

    Raises UserError for unequal counts.
    """
    if len(first) != len(second):
        raise UserError(f"{len(first)} and {len(second)} values are no pairs: give the same prompts and seeds")
    return bootstrap_interval(np.asarray(first, np.float64) - np.asarray(second, np.float64), seed=seed)
