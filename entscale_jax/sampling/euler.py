"""Euler's method and its ancestral form: Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based
Generative Models". References: diffusers' `EulerDiscreteScheduler` and `EulerAncestralDiscreteScheduler`.

Latents are the signal with noise of standard deviation sigma added; the UNet sees them divided by `sqrt(sigma^2 + 1)`.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32

from .sampler import Latents, Memory, Sampler, Table
from .schedule import ALMOST_NO_SIGNAL, karras_sigmas, sigma_to_timestep, sigmas_of


class Columns(NamedTuple):
    """Of each call: sigma where the step begins, where it ends, and the part of the latter that is new noise."""

    sigma: Any
    next_sigma: Any
    new_noise: Any


@dataclass(frozen=True, kw_only=True)
class EulerAncestral(Sampler):
    """The fields of diffusers' `EulerAncestralDiscreteScheduler`. Every step but the last adds noise."""

    timestep_spacing: str = "linspace"
    rescale_betas_zero_snr: bool = False

    name: ClassVar = "euler_ancestral"
    only: ClassVar = {"prediction_type": ("epsilon", "v_prediction")}

    @property
    def stochastic(self) -> bool:
        return True

    def table(self, steps: int, first: int = 0) -> Table:
        timesteps, sigmas = self._run(steps)
        before, after = sigmas[:-1].astype(np.float64), sigmas[1:].astype(np.float64)
        new = np.sqrt(after**2 * (before**2 - after**2) / before**2) if self.stochastic else np.zeros_like(after)
        columns = Columns(before[first:], np.sqrt(after**2 - new**2)[first:], new[first:])
        largest = float(sigmas.max())
        start = np.sqrt(largest**2 + 1) if self.timestep_spacing == "leading" else largest
        return Table(timesteps[first:], (1 / np.sqrt(before**2 + 1))[first:], columns, float(start))

    def step(
        self, latents: Latents, output: Latents, row: Any, memory: Memory, noise: Latents | None
    ) -> tuple[Latents, Memory]:
        """Algorithm 2 of the paper without churn; `next_sigma` and `new_noise` split an ancestral step."""
        if self.prediction_type == "epsilon":
            slope = output
        else:
            variance = row.sigma**2 + 1.0
            clean = output
            if self.prediction_type == "v_prediction":
                clean = latents / variance - row.sigma / jnp.sqrt(variance) * output
            slope = (latents - clean) / row.sigma
        after = latents + (row.next_sigma - row.sigma) * slope
        return after if noise is None else after + row.new_noise * noise, memory

    def noised(self, clean: Latents, noise: Latents, steps: int, first: int) -> Latents:
        return clean + jnp.asarray(self._run(steps)[1][first], clean.dtype) * noise

    def _run(self, steps: int) -> tuple[Float32[np.ndarray, "steps"], Float32[np.ndarray, "steps+1"]]:
        """Timesteps, and the sigmas with the one that the run ends at."""
        self.check_steps(steps)
        total, table = self.num_train_timesteps, self._sigma_table()
        if self.timestep_spacing == "linspace":
            timesteps = np.linspace(0, total - 1, steps, dtype=np.float32)[::-1]
        elif self.timestep_spacing == "leading":
            timesteps = (np.arange(steps) * (total // steps))[::-1].astype(np.float32) + self.steps_offset
        else:
            timesteps = np.arange(total, 0, -total / steps).round().astype(np.float32) - 1
        self.check_timesteps(steps, timesteps)
        return self._spaced(timesteps, np.interp(timesteps, np.arange(total), table), table)

    def _spaced(
        self, timesteps: np.ndarray, sigmas: np.ndarray, table: np.ndarray
    ) -> tuple[Float32[np.ndarray, "steps"], Float32[np.ndarray, "steps+1"]]:
        return timesteps, np.append(sigmas, 0.0).astype(np.float32)

    def _sigma_table(self) -> Float32[np.ndarray, "num_train_timesteps"]:
        alphas = self.alphas_cumprod()
        if self.rescale_betas_zero_snr:
            alphas[-1] = ALMOST_NO_SIGNAL
        return sigmas_of(alphas)


@dataclass(frozen=True, kw_only=True)
class Euler(EulerAncestral):
    """The fields of diffusers' `EulerDiscreteScheduler`."""

    use_karras_sigmas: bool = False
    final_sigmas_type: str = "zero"
    sigma_min: float | None = None
    sigma_max: float | None = None

    name: ClassVar = "euler"
    only: ClassVar = {
        "interpolation_type": ("linear",),
        "use_exponential_sigmas": (False, None),
        "use_beta_sigmas": (False, None),
        "timestep_type": ("discrete",),
    }

    @property
    def stochastic(self) -> bool:
        return False

    def _spaced(
        self, timesteps: np.ndarray, sigmas: np.ndarray, table: np.ndarray
    ) -> tuple[Float32[np.ndarray, "steps"], Float32[np.ndarray, "steps+1"]]:
        if self.use_karras_sigmas:
            low, high = self.sigma_min, self.sigma_max
            sigmas = karras_sigmas(
                float(sigmas[-1]) if low is None else low, float(sigmas[0]) if high is None else high, len(sigmas)
            )
            timesteps = sigma_to_timestep(sigmas, table).astype(np.float32)
        last = 0.0 if self.final_sigmas_type == "zero" else table[0]
        return timesteps, np.append(sigmas, last).astype(np.float32)
