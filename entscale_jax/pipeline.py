"""TextToImage: captions in, pictures out, at any size, with one compiled denoising program per bucket and rule."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, UInt8

from .attention import accumulator
from .compilation import enable_cache
from .errors import UserError
from .models import AutoencoderKL, CLIPTextModel, UNet2DConditionModel
from .programs import Programs, Request
from .scales import ScaleRule, Scaling
from .weights.dtypes import read_dtype
from .weights.folder import ModelInfo, describe
from .weights.placement import Placement, under
from .weights.tokenizer import Tokenizer
from .weights.torch_format import AbstractRngs, load_parameters

Rule = Scaling | ScaleRule | str | Mapping[str, object]
SamplerChoice = str | Mapping[str, Any]


@dataclass(frozen=True)
class Output:
    """What one call drew."""

    images: UInt8[np.ndarray, "batch height width 3"] | None
    """Pixels, or None with `decode=False`."""
    latents: Float[np.ndarray, "batch h w c"]
    """Before decoding, of the whole bucket: not cropped."""
    entropy: dict[str, Float32[np.ndarray, "steps batch heads"]] | None
    """With `measure_entropy`: mean entropy in nats of each self-attention layer; with guidance the caption's half."""
    logit_gap: dict[str, Float32[np.ndarray, "steps batch heads"]] | None
    """With `measure_entropy`, likewise: mean over rows of the logit gap of `attention_statistics`."""


