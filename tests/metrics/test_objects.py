"""The detector on true drawings of many sizes, on altered and damaged ones, and on pictures that hold another thing."""

import math
from collections import Counter

import numpy as np
import pytest

from entscale_jax.errors import UserError
from entscale_jax.metrics.captions import COLOURS, KINDS, Kind, parse_caption, write_caption
from entscale_jax.metrics.objects import UNKNOWN, compare, connected, count_objects, find_objects, least_area
from entscale_jax.scenes.alter import Alteration, alter, halve
from entscale_jax.scenes.captions import sample_captions
from entscale_jax.scenes.draw import SceneObject, draw_batch, draw_scene, paint, place

SIZES = [(64, 64), (80, 48), (48, 80), (96, 64), (128, 32), (96, 96), (64, 128), (128, 128), (192, 128), (256, 256)]
FOUR = "a red circle, a blue square, a green triangle and a yellow square"
RED_CIRCLE, BLUE_SQUARE = Kind("red", "circle"), Kind("blue", "square")
TOP, SIDE = {"circle": 1.0, "square": 0.886, "triangle": 1.555}, {"circle": 1.0, "square": 0.886, "triangle": 1.347}
BOTTOM = TOP | {"triangle": 0.778}


def drawings(width: int, height: int, count: int, seed: int = 0):
    rng = np.random.default_rng((seed, width, height))
    captions = sample_captions(rng, count)
    return captions, draw_batch(captions, rng, height=height, width=width)


def blurred(image: np.ndarray, sigma: float, noise: float, rng: np.random.Generator) -> np.ndarray:
    """Gaussian blur of `sigma` pixels, then noise of standard deviation `noise` of 255."""
    reach = 3 * math.ceil(sigma)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    soft = image.astype(float)
    for axis in (0, 1):
        rows = np.clip(np.arange(-reach, soft.shape[axis] + reach), 0, soft.shape[axis] - 1)
        windows = np.lib.stride_tricks.sliding_window_view(soft.swapaxes(0, axis)[rows], weights.size, axis=0)
        soft = (windows @ (weights / weights.sum())).swapaxes(0, axis)
    return np.clip(np.rint(soft + rng.normal(0, noise, image.shape)), 0, 255).astype(np.uint8)


def scene(*items: tuple[Kind, float, float, float], size: int = 64) -> np.ndarray:
    objects = [SceneObject(kind, float(y), float(x), float(radius)) for kind, y, x, radius in items]
    return paint(objects, height=size, width=size)


def least_radius(size: int) -> float:
    """Of a true object in a square picture: 14 pixels of 128, and never more."""
    return 14 * min(size / 128, 1)


def painted(mask: np.ndarray, rgb: tuple[int, int, int]) -> np.ndarray:
    return np.where(mask[..., None], np.array(rgb, np.uint8), np.uint8(232))


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_true_drawings_are_read_exactly(width, height):
    captions, images = drawings(width, height, 30)
    assert all(compare(image, caption).exact for image, caption in zip(images, captions, strict=True))


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_four_objects_are_read_exactly(width, height):
    captions = sample_captions(np.random.default_rng(5), 6, objects=4)
    for image, caption in zip(
        draw_batch(captions, np.random.default_rng(6), height=height, width=width), captions, strict=True
    ):
        assert compare(image, caption).exact


# What each alteration takes away and gives.
FAULTS = {
    "removed": (1, 0),
    "added": (0, 1),
    "repeated": (0, 1),
    "recoloured": (1, 1),
    "reshaped": (1, 1),
    "cut by half": (1, 1),
    "shrunk to a quarter of its area": (1, 1),
    "shrunk to a quarter of its radius": (1, 0),
}


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("alteration", list(Alteration))
def test_altered_drawings_change_the_verdict_accordingly(alteration, width, height):
    rng = np.random.default_rng((width, height))
    right = []
    while len(right) < 12:
        (caption,) = sample_captions(rng, 1, objects=2 if len(right) < 8 else 3)
        objects = place(parse_caption(caption), rng, height=height, width=width)
        try:
            altered = alter(alteration, objects, rng, height=height, width=width)
        except UserError:  # no place is free for one more: another drawing has one
            continue
        assert altered[1:] == FAULTS[alteration]
        assert compare(paint(objects, height=height, width=width), caption).exact
        right.append(compare(altered.image, caption)[1:] == FAULTS[alteration])
    assert all(right)


