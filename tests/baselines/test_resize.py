"""Resizing is Pillow's Lanczos of the training size's picture, on the part of it that fills the frame."""

import numpy as np
import pytest
from PIL import Image, ImageOps

from entscale_jax.baselines import Resize
from entscale_jax.baselines.resize import frame

CAPTIONS = ["a red circle", "a blue square"]


@pytest.mark.parametrize(
    ("drawn", "size", "box"),
    [
        ((512, 512), (224, 224), (0, 0, 512, 512)),
        ((512, 512), (768, 768), (0, 0, 512, 512)),
        ((512, 512), (288, 512), (0, 112, 512, 400)),
        ((512, 512), (512, 288), (112, 0, 400, 512)),
        ((256, 256), (192, 256), (0, 32, 256, 224)),
        ((96, 160), (30, 20), (48, 0, 112, 96)),
    ],
)
def test_the_frame_by_hand(drawn, size, box):
    """(left, top, right, bottom) of the largest box of the size's shape in the middle."""
    assert frame(drawn, size) == box


@pytest.mark.parametrize("size", [(7, 13), (13, 7), (224, 223), (1, 300), (511, 512)])
def test_the_frame_is_as_large_as_it_can_be(size):
    (height, width), (high, wide) = size, (384, 512)
    left, top, right, bottom = frame((high, wide), size)
    assert left >= 0
    assert top >= 0
    assert (left + right, top + bottom) == pytest.approx((wide, high))
    assert (right - left) * height == pytest.approx((bottom - top) * width)
    assert right - left == wide or bottom - top == high


def lanczos(image, size, box):
    """In float64, by definition: sinc(x) sinc(x/3), stretched where it shrinks, weights of sum 1."""

    def weights(length, first, last, count):
        scale = (last - first) / count
        stretch = max(scale, 1.0)
        centres = first + (np.arange(count)[:, None] + 0.5) * scale
        x = (np.arange(length)[None] + 0.5 - centres) / stretch
        values = np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0.0)
        return values / values.sum(axis=1, keepdims=True)

    (height, width), (left, top, right, bottom) = size, box
    rows = weights(image.shape[0], top, bottom, height)
    columns = weights(image.shape[1], left, right, width)
    return np.clip(np.einsum("yh,hwc,xw->yxc", rows, image.astype(np.float64), columns), 0, 255)


@pytest.mark.parametrize("size", [(24, 24), (18, 32), (50, 31), (64, 64)])
def test_pictures_are_lanczos_s(size):
    # Pillow cuts to bytes between rows and columns, so for the definition no value may leave them.
    images = np.random.default_rng(0).integers(90, 166, (2, 32, 48, 3), np.uint8)
    got = Resize().finish(images, size)
    assert got.shape == (2, *size, 3)
    for image, resized in zip(images, got, strict=True):
        fitted = ImageOps.fit(Image.fromarray(image), size[::-1], Image.Resampling.LANCZOS)
        np.testing.assert_array_equal(resized, np.asarray(fitted))
        expected = lanczos(image, size, frame((32, 48), size))
        assert np.abs(resized - expected).max() <= 1.5  # it rounds there, too
        bicubic = ImageOps.fit(Image.fromarray(image), size[::-1], Image.Resampling.BICUBIC)
        assert np.abs(np.asarray(bicubic) - expected).max() > 5


def test_every_size_is_made_of_the_picture_at_the_training_size(tiny):
    options = {"steps": 2, "guidance": 3.0, "seed": 5}
    drawn = tiny(CAPTIONS, rule="original", **options)
    before = dict(tiny.programs.cache.compiled)
    for size in ((32, 32), (24, 40), (64, 20), (3, 2)):
        out = Resize().draw(tiny, CAPTIONS, height=size[0], width=size[1], **options)
        np.testing.assert_array_equal(out.latents, drawn.latents)
        for image, resized in zip(drawn.images, out.images, strict=True):
            fitted = ImageOps.fit(Image.fromarray(image), size[::-1], Image.Resampling.LANCZOS)
            np.testing.assert_array_equal(resized, np.asarray(fitted))
    assert tiny.programs.cache.compiled == before  # not a single program of its own
    assert Resize().draw(tiny, CAPTIONS, decode=False, **options).images is None
