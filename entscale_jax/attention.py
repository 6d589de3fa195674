"""Attention with a static scale, and its exact entropy.

Letters are those of `jax.nn`: B batch, T query positions, S key and value positions, N heads, H width of one head.
The paper's N and T, token counts at the size drawn and in training, are the words `tokens` and `train_tokens`.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from .errors import UserError
from .scales import ScaleRule, Scaling

Record = Callable[[str, Float[Array, "B N"], Float[Array, "B N"]], None]
"""Takes a layer's name, its mean entropy and its mean logit gap per image and head, in nats, while tracing."""

IMPLEMENTATIONS = ("xla", "chunked")
_CHUNKED_LOGITS = 2**20
"""Above so many logits in the whole call (4 MiB in float32) they no longer stay in a CPU's cache: see `_choose`."""
_BLOCK_LOGITS = 2**20
"""At most so many logits are held at once by the chunked kernel, unless `_BLOCK_ROWS` asks for more."""
_BLOCK_ROWS = 64
"""At least so many rows a block, which acts above 2^14 keys. Each block reads all keys and values: at 2^16, those of an
autoencoder at 2048x2048 pixels, blocks of 16 rows took a CPU twice the time of blocks of 64 (16 MiB of logits)."""


def dot_product_attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S N H"],
    value: Float[Array, "B S N H"],
    *,
    scale: float,
    implementation: str | None = None,
) -> Float[Array, "B T N H"]:
    """`softmax(scale * query . key) value`, the softmax in float32 or, for float64 inputs, in float64.

    Args:
        query: queries, one row a token.
        key: keys.
        value: values.
        scale: a Python float, so that it is a literal of the compiled program; anything else is a TypeError.
        implementation: `"xla"` forms all logits at once, `"chunked"` a block of them at a time; None chooses.

    Source: Eq. 1 and 2 of the paper; layout and letters of `jax.nn.dot_product_attention`.
    """
    check_scale(scale)
    if _choose(implementation, query, key) == "xla":
        weights = jax.nn.softmax(_logits(query, key, scale), axis=-1)
        return jnp.einsum("BNTS,BSNH->BTNH", weights.astype(value.dtype), value)

    def attend(rows: Float[Array, "t H"], key: Float[Array, "S H"], value: Float[Array, "S H"]):
        weights = jax.nn.softmax(_head_logits(rows, key, scale), axis=-1)
        return weights.astype(value.dtype) @ value

    return _map_blocks(attend, query, key, value)


def attention_entropy(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S N H"],
    *,
    scale: float,
    implementation: str | None = None,
) -> Float[Array, "B N T"]:
    """`-sum_j A_ij log A_ij` of every attention row, in nats, without holding more than a block of rows.

    Computed as `log sum exp(l) - sum A l` with l the logits less their maximum. Source: the paper's Ent(A_i), Eq. 2.
    """
    return attention_statistics(query, key, scale=scale, implementation=implementation)[0]


def attention_statistics(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S N H"],
    *,
    scale: float,
    implementation: str | None = None,
) -> tuple[Float[Array, "B N T"], Float[Array, "B N T"]]:
    """Entropy and logit gap of every attention row, in nats, without holding more than a block of rows.

    The logit gap `g` is the row's largest logit less the log of the mean of `exp(logit)` over its other tokens: what
    the largest holds against them, since its share is `1 / (1 + (S - 1) exp(-g))`. 0 where attention is uniform.
    """
    check_scale(scale)
    if _choose(implementation, query, key) == "xla":
        return _statistics(_logits(query, key, scale))

    def statistics(rows: Float[Array, "t H"], key: Float[Array, "S H"]):
        return jnp.stack(_statistics(_head_logits(rows, key, scale)), axis=-1)

    found = jnp.moveaxis(_map_blocks(statistics, query, key), 1, 2)
    return found[..., 0], found[..., 1]


