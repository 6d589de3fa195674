"""Pictures as CLIP takes them, by the preprocessor_config.json beside its weights."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32
from PIL import Image

from ..errors import UserError

_FILE = "preprocessor_config.json"
_STEPS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")
_MEAN, _DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_INERT = frozenset(
    {
        *("image_processor_type", "feature_extractor_type", "processor_class", "do_convert_rgb", "data_format"),
        *("default_to_square", "return_tensors", "input_data_format", "device", "disable_grouping", "do_pad"),
        *("crop_pct", "pad_size", "image_seq_length"),
    }
)
_KNOWN = frozenset({"size", "crop_size", "resample", "image_mean", "image_std", "rescale_factor", *_STEPS}) | _INERT


@dataclass(frozen=True, kw_only=True)
class ClipImages:
    """The steps: shorter side to `size`, the middle of it, to floats, normalised."""

    size: int = 224
    crop: tuple[int, int] = (224, 224)
    resample: int = int(Image.Resampling.BICUBIC)
    mean: tuple[float, ...] = _MEAN
    deviation: tuple[float, ...] = _DEVIATION
    rescale: float = 1 / 255

    @property
    def resize(self) -> str:
        """How pictures are brought to the size that the crop is cut of, in words."""
        return f"PIL {Image.Resampling(self.resample).name.lower()}, shorter side {self.size}"

    @classmethod
    def from_folder(cls, folder: Path) -> "ClipImages":
        """Of transformers' `CLIPImageProcessor`. Raises UserError for a missing file and for steps left out."""
        file = folder / _FILE
        try:
            raw = json.loads(file.read_text())
        except FileNotFoundError:
            raise UserError(f"{file} is missing: it says how pictures are resized for CLIP") from None
        except (OSError, ValueError) as error:
            raise UserError(f"{file} can't be read: {error}") from None
        if not isinstance(raw, Mapping):
            raise UserError(f"{file} holds no JSON object")
        return cls._from_json(raw, file)

    @classmethod
    def _from_json(cls, raw: Mapping[str, Any], file: Path) -> "ClipImages":
        left_out = [name for name in _STEPS if raw.get(name, True) is not True]
        unknown = sorted(raw.keys() - _KNOWN)
        if left_out or unknown:
            what = [f"{name}={raw[name]!r}" for name in (*left_out, *unknown)]
            raise UserError(f"{file} is not supported: {'; '.join(what)}: implemented are the steps of OpenAI's CLIP")
        try:
            size, crop = raw.get("size", 224), raw.get("crop_size", 224)
            return cls(
                size=int(size["shortest_edge"] if isinstance(size, Mapping) else size),
                crop=(int(crop["height"]), int(crop["width"])) if isinstance(crop, Mapping) else (int(crop), int(crop)),
                resample=int(Image.Resampling(raw.get("resample", 3))),
                mean=_triple(raw.get("image_mean", _MEAN)),
                deviation=_triple(raw.get("image_std", _DEVIATION)),
                rescale=float(raw.get("rescale_factor", 1 / 255)),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{file} is not supported: {type(error).__name__}: {error}") from None

    def __call__(self, image: np.ndarray) -> Float32[np.ndarray, "_height _width 3"]:
        """uint8 [height, width, 3] -> normalised pixels of the crop's size; what it lacks is black."""
        height, width = image.shape[:2]
        shorter = min(height, width)
        # transformers rounds the longer side down.
        size = [self.size if side == shorter else int(self.size * side / shorter) for side in (width, height)]
        resized = np.asarray(Image.fromarray(image).resize((size[0], size[1]), Image.Resampling(self.resample)))
        pixels = _middle(resized, *self.crop).astype(np.float32) * np.float32(self.rescale)
        return (pixels - np.array(self.mean, np.float32)) / np.array(self.deviation, np.float32)


def _middle(image: np.ndarray, height: int, width: int) -> np.ndarray:
    spare = [(max(0, want - have), have) for want, have in zip((height, width), image.shape, strict=False)]
    # transformers puts the odd row of padding first.
    margins = [((more + 1) // 2, more // 2) for more, _ in spare]
    padded = np.pad(image, [*margins, (0, 0)])
    top, left = ((have - want) // 2 for have, want in zip(padded.shape, (height, width), strict=False))
    return padded[top : top + height, left : left + width]


def _triple(values: Any) -> tuple[float, ...]:
    found = tuple(float(value) for value in values)
    if len(found) != 3:
        raise ValueError(f"{len(found)} values for three channels")
    return found
