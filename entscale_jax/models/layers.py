"""The layers that UNet and autoencoder share, named and computed as in diffusers, channels last."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from ..attention import accumulator
from .convolution import Conv

Images = Float[Array, "batch height width channels"]
Mapped = Float[Array, "batch new_height new_width new_channels"]
"""What a layer makes of images, where it may change their size or channels."""


class Layers:
    """Makes layers of one dtype, so that a model's constructor names only what differs between them."""

    def __init__(self, rngs: nnx.Rngs, dtype: jnp.dtype | type = jnp.float32):
        self.rngs, self.dtype = rngs, dtype

    def linear(self, size_in: int, size_out: int, *, use_bias: bool = True) -> nnx.Linear:
        """A dense layer."""
        return nnx.Linear(
            size_in, size_out, use_bias=use_bias, dtype=self.dtype, param_dtype=self.dtype, rngs=self.rngs
        )

    def conv(self, size_in: int, size_out: int, kernel: int = 3, *, stride: int = 1, padding: int = 1) -> Conv:
        """A square convolution with the same padding on each side."""
        return Conv(
            size_in,
            size_out,
            (kernel, kernel),
            strides=stride,
            padding=padding,
            dtype=self.dtype,
            param_dtype=self.dtype,
            rngs=self.rngs,
        )

    def group_norm(self, features: int, groups: int, epsilon: float) -> "GroupNorm":
        """Group normalisation over channels and positions."""
        return GroupNorm(features, groups, epsilon=epsilon, dtype=self.dtype, param_dtype=self.dtype, rngs=self.rngs)

    def layer_norm(self, features: int, epsilon: float = 1e-5) -> "LayerNorm":
        """Layer normalisation over channels."""
        return LayerNorm(features, epsilon=epsilon, dtype=self.dtype, param_dtype=self.dtype, rngs=self.rngs)

    def rms_norm(self, features: int, epsilon: float = 1e-6) -> "RMSNorm":
        """Division by the root of the mean square over channels."""
        return RMSNorm(features, epsilon=epsilon, dtype=self.dtype, param_dtype=self.dtype, rngs=self.rngs)

    def embed(self, count: int, features: int) -> nnx.Embed:
        """A table of embeddings."""
        return nnx.Embed(count, features, dtype=self.dtype, param_dtype=self.dtype, rngs=self.rngs)


