"""Attention of image and text tokens over each other, and the block of SD3 around it.

The paper treats self-attention of a UNet. What follows for joint attention is our reading, not the paper's:

- *Image rows* get `lambda = sqrt(log_T N / d)`, with N the image tokens now and T those of training. Their keys are
  image and text tokens; text keys are as many at every size, and what the rule answers to is what changes with it.
- *Text rows* keep `1 / sqrt(d)`. They read the image as cross-attention reads another sequence, which the paper leaves.
- SD3.5's second attention, `attn2`, is self-attention of image tokens alone: Eq. 7 as it stands.
"""

import math
from enum import Enum
from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from ..attention import Record, attention_statistics, dot_product_attention, merge_heads, projections, split_heads
from ..scales import ScaleRule, Scaling
from .layers import Layers, RMSNorm, standardised
from .time_embedding import Time
from .transformer import GELU, FeedForward, Tokens

TextTokens = Float[Array, "B S D"]
Heads = Float[Array, "B T N H"]
TextHeads = Float[Array, "B S N H"]


class TextRole(Enum):
    """What text tokens do in an attention layer."""

    ABSENT = "absent"
    """Image tokens attend over themselves alone: `attn2`."""
    READ = "read"
    """They are read, and nobody wants what they would read: the last block, diffusers' `context_pre_only`."""
    JOINED = "joined"
    """They attend too."""


class JointAttention(nnx.Module):
    """Attention whose image rows have the scale of the rule and whose text rows have `1 / sqrt(d)`: see the module.

    `train_tokens`, the image tokens of training, and `rule` are static, as in `EntropyScaledAttention`. Where queries
    and keys are normalised (`qk_norm`), a factor on `to_q` would be undone: the scale is that of the attention itself.
    Children are named as in diffusers' `Attention`.
    """

    def __init__(
        self,
        features: int,
        heads: int,
        head_dim: int,
        *,
        train_tokens: int,
        text: TextRole = TextRole.JOINED,
        qk_norm: bool = False,
        rule: Scaling | ScaleRule | str = ScaleRule.ENTROPY,
        make: Layers,
    ):
        self.heads, self.head_dim, self.text = heads, head_dim, text
        self.train_tokens, self.rule, self.level = train_tokens, Scaling.of(rule), 0
        self.layer = "attn"
        self.recorded: int | None = None
        inner = heads * head_dim
        self.to_q, self.to_k, self.to_v, self.to_out = projections(
            features, features, inner, make.dtype, make.rngs, use_bias=True
        )
        self.norm_q, self.norm_k = _norms(head_dim, qk_norm, make)
        if text is not TextRole.ABSENT:
            # Where text is only read, diffusers has add_q_proj and norm_added_q all the same, so files do.
            self.add_q_proj, self.add_k_proj, self.add_v_proj = (make.linear(features, inner) for _ in range(3))
            self.norm_added_q, self.norm_added_k = _norms(head_dim, qk_norm, make)
        if text is TextRole.JOINED:
            self.to_add_out = make.linear(inner, features)

    def scale(self, tokens: int, rule: Scaling | None = None) -> float:
        """The scale of image rows where there are `tokens` image tokens, under `rule` or else the module's own."""
        return (rule or self.rule).scale_at(self.level, tokens, self.train_tokens, self.head_dim, self.layer)

    def __call__(
        self,
        image: Tokens,
        text: TextTokens | None = None,
        rule: Scaling | None = None,
        record: Record | None = None,
    ) -> tuple[Tokens, TextTokens | None]:
        """What image tokens read, and what text tokens do: None where their role is another than `JOINED`.

        `record` gets the mean entropy and logit gap of the image rows, over all keys.
        """
        scale = self.scale(image.shape[1], rule)
        query, key, value = self._image_heads(image)
        text_query = None
        if text is not None:
            text_query, text_key, text_value = self._text_heads(text)
            key, value = _joined(key, text_key), _joined(value, text_value)
        if record is not None:
            first = slice(self.recorded)
            entropy, gap = attention_statistics(query[first], key[first], scale=scale)
            record(self.layer, entropy.mean(axis=-1), gap.mean(axis=-1))
        if text_query is None or self.text is not TextRole.JOINED:
            return self.to_out[0](merge_heads(dot_product_attention(query, key, value, scale=scale))), None
        read, text_read = _attend(query, text_query, key, value, scale, 1.0 / math.sqrt(self.head_dim))
        return self.to_out[0](merge_heads(read)), self.to_add_out(merge_heads(text_read))

    def _image_heads(self, image: Tokens) -> tuple[Heads, Heads, Heads]:
        query, key, value = (split_heads(to(image), self.heads) for to in (self.to_q, self.to_k, self.to_v))
        return _normed(self.norm_q, query), _normed(self.norm_k, key), value

    def _text_heads(self, text: TextTokens) -> tuple[TextHeads, TextHeads, TextHeads]:
        linears = (self.add_q_proj, self.add_k_proj, self.add_v_proj)
        query, key, value = (split_heads(to(text), self.heads) for to in linears)
        return _normed(self.norm_added_q, query), _normed(self.norm_added_k, key), value


