"""The paper's figures of entropy: 5, its mean against log N with the line fitted, and 6, layer by layer."""

import math
from collections.abc import Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ...entropies import ORIGINAL, EntropyPoint, EntropyStudy, PixelSize, size_text, squareness
from ..figures import COLOURS, INK, MARKERS, STYLE, arms, legend_above
from ..studies.study_figures import short_name

_APART = 1.12
"""Token counts nearer than this factor share a tick."""


def draw_against_tokens(study: EntropyStudy) -> Figure:
    """Figure 5: mean entropy over layers against log N of the finest level, a point a size and rule.

    With the least-squares line of each rule, and Eq. 5's slope of 1 through E_T. Open markers are of another aspect
    ratio than the training size.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 4.8), layout="constrained")
        panel = figure.subplots()
        for index, method in enumerate(study.methods):
            _points(panel, study, method, index)
            _fitted(panel, study, method, index)
        _reference(panel, study)
        _token_axis(panel, [point.finest for point in study.points])
        panel.set_ylabel("mean entropy of self-attention (nats)")
        figure.legend(*panel.get_legend_handles_labels(), loc="outside upper center", ncols=2)
        return figure


def draw_layers(study: EntropyStudy) -> Figure | None:
    """Figure 6: mean entropy of each layer in the order of the network, a panel a size, a series a rule, E_T dashed.

    With intervals over images. None where no size has other token counts than the
    training size.
    """
    sizes = study.panels()
    if not sizes:
        return None
    with matplotlib.rc_context(STYLE):
        wide = max(2.6, 0.42 * len(study.layers) + 0.6)
        figure = Figure(figsize=(min(wide * len(sizes) + 0.8, 16), 4.4), layout="constrained")
        panels = figure.subplots(1, len(sizes), sharey=True, squeeze=False)[0]
        for panel, size in zip(panels, sizes, strict=True):
            _layers_panel(panel, study, size)
        panels[0].set_ylabel("mean entropy (nats)")
        legend_above(figure, panels[0])
        return figure


def _points(panel: Axes, study: EntropyStudy, method: str, index: int) -> None:
    for square in (True, False):
        points = [point for point in study.of(method) if _has_train_aspect(study, point) == square]
        means = [point.mean for point in points]
        panel.errorbar(
            [math.log(point.finest) for point in points],
            [mean.mean for mean in means],
            yerr=[[mean.mean - mean.low for mean in means], [mean.high - mean.mean for mean in means]],
            linestyle="none",
            marker=MARKERS[index % len(MARKERS)],
            markersize=6,
            fillstyle="full" if square else "none",
            color=COLOURS[index % len(COLOURS)],
            elinewidth=0.8,
            zorder=3,
        )


def _has_train_aspect(study: EntropyStudy, point: EntropyPoint) -> bool:
    if study.train_size is None:
        return squareness(point.size) == 0
    return point.size[0] * study.train_size[1] == point.size[1] * study.train_size[0]


def _fitted(panel: Axes, study: EntropyStudy, method: str, index: int) -> None:
    """The line, which stands in the legend for its points too."""
    line, points = study.line(method), study.of(method)
    ends = [math.log(points[0].finest), math.log(points[-1].finest)]
    panel.plot(
        ends if line else [],
        [line.at(math.exp(end)) for end in ends] if line else [],
        color=COLOURS[index % len(COLOURS)],
        linewidth=1.6 if method == ORIGINAL else 0.9,
        marker=MARKERS[index % len(MARKERS)],
        markevery=[],
        label=f"{method}: slope {line.slope:.2f}, R² {line.r_squared:.3f}" if line else method,
    )


def _reference(panel: Axes, study: EntropyStudy) -> None:
    """Eq. 5's slope, over the range of the points, and where N = T."""
    points = study.points
    logs = sorted(math.log(point.finest) for point in points)
    trained, line = study.trained, study.line(study.methods[0])
    if trained is not None:
        log, mean = math.log(trained.finest), trained.mean.mean
    else:
        log = sum(logs) / len(logs)
        mean = line.at(math.exp(log)) if line else points[0].mean.mean
    values = [mean + end - log for end in (logs[0], logs[-1])]
    panel.plot([logs[0], logs[-1]], values, "--", color=INK, alpha=0.6, linewidth=1, label="Eq. 5: slope 1")
    train = math.log(max(study.train_tokens))
    panel.axvline(train, linestyle=":", color=INK, alpha=0.6, linewidth=1, label="N = T")


def _token_axis(panel: Axes, tokens: Sequence[int]) -> None:
    """Ticks at the token counts, on an axis of natural logarithms, so that slopes are per nat."""
    ticks: list[int] = []
    for count in sorted(set(tokens)):
        if not ticks or count > _APART * ticks[-1]:
            ticks.append(count)
    panel.set_xticks([math.log(count) for count in ticks], [str(count) for count in ticks], rotation=45)
    panel.set_xlabel("tokens N of the finest level (log axis)")
    panel.grid(alpha=0.2)


def _layers_panel(panel: Axes, study: EntropyStudy, size: PixelSize) -> None:
    places = range(1, len(study.layers) + 1)
    if study.trained is not None:
        label = f"E_T: {ORIGINAL} at {size_text(study.trained.size)}"
        panel.plot(places, study.trained.layers, "--_", color=INK, alpha=0.8, linewidth=1, markersize=12, label=label)
    for index, method in enumerate(study.methods):
        point = study.at(size, method)
        layers = point.layers if point else ()
        intervals = point.layer_intervals if point else ()
        panel.errorbar(
            places if point else [],
            layers,
            yerr=arms([*zip(layers, intervals, strict=True)]),
            elinewidth=0.8,
            marker=MARKERS[index % len(MARKERS)],
            markersize=5,
            linewidth=1.2,
            color=COLOURS[index % len(COLOURS)],
            label=method,
        )
    panel.set_title(size_text(size))
    panel.set_xticks(places, [short_name(layer) for layer in study.layers], rotation=90, fontsize=8)
    panel.set_xlabel("self-attention layer")
    panel.grid(alpha=0.2)
