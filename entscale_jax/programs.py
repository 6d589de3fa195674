"""The compiled programs of one model: text, noise, denoising and decoding, each compiled once and kept by its shape."""

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int32, UInt8, UInt32

from .errors import UserError
from .models import AutoencoderKL, CLIPTextModel, UNet2DConditionModel
from .models.tiling import decoding_tiles, tiled_decode
from .sampling import Context, Latents, Measured, Sampler, call_noise, denoise
from .scales import Scaling


@dataclass(frozen=True)
class Request:
    """Everything static about a draw; two draws with equal requests run the same programs."""

    grid: tuple[int, int]
    """Latent cells (h, w)."""
    batch: int
    scaling: Scaling
    sampler: Sampler
    steps: int
    guided: bool
    guidance_rescale: float
    first: int
    """The call to begin with; above 0 for image to image."""
    measure_entropy: bool


def batch_groups(count: int, most: int | None, name: str) -> list[list[int]]:
    """The pictures of a batch, by index, in groups of at most `most`; None is all at once.

    Groups are equally large, so that one program serves: the last is filled up with the last picture, again and again.
    Results put together are therefore cut to `count`. Raises UserError, which calls the limit `name`.
    """
    check_limit(most, name)
    size = max(1, count if most is None else min(count, int(most)))
    return [[min(start + index, count - 1) for index in range(size)] for start in range(0, count, size)]


def check_limit(most: int | None, name: str) -> None:
    """Raises UserError unless `most` is a whole number from 1, or None."""
    if most is not None and (isinstance(most, bool) or not isinstance(most, int | np.integer) or most < 1):
        raise UserError(f"{name} is {most!r}: give a whole number from 1, or None for no limit")


