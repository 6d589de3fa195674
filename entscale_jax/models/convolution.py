"""3x3 convolutions in the formulation that a CPU computes fastest; on other devices they are XLA's own.

Notation of Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016: F(2x2, 3x3) makes each tile
of 2x2 outputs from 4x4 inputs by `A^T [(G g G^T) * (B^T d B)] A`, with 4 products in place of 9 an output and channel.
`prepared` computes `G g G^T` once, before a loop over steps. Its rounding is that of float32 sums in another order.
"""

from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

_FEW_ROWS = 128
"""Up to so many output positions the weights are what costs, and one matrix product reads them fastest."""
_HEAVY = 9 * 2**16
"""From so many weights on (2 MiB); lighter ones stay in the cache anyway."""
_WIDE = 64
"""Below so many channels in or out the transforms of the tiles cost as much as the products that they save."""
_LITTLE_WORK = 2**20
"""Below so many positions times channels times features tiles save microseconds, and take longer to compile."""
_CACHED_TILES = 2**23
"""Beyond so many numbers (32 MiB) transformed tiles leave a CPU's cache, and fewer products gain nothing."""
_LARGEST_KERNEL = 9 * 1280 * 640
"""Larger ones are used at coarse levels, of few rows; transformed they would take 16 / 9 of their memory."""
Module = TypeVar("Module", bound=nnx.Module)


class Conv(nnx.Conv):
    """Flax's convolution over [batch height width channels]."""

    def __call__(self, inputs: Float[Array, "batch height width channels"]) -> Float[Array, "batch h w features"]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """By patches where positions are few, by tiles where `prepared` made their weights, or XLA's own."""
        rows = inputs.shape[0] * inputs.shape[1] * inputs.shape[2]
        if _on_cpu() and tuple(self.kernel_size) == (3, 3) and inputs.dtype == jnp.float32:
            if rows // self._stride**2 <= _FEW_ROWS and self.kernel.size >= _HEAVY:
                return self._biased(_by_patches(inputs, self.kernel[...], self._stride, self._margin))
            tiles: Tiles | None = getattr(self, "tiles", None)
            if tiles is not None and _tiles_pay(rows, self.in_features, self.out_features):
                return self._biased(_by_tiles(inputs, tiles[...]))
        return super().__call__(inputs)

    @property
    def can_have_tiles(self) -> bool:
        """Whether F(2x2, 3x3) applies to it, and its weights are neither too narrow nor too large."""
        same = tuple(self.kernel_size) == (3, 3) and self._stride == 1 and self._margin == 1
        kernel = self.kernel.get_value()
        return (
            same and kernel.dtype == jnp.float32 and min(kernel.shape[2:]) >= _WIDE and kernel.size <= _LARGEST_KERNEL
        )

    @property
    def _stride(self) -> int:
        return self.strides if isinstance(self.strides, int) else (self.strides or (1,))[0]

    @property
    def _margin(self) -> int:
        assert isinstance(self.padding, int)
        return self.padding

    def _biased(self, outputs: Float[Array, "batch h w features"]) -> Float[Array, "batch h w features"]:
        return outputs if self.bias is None else outputs + self.bias[...].reshape(1, 1, 1, -1)


class Tiles(nnx.Variable):
    """Transformed weights, [16 channels features]; derived from a kernel, so no checkpoint has them."""


def prepared(module: Module) -> Module:
    """The same module, on a CPU with the weights of its convolutions transformed too; `module` stays as it is."""
    if not _on_cpu():
        return module
    module = nnx.merge(*nnx.split(module))
    for _, layer in nnx.iter_modules(module):
        if isinstance(layer, Conv) and layer.can_have_tiles:
            setattr(layer, "tiles", Tiles(_transform(layer.kernel[...])))  # noqa: B010
    return module


def _on_cpu() -> bool:
    device = jax.config.jax_default_device or jax.devices()[0]  # pyright: ignore[reportAttributeAccessIssue]
    return (device if isinstance(device, str) else device.platform) == "cpu"


def _tiles_pay(rows: int, channels: int, features: int) -> bool:
    worth = min(channels, features) >= _WIDE and rows * channels * features >= _LITTLE_WORK
    return worth and 4 * rows * max(channels, features) <= _CACHED_TILES


def _transform(kernel: Float[Array, "3 3 channels features"]) -> Float[Array, "16 channels features"]:
    """`G g G^T` of every pair of channels."""
    rows = _columns_of_g(list(kernel))
    return jnp.stack([cell for row in rows for cell in _columns_of_g(list(row))])


def _by_patches(
    inputs: Float[Array, "batch height width channels"],
    kernel: Float[Array, "3 3 channels features"],
    stride: int,
    margin: int,
) -> Float[Array, "batch h w features"]:
    padded = jnp.pad(inputs, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    height, width = ((side - 3) // stride for side in padded.shape[1:3])

    def shifted(row: int, column: int) -> Array:
        return padded[:, row : row + stride * height + 1 : stride, column : column + stride * width + 1 : stride]

    patches = jnp.concatenate([shifted(row, column) for row in range(3) for column in range(3)], axis=-1)
    return jnp.einsum("bhwp,pf->bhwf", patches, kernel.reshape(-1, kernel.shape[-1]))


def _by_tiles(
    inputs: Float[Array, "batch height width channels"], tiles: Float[Array, "16 channels features"]
) -> Float[Array, "batch height width features"]:
    batch, height, width, channels = inputs.shape
    down, across = -(-height // 2), -(-width // 2)
    margins = ((0, 0), (1, 2 * down + 1 - height), (1, 2 * across + 1 - width), (0, 0))
    rows = _columns_of_b([_every_second(jnp.pad(inputs, margins), 1, start, down) for start in range(4)])
    cells = [_columns_of_b([_every_second(row, 2, start, across) for start in range(4)]) for row in rows]
    stacked = jnp.stack([cell for row in cells for cell in row]).reshape(16, -1, channels)
    products = jnp.einsum("xpc,xcf->xpf", stacked, tiles).reshape(4, 4, batch, down, across, -1)
    outputs = [jnp.stack(_columns_of_a(list(row)), axis=3) for row in _columns_of_a(list(products))]
    whole = jnp.stack(outputs, axis=2).reshape(batch, 2 * down, 2 * across, -1)
    return whole[:, :height, :width]


def _every_second(array: Array, axis: int, start: int, count: int) -> Array:
    return jax.lax.slice_in_dim(array, start, start + 2 * count - 1, 2, axis)


def _columns_of_g(parts: list[Array]) -> list[Array]:
    """`G g` along one axis."""
    first, second, third = parts
    ends = first + third
    return [first, (ends + second) / 2, (ends - second) / 2, third]


def _columns_of_b(parts: list[Array]) -> list[Array]:
    """`B^T d` along one axis."""
    first, second, third, fourth = parts
    return [first - third, second + third, third - second, second - fourth]


def _columns_of_a(parts: list[Array]) -> list[Array]:
    """`A^T m` along one axis."""
    first, second, third, fourth = parts
    return [first + second + third, second - third - fourth]