class EntropyScaledAttention(nnx.Module):
    """Multi-head self-attention whose scale follows its token count; `train_tokens` and `rule` are static.

    Children are named as in diffusers (`to_q`, `to_k`, `to_v`, `to_out.0`), so its weights load unchanged.
    Inputs and outputs are [B T D].
    """

    def __init__(
        self,
        features: int,
        heads: int,
        head_dim: int,
        *,
        train_tokens: int,
        rule: Scaling | ScaleRule | str = ScaleRule.ENTROPY,
        level: int = 0,
        dtype: jnp.dtype | type = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.heads, self.head_dim = heads, head_dim
        self.train_tokens, self.rule, self.level = train_tokens, Scaling.of(rule), level
        self.layer = "attn1"
        self.recorded: int | None = None
        self.to_q, self.to_k, self.to_v, self.to_out = projections(features, features, heads * head_dim, dtype, rngs)

    def scale(self, tokens: int, rule: Scaling | None = None) -> float:
        """The scale at `tokens` tokens, under `rule` or else the module's own."""
        return (rule or self.rule).scale_at(self.level, tokens, self.train_tokens, self.head_dim, self.layer)

    def __call__(
        self, hidden: Float[Array, "B T D"], rule: Scaling | None = None, record: Record | None = None
    ) -> Float[Array, "B T D"]:
        """Attends over all tokens of `hidden`; hands each head's mean entropy and logit gap to `record`.

        Of the batch's first `recorded` pictures only, where that is set.
        """
        query, key, value = (split_heads(to(hidden), self.heads) for to in (self.to_q, self.to_k, self.to_v))
        scale = self.scale(hidden.shape[1], rule)
        if record is not None:
            first = slice(self.recorded)
            entropy, gap = attention_statistics(query[first], key[first], scale=scale)
            record(self.layer, entropy.mean(axis=-1), gap.mean(axis=-1))
        return self.to_out[0](merge_heads(dot_product_attention(query, key, value, scale=scale)))


def projections(
    features: int, context_features: int, inner: int, dtype: jnp.dtype | type, rngs: nnx.Rngs, *, use_bias: bool = False
) -> tuple[nnx.Linear, nnx.Linear, nnx.Linear, nnx.List]:
    """diffusers' `to_q`, `to_k`, `to_v` and `to_out`, whose first element alone has weights (the second is dropout)."""

    def linear(size_in: int, size_out: int, use_bias: bool) -> nnx.Linear:
        return nnx.Linear(size_in, size_out, use_bias=use_bias, dtype=dtype, param_dtype=dtype, rngs=rngs)

    to_q = linear(features, inner, use_bias)
    to_k, to_v = (linear(context_features, inner, use_bias) for _ in range(2))
    return to_q, to_k, to_v, nnx.List([linear(inner, features, True)])


def split_heads(hidden: Float[Array, "B T D"], heads: int) -> Float[Array, "B T N H"]:
    """[B T D] -> [B T N H]."""
    return hidden.reshape(*hidden.shape[:2], heads, -1)


def merge_heads(hidden: Float[Array, "B T N H"]) -> Float[Array, "B T D"]:
    """[B T N H] -> [B T D]."""
    return hidden.reshape(*hidden.shape[:2], -1)


def check_scale(scale: object) -> None:
    """Raises TypeError unless `scale` is a Python float: an array would be an input of the program, no constant."""
    if type(scale) is not float:
        raise TypeError(
            f"scale is {scale!r} of type {type(scale).__name__}: give a Python float, computed before tracing by "
            "attention_scale(...)"
        )


def _choose(implementation: str | None, query: Array, key: Array) -> str:
    if implementation is not None:
        if implementation not in IMPLEMENTATIONS:
            raise UserError(
                f"unknown attention implementation {implementation!r}: use one of {', '.join(IMPLEMENTATIONS)}"
            )
        return implementation
    logits = query.shape[0] * query.shape[1] * query.shape[2] * key.shape[1]
    return "chunked" if logits > _CHUNKED_LOGITS else "xla"


def accumulator(dtype: jnp.dtype | type) -> jnp.dtype:
    """The dtype of logits, softmax and latents where weights are of `dtype`: float32, and float64 for float64."""
    return jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)


def _logits(query: Array, key: Array, scale: float) -> Float[Array, "B N T S"]:
    return scale * jnp.einsum("BTNH,BSNH->BNTS", query, key, preferred_element_type=accumulator(query.dtype))


def _head_logits(rows: Array, key: Array, scale: float) -> Float[Array, "t S"]:
    return scale * jnp.einsum("tH,SH->tS", rows, key, preferred_element_type=accumulator(rows.dtype))


def _statistics(logits: Float[Array, "*rows S"]) -> tuple[Float[Array, "*rows"], Float[Array, "*rows"]]:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    exponentials = jnp.exp(shifted)
    normaliser = exponentials.sum(axis=-1)
    entropy = jnp.log(normaliser) - (exponentials * shifted).sum(axis=-1) / normaliser
    tokens = logits.shape[-1]
    positions = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    largest = positions == jnp.argmax(logits, axis=-1, keepdims=True)
    # Summed without the largest, not by subtraction: of a sharp row nothing would be left. Both floors keep it finite.
    others = jnp.where(largest, 0.0, exponentials).sum(axis=-1)
    others = jnp.maximum(others, jnp.finfo(logits.dtype).tiny)
    return entropy, math.log(max(tokens - 1, 1)) - jnp.log(others)


def _map_blocks(function: Callable[..., Array], query: Array, *rest: Array) -> Float[Array, "B T N X"]:
    """`function` over one head and one block of its query rows at a time, its logits recomputed in the gradient."""
    batch, length, heads, _ = query.shape
    rows = min(length, max(_BLOCK_ROWS, _BLOCK_LOGITS // rest[0].shape[1]))
    blocks = -(-length // rows)
    rows = -(-length // blocks)
    padded = jnp.pad(query, ((0, 0), (0, blocks * rows - length), (0, 0), (0, 0)))

    def by_head(array: Array) -> Array:
        return jnp.moveaxis(array, 2, 1).reshape(batch * heads, array.shape[1], -1)

    @jax.checkpoint
    def one_head(arrays: tuple[Array, ...]) -> Array:
        head, *others = arrays
        if blocks == 1:
            return function(head, *others)
        return jax.lax.map(lambda block: function(block, *others), head.reshape(blocks, rows, -1)).reshape(
            blocks * rows, -1
        )

    out = jax.lax.map(one_head, (by_head(padded), *map(by_head, rest)))
    return jnp.moveaxis(out.reshape(batch, heads, blocks * rows, -1), 1, 2)[:, :length]
