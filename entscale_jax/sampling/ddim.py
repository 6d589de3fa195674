"""The step rule of DDIM (Song, Meng, Ermon, "Denoising Diffusion Implicit Models"), deterministic: eta is 0."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from .schedule import NoiseSchedule

Latents = Float[Array, "batch height width channels"]


def to_sample_and_noise(
    latents: Latents, output: Latents, alpha: Float[Array, ""], prediction_type: str
) -> tuple[Latents, Latents]:
    """The clean sample x_0 and the noise that a model's output stands for, at signal share `alpha` (alpha-bar)."""
    signal, noise = jnp.sqrt(alpha), jnp.sqrt(1.0 - alpha)
    if prediction_type == "epsilon":
        return (latents - noise * output) / signal, output
    if prediction_type == "sample":
        return output, (latents - signal * output) / noise
    return signal * latents - noise * output, signal * output + noise * latents


def ddim_step(
    latents: Latents,
    output: Latents,
    alpha: Float[Array, ""],
    next_alpha: Float[Array, ""],
    schedule: NoiseSchedule,
) -> Latents:
    """Latents at the next timestep. Source: Eq. 12 of the paper with sigma 0; diffusers' `DDIMScheduler.step`."""
    clean, noise = to_sample_and_noise(latents, output, alpha, schedule.prediction_type)
    if schedule.clip_sample:
        clean = jnp.clip(clean, -schedule.clip_sample_range, schedule.clip_sample_range)
    return jnp.sqrt(next_alpha) * clean + jnp.sqrt(1.0 - next_alpha) * noise
