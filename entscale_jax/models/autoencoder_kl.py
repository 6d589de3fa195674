"""The autoencoder between pixels and latents, as Stable Diffusion 1.x and 2.x use it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from ..attention import dot_product_attention, merge_heads, projections, split_heads
from ..errors import UserError
from .config import per_level, read_config
from .layers import Downsample2D, Images, Layers, Mapped, ResnetBlock2D, Upsample2D

_FIXED: Mapping[str, tuple] = {
    "act_fn": ("silu", "swish"),
    "shift_factor": (None,),
    "latents_mean": (None,),
    "latents_std": (None,),
}
# force_upcast is about half precision, in which the caller chooses the dtype.
_INERT = frozenset({"force_upcast"})
_EPSILON = 1e-6
LOG_VARIANCE = (-30.0, 20.0)
"""What diffusers clips the log-variance of latents to."""


@dataclass(frozen=True, kw_only=True)
class AutoencoderKLConfig:
    """The fields of diffusers' `AutoencoderKL` that Stable Diffusion uses, with its defaults."""

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",)
    up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",)
    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 1
    latent_channels: int = 4
    norm_num_groups: int = 32
    sample_size: int | tuple[int, int] = 32
    """Pixels along a side in training, and so of a tile; nothing else depends on it."""
    scaling_factor: float = 0.18215
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True

    def __post_init__(self):
        for name, kind in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
            for value in per_level(getattr(self, name), len(self.block_out_channels), name=f"AutoencoderKL: {name}"):
                if value != kind:
                    raise UserError(f"AutoencoderKL: {name} has {value!r}: implemented is {kind}")

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "AutoencoderKLConfig":
        """From diffusers' config.json. Raises UserError naming every field that is not implemented."""
        return read_config(cls, raw, model="AutoencoderKL", fixed=_FIXED, inert=_INERT)

    @property
    def factor(self) -> int:
        """Pixels along the side of one latent cell."""
        return 2 ** (len(self.block_out_channels) - 1)


class AutoencoderKL(nnx.Module):
    """Encodes [batch height width 3] in [-1, 1] to the moments of latents, and decodes latents, unscaled."""

    def __init__(self, config: AutoencoderKLConfig, *, rngs: nnx.Rngs, dtype: jnp.dtype | type = jnp.float32):
        make = Layers(rngs, dtype)
        self.config = config
        channels = config.latent_channels
        self.encoder = Encoder(config, make)
        self.decoder = Decoder(config, make)
        if config.use_quant_conv:
            self.quant_conv = make.conv(2 * channels, 2 * channels, 1, padding=0)
        if config.use_post_quant_conv:
            self.post_quant_conv = make.conv(channels, channels, 1, padding=0)

    def encode(self, images: Images) -> tuple[Mapped, Mapped]:
        """Mean and log-variance of the latents, the latter clipped to [-30, 20] as in diffusers."""
        mean, log_variance = jnp.split(self.moments(images), 2, axis=-1)
        return mean, jnp.clip(log_variance, *LOG_VARIANCE)

    def moments(self, images: Images) -> Mapped:
        """Mean and log-variance, not clipped, in one array: what tiles are blended of."""
        moments = self.encoder(images)
        return self.quant_conv(moments) if self.config.use_quant_conv else moments

    def decode(self, latents: Images) -> Mapped:
        """Pixels, meant to lie in [-1, 1], from latents that were divided by `scaling_factor`."""
        if self.config.use_post_quant_conv:
            latents = self.post_quant_conv(latents)
        return self.decoder(latents)


class Encoder(nnx.Module):
    """Halves the picture once a level but the last."""

    def __init__(self, config: AutoencoderKLConfig, make: Layers):
        widths = config.block_out_channels
        self.conv_in = make.conv(config.in_channels, widths[0])
        self.down_blocks = nnx.List(
            DownEncoderBlock2D(config, widths[max(level - 1, 0)], width, level < len(widths) - 1, make)
            for level, width in enumerate(widths)
        )
        self.mid_block = UNetMidBlock2D(config, make)
        self.conv_norm_out = make.group_norm(widths[-1], config.norm_num_groups, _EPSILON)
        self.conv_out = make.conv(widths[-1], 2 * config.latent_channels)

    def __call__(self, images: Images) -> Mapped:
        """Pixels to moments, twice as many channels as latents have."""
        hidden = self.conv_in(images)
        for block in self.down_blocks:
            hidden = block(hidden)
        hidden = self.mid_block(hidden)
        return self.conv_out(nnx.silu(self.conv_norm_out(hidden)))


