"""Counts the coloured shapes in a picture and compares them with its caption: missing and repeated objects as numbers.

It knows the vocabulary of scenes but not the code that draws them, and is meant for what a model draws: soft edges,
shifted colours, specks, blobs that are no shape.
"""

from collections import Counter
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from ..errors import UserError
from .captions import BACKGROUND, COLOURS, SHAPES, Kind, parse_caption

UNKNOWN = "unknown"

_GROUND = np.array(BACKGROUND, np.float32)
_TOWARDS = np.array(list(COLOURS.values()), np.float32) - _GROUND  # colour channel
_NAMES = (*COLOURS, UNKNOWN)
_NONE, _OTHER = -1, len(COLOURS)  # classes of a pixel beside the indices of COLOURS

# Distances in RGB, where the two nearest colours of scenes are 184 apart: of a pixel from the line ground-colour, of a
# blob's mean from its colour, and of a pixel of no known colour from the ground.
_OFF_LINE, _OFF_COLOUR, _OFF_GROUND = 70.0, 90.0, 90.0
# Overlap (intersection over union) with the best shape of equal area below which a blob is no shape. A circle and a
# square overlap by 0.83, either and a triangle by 0.69, two circles that touch and their best shape by 0.64.
_LEAST_OVERLAP = {"circle": 0.8, "square": 0.8, "triangle": 0.72}
_MOST_ASPECT = 1.35


class Found(NamedTuple):
    """One blob: its kind (a part may be `unknown`), its centroid and its area, in pixels."""

    kind: Kind
    y: float
    x: float
    area: float


class Verdict(NamedTuple):
    """A picture against its caption. `exact` where nothing is missing and nothing extra."""

    exact: bool
    missing: int
    extra: int


def compare(image: np.ndarray, caption: str) -> Verdict:
    """What `caption` names and `image`, uint8 [height, width, 3], lacks, and the reverse; an unknown blob is extra.

    Raises UserError for a caption outside the grammar or an image of another type or shape.
    """
    asked, found = Counter(parse_caption(caption)), count_objects(image)
    missing, extra = (asked - found).total(), (found - asked).total()
    return Verdict(missing == 0 and extra == 0, missing, extra)


def count_objects(image: np.ndarray) -> Counter[Kind]:
    """How often each kind is in the picture."""
    return Counter(found.kind for found in find_objects(image))


def find_objects(image: np.ndarray) -> list[Found]:
    """Every blob that is no speck, in reading order of its first pixel."""
    _check(image)
    classes, cover = classify_pixels(image)
    labels = connected(classes)
    roots, areas = np.unique(labels[classes != _NONE], return_counts=True)
    blobs = ((int(root), labels == root) for root in roots[areas >= speck_area(*classes.shape)])
    return [_describe(image, classes, cover, blob, root) for root, blob in blobs if _has_core(blob)]


def speck_area(height: int, width: int) -> float:
    """Pixels below which a blob is a speck: a 200th of the picture, 8 to 24; the least true object has 64."""
    return float(np.clip(height * width / 200, 8, 24))


def classify_pixels(
    image: UInt8[np.ndarray, "height width 3"],
) -> tuple[Int[np.ndarray, "height width"], Float[np.ndarray, "height width colours"]]:
    """For each pixel the index of its colour (-1 ground, 4 other), and how much of each colour covers it.

    A soft edge mixes ground and colour, so a pixel goes to the nearest line between the two, not the nearest colour.
    """
    away = image.astype(np.float32) - _GROUND
    along, length = away @ _TOWARDS.T, np.sum(_TOWARDS**2, axis=1)
    cover = along / length
    mixed = np.clip(cover, 0, 1)
    from_ground = np.sum(away**2, axis=-1)
    from_line = from_ground[..., None] + mixed * (mixed * length - 2 * along)  # squared, as from_ground
    nearest = from_line.argmin(axis=-1)
    known = from_line.min(axis=-1) <= _OFF_LINE**2
    covered = np.take_along_axis(cover, nearest[..., None], axis=-1)[..., 0] >= 0.5
    other = ~known & (from_ground > _OFF_GROUND**2)
    return np.where(known & covered, nearest, np.where(other, _OTHER, _NONE)), cover


