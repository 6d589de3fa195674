"""Draws the scene of a caption: separate flat shapes on a plain ground, so that what a picture holds can be counted."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8

from ..errors import UserError
from ..metrics.captions import BACKGROUND, COLOURS, Kind, parse_caption

RADII = (7.0, 10.0)  # of a circle, in pixels; the other shapes have the same area
MARGIN = 3.0  # pixels between the bounding boxes of two objects; 2 at least where they must shrink
EDGE = 1.5  # pixels from a bounding box to the edge of the picture, which anti-aliasing then never touches
SMALLEST = 4.5  # a smaller radius is no longer a shape that can be told from another

_HALF_SIDE = np.sqrt(np.pi) / 2  # of a square with the area of the unit circle
_INRADIUS = np.sqrt(np.pi / 3 / np.sqrt(3))  # of an equilateral triangle with that area
# How far each shape of radius 1 reaches from its centroid: up, down, to either side.
_REACH = {
    "circle": (1.0, 1.0, 1.0),
    "square": (_HALF_SIDE, _HALF_SIDE, _HALF_SIDE),
    "triangle": (2 * _INRADIUS, _INRADIUS, np.sqrt(3) * _INRADIUS),
}
_CANDIDATES = 24  # places tried for an object before the scene is begun again
# Relative sizes tried, and how often a scene is begun at each. Three triangles of the smallest radius fit into 32x32
# pixels once in seven attempts, so 200 attempts fail in one scene of 1e13.
_ATTEMPTS = (*((0.9**i, 12) for i in range(7)), (SMALLEST / RADII[1], 200))


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
    captions: Sequence[str], rng: np.random.Generator, *, height: int = 64, width: int = 64
) -> UInt8[np.ndarray, "batch height width 3"]:
    """A random scene for each caption."""
    scenes = [draw_scene(caption, rng, height=height, width=width) for caption in captions]
    return np.stack(scenes) if scenes else np.zeros((0, height, width, 3), np.uint8)


def draw_scene(
    caption: str, rng: np.random.Generator, *, height: int = 64, width: int = 64
) -> UInt8[np.ndarray, "height width 3"]:
    """A random scene of `caption`. Raises UserError for an unknown caption or a size too small for its objects."""
    return paint(place(parse_caption(caption), rng, height=height, width=width), height=height, width=width)


def place(
    kinds: Sequence[Kind], rng: np.random.Generator, *, height: int = 64, width: int = 64
) -> tuple[SceneObject, ...]:
    """Positions and radii at random, apart from each other: of the training size where they fit, else smaller.

    Raises UserError where they do not fit at the smallest radius either.
    """
    for scale in (scale for scale, restarts in _ATTEMPTS for _ in range(restarts)):
        radii = np.maximum(scale * rng.uniform(*RADII, len(kinds)), SMALLEST)
        objects = _try_to_place(kinds, radii, rng, height, width, max(scale * MARGIN, 2.0))
        if objects is not None:
            return objects
    raise UserError(f"{len(kinds)} objects do not fit into {width}x{height} pixels: draw a larger picture")


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


def _try_to_place(kinds, radii, rng, height, width, margin) -> tuple[SceneObject, ...] | None:
    objects: list[SceneObject] = []
    for kind, radius in zip(kinds, radii, strict=True):
        up, down, side = (radius * reach for reach in _REACH[kind.shape])
        low = np.array((EDGE + up, EDGE + side))
        high = np.array((height - EDGE - down, width - EDGE - side))
        if np.any(high < low):
            return None
        y, x = rng.uniform(low, high, (_CANDIDATES, 2)).T
        free = np.ones(_CANDIDATES, bool)
        for top, bottom, left, right in (item.box for item in objects):
            free &= (
                (y - up >= bottom + margin)
                | (y + down <= top - margin)
                | (x - side >= right + margin)
                | (x + side <= left - margin)
            )
        if not free.any():
            return None
        first = int(free.argmax())
        objects.append(SceneObject(kind, float(y[first]), float(x[first]), float(radius)))
    return tuple(objects)
