"""DPM-Solver++, multistep: Lu et al., "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic
Models". Reference: diffusers' `DPMSolverMultistepScheduler` with `algorithm_type="dpmsolver++"`.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Float64, Int64

from ..errors import UserError
from .sampler import Latents, Memory, Sampler, Table, to_sample_and_noise
from .schedule import ALMOST_NO_SIGNAL, karras_sigmas, sigma_to_timestep, sigmas_of

_FEW = 15
"""Below so many steps `lower_order_final` acts, as in diffusers."""


class Columns(NamedTuple):
    """Of each call; a step is linear in the latents and in the clean samples that the last outputs stand for."""

    alpha: Any
    """The signal's share alpha-bar where the step begins."""
    keep: Any
    """The weight of the latents."""
    weights: Any
    """Of the clean samples, the newest first, [calls order]."""


@dataclass(frozen=True, kw_only=True)
class DPMSolver(Sampler):
    """The fields of diffusers' `DPMSolverMultistepScheduler`."""

    timestep_spacing: str = "linspace"
    solver_order: int = 2
    solver_type: str = "midpoint"
    lower_order_final: bool = True
    euler_at_final: bool = False
    use_karras_sigmas: bool = False
    final_sigmas_type: str = "zero"
    rescale_betas_zero_snr: bool = False

    name: ClassVar = "dpmsolver++"
    only: ClassVar = {
        "algorithm_type": ("dpmsolver++",),
        "thresholding": (False,),
        "use_exponential_sigmas": (False, None),
        "use_beta_sigmas": (False, None),
        "use_lu_lambdas": (False, None),
        "use_flow_sigmas": (False, None),
        "use_dynamic_shifting": (False, None),
        "lambda_min_clipped": (-float("inf"), None),
        "variance_type": (None,),
    }

    def __post_init__(self):
        super().__post_init__()
        if self.solver_order not in (1, 2, 3):
            raise UserError(f"scheduler: solver_order={self.solver_order!r}: implemented are 1, 2, 3")

    def table(self, steps: int, first: int = 0) -> Table:
        timesteps, sigmas = self._run(steps)
        calls = [self._step(sigmas, call, first) for call in range(first, len(timesteps))]
        keep, weights = (np.array(column) for column in zip(*calls, strict=True))
        alpha = 1 / (sigmas[first:-1] ** 2 + 1)
        return Table(timesteps[first:], np.ones(len(calls)), Columns(alpha, keep, weights), 1.0)

    def memory(self, latents: Latents) -> Memory:
        """Clean samples of the steps before, the newest first."""
        return (jnp.zeros_like(latents),) * (self.solver_order - 1)

    def step(
        self, latents: Latents, output: Latents, row: Any, memory: Memory, noise: Latents | None
    ) -> tuple[Latents, Memory]:
        """Eq. 8 of the paper and its multistep forms, with the coefficients of `table`."""
        clean, _ = to_sample_and_noise(latents, output, row.alpha, self.prediction_type)
        known = (clean, *memory)
        after = row.keep * latents + sum(weight * each for weight, each in zip(row.weights, known, strict=True))
        return after, known[:-1]

    def noised(self, clean: Latents, noise: Latents, steps: int, first: int) -> Latents:
        alpha = jnp.asarray(1 / (self._run(steps)[1][first] ** 2 + 1), clean.dtype)
        return jnp.sqrt(alpha) * clean + jnp.sqrt(1 - alpha) * noise

    def _run(self, steps: int) -> tuple[Int64[np.ndarray, "steps"], Float64[np.ndarray, "steps+1"]]:
        """Timesteps, and the sigmas, rounded to float32, with the one that the run ends at."""
        self.check_steps(steps)
        total, table = self.num_train_timesteps, self._sigma_table()
        if self.use_karras_sigmas:
            sigmas = karras_sigmas(float(table[0]), float(table[-1]), steps)
            timesteps = sigma_to_timestep(sigmas, table)
            if self.beta_schedule != "squaredcos_cap_v2":
                timesteps = timesteps.round()
            timesteps = timesteps.astype(np.int64)
        else:
            timesteps = self._timesteps(steps)
            self.check_timesteps(steps, timesteps)
            sigmas = np.interp(timesteps, np.arange(total), table)
        last = 0.0 if self.final_sigmas_type == "zero" else table[0]
        sigmas = np.append(sigmas, last).astype(np.float32).astype(np.float64)
        if np.any(np.diff(sigmas[:-1]) >= 0):
            raise UserError(f"steps is {steps}: two steps of this schedule fall together; give fewer")
        return timesteps, sigmas

    def _timesteps(self, steps: int) -> Int64[np.ndarray, "steps"]:
        total = self.num_train_timesteps
        if self.timestep_spacing == "linspace":
            return np.linspace(0, total - 1, steps + 1).round()[::-1][:-1].astype(np.int64)
        if self.timestep_spacing == "leading":
            return (np.arange(steps + 1) * (total // (steps + 1)))[::-1][:-1].astype(np.int64) + self.steps_offset
        return np.arange(total, 0, -total / steps).round().astype(np.int64) - 1

    def _sigma_table(self) -> Float32[np.ndarray, "num_train_timesteps"]:
        alphas = self.alphas_cumprod()
        if self.rescale_betas_zero_snr:
            alphas[-1] = ALMOST_NO_SIGNAL
        return sigmas_of(alphas)

    def _step(self, sigmas: np.ndarray, call: int, first: int) -> tuple[float, np.ndarray]:
        """The weight of the latents and the weights of the clean samples at one call of a run that began at `first`."""
        order = self._order(call, call - first, len(sigmas) - 1)
        signal, noise = 1 / np.sqrt(sigmas**2 + 1), sigmas / np.sqrt(sigmas**2 + 1)
        with np.errstate(divide="ignore"):
            log_ratio = np.log(signal) - np.log(noise)  # lambda of the paper
        newest, *older = np.eye(self.solver_order)
        step = log_ratio[call + 1] - log_ratio[call]
        if step == 0:  # the smallest sigma, taken twice
            return 1.0, 0 * newest
        decay = np.expm1(-step)
        weights = newest
        if order > 1:
            ratio = (log_ratio[call] - log_ratio[call - 1]) / step
            slope = (newest - older[0]) / ratio
            bend = np.zeros_like(newest)
            if order > 2:
                further = (log_ratio[call - 1] - log_ratio[call - 2]) / step
                before = (older[0] - older[1]) / further
                bend = (slope - before) / (ratio + further)
                slope = slope + ratio * bend
            heun = order > 2 or self.solver_type == "heun"
            weights = weights - slope * (1 / step + 1 / decay if heun else -0.5)
            weights = weights + bend * ((decay + step) / (step**2 * decay) - 0.5 / decay)
        return noise[call + 1] / noise[call], -signal[call + 1] * decay * weights

    def _order(self, call: int, taken: int, calls: int) -> int:
        """Of the step: limited by the steps taken before it, and towards the end of a run."""
        order = min(self.solver_order, taken + 1)
        few = self.lower_order_final and calls < _FEW
        if call == calls - 1 and (self.euler_at_final or few or self.final_sigmas_type == "zero"):
            return 1
        return min(order, 2) if call == calls - 2 and few else order
