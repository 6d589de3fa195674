"""Sections of a Markdown document that a command writes, between two marks; the prose around them stays by hand."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from .errors import UserError


def find_section(document: Path, name: str) -> tuple[str, str]:
    """What stands up to and with the mark `<!-- measured: NAME -->`, and from `<!-- end of measured: NAME -->` on.

    Raises UserError unless each of the two stands in `document` once and in this order.
    """
    begin, end = f"<!-- measured: {name} -->", f"<!-- end of measured: {name} -->"
    try:
        text = document.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{document} can't be read: {error.strerror}") from None
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(end) < text.index(begin):
        raise UserError(f"{document} has no section {name!r}: write {begin} and, below it, {end} once each")
    before, rest = text.split(begin)
    return before + begin, end + rest.split(end)[1]


def replace_section(document: Path, name: str, lines: Sequence[str]) -> None:
    """Puts `lines` into the section that `find_section` finds. Writes nothing where there is none."""
    before, after = find_section(document, name)
    document.write_text("\n".join([before, "", *lines, "", after]), encoding="utf-8")


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table."""
    return [f"| {' | '.join(cells)} |" for cells in (header, ("---",) * len(header), *rows)]
