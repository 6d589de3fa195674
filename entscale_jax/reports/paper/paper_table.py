"""What a table of a run's figures is: those of one metric by size and method, the paper's beside, and notes of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...metrics.figure import Figure
from ...statistics import Interval
from ..records import Run, Size
from .features import Group
from .published import Published, paper_notes, short_name


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
    figures = [entry.figure for entry in entries]
    counts = sorted({figure.count for figure in figures})
    pictures = sorted({figure.pictures for figure in figures})
    crops = "" if figures[0].crop == "none" else f" crops of {_span(pictures)}"
    notes = [f"{_span(counts)}{crops} images a figure", *_references(entries)]
    if any(figure.interval for figure in figures):
        notes.append("in brackets 95% bootstrap intervals; differences are of pairs of the same caption and seed")
    printed: dict[str, list[Published]] = {}
    for entry in entries:
        if entry.published:
            printed.setdefault(short_name(entry.size.model), []).append(entry.published)
    return notes + paper_notes(figures[0].name, printed)


def _references(entries: Sequence[Entry]) -> list[str]:
    """What the figures were compared with and how; a line a model where it is not the same of all."""
    models: dict[str, list[str]] = {}
    for entry in entries:
        if entry.figure.reference:
            models.setdefault(_reference(entry.figure), []).append(entry.size.model)
    if len(models) == 1:
        return list(models)
    return [f"{', '.join(dict.fromkeys(of))}: {text}" for text, of in models.items()]


def _reference(figure: Figure) -> str:
    crops, crop = ("", "no crop") if figure.crop == "none" else (" crops of", f"crop {figure.crop}")
    images = f" {figure.reference_pictures:,}" if crops else ""
    return (
        f"compared with {figure.reference}, {figure.reference_count:,}{crops}{images} images; extractor "
        f"{figure.extractor}, resize {figure.resize}, {crop}"
    )


def _span(counts: Sequence[int]) -> str:
    return f"{counts[0]:,}" if counts[0] == counts[-1] else f"{counts[0]:,} to {counts[-1]:,}"
