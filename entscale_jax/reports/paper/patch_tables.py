"""The tables of patch-FID: its figures by size and method, and what they are of."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from ...metrics.extractor import Extractor
from ...metrics.figure import Figure
from ..records import Run
from .features import Group
from .paper_table import Entry, PaperTable, make_table
from .patch_figures import patch_figures
from .published import published

TITLES = {
    "scenes_patch_fid": "Frechet distance of the scenes' features of crops of the training size, lower is better",
    "patch_fid": "Patch-FID, of crops of the training size, lower is better",
}


def patch_tables(
    run: Run, place: Path | None, column: str, patches: Mapping[str, Callable[[], Extractor]]
) -> list[PaperTable]:
    """A table a metric of `patches`; none where no picture is above the training size. See `patch_figures`."""
    tables = []
    for name, opener in patches.items():
        figures = patch_figures(run, opener, place, column)
        if not figures:
            continue
        entries = {group: _entry(group, figures, run) for group in figures}
        one = make_table(name, TITLES[name], 3, run, entries)
        tables.append(replace(one, notes=(*one.notes, *_notes(run, figures))))
    return tables


def _entry(group: Group, figures: Mapping[Group, Figure], run: Run) -> Entry:
    figure, base = figures[group], figures.get((group[0], run.methods[0]))
    difference = None
    if base is not None and base is not figure and base.count == figure.count:
        difference = figure.value - base.value
    return Entry(
        size=group[0],
        method=group[1],
        figure=figure,
        difference=difference,
        published=published(figure.name, *group),
    )


def _notes(run: Run, figures: Mapping[Group, Figure]) -> list[str]:
    notes = [
        "no interval: it is biased by an amount that falls with the count, and crops of one picture depend on each "
        "other"
    ]
    notes += sorted({figure.remark for figure in figures.values() if figure.remark})
    shown = {size for size, _ in figures}
    left_out = [run.label(size) for size in run.sizes if size not in shown]
    if left_out:
        notes.append(f"not above the training size in both sides, so without crops: {', '.join(left_out)}")
    return notes
