"""The report's figures as SVG text, in the page's own text colour, so that they can be read on light and dark pages."""

import io
import math
from collections.abc import Sequence
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..statistics import Interval
from .tables import EntropyTable, ObjectsTable

# Blue, orange, green, purple, ochre of Okabe and Ito's palette, lightened for dark pages; told apart by markers too.
COLOURS = ("#3b8fd4", "#d55e00", "#0a9e73", "#b86aa0", "#b8860b")
MARKERS = ("o", "s", "^", "D", "v")
INK = "#0c0d0e"  # stands for the page's text colour in the drawing
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "entscale",
    "text.parse_math": False,
}


def objects_figure(tables: Sequence[ObjectsTable], methods: Sequence[str]) -> Markup:
    """`draw_objects` as SVG."""
    with matplotlib.rc_context(STYLE):
        return embedded_svg(draw_objects(tables, methods))


def draw_objects(tables: Sequence[ObjectsTable], methods: Sequence[str]) -> Figure:
    """Exact, missing and extra with their intervals: a row a size, a colour a method."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.5, 1.5 + len(tables) * (0.2 + 0.14 * len(methods))), layout="constrained")
        panels = figure.subplots(1, 3, sharey=True)
        _objects_panel(panels[0], tables, methods, "exact", "images exactly as captioned (%)")
        _objects_panel(panels[1], tables, methods, "missing", "missing objects per image")
        _objects_panel(panels[2], tables, methods, "extra", "extra objects per image")
        panels[0].set_yticks(range(len(tables)), [table.size for table in tables])
        panels[0].set_ylabel("size (pixels)")
        panels[0].set_ylim(len(tables) - 0.5, -0.5)
        legend_above(figure, panels[0])
        return figure


def entropy_figure(table: EntropyTable, methods: Sequence[str]) -> Markup:
    """Mean entropy against tokens with intervals, a panel a level; dashed the most that it can be, dotted N = T."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(max(6.4, 3.2 * len(table.levels)), 3.4), layout="constrained")
        panels = figure.subplots(1, len(table.levels), squeeze=False)[0]
        for panel, level in zip(panels, table.levels, strict=True):
            _entropy_panel(panel, table, level, methods)
        panels[0].set_ylabel("mean entropy of self-attention (nats)")
        legend_above(figure, panels[0])
        return embedded_svg(figure)


def _objects_panel(panel: Axes, tables: Sequence[ObjectsTable], methods: Sequence[str], field: str, label: str) -> None:
    for index, method in enumerate(methods):
        offset = (index - (len(methods) - 1) / 2) * 0.7 / len(methods)
        found = [(row, table.of(method)) for row, table in enumerate(tables)]
        points = [(row + offset, getattr(counts, field)) for row, counts in found if counts is not None]
        if points:
            _whiskers(panel, points, index, method)
    panel.set_xlabel(label)
    panel.set_xlim(left=0)
    panel.grid(axis="x", alpha=0.25)
    panel.tick_params(axis="y", length=0)


def _whiskers(panel: Axes, points: Sequence[tuple[float, Interval]], index: int, label: str) -> None:
    panel.errorbar(
        [interval.mean for _, interval in points],
        [row for row, _ in points],
        xerr=[
            [interval.mean - interval.low for _, interval in points],
            [interval.high - interval.mean for _, interval in points],
        ],
        linestyle="none",
        label=label,
        marker=MARKERS[index % len(MARKERS)],
        markersize=4,
        color=COLOURS[index % len(COLOURS)],
        clip_on=False,
    )


def _entropy_panel(panel: Axes, table: EntropyTable, train_tokens: int, methods: Sequence[str]) -> None:
    lines = sorted(table.at(train_tokens), key=lambda line: line.tokens)
    tokens = [line.tokens for line in lines]
    panel.plot(tokens, [math.log(count) for count in tokens], "--", color=INK, alpha=0.5, label="uniform: log N")
    panel.axvline(train_tokens, linestyle=":", color=INK, alpha=0.5, label="N = T")
    for index, method in enumerate(methods):
        measured = [line for line in lines if method in line.entropy]
        panel.errorbar(
            [line.tokens for line in measured],
            [line.entropy[method] for line in measured],
            yerr=arms([(line.entropy[method], line.intervals.get(method)) for line in measured]),
            elinewidth=0.9,
            linestyle="none",
            label=method,
            marker=MARKERS[index % len(MARKERS)],
            markersize=5,
            fillstyle="none",
            color=COLOURS[index % len(COLOURS)],
        )
    panel.set_xscale("log")
    panel.set_xticks(sorted({*tokens}), [str(count) for count in sorted({*tokens})], rotation=45)
    panel.minorticks_off()
    panel.set_title(f"level with T = {train_tokens}")
    panel.set_xlabel("tokens N (log axis)")
    panel.grid(alpha=0.2)


def arms(values: Sequence[tuple[float, Interval | None]]) -> list[list[float]]:
    """How far intervals reach below and above their means; nowhere without one."""
    below = [max(0.0, mean - found.low) if found else 0.0 for mean, found in values]
    return [below, [max(0.0, found.high - mean) if found else 0.0 for mean, found in values]]


def legend_above(figure: Figure, panel: Axes) -> None:
    """One legend for all panels, that of `panel`."""
    handles, labels = panel.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(len(labels), 4))


def embedded_svg(figure: Figure) -> Markup:
    """The figure as an element of a page."""
    text = io.StringIO()
    figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    body = text.getvalue()
    # Only the element itself can stand within a page, without its declaration of XML.
    return Markup(body[body.index("<svg") :].replace(INK, "currentColor"))
