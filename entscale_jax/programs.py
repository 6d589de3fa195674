"""The compiled programs of one model: text, noise, denoising and decoding, each compiled once and kept by its shape."""

import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int32, UInt8, UInt32

from .buckets import Bucket
from .models import AddedConditions, AutoencoderKL, Conditioning, TextEncoders, TextStates, UNet2DConditionModel
from .sampling import Latents, Measured, Sampler, call_noise, denoise
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


class Programs:
    """Compiles at first use and keeps what it compiled. Weights are arguments of every program, never part of one."""

    def __init__(
        self,
        text: TextEncoders,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        latent_dtype: jnp.dtype,
    ):
        self._text_graph, self._text = nnx.split(text)
        self._unet_graph, self._unet = nnx.split(unet)
        self._vae_graph, self._vae = nnx.split(vae)
        self._factor = vae.config.scaling_factor
        self._channels = vae.config.latent_channels
        self._lengths = text.lengths
        self._latent_dtype = latent_dtype
        self._compiled: dict[Hashable, Callable] = {}
        self.compile_seconds = 0.0
        """Spent on tracing and compiling so far."""

    def encode(self, tokens: tuple[Int32[np.ndarray, "1 text"], ...]) -> TextStates:
        """Token ids of one caption, by each tokenizer. One at a time, so that one text program serves all batches."""

        def encode_text(weights: nnx.State, tokens: tuple[Int32[Array, "1 text"], ...]) -> TextStates:
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

    def start_from(
        self,
        request: Request,
        images: Float[np.ndarray, "batch H W 3"],
        noise: Latents,
        seeds: UInt32[np.ndarray, "batch"],
    ) -> Latents:
        """What image to image starts from: latents of the pictures, in [-1, 1], with the noise of the first call.

        The latents are drawn from the autoencoder's distribution, each picture's by its own seed.
        """

        return self._starting(request, images, noise, seeds)(self._vae, images, noise, seeds)

    def denoise(
        self,
        request: Request,
        latents: Latents,
        context: Conditioning,
        unconditional: Conditioning,
        guidance: Float[np.ndarray, "batch"],
        step_noise: Float[Array, "calls batch height width channels"] | None = None,
    ) -> tuple[Latents, Measured]:
        """All calls, from noise to latents, and the entropies and logit gaps if the request asks for them."""
        away = (unconditional, guidance) if request.guided else (None, None)
        arguments = (latents, context, *away, step_noise)
        return self._denoising(request, *arguments)(self._unet, *arguments)

    def decode(self, latents: Latents) -> UInt8[Array, "batch height width 3"]:
        """Latents to pixels of the whole bucket."""
        return self._decoding(latents)(self._vae, latents)

    def compile(self, request: Request, *, decode: bool, image: Bucket | None = None) -> None:
        """Compiles what a draw of `request` runs, without running it; with `image`, from pictures of that size."""
        grid = (request.batch, *request.grid, self._channels)
        latents = jax.ShapeDtypeStruct(grid, self._latent_dtype)
        guidance = jax.ShapeDtypeStruct((request.batch,), self._latent_dtype)
        states = self.encode(tuple(np.zeros((1, length), np.int32) for length in self._lengths))
        text = conditioning([states] * request.batch, (0.0,) * 6)
        self.noise(request, np.zeros(request.batch, np.uint32))
        away = (text, guidance) if request.guided else (None, None)
        noise = None
        if request.sampler.stochastic:
            self.step_noise(request, np.zeros(request.batch, np.uint32))
            noise = jax.ShapeDtypeStruct((_calls(request), *grid), self._latent_dtype)
        self._denoising(request, latents, text, *away, noise)
        if image is not None:
            pixels = jax.ShapeDtypeStruct((request.batch, image.height, image.width, 3), jnp.float32)
            self._starting(request, pixels, latents, jax.ShapeDtypeStruct((request.batch,), jnp.uint32))
        if decode:
            self._decoding(latents)

    def _denoising(self, request: Request, *arguments: Any) -> Callable:
        def denoise_latents(
            weights: nnx.State,
            latents: Latents,
            context: Conditioning,
            unconditional: Conditioning | None,
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

    def _starting(self, request: Request, *arguments: Any) -> Callable:
        def noised_latents(
            weights: nnx.State, images: Float[Array, "batch H W 3"], noise: Latents, seeds: UInt32[Array, "batch"]
        ) -> Latents:
            dtype = jax.tree.leaves(weights)[0].dtype
            drawn = call_noise(seeds, 1, noise.shape[1:], stream=2)[0].astype(dtype)
            clean = nnx.merge(self._vae_graph, weights).sample_latents(images.astype(dtype), drawn)
            clean = clean.astype(noise.dtype) * self._factor
            return request.sampler.noised(clean, noise, request.steps, request.first)

        return self._program(("start", request), noised_latents, self._vae, *arguments)

    def _decoding(self, latents: Any) -> Callable:
        def decode_latents(weights: nnx.State, latents: Latents) -> UInt8[Array, "batch height width 3"]:
            scaled = (latents / self._factor).astype(jax.tree.leaves(weights)[0].dtype)
            images = nnx.merge(self._vae_graph, weights).decode(scaled).astype(latents.dtype)
            return jnp.round(jnp.clip(images / 2 + 0.5, 0.0, 1.0) * 255).astype(jnp.uint8)

        return self._program(("decode", latents.shape), decode_latents, self._vae, latents)

    def _program(self, key: Hashable, function: Callable, *arguments: Any) -> Callable:
        if key not in self._compiled:
            start = time.perf_counter()
            self._compiled[key] = jax.jit(function).lower(*arguments).compile()
            self.compile_seconds += time.perf_counter() - start
        return self._compiled[key]


def conditioning(captions: Sequence[TextStates], time_ids: Sequence[float]) -> Conditioning:
    """What the UNet is told of a batch, from each caption's text states [1 ...]; `time_ids` where these are pooled."""
    states, pooled = zip(*captions, strict=True)
    if pooled[0] is None:
        return Conditioning(np.concatenate(states))
    texts = np.concatenate(pooled)
    return Conditioning(
        np.concatenate(states), AddedConditions(texts, np.tile(np.asarray(time_ids, texts.dtype), (len(texts), 1)))
    )


def _calls(request: Request) -> int:
    return len(request.sampler.table(request.steps, request.first).timesteps)
