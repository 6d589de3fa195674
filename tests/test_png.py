import io

import numpy as np
import pytest
from PIL import Image

from entscale_jax.errors import UserError
from entscale_jax.png import png_bytes, read_text


def test_pixels_and_text_come_back(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    text = {"caption": "ein grüner Kreis, 绿色圆圈", "seed": "0", "rule": "entropy"}
    data = png_bytes(pixels, text)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), pixels)
    (tmp_path / "a.png").write_bytes(data)
    assert read_text(tmp_path / "a.png") == text
    assert png_bytes(pixels, text) == data


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4, 3), np.float32), np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8)]
)
def test_what_is_no_picture(image):
    with pytest.raises(UserError, match=r"is no picture: give uint8 \[height, width, 3\]"):
        png_bytes(image, {})


def test_what_is_no_png(tmp_path):
    (tmp_path / "a.png").write_bytes(b"GIF89a")
    with pytest.raises(UserError, match=r"a\.png can't be read as a PNG file"):
        read_text(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"gone\.png can't be read as a PNG file"):
        read_text(tmp_path / "gone.png")
