"""Encoder and decoder between pixels and latents, shared by the autoencoders that differ in what lies between them."""

import math
from dataclasses import dataclass
from typing import ClassVar

from flax import nnx
from jaxtyping import Array, Float

from ..attention import dot_product_attention, merge_heads, projections, split_heads
from ..errors import UserError
from .config import check_groups, per_level
from .layers import Downsample2D, Images, Layers, Mapped, ResnetBlock2D, Upsample2D

_DOWN = {"DownEncoderBlock2D": False, "AttnDownEncoderBlock2D": True}
_UP = {"UpDecoderBlock2D": False, "AttnUpDecoderBlock2D": True}
"""Block -> whether attention follows each of its residual blocks."""
_EPSILON = 1e-6


@dataclass(frozen=True, kw_only=True)
class VAEConfig:
    """The fields that diffusers' `AutoencoderKL` and `VQModel` share, with their defaults."""

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",)
    up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",)
    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 1
    latent_channels: int
    norm_num_groups: int = 32
    scaling_factor: float = 0.18215
    mid_block_add_attention: bool = True

    model: ClassVar[str]
    """diffusers' class."""

    def __post_init__(self):
        check_groups(self.norm_num_groups, self.block_out_channels, model=self.model)
        for name, known in (("down_block_types", _DOWN), ("up_block_types", _UP)):
            for kind in per_level(getattr(self, name), len(self.block_out_channels), name=f"{self.model}: {name}"):
                if kind not in known:
                    raise UserError(f"{self.model}: {name} has {kind!r}: implemented are {', '.join(known)}")

    @property
    def factor(self) -> int:
        """Pixels along the side of one latent cell."""
        return 2 ** (len(self.block_out_channels) - 1)


class Encoder(nnx.Module):
    """Halves the picture once a level but the last."""

    def __init__(self, config: VAEConfig, channels: int, make: Layers):
        widths = config.block_out_channels
        self.conv_in = make.conv(config.in_channels, widths[0])
        self.down_blocks = nnx.List(DownEncoderBlock2D(config, level, make) for level in range(len(widths)))
        self.mid_block = UNetMidBlock2D(config, make)
        self.conv_norm_out = make.group_norm(widths[-1], config.norm_num_groups, _EPSILON)
        self.conv_out = make.conv(widths[-1], channels)

    def __call__(self, images: Images) -> Mapped:
        """Pixels to `channels` numbers a cell."""
        hidden = self.conv_in(images)
        for block in self.down_blocks:
            hidden = block(hidden)
        hidden = self.mid_block(hidden)
        return self.conv_out(nnx.silu(self.conv_norm_out(hidden)))


class Decoder(nnx.Module):
    """Doubles the latents once a level but the last."""

    def __init__(self, config: VAEConfig, make: Layers):
        widths = config.block_out_channels
        self.conv_in = make.conv(config.latent_channels, widths[-1])
        self.mid_block = UNetMidBlock2D(config, make)
        self.up_blocks = nnx.List(UpDecoderBlock2D(config, level, make) for level in range(len(widths)))
        self.conv_norm_out = make.group_norm(widths[0], config.norm_num_groups, _EPSILON)
        self.conv_out = make.conv(widths[0], config.out_channels)

    def __call__(self, latents: Images) -> Mapped:
        """Latents to pixels."""
        hidden = self.mid_block(self.conv_in(latents))
        for block in self.up_blocks:
            hidden = block(hidden)
        return self.conv_out(nnx.silu(self.conv_norm_out(hidden)))


class DownEncoderBlock2D(nnx.Module):
    """Residual blocks, then half the size. With attention it is diffusers' `AttnDownEncoderBlock2D`."""

    def __init__(self, config: VAEConfig, level: int, make: Layers):
        widths = config.block_out_channels
        self.resnets = _resnets(config, widths[max(level - 1, 0)], widths[level], config.layers_per_block, make)
        if _DOWN[config.down_block_types[level]]:
            self.attentions = _attentions(config, widths[level], config.layers_per_block, make)
        if level < len(widths) - 1:
            self.downsamplers = nnx.List([Downsample2D(widths[level], 0, make)])

    def __call__(self, hidden: Images) -> Mapped:
        """[batch height width channels] -> [batch height/2 width/2 new_channels]."""
        hidden = _apply(self, hidden)
        return self.downsamplers[0](hidden) if hasattr(self, "downsamplers") else hidden


class UpDecoderBlock2D(nnx.Module):
    """Residual blocks, then twice the size. With attention it is diffusers' `AttnUpDecoderBlock2D`.

    `level` counts as diffusers does here, coarsest first.
    """

    def __init__(self, config: VAEConfig, level: int, make: Layers):
        widths, count = config.block_out_channels[::-1], config.layers_per_block + 1
        self.resnets = _resnets(config, widths[max(level - 1, 0)], widths[level], count, make)
        if _UP[config.up_block_types[level]]:
            self.attentions = _attentions(config, widths[level], count, make)
        if level < len(widths) - 1:
            self.upsamplers = nnx.List([Upsample2D(widths[level], make)])

    def __call__(self, hidden: Images) -> Mapped:
        """[batch height width channels] -> [batch 2height 2width new_channels]."""
        hidden = _apply(self, hidden)
        return self.upsamplers[0](hidden) if hasattr(self, "upsamplers") else hidden


class UNetMidBlock2D(nnx.Module):
    """Two residual blocks with, unless the config says otherwise, attention of one head between them."""

    def __init__(self, config: VAEConfig, make: Layers):
        features = config.block_out_channels[-1]
        self.resnets = _resnets(config, features, features, 2, make)
        if config.mid_block_add_attention:
            self.attentions = _attentions(config, features, 1, make)

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


def _apply(block: DownEncoderBlock2D | UpDecoderBlock2D, hidden: Images) -> Mapped:
    for index, resnet in enumerate(block.resnets):
        hidden = resnet(hidden)
        if hasattr(block, "attentions"):
            hidden = block.attentions[index](hidden)
    return hidden


def _attentions(config: VAEConfig, features: int, count: int, make: Layers) -> nnx.List:
    return nnx.List(PixelAttention(features, config.norm_num_groups, make) for _ in range(count))


def _resnets(config: VAEConfig, size_in: int, size_out: int, count: int, make: Layers) -> nnx.List:
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
