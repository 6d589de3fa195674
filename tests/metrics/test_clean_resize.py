"""Resizing is clean-fid's: a bicubic kernel stretched by the factor of reduction, in floats, from the formula."""

import numpy as np
import pytest
from PIL import Image

from entscale_jax.errors import UserError
from entscale_jax.metrics.resize import clean_batch, clean_resize

BOUND = 1e-3  # of 255; measured 2.2e-5, float32's; clean-fid 0.1.35 itself gives the same bits


def _image(height, width, seed=0):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    image[height // 3 :, : width // 2] = (255, 0, 128)  # an edge, where a bicubic filter overshoots
    return image


def _cubic(x, a=-0.5):
    x = np.abs(x)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def _matrix(size_in, size_out, antialiased=True):
    """Keys' cubic convolution (1981), stretched where pixels become fewer, its weights made to sum to 1."""
    scale = size_in / size_out
    stretch = max(scale, 1.0) if antialiased else 1.0
    centres = (np.arange(size_out) + 0.5) * scale
    weights = _cubic((np.arange(size_in)[None] + 0.5 - centres[:, None]) / stretch)
    return weights / weights.sum(axis=1, keepdims=True)


def _expected(image, height, width, antialiased=True):
    rows, columns = (_matrix(*sizes, antialiased) for sizes in ((image.shape[0], height), (image.shape[1], width)))
    return np.stack([rows @ plane @ columns.T for plane in image.astype(float).transpose(2, 0, 1)], -1).clip(0, 255)


@pytest.mark.parametrize(("height", "width"), [(64, 128), (97, 61), (400, 310), (299, 299), (512, 288)])
def test_it_is_the_antialiased_cubic_in_floats(height, width):
    image = _image(height, width)
    found = clean_resize(image, 299, 299)
    assert found.shape == (299, 299, 3)
    assert found.dtype == np.float32
    assert np.abs(found - _expected(image, 299, 299)).max() < BOUND
    assert found.min() >= 0
    assert found.max() <= 255


def test_controls():
    """What other tools do is far from it: rounding to bytes, no antialiasing, bilinear, axes swapped."""
    image = _image(512, 288)
    found = clean_resize(image, 299, 299)
    rounded = Image.fromarray(image).resize((299, 299), Image.Resampling.BICUBIC)
    assert np.abs(found - np.asarray(rounded, np.float32)).max() > 0.4
    assert np.abs(found - _expected(image, 299, 299, antialiased=False)).max() > 10
    assert np.abs(clean_resize(image, 200, 299) - clean_resize(image, 299, 200).transpose(1, 0, 2)).max() > 10


def test_the_same_size_changes_nothing():
    image = _image(299, 299)
    assert np.array_equal(clean_resize(image, 299, 299), image)


def test_a_batch_is_its_pictures():
    images = np.stack([_image(40, 30, seed) for seed in range(3)])
    found = clean_batch(images, 20, 50)
    assert found.shape == (3, 20, 50, 3)
    assert all(np.array_equal(one, clean_resize(image, 20, 50)) for one, image in zip(found, images, strict=True))
    assert clean_batch(images[:0], 20, 50).shape == (0, 20, 50, 3)


def test_another_type_is_refused():
    with pytest.raises(UserError, match="give uint8"):
        clean_resize([[0]], 5, 5)
