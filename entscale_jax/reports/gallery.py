"""The pictures of a run, arranged for comparison: a card holds one caption and seed, drawn by every method."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .records import Pair, Run, Sample, Size

SHOWN_SIDE = 192
"""Pixels of the screen that a small picture's longer side is enlarged to, about: in whole steps, to stay crisp."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One image with what was found in it, or why there is none."""

    method: str
    source: str | None
    """The image itself, as a data URI."""
    note: str
    is_exact: bool = False


@dataclass(frozen=True, kw_only=True)
class Card:
    """The pictures of one caption and seed, in the order of the methods."""

    prompt: str
    seed: int
    pictures: tuple[Picture, ...]


@dataclass(frozen=True, kw_only=True)
class SizeGallery:
    """The cards of one size, and how large its pictures are shown, in pixels of the screen."""

    size: Size
    label: str
    anchor: str
    width: int
    height: int
    cards: tuple[Card, ...]


def galleries(run: Run) -> list[SizeGallery]:
    """A gallery a size, of all captions and seeds that any method has come to."""
    return [_gallery(run, size, number) for number, size in enumerate(run.sizes, 1)]


def enlargement(width: int, height: int) -> int:
    """The whole factor by which a picture is shown larger; 1 for large ones, never smaller."""
    return max(1, round(SHOWN_SIDE / max(width, height)))


def _gallery(run: Run, size: Size, number: int) -> SizeGallery:
    factor = enlargement(size.width, size.height)
    cells = [run.of(size, method) for method in run.methods]
    pairs = [pair for pair in run.pairs if any(pair in of_method for of_method in cells)]
    return SizeGallery(
        size=size,
        label=run.label(size),
        anchor=f"size-{number}",
        width=size.width * factor,
        height=size.height * factor,
        cards=tuple(_card(run, size, pair) for pair in pairs),
    )


def _card(run: Run, size: Size, pair: Pair) -> Card:
    pictures = [_picture(run.folder, method, run.of(size, method).get(pair)) for method in run.methods]
    return Card(prompt=pair[0], seed=pair[1], pictures=tuple(pictures))


def _picture(folder: Path, method: str, sample: Sample | None) -> Picture:
    if sample is None:
        return Picture(method=method, source=None, note="not drawn yet")
    if sample.error is not None or sample.image is None:
        return Picture(method=method, source=None, note="failed")
    path = folder / sample.image
    if not path.is_file():
        return Picture(method=method, source=None, note=f"{sample.image} is missing")
    source = f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
    return Picture(method=method, source=source, note=verdict(sample), is_exact=_is_exact(sample.objects))


def _is_exact(objects: Sequence[float] | None) -> bool:
    return objects is not None and objects[0] == 1.0


def verdict(sample: Sample) -> str:
    """What the detector found: `exact`, or what is wrong; nothing where objects were not counted."""
    if sample.objects is None:
        return ""
    exact, missing, extra = sample.objects
    wrong = [f"{count:.0f} {name}" for count, name in ((missing, "missing"), (extra, "extra")) if count]
    return "exact" if exact else ", ".join(wrong)
