"""The compiled programs of one model: text, noise, denoising and decoding, each compiled once and kept by its shape."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int32, UInt32

from .attention import accumulator
from .first_stage import Decoded, FirstStage, Pixels
from .image_rows import ImageRows
from .models import (
    AddedConditions,
    AutoencoderKL,
    Conditioning,
    LowResolution,
    TextEncoders,
    TextStates,
    UNet,
    VQModel,
)
from .program_cache import ProgramCache, ProgramMemory
from .sampling import Fuse, Latents, Measured, Sampler, call_noise, denoise
from .scales import Scaling
from .weights.tokenizer import Tokenizer

POSTERIOR = 2
"""The stream of noise by which latents of a picture are drawn; 1 is that of the steps."""


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
    fuse: Fuse | None = None
    """What makes a step of the whole picture out of steps of its parts."""


class Programs:
    """Compiles at first use and keeps what it compiled. Weights are arguments of every program, never part of one."""

    def __init__(
        self,
        text: TextEncoders,
        unet: UNet,
        vae: AutoencoderKL | VQModel,
        latent_dtype: jnp.dtype,
        rows: ImageRows | None = None,
    ):
        self._rows = rows
        self._text_graph, self._text = nnx.split(text)
        self._unet_graph, self._unet = nnx.split(unet)
        self._lengths = text.lengths
        self._channels = vae.config.latent_channels
        self._latent_dtype = latent_dtype
        self.cache = ProgramCache()
        self.first_stage = FirstStage(vae, latent_dtype, self.cache, rows)

    def encode(self, tokens: tuple[Int32[np.ndarray, "1 text"], ...]) -> TextStates:
        """Token ids of one caption, by each tokenizer. One at a time, so that one text program serves all batches."""

        def encode_text(weights: nnx.State, tokens: tuple[Int32[Array, "1 text"], ...]) -> TextStates:
            return nnx.merge(self._text_graph, weights)(tokens)

        return self.cache.get("text", encode_text, self._text, tokens)(self._text, tokens)

    def encode_all(self, texts: Sequence[str], tokenizers: Sequence[Tokenizer]) -> list[TextStates]:
        """Text states of each text, those of one that comes twice computed once."""
        ids = {text: tuple(tokenizer([text]) for tokenizer in tokenizers) for text in dict.fromkeys(texts)}
        states = {text: jax.tree.map(np.asarray, self.encode(row)) for text, row in ids.items()}
        return [states[text] for text in texts]

    def noise(self, request: Request, seeds: UInt32[np.ndarray, "batch"]) -> Latents:
        """Unit noise, each picture's from its own seed alone, by JAX's generator in float32."""
        shape, dtype = (*request.grid, self._channels), self._latent_dtype

        def draw_noise(seeds: UInt32[Array, "batch"]) -> Latents:
            return jax.vmap(lambda seed: jax.random.normal(jax.random.key(seed), shape, jnp.float32))(seeds).astype(
                dtype
            )

        return self.cache.get(("noise", len(seeds), shape), draw_noise, seeds)(seeds)

    def step_noise(
        self, request: Request, seeds: UInt32[np.ndarray, "batch"]
    ) -> Float[Array, "calls batch height width channels"] | None:
        """Unit noise for every call of a stochastic sampler, each picture's from its own seed; None for another."""
        if not request.sampler.stochastic:
            return None
        calls, shape = _calls(request), (*request.grid, self._channels)

        def draw_step_noise(seeds: UInt32[Array, "batch"]) -> Float[Array, "calls batch height width channels"]:
            return call_noise(seeds, calls, shape).astype(self._latent_dtype)

        return self.cache.get(("step noise", len(seeds), calls, shape), draw_step_noise, seeds)(seeds)

    def start_from(
        self, request: Request, images: Pixels, noise: Latents, seeds: UInt32[np.ndarray, "batch"], *, tiling: bool
    ) -> Latents:
        """What image to image starts from: latents of pictures in [-1, 1], with the noise of the first call."""
        clean = self.first_stage.encode(images, self._posterior_noise(request, seeds), tiling=tiling)
        return self._noising(request, clean, noise)(clean, noise)

    def _posterior_noise(self, request: Request, seeds: UInt32[np.ndarray, "batch"]) -> Latents:
        """Unit noise by which a picture's latents are drawn from their distribution."""
        shape = (*request.grid, self._channels)

        def draw_posterior_noise(seeds: UInt32[Array, "batch"]) -> Latents:
            return call_noise(seeds, 1, shape, stream=POSTERIOR)[0].astype(self._latent_dtype)

        return self.cache.get(("posterior noise", len(seeds), shape), draw_posterior_noise, seeds)(seeds)

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

    def decode(self, latents: Latents, *, tiling: bool = False, decode_batch: int | None = None) -> Decoded:
        """Latents to pixels of the whole bucket.

        Args:
            latents: of the denoiser.
            tiling: by overlapping tiles, where latents are larger than one; see `models.tiling`.
            decode_batch: at most so many pictures at once, which does not change them; None is all.

        Raises UserError for a limit that is none, and for tiles that the model does not have.
        """
        self.first_stage.check(tiling=tiling, decode_batch=decode_batch)
        return self.first_stage.decode(latents, tiling=tiling, decode_batch=decode_batch)

    @property
    def compile_seconds(self) -> float:
        """Spent on tracing and compiling so far."""
        return self.cache.seconds

    def compile(
        self,
        request: Request,
        *,
        decode: bool = True,
        from_images: bool = False,
        tiling: bool = False,
        decode_batch: int | None = None,
        low: LowResolution | None = None,
    ) -> dict[str, ProgramMemory]:
        """Compiles what a draw of `request` runs; the cheap ones, of text and noise, are run.

        `low` only where pictures are enlarged: ones of the shapes that a draw is given. Returns what each program
        needs, by its name: see `ProgramCache.take_memory`.
        """
        self.cache.take_memory()
        latents = self.noise(request, np.zeros(request.batch, np.uint32))
        states = self.encode(tuple(np.zeros((1, length), np.int32) for length in self._lengths))
        text = conditioning([states] * request.batch, (0.0,) * 6)._replace(low=low)
        guidance = np.zeros(request.batch, self._latent_dtype)
        away = (text, guidance) if request.guided else (None, None)
        noise = self.step_noise(request, np.zeros(request.batch, np.uint32))
        self._denoising(request, latents, text, *away, noise)
        if from_images:
            self._posterior_noise(request, np.zeros(request.batch, np.uint32))
            self.first_stage.compile_encoding(request.batch, request.grid, tiling=tiling)
            self._noising(request, latents, latents)
        if decode:
            self.first_stage.compile_decoding(request.batch, request.grid, tiling=tiling, decode_batch=decode_batch)
        return self.cache.take_memory()

    def _denoising(self, request: Request, *arguments: Any) -> Callable:
        def denoise_latents(
            weights: nnx.State,
            latents: Latents,
            context: Conditioning,
            unconditional: Conditioning | None,
            guidance: Float[Array, "batch"] | None,
            step_noise: Float[Array, "calls batch height width channels"] | None,
        ) -> tuple[Latents, Measured]:
            rows = self._rows
            drawn = denoise(
                nnx.merge(self._unet_graph, weights),
                latents if rows is None else rows.split(latents),
                context,
                schedule=request.sampler,
                steps=request.steps,
                rule=request.scaling,
                unconditional=unconditional,
                guidance=1.0 if guidance is None else guidance,
                guidance_rescale=request.guidance_rescale,
                first=request.first,
                step_noise=step_noise,
                fuse=request.fuse,
                measure_entropy=request.measure_entropy,
            )
            return drawn if rows is None else rows.join(drawn)

        return self.cache.get(("denoise", request), denoise_latents, self._unet, *arguments)

    def _noising(self, request: Request, clean: Latents, noise: Latents) -> Callable:
        def noised_latents(clean: Latents, noise: Latents) -> Latents:
            return request.sampler.noised(clean, noise, request.steps, request.first)

        return self.cache.get(("noised", request), noised_latents, clean, noise)


def conditioning(captions: Sequence[TextStates], time_ids: Sequence[float]) -> Conditioning:
    """What the UNet is told of a batch, from each caption's text states [1 ...]; `time_ids` where these are pooled."""
    states, pooled = zip(*captions, strict=True)
    together = jnp.asarray(np.concatenate(states))
    if pooled[0] is None:
        return Conditioning(together)
    texts = jnp.asarray(np.concatenate(pooled))
    # Sizes have more digits than half precision.
    sizes = np.tile(np.asarray(time_ids, accumulator(texts.dtype)), (len(texts), 1))
    return Conditioning(together, AddedConditions(texts, jnp.asarray(sizes)))


def _calls(request: Request) -> int:
    return len(request.sampler.table(request.steps, request.first).timesteps)
