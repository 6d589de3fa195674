"""Drawings: areas, margins and colours are measured on the pixels, against geometry stated here."""

import math
from itertools import combinations

import numpy as np
import pytest

from entscale_jax.errors import UserError
from entscale_jax.metrics.captions import BACKGROUND, COLOURS, KINDS, Kind, parse_caption
from entscale_jax.scenes.captions import sample_captions
from entscale_jax.scenes.draw import SceneObject, draw_batch, draw_scene, find_place, kind_map, paint, place

SIZES = [(64, 64), (80, 48), (48, 80), (96, 64), (128, 32), (32, 128), (96, 96), (128, 128), (192, 128), (256, 256)]
GROUND = (232, 232, 232)
FOUR_TRIANGLES = "a red triangle, a blue triangle, a green triangle and a yellow triangle"
RADII = {
    64 * 64: (7.0, 9.0),
    80 * 48: (6.78, 8.71),
    96 * 64: (8.57, 11.03),
    96 * 96: (10.5, 13.5),
}  # by area; else 14, 18


def coverage(image: np.ndarray, colour: str) -> np.ndarray:
    """How much of each pixel is `colour`, on a ground of `GROUND`, by the channel in which the two differ most."""
    target = np.array(COLOURS[colour], float)
    channel = int(np.abs(target - GROUND).argmax())
    return (image[..., channel].astype(float) - GROUND[channel]) / (target[channel] - GROUND[channel])


def scenes(width: int, height: int, count: int = 60, objects: int | None = None):
    rng = np.random.default_rng(width * 1000 + height)
    for caption in sample_captions(rng, count, objects):
        yield place(parse_caption(caption), rng, height=height, width=width)


def solid_points(item: SceneObject, height: int, width: int) -> np.ndarray:
    return np.argwhere(coverage(paint((item,), height=height, width=width), item.kind.colour) > 0.5)


@pytest.mark.parametrize("shape", ["circle", "square", "triangle"])
@pytest.mark.parametrize("radius", [4.5, 7.0, 10.0])
def test_shapes_have_the_area_of_their_circle(shape, radius):
    area = coverage(paint((SceneObject(Kind("red", shape), 31.3, 30.8, radius),), height=64, width=64), "red").sum()
    assert area == pytest.approx(math.pi * radius**2, rel=0.02)
    assert area != pytest.approx(math.pi * (radius + 0.5) ** 2, rel=0.02)


def test_shapes_have_their_outline():
    # Corners of a square of area pi 100 are 12.5 from its centre, of the triangle 15.6, 7.8 of whose height is below.
    centre, radius = 32.0, 10.0
    masks = {}
    for shape in ("circle", "square", "triangle"):
        image = paint((SceneObject(Kind("blue", shape), centre, centre, radius),), height=64, width=64)
        masks[shape] = coverage(image, "blue") > 0.5
    assert [masks[shape][23:25, 23:25].all() for shape in masks] == [False, True, False]
    extent = {shape: np.argwhere(mask) for shape, mask in masks.items()}
    rows = {shape: (points[:, 0].min(), points[:, 0].max() + 1) for shape, points in extent.items()}
    columns = {shape: (points[:, 1].min(), points[:, 1].max() + 1) for shape, points in extent.items()}
    assert rows == {"circle": (22, 42), "square": (23, 41), "triangle": (pytest.approx(17, abs=1.01), 40)}
    assert columns == {"circle": (22, 42), "square": (23, 41), "triangle": (pytest.approx(19, abs=1.01), 45)}
    assert masks["triangle"][20].sum() < masks["triangle"][30].sum() < masks["triangle"][38].sum()


def test_edges_are_anti_aliased():
    cover = coverage(paint((SceneObject(Kind("red", "circle"), 20.0, 20.0, 8.0),), height=40, width=40), "red")
    edge = cover[(cover > 0.02) & (cover < 0.98)]
    assert 30 < edge.size < 120  # the circumference is 50 pixels long


def test_colours_are_well_apart():
    colours = [np.array(rgb, float) for rgb in (*COLOURS.values(), GROUND)]
    assert min(np.linalg.norm(a - b) for a, b in combinations(colours, 2)) > 180


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_objects_are_apart_and_inside(width, height):
    for items in scenes(width, height, 16):
        image = paint(items, height=height, width=width)
        border = np.concatenate((image[0], image[-1], image[:, 0], image[:, -1]))
        assert (border == GROUND).all()
        points = [solid_points(item, height, width) for item in items]
        for a, b in combinations(points, 2):
            gap = np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1)).min() - 1
            assert gap >= (2.9 if width * height >= 128 * 128 else 1)


