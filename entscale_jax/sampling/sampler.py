"""What every sampler is: numbers from a config before tracing, and one pure step for the scan."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .schedule import NoiseSchedule

Latents = Float[Array, "batch height width channels"]
Memory = tuple[Latents, ...]
"""What a sampler carries from step to step beside the latents."""


class Table(NamedTuple):
    """What the calls of the UNet in a run need, one entry a call."""

    timesteps: np.ndarray
    """What the UNet is told: whole numbers, or fractions where diffusers has them."""
    input_scale: np.ndarray
    """The latents are multiplied by it before the UNet sees them."""
    columns: Any
    """A NamedTuple of the sampler's own arrays; the first axis is the call."""
    start: float
    """Standard deviation of the noise that the run starts from."""


@dataclass(frozen=True, kw_only=True)
class Sampler(NoiseSchedule, ABC):
    """A noise schedule with a step rule. Static in a program."""

    name: ClassVar[str]
    """As users write it."""

    @property
    def stochastic(self) -> bool:
        """Whether a step adds noise of its own."""
        return False

    @abstractmethod
    def table(self, steps: int, first: int = 0) -> Table:
        """The calls of a run of `steps` without those before call `first`.

        Raises UserError for a number of steps that the schedule does not have.
        """

    def memory(self, latents: Latents) -> Memory:
        """What the first step finds, in the shapes and dtypes that every step hands on."""
        return ()

    @abstractmethod
    def step(
        self, latents: Latents, output: Latents, row: Any, memory: Memory, noise: Latents | None
    ) -> tuple[Latents, Memory]:
        """Latents after one call of the UNet that gave `output`. `row` holds the call's entries of the columns."""

    @abstractmethod
    def noised(self, clean: Latents, noise: Latents, steps: int, first: int) -> Latents:
        """What call `first` of a run of `steps` starts from, for a picture whose latents are `clean`."""


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


def whole_timesteps(schedule: NoiseSchedule, steps: int) -> np.ndarray:
    """The timesteps of DDIM and PNDM, from the noisiest on."""
    total = schedule.num_train_timesteps
    if schedule.timestep_spacing == "linspace":
        return np.linspace(0, total - 1, steps).round()[::-1].astype(np.int64)
    if schedule.timestep_spacing == "leading":
        return (np.arange(steps) * (total // steps))[::-1].astype(np.int64) + schedule.steps_offset
    return np.round(np.arange(total, 0, -total / steps)).astype(np.int64) - 1
