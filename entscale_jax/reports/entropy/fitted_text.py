"""Text that a figure has room for: any caption as it is, over as many lines as a width asks for."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

FONT = "DejaVu Sans"
"""Matplotlib's own, so that figures are the same everywhere."""

REPLACED = "\N{REPLACEMENT CHARACTER}"


@contextmanager
def any_letters() -> Iterator[None]:
    """Letters that the font has not become boxes, silently: a caption may be in any script."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from font")
        yield


def plain(text: str) -> str:
    """The text on one line; what can't be printed becomes a replacement mark."""
    words = " ".join(text.split())
    return "".join(letter if letter.isprintable() else REPLACED for letter in words)


def text_width(text: str, points: float, *, bold: bool = False) -> float:
    """In points, at a font size of so many."""
    font = FontProperties(family=FONT, size=points, weight="bold" if bold else "normal")
    with any_letters():
        width, _, _ = text_to_path.get_text_width_height_descent(text, font, ismath=False)
    return width


def wrap(text: str, width: float, points: float, *, lines: int, bold: bool = False, end: str = "") -> list[str]:
    """The text and `end` over at most so many lines of at most `width` points.

    Where they are longer, an ellipsis stands for what is cut from the text, and `end` stays. Lines end at spaces, those
    that may break, or behind commas; where a word alone is too long, within it.
    """
    found, rest, cut = [], text + end, f"…{end}"
    while rest:
        line, after = _broken(rest, _fitting(rest, width, points, bold))
        if after and len(found) == lines - 1:
            letters = _fitting(rest, width - text_width(cut, points, bold=bold), points, bold)
            return [*found, f"{rest[:letters].rstrip()}{cut}"]
        found.append(line)
        rest = after
    return found


def _fitting(text: str, width: float, points: float, bold: bool) -> int:
    """How many letters from the first on fit, one at least."""
    low, high = 1, min(len(text), 2000)
    while low < high:
        middle = (low + high + 1) // 2
        if text_width(text[:middle], points, bold=bold) <= width:
            low = middle
        else:
            high = middle - 1
    return low


def _broken(text: str, end: int) -> tuple[str, str]:
    """The line of up to `end` letters and what follows, between words where there is a space."""
    if end == len(text):
        return text, ""
    space = text.rfind(" ", 0, end + 1)
    if space > 0:
        return text[:space], text[space + 1 :]
    comma = text.rfind(",", 0, end)
    return (text[: comma + 1], text[comma + 1 :]) if comma > 0 else (text[:end], text[end:])
