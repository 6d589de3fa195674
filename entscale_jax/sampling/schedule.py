"""What all samplers share: the noise schedule of a model's scheduler_config.json, in numbers equal to diffusers'."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any, ClassVar, TypeVar

import numpy as np
from jaxtyping import Float32, Float64

from ..errors import UserError
from ..field_types import check_types

Schedule = TypeVar("Schedule", bound="NoiseSchedule")
CHOICES: dict[str, tuple[str, ...]] = {
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
    "prediction_type": ("epsilon", "v_prediction", "sample"),
    "timestep_spacing": ("leading", "linspace", "trailing"),
    "final_sigmas_type": ("zero", "sigma_min"),
    "solver_type": ("midpoint", "heun"),
}
ALMOST_NO_SIGNAL = 2.0**-24
"""Alpha-bar of the last timestep with `rescale_betas_zero_snr`, where a sampler divides by it; as in diffusers."""


@dataclass(frozen=True, kw_only=True)
class NoiseSchedule:
    """The fields that diffusers' schedulers share, with DDIM's defaults. Hashable, so static in a program."""

    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    trained_betas: tuple[float, ...] | None = None
    prediction_type: str = "epsilon"
    timestep_spacing: str = "leading"
    steps_offset: int = 0

    only: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    """Fields of the diffusers class that are implemented with these values alone."""

    def __post_init__(self):
        total, betas = self.num_train_timesteps, self.trained_betas
        if total < 1 or (betas is not None and len(betas) != total):
            raise UserError(
                f"scheduler: num_train_timesteps={total} with {len(betas or ())} trained_betas: give a positive number "
                "of steps, and as many betas"
            )
        for name, known in CHOICES.items():
            value = getattr(self, name, known[0])
            if value not in known:
                raise UserError(f"scheduler: {name}={value!r}: implemented are {', '.join(known)}")

    @classmethod
    def from_json(cls: type[Schedule], raw: Mapping[str, Any]) -> Schedule:
        """From any diffusers scheduler_config.json, as the `from_config` of the diffusers class reads it.

        Fields that the class does not have belong to the sampler that wrote the file and are left aside, as there.
        """
        for name, allowed in cls.only.items():
            if name in raw and raw[name] not in allowed:
                known = " or ".join(map(repr, allowed))
                raise UserError(f"scheduler: {name}={raw[name]!r} is not implemented, only {known}")
        known = {field.name for field in fields(cls)}
        return cls(**cls.checked({name: value for name, value in raw.items() if name in known}, "scheduler"))

    @classmethod
    def checked(cls, values: Mapping[str, Any], where: str) -> dict[str, Any]:
        """The values of fields, lists and arrays as tuples. Raises UserError where one is of a wrong type."""
        frozen = {name: _frozen(value) for name, value in values.items()}
        check_types(cls, frozen, where)
        return frozen

    def alphas_cumprod(self) -> Float32[np.ndarray, "num_train_timesteps"]:
        """Alpha-bar of each training timestep, in float32 as in diffusers, so that both carry the same rounding."""
        betas = self._betas()
        if getattr(self, "rescale_betas_zero_snr", False):
            betas = _rescale_to_zero_snr(betas)
        return _cumulative_product(np.float32(1) - betas)

    def check_steps(self, steps: int) -> None:
        """Raises UserError where `steps` is no whole number from 1 to num_train_timesteps."""
        total = self.num_train_timesteps
        if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= total:
            raise UserError(f"steps is {steps!r}: give a whole number from 1 to {total}")

    def check_timesteps(self, steps: int, timesteps: np.ndarray) -> None:
        """Raises UserError where the first of `timesteps` lies beyond training's."""
        if timesteps[0] >= self.num_train_timesteps:
            raise UserError(
                f"{steps} steps with steps_offset={self.steps_offset} leave the {self.num_train_timesteps} of "
                "training: give fewer"
            )

    def _betas(self) -> Float32[np.ndarray, "num_train_timesteps"]:
        if self.trained_betas is not None:
            return np.asarray(self.trained_betas, np.float32)
        count = self.num_train_timesteps
        if self.beta_schedule == "linear":
            return _linspace(self.beta_start, self.beta_end, count)
        if self.beta_schedule == "scaled_linear":
            return _linspace(self.beta_start**0.5, self.beta_end**0.5, count) ** 2
        shares = [_cosine_share(step / count) for step in range(count + 1)]
        return np.asarray([min(1 - after / before, 0.999) for before, after in pairwise(shares)], np.float32)


def sigmas_of(alphas: Float32[np.ndarray, "T"]) -> Float32[np.ndarray, "T"]:
    """Noise over signal, `sqrt((1 - alpha_bar) / alpha_bar)`, of each training timestep."""
    return ((np.float32(1) - alphas) / alphas) ** np.float32(0.5)


def karras_sigmas(low: float, high: float, steps: int) -> Float64[np.ndarray, "steps"]:
    """From `high` to `low`: Karras et al. 2022, Eq. 5, rho = 7."""
    first, last = high ** (1 / 7), low ** (1 / 7)
    return (first + np.linspace(0, 1, steps) * (last - first)) ** 7


def sigma_to_timestep(
    sigmas: Float64[np.ndarray, "steps"], table: Float32[np.ndarray, "T"]
) -> Float64[np.ndarray, "steps"]:
    """Fractional timesteps at which `table`, one entry a training timestep, holds `sigmas`; by their logarithms."""
    wanted, logs = np.log(np.maximum(sigmas, 1e-10)), np.log(table)
    below = np.clip(np.searchsorted(logs, wanted, side="right") - 1, 0, len(logs) - 2)
    # In the dtypes of diffusers: the distance between two entries is float32.
    share = np.clip((logs[below] - wanted) / (logs[below] - logs[below + 1]), 0, 1)
    return (1 - share) * below + share * (below + 1)


def _frozen(value: Any) -> Any:
    value = value.tolist() if isinstance(value, np.ndarray) else value
    return tuple(value) if isinstance(value, list) else value


def _linspace(first: float, last: float, count: int) -> Float32[np.ndarray, "count"]:
    """The bits of `torch.linspace` in float32: from both ends to the middle, each value rounded once."""
    low, high = np.float64(np.float32(first)), np.float64(np.float32(last))
    step = np.float64((np.float32(last) - np.float32(first)) / np.float32(max(count - 1, 1)))
    index = np.arange(count)
    return np.where(index < (count + 1) // 2, low + step * index, high - step * (count - 1 - index)).astype(np.float32)


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
