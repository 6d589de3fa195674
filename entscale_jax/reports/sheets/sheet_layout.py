"""Where everything on a contact sheet stands, in its own pixels, before any picture is read."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from ...errors import UserError
from ..entropy.fitted_text import plain, text_width, wrap
from ..records import Run, Size
from .sheet_choice import Column, Scaled, Shown

CAPTION, SIZE, METHOD, NOTE, FOOT = 7.5, 8.0, 7.0, 5.5, 5.5
"""Font sizes in points."""
_PAGE = 7.2
"""Inches across that a page has."""
_TALLEST, _LOWEST = 1.66, 0.9
"""Inches of the highest picture."""
_GAP, _GROUP_GAP, _EDGE, _BETWEEN = 0.04, 0.12, 0.08, 0.2
"""Inches between pictures, between sizes, around all, and between captions side by side."""
_NAME = 0.7
"""Inches that the name of a method may ask for."""
_ROUNDING = 0.01
"""Inches by which whole pixels may be wider than what they stand for."""
_SHARPEST, _COARSEST = 400, 200
"""Dots an inch; between them, as many as the largest picture has pixels."""
_LINE = 1.25
"""Height of a line of text over its font size."""
MOST_PIXELS = 40_000_000
"""Of a sheet, whose memory is up to twenty bytes each."""
_LONGEST, _LONGEST_WEBP = 65_000, 16_383
"""Pixels of a side, which matplotlib can draw and WebP can hold."""


@dataclass(frozen=True)
class Spot:
    """A rectangle from the upper left corner."""

    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Of a run's choice. Blocks, each a caption over its row of pictures, stand side by side where they are narrow."""

    run: Run
    shown: Shown
    scaled: Scaled

    @cached_property
    def dpi(self) -> int:
        """Dots an inch, so that the largest picture keeps its pixels where that is not absurd."""
        wanted = max(size.height for size in self.shown.sizes) / self._tallest
        return round(min(_SHARPEST, max(_COARSEST, wanted)))

    @cached_property
    def across(self) -> int:
        """Blocks side by side."""
        room = self.dots(_PAGE - 2 * _EDGE + _BETWEEN)
        return max(1, min(len(self.shown.pairs), room // (self.block_width + self.dots(_BETWEEN))))

    @cached_property
    def width(self) -> int:
        """Of the sheet."""
        return 2 * self.dots(_EDGE) + self.across * (self.block_width + self.dots(_BETWEEN)) - self.dots(_BETWEEN)

    @cached_property
    def height(self) -> int:
        """Of the sheet."""
        below = len(self.foot) * self.line(FOOT) + self.dots(_EDGE)
        return self._row_tops[-1] + below

    def check(self, kind: str = ".png") -> None:
        """Raises UserError where the sheet would be larger than memory should hold, or than this kind of file can."""
        longest = _LONGEST_WEBP if kind == ".webp" else _LONGEST
        if self.width * self.height > MOST_PIXELS or max(self.width, self.height) > longest:
            raise UserError(
                f"the sheet would be {self.width:,} x {self.height:,} pixels, too large for {kind}: choose fewer with "
                "--count, --prompts, --seeds, --sizes or --methods"
            )

    def dots(self, inches: float) -> int:
        """Pixels of the sheet."""
        return round(inches * self.dpi)

    def line(self, points: float) -> int:
        """Height of a line of text."""
        return self.dots(points * _LINE / 72)

    def picture_size(self, size: Size) -> tuple[int, int]:
        """Width and height on the sheet."""
        unit = self._unit(size)
        return max(1, self.dots(unit * size.width)), max(1, self.dots(unit * size.height))

    def captions(self, index: int) -> list[str]:
        """The lines above a row of pictures."""
        prompt, seed = self.shown.pairs[index]
        end = f" (seed\N{NO-BREAK SPACE}{seed})"
        return wrap(plain(prompt), self.points(self.block_width), CAPTION, lines=3, end=end)

    @cached_property
    def foot(self) -> list[str]:
        """The lines at the end: what drew the pictures, and how they are scaled."""
        return wrap(foot_text(self.run, self.shown, self.scaled), self.points(self.width) - 12, FOOT, lines=4)

    @cached_property
    def block_width(self) -> int:
        """Of a row of pictures."""
        return self._lefts[-1]

    @cached_property
    def size_labels(self) -> list[tuple[int, list[str]]]:
        """Left edge and lines of each size's label, from the left edge of a block."""
        found = []
        for size in self.shown.sizes:
            places = [index for index, column in enumerate(self.shown.columns) if column.size == size]
            left = self._lefts[places[0]]
            room = self._lefts[places[-1]] + self._column_width(self.shown.columns[places[-1]]) - left
            found.append((left, wrap(plain(self.run.label(size)), self.points(room), SIZE, lines=2, bold=True)))
        return found

    @cached_property
    def method_labels(self) -> list[tuple[int, list[str]]]:
        """Likewise of each column's method."""
        columns = self.shown.columns
        rooms = [self.points(self._column_width(column)) for column in columns]
        return [
            (left, wrap(column.method, room, METHOD, lines=3))
            for left, column, room in zip(self._lefts, columns, rooms, strict=False)
        ]

    @cached_property
    def method_top(self) -> int:
        """Where the methods' names begin."""
        return self.dots(_EDGE) + max(len(lines) for _, lines in self.size_labels) * self.line(SIZE)

    def block_left(self, index: int) -> int:
        """Left edge of a row of pictures."""
        return self.dots(_EDGE) + index % self.across * (self.block_width + self.dots(_BETWEEN))

    def block_top(self, index: int) -> int:
        """Where its caption begins."""
        return self._row_tops[index // self.across]

    def spot(self, index: int, column: int) -> Spot:
        """Of a picture: its row and column."""
        width, height = self.picture_size(self.shown.columns[column].size)
        top = self.block_top(index) + self._caption_lines(index // self.across) * self.line(CAPTION)
        return Spot(self.block_left(index) + self._lefts[column], top, width, height)

    def points(self, dots: int) -> float:
        """Of a length on the sheet."""
        return dots * 72 / self.dpi

    @cached_property
    def _lefts(self) -> list[int]:
        """Of each column, and the end of the last, from the left edge of a block."""
        lefts, x, columns = [], 0, self.shown.columns
        for before, column in zip((None, *columns), columns, strict=False):
            if before is not None:
                x += self.dots(_GAP if before.size == column.size else _GROUP_GAP)
            lefts.append(x)
            x += self._column_width(column)
        return [*lefts, x]

    def _column_width(self, column: Column) -> int:
        """That of its pictures, or what the method's name asks for where they are narrow."""
        name = self.dots(min(_NAME, text_width(column.method, METHOD) / 72 + 2 * _ROUNDING))
        return max(self.picture_size(column.size)[0], name)

    @cached_property
    def _row_tops(self) -> list[int]:
        """Of each row of blocks, and the end of the last."""
        y = self.method_top + max(len(lines) for _, lines in self.method_labels) * self.line(METHOD) + self.dots(0.08)
        tops, tall = [], max(self.picture_size(size)[1] for size in self.shown.sizes)
        for row in range(-(-len(self.shown.pairs) // self.across)):
            tops.append(y)
            y += self._caption_lines(row) * self.line(CAPTION) + tall + self.dots(0.12)
        return [*tops, y]

    def _caption_lines(self, row: int) -> int:
        blocks = range(row * self.across, min((row + 1) * self.across, len(self.shown.pairs)))
        return max(len(self.captions(index)) for index in blocks)

    def _unit(self, size: Size) -> float:
        """Inches a pixel of the pictures."""
        highest = max(one.height for one in self.shown.sizes)
        return self._tallest / (size.height if self.scaled is Scaled.HEIGHT else highest)

    @cached_property
    def _tallest(self) -> float:
        """Inches of the highest picture: so that two blocks, or else one, fill the page, within limits."""
        columns, sizes = self.shown.columns, self.shown.sizes
        highest = max(size.height for size in sizes)
        heights = [column.size.height if self.scaled is Scaled.HEIGHT else highest for column in columns]
        wide = sum(column.size.width / height for column, height in zip(columns, heights, strict=True))
        gaps = _GAP * (len(columns) - len(sizes)) + _GROUP_GAP * (len(sizes) - 1) + _ROUNDING * len(columns)
        for across in (2, 1):
            room = (_PAGE - 2 * _EDGE - (across - 1) * _BETWEEN) / across - gaps
            if len(self.shown.pairs) >= across and room >= _LOWEST * wide:
                return min(_TALLEST, room / wide)
        return _LOWEST


def foot_text(run: Run, shown: Shown, scaled: Scaled) -> str:
    """What drew the pictures, and how they are scaled."""
    models = list(dict.fromkeys(size.model for size in shown.sizes))
    weights = [f"{model} (weights {run.weights[model][:12]})" if model in run.weights else model for model in models]
    told = f"{plain(', '.join(weights))}; {sampler_text(run)}. Width x height in pixels"
    if len({size.height for size in shown.sizes}) == 1:
        return f"{told}."
    return f"{told}; scaled to one height." if scaled is Scaled.HEIGHT else f"{told}; a pixel is as large in all."


def sampler_text(run: Run) -> str:
    """`ddim, 25 steps, guidance 2`."""
    words = {"name": "{}", "steps": "{} steps", "guidance": "guidance {:g}"}
    sampler = run.spec.get("sampler", {})
    return ", ".join(words.get(name, f"{name} {{}}").format(value) for name, value in sampler.items())


def column_text(run: Run, column: Column) -> str:
    """How a text names a column."""
    return f"{run.label(column.size)} {column.method}"


def columns_text(run: Run, columns: Sequence[Column]) -> str:
    """All of them."""
    return ", ".join(column_text(run, column) for column in columns)
