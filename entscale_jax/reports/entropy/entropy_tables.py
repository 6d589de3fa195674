"""The numbers behind the figures of entropy, as rows of text for a terminal and for a document."""

import math
from collections.abc import Sequence

from ...entropies import SMALL_GAP, EntropyPoint, EntropyStudy, PixelSize
from ...statistics import LEVEL, RESAMPLES, Interval, interval, number, percent, signed
from ..studies.study_figures import short_name

Table = tuple[tuple[str, ...], list[tuple[str, ...]]]
"""Header and rows."""
SHARE = (
    "Brought back is (E_N(original) - E_N) / (E_N(original) - E_T): 100% is all of it, above that the rule overshoots, "
    "below 0 it leads further away; '-' where the interval of E_N(original) - E_T includes 0, and for one layer where "
    f"that is below {SMALL_GAP:g} nats too."
)
INTERVALS = (
    f"In brackets: {100 * LEVEL:.0f}% bootstrap intervals (percentiles of {RESAMPLES:,} resamples of the images; of "
    "differences, shares and lines the same images at every size and rule)."
)


def lines_table(study: EntropyStudy) -> Table:
    """The line of each rule."""
    rows = [
        (method, str(len(study.of(method))), *_images(study, method), *_fit(study, method)) for method in study.methods
    ]
    return ("rule", "sizes", "images", "slope", "intercept", "R²"), rows


def _images(study: EntropyStudy, method: str) -> tuple[str]:
    """At each size; from the fewest to the most where they differ."""
    counts = sorted({point.mean.count for point in study.of(method)})
    return ("-".join(str(count) for count in dict.fromkeys((counts[0], counts[-1]))),)


def _fit(study: EntropyStudy, method: str) -> tuple[str, str, str]:
    line, found = study.line(method), study.line_intervals(method)
    if line is None:
        return "-", "-", "-"
    told = (
        [number(one, 3) for one in (line.slope, line.intercept)]
        if found is None
        else [interval(one, 3) for one in found]
    )
    return told[0], told[1], f"{line.r_squared:.4f}"


def sizes_table(study: EntropyStudy) -> Table:
    """Mean entropy of each size under each rule."""
    header = ("size", "N", "log N", "rule", "images", "mean entropy", "E_N - E_T", "brought back")
    rows = []
    for size in study.sizes:
        points = _at(study, size)
        rows += [_size_row(study, point) for point in points]
        rows += [
            (*_size_row(study, points[0])[:3], method, "-", "undefined", "-", "-")
            for method in sorted(method for where, method in study.undefined if where == size)
        ]
    return header, rows


def layers_table(study: EntropyStudy, sizes: list[PixelSize]) -> Table:
    """Each layer at these sizes under each rule: a row for the training size first, whose entropy is E_T."""
    header = ("size", "layer", "T", "N", "rule", "images", "mean entropy", "E_N - E_T", "brought back")
    trained = [] if study.trained is None or study.trained.size in sizes else [study.trained]
    groups = [trained, *(_at(study, size) for size in sizes)]
    rows = [row for points in groups for row in _layer_rows(study, points)]
    return header, rows


def share_text(share: Interval | None) -> str:
    """`34.0% (30.1 to 37.9)`, `-` where there is none."""
    return "-" if share is None else percent(share.scaled(100.0))


def line_text(study: EntropyStudy, method: str) -> str:
    """What the line of a rule says, in a sentence."""
    line = study.line(method)
    if line is None:
        return f"Rule {method}: no line is fitted, as its sizes have one token count."
    slope, _, fit = _fit(study, method)
    return (
        f"Rule {method}: mean entropy grows by {slope} nats a nat of log N (R² {fit}, "
        f"{len(study.of(method))} sizes); Eq. 5 says 1."
    )


def shares_text(study: EntropyStudy, method: str) -> str | None:
    """How far a rule brings entropy back over all sizes that have a share, in a sentence; None where none has."""
    shares = [share for point in study.of(method) if (share := study.share(point)) is not None]
    if not shares:
        return None
    low, high = (f"{100 * bound(share.mean for share in shares):.0f}%" for bound in (min, max))
    return f"Rule {method} brings back {low if low == high else f'{low} to {high}'} of E_N - E_T."


def _at(study: EntropyStudy, size: PixelSize) -> list[EntropyPoint]:
    found = (study.at(size, method) for method in study.methods)
    return [point for point in found if point is not None]


def _size_row(study: EntropyStudy, point: EntropyPoint) -> tuple[str, ...]:
    gap = study.gap(point)
    return (
        point.label,
        str(point.finest),
        f"{math.log(point.finest):.2f}",
        point.method,
        str(point.mean.count),
        interval(point.mean, 3),
        "E_T" if point is study.trained else "-" if gap is None else signed(gap, 3),
        share_text(study.share(point)),
    )


def _layer_rows(study: EntropyStudy, points: Sequence[EntropyPoint]) -> list[tuple[str, ...]]:
    """Layer by layer, of the points of one size."""
    columns = [_layer_column(study, point) for point in points]
    return [row for rows in zip(*columns, strict=True) for row in rows]


def _layer_column(study: EntropyStudy, point: EntropyPoint) -> list[tuple[str, ...]]:
    gaps, shares = study.layer_gaps(point), study.layer_shares(point)
    other = "E_T" if point is study.trained else "-"
    return [
        (
            point.label,
            short_name(study.layers[index]),
            str(study.train_tokens[index]),
            str(point.tokens[index]),
            point.method,
            str(mean.count),
            interval(mean, 3),
            other if gaps is None else signed(gaps[index], 3),
            share_text(shares[index]),
        )
        for index, mean in enumerate(point.layer_intervals)
    ]
