"""PNDM without its Runge-Kutta start, as Stable Diffusion uses it: Liu et al., "Pseudo Numerical Methods for Diffusion
Models on Manifolds". Reference: diffusers' `PNDMScheduler` with `skip_prk_steps`.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np

from ..errors import UserError
from .sampler import Latents, Memory, Sampler, Table, whole_timesteps

_ADAMS_BASHFORTH = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))
_ORDER = len(_ADAMS_BASHFORTH)


class Columns(NamedTuple):
    """Of each call; `alpha` is the signal's share alpha-bar where the step begins, `next_alpha` where it ends."""

    alpha: Any
    next_alpha: Any
    weights: Any
    """Of this output and of the three before it, [calls 4]."""
    again: Any
    """1 for the second call, which takes the first step once more from where it began, else 0."""


@dataclass(frozen=True, kw_only=True)
class PNDM(Sampler):
    """The fields of diffusers' `PNDMScheduler`. A run of n steps makes n + 1 calls: the second one is made twice."""

    set_alpha_to_one: bool = False
    skip_prk_steps: bool = False

    name: ClassVar = "pndm"
    only: ClassVar = {"prediction_type": ("epsilon", "v_prediction")}

    def __post_init__(self):
        super().__post_init__()
        if not self.skip_prk_steps:
            raise UserError("scheduler: skip_prk_steps=False is not implemented, only True")

    def table(self, steps: int, first: int = 0) -> Table:
        self.check_steps(steps)
        once = whole_timesteps(self, steps)
        self.check_timesteps(steps, once)
        timesteps = np.concatenate([once[:2], once[1:]])[first:]  # of one step there is no second
        stride, alphas = self.num_train_timesteps // steps, self.alphas_cumprod()
        again = np.arange(len(timesteps)) == 1
        begin, end = timesteps + stride * again, timesteps - stride * ~again
        last = np.float32(1) if self.set_alpha_to_one else alphas[0]
        weights = [_weights(call) for call in range(len(timesteps))]
        columns = Columns(alphas[begin], np.where(end >= 0, alphas[end], last), np.array(weights), again.astype(float))
        return Table(timesteps, np.ones(len(timesteps)), columns, 1.0)

    def memory(self, latents: Latents) -> Memory:
        """Three outputs, the newest first, and the latents that the run began with."""
        nothing = jnp.zeros_like(latents)
        return nothing, nothing, nothing, latents

    def step(
        self, latents: Latents, output: Latents, row: Any, memory: Memory, noise: Latents | None
    ) -> tuple[Latents, Memory]:
        """Eq. 12 of the paper for the mean of outputs, Eq. 11 for the step."""
        *past, began = memory
        mean = sum(weight * each for weight, each in zip(row.weights, (output, *past), strict=True))
        latents = jnp.where(row.again > 0, began, latents)
        if self.prediction_type == "v_prediction":
            mean = jnp.sqrt(row.alpha) * mean + jnp.sqrt(1.0 - row.alpha) * latents
        share = row.alpha * jnp.sqrt(1.0 - row.next_alpha)
        share += jnp.sqrt(row.alpha * (1.0 - row.alpha) * row.next_alpha)
        after = jnp.sqrt(row.next_alpha / row.alpha) * latents - (row.next_alpha - row.alpha) / share * mean
        kept = [jnp.where(row.again > 0, old, new) for old, new in zip(past, (output, *past), strict=False)]
        return after, (*kept, began)

    def noised(self, clean: Latents, noise: Latents, steps: int, first: int) -> Latents:
        alpha = self.alphas_cumprod()[self.table(steps, first).timesteps[0]].astype(clean.dtype)
        return jnp.sqrt(alpha) * clean + jnp.sqrt(1 - alpha) * noise


def _weights(call: int) -> tuple[float, ...]:
    if call == 1:  # Heun's rule; this output is not kept
        return 0.5, 0.5, 0.0, 0.0
    used = _ADAMS_BASHFORTH[min(max(call - 1, 0) if call else 0, _ORDER - 1)]
    return (*used, *(0.0,) * (_ORDER - len(used)))