class TextToImage:
    """A Stable Diffusion model with its tokenizer. Make it with `from_pretrained`."""

    def __init__(
        self,
        info: ModelInfo,
        tokenizer: Tokenizer,
        text: CLIPTextModel,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        dtype: jnp.dtype | type = jnp.float32,
    ):
        self.info, self.unet, self.vae, self.text = info, unet, vae, text
        self._tokenizer = tokenizer
        # Latents are carried from step to step in float32 at least, whatever the models compute in.
        self._latent_dtype = accumulator(dtype)
        self.programs = Programs(text, unet, vae, self._latent_dtype)

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        *,
        dtype: jnp.dtype | type | str = jnp.float32,
        train_size: tuple[int, int] | None = None,
        sampler: SamplerChoice | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        variant: str | None = None,
        allow_pickle: bool = False,
        sharding: Placement = None,
    ) -> "TextToImage":
        """Opens a model.

        Args:
            model: a diffusers folder, a hub id, or `scenes`, the built-in model.
            dtype: of weights and computation: float32, bfloat16, float16 or float64, whatever is stored.
            train_size: (height, width) in pixels, where the config's `sample_size` is not the size of training.
            sampler: instead of the one that the folder names, as in a call.
            revision: of a hub id: a branch, a tag or a commit.
            token: of an account that may read it; that of `hf auth login` if None.
            variant: of the weights, such as `fp16`.
            allow_pickle: reads PyTorch's `.bin` where there are no safetensors, with PyTorch and tensors only.
            sharding: where parameters are put: one sharding for all, or a function of a parameter's name, such as
                `unet.conv_in.weight`, and its shape, HWIO for a convolution and (in, out) for a dense layer. Drawing
                with parameters that are split needs a mesh of `AxisType.Auto`.

        Raises UserError for a folder that is missing, incomplete, of another kind or not fully understood.
        """
        enable_cache()
        dtype, rngs = read_dtype(dtype), AbstractRngs()
        info = describe(
            model,
            train_size=train_size,
            sampler=sampler,
            revision=revision,
            token=token,
            variant=variant,
            allow_pickle=allow_pickle,
        )

        def load(part: str, build: Callable[[], Any]) -> Any:
            return load_parameters(build, info.weight_files(part), dtype, sharding=under(part, sharding))

        return cls(
            info,
            Tokenizer(info.folder / "tokenizer", info.text.max_position_embeddings),
            load("text_encoder", lambda: CLIPTextModel(info.text, rngs=rngs, dtype=dtype)),
            load("unet", lambda: UNet2DConditionModel(info.unet, rngs=rngs, dtype=dtype)),
            load("vae", lambda: AutoencoderKL(info.vae, rngs=rngs, dtype=dtype)),
            dtype,
        )

    @property
    def layers(self) -> dict[str, tuple[int, int, int]]:
        """Every self-attention layer: name -> (level, heads, head width)."""
        return {
            name: (layer.level, layer.heads, layer.head_dim) for name, layer in self.unet.attention_layers().items()
        }

    def __call__(
        self,
        prompts: str | Sequence[str],
        *,
        height: int | None = None,
        width: int | None = None,
        rule: Rule = ScaleRule.ENTROPY,
        multiplier: float | Sequence[float] = 1.0,
        sampler: SamplerChoice | None = None,
        steps: int = 50,
        guidance: float | Sequence[float] | None = None,
        guidance_rescale: float = 0.0,
        seed: int | Sequence[int] = 0,
        negative_prompt: str = "",
        latents: Float[np.ndarray, "batch h w c"] | Float[Array, "batch h w c"] | None = None,
        decode: bool = True,
        measure_entropy: bool = False,
    ) -> Output:
        """Draws one picture a caption.

        Args:
            prompts: captions.
            height: pixels; the training size if not given. A size that the latent grid does not divide is drawn at the
                next bucket up and cropped at its centre.
            width: pixels, likewise.
            rule: scale of self-attention: a rule's name, or what `Scaling.of` takes.
            multiplier: of `1 / sqrt(d)`, for rule `fixed`: one number or one a level, finest first.
            sampler: `ddim`, `pndm`, `euler`, `euler_ancestral` or `dpmsolver++`; or a mapping with `name` and options
                as diffusers names them, such as `{"name": "dpmsolver++", "use_karras_sigmas": True}`; the model's if
                None.
            steps: of the sampler.
            guidance: strength of classifier-free guidance, one or one a picture; 1 throughout draws without it. None is
                7.5, and 2 for the built-in model.
            guidance_rescale: 0 to 1, against the overexposure that strong guidance brings; see `sampling.denoise`.
            seed: s gives picture i the seed s + i; a list gives one each.
            negative_prompt: what guidance leads away from.
            latents: the noise to start from, unit variance, channels last, instead of `seed`'s.
            decode: False leaves out the pictures.
            measure_entropy: fills `entropy` and `logit_gap`; the picture stays the same.

        Raises UserError for an input that can't be drawn.
        """
        captions = _captions(prompts)
        strength = self._strength(guidance, len(captions)).astype(self._latent_dtype)
        height, width = _size(self.info, height, width)
        request = self._request(
            len(captions),
            height,
            width,
            rule,
            multiplier,
            sampler=sampler,
            steps=steps,
            guided=bool(np.any(strength != 1)),
            guidance_rescale=guidance_rescale,
            measure_entropy=measure_entropy,
        )
        seeds = _seeds(seed, len(captions))
        noise = self.programs.noise(request, seeds) if latents is None else self._given(request, latents)
        context, unconditional = self._encode(captions), self._encode([negative_prompt] * len(captions))
        final, measured = self.programs.denoise(
            request, noise, context, unconditional, strength, self.programs.step_noise(request, seeds)
        )
        images = _crop(np.asarray(self.programs.decode(final)), height, width) if decode else None
        if not measure_entropy:
            return Output(images, np.asarray(final), None, None)
        entropy, gap = ({name: np.asarray(value) for name, value in layers.items()} for layers in measured)
        return Output(images, np.asarray(final), entropy, gap)

    def compile(
        self,
        *,
        batch: int = 1,
        height: int | None = None,
        width: int | None = None,
        rule: Rule = ScaleRule.ENTROPY,
        multiplier: float | Sequence[float] = 1.0,
        sampler: SamplerChoice | None = None,
        steps: int = 50,
        guidance: float | Sequence[float] | None = None,
        guidance_rescale: float = 0.0,
        decode: bool = True,
        measure_entropy: bool = False,
    ) -> None:
        """Compiles ahead of time the programs that a call with the same keywords and `batch` captions runs."""
        height, width = _size(self.info, height, width)
        guided = bool(np.any(self._strength(guidance, batch) != 1))
        request = self._request(
            batch,
            height,
            width,
            rule,
            multiplier,
            sampler=sampler,
            steps=steps,
            guided=guided,
            guidance_rescale=guidance_rescale,
            measure_entropy=measure_entropy,
        )
        self.programs.compile(request, decode=decode)

    def _strength(self, guidance: float | Sequence[float] | None, count: int) -> Float[np.ndarray, "batch"]:
        return _per_picture(self.info.guidance if guidance is None else guidance, count, "guidance")

    def _request(
        self, batch, height, width, rule, multiplier, *, sampler, steps, guided, guidance_rescale, measure_entropy
    ) -> Request:
        multiplier = tuple(multiplier) if isinstance(multiplier, Sequence) else multiplier
        scaling = Scaling.of(rule, multiplier)
        scaling.check_levels(self.info.levels)
        if not 0 <= guidance_rescale <= 1:
            raise UserError(f"guidance_rescale is {guidance_rescale!r}: give a number from 0 to 1")
        chosen = self.info.sampler(sampler)
        chosen.table(steps)  # raises for a step count that can't be
        return Request(
            grid=self.info.bucket(height, width).latent(self.info.latent_factor),
            batch=batch,
            scaling=scaling,
            sampler=chosen,
            steps=steps,
            guided=guided,
            guidance_rescale=float(guidance_rescale) if guided else 0.0,
            first=0,
            measure_entropy=measure_entropy,
        )

    def _encode(self, texts: list[str]) -> Float[np.ndarray, "batch text width"]:
        """Text states, each text's computed once a call."""
        ids = {text: self._tokenizer([text]) for text in dict.fromkeys(texts)}
        states = {text: np.asarray(self.programs.encode(row))[0] for text, row in ids.items()}
        return np.stack([states[text] for text in texts])

    def _given(self, request: Request, latents: object) -> Float[Array, "batch h w c"]:
        array = jnp.asarray(latents, self._latent_dtype)
        wanted = (request.batch, *request.grid, self.info.vae.latent_channels)
        if array.shape != wanted:
            raise UserError(f"latents have shape {array.shape}: this size and these captions ask for {wanted}")
        return array


