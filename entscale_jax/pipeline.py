"""TextToImage: captions in, pictures out, at any size, with one compiled denoising program per bucket and rule."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int32, UInt8, UInt32

from .attention import accumulator
from .batches import batch_groups
from .buckets import Bucket
from .compilation import enable_cache
from .errors import UserError
from .first_stage import Decoded
from .image_rows import ImageRows
from .inputs import (
    Size,
    crop,
    first_call,
    pad_to,
    per_picture,
    read_captions,
    read_images,
    read_negatives,
    read_seeds,
    time_ids,
)
from .models import AutoencoderKL, Conditioning, TextEncoders, TextStates, UNet2DConditionModel, VQModel
from .program_cache import ProgramMemory
from .programs import Programs, Request, conditioning
from .sampling import Fuse, Latents, Measured
from .scales import ScaleRule, Scaling
from .train_entropy import TrainEntropy
from .weights.dtypes import read_dtype
from .weights.folder import ModelInfo, describe
from .weights.placement import Placement, under
from .weights.tokenizer import Tokenizer

Rule = Scaling | ScaleRule | str | Mapping[str, object]
"""What `Scaling.of` takes: a rule's name, or `{"rule": "fixed", "multiplier": 0.8}`."""
SamplerChoice = str | Mapping[str, Any]
"""A sampler's name, or a mapping with `name` and options as diffusers names them."""
EntropyChoice = TrainEntropy | Mapping[str, float] | str | Path
"""E_T of each layer in nats, by its name, or the file that `entscale calibrate` wrote."""


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
    broken: Int32[np.ndarray, "batch"] | None
    """Of each picture, how many values were NaN or infinite before they became bytes; None with `decode=False`."""


