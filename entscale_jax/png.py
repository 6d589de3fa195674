"""PNG files that say in text chunks what made them, so that a picture found alone can be drawn again."""

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from .errors import UserError


def png_bytes(image: np.ndarray, text: Mapping[str, str]) -> bytes:
    """A PNG file's bytes for a uint8 [height, width, 3] image, with one text chunk for each entry of `text`."""
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[-1] != 3:
        raise UserError(f"an image of {pixels.dtype} {pixels.shape} is no picture: give uint8 [height, width, 3]")
    chunks = PngImagePlugin.PngInfo()
    for key, value in text.items():
        chunks.add_text(key, value)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", pnginfo=chunks)
    return buffer.getvalue()


def read_text(path: str | Path) -> dict[str, str]:
    """The text chunks of a PNG file. Raises UserError where it can't be read as one."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            image.load()
            return {str(key): str(value) for key, value in getattr(image, "text", {}).items()}
    except OSError as error:
        raise UserError(f"{path} can't be read as a PNG file: {error}") from error
