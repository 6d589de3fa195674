"""Counts the coloured shapes in a picture and compares them with its caption: missing and repeated objects as numbers.

It knows the vocabulary of scenes and the law of their size, but not the code that draws them, and is meant for what a
model draws: soft edges, shifted colours, specks, blobs that are no shape.

What is right at a size: each object that the caption names, once, whole and upright, and nothing else that a viewer
would call a thing. How small it may be follows from `captions.radii` alone:

- from the training area upwards, a right object is as large in pixels as in training: a larger picture is a larger
  field of view and asks for no larger and no more objects;
- below it, objects may shrink with the picture, as in the paper's small pictures, where they still fit the frame. They
  need not: there is no upper limit, so a half-size picture that holds all its objects at training pixels is right too.

A blob of less than nine tenths of the least true area is no whole object: a triangle cut parallel to its base leaves an
upright triangle, which only size can tell from a whole one, of up to 4/9 of the largest area, 0.87 of the least. Such a
blob, or one of another shape, is `unknown` and extra, as half an object or a small one still is a thing. Below a sixth
of the least true area, between what a quarter of the largest radius leaves (0.12) and a quarter of the least area
(0.25), it is a speck, and ignored.
"""

from collections import Counter
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from ..errors import UserError
from .captions import BACKGROUND, COLOURS, SHAPES, Kind, parse_caption, radii

UNKNOWN = "unknown"

_GROUND = np.array(BACKGROUND, np.float32)
_TOWARDS = np.array(list(COLOURS.values()), np.float32) - _GROUND  # colour channel
_NAMES = (*COLOURS, UNKNOWN)
_NONE, _OTHER = -1, len(COLOURS)  # classes of a pixel beside the indices of COLOURS

# Distances in RGB, where the two nearest colours of scenes are 184 apart: of a pixel from the line ground-colour, of a
# blob's mean from its colour, and of a pixel from the ground, nearer than which it belongs to it.
_OFF_LINE, _OFF_COLOUR, _OFF_GROUND = 70.0, 90.0, 90.0
# Overlap (intersection over union) with the best upright shape of its area below which a blob is no shape. A circle and
# a square overlap by 0.83, either and a triangle by 0.69; halves of circles and squares with any by 0.82 or less, true
# drawings with their own by 0.93, and by 0.9 with a pixel of blur.
_LEAST_OVERLAP = 0.87
_MOST_ASPECT = 1.35
_WHOLE, _SPECK = 0.9, 1 / 6  # of the least true area


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
    classes = classify_pixels(image)
    labels = connected(classes)
    roots, areas = np.unique(labels[classes != _NONE], return_counts=True)
    least = least_area(*classes.shape)
    found = []
    for root in roots[areas >= _SPECK * least].tolist():
        window, blob = _cut_out(labels == root)
        if _has_core(blob):
            found.append(_describe(image[window], classes[window], blob, int(classes.flat[root]), least))
            found[-1] = found[-1]._replace(y=found[-1].y + window[0].start, x=found[-1].x + window[1].start)
    return found


def least_area(height: int, width: int) -> float:
    """Pixels of the smallest object that a picture of this size should hold."""
    return float(np.pi * radii(height, width)[0] ** 2)


def classify_pixels(image: UInt8[np.ndarray, "height width 3"]) -> Int[np.ndarray, "height width"]:
    """For each pixel the index of its colour (-1 ground, 4 other).

    A soft edge mixes ground and colour, so a pixel goes to the nearest line between the two, not the nearest colour.
    """
    away = image.astype(np.float32) - _GROUND
    classes = np.full(image.shape[:2], _NONE)
    far = np.einsum("yxc,yxc->yx", away, away) > _OFF_GROUND**2
    away = away[far]
    along, length = away @ _TOWARDS.T, np.sum(_TOWARDS**2, axis=1)
    cover = along / length
    mixed = np.clip(cover, 0, 1)
    from_line = np.sum(away**2, axis=-1)[:, None] + mixed * (mixed * length - 2 * along)  # squared
    nearest = from_line.argmin(axis=-1)
    known = from_line.min(axis=-1) <= _OFF_LINE**2
    covered = np.take_along_axis(cover, nearest[:, None], axis=-1)[:, 0] >= 0.5
    classes[far] = np.where(known, np.where(covered, nearest, _NONE), _OTHER)
    return classes