class Decoder(nnx.Module):
    """Doubles the latents once a level but the last."""

    def __init__(self, config: AutoencoderKLConfig, make: Layers):
        widths = config.block_out_channels[::-1]
        self.conv_in = make.conv(config.latent_channels, widths[0])
        self.mid_block = UNetMidBlock2D(config, make)
        self.up_blocks = nnx.List(
            UpDecoderBlock2D(config, widths[max(level - 1, 0)], width, level < len(widths) - 1, make)
            for level, width in enumerate(widths)
        )
        self.conv_norm_out = make.group_norm(widths[-1], config.norm_num_groups, _EPSILON)
        self.conv_out = make.conv(widths[-1], config.out_channels)

    def __call__(self, latents: Images) -> Mapped:
        """Latents to pixels."""
        hidden = self.mid_block(self.conv_in(latents))
        for block in self.up_blocks:
            hidden = block(hidden)
        return self.conv_out(nnx.silu(self.conv_norm_out(hidden)))


class DownEncoderBlock2D(nnx.Module):
    """Residual blocks, then half the size."""

    def __init__(self, config: AutoencoderKLConfig, size_in: int, size_out: int, downsample: bool, make: Layers):
        self.resnets = _resnets(config, size_in, size_out, config.layers_per_block, make)
        if downsample:
            self.downsamplers = nnx.List([Downsample2D(size_out, 0, make)])

    def __call__(self, hidden: Images) -> Mapped:
        """[batch height width size_in] -> [batch height/2 width/2 size_out]."""
        for resnet in self.resnets:
            hidden = resnet(hidden)
        return self.downsamplers[0](hidden) if hasattr(self, "downsamplers") else hidden


class UpDecoderBlock2D(nnx.Module):
    """Residual blocks, then twice the size."""

    def __init__(self, config: AutoencoderKLConfig, size_in: int, size_out: int, upsample: bool, make: Layers):
        self.resnets = _resnets(config, size_in, size_out, config.layers_per_block + 1, make)
        if upsample:
            self.upsamplers = nnx.List([Upsample2D(size_out, make)])

    def __call__(self, hidden: Images) -> Mapped:
        """[batch height width size_in] -> [batch 2height 2width size_out]."""
        for resnet in self.resnets:
            hidden = resnet(hidden)
        return self.upsamplers[0](hidden) if hasattr(self, "upsamplers") else hidden


class UNetMidBlock2D(nnx.Module):
    """Two residual blocks with, unless the config says otherwise, attention of one head between them."""

    def __init__(self, config: AutoencoderKLConfig, make: Layers):
        features = config.block_out_channels[-1]
        self.resnets = _resnets(config, features, features, 2, make)
        if config.mid_block_add_attention:
            self.attentions = nnx.List([PixelAttention(features, config.norm_num_groups, make)])

    def __call__(self, hidden: Images) -> Images:
        """[batch height width channels], unchanged in shape."""
        hidden = self.resnets[0](hidden)
        if hasattr(self, "attentions"):
            hidden = self.attentions[0](hidden)
        return self.resnets[1](hidden)


class PixelAttention(nnx.Module):
    """Attention of one head over all cells, with biases. Its scale stays `1 / sqrt(d)`, as in the paper."""

    def __init__(self, features: int, groups: int, make: Layers):
        self.group_norm = make.group_norm(features, groups, _EPSILON)
        self.to_q, self.to_k, self.to_v, self.to_out = projections(
            features, features, features, make.dtype, make.rngs, use_bias=True
        )

    def __call__(self, hidden: Images) -> Images:
        """[batch height width channels], unchanged in shape."""
        tokens: Float[Array, "B T D"] = self.group_norm(hidden).reshape(hidden.shape[0], -1, hidden.shape[-1])
        query, key, value = (split_heads(to(tokens), 1) for to in (self.to_q, self.to_k, self.to_v))
        out = dot_product_attention(query, key, value, scale=1.0 / math.sqrt(hidden.shape[-1]))
        return hidden + self.to_out[0](merge_heads(out)).reshape(hidden.shape)


def _resnets(config: AutoencoderKLConfig, size_in: int, size_out: int, count: int, make: Layers) -> nnx.List:
    return nnx.List(
        ResnetBlock2D(
            size_in if index == 0 else size_out,
            size_out,
            groups=config.norm_num_groups,
            epsilon=_EPSILON,
            time_features=None,
            make=make,
        )
        for index in range(count)
    )
