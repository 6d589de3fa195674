"""The paper's Table 3 from the answers of raters: means by size and method, differences of pairs, and agreement."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...errors import UserError
from ...statistics import Interval, bootstrap_mean
from ..records import Run, Sample, Size
from .agreement import Metric, krippendorff_alpha
from .answers import FOLDER, read_answers, scores_of

Scores = Mapping[str, Mapping[str, int]]
"""Rater -> cell -> score, 1 to 10."""


@dataclass(frozen=True, kw_only=True)
class RatingMean:
    """How the pictures of a size and method were rated."""

    size: str
    method: str
    mean: Interval
    """Over pictures, of each the mean of its raters; the interval is over pictures, 95%, bootstrap."""
    answers: int


@dataclass(frozen=True, kw_only=True)
class RatingDifference:
    """How much better the pictures of a method were rated than those of the first method, of the same pairs."""

    size: str
    method: str
    baseline: str
    difference: Interval
    """Over pairs, of each the mean of the raters who rated both pictures; the interval is over pairs."""


@dataclass(frozen=True, kw_only=True)
class RatingAgreement:
    """Krippendorff's alpha of the pictures of a size, or of all."""

    size: str | None
    """None for all sizes together."""
    metric: Metric
    alpha: Interval | None
    """None where no two raters rated the same picture, or all scores are the same."""
    raters: int


@dataclass(frozen=True, kw_only=True)
class RatingTables:
    """All that the answers say. Sizes and methods without an answer have no row."""

    means: tuple[RatingMean, ...]
    differences: tuple[RatingDifference, ...]
    agreement: tuple[RatingAgreement, ...]


def read_ratings(folder: Path) -> tuple[dict[str, dict[str, int]], list[str]]:
    """The scores of a run folder's raters, and a line for each line of their files that is no answer.

    Changes nothing, so it may be called while raters rate. Raises UserError where nobody has rated yet.
    """
    scores, notes = {}, []
    for file in sorted((folder / FOLDER).glob("*.jsonl")):
        answers, said = read_answers(file)
        scores[file.stem] = scores_of(answers)
        notes += said
    if not any(scores.values()):
        said = f" ({'; '.join(notes)})" if notes else ""
        raise UserError(f"run {folder} has no ratings yet{said}: have its pictures rated with `entscale rate {folder}`")
    return scores, notes


def rating_tables(run: Run, scores: Scores, *, metric: Metric = Metric.ORDINAL) -> RatingTables:
    """Table 3 of the paper, with intervals, differences and agreement. Scores of cells that the run lacks are left out.

    A rater who is milder than others and rated only some pictures moves means, not differences: these are within
    raters. Intervals tell how other captions would have done by the same raters, not how other raters would.
    """
    labels = [(size, method) for size in run.sizes for method in run.methods]
    means = (_mean(run, size, method, scores) for size, method in labels)
    differences = (_difference(run, size, method, scores) for size, method in labels if method != run.methods[0])
    agreements = (_agreement(run, size, scores, metric) for size in (None, *run.sizes))
    return RatingTables(
        means=tuple(row for row in means if row is not None),
        differences=tuple(row for row in differences if row is not None),
        agreement=tuple(row for row in agreements if row.raters),
    )


def _mean(run: Run, size: Size, method: str, scores: Scores) -> RatingMean | None:
    rated = [found for sample in run.of(size, method).values() if (found := _scores(sample, scores))]
    if not rated:
        return None
    (mean,) = bootstrap_mean(np.array([[np.mean([*found.values()])] for found in rated]))
    return RatingMean(size=run.label(size), method=method, mean=mean, answers=sum(map(len, rated)))


def _difference(run: Run, size: Size, method: str, scores: Scores) -> RatingDifference | None:
    baseline = run.methods[0]
    first, other = run.of(size, baseline), run.of(size, method)
    found = [_within_raters(first[pair], other[pair], scores) for pair in first if pair in other]
    values = [[value] for value in found if value is not None]
    if not values:
        return None
    (difference,) = bootstrap_mean(np.array(values))
    return RatingDifference(size=run.label(size), method=method, baseline=baseline, difference=difference)


def _within_raters(first: Sample, other: Sample, scores: Scores) -> float | None:
    before, after = _scores(first, scores), _scores(other, scores)
    both = [after[rater] - before[rater] for rater in before if rater in after]
    return float(np.mean(both)) if both else None


def _agreement(run: Run, size: Size | None, scores: Scores, metric: Metric) -> RatingAgreement:
    pictures = [sample for sample in run.samples if size is None or sample.size == size]
    rated = [_scores(sample, scores) for sample in pictures]
    return RatingAgreement(
        size=None if size is None else run.label(size),
        metric=metric,
        alpha=krippendorff_alpha([[*found.values()] for found in rated], metric=metric),
        raters=len({rater for found in rated for rater in found}),
    )


def _scores(sample: Sample, scores: Scores) -> dict[str, int]:
    """Rater -> score of one picture."""
    return {rater: given[sample.cell] for rater, given in scores.items() if sample.cell in given}
