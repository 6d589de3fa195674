"""DDIM: Song, Meng, Ermon, "Denoising Diffusion Implicit Models". Reference: diffusers' `DDIMScheduler`."""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from .sampler import Latents, Memory, Sampler, Table, to_sample_and_noise, whole_timesteps


class Columns(NamedTuple):
    """The signal's share alpha-bar before and after each step."""

    alpha: Float32[np.ndarray, "calls"] | Float[Array, ""]
    next_alpha: Float32[np.ndarray, "calls"] | Float[Array, ""]


@dataclass(frozen=True, kw_only=True)
class DDIM(Sampler):
    """The fields of diffusers' `DDIMScheduler`, and `eta`, which diffusers takes as an argument of the pipeline."""

    clip_sample: bool = True
    clip_sample_range: float = 1.0
    set_alpha_to_one: bool = True
    rescale_betas_zero_snr: bool = False
    eta: float = 0.0
    """0 is deterministic, 1 adds as much noise as DDPM."""

    name: ClassVar = "ddim"
    only: ClassVar = {"thresholding": (False,)}

    @property
    def stochastic(self) -> bool:
        return self.eta > 0

    def table(self, steps: int, first: int = 0) -> Table:
        self.check_steps(steps)
        timesteps = whole_timesteps(self, steps)
        self.check_timesteps(steps, timesteps)
        alphas = self.alphas_cumprod()
        last = np.float32(1) if self.set_alpha_to_one else alphas[0]
        following = timesteps - self.num_train_timesteps // steps
        columns = Columns(alphas[timesteps][first:], np.where(following >= 0, alphas[following], last)[first:])
        return Table(timesteps[first:], np.ones(steps - first), columns, 1.0)

    def step(
        self, latents: Latents, output: Latents, row: Any, memory: Memory, noise: Latents | None
    ) -> tuple[Latents, Memory]:
        """Eq. 12 of the paper, sigma by Eq. 16."""
        clean, direction = to_sample_and_noise(latents, output, row.alpha, self.prediction_type)
        if self.clip_sample:
            clean = jnp.clip(clean, -self.clip_sample_range, self.clip_sample_range)
        if noise is None:
            return jnp.sqrt(row.next_alpha) * clean + jnp.sqrt(1.0 - row.next_alpha) * direction, memory
        variance = (1.0 - row.next_alpha) / (1.0 - row.alpha) * (1.0 - row.alpha / row.next_alpha)
        rest = jnp.sqrt(1.0 - row.next_alpha - self.eta**2 * variance)
        return jnp.sqrt(row.next_alpha) * clean + rest * direction + self.eta * jnp.sqrt(variance) * noise, memory

    def noised(self, clean: Latents, noise: Latents, steps: int, first: int) -> Latents:
        alpha = self.alphas_cumprod()[self.table(steps, first).timesteps[0]].astype(clean.dtype)
        return jnp.sqrt(alpha) * clean + jnp.sqrt(1 - alpha) * noise
