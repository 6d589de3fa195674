"""The numbers behind the figures of entropy, as rows of text for a terminal and for a document."""

import math

from ..entropies import ORIGINAL, SMALL_GAP, EntropyPoint, EntropyStudy, PixelSize
from ..statistics import interval, signed
from .study_figures import short_name

Table = tuple[tuple[str, ...], list[tuple[str, ...]]]
"""Header and rows."""
SHARE = (
    "Brought back is (E_N(original) - E_N) / (E_N(original) - E_T): 100% is all of it, above that the rule overshoots, "
    "below 0 it leads further away; '-' where the interval of E_N(original) - E_T includes 0, and for one layer where "
    f"that is below {SMALL_GAP:g} nats."
)


def lines_table(study: EntropyStudy) -> Table:
    """The line of each rule."""
    rows = []
    for method in study.methods:
        line, count = study.line(method), len(study.of(method))
        fit = (f"{line.slope:.3f}", f"{line.intercept:.3f}", f"{line.r_squared:.4f}") if line else ("-",) * 3
        rows.append((method, str(count), *fit))
    return ("rule", "sizes", "slope", "intercept", "R²"), rows


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
    """Each layer at these sizes: E_T, E_N under each rule, and what the rules bring back."""
    others = [method for method in study.methods if method != ORIGINAL]
    header = ["size", "layer", "T", "N", "E_T", f"E_N {ORIGINAL}"]
    for method in others:
        header += [f"E_N {method}", "brought back"]
    rows = []
    for size in sizes:
        points = {point.method: point for point in _at(study, size)}
        rows += [_layer_row(study, points, others, index) for index in range(len(study.layers))]
    return tuple(header), rows


def share_text(share: float | None) -> str:
    """`34%`, `-` where there is none."""
    return "-" if share is None else f"{100 * share:.0f}%"


def line_text(study: EntropyStudy, method: str) -> str:
    """What the line of a rule says, in a sentence."""
    line = study.line(method)
    if line is None:
        return f"Rule {method}: no line is fitted, as its sizes have one token count."
    return (
        f"Rule {method}: mean entropy grows by {line.slope:.3f} nats a nat of log N (R² {line.r_squared:.4f}, "
        f"{len(study.of(method))} sizes); Eq. 5 says 1."
    )


def shares_text(study: EntropyStudy, method: str) -> str | None:
    """How far a rule brings entropy back over all sizes that have a share, in a sentence; None where none has."""
    shares = [share for point in study.of(method) if (share := study.share(point)) is not None]
    if not shares:
        return None
    low, high = share_text(min(shares)), share_text(max(shares))
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


def _layer_row(study: EntropyStudy, points: dict[str, EntropyPoint], others: list[str], index: int) -> tuple[str, ...]:
    one, trained = next(iter(points.values())), study.trained
    cells = [one.label, short_name(study.layers[index]), str(study.train_tokens[index]), str(one.tokens[index])]
    cells.append("-" if trained is None else f"{trained.layers[index]:.3f}")
    cells.append(f"{points[ORIGINAL].layers[index]:.3f}" if ORIGINAL in points else "-")
    for method in others:
        point = points.get(method)
        missing = "undefined" if (one.size, method) in study.undefined else "-"
        cells.append(missing if point is None else f"{point.layers[index]:.3f}")
        cells.append(share_text(None if point is None else study.layer_share(point, index)))
    return tuple(cells)
