"""Small models of someone else's making, in NNX and linen, and their attention computed by hand in NumPy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx

FEATURES, HEADS = 12, 3
HEAD_DIM = FEATURES // HEADS
TRAIN_TOKENS = 64


def entropy_scale(tokens, train_tokens, head_dim):
    """lambda, Eq. 7 of the paper."""
    return math.sqrt(math.log(tokens) / math.log(train_tokens) / head_dim)


def by_hand(hidden, context, query, key, value, out, scale, norm=lambda q: q):
    """Multi-head attention in float64: hidden [B T D], weights (in, out)."""
    heads = [
        (source.astype(np.float64) @ weight).reshape(*source.shape[:2], HEADS, HEAD_DIM)
        for source, weight in ((hidden, query), (context, key), (context, value))
    ]
    logits = scale * np.einsum("bthd,bshd->bhts", norm(heads[0]), heads[1])
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("bhts,bshd->bthd", weights, heads[2]).reshape(hidden.shape) @ out


def tokens(count, seed=0, batch=2):
    """[B T D], large enough for attention that is far from uniform."""
    return (2 * np.random.default_rng(seed).standard_normal((batch, count, FEATURES))).astype(np.float32)


def attend(query, key, value, scale):
    """[B T N H] attention in JAX."""
    weights = jax.nn.softmax(scale * jnp.einsum("...thd,...shd->...hts", query, key), axis=-1)
    return jnp.einsum("...hts,...shd->...thd", weights, value)


class TheirAttention(nnx.Module):
    """Self-attention without a context, cross-attention with one; its scale is its own."""

    def __init__(self, rngs):
        self.num_heads, self.head_dim = HEADS, HEAD_DIM
        self.to_q, self.to_k, self.to_v, self.to_out = (
            nnx.Linear(FEATURES, FEATURES, use_bias=False, rngs=rngs) for _ in range(4)
        )

    def __call__(self, hidden, context=None):
        context = hidden if context is None else context
        query, key, value = (
            to(source).reshape(*source.shape[:-1], HEADS, HEAD_DIM)
            for to, source in ((self.to_q, hidden), (self.to_k, context), (self.to_v, context))
        )
        return self.to_out(attend(query, key, value, HEAD_DIM**-0.5).reshape(hidden.shape))

    def weights(self):
        """Four matrices, in float64."""
        return [np.asarray(to.kernel[...], np.float64) for to in (self.to_q, self.to_k, self.to_v, self.to_out)]


class TakesScale(TheirAttention):
    """An attention whose call takes the scale."""

    def __call__(self, hidden, *, scale=HEAD_DIM**-0.5):
        query, key, value = (
            to(hidden).reshape(*hidden.shape[:-1], HEADS, HEAD_DIM) for to in (self.to_q, self.to_k, self.to_v)
        )
        return self.to_out(attend(query, key, value, scale).reshape(hidden.shape))


class RMSNormed(TheirAttention):
    """An attention that normalises its queries, so that a factor on `to_q` is lost."""

    def __init__(self, rngs):
        super().__init__(rngs)
        self.norm_q = nnx.RMSNorm(HEAD_DIM, rngs=rngs)

    def __call__(self, hidden):
        query, key, value = (
            to(hidden).reshape(*hidden.shape[:-1], HEADS, HEAD_DIM) for to in (self.to_q, self.to_k, self.to_v)
        )
        return self.to_out(attend(self.norm_q(query), key, value, HEAD_DIM**-0.5).reshape(hidden.shape))


class Block(nnx.Module):
    """One self-attention and one cross-attention, as in a UNet."""

    def __init__(self, rngs):
        self.attn1, self.attn2 = TheirAttention(rngs), TheirAttention(rngs)

    def __call__(self, hidden, context):
        hidden = hidden + self.attn1(hidden)
        return hidden + self.attn2(hidden, context)

    def by_hand(self, hidden, context, scale):
        """In float64."""
        hidden = hidden + by_hand(hidden, hidden, *self.attn1.weights(), scale)
        return hidden + by_hand(hidden, context, *self.attn2.weights(), HEAD_DIM**-0.5)


class LinenAttention(linen.Module):
    """The same in linen, as diffusers' FlaxAttention does it."""

    heads: int = HEADS
    dim_head: int = HEAD_DIM

    def setup(self):
        self.to_q, self.to_k, self.to_v, self.to_out = (linen.Dense(FEATURES, use_bias=False) for _ in range(4))

    def __call__(self, hidden, context=None):
        context = hidden if context is None else context
        query, key, value = (
            to(source).reshape(*source.shape[:-1], HEADS, HEAD_DIM)
            for to, source in ((self.to_q, hidden), (self.to_k, context), (self.to_v, context))
        )
        return self.to_out(attend(query, key, value, HEAD_DIM**-0.5).reshape(hidden.shape))


class LinenBlock(linen.Module):
    """One self-attention and one cross-attention."""

    def setup(self):
        self.attn1, self.attn2 = LinenAttention(), LinenAttention()

    def __call__(self, hidden, context):
        hidden = hidden + self.attn1(hidden)
        return hidden + self.attn2(hidden, context)

    def only_self(self, hidden):
        """A second method that `apply` may name."""
        return self.attn1(hidden)


def linen_by_hand(params, hidden, context, scale):
    """A `LinenBlock` in float64."""

    def weights(name):
        return [np.asarray(params[name][to]["kernel"], np.float64) for to in ("to_q", "to_k", "to_v", "to_out")]

    hidden = hidden + by_hand(hidden, hidden, *weights("attn1"), scale)
    return hidden + by_hand(hidden, context, *weights("attn2"), HEAD_DIM**-0.5)


def relative(got, expected):
    """The largest difference over the largest value expected."""
    return float(np.abs(np.asarray(got) - expected).max() / np.abs(expected).max())
