"""Draws the scene of a caption: separate flat shapes on a plain ground, so that what a picture holds can be counted."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int32, UInt8

from ..errors import UserError
from ..metrics.captions import BACKGROUND, COLOURS, KINDS, TRAIN_SIZE, Kind, parse_caption, radii

MARGIN = 4.0  # pixels between the bounding boxes of two objects at the training size, and at least 2 below it
EDGE = 1.5  # pixels from a bounding box to the edge of the picture, which anti-aliasing then never touches

_HALF_SIDE = np.sqrt(np.pi) / 2  # of a square with the area of the unit circle
_INRADIUS = np.sqrt(np.pi / 3 / np.sqrt(3))  # of an equilateral triangle with that area
# How far each shape of radius 1 reaches from its centroid: up, down, to either side.
_REACH = {
    "circle": (1.0, 1.0, 1.0),
    "square": (_HALF_SIDE, _HALF_SIDE, _HALF_SIDE),
    "triangle": (2 * _INRADIUS, _INRADIUS, np.sqrt(3) * _INRADIUS),
}
_CANDIDATES = 24  # places tried for an object before the scene is begun again
_ATTEMPTS = 400


@dataclass(frozen=True)
class SceneObject:
    """One object in a picture: its centroid and the radius of the circle of equal area, in pixels."""

    kind: Kind
    y: float
    x: float
    radius: float

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Top, bottom, left, right of the bounding box."""
        up, down, side = (self.radius * reach for reach in _REACH[self.kind.shape])
        return self.y - up, self.y + down, self.x - side, self.x + side


def draw_batch(
    captions: Sequence[str], rng: np.random.Generator, *, height: int = TRAIN_SIZE, width: int = TRAIN_SIZE
) -> UInt8[np.ndarray, "batch height width 3"]:
    """A random scene for each caption."""
    scenes = [draw_scene(caption, rng, height=height, width=width) for caption in captions]
    return np.stack(scenes) if scenes else np.zeros((0, height, width, 3), np.uint8)


def draw_scene(
    caption: str, rng: np.random.Generator, *, height: int = TRAIN_SIZE, width: int = TRAIN_SIZE
) -> UInt8[np.ndarray, "height width 3"]:
    """A random scene of `caption`. Raises UserError for an unknown caption or a size too small for its objects."""
    return paint(place(parse_caption(caption), rng, height=height, width=width), height=height, width=width)


def place(
    kinds: Sequence[Kind], rng: np.random.Generator, *, height: int = TRAIN_SIZE, width: int = TRAIN_SIZE
) -> tuple[SceneObject, ...]:
    """Positions and radii at random, apart from each other; the radii are uniform in `radii(height, width)`.

    Raises UserError where the objects do not fit.
    """
    low, high = radii(height, width)
    for _ in range(_ATTEMPTS):
        objects: list[SceneObject] = []
        for kind, radius in zip(kinds, rng.uniform(low, high, len(kinds)), strict=True):
            item = find_place(kind, float(radius), objects, rng, height=height, width=width)
            if item is None:
                break
            objects.append(item)
        else:
            return tuple(objects)
    raise UserError(f"{len(kinds)} objects do not fit into {width}x{height} pixels: draw a larger or a squarer picture")


def find_place(
    kind: Kind, radius: float, others: Sequence[SceneObject], rng: np.random.Generator, *, height: int, width: int
) -> SceneObject | None:
    """An object apart from `others`, at the first free one of some random places; None where none of them is free."""
    margin = max(MARGIN * radii(height, width)[1] / radii(TRAIN_SIZE, TRAIN_SIZE)[1], 2.0)
    up, down, side = (radius * reach for reach in _REACH[kind.shape])
    low = np.array((EDGE + up, EDGE + side))
    high = np.array((height - EDGE - down, width - EDGE - side))
    if np.any(high < low):
        return None
    y, x = rng.uniform(low, high, (_CANDIDATES, 2)).T
    free = np.ones(_CANDIDATES, bool)
    for top, bottom, left, right in (item.box for item in others):
        free &= (
            (y - up >= bottom + margin)
            | (y + down <= top - margin)
            | (x - side >= right + margin)
            | (x + side <= left - margin)
        )
    first = int(free.argmax())
    return SceneObject(kind, float(y[first]), float(x[first]), radius) if free[first] else None


def paint(objects: Sequence[SceneObject], *, height: int, width: int) -> UInt8[np.ndarray, "height width 3"]:
    """The picture of `objects`, anti-aliased; a later one covers an earlier one. Each must lie inside."""
    picture = np.full((height, width, 3), BACKGROUND, np.uint8)
    for item in objects:
        top, bottom, left, right = item.box
        rows = slice(max(int(top) - 1, 0), min(int(bottom) + 2, height))
        columns = slice(max(int(left) - 1, 0), min(int(right) + 2, width))
        y = np.arange(rows.start, rows.stop)[:, None] + 0.5 - item.y
        x = np.arange(columns.start, columns.stop)[None] + 0.5 - item.x
        cover = np.clip(0.5 - signed_distance(item.kind.shape, y, x, item.radius), 0, 1)[..., None]
        patch = picture[rows, columns]
        patch[:] = np.rint(patch + cover * (np.asarray(COLOURS[item.kind.colour], float) - patch))
    return picture


def kind_map(objects: Sequence[SceneObject], *, height: int, width: int, cell: int) -> Int32[np.ndarray, "h w"]:
    """What is drawn at the centre of each cell of `cell` pixels a side: 1 and the place in `KINDS`; 0 is the ground."""
    y = (np.arange(height // cell)[:, None] + 0.5) * cell
    x = (np.arange(width // cell)[None] + 0.5) * cell
    found = np.zeros((height // cell, width // cell), np.int32)
    for item in objects:
        inside = signed_distance(item.kind.shape, y - item.y, x - item.x, item.radius) < 0
        found[inside] = 1 + KINDS.index(item.kind)
    return found


def signed_distance(
    shape: str, y: Float[np.ndarray, "#height #width"], x: Float[np.ndarray, "#height #width"], radius: float
) -> Float[np.ndarray, "height width"]:
    """Pixels from the outline to (y, x), relative to the centroid with y downwards; negative inside.

    Beside a corner it is the distance to the nearer edge's line, which leaves corners sharp.
    """
    match shape:
        case "circle":
            return np.hypot(y, x) - radius
        case "square":
            return np.maximum(np.abs(y), np.abs(x)) - _HALF_SIDE * radius
        case "triangle":
            return np.maximum(y, np.sqrt(3) / 2 * np.abs(x) - y / 2) - _INRADIUS * radius
    raise UserError(f"shape {shape!r} is unknown: use one of {', '.join(_REACH)}")
