"""Upscaler: pictures and their captions in, larger pictures out, as diffusers' pipelines of super-resolution.

The scale of its self-attention is that of training: it is one of the methods that the scale rule is compared with.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32, UInt8, UInt32

from .attention import accumulator
from .batches import batch_groups
from .compilation import enable_cache
from .errors import UserError
from .inputs import per_picture, read_captions, read_images, read_negatives, read_seeds
from .models import AutoencoderKL, Conditioning, LowResolution, TextEncoders, UNet, VQModel
from .program_cache import ProgramMemory
from .programs import Programs, Request, conditioning
from .sampling import Latents, call_noise
from .scales import Scaling
from .weights.dtypes import read_dtype
from .weights.tokenizer import Tokenizer
from .weights.upscaler_folder import Guidance, Pictures, UpscalerInfo, describe_upscaler

STEPS = 75
"""diffusers' own for Stable Diffusion's upscaler, where a call says nothing else."""
ORIGINAL = Scaling.of("original")
LATENTS, PICTURE = 3, 4
"""The streams of noise of a seed: that which latents start from, and that which is added to the small picture."""


class Upscaled(NamedTuple):
    """What one call made."""

    images: UInt8[np.ndarray, "batch high wide 3"]
    latents: Float[np.ndarray, "batch height width channels"]
    """Before decoding: a cell is a pixel of the small picture."""
    broken: Int32[np.ndarray, "batch"]
    """Of each picture, how many values were NaN or infinite before they became bytes."""


class Upscaler:
    """A super-resolution model with its tokenizer, if it has one. Make it with `from_pretrained`."""

    def __init__(
        self,
        info: UpscalerInfo,
        tokenizers: Sequence[Tokenizer],
        text: TextEncoders,
        unet: UNet,
        vae: AutoencoderKL | VQModel,
        dtype: jnp.dtype | type = jnp.float32,
    ):
        self.info, self.tokenizers = info, tuple(tokenizers)
        self.unet = unet
        self._dtype = accumulator(dtype)
        self.programs = Programs(text, unet, vae, self._dtype)

    @classmethod
    def from_pretrained(
        cls, model: str | Path, *, dtype: jnp.dtype | type | str = jnp.float32, **options: Any
    ) -> "Upscaler":
        """Opens a model.

        Args:
            model: a diffusers folder or a hub id, such as `stabilityai/stable-diffusion-x4-upscaler` or
                `CompVis/ldm-super-resolution-4x-openimages`.
            dtype: of weights and computation; Stable Diffusion's autoencoder, which overflows in half precision, stays
                in float32.
            **options: `sampler`, `revision`, `token`, `variant` and `allow_pickle`, as of `TextToImage`.

        Raises UserError for a folder that is missing, incomplete, of another kind or not fully understood.
        """
        enable_cache()
        dtype, found = read_dtype(dtype), describe_upscaler(model, **options)
        info = found.model
        tokenizers = [info.tokenizer(index) for index in range(len(info.text_encoders))]
        unet, vae, *text = (info.load(part, info.dtype(part, dtype)) for part in info.family.parts)
        return cls(found, tokenizers, info.family.text(*text), unet, vae, dtype)

    def __call__(
        self,
        images: Pictures,
        prompts: str | Sequence[str],
        *,
        steps: int = STEPS,
        guidance: Guidance | None = None,
        noise_level: int | None = None,
        seed: int | Sequence[int] = 0,
        negative_prompt: str | Sequence[str] | None = None,
        latents: Float[np.ndarray, "batch height width channels"] | None = None,
        noise: Float[np.ndarray, "batch height width 3"] | None = None,
        rule: Scaling = ORIGINAL,
        tiling: bool = False,
        max_batch: int | None = 1,
    ) -> Upscaled:
        """Enlarges each picture by `info.factor`.

        Args:
            images: RGB bytes, one a caption. Stable Diffusion's upscaler takes any size, where diffusers first shrinks
                one whose sides `info.factor` does not divide; Latent Diffusion's first shrinks to `info.fitted_size`.
            prompts: captions, which a model without text leaves unread.
            steps: of the model's sampler.
            guidance: strength of classifier-free guidance, one or one a picture; 1 throughout draws without it. None is
                the model's default, and all that one without text takes.
            noise_level: the training timestep of the noise that the pictures are given: more of it leaves more to the
                model. None as for guidance.
            seed: s gives picture i the seed s + i; a list gives one each.
            negative_prompt: what guidance leads away from, one or one a caption; None is the empty text.
            latents: the noise to start from instead of `seed`'s, unit variance, channels last.
            noise: that of the pictures instead of `seed`'s, likewise; unread where they are given none.
            rule: scale of self-attention, for comparisons of the upscaler itself.
            tiling: decodes by overlapping tiles, which takes less memory and differs a little.
            max_batch: at most so many pictures at once, which does not change them; None is all.

        Raises UserError for an input that can't be drawn.
        """
        captions = read_captions(prompts)
        count, groups = len(captions), batch_groups(len(captions), max_batch, "max_batch")
        pictures = self.info.fitted(read_images(images, count))
        self.programs.first_stage.check(tiling=tiling, decode_batch=None)
        level = self.info.noise_level(noise_level)
        strengths = per_picture(self.info.guidance(guidance), count, "guidance").astype(self._dtype)
        negatives = read_negatives(negative_prompt, count) or [""] * count
        grid = (pictures.shape[1], pictures.shape[2])
        request = self._request(len(groups[0]), grid, steps, bool(np.any(strengths != 1)), rule)
        batch = _Batch(
            read_seeds(seed, count),
            strengths,
            conditioning(self.programs.encode_all(captions, self.tokenizers), ()),
            conditioning(self.programs.encode_all(negatives, self.tokenizers), ()),
            pictures,
            None if latents is None else self._given(latents, (count, *grid, self._channels), "latents"),
            None if noise is None else self._given(noise, pictures.shape, "noise"),
        )
        parts = [self._made(request, batch.of(rows), level, tiling=tiling) for rows in groups]
        return Upscaled(*(np.concatenate(kind)[:count] for kind in zip(*parts, strict=True)))

    def compile(
        self,
        *,
        height: int,
        width: int,
        batch: int = 1,
        steps: int = STEPS,
        guidance: float | None = None,
        tiling: bool = False,
        max_batch: int | None = 1,
    ) -> dict[str, ProgramMemory]:
        """Compiles ahead of time what a call with these keywords runs on `batch` pictures of this size.

        Returns what each program needs, by its name, as `TextToImage.compile` does.
        """
        count = len(batch_groups(batch, max_batch, "max_batch")[0])
        grid, level = self.info.fitted_size(height, width), self.info.noise_level(None)
        request = self._request(count, grid, steps, self.info.guidance(guidance) != 1, ORIGINAL)
        seeds = np.zeros(count, np.uint32)
        self._unit_noise(seeds, (*grid, self._channels), LATENTS)
        picture = np.asarray(self._unit_noise(seeds, (*grid, self._picture_channels), PICTURE))
        return self.programs.compile(request, tiling=tiling, low=self.info.low(picture, picture, level))

    @property
    def _channels(self) -> int:
        return self.info.model.vae.latent_channels

    @property
    def _picture_channels(self) -> int:
        return self.info.model.family.picture_channels

    def _request(self, batch: int, grid: tuple[int, int], steps: int, guided: bool, rule: Scaling) -> Request:
        sampler = self.info.model.schedule
        self.info.check_sampler(sampler, steps)
        return Request(
            grid=grid,
            batch=batch,
            scaling=self.info.model.scaling(rule),
            sampler=sampler,
            steps=steps,
            guided=guided,
            guidance_rescale=0.0,
            first=0,
            measure_entropy=False,
        )

    def _given(self, noise: object, shape: tuple[int, ...], name: str) -> np.ndarray:
        array = np.asarray(noise, self._dtype)
        if array.shape != shape:
            raise UserError(f"{name} has shape {array.shape}: these pictures ask for {shape}")
        return array

    def _made(self, request: Request, batch: "_Batch", level: int | None, *, tiling: bool) -> Upscaled:
        programs, seeds = self.programs, batch.seeds
        start = self._unit_noise(seeds, (*request.grid, self._channels), LATENTS)
        low = self._low(batch, level)
        final, _ = programs.denoise(
            request,
            start if batch.latents is None else jnp.asarray(batch.latents),
            batch.context._replace(low=low),
            batch.unconditional._replace(low=low),
            batch.guidance,
            programs.step_noise(request, seeds),
        )
        found = programs.decode(final, tiling=tiling)
        return Upscaled(np.asarray(found.images), np.asarray(final), np.asarray(found.broken))

    def _low(self, batch: "_Batch", level: int | None) -> LowResolution:
        """The pictures as the UNet sees them."""
        noise = self._unit_noise(batch.seeds, batch.pictures.shape[1:], PICTURE) if batch.noise is None else batch.noise
        return self.info.low(batch.pictures.astype(self._dtype) / 127.5 - 1.0, np.asarray(noise), level)

    def _unit_noise(self, seeds: UInt32[np.ndarray, "batch"], shape: tuple[int, ...], stream: int) -> Latents:
        """Each picture's from its own seed alone."""

        def draw_noise(seeds: UInt32[Array, "batch"]) -> Latents:
            return call_noise(seeds, 1, shape, stream=stream)[0].astype(self._dtype)

        return self.programs.cache.get(("unit noise", len(seeds), shape, stream), draw_noise, seeds)(seeds)


class _Batch(NamedTuple):
    """What a call has one of for each picture; the first axis of every array is the picture."""

    seeds: UInt32[np.ndarray, "batch"]
    guidance: Float[np.ndarray, "batch"]
    context: Conditioning
    unconditional: Conditioning
    pictures: Pictures
    latents: Float[np.ndarray, "batch height width channels"] | None
    noise: Float[np.ndarray, "batch height width 3"] | None

    def of(self, rows: list[int]) -> "_Batch":
        """Some pictures of it."""
        return jax.tree.map(lambda array: array[np.asarray(rows)], self)