class Programs:
    """Compiles at first use and keeps what it compiled. Weights are arguments of every program, never part of one."""

    def __init__(
        self,
        text: CLIPTextModel,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        latent_dtype: jnp.dtype,
    ):
        self._text_graph, self._text = nnx.split(text)
        self._unet_graph, self._unet = nnx.split(unet)
        self._vae_graph, self._vae = nnx.split(vae)
        self._vae_config = vae.config
        self._factor = vae.config.scaling_factor
        self._channels = vae.config.latent_channels
        self._states = jax.ShapeDtypeStruct(
            (text.config.max_position_embeddings, text.config.hidden_size), text.embeddings.token_embedding.dtype
        )
        self._latent_dtype = latent_dtype
        self._compiled: dict[Hashable, Callable] = {}
        self.compile_seconds = 0.0
        """Spent on tracing and compiling so far."""

    def encode(self, tokens: Int32[np.ndarray, "1 text"]) -> Float[Array, "1 text width"]:
        """Token ids of one caption to text states. One at a time, so that there is one text program for all batches."""

        def encode_text(weights: nnx.State, tokens: Int32[Array, "1 text"]) -> Float[Array, "1 text width"]:
            return nnx.merge(self._text_graph, weights)(tokens)

        return self._program("text", encode_text, self._text, tokens)(self._text, tokens)

    def noise(self, request: Request, seeds: UInt32[np.ndarray, "batch"]) -> Latents:
        """Unit noise, each picture's from its own seed alone, by JAX's generator in float32."""
        shape, dtype = (*request.grid, self._channels), self._latent_dtype

        def draw_noise(seeds: UInt32[Array, "batch"]) -> Latents:
            return jax.vmap(lambda seed: jax.random.normal(jax.random.key(seed), shape, jnp.float32))(seeds).astype(
                dtype
            )

        return self._program(("noise", len(seeds), shape), draw_noise, seeds)(seeds)

    def step_noise(
        self, request: Request, seeds: UInt32[np.ndarray, "batch"]
    ) -> Float[Array, "calls batch height width channels"] | None:
        """Unit noise for every call of a stochastic sampler, each picture's from its own seed; None for another."""
        if not request.sampler.stochastic:
            return None
        calls, shape = _calls(request), (*request.grid, self._channels)

        def draw_step_noise(seeds: UInt32[Array, "batch"]) -> Float[Array, "calls batch height width channels"]:
            return call_noise(seeds, calls, shape).astype(self._latent_dtype)

        return self._program(("step noise", len(seeds), calls, shape), draw_step_noise, seeds)(seeds)

    def denoise(
        self,
        request: Request,
        latents: Latents,
        context: Float[np.ndarray, "batch text width"],
        unconditional: Float[np.ndarray, "batch text width"],
        guidance: Float[np.ndarray, "batch"],
        step_noise: Float[Array, "calls batch height width channels"] | None = None,
    ) -> tuple[Latents, Measured]:
        """All calls, from noise to latents, and the entropies and logit gaps if the request asks for them."""
        away = (unconditional, guidance) if request.guided else (None, None)
        arguments = (latents, context, *away, step_noise)
        return self._denoising(request, *arguments)(self._unet, *arguments)

    def decode(
        self, latents: Latents, *, tiling: bool = False, decode_batch: int | None = None
    ) -> UInt8[Array | np.ndarray, "batch height width 3"]:
        """Latents to pixels of the whole bucket.

        Args:
            latents: of the denoiser.
            tiling: by overlapping tiles, where latents are larger than one; see `models.tiling`.
            decode_batch: at most so many pictures at once, which does not change them; None is all.

        Raises UserError as `check_decoding` does.
        """
        self.check_decoding(tiling=tiling, decode_batch=decode_batch)
        groups = batch_groups(len(latents), decode_batch, "decode_batch")
        decode = self._decode_tiles if tiling else self._decode_whole
        if len(groups) < 2:
            return decode(latents)
        whole = np.asarray(latents)
        return np.concatenate([np.asarray(decode(whole[rows])) for rows in groups])[: len(latents)]

    def check_decoding(self, *, tiling: bool, decode_batch: int | None) -> None:
        """Raises UserError for a limit that is none, and where the model's `sample_size` gives no tiles."""
        check_limit(decode_batch, "decode_batch")
        if tiling:
            decoding_tiles(self._vae_config)

    def compile(self, request: Request, *, decode: bool, tiling: bool = False, decode_batch: int | None = None) -> None:
        """Compiles what a draw of `request` runs, without running it."""
        self.check_decoding(tiling=tiling, decode_batch=decode_batch)
        grid = (request.batch, *request.grid, self._channels)
        latents = jax.ShapeDtypeStruct(grid, self._latent_dtype)
        text = jax.ShapeDtypeStruct((request.batch, *self._states.shape), self._states.dtype)
        guidance = jax.ShapeDtypeStruct((request.batch,), self._latent_dtype)
        self.encode(np.zeros((1, self._states.shape[0]), np.int32))
        self.noise(request, np.zeros(request.batch, np.uint32))
        away = (text, guidance) if request.guided else (None, None)
        noise = None
        if request.sampler.stochastic:
            self.step_noise(request, np.zeros(request.batch, np.uint32))
            noise = jax.ShapeDtypeStruct((_calls(request), *grid), self._latent_dtype)
        self._denoising(request, latents, text, *away, noise)
        if decode:
            first, *_ = batch_groups(request.batch, decode_batch, "decode_batch")
            self._compile_decoding(len(first), request.grid, tiling)

    def _denoising(self, request: Request, *arguments: Any) -> Callable:
        def denoise_latents(
            weights: nnx.State,
            latents: Latents,
            context: Context,
            unconditional: Context | None,
            guidance: Float[Array, "batch"] | None,
            step_noise: Float[Array, "calls batch height width channels"] | None,
        ) -> tuple[Latents, Measured]:
            return denoise(
                nnx.merge(self._unet_graph, weights),
                latents,
                context,
                schedule=request.sampler,
                steps=request.steps,
                rule=request.scaling,
                unconditional=unconditional,
                guidance=1.0 if guidance is None else guidance,
                guidance_rescale=request.guidance_rescale,
                first=request.first,
                step_noise=step_noise,
                measure_entropy=request.measure_entropy,
            )

        return self._program(("denoise", request), denoise_latents, self._unet, *arguments)

    def _decode_whole(self, latents: Any) -> UInt8[Array, "batch height width 3"]:
        return self._decoding(latents)(self._vae, latents)

    def _decode_tiles(self, latents: Any) -> UInt8[Array, "batch height width 3"]:
        if not decoding_tiles(self._vae_config).act(*latents.shape[1:3]):
            return self._decode_whole(latents)
        images = tiled_decode(lambda tile: self._tile(tile)(self._vae, tile), latents, self._vae_config)
        return self._rounding(images)(images)

    def _compile_decoding(self, batch: int, grid: tuple[int, int], tiling: bool) -> None:
        def of_shape(height: int, width: int, channels: int) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((batch, height, width, channels), self._latent_dtype)

        if not (tiling and decoding_tiles(self._vae_config).act(*grid)):
            self._decoding(of_shape(*grid, self._channels))
            return
        for shape in decoding_tiles(self._vae_config).shapes(*grid):
            self._tile(of_shape(*shape, self._channels))
        height, width = (side * self._vae_config.factor for side in grid)
        self._rounding(of_shape(height, width, self._vae_config.out_channels))

    def _decoding(self, latents: Any) -> Callable:
        def decode_latents(weights: nnx.State, latents: Latents) -> UInt8[Array, "batch height width 3"]:
            return _to_bytes(self._pixels(weights, latents))

        return self._program(("decode", latents.shape), decode_latents, self._vae, latents)

    def _tile(self, latents: Any) -> Callable:
        def decode_tile(weights: nnx.State, latents: Latents) -> Float[Array, "batch height width 3"]:
            return self._pixels(weights, latents)

        return self._program(("tile", latents.shape), decode_tile, self._vae, latents)

    def _rounding(self, images: Any) -> Callable:
        def round_pixels(images: Float[Array, "batch height width 3"]) -> UInt8[Array, "batch height width 3"]:
            return _to_bytes(images)

        return self._program(("round", images.shape), round_pixels, images)

    def _pixels(self, weights: nnx.State, latents: Latents) -> Float[Array, "batch height width 3"]:
        scaled = (latents / self._factor).astype(jax.tree.leaves(weights)[0].dtype)
        return nnx.merge(self._vae_graph, weights).decode(scaled).astype(latents.dtype)

    def _program(self, key: Hashable, function: Callable, *arguments: Any) -> Callable:
        if key not in self._compiled:
            start = time.perf_counter()
            self._compiled[key] = jax.jit(function).lower(*arguments).compile()
            self.compile_seconds += time.perf_counter() - start
        return self._compiled[key]


def _calls(request: Request) -> int:
    return len(request.sampler.table(request.steps, request.first).timesteps)


def _to_bytes(images: Float[Array, "batch height width 3"]) -> UInt8[Array, "batch height width 3"]:
    return jnp.round(jnp.clip(images / 2 + 0.5, 0.0, 1.0) * 255).astype(jnp.uint8)