@pytest.mark.parametrize("size", [64, 96, 128, 256])
@pytest.mark.parametrize("shape", ["circle", "square", "triangle"])
def test_half_an_object_is_missing_at_any_angle(shape, size):
    for radius in least_radius(size) * np.array([1.02, 1.14, 1.27]):
        item = SceneObject(Kind("blue", shape), 32.3, 31.6, float(radius))
        assert compare(paint((item,), height=size, width=size), f"a blue {shape}").exact
        for angle in np.deg2rad(np.arange(0, 360, 30)):
            assert compare(halve(item, float(angle), height=size, width=size), f"a blue {shape}") == (False, 1, 1)


@pytest.mark.parametrize("shape", ["circle", "square"])
def test_half_an_object_much_larger_than_it_need_be_is_missing_too(shape):
    item = SceneObject(Kind("blue", shape), 32.3, 31.6, 18.0)
    for angle in np.deg2rad(np.arange(0, 360, 15)):
        assert compare(halve(item, float(angle), height=64, width=64), f"a blue {shape}") == (False, 1, 1)


@pytest.mark.parametrize("size", [64, 96])
def test_objects_of_training_pixels_are_right_in_smaller_pictures(size):
    for kind in KINDS:
        for radius in (14.0, 18.0):
            image = scene((kind, size / 2 + 3, size / 2, radius), size=size)
            assert compare(image, str(kind)).exact


def test_the_least_object_follows_the_law():
    areas = [least_area(height, width) for width, height in SIZES]
    assert areas[0] == pytest.approx(math.pi * 7**2)
    assert areas[1] == areas[2] == pytest.approx(math.pi * 14**2 * 80 * 48 / 128**2)
    assert areas[-3:] == [pytest.approx(math.pi * 14**2)] * 3


@pytest.mark.parametrize(
    ("radius", "verdict"), [(1.0, (True, 0, 0)), (0.97, (True, 0, 0)), (0.92, (False, 1, 1)), (0.36, (False, 1, 0))]
)
@pytest.mark.parametrize("size", [64, 128, 256])
def test_small_objects_are_missing_and_specks_are_nothing(size, radius, verdict):
    for shape in ("circle", "square", "triangle"):
        image = scene((Kind("green", shape), 30.4, 31.7, radius * least_radius(size)), size=size)
        assert compare(image, f"a green {shape}") == verdict


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_blank_pictures_and_other_captions_are_never_exact(width, height):
    captions, images = drawings(width, height, 12, seed=1)
    blank = np.full((height, width, 3), 232, np.uint8)
    for i, caption in enumerate(captions):
        asked = parse_caption(caption)
        assert compare(blank, caption) == (False, len(asked), 0)
        for other in captions[i + 1 : i + 4]:
            if Counter(parse_caption(other)) != Counter(asked):
                assert not compare(images[i], other).exact


@pytest.mark.parametrize(("size", "sigma"), [(64, 0.7), (64, 1.0), (128, 1.5)])
def test_soft_and_noisy_drawings_are_read_too(size, sigma):
    rng = np.random.default_rng(0)
    captions, images = drawings(size, size, 60, seed=2)
    exact = [
        compare(blurred(image, sigma, 6, rng), caption).exact for image, caption in zip(images, captions, strict=True)
    ]
    assert sum(exact) >= 59


def test_drawings_blurred_beyond_recognition_are_not():
    rng = np.random.default_rng(0)
    captions, images = drawings(128, 128, 40, seed=3)
    exact = [compare(blurred(image, 8, 6, rng), caption).exact for image, caption in zip(images, captions, strict=True)]
    assert sum(exact) <= 10