class GroupNorm(nnx.GroupNorm):
    """Flax's, with the variance in two passes as in PyTorch, each channel reduced by itself: CPUs do that faster."""

    def __call__(self, hidden: Images) -> Images:  # pyright: ignore[reportIncompatibleMethodOverride]
        """[batch height width channels], unchanged in shape; statistics in float32 or wider."""
        wide = hidden.astype(accumulator(hidden.dtype))
        centred = wide - self._group_mean(wide)
        return _scaled(self, centred, self._group_mean(centred**2)).astype(hidden.dtype)

    def _group_mean(self, values: Images) -> Float[Array, "batch 1 1 channels"]:
        batch, _, _, channels = values.shape
        groups = values.mean(axis=(1, 2)).reshape(batch, self.num_groups, -1).mean(axis=-1)
        return jnp.repeat(groups, channels // self.num_groups, axis=-1)[:, None, None, :]


class LayerNorm(nnx.LayerNorm):
    """Flax's, with the variance in two passes as in PyTorch."""

    def __call__(self, hidden: Float[Array, "*rows channels"]) -> Float[Array, "*rows channels"]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Each row over its channels; statistics in float32 or wider."""
        wide = hidden.astype(accumulator(hidden.dtype))
        centred = wide - wide.mean(axis=-1, keepdims=True)
        return _scaled(self, centred, (centred**2).mean(axis=-1, keepdims=True)).astype(hidden.dtype)


class RMSNorm(nnx.RMSNorm):
    """Flax's, in the order of diffusers: rounded to the input's dtype before its weights multiply."""

    def __call__(self, hidden: Float[Array, "*rows channels"]) -> Float[Array, "*rows channels"]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Each row over its channels; statistics in float32 or wider."""
        assert self.scale is not None
        wide = hidden.astype(accumulator(hidden.dtype))
        normed = wide * jax.lax.rsqrt((wide**2).mean(axis=-1, keepdims=True) + self.epsilon)
        return normed.astype(hidden.dtype) * self.scale[...].reshape((1,) * (hidden.ndim - 1) + (-1,))


def standardised(hidden: Float[Array, "*rows channels"], epsilon: float = 1e-6) -> Float[Array, "*rows channels"]:
    """Layer normalisation without weights; statistics in float32 or wider."""
    wide = hidden.astype(accumulator(hidden.dtype))
    centred = wide - wide.mean(axis=-1, keepdims=True)
    variance = (centred**2).mean(axis=-1, keepdims=True)
    return (centred * jax.lax.rsqrt(variance + epsilon)).astype(hidden.dtype)


def _scaled(norm: nnx.GroupNorm | nnx.LayerNorm, centred: Array, variance: Array) -> Array:
    assert norm.scale is not None
    assert norm.bias is not None
    shape = (1,) * (centred.ndim - 1) + (-1,)
    gain, bias = (weights[...].astype(centred.dtype).reshape(shape) for weights in (norm.scale, norm.bias))
    return centred * (jax.lax.rsqrt(variance + norm.epsilon) * gain) + bias


class ResnetBlock2D(nnx.Module):
    """Two convolutions with group normalisation, a time embedding between them if there is one, and a shortcut."""

    def __init__(
        self, size_in: int, size_out: int, *, groups: int, epsilon: float, time_features: int | None, make: Layers
    ):
        self.norm1 = make.group_norm(size_in, groups, epsilon)
        self.conv1 = make.conv(size_in, size_out)
        if time_features is not None:
            self.time_emb_proj = make.linear(time_features, size_out)
        self.norm2 = make.group_norm(size_out, groups, epsilon)
        self.conv2 = make.conv(size_out, size_out)
        if size_in != size_out:
            self.conv_shortcut = make.conv(size_in, size_out, 1, padding=0)

    def __call__(self, hidden: Images, time: Float[Array, "batch features"] | None = None) -> Mapped:
        """[batch height width channels], the channels becoming `size_out`."""
        with jax.named_scope("resnet"):
            residual = self.conv_shortcut(hidden) if hasattr(self, "conv_shortcut") else hidden
            hidden = self.conv1(nnx.silu(self.norm1(hidden)))
            if time is not None:
                hidden = hidden + self.time_emb_proj(nnx.silu(time))[:, None, None, :]
            return residual + self.conv2(nnx.silu(self.norm2(hidden)))


class Upsample2D(nnx.Module):
    """Nearest-neighbour doubling, cut to the size of the skip connection that follows, then a convolution."""

    def __init__(self, features: int, make: Layers):
        self.conv = make.conv(features, features)

    def __call__(self, hidden: Images, size: tuple[int, int] | None = None) -> Mapped:
        """To `size` (height, width), which is twice the input's or one less; None doubles.

        Cutting equals PyTorch's nearest interpolation to an odd size: floor(i n / (2n - 1)) = floor(i / 2), i < 2n - 1.
        """
        hidden = jnp.repeat(jnp.repeat(hidden, 2, axis=1), 2, axis=2)
        if size is not None:
            hidden = hidden[:, : size[0], : size[1]]
        return self.conv(hidden)


class Downsample2D(nnx.Module):
    """A convolution of stride 2. With `padding` 0 one row and one column of zeros follow the input, as in the VAE."""

    def __init__(self, features: int, padding: int, make: Layers):
        self.padding = padding
        self.conv = make.conv(features, features, stride=2, padding=padding)

    def __call__(self, hidden: Images) -> Mapped:
        """Halves height and width: rounding up with padding 1, down with padding 0."""
        if self.padding == 0:
            hidden = jnp.pad(hidden, ((0, 0), (0, 1), (0, 1), (0, 0)))
        return self.conv(hidden)


def activation(name: str) -> Callable[[Array], Array]:
    """The activation that transformers calls by this name: `gelu` (exact), `gelu_pytorch_tanh`, `quick_gelu`."""
    return {"gelu": _gelu, "gelu_pytorch_tanh": jax.nn.gelu, "quick_gelu": _quick_gelu}[name]


def _gelu(hidden: Array) -> Array:
    return jax.nn.gelu(hidden, approximate=False)


def _quick_gelu(hidden: Array) -> Array:
    return hidden * jax.nn.sigmoid(1.702 * hidden)
