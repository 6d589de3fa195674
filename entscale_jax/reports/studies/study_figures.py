"""The pictures of a study as PNG files: its counts, its curves over multipliers, its entropies, and contact sheets."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ...errors import UserError
from ...scales import ScaleRule
from ..figures import COLOURS, INK, MARKERS, STYLE, draw_objects
from ..gallery import verdict
from ..pixels import folded, pixels
from ..records import Pair, Run
from ..tables import ObjectCounts, ObjectsTable
from .study import ENTROPY, ORIGINAL, RULES, TRUTH, SizeStudy, Study

SHEET_CAPTIONS = 12
"""On a contact sheet: the study's first ones."""
_SIDE = 1.15  # inches of the longer side of a picture on a sheet
_NOTE = 0.28  # inches below it, for two lines
_FIELDS = (("exact", "exact (%)"), ("missing", "missing per image"), ("extra", "extra per image"))


def make_figures(study: Study) -> dict[str, Figure]:
    """The study's pictures by name: `rules`, `multipliers`, `scale` and `entropy` as far as drawn, and one a size."""
    figures = {"rules": _rules_figure(study)}
    if any(found.curves for found in study.sizes):
        figures |= {"multipliers": _curves_figure(study), "scale": _scale_sheet(study)}
    if study.run.entropy:
        figures["entropy"] = _entropy_figure(study)
    return figures | {str(found.size): _contact_sheet(study.run, found) for found in study.sizes}


def save_figure(figure: Figure, file: Path) -> None:
    """Writes a PNG, the same bytes for the same figure. Raises UserError where it can't be written."""
    try:
        figure.savefig(file, dpi=110, format="png", facecolor="white", metadata={"Software": None})
    except OSError as error:
        raise UserError(f"{file} can't be written: {error.strerror}") from error


def short_name(layer: str) -> str:
    """`down_blocks/0/attentions/1/transformer_blocks/0/attn1` -> `down 0.1.0`."""
    place, *numbers = [part for part in layer.split("/") if part.isdigit() or part.endswith(("_blocks", "_block"))]
    return f"{place.split('_')[0]} {'.'.join(part for part in numbers if part.isdigit())}"


def _rules_figure(study: Study) -> Figure:
    tables = [
        ObjectsTable(
            size=str(found.size),
            is_control=found.levels.is_control,
            counts=tuple(found.rules.values()),
            baseline=ORIGINAL,
            differences=(),
        )
        for found in study.sizes
    ]
    return draw_objects(tables, [rule for rule in (*RULES, TRUTH) if any(rule in found.rules for found in study.sizes)])


def _curves_figure(study: Study) -> Figure:
    sizes = [found for found in study.sizes if found.curves]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(1.2 + 1.9 * len(sizes), 6.2), layout="constrained")
        panels = figure.subplots(3, len(sizes), squeeze=False, sharex=True, sharey="row")
        for found, column in zip(sizes, panels.T, strict=True):
            for (field, label), panel in zip(_FIELDS, column, strict=True):
                _curves_panel(panel, found, field)
                if found is sizes[0]:
                    panel.set_ylabel(label)
            column[0].set_title(str(found.size))
            column[-1].set_xlabel("multiplier (log axis)")
        for row in panels:  # once all is drawn, as the panels of a row share their axis
            row[0].set_ylim(bottom=0)
        handles, labels = panels[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=4)
        return figure


def _curves_panel(panel: Axes, found: SizeStudy, field: str) -> None:
    for index, (scope, curve) in enumerate(found.curves.items()):
        colour = COLOURS[index % len(COLOURS)]
        means, errors = _bars([*curve.points.values()], field)
        panel.errorbar(
            [*curve.points],
            means,
            yerr=errors,
            color=colour,
            marker=MARKERS[index % len(MARKERS)],
            markersize=3,
            linewidth=1,
            elinewidth=0.7,
            label=f"fixed, {scope}",
        )
        if curve.entropy is not None and index == 0:
            (value,), error = _bars([curve.entropy], field)
            panel.errorbar(
                [curve.rule], [value], yerr=error, marker="*", markersize=8, color=INK, linestyle="none", label=ENTROPY
            )
    curve = next(iter(found.curves.values()))
    panel.axvline(curve.rule, linestyle=":", color=INK, alpha=0.6, label="the rule's multiplier")
    if TRUTH in found.rules:
        truth = getattr(found.rules[TRUTH], field).mean
        panel.axhline(truth, linestyle="--", color=INK, alpha=0.5, label=TRUTH)
    panel.set_xscale("log", base=2)
    panel.set_xticks([0.5, 1, 2], ["0.5", "1", "2"])
    panel.minorticks_off()
    panel.grid(alpha=0.2)


def _bars(counts: Sequence[ObjectCounts], field: str) -> tuple[list[float], list[list[float]]]:
    found = [getattr(one, field) for one in counts]
    below, above = [one.mean - one.low for one in found], [one.high - one.mean for one in found]
    return [one.mean for one in found], [below, above]


