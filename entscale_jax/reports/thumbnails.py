"""Small copies of pictures that travel inside a page, so that thousands of them do not stall it."""

import base64
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

SIDE = 192
"""Pixels of the longer side that larger pictures are reduced to."""
WHOLE = 256
"""Pixels of the longer side up to which a picture keeps its size."""
_QUALITY = 80
_LOSSLESS = 6_000
"""Bytes up to which a thumbnail loses nothing: flat drawings show every artefact when they are enlarged."""


def thumbnails(files: Sequence[Path]) -> list[str | None]:
    """WebP as data URIs, None for a file that is no picture or is cut short."""
    with ThreadPoolExecutor() as threads:
        return list(threads.map(thumbnail, files))


def thumbnail(file: Path) -> str | None:
    """WebP as a data URI; None where the file is no picture or is cut short."""
    try:
        with Image.open(file) as image:
            encoded = _encoded(_reduced(image.convert("RGB")))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        # Pillow raises each of these for some kind of broken file.
        return None
    return f"data:image/webp;base64,{base64.b64encode(encoded).decode()}"


def shown_size(width: int, height: int) -> tuple[int, int]:
    """Pixels of the screen that a picture takes in a gallery: small ones grow by whole steps, to stay crisp."""
    longer = max(width, height)
    if longer <= WHOLE:
        factor = enlargement(width, height)
        return width * factor, height * factor
    return max(1, round(width * SIDE / longer)), max(1, round(height * SIDE / longer))


def enlargement(width: int, height: int) -> int:
    """The whole factor by which a picture is shown larger; 1 for large ones, never smaller."""
    return max(1, round(SIDE / max(width, height)))


def _reduced(image: Image.Image) -> Image.Image:
    if max(image.size) <= WHOLE:
        return image
    return image.resize(shown_size(*image.size), Image.Resampling.LANCZOS, reducing_gap=2.0)


def _encoded(image: Image.Image) -> bytes:
    whole = io.BytesIO()
    if max(image.size) < SIDE:
        image.save(whole, "WEBP", lossless=True, quality=20, method=0)
    if 0 < whole.tell() <= _LOSSLESS:
        return whole.getvalue()
    lossy = io.BytesIO()
    image.save(lossy, "WEBP", quality=_QUALITY, method=2)
    return lossy.getvalue()
