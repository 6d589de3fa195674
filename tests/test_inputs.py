"""What a call is given: one value a picture, pictures to start from, sizes; and one line for what can't be."""

import numpy as np
import pytest

from entscale_jax.buckets import Bucket
from entscale_jax.errors import UserError
from entscale_jax.inputs import (
    crop,
    first_call,
    pad_to,
    per_picture,
    read_captions,
    read_images,
    read_negatives,
    read_seeds,
    time_ids,
)

PICTURE = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)


def test_one_value_serves_all_and_a_list_each():
    assert read_captions("a") == ["a"]
    assert read_negatives("dull", 2) == ["dull", "dull"]
    assert read_negatives(["dull", ""], 2) == ["dull", ""]
    assert read_negatives(None, 2) is None
    assert read_seeds(4, 3).tolist() == [4, 5, 6]
    assert read_seeds([4, 4], 2).tolist() == [4, 4]
    assert per_picture(2.0, 2, "guidance").tolist() == [2.0, 2.0]
    assert per_picture([2.0, 3.0], 2, "guidance").tolist() == [2.0, 3.0]
    assert read_images(PICTURE, 2).shape == (2, 5, 7, 3)
    assert read_images([PICTURE, 255 - PICTURE], 2)[1, 0, 0, 0] == 255


def test_padding_repeats_the_border_and_cropping_takes_it_off():
    padded = pad_to(PICTURE[None], Bucket(8, 8))
    assert padded.dtype == np.float32
    assert padded.shape == (1, 8, 8, 3)
    np.testing.assert_allclose(crop(padded, 5, 7), PICTURE[None] / 127.5 - 1, atol=1e-6)
    np.testing.assert_array_equal(padded[:, 0], padded[:, 1])
    np.testing.assert_array_equal(padded[:, 6], padded[:, 7])
    assert pad_to(np.array([[[[0, 51, 255]]]], np.uint8), Bucket(1, 1)).ravel().tolist() == pytest.approx([-1, -0.6, 1])


@pytest.mark.parametrize(
    ("steps", "strength", "first"), [(50, 0.8, 10), (50, 1.0, 0), (5, 0.5, 3), (5, 0.2, 4), (4, 0.99, 1), (1, 1, 0)]
)
def test_strength_is_the_share_of_the_steps_that_runs(steps, strength, first):
    """int(steps * strength) are kept."""
    assert first_call(steps, strength) == first


def test_time_ids_are_heights_before_widths():
    assert time_ids(Bucket(64, 96), None, None, None) == (64, 96, 0, 0, 64, 96)
    assert time_ids(Bucket(64, 96), (1, 2), (3, 4), (5, 6)) == (1, 2, 3, 4, 5, 6)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: read_negatives(["a", "b", "c"], 2), "negative_prompt has 3 texts for 2 captions"),
        (lambda: read_negatives([3], 1), "negative_prompt 3 is no text"),
        (lambda: read_images(PICTURE.astype(np.float32), 1), "image is of float32 in shape"),
        (lambda: read_images(PICTURE[..., :2], 1), "give RGB bytes"),
        (lambda: read_images(np.stack([PICTURE] * 3), 2), "image has 3 pictures for 2 captions"),
        (lambda: first_call(50, 0.0), "strength is 0.0: give a number above 0, up to 1"),
        (lambda: first_call(50, 1.5), "strength is 1.5"),
        (lambda: first_call(50, "half"), "strength is 'half'"),
        (lambda: first_call(3, 0.2), "strength 0.2 of 3 steps leaves none"),
        (lambda: time_ids(Bucket(8, 8), 64, None, None), "original_size is 64"),
        (lambda: time_ids(Bucket(8, 8), None, (0, -1), None), "crops_coords_top_left is"),
        (lambda: time_ids(Bucket(8, 8), None, None, (8, 8, 8)), "target_size is"),
    ],
)
def test_bad_input_is_one_line(call, said):
    with pytest.raises(UserError, match=said) as caught:
        call()
    assert "\n" not in str(caught.value)