def test_objects_that_touch_fail_that_measure():
    pair = [SceneObject(Kind("red", "square"), 20.0, x, 8.0) for x in (20.0, 20.0 + 8 * math.sqrt(math.pi))]
    a, b = (solid_points(item, 40, 60) for item in pair)
    assert np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1)).min() - 1 < 1


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_radii_are_uniform_between_those_of_the_law(width, height):
    radii = [item.radius for items in scenes(width, height, 60, objects=4) for item in items]
    least, largest = RADII.get(width * height, (14.0, 18.0))
    assert least - 0.01 <= min(radii) < 1.04 * least
    assert 0.97 * largest < max(radii) <= largest + 0.01
    assert np.mean(radii) == pytest.approx((least + largest) / 2, rel=0.035)


def test_objects_of_a_small_picture_would_not_pass_for_those_of_training():
    radii = [item.radius for items in scenes(96, 96, 60, objects=4) for item in items]
    assert np.mean(np.array(radii) < 14) > 0.99


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_four_triangles_are_always_placed(width, height):
    rng = np.random.default_rng(0)
    for _ in range(30):
        assert len(place(parse_caption(FOUR_TRIANGLES), rng, height=height, width=width)) == 4


def test_a_picture_too_thin_is_a_user_error():
    with pytest.raises(UserError, match="4 objects do not fit into 512x16 pixels: draw a larger or a squarer picture"):
        draw_scene(FOUR_TRIANGLES, np.random.default_rng(0), height=16, width=512)


@pytest.mark.parametrize(("kind", "radius"), [(Kind("red", "circle"), 5.0), (Kind("red", "triangle"), 7.0)])
def test_a_place_is_found_apart_from_others_or_none_is(kind, radius):
    other = SceneObject(Kind("blue", "square"), 32.0, 20.0, 14.0)
    rng = np.random.default_rng(0)
    for _ in range(20):
        item = find_place(kind, radius, [other], rng, height=64, width=64)
        assert item is not None
        assert (item.kind, item.radius) == (kind, radius)
        a, b = (solid_points(one, 64, 64) for one in (item, other))
        assert np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1)).min() - 1 >= 1
    assert find_place(kind, 40.0, [], rng, height=64, width=64) is None
    assert find_place(kind, radius, [SceneObject(other.kind, 32.0, 32.0, 33.0)], rng, height=64, width=64) is None


def test_batch_is_uint8_of_the_size_asked_and_holds_the_colours_of_each_caption():
    captions = ["a red circle", "a green square and a yellow triangle"]
    images = draw_batch(captions, np.random.default_rng(0), height=48, width=64)
    assert images.shape == (2, 48, 64, 3)
    assert images.dtype == np.uint8
    present = [{name for name, rgb in COLOURS.items() if (image == rgb).all(-1).sum() > 50} for image in images]
    assert present == [{"red"}, {"green", "yellow"}]


def test_no_captions_no_pictures():
    assert draw_batch([], np.random.default_rng(0)).shape == (0, 128, 128, 3)


def test_same_generator_same_drawing_other_generator_another():
    first, again, other = (draw_batch([FOUR_TRIANGLES], np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_places_cover_the_picture():
    centres = np.array([(items[0].y, items[0].x) for items in scenes(64, 64, 400, objects=1)])
    for axis in (0, 1):
        assert centres[:, axis].min() < 18
        assert centres[:, axis].max() > 46
        assert abs(centres[:, axis].mean() - 32) < 3.5


def test_the_kind_map_names_what_is_drawn_at_each_cell():
    objects = place(parse_caption("a red circle and a blue square"), np.random.default_rng(5), height=64, width=96)
    picture, found = (
        paint(objects, height=64, width=96),
        kind_map(objects, height=64, width=96, cell=2),
    )
    expected = {0: BACKGROUND, **{1 + KINDS.index(item.kind): COLOURS[item.kind.colour] for item in objects}}
    assert found.shape == (32, 48)
    assert set(np.unique(found)) == set(expected)
    # A cell whose four pixels have one colour is of the kind that has it.
    cells = picture.reshape(32, 2, 48, 2, 3).swapaxes(1, 2).reshape(32, 48, 4, 3)
    plain = (cells == cells[:, :, :1]).all(axis=(2, 3))
    assert plain.mean() > 0.8
    for kind, colour in expected.items():
        np.testing.assert_array_equal((cells[:, :, 0] == colour).all(axis=-1)[plain], (found == kind)[plain])
