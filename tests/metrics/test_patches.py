"""Crops tile or are placed by their seed, and patch-FID sees in large pictures what crops show."""

import numpy as np
import pytest

from entscale_jax.errors import UserError
from entscale_jax.metrics.extractor import Extractor
from entscale_jax.metrics.patches import Crops, Places, crop_moments, patch_fid
from entscale_jax.metrics.sets import fid_figure, kid_figure, moments_of

# Means of quarters of a picture: features whose values are known without any network.
QUARTERS = Extractor("test", "0123456789abcdef", 4, "none", lambda images: _quarters(images))


def _quarters(images):
    count, height, width, _ = images.shape
    parts = images.reshape(count, 2, height // 2, 2, width // 2, 3).astype(np.float64)
    return parts.mean(axis=(2, 4, 5)).reshape(count, 4)


def _pictures(count, height, width, seed=0, low=0):
    return np.random.default_rng(seed).integers(low, 256, (count, height, width, 3), np.uint8)


def test_a_multiple_of_the_crop_is_tiled():
    crops = Crops(height=8, width=6)
    assert crops.corners(16, 18).tolist() == [[0, 0], [0, 6], [0, 12], [8, 0], [8, 6], [8, 12]]
    (image,) = _pictures(1, 16, 18)
    (found,) = crops.cut(image[None])
    rows = [np.concatenate(found[start : start + 3], axis=1) for start in (0, 3)]
    assert np.array_equal(np.concatenate(rows), image)


@pytest.mark.parametrize("size", [(8, 6), (9, 6), (23, 31), (100, 7)])
def test_other_sizes_are_covered_from_edge_to_edge(size):
    seen = np.zeros(size, int)
    for top, left in Crops(height=8, width=6).corners(*size):
        seen[top : top + 8, left : left + 6] += 1
    assert seen.min() >= 1
    assert len(Crops(height=8, width=6).corners(*size)) == -(-size[0] // 8) * -(-size[1] // 6)


def test_random_crops_are_the_seeds_and_the_pictures_own():
    crops = Crops(height=8, width=8, places=Places.RANDOM, seed=3)
    places = crops.corners(32, 24, 5)
    assert len(places) == 12
    assert np.array_equal(places, crops.corners(32, 24, 5))
    assert not np.array_equal(places, crops.corners(32, 24, 6))
    assert not np.array_equal(places, Crops(height=8, width=8, places=Places.RANDOM, seed=4).corners(32, 24, 5))
    many = Crops(height=8, width=8, places=Places.RANDOM, per_picture=3000).corners(32, 24)
    assert many.min(axis=0).tolist() == [0, 0]
    assert many.max(axis=0).tolist() == [24, 16]


@pytest.mark.parametrize("places", list(Places))
def test_pieces_of_a_set_merge_to_the_whole(places):
    crops, pictures = Crops(height=8, width=8, places=places), _pictures(10, 24, 16)
    whole = crop_moments(QUARTERS, pictures, crops)
    parts = [crop_moments(QUARTERS, pictures[start:end], crops, first=start) for start, end in ((6, 10), (0, 6))]
    merged = parts[0].merge(parts[1])
    assert whole.count == merged.count == 60
    np.testing.assert_allclose(merged.covariance, whole.covariance, rtol=1e-10)
    expected = np.concatenate([_quarters(each) for each in crops.cut(pictures)])
    np.testing.assert_allclose(whole.covariance, np.cov(expected, rowvar=False), rtol=1e-10)


def test_patch_fid_says_what_it_depends_on():
    crops = Crops(height=8, width=8)
    reference = crop_moments(QUARTERS, _pictures(40, 8, 8, seed=1), crops)
    alike, other = (crop_moments(QUARTERS, _pictures(40, 24, 16, seed=2, low=low), crops) for low in (0, 60))
    figure = patch_fid(other, reference, QUARTERS, crops, reference="noise")
    assert figure.value > 10 * patch_fid(alike, reference, QUARTERS, crops, reference="noise").value
    assert (figure.name, figure.count, figure.reference_count) == ("test_patch_fid", 240, 40)
    assert (figure.crop, figure.extractor, figure.interval) == ("8x8 grid", "0123456789abcdef", None)
    random = crop_moments(QUARTERS, _pictures(4, 24, 16), Crops(height=8, width=8, places=Places.RANDOM))
    with pytest.raises(UserError, match="can't be compared"):
        patch_fid(random, reference, QUARTERS, crops, reference="noise")


def test_figures_of_sets():
    first, second = (QUARTERS(_pictures(50, 8, 8, seed=seed, low=10 * seed)) for seed in range(2))
    figure = fid_figure(QUARTERS, moments_of(QUARTERS, first), moments_of(QUARTERS, second), reference="noise")
    assert (figure.name, figure.count, figure.interval, figure.remark) == ("test_fid", 50, None, "")
    few = fid_figure(QUARTERS, moments_of(QUARTERS, first[:4]), moments_of(QUARTERS, second), reference="noise")
    assert few.remark == "of 4 pictures for 4 features: dominated by its bias"
    kernel = kid_figure(QUARTERS, first, second, reference="noise", subsets=5, subset_size=20)
    assert (kernel.name, kernel.remark) == ("test_kid", "5 subsets of 20")
    assert kernel.interval is not None
    assert kernel.interval.low < kernel.value < kernel.interval.high
    assert kid_figure(QUARTERS, first[:19], second, reference="noise", subsets=5).interval is None
    other = Extractor("other", "f" * 16, 4, "none", _quarters)
    with pytest.raises(UserError, match="are no features of 'other"):
        fid_figure(other, moments_of(QUARTERS, first), moments_of(QUARTERS, second), reference="noise")


def test_an_extractor_fills_batches_up():
    seen = []
    extractor = Extractor("test", "", 4, "none", lambda images: seen.append(len(images)) or _quarters(images))
    pictures = _pictures(7, 8, 8)
    assert np.array_equal(extractor(pictures, batch=3), _quarters(pictures))
    assert seen == [3, 3, 3]
    assert extractor(pictures[:0]).shape == (0, 4)
    with pytest.raises(UserError, match="pictures are float64"):
        extractor(pictures / 255)


def test_a_picture_smaller_than_the_crop_is_told():
    with pytest.raises(UserError, match="picture of 16x7 has no crop of 8x8"):
        crop_moments(QUARTERS, _pictures(1, 7, 16), Crops(height=8, width=8))
