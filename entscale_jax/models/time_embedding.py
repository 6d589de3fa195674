"""What a UNet is told by numbers, timesteps and SDXL's sizes in pixels: their sinusoids, and the layers on those."""

import math
from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from ..attention import accumulator
from .layers import Layers

Time = Float[Array, "batch features"]
TIME_IDS = 6


class AddedConditions(NamedTuple):
    """What SDXL's UNet is told beside the text states; named as in diffusers' `added_cond_kwargs`."""

    text_embeds: Float[Array, "batch pooled"]
    """The pooled text embedding, [B P]."""
    time_ids: Float[Array, "batch 6"]
    """Pixels: height and width of the original picture, top and left of its crop, height and width of the target."""


class TimestepEmbedding(nnx.Module):
    """Two dense layers on the sinusoids."""

    def __init__(self, size_in: int, size_out: int, make: Layers):
        self.linear_1 = make.linear(size_in, size_out)
        self.linear_2 = make.linear(size_out, size_out)

    def __call__(self, frequencies: Float[Array, "batch frequencies"]) -> Time:
        """[batch size_in] -> [batch size_out]."""
        return self.linear_2(nnx.silu(self.linear_1(frequencies)))


def timestep_embedding(
    timesteps: Float[Array, "batch"], features: int, flip_sin_to_cos: bool, freq_shift: int
) -> Float[Array, "batch features"]:
    """Sines and cosines of the timesteps, in their dtype. Source: diffusers' `get_timestep_embedding`."""
    half = features // 2
    exponents = -math.log(10000.0) * jnp.arange(half, dtype=timesteps.dtype) / (half - freq_shift)
    angles = timesteps[:, None] * jnp.exp(exponents)[None, :]
    parts = (jnp.cos(angles), jnp.sin(angles)) if flip_sin_to_cos else (jnp.sin(angles), jnp.cos(angles))
    return jnp.pad(jnp.concatenate(parts, axis=-1), ((0, 0), (0, features % 2)))


def added_embedding(
    text_embeds: Float[Array, "batch pooled"],
    time_ids: Float[Array, "batch 6"],
    features: int,
    flip_sin_to_cos: bool,
    freq_shift: int,
) -> Float[Array, "batch frequencies"]:
    """The pooled text and, after it, `features` sines and cosines of each number, in the text's dtype.

    The angles are taken in float32 or wider: at 1000 pixels nothing would be left of them in half precision.
    """
    numbers = time_ids.reshape(-1).astype(accumulator(text_embeds.dtype))
    waves = timestep_embedding(numbers, features, flip_sin_to_cos, freq_shift).astype(text_embeds.dtype)
    return jnp.concatenate([text_embeds, waves.reshape(len(text_embeds), -1)], axis=-1)
