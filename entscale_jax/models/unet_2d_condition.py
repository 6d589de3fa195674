"""The text-conditioned UNet of Stable Diffusion 1.x, 2.x and XL, whose self-attention knows its level and its T."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from ..attention import EntropyScaledAttention, Record
from ..buckets import token_counts
from ..errors import UserError
from ..scales import Scaling
from .config import check_groups, check_heads, per_level, read_config
from .layers import Images, Layers, Mapped
from .time_embedding import TIME_IDS, AddedConditions, Time, TimestepEmbedding, added_embedding, timestep_embedding
from .transformer import Context, Transformer2DModel
from .unet_blocks import DownBlock, MakeAttention, MidBlock, UpBlock

Config = TypeVar("Config", bound="UNet2DConditionConfig")
_FIXED: Mapping[str, tuple] = {
    "center_input_sample": (False,),
    "only_cross_attention": (False,),
    "downsample_padding": (1,),
    "mid_block_scale_factor": (1,),
    "act_fn": ("silu", "swish"),
    "reverse_transformer_layers_per_block": (None,),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "dual_cross_attention": (False,),
    "class_embed_type": (None,),
    "num_class_embeds": (None,),
    "resnet_time_scale_shift": ("default",),
    "resnet_skip_time_act": (False,),
    "resnet_out_scale_factor": (1.0,),
    "time_embedding_type": ("positional",),
    "time_embedding_dim": (None,),
    "time_embedding_act_fn": (None,),
    "timestep_post_act": (None,),
    "time_cond_proj_dim": (None,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "attention_type": ("default",),
    "class_embeddings_concat": (False,),
    "mid_block_only_cross_attention": (None, False),
    "cross_attention_norm": (None,),
}
# Logits are accumulated in float32 in any case, which is what upcast_attention asks for; addition_embed_type_num_heads
# acts on addition_embed_type="text" alone, which is refused.
_INERT = frozenset({"dropout", "upcast_attention", "addition_embed_type_num_heads"})
_DOWN = {"CrossAttnDownBlock2D": True, "DownBlock2D": False}
_UP = {"CrossAttnUpBlock2D": True, "UpBlock2D": False}
_MID = ("UNetMidBlock2DCrossAttn", None)
_ADDITION = ("text_time", None)


@dataclass(frozen=True, kw_only=True)
class UNet2DConditionConfig:
    """The fields of diffusers' `UNet2DConditionModel` that Stable Diffusion 1.x, 2.x and XL use, with its defaults."""

    sample_size: int | tuple[int, int]
    in_channels: int = 4
    out_channels: int = 4
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    down_block_types: tuple[str, ...] = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    mid_block_type: str | None = "UNetMidBlock2DCrossAttn"
    up_block_types: tuple[str, ...] = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    cross_attention_dim: int = 1280
    transformer_layers_per_block: int | tuple[int, ...] = 1
    attention_head_dim: int | tuple[int, ...] = 8
    """The number of heads, in spite of its name, unless `num_attention_heads` is given: diffusers' historic meaning."""
    num_attention_heads: int | tuple[int, ...] | None = None
    use_linear_projection: bool = False
    addition_embed_type: str | None = None
    """`text_time` where the UNet is conditioned on a pooled text embedding and on sizes too, as SDXL's is."""
    addition_time_embed_dim: int | None = None
    """Sines and cosines of each number of `AddedConditions.time_ids`."""
    projection_class_embeddings_input_dim: int | None = None
    """The width of all of `AddedConditions`: P + 6 addition_time_embed_dim."""

    model: ClassVar[str] = "UNet2DConditionModel"
    inert: ClassVar[frozenset[str]] = _INERT
    """Fields of config.json that don't change what is computed."""
    transformer_norm_eps: ClassVar[float] = 1e-6
    """Of the norm before a transformer. PyTorch's class and Flax's differ here, and no config.json says it."""
    transformer_gelu: ClassVar[str] = "gelu"
    """The GELU in a transformer's feed-forward, by its name in transformers; the other difference."""

    def __post_init__(self):
        kinds = (("down_block_types", _DOWN), ("up_block_types", _UP))
        for name, known in kinds:
            for kind in per_level(getattr(self, name), self.levels, name=f"{self.model}: {name}"):
                if kind not in known:
                    raise UserError(f"{self.model}: {name} has {kind!r}: implemented are {', '.join(known)}")
        if self.mid_block_type not in _MID:
            raise UserError(f"{self.model}: mid_block_type={self.mid_block_type!r}: implemented are {_MID}")
        for name in ("layers_per_block", "cross_attention_dim"):
            if not isinstance(getattr(self, name), int):
                raise UserError(f"{self.model}: {name}={getattr(self, name)!r}: only one whole number is implemented")
        _ = self.depths  # raises for a wrong count
        for features, heads in zip(self.block_out_channels, self.heads, strict=True):
            check_heads(features, heads, model=self.model)
        check_groups(self.norm_num_groups, self.block_out_channels, model=self.model)
        self._check_addition()

    def _check_addition(self) -> None:
        if self.addition_embed_type not in _ADDITION:
            raise UserError(
                f"{self.model}: addition_embed_type={self.addition_embed_type!r}: implemented are {_ADDITION}"
            )
        for name in ("addition_time_embed_dim", "projection_class_embeddings_input_dim"):
            if (getattr(self, name) is None) != (self.addition_embed_type is None):
                raise UserError(
                    f"{self.model}: {name}={getattr(self, name)!r} does not fit "
                    f"addition_embed_type={self.addition_embed_type!r}: text_time needs it, None has no use for it"
                )
        if self.text_embeds_dim is not None and self.text_embeds_dim < 1:
            raise UserError(
                f"{self.model}: projection_class_embeddings_input_dim="
                f"{self.projection_class_embeddings_input_dim} leaves no room for text beside {TIME_IDS} numbers of "
                f"addition_time_embed_dim={self.addition_time_embed_dim}"
            )

    @classmethod
    def from_json(cls: type[Config], raw: Mapping[str, Any]) -> Config:
        """From diffusers' config.json. Raises UserError naming every field that is not implemented."""
        if raw.get("sample_size") is None:
            raise UserError(f"{cls.model}: sample_size is missing: the training size can't be known without it")
        depths = raw.get("transformer_layers_per_block", 1)
        if isinstance(depths, list) and not all(isinstance(depth, int) for depth in depths):
            raise UserError(
                f"{cls.model}: transformer_layers_per_block={depths!r}: implemented is one whole number, or one a level"
            )
        return read_config(cls, raw, model=cls.model, fixed=_FIXED, inert=cls.inert)

    @property
    def levels(self) -> int:
        """The number of resolutions, each half of the one before."""
        return len(self.block_out_channels)

    @property
    def heads(self) -> tuple[int, ...]:
        """Attention heads of each level."""
        heads = self.num_attention_heads if self.num_attention_heads is not None else self.attention_head_dim
        return per_level(heads, self.levels, name=f"{self.model}: attention_head_dim")

    @property
    def depths(self) -> tuple[int, ...]:
        """Transformer blocks of each attention of a level."""
        name = f"{self.model}: transformer_layers_per_block"
        return per_level(self.transformer_layers_per_block, self.levels, name=name)

    @property
    def attention_levels(self) -> tuple[int, ...]:
        """The levels that have self-attention, finest 0: those whose token counts matter."""
        return tuple(sorted(set(self.self_attention.values())))

    @property
    def class_rows(self) -> int | None:
        """Rows of the table by which the UNet is told a label of each picture; None where it is told none."""
        return None

    @property
    def cross_only(self) -> tuple[bool, ...]:
        """Of each level, whether `attn1` attends to the text as `attn2` does; the middle block's never does."""
        return (False,) * self.levels

    @property
    def self_attention(self) -> dict[str, int]:
        """The path of every self-attention layer -> its level, as `UNet2DConditionModel.attention_layers` has them."""
        last, many, text = self.levels - 1, self.layers_per_block, self.cross_only
        down = [_DOWN[kind] and not text[i] for i, kind in enumerate(self.down_block_types)]
        up = [_UP[kind] and not text[last - i] for i, kind in enumerate(self.up_block_types)]
        places = [(f"down_blocks/{i}", i, many) for i in range(self.levels) if down[i]]
        places += [] if self.mid_block_type is None else [("mid_block", last, 1)]
        places += [(f"up_blocks/{i}", last - i, many + 1) for i in range(self.levels) if up[i]]
        return {
            f"{block}/attentions/{attention}/transformer_blocks/{index}/attn1": level
            for block, level, attentions in places
            for attention in range(attentions)
            for index in range(self.depths[level])
        }

    @property
    def text_embeds_dim(self) -> int | None:
        """P, the width of the pooled text embedding in `AddedConditions`; None for a UNet that takes none."""
        if self.projection_class_embeddings_input_dim is None or self.addition_time_embed_dim is None:
            return None
        return self.projection_class_embeddings_input_dim - TIME_IDS * self.addition_time_embed_dim

    @property
    def train_grid(self) -> tuple[int, int]:
        """Latent cells (h, w) in training."""
        return self.sample_size if isinstance(self.sample_size, tuple) else (self.sample_size, self.sample_size)

    @property
    def train_tokens(self) -> tuple[int, ...]:
        """T of each level, finest first."""
        return token_counts(self.train_grid, self.levels)


