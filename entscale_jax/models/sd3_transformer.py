"""The transformer of Stable Diffusion 3 and 3.5: the rule in a model without levels, a worked example.

N and T are counts of image tokens: the latent grid over the patch size, now and in training. Which rows get the scale
is our reading, since the paper has no such model: see `joint_attention`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from ..attention import Record, accumulator
from ..buckets import token_counts
from ..errors import UserError
from ..scales import Scaling
from .config import read_config
from .joint_attention import AdaLayerNormContinuous, JointAttention, JointTransformerBlock
from .layers import Images, Layers, Mapped
from .time_embedding import Time, TimestepEmbedding, timestep_embedding
from .transformer import Context, Tokens

_FIXED: Mapping[str, tuple] = {}
_INERT: frozenset[str] = frozenset()
_NAME = "SD3Transformer2DModel"
_QK_NORMS = (None, "rms_norm")
_WAVES = 256
"""Sines and cosines of a timestep."""


@dataclass(frozen=True, kw_only=True)
class SD3TransformerConfig:
    """The fields of diffusers' `SD3Transformer2DModel`, with its defaults."""

    sample_size: int | tuple[int, int]
    """Latent cells in training, along a side or (height, width)."""
    patch_size: int = 2
    in_channels: int = 16
    num_layers: int = 18
    attention_head_dim: int = 64
    num_attention_heads: int = 18
    joint_attention_dim: int = 4096
    """The width of the text states."""
    caption_projection_dim: int = 1152
    pooled_projection_dim: int = 2048
    out_channels: int | None = 16
    pos_embed_max_size: int = 96
    """Patches along a side for which there are positions; smaller grids take those at its centre."""
    dual_attention_layers: tuple[int, ...] = ()
    """Blocks with a second attention, of image tokens alone: those of SD3.5 medium."""
    qk_norm: str | None = None
    """`rms_norm` in SD3.5."""

    def __post_init__(self):
        if self.qk_norm not in _QK_NORMS:
            raise UserError(f"{_NAME}: qk_norm={self.qk_norm!r}: implemented are {_QK_NORMS}")
        if self.caption_projection_dim != self.inner_dim:
            raise UserError(
                f"{_NAME}: caption_projection_dim={self.caption_projection_dim} is not the {self.inner_dim} of "
                f"{self.num_attention_heads} heads of {self.attention_head_dim}: text and image tokens are joined"
            )
        if self.inner_dim % 4:
            raise UserError(f"{_NAME}: {self.inner_dim} channels can't hold sines and cosines of rows and columns")
        if wrong := [index for index in self.dual_attention_layers if not 0 <= index < self.num_layers]:
            raise UserError(f"{_NAME}: dual_attention_layers has {wrong}, and there are {self.num_layers} layers")
        _ = self.train_tokens  # raises where patches don't divide the training grid

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "SD3TransformerConfig":
        """From diffusers' config.json. Raises UserError naming every field that is not implemented."""
        if raw.get("sample_size") is None:
            raise UserError(f"{_NAME}: sample_size is missing: the training size can't be known without it")
        return read_config(cls, raw, model=_NAME, fixed=_FIXED, inert=_INERT)

    @property
    def inner_dim(self) -> int:
        """The width of a token."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def channels_out(self) -> int:
        """Channels of the prediction."""
        return self.in_channels if self.out_channels is None else self.out_channels

    @property
    def train_grid(self) -> tuple[int, int]:
        """Latent cells (h, w) in training."""
        return self.sample_size if isinstance(self.sample_size, tuple) else (self.sample_size, self.sample_size)

    @property
    def train_tokens(self) -> int:
        """T, image tokens in training."""
        return self.tokens(self.train_grid)

    def tokens(self, grid: tuple[int, int]) -> int:
        """N, image tokens of a latent grid (h, w). Raises UserError where `patches` does, and for a single token."""
        return token_counts(self.patches(grid), 1)[0]

    def patches(self, grid: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of patches of a latent grid (h, w).

        Raises UserError where the patch size does not divide it, and where there are no positions for so many.
        """
        height, width = grid
        side, most = self.patch_size, self.pos_embed_max_size
        if height % side or width % side:
            raise UserError(
                f"{_NAME}: a latent grid of {width}x{height} can't be cut into patches of {side}x{side}: "
                f"give a size whose latent sides are multiples of {side}"
            )
        if max(height, width) > most * side:
            raise UserError(
                f"{_NAME}: a latent grid of {width}x{height} is beyond the {most * side}x{most * side} that "
                f"pos_embed_max_size={most} has positions for: draw a smaller size"
            )
        return height // side, width // side


