"""Draws at the training size, then resizes, as in the paper's Table 4: the cost of the one, the size of the other."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from ..weights.folder import ModelInfo
from .baseline import ORIGINAL, Baseline, Drawn, Pixels, Size


@dataclass(frozen=True)
class Resize(Baseline):
    """Lanczos's filter, as Pillow has it, on the part of the picture that fills the frame: see `frame`."""

    name: ClassVar = "resize"

    @property
    def denoises_as(self) -> str:
        return ORIGINAL.label

    def drawn_size(self, info: ModelInfo, size: Size) -> Size:
        return info.train_size

    def keywords(self, info: ModelInfo, drawn: Size) -> dict[str, Any]:
        return {"rule": ORIGINAL}

    def finish(self, images: Drawn, size: Size) -> Pixels:
        height, width = size
        box = frame((images.shape[1], images.shape[2]), size)
        pictures = (Image.fromarray(image) for image in images)
        return np.stack(
            [np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS, box)) for picture in pictures]
        )


def frame(drawn: Size, size: Size) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) in pixels of the largest box of `size`'s shape in the middle of a drawn picture.

    So the frame is filled, nothing is stretched, and no more is cut away than has to be.
    """
    (high, wide), (height, width) = drawn, size
    # Along one side the box is the whole picture; computed from the ratio it could be larger by rounding.
    if wide * height <= high * width:
        tall, broad = height * wide / width, float(wide)
    else:
        tall, broad = float(high), width * high / height
    left, top = (wide - broad) / 2, (high - tall) / 2
    return left, top, left + broad, top + tall
