"""The noise schedule of a model and the timesteps of DDIM, in numbers equal to diffusers' `DDIMScheduler`."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Int64

from ..errors import UserError

_CHOICES = {
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
    "prediction_type": ("epsilon", "v_prediction", "sample"),
    "timestep_spacing": ("leading", "linspace", "trailing"),
}


class StepTable(NamedTuple):
    """What each step of a run needs: its timestep and the signal's share alpha-bar before and after it."""

    timesteps: Int64[np.ndarray, "steps"]
    alphas: Float32[np.ndarray, "steps"]
    next_alphas: Float32[np.ndarray, "steps"]


@dataclass(frozen=True, kw_only=True)
class NoiseSchedule:
    """The fields of diffusers' `DDIMScheduler` with its defaults. Hashable, so static in a program."""

    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    trained_betas: tuple[float, ...] | None = None
    clip_sample: bool = True
    clip_sample_range: float = 1.0
    set_alpha_to_one: bool = True
    steps_offset: int = 0
    prediction_type: str = "epsilon"
    timestep_spacing: str = "leading"
    rescale_betas_zero_snr: bool = False

    def __post_init__(self):
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise UserError(f"scheduler: {name}={getattr(self, name)!r}: implemented are {', '.join(known)}")

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "NoiseSchedule":
        """From any diffusers scheduler_config.json, as `DDIMScheduler.from_config` reads it.

        Fields that DDIM does not have belong to the sampler that wrote the file and are left aside, as there.
        """
        if raw.get("thresholding"):
            raise UserError("scheduler: thresholding=True is not implemented: it is for models that draw pixels")
        known = {field.name for field in fields(cls)}
        values: dict[str, Any] = {name: value for name, value in raw.items() if name in known}
        if isinstance(values.get("trained_betas"), list):
            values["trained_betas"] = tuple(values["trained_betas"])
        return cls(**values)

    def alphas_cumprod(self) -> Float32[np.ndarray, "num_train_timesteps"]:
        """Alpha-bar of each training timestep, in float32 as in diffusers, so that both carry the same rounding."""
        betas = self._betas()
        if self.rescale_betas_zero_snr:
            betas = _rescale_to_zero_snr(betas)
        return _cumulative_product(np.float32(1) - betas)

    def ddim(self, steps: int) -> StepTable:
        """Timesteps in the order they are taken. Raises UserError where `steps` is none of 1 to num_train_timesteps."""
        total = self.num_train_timesteps
        if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= total:
            raise UserError(f"steps is {steps!r}: give a whole number from 1 to {total}")
        timesteps = self._timesteps(steps)
        if timesteps[0] >= total:
            raise UserError(
                f"{steps} steps with steps_offset={self.steps_offset} leave the {total} of training: give fewer"
            )
        alphas = self.alphas_cumprod()
        last = np.float32(1) if self.set_alpha_to_one else alphas[0]
        following = timesteps - total // steps
        return StepTable(timesteps, alphas[timesteps], np.where(following >= 0, alphas[following], last))

    def _timesteps(self, steps: int) -> Int64[np.ndarray, "steps"]:
        total = self.num_train_timesteps
        if self.timestep_spacing == "linspace":
            return np.linspace(0, total - 1, steps).round()[::-1].astype(np.int64)
        if self.timestep_spacing == "leading":
            return (np.arange(steps) * (total // steps))[::-1].astype(np.int64) + self.steps_offset
        return np.round(np.arange(total, 0, -total / steps)).astype(np.int64) - 1

    def _betas(self) -> Float32[np.ndarray, "num_train_timesteps"]:
        if self.trained_betas is not None:
            return np.asarray(self.trained_betas, np.float32)
        count = self.num_train_timesteps
        if self.beta_schedule == "linear":
            return np.linspace(self.beta_start, self.beta_end, count, dtype=np.float32)
        if self.beta_schedule == "scaled_linear":
            return np.linspace(self.beta_start**0.5, self.beta_end**0.5, count, dtype=np.float32) ** 2
        shares = [_cosine_share(step / count) for step in range(count + 1)]
        return np.asarray([min(1 - after / before, 0.999) for before, after in pairwise(shares)], np.float32)


def _cosine_share(time: float) -> float:
    return math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2


def _cumulative_product(alphas: Float32[np.ndarray, "T"]) -> Float32[np.ndarray, "T"]:
    # PyTorch multiplies in float64 on a CPU and rounds each product once.
    return np.cumprod(alphas, dtype=np.float64).astype(np.float32)


def _rescale_to_zero_snr(betas: Float32[np.ndarray, "T"]) -> Float32[np.ndarray, "T"]:
    """Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed", algorithm 1."""
    roots = np.sqrt(_cumulative_product(np.float32(1) - betas))
    first, last = roots[0], roots[-1]
    shares = ((roots - last) * (first / (first - last))) ** 2
    return np.float32(1) - np.concatenate([shares[:1], shares[1:] / shares[:-1]])
