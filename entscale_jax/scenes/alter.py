"""True drawings altered in one known way, with the verdict that each deserves: the detector's negative controls."""

import math
from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from ..errors import UserError
from ..metrics.captions import COLOURS, KINDS, SHAPES, Kind, radii
from .draw import SceneObject, find_place, paint

_ATTEMPTS = 100


class Alteration(StrEnum):
    """What is done to one object of a drawing, chosen at random."""

    REMOVED = "removed"
    ADDED = "added"
    """An object that the caption does not name."""
    REPEATED = "repeated"
    RECOLOURED = "recoloured"
    RESHAPED = "reshaped"
    HALVED = "cut by half"
    """By a line through its centroid at any angle, on either side."""
    QUARTER_AREA = "shrunk to a quarter of its area"
    QUARTER_RADIUS = "shrunk to a quarter of its radius"


class Altered(NamedTuple):
    """A picture, and how many objects of the drawing's caption a viewer misses and finds too many in it."""

    image: UInt8[np.ndarray, "height width 3"]
    missing: int
    extra: int


_FAULTS = {
    Alteration.REMOVED: (1, 0),
    Alteration.ADDED: (0, 1),
    Alteration.REPEATED: (0, 1),
    Alteration.RECOLOURED: (1, 1),
    Alteration.RESHAPED: (1, 1),
    # Half an object, or one of a quarter of its area, is a thing of its own; one of a quarter of its radius is a dot.
    Alteration.HALVED: (1, 1),
    Alteration.QUARTER_AREA: (1, 1),
    Alteration.QUARTER_RADIUS: (1, 0),
}


def alter(
    alteration: Alteration, objects: Sequence[SceneObject], rng: np.random.Generator, *, height: int, width: int
) -> Altered:
    """The picture of `objects`, one or more, with one of them altered.

    Raises UserError where an object is to be added and no place is free.
    """
    chosen = int(rng.integers(len(objects)))
    item, others = objects[chosen], [*objects[:chosen], *objects[chosen + 1 :]]
    colour, shape = item.kind
    match alteration:
        case Alteration.REMOVED:
            altered = others
        case Alteration.ADDED:
            kind = _choose([kind for kind in KINDS if kind not in {item.kind for item in objects}], rng)
            altered = [*objects, _placed(kind, rng.uniform(*radii(height, width)), objects, rng, height, width)]
        case Alteration.REPEATED:
            altered = [*objects, _placed(item.kind, rng.uniform(*radii(height, width)), objects, rng, height, width)]
        case Alteration.RECOLOURED:
            kind = Kind(_choose([other for other in COLOURS if other != colour], rng), shape)
            altered = [*others, replace(item, kind=kind)]
        case Alteration.RESHAPED:
            kind = Kind(colour, _choose([other for other in SHAPES if other != shape], rng))
            altered = [*others, _placed(kind, item.radius, others, rng, height, width)]
        case Alteration.HALVED:
            image = halve(item, rng.uniform(0, 2 * math.pi), others, height=height, width=width)
            return Altered(image, *_FAULTS[alteration])
        case Alteration.QUARTER_AREA:
            altered = [*others, replace(item, radius=item.radius / 2)]
        case Alteration.QUARTER_RADIUS:
            altered = [*others, replace(item, radius=item.radius / 4)]
    return Altered(paint(altered, height=height, width=width), *_FAULTS[alteration])


def halve(
    item: SceneObject, angle: float, others: Sequence[SceneObject] = (), *, height: int, width: int
) -> UInt8[np.ndarray, "height width 3"]:
    """The picture of `others` and of the half of `item` that lies towards `angle`, in radians from the right down."""
    without = paint(others, height=height, width=width).astype(float)
    whole = paint([*others, item], height=height, width=width)
    y, x = np.arange(height)[:, None] + 0.5 - item.y, np.arange(width) + 0.5 - item.x
    kept = np.clip(0.5 + y * math.sin(angle) + x * math.cos(angle), 0, 1)[..., None]
    return np.rint(without + kept * (whole - without)).astype(np.uint8)


def _choose(options: Sequence, rng: np.random.Generator):
    return options[int(rng.integers(len(options)))]


def _placed(
    kind: Kind, radius: float, others: Sequence[SceneObject], rng: np.random.Generator, height: int, width: int
) -> SceneObject:
    for _ in range(_ATTEMPTS):
        if item := find_place(kind, radius, others, rng, height=height, width=width):
            return item
    raise UserError(f"no place is free for {kind} among {len(others)} objects in {width}x{height} pixels")
