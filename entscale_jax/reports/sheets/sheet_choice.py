"""What of a run a contact sheet shows: columns, a size and method each, and rows, a caption and seed each."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from PIL import Image

from ...baselines import read_method
from ...entropies import PixelSize, size_text
from ...errors import UserError
from ..gallery import verdict
from ..records import Pair, Run, Size

COUNT = 8
"""Rows that are shown where neither captions nor seeds nor a count are given."""
MOST = 400
"""Pictures on one sheet: beyond that nobody sees any, and memory grows with them."""


class Scaled(StrEnum):
    """How pictures of several sizes stand beside each other."""

    HEIGHT = "height"
    """All of one height."""
    PIXELS = "pixels"
    """A pixel as large in each."""


def read_scaled(text: str) -> Scaled:
    """Raises UserError for another word than those of `Scaled`."""
    try:
        return Scaled(text)
    except ValueError:
        raise UserError(f"--scale {text!r} is unknown: give {' or '.join(Scaled)}") from None


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What a user asks for; None is all that the run has, in the order of the sweep's file."""

    sizes: Sequence[PixelSize] | None = None
    methods: str | None = None
    """Names with commas, of which a name such as `fixed:0.9,0.8` may hold some."""
    prompts: Sequence[str] | None = None
    seeds: Sequence[int] | None = None
    count: int | None = None
    """Rows, the first ones; None is all, or `COUNT` where neither `prompts` nor `seeds` are given."""
    scaled: Scaled = Scaled.HEIGHT


@dataclass(frozen=True)
class Column:
    """A size and method."""

    size: Size
    method: str


@dataclass(frozen=True)
class Cell:
    """A place on the sheet: the picture, or why there is none."""

    image: Image.Image | None
    note: str
    """What the detector found, or why there is no picture."""


@dataclass(frozen=True)
class Shown:
    """The columns, those of one size side by side, and the rows."""

    columns: tuple[Column, ...]
    pairs: tuple[Pair, ...]

    @property
    def sizes(self) -> list[Size]:
        """Each once, in the order of the columns."""
        return list(dict.fromkeys(column.size for column in self.columns))


def choose(run: Run, choice: Choice) -> Shown:
    """Raises UserError for what the run does not have, for nothing at all, and for more than `MOST` pictures."""
    methods = _methods(run, choice.methods)
    columns = tuple(Column(size, method) for size in _sizes(run, choice.sizes) for method in methods)
    pairs = _pairs(run, choice)
    many = len(columns) * len(pairs)
    if many > MOST:
        raise UserError(
            f"the sheet would hold {many:,} pictures, and {MOST} is the most: choose fewer with --count, --prompts, "
            "--seeds, --sizes or --methods"
        )
    return Shown(columns, pairs)


def read_cell(run: Run, column: Column, pair: Pair) -> Cell:
    """The picture of a place with what was found in it, or the reason why it stays empty."""
    sample = run.of(column.size, column.method).get(pair)
    if sample is None:
        undefined = any((one.size, one.method) == (column.size, column.method) for one in run.undefined)
        left_out = not run.wants(column.method, pair)
        reason = (
            "undefined at this size" if undefined else "left out by the sweep's limits" if left_out else "not drawn"
        )
        return Cell(None, reason)
    if sample.error is not None or sample.image is None:
        return Cell(None, f"failed: {sample.error or 'no image'}")
    path = run.folder / sample.image
    try:
        with Image.open(path) as image:
            return Cell(image.convert("RGB"), verdict(sample))
    except (OSError, SyntaxError):  # Pillow's, of a broken PNG
        return Cell(None, "the file can't be read" if path.is_file() else "the file is missing")


def _sizes(run: Run, wanted: Sequence[PixelSize] | None) -> list[Size]:
    if wanted is None:
        return run.sizes
    drawn = [(size.width, size.height) for size in run.sizes]
    asked = [size_text(place) for place in wanted] or [""]
    _check("--sizes", asked, list(dict.fromkeys(map(size_text, drawn))), run)
    found = [size for place in wanted for size in run.sizes if (size.width, size.height) == place]
    return list(dict.fromkeys(found))


def _methods(run: Run, wanted: str | None) -> list[str]:
    if wanted is None:
        return run.methods
    known = list(dict.fromkeys([read_method(value).label for value in run.spec["methods"]] + run.methods))
    return list(dict.fromkeys(_names(run, wanted, known)))


def _names(run: Run, text: str, known: Sequence[str]) -> list[str]:
    """The names in `text`, the longest that is known first, as a name may hold commas itself."""
    parts, found = [part.strip() for part in text.split(",") if part.strip()], []
    _check("--methods", [text] if not parts else [], known, run)
    while parts:
        ends = [end for end in range(len(parts), 0, -1) if ",".join(parts[:end]) in known]
        _check("--methods", [] if ends else parts[:1], known, run)
        found.append(",".join(parts[: ends[0]]))
        parts = parts[ends[0] :]
    return found


def _pairs(run: Run, choice: Choice) -> tuple[Pair, ...]:
    prompts, seeds = (list(dict.fromkeys(values)) for values in zip(*run.pairs, strict=True))
    _check("--prompts", choice.prompts or (), prompts, run)
    _check("--seeds", map(str, choice.seeds or ()), list(map(str, seeds)), run)
    found = [pair for pair in run.pairs if choice.seeds is None or pair[1] in choice.seeds]
    if choice.prompts is not None:
        found = [pair for prompt in dict.fromkeys(choice.prompts) for pair in found if pair[0] == prompt]
    if not found:
        raise UserError(f"run {run.name} has none of these captions with such a seed: leave out --prompts or --seeds")
    if choice.count is not None and not 1 <= choice.count <= len(found):
        raise UserError(f"--count {choice.count}: give 1 to {len(found)}, the pairs of caption and seed that there are")
    some = COUNT if choice.prompts is None and choice.seeds is None else len(found)
    return tuple(found[: choice.count or some])


def _check(option: str, wanted: Iterable[str], known: Sequence[str], run: Run) -> None:
    for value in wanted:
        if value not in known:
            some = ", ".join(known[:8]) + (f" and {len(known) - 8:,} more" if len(known) > 8 else "")
            raise UserError(f"{option} {value!r} is not in run {run.name}, which has {some}")
