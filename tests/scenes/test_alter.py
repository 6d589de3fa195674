"""Altered drawings, measured on the pixels: that each alteration does what it says, and to one object."""

import math

import numpy as np
import pytest

from entscale_jax.errors import UserError
from entscale_jax.metrics.captions import COLOURS, Kind
from entscale_jax.scenes.alter import Alteration, alter, halve
from entscale_jax.scenes.draw import SceneObject, paint

CIRCLE = SceneObject(Kind("red", "circle"), 30.3, 30.8, 12.0)
SQUARE = SceneObject(Kind("blue", "square"), 30.0, 90.0, 12.0)
AREA = math.pi * 12**2


def areas(image: np.ndarray) -> dict[str, float]:
    """Pixels of each colour, of which less than half is ground."""
    distance = np.stack([np.abs(image - np.array(rgb, float)).sum(-1) for rgb in [*COLOURS.values(), (232,) * 3]])
    nearest = distance.argmin(axis=0)
    return {name: int((nearest == i).sum()) for i, name in enumerate(COLOURS) if (nearest == i).sum() > 8}


def altered(alteration: Alteration, seed: int) -> dict[str, float]:
    return areas(alter(alteration, [CIRCLE, SQUARE], np.random.default_rng(seed), height=128, width=128).image)


def near(area: float):
    return pytest.approx(area, rel=0.08)


@pytest.mark.parametrize(
    ("alteration", "left"),
    [("cut by half", 0.5), ("shrunk to a quarter of its area", 1 / 4), ("shrunk to a quarter of its radius", 1 / 16)],
)
def test_one_object_is_left_and_the_other_is_smaller(alteration, left):
    for seed in range(8):
        found = altered(Alteration(alteration), seed)
        assert sorted(found) == ["blue", "red"]
        assert sorted(found.values()) == [pytest.approx(left * AREA, abs=0.08 * AREA * left**0.5), near(AREA)]


def test_objects_are_removed_added_and_repeated():
    for seed in range(8):
        assert list(altered(Alteration.REMOVED, seed).values()) == [near(AREA)]
        # The new one has a radius of its own, 14 to 18, and may share a colour.
        assert AREA * 2 + 570 < sum(altered(Alteration.ADDED, seed).values()) < AREA * 2 + 1060
        repeated = altered(Alteration.REPEATED, seed)
        assert sorted(repeated) == ["blue", "red"]
        assert min(repeated.values()) == near(AREA)
        assert AREA + 570 < max(repeated.values()) < AREA + 1060


def test_recoloured_and_reshaped_objects_keep_their_area():
    for seed in range(8):
        recoloured = altered(Alteration.RECOLOURED, seed)
        assert sorted(recoloured) != ["blue", "red"]
        assert sum(recoloured.values()) == near(2 * AREA)
        reshaped = altered(Alteration.RESHAPED, seed)
        assert sorted(reshaped) == ["blue", "red"]
        assert sum(reshaped.values()) == near(2 * AREA)
        image = alter(Alteration.RESHAPED, [CIRCLE], np.random.default_rng(seed), height=128, width=128).image
        rows, columns = np.nonzero((image == COLOURS["red"]).all(-1))
        widths = np.bincount(rows - rows.min())
        box = (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
        # A square fills its box; a triangle half of it, and widens downwards; a circle does neither.
        assert len(rows) > 0.95 * box or (len(rows) < 0.6 * box and widths[-2] > widths[len(widths) // 2] > widths[1])


@pytest.mark.parametrize(("angle", "towards"), [(0, (0, 1)), (90, (1, 0)), (180, (0, -1)), (225, (-0.71, -0.71))])
def test_the_half_kept_is_the_one_towards_the_angle(angle, towards):
    whole = paint((SQUARE, CIRCLE), height=64, width=128)
    image = halve(CIRCLE, math.radians(angle), (SQUARE,), height=64, width=128)
    assert np.array_equal(image[:, 64:], whole[:, 64:])
    points = np.argwhere(image[:, :64, 1] < (26 + 232) / 2) + 0.5
    assert len(points) == pytest.approx(AREA / 2, rel=0.04)
    # The centroid of half a disc lies 4 r / 3 pi from its centre.
    assert points.mean(axis=0) - (30.3, 30.8) == pytest.approx(np.array(towards) * 4 * 12 / (3 * math.pi), abs=0.5)


def test_no_free_place_is_a_user_error():
    large = SceneObject(Kind("red", "square"), 32.0, 32.0, 33.0)
    with pytest.raises(UserError, match="no place is free for a red square among 1 objects in 64x64 pixels"):
        alter(Alteration.REPEATED, [large], np.random.default_rng(0), height=64, width=64)
