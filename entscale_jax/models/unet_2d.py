"""The UNet without text of Latent Diffusion's super-resolution, told a timestep and what stands beside the latents."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from ..attention import Record, attend_and_record, merge_heads, projections, split_heads
from ..buckets import token_counts
from ..errors import UserError
from ..scales import ScaleRule, Scaling
from .config import check_groups, per_level, read_config
from .layers import Images, Layers, Mapped
from .time_embedding import AddedConditions, Time, TimestepEmbedding, timestep_embedding
from .unet_2d_condition import UNet2DConditionModel
from .unet_blocks import DownBlock, MakeAttention, MidBlock, UpBlock

_FIXED: Mapping[str, tuple] = {
    "center_input_sample": (False,),
    "time_embedding_type": ("positional",),
    "time_embedding_dim": (None,),
    "mid_block_type": ("UNetMidBlock2D",),
    "mid_block_scale_factor": (1,),
    "downsample_padding": (1,),
    "downsample_type": ("conv",),
    "upsample_type": ("conv",),
    "act_fn": ("silu", "swish"),
    "attn_norm_num_groups": (None,),
    "resnet_time_scale_shift": ("default",),
    "add_attention": (True,),
    "class_embed_type": (None,),
    "num_class_embeds": (None,),
    "num_train_timesteps": (None,),
}
_INERT = frozenset({"dropout"})
_DOWN = {"AttnDownBlock2D": True, "DownBlock2D": False}
_UP = {"AttnUpBlock2D": True, "UpBlock2D": False}
_ORIGINAL = Scaling.of(ScaleRule.ORIGINAL)


@dataclass(frozen=True, kw_only=True)
class UNet2DConfig:
    """The fields of diffusers' `UNet2DModel` that super-resolution by Latent Diffusion uses, with its defaults."""

    sample_size: int | tuple[int, int]
    in_channels: int = 3
    """Of latents and of what stands beside them, in this order."""
    out_channels: int = 3
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    down_block_types: tuple[str, ...] = ("DownBlock2D",) + ("AttnDownBlock2D",) * 3
    up_block_types: tuple[str, ...] = ("AttnUpBlock2D",) * 3 + ("UpBlock2D",)
    block_out_channels: tuple[int, ...] = (224, 448, 672, 896)
    layers_per_block: int = 2
    attention_head_dim: int | None = 8
    """The width of a head, as its name says here; None is one head of all channels."""
    norm_num_groups: int = 32
    norm_eps: float = 1e-5

    model: ClassVar[str] = "UNet2DModel"
    cross_attention_dim: ClassVar[int] = 0
    """Width of the text that is attended to: there is none."""
    text_embeds_dim: ClassVar[None] = None
    class_rows: ClassVar[None] = None

    def __post_init__(self):
        for name, known in (("down_block_types", _DOWN), ("up_block_types", _UP)):
            for kind in per_level(getattr(self, name), self.levels, name=f"{self.model}: {name}"):
                if kind not in known:
                    raise UserError(f"{self.model}: {name} has {kind!r}: implemented are {', '.join(known)}")
        for level in self.attention_levels:
            features, width = self.block_out_channels[level], self.head_dim(level)
            if features % width:
                raise UserError(
                    f"{self.model}: {features} channels can't be shared by heads of attention_head_dim={width}"
                )
        check_groups(self.norm_num_groups, self.block_out_channels, model=self.model)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "UNet2DConfig":
        """From diffusers' config.json. Raises UserError naming every field that is not implemented."""
        if raw.get("sample_size") is None:
            raise UserError(f"{cls.model}: sample_size is missing: the training size can't be known without it")
        return read_config(cls, raw, model=cls.model, fixed=_FIXED, inert=_INERT)

    @property
    def levels(self) -> int:
        """The number of resolutions, each half of the one before."""
        return len(self.block_out_channels)

    def head_dim(self, level: int) -> int:
        """The width of a head at this level."""
        return self.attention_head_dim or self.block_out_channels[level]

    @property
    def heads(self) -> tuple[int, ...]:
        """Attention heads of each level, if it has attention."""
        return tuple(width // self.head_dim(level) for level, width in enumerate(self.block_out_channels))

    @property
    def attention_levels(self) -> tuple[int, ...]:
        """The levels that have self-attention, finest 0."""
        return tuple(sorted(set(self.self_attention.values())))

    @property
    def self_attention(self) -> dict[str, int]:
        """The path of every self-attention layer -> its level, as `UNet2DModel.attention_layers` has them."""
        last, many = self.levels - 1, self.layers_per_block
        places = [(f"down_blocks/{i}", i, many) for i, kind in enumerate(self.down_block_types) if _DOWN[kind]]
        places += [("mid_block", last, 1)]
        places += [(f"up_blocks/{i}", last - i, many + 1) for i, kind in enumerate(self.up_block_types) if _UP[kind]]
        return {f"{block}/attentions/{index}": level for block, level, count in places for index in range(count)}

    @property
    def train_grid(self) -> tuple[int, int]:
        """Latent cells (h, w) in training."""
        return self.sample_size if isinstance(self.sample_size, tuple) else (self.sample_size, self.sample_size)

    @property
    def train_tokens(self) -> tuple[int, ...]:
        """T of each level, finest first."""
        return token_counts(self.train_grid, self.levels)


class UNet2DModel(nnx.Module):
    """Predicts noise from noisy latents, what stands beside them, and a timestep. Channels last; any grid works."""

    def __init__(self, config: UNet2DConfig, *, rngs: nnx.Rngs, dtype: jnp.dtype | type = jnp.float32):
        make = Layers(rngs, dtype)
        widths = config.block_out_channels
        self.config = config
        self.conv_in = make.conv(config.in_channels, widths[0])
        self.time_embedding = TimestepEmbedding(widths[0], 4 * widths[0], make)

        def attention(level: int) -> MakeAttention:
            return partial(SpatialAttention, config, level, make)

        self.down_blocks = nnx.List(
            DownBlock(config, level, make, attention(level) if _DOWN[kind] else None)
            for level, kind in enumerate(config.down_block_types)
        )
        self.mid_block = MidBlock(config, make, attention(config.levels - 1))
        upwards = zip(reversed(range(config.levels)), config.up_block_types, strict=True)
        self.up_blocks = nnx.List(
            UpBlock(config, level, make, attention(level) if _UP[kind] else None) for level, kind in upwards
        )
        self.conv_norm_out = make.group_norm(widths[0], config.norm_num_groups, config.norm_eps)
        self.conv_out = make.conv(widths[0], config.out_channels)
        for name, layer in self.attention_layers().items():
            layer.layer = name

    def attention_layers(self) -> dict[str, "SpatialAttention"]:
        """Every self-attention layer by its path, `down_blocks/3/attentions/0` for one."""
        found = {}
        for path, module in nnx.iter_modules(self):
            if isinstance(module, SpatialAttention):
                found["/".join(map(str, path))] = module
        return found

    def __call__(
        self,
        latents: Images,
        timesteps: Float[Array, "batch"],
        context: Float[Array, "batch text features"] | None = None,
        rule: Scaling | None = None,
        record: Record | None = None,
        added: AddedConditions | None = None,
        labels: Int[Array, "batch"] | None = None,
    ) -> Mapped:
        """The model's prediction.

        Args:
            latents: noisy latents, scaled as the schedule asks, with what stands beside them.
            timesteps: one a picture, in float32 or wider: half precision has no 999.
            context: left unread; `added` and `labels` are, too. A UNet of text has them at these places.
            rule: the scale rule, static; None is `original`.
            record: gets the mean entropy [B N] of each self-attention layer while tracing.
            added: as `context`.
            labels: as `context`.
        """

        def attend(layer: SpatialAttention, hidden: Images) -> Images:
            return layer(hidden, rule, record)

        time = self._time(timesteps)
        hidden = self.conv_in(latents)
        skips = [hidden]
        for block in self.down_blocks:
            hidden, more = block(hidden, time, attend)
            skips += more
        hidden = self.mid_block(hidden, time, attend)
        for block in self.up_blocks:
            hidden = block(hidden, skips, time, attend)
        return self.conv_out(nnx.silu(self.conv_norm_out(hidden)))

    def _time(self, timesteps: Float[Array, "batch"]) -> Time:
        config = self.config
        waves = timestep_embedding(timesteps, config.block_out_channels[0], config.flip_sin_to_cos, config.freq_shift)
        return self.time_embedding(waves.astype(self.conv_in.kernel[...].dtype))


UNet = UNet2DConditionModel | UNet2DModel
"""What a sampler can call."""


class SpatialAttention(nnx.Module):
    """Self-attention over all cells after group normalisation, with biases and a shortcut: diffusers' old block."""

    def __init__(self, config: UNet2DConfig, level: int, make: Layers):
        features = config.block_out_channels[level]
        self.heads, self.head_dim = config.heads[level], config.head_dim(level)
        self.train_tokens, self.level, self.layer = config.train_tokens[level], level, "attention"
        self.group_norm = make.group_norm(features, config.norm_num_groups, config.norm_eps)
        self.to_q, self.to_k, self.to_v, self.to_out = projections(
            features, features, features, make.dtype, make.rngs, use_bias=True
        )

    def __call__(self, hidden: Images, rule: Scaling | None, record: Record | None) -> Images:
        """[batch height width channels], unchanged in shape; hands each head's mean entropy to `record`."""
        tokens: Float[Array, "B T D"] = self.group_norm(hidden).reshape(hidden.shape[0], -1, hidden.shape[-1])
        query, key, value = (split_heads(to(tokens), self.heads) for to in (self.to_q, self.to_k, self.to_v))
        scale = (rule or _ORIGINAL).scale_at(self.level, tokens.shape[1], self.train_tokens, self.head_dim, self.layer)
        out = attend_and_record(query, key, value, scale=scale, layer=self.layer, record=record)
        return hidden + self.to_out[0](merge_heads(out)).reshape(hidden.shape)
