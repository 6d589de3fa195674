"""How large a picture is shown, and what of it is kept."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from entscale_jax.reports.thumbnails import enlargement, shown_size, thumbnail


@pytest.mark.parametrize(
    ("width", "height", "factor"),
    [(64, 64, 3), (64, 36, 3), (36, 64, 3), (96, 64, 2), (128, 32, 2), (256, 64, 1), (512, 288, 1), (1024, 1024, 1)],
)
def test_small_pictures_grow_by_whole_steps_and_large_ones_never_shrink(width, height, factor):
    assert enlargement(width, height) == factor


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        ((64, 36), (192, 108)),
        ((256, 64), (256, 64)),
        ((512, 288), (192, 108)),
        ((768, 768), (192, 192)),
        ((2000, 2), (192, 1)),
    ],
)
def test_large_pictures_are_shown_small(size, shown):
    assert shown_size(*size) == shown


@pytest.mark.parametrize(("size", "kept"), [((90, 64), (90, 64)), ((256, 256), (256, 256)), ((512, 288), (192, 108))])
def test_a_thumbnail_is_the_picture_in_small(tmp_path, size, kept):
    left = np.arange(size[0]) < size[0] / 2
    image = np.where(left[None, :, None], (200, 30, 60), (20, 80, 220)) * np.ones((size[1], 1, 1))
    Image.fromarray(image.astype(np.uint8)).save(tmp_path / "image.png")
    text = thumbnail(tmp_path / "image.png") or ""
    small = Image.open(io.BytesIO(base64.b64decode(text.partition(",")[2])))
    assert small.size == kept
    colours = np.asarray(small.convert("RGB")).astype(int)[:, [2, -3]].mean(axis=0)
    np.testing.assert_allclose(colours, [(200, 30, 60), (20, 80, 220)], atol=6)


def test_what_is_no_picture_has_no_thumbnail(tmp_path):
    (tmp_path / "notes.png").write_text("no picture")
    assert thumbnail(tmp_path / "notes.png") is None
    assert thumbnail(tmp_path / "nothing.png") is None
