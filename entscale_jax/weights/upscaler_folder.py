"""The folder of a model that enlarges pictures: a model's, with a second noise schedule, the small picture's own."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ..errors import UserError
from ..sampling import NoiseSchedule
from .families import UPSCALERS
from .folder import ModelInfo, describe, read_json

DEFAULT_MAX_NOISE_LEVEL = 350
"""diffusers' own, for a model_index.json that says none."""


@dataclass(frozen=True, kw_only=True)
class PictureNoise(NoiseSchedule):
    """The schedule by which diffusers' `DDPMScheduler` adds noise to the small picture."""

    only: ClassVar = {"rescale_betas_zero_snr": (False,)}

    def shares(self, level: int) -> tuple[float, float]:
        """What the picture and unit noise are multiplied by."""
        alpha = self.alphas_cumprod()[level]
        return float(np.sqrt(alpha)), float(np.sqrt(np.float32(1) - alpha))


@dataclass(frozen=True)
class UpscalerInfo:
    """What a folder's configs say. Made without loading weights and without touching a device."""

    model: ModelInfo
    noise: PictureNoise
    max_noise_level: int
    """The highest that a caller may ask for."""

    @property
    def weights_hash(self) -> str:
        """Of the folder, as a model's."""
        return self.model.weights_hash

    @property
    def factor(self) -> int:
        """Pixels along a side of a picture that is made, over those of the one that is given."""
        return self.model.latent_factor

    def check_noise_level(self, level: object) -> None:
        """Raises UserError where a picture can't be given so much noise."""
        if isinstance(level, bool) or not isinstance(level, int) or not 0 <= level <= self.max_noise_level:
            raise UserError(
                f"noise_level is {level!r}: model {self.model.name!r} takes a whole number from 0 to "
                f"{self.max_noise_level}"
            )


def describe_upscaler(model: str | Path, **options: Any) -> UpscalerInfo:
    """What the configs of `model` say: a diffusers folder or a hub id of `StableDiffusionUpscalePipeline`.

    `options` are those of `describe`. Raises UserError where the folder is missing, incomplete, of another kind, or has
    an unsupported config value.
    """
    info = describe(model, families=UPSCALERS, **options)
    index = read_json(info.folder / "model_index.json", info.name)
    noise = PictureNoise.from_json(read_json(info.noise_file, info.name))
    most = index.get("max_noise_level", DEFAULT_MAX_NOISE_LEVEL)
    if isinstance(most, bool) or not isinstance(most, int) or most < 0:
        raise UserError(f"model {info.name!r}: max_noise_level is {most!r} in model_index.json: not a whole number")
    rows = info.unet.class_rows or 1
    return UpscalerInfo(info, noise, min(most, rows - 1, noise.num_train_timesteps - 1))