class SD3Transformer2DModel(nnx.Module):
    """Predicts velocity from noisy latents, a timestep, text states and pooled text. Channels last.

    Any latent grid works that the patch size divides, up to `pos_embed_max_size` patches a side.
    """

    def __init__(self, config: SD3TransformerConfig, *, rngs: nnx.Rngs, dtype: jnp.dtype | type = jnp.float32):
        make = Layers(rngs, dtype)
        features = config.inner_dim
        self.config = config
        self.pos_embed = PatchEmbed(config, make)
        self.time_text_embed = TimeTextEmbedding(features, config.pooled_projection_dim, make)
        self.context_embedder = make.linear(config.joint_attention_dim, features)
        self.transformer_blocks = nnx.List(_block(config, index, make) for index in range(config.num_layers))
        self.norm_out = AdaLayerNormContinuous(features, make)
        self.proj_out = make.linear(features, config.patch_size**2 * config.channels_out)
        for name, layer in self.attention_layers().items():
            layer.layer = name

    def attention_layers(self) -> dict[str, JointAttention]:
        """Every attention layer by its path: `transformer_blocks/0/attn`, and `.../attn2` where there is one."""
        found = {}
        for path, module in nnx.iter_modules(self):
            if isinstance(module, JointAttention):
                found["/".join(map(str, path))] = module
        return found

    def __call__(
        self,
        latents: Images,
        timesteps: Float[Array, "batch"],
        context: Context,
        pooled: Float[Array, "batch pooled"],
        rule: Scaling | None = None,
        record: Record | None = None,
    ) -> Mapped:
        """The model's prediction.

        Args:
            latents: noisy latents.
            timesteps: one a picture, from 0 to 1000, in float32 or wider.
            context: text states.
            pooled: the pooled text embeddings.
            rule: the scale rule, static; None takes each layer's own (`entropy`).
            record: gets the mean entropy [B N] of each attention layer's image rows while tracing.

        Raises UserError for a grid that has no patches or positions here, and for multipliers of several levels.
        """
        config = self.config
        _, height, width, _ = latents.shape
        config.tokens((height, width))
        if rule is not None:
            rule.check_levels(1)
        condition = self.time_text_embed(timesteps, pooled)
        image, text = self.pos_embed(latents), self.context_embedder(context)
        for block in self.transformer_blocks:
            image, text = block(image, text, condition, rule, record)
        return _unpatched(self.proj_out(self.norm_out(image, condition)), config, (height, width))


class Buffer(nnx.Variable):
    """An array that is stored with the weights and not trained."""


class PatchEmbed(nnx.Module):
    """Patches as tokens, each with its position counted from the centre of the largest grid."""

    def __init__(self, config: SD3TransformerConfig, make: Layers):
        self.config = config
        self.proj = make.conv(
            config.in_channels, config.inner_dim, config.patch_size, stride=config.patch_size, padding=0
        )
        trained = config.train_grid[0] // config.patch_size
        self.pos_embed = Buffer(
            grid_positions(config.pos_embed_max_size, trained, config.inner_dim, accumulator(make.dtype)).astype(
                make.dtype
            )
        )

    def __call__(self, latents: Images) -> Tokens:
        """[batch height width channels] -> [B T D]."""
        batch, height, width, _ = latents.shape
        rows, columns = self.config.patches((height, width))
        most = self.config.pos_embed_max_size
        top, left = (most - rows) // 2, (most - columns) // 2
        positions = self.pos_embed[...].reshape(1, most, most, -1)[:, top : top + rows, left : left + columns]
        return (self.proj(latents) + positions).reshape(batch, rows * columns, -1)


class TimeTextEmbedding(nnx.Module):
    """The condition of every block: the timestep and the pooled text, each through two dense layers."""

    def __init__(self, features: int, pooled: int, make: Layers):
        self.timestep_embedder = TimestepEmbedding(_WAVES, features, make)
        self.text_embedder = TimestepEmbedding(pooled, features, make)

    def __call__(self, timesteps: Float[Array, "batch"], pooled: Float[Array, "batch pooled"]) -> Time:
        """[batch features]."""
        waves = timestep_embedding(timesteps, _WAVES, flip_sin_to_cos=True, freq_shift=0)
        return self.timestep_embedder(waves.astype(pooled.dtype)) + self.text_embedder(pooled)


def grid_positions(
    side: int, trained: int, features: int, dtype: jnp.dtype | type
) -> Float[Array, "1 positions features"]:
    """Sines and cosines of each patch's column, then of its row, in a grid of `side` patches a side.

    The whole grid spans what the `trained` patches of training would. Source: diffusers' `get_2d_sincos_pos_embed`.
    """
    places = jnp.arange(side, dtype=dtype) * (trained / side)
    frequencies = 10000.0 ** (-jnp.arange(features // 4, dtype=dtype) * (4 / features))
    angles = places[:, None] * frequencies[None, :]
    waves = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    shape = (side, side, features // 2)
    both = [jnp.broadcast_to(waves[None, :, :], shape), jnp.broadcast_to(waves[:, None, :], shape)]
    return jnp.concatenate(both, axis=-1).reshape(1, side * side, features)


def _block(config: SD3TransformerConfig, index: int, make: Layers) -> JointTransformerBlock:
    return JointTransformerBlock(
        config.inner_dim,
        config.num_attention_heads,
        train_tokens=config.train_tokens,
        dual=index in config.dual_attention_layers,
        context_pre_only=index == config.num_layers - 1,
        qk_norm=config.qk_norm is not None,
        make=make,
    )


def _unpatched(tokens: Tokens, config: SD3TransformerConfig, grid: tuple[int, int]) -> Mapped:
    (rows, columns), side = config.patches(grid), config.patch_size
    cells = tokens.reshape(len(tokens), rows, columns, side, side, config.channels_out)
    return cells.transpose(0, 1, 3, 2, 4, 5).reshape(len(tokens), *grid, config.channels_out)