def _attend(
    query: Heads, text_query: TextHeads, key: Array, value: Array, scale: float, text_scale: float
) -> tuple[Heads, TextHeads]:
    """Image rows at `scale` and text rows at `text_scale`, over the same keys; one call where both are equal."""
    if scale != text_scale:
        return (
            dot_product_attention(query, key, value, scale=scale),
            dot_product_attention(text_query, key, value, scale=text_scale),
        )
    read = dot_product_attention(_joined(query, text_query), key, value, scale=scale)
    return read[:, : query.shape[1]], read[:, query.shape[1] :]


def _joined(image: Heads, text: TextHeads) -> Array:
    return jnp.concatenate([image, text], axis=1)


def _norms(head_dim: int, qk_norm: bool, make: Layers) -> tuple[RMSNorm, RMSNorm] | tuple[None, None]:
    return (make.rms_norm(head_dim), make.rms_norm(head_dim)) if qk_norm else (None, None)


def _normed(norm: RMSNorm | None, heads: Heads) -> Heads:
    return heads if norm is None else norm(heads)


class Modulation(NamedTuple):
    """How the condition acts on one branch of a block: what it reads, and how much of its result is added."""

    shift: Float[Array, "B 1 D"]
    scale: Float[Array, "B 1 D"]
    gate: Float[Array, "B 1 D"]

    def __call__(self, hidden: Tokens) -> Tokens:
        """The branch's input."""
        return standardised(hidden) * (1 + self.scale) + self.shift


class AdaLayerNormZero(nnx.Module):
    """A modulation for each branch; diffusers' class of that name and, of three branches, `SD35AdaLayerNormZeroX`."""

    def __init__(self, features: int, branches: int, make: Layers):
        self.branches = branches
        self.linear = make.linear(features, 3 * branches * features)

    def __call__(self, condition: Time) -> list[Modulation]:
        """[B D] -> one a branch."""
        parts = jnp.split(self.linear(nnx.silu(condition))[:, None, :], 3 * self.branches, axis=-1)
        return [Modulation(*parts[3 * branch : 3 * branch + 3]) for branch in range(self.branches)]


class AdaLayerNormContinuous(nnx.Module):
    """A layer norm with gain and shift from the condition, which come in this order."""

    def __init__(self, features: int, make: Layers):
        self.linear = make.linear(features, 2 * features)

    def __call__(self, hidden: Tokens, condition: Time) -> Tokens:
        """[B T D] -> [B T D]."""
        scale, shift = jnp.split(self.linear(nnx.silu(condition))[:, None, :], 2, axis=-1)
        return standardised(hidden) * (1 + scale) + shift


class JointTransformerBlock(nnx.Module):
    """Joint attention and a feed-forward for each kind of token, modulated by timestep and pooled text.

    `dual` adds the second attention of SD3.5. The last block, `context_pre_only`, has no use for text after it.
    """

    def __init__(
        self,
        features: int,
        heads: int,
        *,
        train_tokens: int,
        dual: bool,
        context_pre_only: bool,
        qk_norm: bool,
        make: Layers,
    ):
        def attention(text: TextRole) -> JointAttention:
            return JointAttention(
                features, heads, features // heads, train_tokens=train_tokens, text=text, qk_norm=qk_norm, make=make
            )

        self.context_pre_only = context_pre_only
        self.norm1 = AdaLayerNormZero(features, 3 if dual else 2, make)
        self.attn = attention(TextRole.READ if context_pre_only else TextRole.JOINED)
        self.attn2 = attention(TextRole.ABSENT) if dual else None
        self.ff = FeedForward(features, GELU(features, 4 * features, make), make)
        if context_pre_only:
            self.norm1_context = AdaLayerNormContinuous(features, make)
        else:
            self.norm1_context = AdaLayerNormZero(features, 2, make)
            self.ff_context = FeedForward(features, GELU(features, 4 * features, make), make)

    def __call__(
        self, image: Tokens, text: TextTokens, condition: Time, rule: Scaling | None, record: Record | None
    ) -> tuple[Tokens, TextTokens]:
        """Image and text tokens, unchanged in shape; the last block returns the text as it came."""
        joint, feed_forward, *dual = self.norm1(condition)
        text_input, text_branches = self._text_input(text, condition)
        read, text_read = self.attn(joint(image), text_input, rule, record)
        mixed = image + joint.gate * read
        if self.attn2 is not None:
            mixed = mixed + dual[0].gate * self.attn2(dual[0](image), None, rule, record)[0]
        image = mixed + feed_forward.gate * self.ff(feed_forward(mixed))
        if text_read is not None:
            joint, feed_forward = text_branches
            text = text + joint.gate * text_read
            text = text + feed_forward.gate * self.ff_context(feed_forward(text))
        return image, text

    def _text_input(self, text: TextTokens, condition: Time) -> tuple[TextTokens, list[Modulation]]:
        if isinstance(self.norm1_context, AdaLayerNormContinuous):
            return self.norm1_context(text, condition), []
        branches = self.norm1_context(condition)
        return branches[0](text), branches
