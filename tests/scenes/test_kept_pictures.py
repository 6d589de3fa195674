"""Pictures that are kept: a stopped measurement goes on, and nothing is taken for what it is not."""

from dataclasses import replace

import numpy as np
import pytest
from painter import SIZE, Painter, blank, true_drawing

from entscale_jax.scales import ScaleRule, Scaling
from entscale_jax.scenes.captions import balanced_captions
from entscale_jax.scenes.pictures import Drawing, draw, means, verdicts

CAPTIONS = tuple(balanced_captions(10))
DRAWING = Drawing(captions=CAPTIONS, seed=7, batch=4)


def test_a_picture_has_its_caption_and_its_own_seed(tmp_path):
    images = draw(Painter(), DRAWING, tmp_path)
    expected = [true_drawing(caption, 7 + index) for index, caption in enumerate(CAPTIONS)]
    np.testing.assert_array_equal(images, expected)


def test_a_stopped_measurement_goes_on_where_it_was(tmp_path):
    def until_stopped(caption, seed, scaling):
        if seed == 7 + 5:
            raise KeyboardInterrupt
        return true_drawing(caption, seed)

    with pytest.raises(KeyboardInterrupt):
        draw(Painter(until_stopped), DRAWING, tmp_path)
    again = Painter()
    images = draw(again, DRAWING, tmp_path)
    assert [seed for _, seed, _ in again.calls] == [11, 15]
    np.testing.assert_array_equal(images, draw(Painter(), DRAWING, tmp_path / "undisturbed"))


@pytest.mark.parametrize(
    ("change", "weights"),
    [
        ({"seed": 8}, "0"),
        ({"size": (SIZE, SIZE)}, "0"),
        ({"scaling": Scaling(ScaleRule.FIXED, 1.001)}, "0"),
        ({"variant": "GroupNorm in windows"}, "0"),
        ({"captions": CAPTIONS[::-1]}, "0"),
        ({}, "1"),
    ],
)
def test_another_drawing_or_model_is_not_read_from_what_was_kept(tmp_path, change, weights):
    draw(Painter(), DRAWING, tmp_path)
    other = Painter(weights=weights)
    draw(other, replace(DRAWING, **change), tmp_path)
    assert len(other.calls) == 3
    draw(other, DRAWING if weights == "0" else replace(DRAWING, **change), tmp_path)
    assert len(other.calls) == 3  # the control: what is the same is read


def test_verdicts_are_what_the_pictures_hold():
    images = np.stack([true_drawing(CAPTIONS[1], 0), blank(CAPTIONS[1], 0), true_drawing(CAPTIONS[2], 0)])
    found = verdicts([CAPTIONS[1], CAPTIONS[1], CAPTIONS[1]], images)
    assert found[0].tolist() == [1, 0, 0]
    assert found[1].tolist() == [0, 2, 0]
    assert found[2, 0] == 0


def test_means_are_percent_and_numbers_a_picture():
    exact, missing, extra = means(np.array([[1.0, 0, 0], [0, 2, 1], [0, 1, 1], [0, 1, 0]]))
    assert (exact.mean, missing.mean, extra.mean) == (25.0, 1.0, 0.5)
    assert exact.low < 25 < exact.high
