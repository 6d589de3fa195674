"""The transformer of SD3 and SD3.5: text and picture attend as one sequence; only the picture's queries are scaled."""

import math
from typing import cast

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from ..attention import accumulator, dot_product_attention, merge_heads, split_heads
from ..scales import Scaling
from .layers import Images, Layers, Mapped
from .sd3_config import SD3TransformerConfig
from .time_embedding import TimestepEmbedding, timestep_embedding
from .transformer import Dropout

Tokens = Float[Array, "B T D"]
Text = Float[Array, "B S D"]
Condition = Float[Array, "B D"]
Heads = Float[Array, "B T N H"]
_EPSILON = 1e-6
_TIME_FEATURES = 256


class RMSNorm(nnx.RMSNorm):
    """Flax's, its mean square in float32 or wider."""

    def __call__(self, hidden: Heads) -> Heads:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Each row of [B T N H] over its head."""
        assert self.scale is not None
        wide = hidden.astype(accumulator(hidden.dtype))
        normal = wide * jax.lax.rsqrt((wide**2).mean(axis=-1, keepdims=True) + self.epsilon)
        return (normal * self.scale[...].astype(wide.dtype).reshape(1, 1, 1, -1)).astype(hidden.dtype)


class JointAttention(nnx.Module):
    """Attention of picture and text as one sequence, or with `joint=False` of the picture alone.

    **Our reading.** The paper scales self-attention of a UNet, where queries and keys are the picture's. Here its rule
    holds for the picture's queries, over all keys: N is the picture's tokens now and T in training, from patch grids,
    since these change with the size and the text's do not. The text's queries keep `1 / sqrt(d)`.
    """

    def __init__(self, config: SD3TransformerConfig, *, joint: bool, text_out: bool, make: Layers):
        features = config.features
        self.heads, self.head_dim = config.num_attention_heads, config.attention_head_dim
        self.train_tokens, self.rule, self.level = config.train_tokens[0], Scaling(), 0
        self.layer, self.joint = "attn", joint
        self.to_q, self.to_k, self.to_v = (make.linear(features, features) for _ in range(3))
        self.to_out = nnx.List([make.linear(features, features)])
        if joint:
            self.add_q_proj, self.add_k_proj, self.add_v_proj = (make.linear(features, features) for _ in range(3))
        if text_out:
            self.to_add_out = make.linear(features, features)
        if config.qk_norm is not None:
            self.norm_q, self.norm_k = (_rms_norm(self.head_dim, make) for _ in range(2))
            if joint:
                self.norm_added_q, self.norm_added_k = (_rms_norm(self.head_dim, make) for _ in range(2))

    def scale(self, tokens: int, rule: Scaling | None = None) -> float:
        """The scale of the picture's queries at `tokens` tokens, under `rule` or else the module's own."""
        return (rule or self.rule).scale_at(self.level, tokens, self.train_tokens, self.head_dim)

    def __call__(self, hidden: Tokens, rule: Scaling | None) -> Tokens:
        """The picture [B T D] over itself."""
        query, key, value = self._picture(hidden)
        mixed = dot_product_attention(query, key, value, scale=self.scale(hidden.shape[1], rule))
        return self.to_out[0](merge_heads(mixed))

    def with_text(self, hidden: Tokens, text: Text, rule: Scaling | None) -> tuple[Tokens, Text | None]:
        """The picture [B T D] and the text [B S D], each over both; of the last block no text."""
        query, key, value = self._picture(hidden)
        text_query, text_key, text_value = self._text(text)
        keys, values = jnp.concatenate([key, text_key], axis=1), jnp.concatenate([value, text_value], axis=1)
        mixed = dot_product_attention(query, keys, values, scale=self.scale(hidden.shape[1], rule))
        picture = self.to_out[0](merge_heads(mixed))
        if not hasattr(self, "to_add_out"):
            return picture, None
        mixed = dot_product_attention(text_query, keys, values, scale=1.0 / math.sqrt(self.head_dim))
        return picture, self.to_add_out(merge_heads(mixed))

    def _picture(self, hidden: Tokens) -> tuple[Heads, Heads, Heads]:
        query, key, value = (split_heads(to(hidden), self.heads) for to in (self.to_q, self.to_k, self.to_v))
        if hasattr(self, "norm_q"):
            query, key = self.norm_q(query), self.norm_k(key)
        return query, key, value

    def _text(self, text: Text) -> tuple[Heads, Heads, Heads]:
        projections = (self.add_q_proj, self.add_k_proj, self.add_v_proj)
        query, key, value = (split_heads(to(text), self.heads) for to in projections)
        if hasattr(self, "norm_added_q"):
            query, key = self.norm_added_q(query), self.norm_added_k(key)
        return query, key, value


class Modulation(nnx.Module):
    """So many numbers a feature from the condition: shifts, scales and gates of a block (diffusers' AdaLayerNorm)."""

    def __init__(self, features: int, count: int, make: Layers):
        self.count = count
        self.linear = make.linear(features, count * features)

    def __call__(self, condition: Condition) -> list[Float[Array, "B 1 D"]]:
        """`count` arrays, to be multiplied with tokens."""
        return jnp.split(self.linear(nnx.silu(condition))[:, None, :], self.count, axis=-1)


class FeedForward(nnx.Module):
    """Four times the width and back, with the tanh GELU."""

    def __init__(self, features: int, make: Layers):
        self.net = nnx.List([_Projection(features, 4 * features, make), Dropout(), make.linear(4 * features, features)])

    def __call__(self, hidden: Tokens) -> Tokens:
        """[B T D] -> [B T D]."""
        return self.net[2](self.net[0](hidden))


class _Projection(nnx.Module):
    def __init__(self, size_in: int, size_out: int, make: Layers):
        self.proj = make.linear(size_in, size_out)

    def __call__(self, hidden: Tokens) -> Float[Array, "B T inner"]:
        return jax.nn.gelu(self.proj(hidden), approximate=True)


class JointTransformerBlock(nnx.Module):
    """Joint attention, with `dual` one of the picture alone beside it, and a feed-forward for picture and text each."""

    def __init__(self, config: SD3TransformerConfig, *, dual: bool, last: bool, make: Layers):
        features = config.features
        self.norm1 = Modulation(features, 9 if dual else 6, make)
        self.norm1_context = Modulation(features, 2 if last else 6, make)
        self.attn = JointAttention(config, joint=True, text_out=not last, make=make)
        if dual:
            self.attn2 = JointAttention(config, joint=False, text_out=False, make=make)
        self.ff = FeedForward(features, make)
        if not last:
            self.ff_context = FeedForward(features, make)

    def __call__(
        self, hidden: Tokens, text: Text, condition: Condition, rule: Scaling | None
    ) -> tuple[Tokens, Text | None]:
        """The picture [B T D] and the text [B S D]; of the last block no text."""
        shift, scale, gate, shift_ff, scale_ff, gate_ff, *dual = self.norm1(condition)
        normal = _layer_norm(hidden)
        of_text = self.norm1_context(condition)
        # The last block's two numbers stand in the other order: scale, then shift.
        text_shift, text_scale = of_text[:2] if hasattr(self, "ff_context") else of_text[::-1]
        seen = _modulated(_layer_norm(text), text_shift, text_scale)
        mixed, mixed_text = self.attn.with_text(_modulated(normal, shift, scale), seen, rule)
        hidden = hidden + gate * mixed
        if dual:
            shift2, scale2, gate2 = dual
            hidden = hidden + gate2 * self.attn2(_modulated(normal, shift2, scale2), rule)
        hidden = hidden + gate_ff * self.ff(_modulated(_layer_norm(hidden), shift_ff, scale_ff))
        if mixed_text is None:
            return hidden, None
        _, _, text_gate, text_shift_ff, text_scale_ff, text_gate_ff = of_text
        text = text + text_gate * mixed_text
        return hidden, text + text_gate_ff * self.ff_context(
            _modulated(_layer_norm(text), text_shift_ff, text_scale_ff)
        )


class PatchEmbed(nnx.Module):
    """Patches to tokens, with positions from the centre of a table that comes with the weights."""

    def __init__(self, config: SD3TransformerConfig, make: Layers):
        self.config = config
        size, most = config.patch_size, config.pos_embed_max_size
        self.proj = nnx.Conv(
            config.in_channels,
            config.features,
            (size, size),
            strides=size,
            padding="VALID",
            dtype=make.dtype,
            param_dtype=make.dtype,
            rngs=make.rngs,
        )
        self.pos_embed = nnx.Param(jnp.zeros((1, most**2, config.features), make.dtype))

    def __call__(self, latents: Images) -> Tokens:
        """[batch h w c] -> [B T D]."""
        height, width = self.config.patches((latents.shape[1], latents.shape[2]))
        most = self.config.pos_embed_max_size
        top, left = (most - height) // 2, (most - width) // 2
        table = self.pos_embed[...].reshape(1, most, most, -1)[:, top : top + height, left : left + width]
        return (self.proj(latents) + jnp.broadcast_to(table, (len(latents), *table.shape[1:]))).reshape(
            len(latents), height * width, -1
        )


class TimeTextEmbedding(nnx.Module):
    """The condition: sinusoids of the timestep and the pooled text, each through two dense layers, added."""

    def __init__(self, config: SD3TransformerConfig, make: Layers):
        self.timestep_embedder = TimestepEmbedding(_TIME_FEATURES, config.features, make)
        self.text_embedder = TimestepEmbedding(config.pooled_projection_dim, config.features, make)

    def __call__(self, timesteps: Float[Array, "B"], pooled: Float[Array, "B P"]) -> Condition:
        """[B] and [B P] -> [B D]."""
        waves = timestep_embedding(timesteps, _TIME_FEATURES, True, 0).astype(pooled.dtype)
        return self.timestep_embedder(waves) + self.text_embedder(pooled)


class SD3Transformer2DModel(nnx.Module):
    """Predicts the flow from noisy latents, a timestep, text states and pooled text. Channels last.

    Source: diffusers' class of this name, whose names of parameters it has.
    """

    def __init__(self, config: SD3TransformerConfig, *, rngs: nnx.Rngs, dtype: jnp.dtype | type = jnp.float32):
        make, last = Layers(rngs, dtype), config.num_layers - 1
        self.config = config
        self.pos_embed = PatchEmbed(config, make)
        self.time_text_embed = TimeTextEmbedding(config, make)
        self.context_embedder = make.linear(config.joint_attention_dim, config.features)
        self.transformer_blocks = nnx.List(
            JointTransformerBlock(config, dual=index in config.dual_attention_layers, last=index == last, make=make)
            for index in range(config.num_layers)
        )
        self.norm_out = Modulation(config.features, 2, make)
        self.proj_out = make.linear(config.features, config.patch_size**2 * config.out_channels)
        for name, layer in self.attention_layers().items():
            layer.layer = name

    def attention_layers(self) -> dict[str, JointAttention]:
        """Every attention whose picture's queries are scaled, by its path."""
        modules = nnx.iter_modules(self)
        return {"/".join(map(str, path)): module for path, module in modules if isinstance(module, JointAttention)}

    def __call__(
        self,
        latents: Images,
        timesteps: Float[Array, "batch"],
        context: Float[Array, "batch S C"],
        pooled: Float[Array, "batch P"],
        rule: Scaling | None = None,
    ) -> Mapped:
        """The model's prediction.

        Args:
            latents: noisy latents, [batch h w c], of a grid that patches divide.
            timesteps: one a picture, from 0 to 1000.
            context: text states.
            pooled: pooled text.
            rule: the scale rule, static; None takes each layer's own (`entropy`).

        Raises UserError for a grid that patches don't divide, or larger than the table of positions.
        """
        condition = self.time_text_embed(timesteps, pooled)
        hidden, text = self.pos_embed(latents), self.context_embedder(context)
        for block in self.transformer_blocks:
            # Only the last gives no text.
            hidden, text = block(hidden, cast(Array, text), condition, rule)
        scale, shift = self.norm_out(condition)
        hidden = self.proj_out(_modulated(_layer_norm(hidden), shift, scale))
        return self._unpatched(hidden, self.config.patches((latents.shape[1], latents.shape[2])))

    def _unpatched(self, hidden: Tokens, patches: tuple[int, int]) -> Mapped:
        (height, width), size = patches, self.config.patch_size
        cells = hidden.reshape(len(hidden), height, width, size, size, -1).transpose(0, 1, 3, 2, 4, 5)
        return cells.reshape(len(hidden), height * size, width * size, -1)


def _rms_norm(features: int, make: Layers) -> RMSNorm:
    return RMSNorm(features, epsilon=_EPSILON, dtype=make.dtype, param_dtype=make.dtype, rngs=make.rngs)


def _layer_norm(hidden: Tokens) -> Tokens:
    """Without weights, in float32 or wider."""
    wide = hidden.astype(accumulator(hidden.dtype))
    centred = wide - wide.mean(axis=-1, keepdims=True)
    return (centred * jax.lax.rsqrt((centred**2).mean(axis=-1, keepdims=True) + _EPSILON)).astype(hidden.dtype)


def _modulated(hidden: Tokens, shift: Float[Array, "B 1 D"], scale: Float[Array, "B 1 D"]) -> Tokens:
    return hidden * (1 + scale) + shift
