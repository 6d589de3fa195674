"""The pictures of a run, arranged for comparison: a card holds one caption and seed, drawn by every method."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from pathlib import Path
from urllib.parse import quote

from .levels import Levels
from .records import Pair, Run, Sample, Size
from .thumbnails import shown_size, thumbnails

ID_LENGTH = 12
"""Digits of a card's id: among a million cards two are alike with a probability of 0.2%."""


class State(StrEnum):
    """What became of a picture. The page's script knows these words."""

    DRAWN = "drawn"
    OPEN = "open"
    """Not drawn yet."""
    LEFT_OUT = "left out"
    """Beyond what the sweep draws of its method: cards do not show it."""
    FAILED = "failed"
    LOST = "lost"
    """Its row is there, but no file that can be read."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One image with what was found in it, or why there is none."""

    method: str
    state: State
    note: str
    """What the detector found, or why there is no picture."""
    file: str | None = None
    """The image itself, relative to the page."""
    thumbnail: str | None = None
    """A data URI."""
    objects: tuple[float, float, float] | None = None
    """As in `Sample`."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """The pictures of one caption and seed at one size, in the order of the methods."""

    id: str
    """The same in every report of the cells, however many others there are: what a permanent link names."""
    prompt: str
    seed: int
    pictures: tuple[Picture, ...]


@dataclass(frozen=True, kw_only=True)
class SizeGallery:
    """The cards of one size, and how large its thumbnails are shown, in pixels of the screen."""

    size: Size
    label: str
    is_control: bool
    width: int
    height: int
    cards: tuple[Card, ...]


def galleries(run: Run, levels: Mapping[Size, Levels], page: Path) -> list[SizeGallery]:
    """A gallery a size, of all captions and seeds that any method has come to. `page` is the folder of the report."""
    files = [run.folder / sample.image for sample in run.samples if sample.image]
    small = dict(zip(files, thumbnails(files), strict=True))
    return [_gallery(run, size, levels.get(size), small, page) for size in run.sizes]


def card_id(size: Size, pair: Pair) -> str:
    """What a permanent link calls the images of a caption and seed at a size."""
    prompt, seed = pair
    named = json.dumps([size.model, size.width, size.height, prompt, seed])
    return sha256(named.encode()).hexdigest()[:ID_LENGTH]


def verdict(sample: Sample) -> str:
    """What the detector found: `exact`, or what is wrong; nothing where objects were not counted."""
    if sample.objects is None:
        return ""
    exact, missing, extra = sample.objects
    wrong = [f"{count:.0f} {name}" for count, name in ((missing, "missing"), (extra, "extra")) if count]
    return "exact" if exact else ", ".join(wrong)


def _gallery(run: Run, size: Size, levels: Levels | None, small: Mapping[Path, str | None], page: Path) -> SizeGallery:
    cells = [run.of(size, method) for method in run.methods]
    pairs = [pair for pair in run.pairs if any(pair in of_method for of_method in cells)]
    width, height = shown_size(size.width, size.height)
    return SizeGallery(
        size=size,
        label=run.label(size),
        is_control=levels is not None and levels.is_control,
        width=width,
        height=height,
        cards=tuple(_card(run, size, pair, small, page) for pair in pairs),
    )


def _card(run: Run, size: Size, pair: Pair, small: Mapping[Path, str | None], page: Path) -> Card:
    pictures = [_picture(run, size, method, pair, small, page) for method in run.methods]
    return Card(id=card_id(size, pair), prompt=pair[0], seed=pair[1], pictures=tuple(pictures))


def _picture(run: Run, size: Size, method: str, pair: Pair, small: Mapping[Path, str | None], page: Path) -> Picture:
    sample = run.of(size, method).get(pair)
    if sample is None and not run.wants(method, pair):
        return Picture(method=method, state=State.LEFT_OUT, note="left out by the sweep's limits")
    if sample is None:
        return Picture(method=method, state=State.OPEN, note="not drawn yet")
    if sample.error is not None or sample.image is None:
        return Picture(method=method, state=State.FAILED, note=f"failed: {sample.error or 'no image'}")
    path = run.folder / sample.image
    if small[path] is None:
        fault = "can't be read" if path.is_file() else "is missing"
        return Picture(method=method, state=State.LOST, note=f"{sample.image} {fault}")
    return Picture(
        method=method,
        state=State.DRAWN,
        note=verdict(sample),
        file=quote(Path(os.path.relpath(path, page)).as_posix()),
        thumbnail=small[path],
        objects=sample.objects,
    )
