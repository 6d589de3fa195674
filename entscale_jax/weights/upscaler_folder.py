"""The folders of models that enlarge pictures, and what each kind of them makes of a call's pictures and options."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from ..errors import UserError
from ..models import LowResolution
from ..sampling import NoiseSchedule, Sampler
from .families import STABLE_DIFFUSION_UPSCALE, UPSCALERS
from .folder import ModelInfo, describe, read_json

GUIDANCE, NOISE_LEVEL = 9.0, 20
"""diffusers' own for Stable Diffusion's upscaler, where a call says nothing else."""
DEFAULT_MAX_NOISE_LEVEL = 350
"""diffusers' own, for a model_index.json that says none."""

Pictures = UInt8[np.ndarray, "batch height width 3"]
Guidance = float | Sequence[float]


@dataclass(frozen=True, kw_only=True)
class PictureNoise(NoiseSchedule):
    """The schedule by which diffusers' `DDPMScheduler` adds noise to the small picture."""

    only: ClassVar = {"rescale_betas_zero_snr": (False,)}

    def shares(self, level: int) -> tuple[float, float]:
        """What the picture and unit noise are multiplied by."""
        alpha = self.alphas_cumprod()[level]
        return float(np.sqrt(alpha)), float(np.sqrt(np.float32(1) - alpha))


@dataclass(frozen=True)
class UpscalerInfo(ABC):
    """What a folder's configs say. Made without loading weights and without touching a device."""

    model: ModelInfo

    @property
    def weights_hash(self) -> str:
        """Of the folder, as a model's."""
        return self.model.weights_hash

    @property
    def factor(self) -> int:
        """Pixels along a side of a picture that is made, over those of the one that is given."""
        return self.model.latent_factor

    def check_sampler(self, sampler: Sampler, steps: int) -> None:
        """Raises UserError where the model can't be drawn with so many steps of this sampler."""
        sampler.table(steps)

    @abstractmethod
    def guidance(self, given: Guidance | None) -> Guidance:
        """The strength of guidance, 1 for none; None asks for the default. Raises UserError for what can't be."""

    @abstractmethod
    def noise_level(self, given: int | None) -> int | None:
        """The noise that pictures are given, None for none; None asks for the default. Raises as `guidance`."""

    def fitted_size(self, height: int, width: int) -> tuple[int, int]:
        """The (height, width) in which the model sees pictures of this size. Raises UserError for one too small."""
        return height, width

    def fitted(self, pictures: Pictures) -> Pictures:
        """The pictures in that size, by Lanczos's filter, as diffusers has it."""
        height, width = self.fitted_size(*pictures.shape[1:3])
        if (height, width) == pictures.shape[1:3]:
            return pictures
        resized = [Image.fromarray(one).resize((width, height), Image.Resampling.LANCZOS) for one in pictures]
        return np.stack([np.asarray(one) for one in resized])

    @abstractmethod
    def low(
        self,
        pictures: Float[np.ndarray, "batch height width 3"],
        noise: Float[np.ndarray, "batch height width 3"],
        level: int | None,
    ) -> LowResolution:
        """What the UNet is told of pictures in [-1, 1], in their dtype, with unit noise of this level."""


@dataclass(frozen=True)
class NoisedUpscalerInfo(UpscalerInfo):
    """Of `StableDiffusionUpscalePipeline`: told a caption, and pictures with noise of a level that it is told, too."""

    noise: PictureNoise
    max_noise_level: int
    """The highest that a caller may ask for."""

    def guidance(self, given: Guidance | None) -> Guidance:
        return GUIDANCE if given is None else given

    def noise_level(self, given: int | None) -> int:
        level = NOISE_LEVEL if given is None else given
        if isinstance(level, bool) or not isinstance(level, int) or not 0 <= level <= self.max_noise_level:
            raise UserError(
                f"noise_level is {level!r}: model {self.model.name!r} takes a whole number from 0 to "
                f"{self.max_noise_level}"
            )
        return level

    def low(self, pictures: Any, noise: Any, level: int | None) -> LowResolution:
        signal, share = self.noise.shares(level or 0)
        noised = signal * pictures + share * np.asarray(noise)
        return LowResolution(jnp.asarray(noised, pictures.dtype), jnp.full(len(noised), level or 0, jnp.int32))


@dataclass(frozen=True)
class CleanUpscalerInfo(UpscalerInfo):
    """Of `LDMSuperResolutionPipeline`: told pictures as they are, whose sides 32 divides, and no caption."""

    divides: ClassVar = 32
    """The sides of what diffusers' pipeline makes of a picture, for any depth of the UNet."""

    def check_sampler(self, sampler: Sampler, steps: int) -> None:
        # diffusers scales the picture beside the latents, too; of what is scaled by 1 it makes no difference.
        if np.any(sampler.table(steps).input_scale != 1):
            raise UserError(
                f"model {self.model.name!r} has sampler {sampler.name}, which scales what the UNet is given: "
                "implemented for super-resolution without text are those that don't, such as ddim"
            )

    def guidance(self, given: Guidance | None) -> float:
        self._refuse("guidance", given)
        return 1.0

    def noise_level(self, given: int | None) -> None:
        self._refuse("noise_level", given)

    def _refuse(self, option: str, given: object) -> None:
        if given is not None:
            raise UserError(
                f"{option} is {given!r}: model {self.model.name!r} is a {self.model.family.pipeline}, which has none: "
                "leave it out"
            )

    def fitted_size(self, height: int, width: int) -> tuple[int, int]:
        if min(height, width) < self.divides:
            raise UserError(
                f"a picture of {width}x{height} is too small for model {self.model.name!r}: give sides of "
                f"{self.divides} pixels or more"
            )
        return height - height % self.divides, width - width % self.divides

    def low(self, pictures: Any, noise: Any, level: int | None) -> LowResolution:
        return LowResolution(jnp.asarray(pictures))


def describe_upscaler(model: str | Path, **options: Any) -> UpscalerInfo:
    """What the configs of `model` say: a folder or hub id of one of diffusers' pipelines in `UPSCALERS`.

    `options` are those of `describe`. Raises UserError where the folder is missing, incomplete, of another kind, or has
    an unsupported config value.
    """
    info = describe(model, families=UPSCALERS, **options)
    return _noised(info) if info.family is STABLE_DIFFUSION_UPSCALE else CleanUpscalerInfo(info)


def _noised(info: ModelInfo) -> NoisedUpscalerInfo:
    index = read_json(info.folder / "model_index.json", info.name)
    noise = PictureNoise.from_json(read_json(info.noise_file, info.name))
    most = index.get("max_noise_level", DEFAULT_MAX_NOISE_LEVEL)
    if isinstance(most, bool) or not isinstance(most, int) or most < 0:
        raise UserError(f"model {info.name!r}: max_noise_level is {most!r} in model_index.json: not a whole number")
    rows = info.unet.class_rows or 1
    return NoisedUpscalerInfo(info, noise, min(most, rows - 1, noise.num_train_timesteps - 1))