class UNet2DConditionModel(nnx.Module):
    """Predicts noise or velocity from noisy latents, a timestep and text states. Channels last; any grid works."""

    def __init__(self, config: UNet2DConditionConfig, *, rngs: nnx.Rngs, dtype: jnp.dtype | type = jnp.float32):
        make = Layers(rngs, dtype)
        widths = config.block_out_channels
        self.config = config
        self.conv_in = make.conv(config.in_channels, widths[0])
        self.time_embedding = TimestepEmbedding(widths[0], 4 * widths[0], make)
        if config.projection_class_embeddings_input_dim is not None:
            self.add_embedding = TimestepEmbedding(config.projection_class_embeddings_input_dim, 4 * widths[0], make)
        if config.class_rows is not None:
            self.class_embedding = make.embed(config.class_rows, 4 * widths[0])
        self.down_blocks = nnx.List(
            DownBlock(config, level, make, _transformers(config, level, make) if _DOWN[kind] else None)
            for level, kind in enumerate(config.down_block_types)
        )
        middle = partial(_transformer, config, config.levels - 1, make)
        self.mid_block = None if config.mid_block_type is None else MidBlock(config, make, middle)
        upwards = zip(reversed(range(config.levels)), config.up_block_types, strict=True)
        self.up_blocks = nnx.List(
            UpBlock(config, level, make, _transformers(config, level, make) if _UP[kind] else None)
            for level, kind in upwards
        )
        self.conv_norm_out = make.group_norm(widths[0], config.norm_num_groups, config.norm_eps)
        self.conv_out = make.conv(widths[0], config.out_channels)
        for name, layer in self.attention_layers().items():
            layer.layer = name

    def attention_layers(self) -> dict[str, EntropyScaledAttention]:
        """Every self-attention layer by its path, `down_blocks/0/attentions/0/transformer_blocks/0/attn1` for one."""
        found = {}
        for path, module in nnx.iter_modules(self):
            if isinstance(module, EntropyScaledAttention):
                found["/".join(map(str, path))] = module
        return found

    def __call__(
        self,
        latents: Images,
        timesteps: Float[Array, "batch"],
        context: Context,
        rule: Scaling | None = None,
        record: Record | None = None,
        added: AddedConditions | None = None,
        labels: Int[Array, "batch"] | None = None,
    ) -> Mapped:
        """The model's prediction.

        Args:
            latents: noisy latents, scaled as the schedule asks.
            timesteps: one a picture, in float32 or wider: half precision has no 999.
            context: text states.
            rule: the scale rule, static; None takes each layer's own (`entropy`).
            record: gets the mean entropy [B N] of each self-attention layer while tracing.
            added: pooled text and sizes, for a UNet whose config has `addition_embed_type`.
            labels: one a picture, for a UNet whose config has `num_class_embeds`.

        Raises UserError where `added` or `labels` is missing, or given to a UNet that takes none.
        """

        def attend(layer: Transformer2DModel, hidden: Images) -> Images:
            return layer(hidden, context, rule, record)

        time = self._labelled(self._time(timesteps, added), labels)
        hidden = self.conv_in(latents)
        skips = [hidden]
        for index, block in enumerate(self.down_blocks):
            with jax.named_scope(f"down_blocks.{index}"):
                hidden, more = block(hidden, time, attend)
            skips += more
        if self.mid_block is not None:
            with jax.named_scope("mid_block"):
                hidden = self.mid_block(hidden, time, attend)
        for index, block in enumerate(self.up_blocks):
            with jax.named_scope(f"up_blocks.{index}"):
                hidden = block(hidden, skips, time, attend)
        with jax.named_scope("conv_out"):
            return self.conv_out(nnx.silu(self.conv_norm_out(hidden)))

    def _time(self, timesteps: Float[Array, "batch"], added: AddedConditions | None) -> Time:
        config = self.config
        sinusoid = config.flip_sin_to_cos, config.freq_shift
        waves = timestep_embedding(timesteps, config.block_out_channels[0], *sinusoid)
        time = self.time_embedding(waves.astype(self.conv_in.kernel[...].dtype))
        if config.addition_time_embed_dim is None:
            if added is not None:
                raise UserError("added was given to a UNet whose config has no addition_embed_type: leave it out")
            return time
        if added is None:
            raise UserError(
                f"added is missing: a UNet of addition_embed_type={config.addition_embed_type!r} is also told a pooled "
                "text embedding and sizes; give AddedConditions(text_embeds, time_ids)"
            )
        return time + self.add_embedding(added_embedding(*added, config.addition_time_embed_dim, *sinusoid))

    def _labelled(self, time: Time, labels: Int[Array, "batch"] | None) -> Time:
        if (labels is None) != (self.config.class_rows is None):
            raise UserError(
                f"labels are {'missing' if labels is None else 'given'}, and the UNet's config has "
                f"num_class_embeds={self.config.class_rows}"
            )
        return time if labels is None else time + self.class_embedding(labels)


def _transformers(config: UNet2DConditionConfig, level: int, make: Layers) -> MakeAttention:
    return partial(_transformer, config, level, make, config.cross_only[level])


def _transformer(
    config: UNet2DConditionConfig, level: int, make: Layers, cross_only: bool = False
) -> Transformer2DModel:
    return Transformer2DModel(
        config.block_out_channels[level],
        config.cross_attention_dim,
        config.heads[level],
        config.depths[level],
        linear=config.use_linear_projection,
        groups=config.norm_num_groups,
        epsilon=config.transformer_norm_eps,
        gelu=config.transformer_gelu,
        cross_only=cross_only,
        train_tokens=config.train_tokens[level],
        level=level,
        make=make,
    )
