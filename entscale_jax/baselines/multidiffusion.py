"""MultiDiffusion: each step is taken in overlapping windows of the training size, whose results are averaged.

Bar-Tal et al., "MultiDiffusion: Fusing Diffusion Paths for Controlled Image Generation", ICML 2023, Eq. 3 to 5 with
uniform weights; window and stride are those of their panoramas (`panorama.py` in omerbt/MultiDiffusion).
"""

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32

from ..errors import UserError
from ..sampling import Advance, Latents, Memory, State
from ..weights.folder import ModelInfo
from ..weights.upscaler_folder import UpscalerInfo
from .baseline import ORIGINAL, Baseline, Size

Parts = Float[Array, "parts tall broad channels"]
"""Windows of all pictures: first those at the first corner, a picture each."""
Corners = Int32[Array, "windows 2"]


@dataclass(frozen=True)
class MultiDiffusion(Baseline):
    """Windows of the training size with the scale of training; along a side that is shorter, of that side's length.

    So a picture that is no larger than those of training is one window, which is what `original` draws. That, the last
    window of a side that the stride does not divide, and any sampler but DDIM are choices of ours: see
    docs/baselines.md.
    """

    stride: int = 8
    """Latent cells from one window to the next."""
    at_once: int = 4
    """Windows of each picture that are denoised in one call, at most: more of them take more memory."""

    name: ClassVar = "multidiffusion"

    def __post_init__(self):
        for name in ("stride", "at_once"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UserError(f"{name} is {value!r}: give a whole number from 1")

    @property
    def denoises_as(self) -> str:
        return self.label

    def check(self, info: ModelInfo) -> None:
        if self.stride > min(info.train_grid):
            height, width = info.train_grid
            raise UserError(
                f"stride {self.stride} leaves gaps between windows of {width}x{height} latent cells, model "
                f"{info.name!r}'s training size: give at most {min(info.train_grid)}"
            )

    def keywords(self, info: ModelInfo, drawn: Size) -> dict[str, Any]:
        self.check(info)
        return {"rule": ORIGINAL, "fuse": self.windows(info, drawn)}

    def windows(self, info: ModelInfo, drawn: Size) -> "Windows":
        """Those of a picture of this size in pixels."""
        height, width = info.bucket(*drawn).latent(info.latent_factor)
        tall, wide = info.train_grid
        return Windows((height, width), (min(height, tall), min(width, wide)), self.stride, self.at_once)

    def work(self, info: ModelInfo, drawn: Size, calls: int = 1, upscaler: UpscalerInfo | None = None) -> float:
        windows = self.windows(info, drawn)
        return len(windows.corners) * math.prod(windows.size) / math.prod(windows.grid)


@dataclass(frozen=True)
class Windows:
    """Overlapping windows of a latent grid: a `Fuse`. All are (h, w) in latent cells."""

    grid: tuple[int, int]
    size: tuple[int, int]
    stride: int
    most: int
    """Windows in one call."""

    @cached_property
    def corners(self) -> tuple[tuple[int, int], ...]:
        """(top, left) of each window, row by row."""
        return tuple(product(*(starts(*side, self.stride) for side in zip(self.grid, self.size, strict=True))))  # pyright: ignore[reportReturnType]

    @cached_property
    def counts(self) -> np.ndarray:
        """Windows that cover each cell, [h, w]."""
        counts = np.zeros(self.grid, np.int64)
        for top, left in self.corners:
            counts[top : top + self.size[0], left : left + self.size[1]] += 1
        return counts

    @property
    def at_once(self) -> int:
        """As many as fill the fewest calls evenly."""
        return -(-len(self.corners) // self._calls)

    def __call__(self, advance: Advance, latents: Latents, memory: Memory, noise: Latents | None) -> State:
        """The mean of the windows' steps in each cell; what the sampler carries, likewise.

        For a step that is linear in latents and outputs, as of every sampler without clipping, that carries what a
        sampler for each window would.
        """

        def add(sums: State, call: tuple[Corners, Float[Array, "windows"]]) -> tuple[State, None]:
            corners, weights = call
            own = None if noise is None else self._cut(noise, corners)
            stepped = advance(self._cut(latents, corners), tuple(self._cut(each, corners) for each in memory), own)
            return jax.tree.map(lambda total, parts: self._add(total, parts, corners, weights), sums, stepped), None

        corners, weights = self._padded()
        nothing = jax.tree.map(jnp.zeros_like, (latents, memory))
        sums, _ = jax.lax.scan(add, nothing, (jnp.asarray(corners), jnp.asarray(weights, latents.dtype)))
        counts = jnp.asarray(self.counts, latents.dtype)[None, :, :, None]
        return jax.tree.map(lambda total: total / counts, sums)

    @property
    def _calls(self) -> int:
        return -(-len(self.corners) // self.most)

    def _padded(self) -> tuple[np.ndarray, np.ndarray]:
        """Corners and weights by call; the last call is filled up with windows of no weight."""
        missing = self._calls * self.at_once - len(self.corners)
        corners = np.array([*self.corners, *self.corners[:1] * missing], np.int32)
        weights = np.array([1.0] * len(self.corners) + [0.0] * missing)
        return corners.reshape(self._calls, self.at_once, 2), weights.reshape(self._calls, self.at_once)

    def _cut(self, whole: Latents, corners: Corners) -> Parts:
        shape = (len(whole), *self.size, whole.shape[3])
        return jnp.concatenate([jax.lax.dynamic_slice(whole, _at(corner), shape) for corner in corners])

    def _add(self, total: Latents, parts: Parts, corners: Corners, weights: Float[Array, "windows"]) -> Latents:
        for corner, weight, part in zip(corners, weights, jnp.split(parts, self.at_once), strict=True):
            there = jax.lax.dynamic_slice(total, _at(corner), part.shape)
            total = jax.lax.dynamic_update_slice(total, there + weight * part, _at(corner))
        return total


def starts(cells: int, window: int, stride: int) -> tuple[int, ...]:
    """Where windows begin along a side: every `stride` cells, and the last one so that it ends at the border."""
    return tuple(dict.fromkeys([*range(0, cells - window, stride), cells - window]))


def _at(corner: Int32[Array, "2"]) -> tuple[Int32[Array, ""], ...]:
    none = jnp.zeros_like(corner[0])
    return none, corner[0], corner[1], none
