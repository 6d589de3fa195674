"""What a call was given, checked: captions, seeds, one value a picture, pictures to start from, SDXL's sizes."""

import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, UInt8, UInt32

from .buckets import Bucket
from .errors import UserError

Size = tuple[int, int]
"""(height, width) in pixels."""


def read_captions(prompts: str | Sequence[str], name: str = "prompt") -> list[str]:
    """A list of captions from one or several."""
    captions = [prompts] if isinstance(prompts, str) else list(prompts)
    if not captions:
        raise UserError(f"{name}s is empty: give at least one caption")
    for caption in captions:
        if not isinstance(caption, str):
            raise UserError(f"{name} {caption!r} is no text: give a string")
    return captions


def read_negatives(negative_prompt: str | Sequence[str] | None, count: int) -> list[str] | None:
    """One negative prompt a caption, or None where none is given."""
    if negative_prompt is None:
        return None
    if isinstance(negative_prompt, str):
        return [negative_prompt] * count
    negatives = read_captions(negative_prompt, "negative_prompt")
    if len(negatives) != count:
        raise UserError(f"negative_prompt has {len(negatives)} texts for {count} captions: give one, or one a caption")
    return negatives


def read_seeds(seed: int | Sequence[int], count: int) -> UInt32[np.ndarray, "count"]:
    """One seed a caption: s + i from a number s."""
    seeds = [seed + index for index in range(count)] if isinstance(seed, int) else list(seed)
    if len(seeds) != count:
        raise UserError(f"seed has {len(seeds)} values for {count} captions: give one number, or one a caption")
    for value in seeds:
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 0 <= value < 2**32:
            raise UserError(f"seed {value!r} is no whole number from 0 to 2^32 - 1")
    return np.asarray(seeds, np.uint32)


def per_picture(value: float | Sequence[float], count: int, name: str) -> Float[np.ndarray, "count"]:
    """One finite number a picture."""
    values = np.asarray(value, np.float64)
    if values.ndim > 1 or (values.ndim == 1 and len(values) != count) or not np.all(np.isfinite(values)):
        raise UserError(f"{name} is {value!r}: give one finite number, or one for each of {count} captions")
    return np.broadcast_to(values, (count,))


def read_images(image: Any, count: int) -> UInt8[np.ndarray, "count height width 3"]:
    """Pictures as bytes, from one [height width 3] or several; anything that numpy takes, a PIL image too."""
    images = np.asarray(image)
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or images.shape[-1] != 3:
        raise UserError(
            f"image is of {images.dtype} in shape {images.shape}: give RGB bytes, [height width 3] or one a caption"
        )
    images = images[None] if images.ndim == 3 else images
    if len(images) not in (1, count):
        raise UserError(f"image has {len(images)} pictures for {count} captions: give one, or one a caption")
    return np.broadcast_to(images, (count, *images.shape[1:]))


def pad_to(images: UInt8[np.ndarray, "batch height width 3"], bucket: Bucket) -> Float32[np.ndarray, "batch H W 3"]:
    """The pictures in the middle of the bucket, their border repeated around them, in [-1, 1]."""
    top, left = (bucket.height - images.shape[1]) // 2, (bucket.width - images.shape[2]) // 2
    rows = (top, bucket.height - images.shape[1] - top)
    columns = (left, bucket.width - images.shape[2] - left)
    padded = np.pad(images, ((0, 0), rows, columns, (0, 0)), mode="edge")
    return padded.astype(np.float32) / np.float32(127.5) - np.float32(1)


def crop(images: np.ndarray, height: int, width: int) -> np.ndarray:
    """The middle of each picture."""
    top, left = (images.shape[1] - height) // 2, (images.shape[2] - width) // 2
    return images[:, top : top + height, left : left + width]


def first_call(steps: int, strength: float) -> int:
    """The call of the UNet that image to image begins with. Reference: diffusers' `get_timesteps`."""
    if isinstance(strength, bool) or not isinstance(strength, numbers.Real) or not 0 < strength <= 1:
        raise UserError(f"strength is {strength!r}: give a number above 0, up to 1")
    kept = min(int(steps * strength), steps)
    if kept == 0:
        raise UserError(f"strength {strength} of {steps} steps leaves none: give more of either")
    return steps - kept


def time_ids(bucket: Bucket, original: Size | None, crops: Size | None, target: Size | None) -> tuple[float, ...]:
    """What SDXL is told about size, in pixels: original, crop and target, each height before width.

    Source: Podell et al., "SDXL", Section 2.2; defaults as in diffusers, the size that is drawn and no crop.
    """
    drawn = (bucket.height, bucket.width)
    return (
        *_pair("original_size", original, drawn),
        *_pair("crops_coords_top_left", crops, (0, 0)),
        *_pair("target_size", target, drawn),
    )


def _pair(name: str, value: Any, default: tuple[int, int]) -> tuple[float, float]:
    height, width = _checked(name, default if value is None else value)
    return float(height), float(width)


def _checked(name: str, value: Any) -> Sequence[int]:
    if not isinstance(value, Sequence) or len(value) != 2 or not all(_is_count(side) for side in value):
        raise UserError(f"{name} is {value!r}: give (height, width) in pixels")
    return value


def _is_count(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and int(value) >= 0