class TextToImage:
    """A text-to-image model with its tokenizers. Make it with `from_pretrained`."""

    def __init__(
        self,
        info: ModelInfo,
        tokenizers: Sequence[Tokenizer],
        text: TextEncoders,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL | VQModel,
        dtype: jnp.dtype | type = jnp.float32,
        *,
        rule: Rule = ScaleRule.ENTROPY,
        rows: ImageRows | None = None,
    ):
        self.info, self.tokenizers, self.text, self.unet, self.vae = info, tuple(tokenizers), text, unet, vae
        self.rule = Scaling.of(rule)
        # Latents are carried from step to step in float32 at least, whatever the models compute in.
        self._latent_dtype = accumulator(dtype)
        self._rows = rows
        self.programs = Programs(text, unet, vae, self._latent_dtype, rows)

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
        rows: ImageRows | None = None,
    ) -> "TextToImage":
        """Opens a model.

        Args:
            model: a diffusers folder, one that `entscale convert` wrote, a hub id, or `scenes`, the built-in model.
            dtype: of weights and computation: float32, bfloat16, float16 or float64, whatever is stored. SDXL's
                autoencoder, which overflows in half precision, stays in float32 there.
            train_size: (height, width) in pixels, where the config's `sample_size` is not the size of training.
            sampler: instead of the one that the folder names, as in a call.
            revision: of a hub id: a branch, a tag or a commit.
            token: of an account that may read it; that of `hf auth login` if None.
            variant: of the weights, such as `fp16`.
            allow_pickle: reads `.bin` where there are neither safetensors nor msgpack, with PyTorch and tensors only.
            sharding: where parameters are put: one sharding for all, or a function of a parameter's name, such as
                `unet.conv_in.weight`, and its shape, HWIO for a convolution and (in, out) for a dense layer. Drawing
                with parameters that are split needs a mesh of `AxisType.Auto`.
            rows: splits the rows of every image over several devices, which have all parameters each unless `sharding`
                says otherwise: `ImageRows.over(jax.local_devices())`.

        Raises UserError for a folder that is missing, incomplete, of another kind or not fully understood.
        """
        enable_cache()
        dtype = read_dtype(dtype)
        info = describe(
            model,
            train_size=train_size,
            sampler=sampler,
            revision=revision,
            token=token,
            variant=variant,
            allow_pickle=allow_pickle,
        )
        if rows is not None and sharding is None:
            sharding = rows.whole
        tokenizers = [info.tokenizer(index) for index in range(len(info.text_encoders))]
        unet, vae, *text = (
            info.load(part, info.dtype(part, dtype), sharding=under(part, sharding)) for part in info.family.parts
        )
        return cls(info, tokenizers, info.family.text(*text), unet, vae, dtype, rows=rows)

    def with_modules(
        self,
        *,
        text: TextEncoders | None = None,
        unet: UNet2DConditionModel | None = None,
        vae: AutoencoderKL | VQModel | None = None,
        info: ModelInfo | None = None,
        rule: Rule | None = None,
    ) -> "TextToImage":
        """The same model with other modules in place of its own, other configs, or another rule where none is named."""
        dtype = self.unet.conv_in.kernel.get_value().dtype
        modules = text or self.text, unet or self.unet, vae or self.vae
        return TextToImage(info or self.info, self.tokenizers, *modules, dtype, rule=rule or self.rule, rows=self._rows)

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
        rule: Rule | None = None,
        multiplier: float | Sequence[float] = 1.0,
        train_entropy: EntropyChoice | None = None,
        sampler: SamplerChoice | None = None,
        steps: int = 50,
        guidance: float | Sequence[float] | None = None,
        guidance_rescale: float = 0.0,
        seed: int | Sequence[int] = 0,
        negative_prompt: str | Sequence[str] | None = None,
        latents: Float[np.ndarray, "batch h w c"] | Float[Array, "batch h w c"] | None = None,
        image: Any = None,
        strength: float = 0.8,
        original_size: Size | None = None,
        crops_coords_top_left: Size | None = None,
        target_size: Size | None = None,
        decode: bool = True,
        tiling: bool = False,
        decode_batch: int | None = None,
        max_batch: int | None = None,
        fuse: Fuse | None = None,
        measure_entropy: bool = False,
    ) -> Output:
        """Draws one picture a caption.

        Args:
            prompts: captions.
            height: pixels; the training size if not given, and with `image` its size. A size that the latent grid does
                not divide is drawn at the next bucket up and cropped at its centre.
            width: pixels, likewise.
            rule: scale of self-attention: a rule's name, or what `Scaling.of` takes; None is `entropy`, or the rule
                that the pipeline was adapted to.
            multiplier: of `1 / sqrt(d)`, for rule `fixed`: one number or one a level, finest first.
            train_entropy: E_T for rule `calibrated`: layer -> nats, or a file that `entscale calibrate` wrote; None is
                what the model ships, as the built-in one does.
            sampler: `ddim`, `pndm`, `euler`, `euler_ancestral` or `dpmsolver++`; or a mapping with `name` and options
                as diffusers names them, such as `{"name": "dpmsolver++", "use_karras_sigmas": True}`; the model's if
                None.
            steps: of the sampler.
            guidance: strength of classifier-free guidance, one or one a picture; 1 throughout draws without it. None is
                7.5, and 2 for the built-in model.
            guidance_rescale: 0 to 1, against the overexposure that strong guidance brings; see `sampling.denoise`.
            seed: s gives picture i the seed s + i; a list gives one each.
            negative_prompt: what guidance leads away from, one or one a caption; None is the empty text, and for SDXL
                what its folder asks for: zeros in place of text states.
            latents: the noise to start from, unit variance, channels last, instead of `seed`'s.
            image: the picture to start from, RGB bytes [height width 3], or one a caption [batch height width 3].
            strength: with `image`, the share of the steps that is run, above 0, up to 1: how much may change.
            original_size: SDXL: (height, width) of the training picture to pretend; the drawn size if None.
            crops_coords_top_left: SDXL: (top, left) of its crop to pretend; (0, 0) if None.
            target_size: SDXL: (height, width) to aim at; the drawn size if None.
            decode: False leaves out the pictures.
            tiling: decodes, and encodes `image`, by overlapping tiles, as diffusers' `enable_tiling`, where a picture
                is larger than one (the autoencoder's `sample_size`): less memory, a picture that differs a little.
            decode_batch: at most so many pictures are decoded at once, which does not change them; None is all.
            max_batch: at most so many pictures are drawn at once, likewise.
            fuse: draws a picture in parts, which it makes one of at each step; what `baselines.MultiDiffusion` is made
                of.
            measure_entropy: fills `entropy` and `logit_gap`; the picture stays the same.

        Raises UserError for an input that can't be drawn.
        """
        captions = read_captions(prompts)
        count, groups = len(captions), batch_groups(len(captions), max_batch, "max_batch")
        self.programs.first_stage.check(tiling=tiling, decode_batch=decode_batch)
        images = None if image is None else read_images(image, count)
        height, width = self._size(height, width, images)
        bucket, strengths = self.info.bucket(height, width), self._strength(guidance, count)
        request = self._request(
            len(groups[0]),
            bucket,
            bool(np.any(strengths != 1)),
            rule=rule,
            multiplier=multiplier,
            train_entropy=train_entropy,
            sampler=sampler,
            steps=steps,
            guidance_rescale=guidance_rescale,
            measure_entropy=measure_entropy,
            fuse=fuse,
            first=0 if image is None else first_call(steps, strength),
        )
        sizes = self._time_ids(bucket, original_size, crops_coords_top_left, target_size)
        batch = _Batch(
            read_seeds(seed, count),
            strengths.astype(self._latent_dtype),
            conditioning(self._encode(captions), sizes),
            conditioning(self._away_from(read_negatives(negative_prompt, count), count), sizes),
            None if latents is None else self._given(latents, (count, *request.grid)),
            None if images is None else pad_to(images, bucket),
        )
        parts = []
        for rows in groups:
            final, measured = self._denoised(request, batch.of(rows), tiling=tiling)
            found = self.programs.decode(final, tiling=tiling, decode_batch=decode_batch) if decode else None
            drawn = None if found is None else Decoded(crop(np.asarray(found.images), height, width), found.broken)
            parts.append(_output(drawn, final, measured if measure_entropy else None))
        return _joined(parts, count)

    def compile(
        self,
        *,
        batch: int = 1,
        height: int | None = None,
        width: int | None = None,
        rule: Rule | None = None,
        multiplier: float | Sequence[float] = 1.0,
        train_entropy: EntropyChoice | None = None,
        sampler: SamplerChoice | None = None,
        steps: int = 50,
        guidance: float | Sequence[float] | None = None,
        guidance_rescale: float = 0.0,
        strength: float | None = None,
        decode: bool = True,
        tiling: bool = False,
        decode_batch: int | None = None,
        max_batch: int | None = None,
        fuse: Fuse | None = None,
        measure_entropy: bool = False,
    ) -> dict[str, ProgramMemory]:
        """Compiles ahead of time the programs that a call with the same keywords and `batch` captions runs.

        `strength` only for image to image. Returns the device memory that a call of each program takes, weights
        included, by the program's name: `encode_text`, `draw_noise`, `denoise_latents`, `decode_latents` and others.
        """
        self.programs.first_stage.check(tiling=tiling, decode_batch=decode_batch)
        request = self._request(
            len(batch_groups(batch, max_batch, "max_batch")[0]),
            self.info.bucket(*self._size(height, width, None)),
            bool(np.any(self._strength(guidance, batch) != 1)),
            rule=rule,
            multiplier=multiplier,
            train_entropy=train_entropy,
            sampler=sampler,
            steps=steps,
            guidance_rescale=guidance_rescale,
            measure_entropy=measure_entropy,
            fuse=fuse,
            first=0 if strength is None else first_call(steps, strength),
        )
        return self.programs.compile(
            request, decode=decode, from_images=strength is not None, tiling=tiling, decode_batch=decode_batch
        )

    def _strength(self, guidance: float | Sequence[float] | None, count: int) -> Float[np.ndarray, "batch"]:
        return per_picture(self.info.guidance if guidance is None else guidance, count, "guidance")

    def _request(
        self,
        batch: int,
        bucket: Bucket,
        guided: bool,
        *,
        rule: Rule | None,
        multiplier: float | Sequence[float],
        train_entropy: EntropyChoice | None,
        sampler: SamplerChoice | None,
        steps: int,
        guidance_rescale: float,
        measure_entropy: bool,
        fuse: Fuse | None,
        first: int = 0,
    ) -> Request:
        multiplier = tuple(multiplier) if isinstance(multiplier, Sequence) else multiplier
        scaling = self.info.scaling(self.rule if rule is None else rule, multiplier, train_entropy)
        self.info.layer_multipliers(bucket, scaling)  # raises where the rule has no value
        if not 0 <= guidance_rescale <= 1:
            raise UserError(f"guidance_rescale is {guidance_rescale!r}: give a number from 0 to 1")
        chosen = self.info.sampler(sampler)
        chosen.table(steps)  # raises for a step count that can't be
        return Request(
            grid=bucket.latent(self.info.latent_factor),
            batch=batch,
            scaling=scaling,
            sampler=chosen,
            steps=steps,
            guided=guided,
            guidance_rescale=float(guidance_rescale) if guided else 0.0,
            first=first,
            measure_entropy=measure_entropy,
            fuse=fuse,
        )

    def _encode(self, texts: list[str]) -> list[TextStates]:
        return self.programs.encode_all(texts, self.tokenizers)

    def _away_from(self, negatives: list[str] | None, count: int) -> list[TextStates]:
        empty = self._encode([""] * count if negatives is None else negatives)
        if negatives is None and self.info.zeros_for_empty_prompt:
            return [jax.tree.map(np.zeros_like, states) for states in empty]
        return empty

    def _size(
        self, height: int | None, width: int | None, images: UInt8[np.ndarray, "batch H W 3"] | None
    ) -> tuple[int, int]:
        default = self.info.train_size if images is None else images.shape[1:3]
        size = default[0] if height is None else height, default[1] if width is None else width
        if images is not None and size != default:
            raise UserError(
                f"image is {default[1]}x{default[0]} and the size asked for {size[1]}x{size[0]}: resize the image first"
            )
        return size

    def _time_ids(
        self, bucket: Bucket, original: Size | None, crops: Size | None, target: Size | None
    ) -> tuple[float, ...]:
        if not self.info.takes_sizes and (original or crops or target):
            raise UserError(
                "original_size, crops_coords_top_left and target_size are SDXL's: "
                f"{self.info.name!r} is of {self.info.family.name}"
            )
        return time_ids(bucket, original, crops, target)

    def _given(self, latents: object, shape: tuple[int, int, int]) -> Float[np.ndarray, "batch h w c"]:
        array = np.asarray(jnp.asarray(latents, self._latent_dtype))
        wanted = (*shape, self.info.vae.latent_channels)
        if array.shape != wanted:
            raise UserError(f"latents have shape {array.shape}: this size and these captions ask for {wanted}")
        return array

    def _denoised(self, request: Request, batch: "_Batch", *, tiling: bool) -> tuple[Latents, Measured]:
        programs = self.programs
        start = programs.noise(request, batch.seeds) if batch.latents is None else jnp.asarray(batch.latents)
        if batch.images is not None:
            start = programs.start_from(request, batch.images, start, batch.seeds, tiling=tiling)
        noise = programs.step_noise(request, batch.seeds)
        return programs.denoise(request, start, batch.context, batch.unconditional, batch.guidance, noise)