def _captions(prompts: str | Sequence[str]) -> list[str]:
    captions = [prompts] if isinstance(prompts, str) else list(prompts)
    if not captions:
        raise UserError("prompts is empty: give at least one caption")
    for caption in captions:
        if not isinstance(caption, str):
            raise UserError(f"prompt {caption!r} is no text: give a string")
    return captions


def _size(info: ModelInfo, height: int | None, width: int | None) -> tuple[int, int]:
    return info.train_size[0] if height is None else height, info.train_size[1] if width is None else width


def _seeds(seed: int | Sequence[int], count: int) -> np.ndarray:
    seeds = [seed + index for index in range(count)] if isinstance(seed, int) else list(seed)
    if len(seeds) != count:
        raise UserError(f"seed has {len(seeds)} values for {count} captions: give one number, or one a caption")
    for value in seeds:
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 0 <= value < 2**32:
            raise UserError(f"seed {value!r} is no whole number from 0 to 2^32 - 1")
    return np.asarray(seeds, np.uint32)


def _per_picture(value: float | Sequence[float], count: int, name: str) -> np.ndarray:
    values = np.asarray(value, np.float64)
    if values.ndim > 1 or (values.ndim == 1 and len(values) != count) or not np.all(np.isfinite(values)):
        raise UserError(f"{name} is {value!r}: give one finite number, or one for each of {count} captions")
    return np.broadcast_to(values, (count,))


def _crop(images: np.ndarray, height: int, width: int) -> np.ndarray:
    top, left = (images.shape[1] - height) // 2, (images.shape[2] - width) // 2
    return images[:, top : top + height, left : left + width]
