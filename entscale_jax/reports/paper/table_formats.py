"""The paper's tables as text: Markdown to read, CSV to compute with, LaTeX to print."""

import csv
import io
from collections.abc import Sequence

from ...marks import table
from ...statistics import Interval, interval, number, signed, signed_number
from ..records import Size
from .paper_table import Entry, PaperTable

FORMATS = ("markdown", "csv", "latex")
_CSV = (
    *("metric", "model", "size", "method", "value", "low", "high", "count", "reference", "reference_count", "resize"),
    *("crop", "extractor", "difference_from", "difference", "difference_low", "difference_high", "published"),
    *("published_table", "published_count", "pictures", "reference_pictures"),
)


def markdown(tables: Sequence[PaperTable]) -> str:
    """A table a metric, with its notes below."""
    blocks = []
    for one in tables:
        header, rows = _grid(one)
        blocks.append("\n".join([f"**{one.title}**", "", *table(header, rows), "", f"{'; '.join(one.notes)}.", ""]))
    return "\n".join(blocks)


def latex(tables: Sequence[PaperTable]) -> str:
    """The same for LaTeX with the package booktabs."""
    blocks = []
    for one in tables:
        header, rows = _grid(one)
        lines = [" & ".join(map(_escape, cells)) + r" \\" for cells in (header, *rows)]
        body = ["\\toprule", lines[0], "\\midrule", *lines[1:], "\\bottomrule"]
        caption = _escape(f"{one.title}. {'; '.join(one.notes)}.")
        blocks.append(
            "\n".join(
                [
                    "\\begin{table}",
                    "\\centering",
                    f"\\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}",
                    *body,
                    "\\end{tabular}",
                    f"\\caption{{{caption}}}",
                    "\\end{table}",
                    "",
                ]
            )
        )
    return "\n".join(blocks)


def as_csv(tables: Sequence[PaperTable]) -> str:
    """A line a figure, in full precision."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_CSV)
    for one in tables:
        for entry in one.entries.values():
            writer.writerow(_csv_row(one, entry))
    return text.getvalue()


def _csv_row(one: PaperTable, entry: Entry) -> list[object]:
    figure, paper = entry.figure, entry.published
    low, high = _bounds(figure.interval)
    difference = entry.difference.mean if isinstance(entry.difference, Interval) else entry.difference
    return [
        *(figure.name, entry.size.model, str(entry.size), entry.method, figure.value, low, high, figure.count),
        *(figure.reference, figure.reference_count or "", figure.resize, figure.crop, figure.extractor),
        *("" if difference is None else one.baseline, "" if difference is None else difference),
        *_bounds(entry.difference),
        *((paper.value, paper.table, paper.pictures or "") if paper else ("", "", "")),
        *(figure.pictures or "", figure.reference_pictures or ""),
    ]


def _bounds(value: object) -> tuple[object, object]:
    return (value.low, value.high) if isinstance(value, Interval) else ("", "")


def _grid(one: PaperTable) -> tuple[list[str], list[list[str]]]:
    compared = [
        method
        for method in one.methods
        if any(one.entries[key].difference is not None for key in one.entries if key[1] == method)
    ]
    printed = [
        method for method in one.methods if any(one.entries[key].published for key in one.entries if key[1] == method)
    ]
    header = [
        "size",
        *one.methods,
        *(f"{method} less {one.baseline}" for method in compared),
        *(f"{method}, paper" for method in printed),
    ]
    several = len({size.model for size in one.sizes}) > 1
    return header, [_line(one, size, compared, printed, several) for size in one.sizes]


def _line(one: PaperTable, size: Size, compared: Sequence[str], printed: Sequence[str], several: bool) -> list[str]:
    found = {method: one.entries.get((size, method)) for method in one.methods}
    cells = [f"{size.model} {size}" if several else str(size)]
    cells += [_value(entry, one.digits) for entry in found.values()]
    cells += [_difference(found[method], one.digits) for method in compared]
    cells += [_published(one, found[method]) for method in printed]
    return cells


def _published(one: PaperTable, entry: Entry | None) -> str:
    """The paper's figure, with its table where others of the same metric are of another."""
    if entry is None or entry.published is None:
        return ""
    tables = {other.published.table for other in one.entries.values() if other.published}
    told = f" (Table {entry.published.table})" if len(tables) > 1 else ""
    return f"{entry.published.value:.10g}{told}"


def _value(entry: Entry | None, digits: int) -> str:
    if entry is None:
        return ""
    return interval(entry.figure.interval, digits) if entry.figure.interval else number(entry.figure.value, digits)


def _difference(entry: Entry | None, digits: int) -> str:
    if entry is None or entry.difference is None:
        return ""
    if isinstance(entry.difference, Interval):
        return signed(entry.difference, digits)
    return signed_number(entry.difference, digits)


def _escape(text: str) -> str:
    return text.translate(_LATEX)


_LATEX = str.maketrans(
    {
        **{char: f"\\{char}" for char in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "−": "$-$",
    }
)
