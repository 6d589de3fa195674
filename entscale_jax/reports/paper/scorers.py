"""What scored the cosines of image and caption of a run: figures of several scorers do not compare."""

from collections.abc import Callable
from dataclasses import replace
from itertools import product

from ...metrics.figure import Figure
from ..records import Pair, Run, Sample
from .features import Group

COSINES = ("clip", "scenes_clip")
UNKNOWN = ""
"""The scorer of rows that don't tell it, and of values that no network gave."""
Values = dict[Pair, float]


def values_by_scorer(run: Run, name: str, value: Callable[[Sample], float | None]) -> dict[str, dict[Group, Values]]:
    """A column's scorer -> size and method -> the values of its pictures."""
    found: dict[str, dict[Group, Values]] = {}
    for size, method in product(run.sizes, run.methods):
        for pair, sample in run.of(size, method).items():
            if (one := value(sample)) is not None:
                groups = found.setdefault(sample.scorers.get(name, UNKNOWN), {})
                groups.setdefault((size, method), {})[pair] = one
    return found


def scored_by(figure: Figure, scorer: str) -> Figure:
    """The figure with what is known of its scorer; as it is where no network gave its values."""
    if figure.name not in COSINES:
        return figure
    extractor, _, rest = scorer.partition(", resize ")
    resize, _, crop = rest.partition(", crop ")
    return replace(figure, extractor=extractor, resize=resize, crop=crop if crop or scorer == UNKNOWN else "none")


def scorer_notes(name: str, scorer: str) -> list[str]:
    """What is told of the scorer below the column's table."""
    if name not in COSINES:
        return []
    if scorer == UNKNOWN:
        return ["extractor, resize and crop were not recorded when these images were drawn"]
    return [f"extractor {scorer}" if ", crop " in scorer else f"extractor {scorer}, no crop"]