def connected(classes: Int[np.ndarray, "height width"]) -> Int[np.ndarray, "height width"]:
    """For each pixel the lowest flat index among the pixels of its class that it is connected with, edge to edge.

    Ground pixels stay alone. Pixels of a row that are connected are taken as one run; each round hooks the higher root
    of every joined pair of runs to the lower one and then follows the roots to their ends.
    """
    solid = classes != _NONE
    starts = np.ones(classes.shape, bool)
    starts[:, 1:] = (classes[:, 1:] != classes[:, :-1]) | ~solid[:, 1:]
    run = np.cumsum(starts).reshape(classes.shape) - 1
    down = (classes[1:] == classes[:-1]) & solid[1:]
    first, second = run[:-1][down], run[1:][down]
    label = np.arange(run[-1, -1] + 1)
    while np.any(apart := label[first] != label[second]):
        first, second = first[apart], second[apart]
        pair = label[first], label[second]
        np.minimum.at(label, np.maximum(*pair), np.minimum(*pair))
        while np.any(label[label] != label):
            label = label[label]
    return np.flatnonzero(starts)[label][run]


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


def _describe(
    image: UInt8[np.ndarray, "height width 3"],
    classes: Int[np.ndarray, "height width"],
    blob: Bool[np.ndarray, "height width"],
    colour: int,
    least: float,
) -> Found:
    """What a blob is, of which `image`, `classes` and `blob` are cut out with a margin."""
    if colour == _OTHER:
        _, place = shape_overlaps(blob.astype(np.float32))
        return Found(Kind(UNKNOWN, UNKNOWN), *place)
    towards = _TOWARDS[colour]
    cover = (image - _GROUND) @ towards / np.sum(towards**2)
    # Twice the contrast about half cover: an edge blurred over two pixels is as sharp again as a drawn one.
    sharp = np.clip(2 * cover / np.median(cover[blob]) - 0.5, 0, 1) * (blob | (_grown(blob) & (classes == _NONE)))
    overlaps, place = shape_overlaps(sharp)
    shape = max(overlaps, key=overlaps.__getitem__)
    whole = overlaps[shape] >= _LEAST_OVERLAP and place[2] >= _WHOLE * least
    off = np.linalg.norm(np.median(image[blob], axis=0) - _GROUND - towards)
    return Found(Kind(_NAMES[colour] if off <= _OFF_COLOUR else UNKNOWN, shape if whole else UNKNOWN), *place)


def _cut_out(blob: Bool[np.ndarray, "height width"]) -> tuple[tuple[slice, slice], Bool[np.ndarray, "rows columns"]]:
    """The smallest window around a blob with a pixel to spare where the picture has one, and the blob in it."""
    rows, columns = (np.flatnonzero(blob.any(axis=axis)) for axis in (1, 0))
    window = slice(max(rows[0] - 1, 0), rows[-1] + 2), slice(max(columns[0] - 1, 0), columns[-1] + 2)
    return window, blob[window]


def _has_core(blob: Bool[np.ndarray, "height width"]) -> bool:
    """Whether any pixel lies inside with its four neighbours: in the seam between two touching objects none does."""
    inner = blob[1:-1, 1:-1] & blob[:-2, 1:-1] & blob[2:, 1:-1] & blob[1:-1, :-2] & blob[1:-1, 2:]
    return bool(inner.any())


def _grown(blob: Bool[np.ndarray, "height width"]) -> Bool[np.ndarray, "height width"]:
    """The blob and the pixels that touch it, corners too."""
    padded = np.pad(blob, 1)
    rows = padded[2:] | padded[1:-1] | padded[:-2]
    return rows[:, 2:] | rows[:, 1:-1] | rows[:, :-2]


def _check(image) -> None:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
        what = f"{image.dtype}{list(image.shape)}" if isinstance(image, np.ndarray) else type(image).__name__
        raise UserError(f"image is {what}: objects are counted in a NumPy array uint8[height, width, 3]")