@pytest.mark.parametrize(
    ("drawn", "asked", "missing", "extra"),
    [
        ("a red circle", "a red circle and a blue square", 1, 0),
        ("a red circle and a blue square", "a red circle", 0, 1),
        ("a red circle and a blue square", "a blue circle and a red square", 2, 2),
        ("a red circle", "a red square", 1, 1),
        ("a red circle", "a yellow circle", 1, 1),
        ("a red circle, a blue square and a green triangle", "a green triangle, a red circle and a blue square", 0, 0),
        ("a red circle, a blue square and a green triangle", "a yellow triangle", 1, 3),
        (FOUR, "a yellow square with a red circle, a green triangle and a blue square", 0, 0),
        (FOUR, "a red circle with a yellow circle", 1, 3),
    ],
)
def test_missing_and_extra_are_counted(drawn, asked, missing, extra):
    image = draw_scene(drawn, np.random.default_rng(0))
    assert compare(image, asked) == (missing == extra == 0, missing, extra)


def test_a_repeated_object_is_extra():
    image = scene((RED_CIRCLE, 15, 15, 8), (RED_CIRCLE, 45, 45, 8), (RED_CIRCLE, 15, 45, 8))
    assert compare(image, "a red circle") == (False, 0, 2)


def test_place_and_area_are_those_drawn():
    rng = np.random.default_rng(4)
    for caption in sample_captions(rng, 50):
        drawn = sorted(place(parse_caption(caption), rng), key=lambda item: item.kind)
        found = sorted(find_objects(paint(drawn, height=128, width=128)), key=lambda item: item.kind)
        for item, blob in zip(drawn, found, strict=True):
            assert (blob.y, blob.x) == pytest.approx((item.y, item.x), abs=0.3)
            assert blob.area == pytest.approx(np.pi * item.radius**2, rel=0.05)


@pytest.mark.parametrize("shift", [(30, 30, 30), (-30, -30, -30), (35, -20, 20), (-30, 30, 30), (20, 30, -30)])
def test_shifted_colours_keep_their_name(shift):
    for name, rgb in COLOURS.items():
        image = scene((Kind(name, "triangle"), 32, 32, 8))
        shifted = np.where((image == rgb).all(-1, keepdims=True), np.clip(np.array(rgb) + shift, 0, 255), image)
        assert count_objects(shifted.astype(np.uint8)) == {Kind(name, "triangle"): 1}


@pytest.mark.parametrize(
    "rgb", [(245, 130, 25), (130, 40, 190), (0, 0, 0), (110, 110, 110), (0, 200, 220), (130, 110, 40)]
)
def test_other_colours_are_unknown(rgb):
    image = scene((RED_CIRCLE, 32, 32, 8))
    other = painted((image == COLOURS["red"]).all(-1), rgb)
    assert [found.kind.colour for found in find_objects(other)] == [UNKNOWN]
    assert compare(other, "a red circle") == (False, 1, 1)


def test_two_touching_objects_of_different_colours_are_two():
    for a in KINDS:
        for b in KINDS:
            if a.colour != b.colour:
                below = scene((a, 20.3, 30.6, 8), (b, 20.3 + 8 * (BOTTOM[a.shape] + TOP[b.shape]), 30.6, 8))
                beside = scene((a, 30.3, 16.6, 8), (b, 30.3, 16.6 + 8 * (SIDE[a.shape] + SIDE[b.shape]), 8))
                assert count_objects(below) == count_objects(beside) == Counter((a, b))


def test_two_merged_objects_of_one_colour_are_an_unknown_blob():
    image = scene((RED_CIRCLE, 32, 22, 9), (RED_CIRCLE, 32, 38, 9))
    assert count_objects(image) == {Kind("red", UNKNOWN): 1}
    assert compare(image, "a red circle") == (False, 1, 1)


