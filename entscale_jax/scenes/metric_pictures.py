"""Pictures that the metrics' networks learn from: scenes with repeated and broken objects, drawn well and badly."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, UInt8
from scipy.ndimage import gaussian_filter

from ..metrics.captions import KINDS, MAX_OBJECTS, Kind, radii
from .alter import halve
from .captions import is_held_out
from .draw import SceneObject, find_place, paint

_HALVED, _REPEATED, _SPOILT = 0.12, 0.35, 0.7
_MOST_BLUR, _MOST_NOISE, _MOST_SHIFT = 1.6, 12.0, 14.0
_MORE_WITH_AREA = 4


@dataclass(frozen=True)
class MetricPicture:
    """One picture and what is true of it."""

    image: UInt8[np.ndarray, "height width 3"]
    counts: Float32[np.ndarray, "13"]
    """How many of each of `KINDS`, then things that are none of them."""
    qualities: Float32[np.ndarray, "5"]
    """Blur, noise and the shift of each channel, each as a share of the most there is."""


def draw_metric_picture(
    rng: np.random.Generator, height: int, width: int, kinds: Sequence[Kind] | None = None
) -> MetricPicture:
    """A picture of random kinds, of which no two are a held-out pair, or of just `kinds`; spoilt in two cases of three.

    With `kinds` every object is whole. Objects for which no place is free are left out, of random kinds alone.
    """
    low, high = radii(height, width)
    asked = _random_kinds(rng, height, width) if kinds is None else tuple(kinds)
    objects: list[SceneObject] = []
    while len(objects) < len(asked):
        kind, radius = asked[len(objects)], float(rng.uniform(low, high))
        item = find_place(kind, radius, objects, rng, height=height, width=width)
        if item is not None:
            objects.append(item)
        elif kinds is None:
            break
        else:
            objects = []
    counts = np.zeros(len(KINDS) + 1, np.float32)
    image = _break_one(objects, counts, rng, height, width) if kinds is None else None
    if image is None:
        image = paint(objects, height=height, width=width)
    for item in objects:
        counts[KINDS.index(item.kind)] += 1
    return MetricPicture(*_spoil(image, rng, counts))


def _random_kinds(rng: np.random.Generator, height: int, width: int) -> tuple[Kind, ...]:
    """One to four, some of them repeated and in larger pictures more: what models draw, not what captions say."""
    while True:
        chosen = [KINDS[index] for index in rng.permutation(len(KINDS))[: rng.integers(0, MAX_OBJECTS + 1)]]
        if not is_held_out(chosen):
            break
    if chosen and rng.random() < _REPEATED:
        most = _MORE_WITH_AREA * height * width // 128**2
        again = rng.integers(1, 1 + max(1, most))
        chosen += [chosen[index] for index in rng.integers(0, len(chosen), again)]
    return tuple(chosen)


def _break_one(objects: list[SceneObject], counts: np.ndarray, rng: np.random.Generator, height: int, width: int):
    """The picture with one of `objects` cut by half and taken from them; None where all stay whole.

    An object that is only too small is no such thing: it would be whole in a smaller picture, and a network that reads
    any size can't tell.
    """
    if not objects or rng.random() > _HALVED:
        return None
    item = objects.pop(int(rng.integers(len(objects))))
    counts[-1] += 1
    return halve(item, rng.uniform(0, 2 * np.pi), objects, height=height, width=width)


def _spoil(image: np.ndarray, rng: np.random.Generator, counts: np.ndarray):
    qualities = np.zeros(5, np.float32)
    if rng.random() >= _SPOILT:
        return image, counts, qualities
    qualities[:2] = rng.random(2) * (rng.random(2) < 0.7)
    qualities[2:] = rng.uniform(-1, 1, 3) * (rng.random() < 0.7)
    pixels = image.astype(np.float32)
    if qualities[0] > 0:
        pixels = gaussian_filter(pixels, (qualities[0] * _MOST_BLUR,) * 2 + (0,), mode="nearest")
    pixels += qualities[1] * _MOST_NOISE * rng.standard_normal(pixels.shape, np.float32)
    pixels += qualities[2:] * _MOST_SHIFT
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8), counts, qualities
