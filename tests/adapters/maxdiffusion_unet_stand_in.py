"""A small stand-in for MaxDiffusion's UNet and pipeline: module names, signatures of what users call, child names."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from flax.core import FrozenDict
from maxdiffusion_stand_in import FlaxAttention

_ATTENTION = "maxdiffusion.models.attention_flax"
_BLOCKS = "maxdiffusion.models.unet_2d_blocks_flax"
_RESNET = "maxdiffusion.models.resnet_flax"


class FlaxBasicTransformerBlock(nn.Module):
    __module__ = _ATTENTION

    dim: int
    n_heads: int
    d_head: int
    only_cross_attention: bool = False
    attention: Mapping[str, Any] = FrozenDict()

    def setup(self):
        self.attn1, self.attn2 = (
            FlaxAttention(self.dim, self.n_heads, self.d_head, **self.attention) for _ in range(2)
        )
        self.norm1, self.norm2 = nn.LayerNorm(), nn.LayerNorm()

    def __call__(self, hidden_states, context, deterministic=True, cross_attention_kwargs=None):
        own = (context,) if self.only_cross_attention else ()
        hidden_states += self.attn1(self.norm1(hidden_states), *own, deterministic=deterministic)
        return hidden_states + self.attn2(self.norm2(hidden_states), context, deterministic=deterministic)


class FlaxTransformer2DModel(nn.Module):
    __module__ = _ATTENTION

    in_channels: int
    n_heads: int
    d_head: int
    only_cross_attention: bool
    attention: Mapping[str, Any]

    def setup(self):
        self.proj_in = nn.Conv(self.in_channels, (1, 1))
        self.transformer_blocks = [
            FlaxBasicTransformerBlock(
                self.in_channels, self.n_heads, self.d_head, self.only_cross_attention, self.attention
            )
        ]

    def __call__(self, hidden_states, context, deterministic=True, cross_attention_kwargs=None):
        tokens = self.proj_in(hidden_states).reshape(hidden_states.shape[0], -1, self.in_channels)
        for block in self.transformer_blocks:
            tokens = block(tokens, context, deterministic=deterministic)
        return hidden_states + tokens.reshape(hidden_states.shape)


class FlaxUpsample2D(nn.Module):
    __module__ = _RESNET

    out_channels: int

    def setup(self):
        self.conv = nn.Conv(self.out_channels, (3, 3), padding=((1, 1), (1, 1)))

    def __call__(self, hidden_states):
        return self.conv(hidden_states.repeat(2, 1).repeat(2, 2))


class FlaxDownsample2D(nn.Module):
    __module__ = _RESNET

    out_channels: int

    def setup(self):
        self.conv = nn.Conv(self.out_channels, (3, 3), (2, 2), padding=((1, 1), (1, 1)))

    def __call__(self, hidden_states):
        return self.conv(hidden_states)


class FlaxResnetBlock2D(nn.Module):
    __module__ = _RESNET

    out_channels: int

    def setup(self):
        self.conv1 = nn.Conv(self.out_channels, (3, 3), padding=((1, 1), (1, 1)))
        self.time_emb_proj = nn.Dense(self.out_channels)

    def __call__(self, hidden_states, temb, deterministic=True):
        return nn.swish(self.conv1(hidden_states) + self.time_emb_proj(temb)[:, None, None])


class FlaxCrossAttnDownBlock2D(nn.Module):
    __module__ = _BLOCKS

    out_channels: int
    num_attention_heads: int
    add_downsample: bool
    only_cross_attention: bool
    attention: Mapping[str, Any]

    def setup(self):
        self.resnets = [FlaxResnetBlock2D(self.out_channels)]
        self.attentions = [_transformer(self)]
        if self.add_downsample:
            self.downsamplers_0 = FlaxDownsample2D(self.out_channels)

    def __call__(self, hidden_states, temb, encoder_hidden_states):
        hidden_states = self.attentions[0](self.resnets[0](hidden_states, temb), encoder_hidden_states)
        if not self.add_downsample:
            return hidden_states, (hidden_states,)
        coarse = self.downsamplers_0(hidden_states)
        return coarse, (hidden_states, coarse)


class FlaxUNetMidBlock2DCrossAttn(nn.Module):
    __module__ = _BLOCKS

    out_channels: int
    num_attention_heads: int
    only_cross_attention: bool
    attention: Mapping[str, Any]

    def setup(self):
        self.resnets = [FlaxResnetBlock2D(self.out_channels)]
        self.attentions = [_transformer(self)]

    def __call__(self, hidden_states, temb, encoder_hidden_states):
        return self.attentions[0](self.resnets[0](hidden_states, temb), encoder_hidden_states)


class FlaxCrossAttnUpBlock2D(nn.Module):
    __module__ = _BLOCKS

    out_channels: int
    num_attention_heads: int
    add_upsample: bool
    only_cross_attention: bool
    attention: Mapping[str, Any]

    def setup(self):
        self.resnets = [FlaxResnetBlock2D(self.out_channels) for _ in range(2)]
        self.attentions = [_transformer(self) for _ in range(2)]
        if self.add_upsample:
            self.upsamplers_0 = FlaxUpsample2D(self.out_channels)

    def __call__(self, hidden_states, res_hidden_states_tuple, temb, encoder_hidden_states):
        for resnet, attention in zip(self.resnets, self.attentions, strict=True):
            *res_hidden_states_tuple, skip = res_hidden_states_tuple
            hidden_states = resnet(jnp.concatenate((hidden_states, skip), -1), temb)
            hidden_states = attention(hidden_states, encoder_hidden_states)
        return self.upsamplers_0(hidden_states) if self.add_upsample else hidden_states


def _transformer(block):
    width = block.out_channels // block.num_attention_heads
    return FlaxTransformer2DModel(
        block.out_channels, block.num_attention_heads, width, block.only_cross_attention, block.attention
    )


class FlaxUNet2DConditionModel(nn.Module):
    __module__ = "maxdiffusion.models.unet_2d_condition_flax"

    sample_size: int = 32
    in_channels: int = 4
    out_channels: int = 4
    down_block_types: tuple[str, ...] = ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D")
    up_block_types: tuple[str, ...] = ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D")
    only_cross_attention: bool | tuple[bool, ...] = False
    block_out_channels: tuple[int, ...] = (320, 640)
    layers_per_block: int = 1
    attention_head_dim: int = 8
    cross_attention_dim: int = 1280
    attention_kernel: str = "dot_product"
    flash_min_seq_length: int = 4096
    flash_block_sizes: Any = None
    mesh: Any = None
    addition_embed_type: str | None = None

    @property
    def config(self):
        return SimpleNamespace(**{name: getattr(self, name) for name in FlaxUNet2DConditionModel.__annotations__})

    def init_weights(self, rng):
        sample = jnp.zeros((1, self.in_channels, self.sample_size, self.sample_size))
        inputs = sample, jnp.ones(1, jnp.int32), jnp.zeros((1, 1, self.cross_attention_dim))
        return self.init(rng, *inputs)["params"]

    def setup(self):
        channels, levels = self.block_out_channels, len(self.block_out_channels)
        only = self.only_cross_attention
        only = (only,) * levels if isinstance(only, bool) else only

        names = ("attention_kernel", "flash_min_seq_length", "flash_block_sizes", "mesh")
        attention = FrozenDict({name: getattr(self, name) for name in names})

        def block(kind, level, **more):
            return kind(
                out_channels=channels[level],
                num_attention_heads=self.attention_head_dim,
                only_cross_attention=only[level],
                attention=attention,
                **more,
            )

        self.conv_in = nn.Conv(channels[0], (3, 3), padding=((1, 1), (1, 1)))
        self.time_embedding = nn.Dense(channels[0])
        self.down_blocks = [
            block(FlaxCrossAttnDownBlock2D, level, add_downsample=level < levels - 1) for level in range(levels)
        ]
        self.mid_block = block(FlaxUNetMidBlock2DCrossAttn, levels - 1)
        self.up_blocks = [
            block(FlaxCrossAttnUpBlock2D, level, add_upsample=level > 0) for level in reversed(range(levels))
        ]
        self.conv_out = nn.Conv(self.out_channels, (3, 3), padding=((1, 1), (1, 1)))

    def __call__(self, sample, timesteps, encoder_hidden_states, return_dict=True, train=False):
        temb = nn.swish(self.time_embedding(timesteps[:, None].astype(jnp.float32)))
        hidden_states = self.conv_in(sample.transpose(0, 2, 3, 1))
        skips = (hidden_states,)
        for block in self.down_blocks:
            hidden_states, more = block(hidden_states, temb, encoder_hidden_states)
            skips += more
        hidden_states = self.mid_block(hidden_states, temb, encoder_hidden_states)
        for block in self.up_blocks:
            skips, taken = skips[:-2], skips[-2:]
            hidden_states = block(hidden_states, taken, temb, encoder_hidden_states)
        sample = self.conv_out(hidden_states).transpose(0, 3, 1, 2)
        return SimpleNamespace(sample=sample) if return_dict else (sample,)


class FlaxStableDiffusionPipeline:
    """What the real one holds beside its parts; only the UNet is adapted."""

    __module__ = "maxdiffusion.pipelines.stable_diffusion.pipeline_flax_stable_diffusion"

    def __init__(self, unet, vae_scale_factor=8):
        self.unet, self.vae_scale_factor = unet, vae_scale_factor