class _Batch(NamedTuple):
    """What a call has one of for each picture; the first axis of every array is the picture."""

    seeds: UInt32[np.ndarray, "batch"]
    guidance: Float[np.ndarray, "batch"]
    context: Conditioning
    unconditional: Conditioning
    latents: Float[np.ndarray, "batch h w c"] | None
    images: Float32[np.ndarray, "batch H W 3"] | None

    def of(self, rows: list[int]) -> "_Batch":
        """Some pictures of it."""
        return jax.tree.map(lambda array: array[np.asarray(rows)], self)


def _output(drawn: Decoded | None, latents: Latents, measured: Measured | None) -> Output:
    images, broken = (None, None) if drawn is None else map(np.asarray, drawn)
    if measured is None:
        return Output(images, np.asarray(latents), None, None, broken)
    entropy, gap = ({name: np.asarray(value) for name, value in layers.items()} for layers in measured)
    return Output(images, np.asarray(latents), entropy, gap, broken)


def _joined(parts: list[Output], count: int) -> Output:
    """The groups' outputs as one of `count` pictures, without what filled up the last group."""
    if len(parts) == 1:
        return parts[0]

    def pictures(name: str) -> np.ndarray:
        return np.concatenate([getattr(part, name) for part in parts])[:count]

    def layers(name: str) -> dict[str, np.ndarray]:
        first, *_ = found = [getattr(part, name) for part in parts]
        return {layer: np.concatenate([each[layer] for each in found], axis=1)[:, :count] for layer in first}

    decoded, measured = parts[0].images is not None, parts[0].entropy is not None
    return Output(
        pictures("images") if decoded else None,
        pictures("latents"),
        layers("entropy") if measured else None,
        layers("logit_gap") if measured else None,
        pictures("broken") if decoded else None,
    )