def connected(classes: Int[np.ndarray, "height width"]) -> Int[np.ndarray, "height width"]:
    """For each pixel the lowest flat index among the pixels of its class that it is connected with, edge to edge.

    Ground pixels stay alone. Each round hooks the higher root of every joined pair to the lower one and then follows
    the roots to their ends.
    """
    index = np.arange(classes.size).reshape(classes.shape)
    solid = classes != _NONE
    across = (classes[:, 1:] == classes[:, :-1]) & solid[:, 1:]
    down = (classes[1:] == classes[:-1]) & solid[1:]
    first = np.concatenate((index[:, :-1][across], index[:-1][down]))
    second = np.concatenate((index[:, 1:][across], index[1:][down]))
    label = index.ravel().copy()
    while np.any(apart := label[first] != label[second]):
        first, second = first[apart], second[apart]
        pair = label[first], label[second]
        np.minimum.at(label, np.maximum(*pair), np.minimum(*pair))
        while np.any(label[label] != label):
            label = label[label]
    return label.reshape(classes.shape)


def shape_overlaps(cover: Float[np.ndarray, "height width"]) -> tuple[dict[str, float], tuple[float, float, float]]:
    """Overlap of a soft mask with each upright shape of its area, centroid and aspect; and its (y, x, area).

    All three shapes have equal second moments along both axes, so their ratio is the aspect that a mask was drawn
    with, whatever its shape. One stretched further than `_MOST_ASPECT` is compared as if it were stretched that far.
    """
    area = float(cover.sum())
    y, x = (np.arange(size) + 0.5 for size in cover.shape)
    rows, columns = cover.sum(axis=1) / area, cover.sum(axis=0) / area
    centre = float(rows @ y), float(columns @ x)
    y, x = y - centre[0], x - centre[1]
    aspect = np.clip(np.sqrt((columns @ x**2) / (rows @ y**2)), 1 / _MOST_ASPECT, _MOST_ASPECT)
    outlines = _outlines(y[:, None] * np.sqrt(aspect), x[None] / np.sqrt(aspect), area)
    masks = {shape: np.clip(0.5 - distance, 0, 1) for shape, distance in zip(SHAPES, outlines, strict=True)}
    overlaps = {
        shape: float(np.minimum(mask, cover).sum() / np.maximum(mask, cover).sum()) for shape, mask in masks.items()
    }
    return overlaps, (*centre, area)


def _outlines(y, x, area):
    """Pixels outside the circle, square and equilateral triangle of `area`; negative inside."""
    circle = np.sqrt(y**2 + x**2) - np.sqrt(area / np.pi)
    square = np.maximum(np.abs(y), np.abs(x)) - np.sqrt(area) / 2
    height = np.sqrt(area * np.sqrt(3))  # the triangle's; its centroid is a third above the base
    triangle = np.maximum(y - height / 3, (np.sqrt(3) * np.abs(x) - y) / 2 - height / 3)
    return circle, square, triangle


def _describe(image, classes, cover, blob: Bool[np.ndarray, "height width"], root: int) -> Found:
    colour = int(classes.flat[root])
    if colour == _OTHER:
        _, place = shape_overlaps(blob.astype(np.float32))
        return Found(Kind(UNKNOWN, UNKNOWN), *place)
    full = np.median(cover[..., colour][blob])
    soft = np.clip(cover[..., colour] / full, 0, 1) * (blob | (_grown(blob) & (classes == _NONE)))
    overlaps, place = shape_overlaps(soft)
    shape = max(overlaps, key=overlaps.__getitem__)
    off = np.linalg.norm(np.median(image[blob], axis=0) - _GROUND - _TOWARDS[colour])
    name = _NAMES[colour] if off <= _OFF_COLOUR else UNKNOWN
    return Found(Kind(name, shape if overlaps[shape] >= _LEAST_OVERLAP[shape] else UNKNOWN), *place)


def _has_core(blob: Bool[np.ndarray, "height width"]) -> bool:
    """Whether any 3x3 square lies inside: the seam between two touching objects has none."""
    rows = blob[2:] & blob[1:-1] & blob[:-2]
    return bool(np.any(rows[:, 2:] & rows[:, 1:-1] & rows[:, :-2]))


def _grown(blob: Bool[np.ndarray, "height width"]) -> Bool[np.ndarray, "height width"]:
    """The blob and the pixels that touch it, corners too."""
    padded = np.pad(blob, 1)
    rows = padded[2:] | padded[1:-1] | padded[:-2]
    return rows[:, 2:] | rows[:, 1:-1] | rows[:, :-2]


def _check(image) -> None:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
        what = f"{image.dtype}{list(image.shape)}" if isinstance(image, np.ndarray) else type(image).__name__
        raise UserError(f"image is {what}: objects are counted in a NumPy array uint8[height, width, 3]")
