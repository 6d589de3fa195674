"""The transformer inside the UNet: self-attention with the scale of the paper, cross-attention with its own."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from ..attention import (
    EntropyScaledAttention,
    Record,
    dot_product_attention,
    merge_heads,
    projections,
    split_heads,
)
from ..scales import Scaling
from .layers import Images, Layers, activation

Tokens = Float[Array, "B T D"]
Context = Float[Array, "B S C"]


class CrossAttention(nnx.Module):
    """Attention from image tokens to text tokens. Its scale stays `1 / sqrt(d)`, as in the paper."""

    def __init__(self, features: int, context_features: int, heads: int, head_dim: int, make: Layers):
        self.heads, self.head_dim = heads, head_dim
        self.to_q, self.to_k, self.to_v, self.to_out = projections(
            features, context_features, heads * head_dim, make.dtype, make.rngs
        )

    def __call__(self, hidden: Tokens, context: Context) -> Tokens:
        """[B T D] tokens attend over [B S C] context."""
        query = split_heads(self.to_q(hidden), self.heads)
        key, value = (split_heads(to(context), self.heads) for to in (self.to_k, self.to_v))
        out = dot_product_attention(query, key, value, scale=1.0 / math.sqrt(self.head_dim))
        return self.to_out[0](merge_heads(out))


class GEGLU(nnx.Module):
    """`x W_1 * gelu(x W_2)`, both in one projection."""

    def __init__(self, features: int, inner: int, gelu: str, make: Layers):
        self.gelu = gelu
        self.proj = make.linear(features, 2 * inner)

    def __call__(self, hidden: Tokens) -> Float[Array, "B T inner"]:
        """[B T D] -> [B T inner]."""
        value, gate = jnp.split(self.proj(hidden), 2, axis=-1)
        return value * activation(self.gelu)(gate)


class GELU(nnx.Module):
    """`gelu(x W)`, by its tanh approximation."""

    def __init__(self, features: int, inner: int, make: Layers):
        self.proj = make.linear(features, inner)

    def __call__(self, hidden: Tokens) -> Float[Array, "B T inner"]:
        """[B T D] -> [B T inner]."""
        return nnx.gelu(self.proj(hidden), approximate=True)


class Dropout(nnx.Module):
    """Keeps diffusers' numbering of a list in which it stands; it does nothing, as in evaluation mode."""

    def __call__(self, hidden: Tokens) -> Tokens:
        """Unchanged."""
        return hidden


class FeedForward(nnx.Module):
    """A gate or activation of four times the width, and back."""

    def __init__(self, features: int, first: GEGLU | GELU, make: Layers):
        self.net = nnx.List([first, Dropout(), make.linear(4 * features, features)])

    def __call__(self, hidden: Tokens) -> Tokens:
        """[B T D] -> [B T D]."""
        for layer in self.net:
            hidden = layer(hidden)
        return hidden


class BasicTransformerBlock(nnx.Module):
    """Self-attention, cross-attention and a feed-forward, each on a layer norm and added to its input.

    With `cross_only`, as in UNets that enlarge pictures, cross-attention takes the place of self-attention too.
    """

    def __init__(
        self,
        features: int,
        context_features: int,
        heads: int,
        *,
        gelu: str,
        cross_only: bool,
        train_tokens: int,
        level: int,
        make: Layers,
    ):
        head_dim = features // heads
        self.norm1, self.norm2, self.norm3 = (make.layer_norm(features) for _ in range(3))
        self.attn1 = (
            CrossAttention(features, context_features, heads, head_dim, make)
            if cross_only
            else EntropyScaledAttention(
                features, heads, head_dim, train_tokens=train_tokens, level=level, dtype=make.dtype, rngs=make.rngs
            )
        )
        self.attn2 = CrossAttention(features, context_features, heads, head_dim, make)
        self.ff = FeedForward(features, GEGLU(features, 4 * features, gelu, make), make)

    def __call__(self, hidden: Tokens, context: Context, rule: Scaling | None, record: Record | None) -> Tokens:
        """[B T D] -> [B T D]."""
        with jax.named_scope("attn1"):
            hidden = hidden + self._first(self.norm1(hidden), context, rule, record)
        with jax.named_scope("attn2"):
            hidden = hidden + self.attn2(self.norm2(hidden), context)
        with jax.named_scope("ff"):
            return hidden + self.ff(self.norm3(hidden))

    def _first(self, hidden: Tokens, context: Context, rule: Scaling | None, record: Record | None) -> Tokens:
        if isinstance(self.attn1, CrossAttention):
            return self.attn1(hidden, context)
        return self.attn1(hidden, rule, record)


class Transformer2DModel(nnx.Module):
    """Transformer blocks over the cells of a feature map, between a projection in and one out."""

    def __init__(
        self,
        features: int,
        context_features: int,
        heads: int,
        blocks: int,
        *,
        linear: bool,
        groups: int,
        epsilon: float,
        gelu: str,
        cross_only: bool,
        train_tokens: int,
        level: int,
        make: Layers,
    ):
        self.linear = linear
        self.norm = make.group_norm(features, groups, epsilon)
        self.proj_in = _projection(features, linear, make)
        self.transformer_blocks = nnx.List(
            BasicTransformerBlock(
                features,
                context_features,
                heads,
                gelu=gelu,
                cross_only=cross_only,
                train_tokens=train_tokens,
                level=level,
                make=make,
            )
            for _ in range(blocks)
        )
        self.proj_out = _projection(features, linear, make)

    def __call__(self, hidden: Images, context: Context, rule: Scaling | None, record: Record | None) -> Images:
        """[batch height width channels], unchanged in shape."""
        residual, shape = hidden, hidden.shape
        # A 1x1 convolution and a dense layer are one operation here; they differ in their weights' layout.
        tokens = self.proj_in(self.norm(hidden)).reshape(shape[0], shape[1] * shape[2], shape[3])
        for block in self.transformer_blocks:
            tokens = block(tokens, context, rule, record)
        return self.proj_out(tokens.reshape(shape)) + residual


def _projection(features: int, linear: bool, make: Layers) -> nnx.Linear | nnx.Conv:
    return make.linear(features, features) if linear else make.conv(features, features, 1, padding=0)