def blobs() -> dict[str, np.ndarray]:
    """Masks of 64x64 that are none of the three upright shapes."""
    y, x = np.mgrid[-32:32, -32:32] + 0.5
    disc, angle = np.hypot(y, x) < 10, np.arctan2(y, x)
    return {
        "half disc above": disc & (y < 0),
        "half disc beside": disc & (x < 0),
        "ring": disc & (np.hypot(y, x) > 5),
        "triangle upside down": np.maximum(-y, 0.866 * np.abs(x) + y / 2) < 8,
        "triangle on its side": np.maximum(x, 0.866 * np.abs(y) - x / 2) < 8,
        "plus": (np.maximum(np.abs(y) - 12, np.abs(x) - 4) < 0) | (np.maximum(np.abs(y) - 4, np.abs(x) - 12) < 0),
        "star": np.hypot(y, x) < 10 * (1 + 0.4 * np.cos(5 * angle)),
        "bar": np.maximum(np.abs(y) - 4, np.abs(x) - 16) < 0,
    }


@pytest.mark.parametrize("name", blobs())
def test_a_blob_that_is_no_shape_is_unknown(name):
    image = painted(blobs()[name], COLOURS["green"])
    assert count_objects(image) == {Kind("green", UNKNOWN): 1}


@pytest.mark.parametrize("stretch", [1.15, 1.3])
@pytest.mark.parametrize("shape", ["circle", "square", "triangle"])
def test_a_slightly_stretched_shape_keeps_its_name(shape, stretch):
    y, x = np.mgrid[-32:32, -32:32] + 0.5
    for v, u in ((y * stretch**0.5, x / stretch**0.5), (y / stretch**0.5, x * stretch**0.5)):
        outline = {
            "circle": np.hypot(v, u) - 8.5,
            "square": np.maximum(np.abs(v), np.abs(u)) - 7.5,
            "triangle": np.maximum(v, 0.866 * np.abs(u) - v / 2) - 6.6,
        }
        assert count_objects(painted(outline[shape] < 0, COLOURS["yellow"])) == {Kind("yellow", shape): 1}


def test_specks_and_scratches_are_ignored_and_a_larger_blob_is_not():
    image = scene((BLUE_SQUARE, 40, 40, 8))
    image[5:9, 5:9] = COLOURS["red"]
    image[14, 2:60] = (0, 0, 0)
    assert compare(image, "a blue square").exact
    image[5:11, 5:11] = COLOURS["red"]
    assert compare(image, "a blue square") == (False, 0, 1)


def test_noise_holds_nothing_that_is_asked():
    rng = np.random.default_rng(0)
    for size in (32, 64, 128):
        noise = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
        assert all(not compare(noise, write_caption([kind])).exact for kind in KINDS)


def test_connected_follows_edges_not_corners():
    classes = np.array([[0, 0, -1, 1], [-1, 0, 1, 1], [0, -1, 2, 0], [0, 0, 0, 0]])
    expected = np.array([[0, 0, 2, 3], [4, 0, 3, 3], [8, 9, 10, 8], [8, 8, 8, 8]])
    assert np.array_equal(connected(classes), expected)


def test_connected_agrees_with_a_flood_fill_on_mazes():
    rng = np.random.default_rng(0)
    for _ in range(20):
        classes = rng.choice([-1, 0, 1], (24, 31), p=[0.3, 0.5, 0.2])
        label = np.full(classes.shape, -1)
        for start in np.ndindex(classes.shape):
            stack = [start] if label[start] < 0 else []
            while stack:
                y, x = stack.pop()
                inside = 0 <= y < 24 and 0 <= x < 31
                if inside and label[y, x] < 0 and classes[y, x] == classes[start]:
                    label[y, x] = start[0] * 31 + start[1]
                    if classes[start] >= 0:
                        stack += [(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)]
        assert np.array_equal(connected(classes), label)


@pytest.mark.parametrize(
    "image", [np.zeros((8, 8, 3), np.float32), np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8)]
)
def test_another_type_or_shape_is_a_user_error(image):
    with pytest.raises(UserError, match="objects are counted in a NumPy array uint8"):
        compare(image, "a red circle")


def test_a_caption_outside_the_grammar_is_a_user_error():
    with pytest.raises(UserError, match="which is no object of a scene"):
        compare(np.zeros((8, 8, 3), np.uint8), "a photograph of a horse")
