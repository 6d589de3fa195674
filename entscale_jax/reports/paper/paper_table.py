"""What a table of a run's figures is: those of one metric by size and method, the paper's beside, and notes of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...metrics.figure import Figure
from ...statistics import Interval
from ..records import Run, Size
from .features import Group
from .published import DATA, Published


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A figure in its place."""

    size: Size
    method: str
    figure: Figure
    difference: Interval | float | None
    """From the first method at this size, over pairs; a Frechet distance has no interval."""
    published: Published | None


@dataclass(frozen=True, kw_only=True)
class PaperTable:
    """All figures of one metric."""

    metric: str
    title: str
    digits: int
    baseline: str
    methods: tuple[str, ...]
    sizes: tuple[Size, ...]
    entries: Mapping[tuple[Size, str], Entry]
    notes: tuple[str, ...]


def make_table(
    metric: str, title: str, digits: int, run: Run, entries: Mapping[Group, Entry], notes: Sequence[str] | None = None
) -> PaperTable:
    """The table of a metric's entries; `notes` in place of what is told of any figures."""
    return PaperTable(
        metric=metric,
        title=title,
        digits=digits,
        baseline=run.methods[0],
        methods=tuple(method for method in run.methods if any(key[1] == method for key in entries)),
        sizes=tuple(size for size in run.sizes if any(key[0] == size for key in entries)),
        entries=entries,
        notes=tuple(_notes(list(entries.values())) if notes is None else notes),
    )


def _notes(entries: Sequence[Entry]) -> list[str]:
    """What the figures are of, and what of it is not as in the paper."""
    notes = []
    figures = [entry.figure for entry in entries]
    counts = sorted({figure.count for figure in figures})
    first = figures[0]
    crops, crop = (" crops of", f"crop {first.crop}") if first.pictures else ("", "no crop")
    pictures = f" {_span(sorted({figure.pictures for figure in figures}))}" if crops else ""
    notes.append(f"{_span(counts)}{crops}{pictures} images a figure")
    if first.reference:
        images = f" {first.reference_pictures:,}" if crops else ""
        notes.append(
            f"compared with {first.reference}, {first.reference_count:,}{crops}{images} images; extractor "
            f"{first.extractor}, resize {first.resize}, {crop}"
        )
    if any(figure.interval for figure in figures):
        notes.append("in brackets 95% bootstrap intervals; differences are of pairs of the same caption and seed")
    seen = {entry.size.model.rsplit("/", 1)[-1] for entry in entries if entry.published}
    for model in sorted(seen):
        paper = {entry.published.pictures for entry in entries if entry.published and entry.published.pictures}
        of = f", {_span(sorted(paper))} images a figure" if paper else ""
        notes.append(f"the paper's: {DATA[model]}{of}; its sampler, steps and guidance are not given")
    return notes


def _span(counts: Sequence[int]) -> str:
    return f"{counts[0]:,}" if counts[0] == counts[-1] else f"{counts[0]:,} to {counts[-1]:,}"