def _entropy_figure(study: Study) -> Figure:
    found = study.run.entropy
    layers = list(dict.fromkeys(one.layer for one in found))
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(layers)))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 4.2), layout="constrained")
        panels = figure.subplots(1, 2)
        for layer, colour in zip(layers, colours, strict=True):
            for rule, style in ((ORIGINAL, "-o"), (ENTROPY, "--s")):
                points = sorted(
                    (one.tokens, one.entropy, one.logit_gap)
                    for one in found
                    if (one.layer, one.method) == (layer, rule)
                )
                label = short_name(layer) if rule == ORIGINAL else None
                for panel, column in zip(panels, (1, 2), strict=True):
                    shown = [point for point in points if point[column] is not None]
                    panel.plot(
                        [point[0] for point in shown],
                        [point[column] for point in shown],
                        style,
                        color=colour,
                        markersize=3,
                        linewidth=1,
                        label=label,
                    )
        tokens = sorted({one.tokens for one in found})
        for panel, label in zip(panels, ("mean entropy (nats)", "mean logit gap (nats)"), strict=True):
            panel.plot(tokens, [math.log(count) for count in tokens], ":", color=INK, label="log N")
            panel.set_xscale("log")
            ticks = [now for last, now in zip([0, *tokens], tokens, strict=False) if now > 1.2 * last]
            panel.set_xticks(ticks, [str(count) for count in ticks], rotation=45)
            panel.minorticks_off()
            panel.set_xlabel("tokens N (log axis); solid: original, dashed: entropy")
            panel.set_ylabel(label)
            panel.grid(alpha=0.2)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
        return figure


@dataclass(frozen=True)
class _Card:
    """A caption over the pictures that are compared, each with a note below it."""

    title: str
    pictures: Sequence[tuple[np.ndarray | None, str]]


def _contact_sheet(run: Run, found: SizeStudy) -> Figure:
    rules = [rule for rule in RULES if rule in found.rules]
    pairs = [pair for pair in run.pairs if any(pair in run.of(found.size, rule) for rule in rules)][:SHEET_CAPTIONS]
    cards = [_Card(pair[0], [_picture(run, found, rule, pair) for rule in rules]) for pair in pairs]
    return _draw_cards(cards, columns=4)


def _scale_sheet(study: Study) -> Figure:
    """One caption, the study's first of the most objects, under every multiplier at all levels: a row a size."""
    scalings = {
        scaling.multiplier: method
        for method, scaling in study.run.scalings.items()
        if scaling.rule is ScaleRule.FIXED and not isinstance(scaling.multiplier, tuple)
    }
    methods = {1.0: ORIGINAL, **scalings}
    drawn = {pair for found in study.sizes for method in scalings.values() for pair in study.run.of(found.size, method)}
    shown = [pair for pair in study.run.pairs if pair in drawn][:4]
    cards = []
    for found in study.sizes:
        if shown and found.curves:
            pictures = [
                (image, f"{value:g}: {note}")
                for value in sorted(methods)
                for image, note in [_picture(study.run, found, methods[value], shown[-1], named=False)]
            ]
            cards.append(_Card(f"{found.size}: {shown[-1][0]}", pictures))
    return _draw_cards(cards, columns=1)


def _picture(
    run: Run, found: SizeStudy, method: str, pair: Pair, *, named: bool = True
) -> tuple[np.ndarray | None, str]:
    sample = run.of(found.size, method).get(pair)
    if sample is None or sample.image is None:
        return None, "not drawn"
    return pixels(run, sample), f"{method}\n{verdict(sample)}" if named else verdict(sample)


def _draw_cards(cards: Sequence[_Card], columns: int) -> Figure:
    """Cards side by side. All pictures of a card have one size; the rows are as high as they need."""
    many = max((len(card.pictures) for card in cards), default=1)
    wide, rows = many * (_SIDE + 0.08) + 0.15, [cards[i : i + columns] for i in range(0, len(cards), columns)]
    heights = [max(_shape(card)[0] for card in row) + _NOTE + 0.44 for row in rows]
    figure = Figure(figsize=(wide * min(columns, max(len(cards), 1)), max(sum(heights), 0.5)))
    for row, below in zip(rows, np.cumsum(heights), strict=True):
        for column, card in enumerate(row):
            _draw_card(figure, card, column * wide, sum(heights) - float(below), wide)
    return figure


def _draw_card(figure: Figure, card: _Card, left: float, bottom: float, wide: float) -> None:
    width, height = figure.get_size_inches()
    tall, side = _shape(card)
    title = folded(card.title, round(wide * 17))
    figure.text((left + 0.05) / width, (bottom + tall + _NOTE + 0.04) / height, title, fontsize=7, va="bottom")
    for index, (image, note) in enumerate(card.pictures):
        x = left + 0.05 + index * (_SIDE + 0.08)
        panel = figure.add_axes((x / width, (bottom + _NOTE) / height, side / width, tall / height))
        panel.axis("off")
        if image is not None:
            panel.imshow(image, interpolation="nearest", aspect="auto")
        figure.text(x / width, (bottom + _NOTE - 0.03) / height, note, fontsize=5.8, va="top")


def _shape(card: _Card) -> tuple[float, float]:
    """Height and width in inches of each picture of a card."""
    height, width = next((image.shape[:2] for image, _ in card.pictures if image is not None), (1, 1))
    return _SIDE * height / max(height, width), _SIDE * width / max(height, width)
