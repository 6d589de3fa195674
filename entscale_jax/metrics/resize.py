"""Brings pictures to the size that an extractor takes, by the definition that makes published figures comparable."""

from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from ..errors import UserError

CLEAN = "PIL bicubic in float32, antialiased, not rounded"
"""What `clean_resize` is called in a figure."""


def clean_resize(image: Any, height: int, width: int) -> Float32[np.ndarray, "{height} {width} 3"]:
    """Pixels from 0 to 255 of a uint8 [height, width, 3] image, by a bicubic filter as wide as what is left
    out, each channel by itself and not rounded.

    Source: Parmar, Zhang and Zhu 2022 (arXiv 2104.11222), section 3 and their clean-fid. Raises UserError for an image
    of another type.
    """
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
        raise UserError(f"image is {getattr(image, 'dtype', type(image).__name__)}: give uint8[height, width, 3]")
    channels = [
        Image.fromarray(np.ascontiguousarray(image[..., channel], np.float32)).resize(
            (width, height), Image.Resampling.BICUBIC
        )
        for channel in range(3)
    ]
    return np.stack([np.asarray(channel) for channel in channels], axis=-1).clip(0, 255)


def clean_batch(
    images: UInt8[np.ndarray, "batch height width 3"], height: int, width: int
) -> Float32[np.ndarray, "batch new_height new_width 3"]:
    """Each picture of a batch by `clean_resize`."""
    if not len(images):
        return np.zeros((0, height, width, 3), np.float32)
    return np.stack([clean_resize(image, height, width) for image in images])
