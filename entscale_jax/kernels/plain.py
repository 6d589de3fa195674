"""Attention by plain products, all logits at once or a block of query rows at a time, with what its rows measure.

Letters are those of `entscale_jax.attention`. Heads are brought before tokens first: each is then one matrix product.
The softmax divides after the product with the values, which is a pass less over the logits.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_BLOCK_LOGITS = 2**18
"""At most so many logits of a head are held at once by blocks (1 MiB in float32, that stays in a CPU's cache), ..."""
_BLOCK_ROWS = 256
"""... unless that is fewer rows than these. Each block reads all keys and values, so narrow ones cost time."""


class Statistics(NamedTuple):
    """What is measured of attention rows, in nats."""

    entropy: Float[Array, "B N T"]
    """`-sum_j A_ij log A_ij`: the paper's Ent(A_i), Eq. 2."""
    logit_gap: Float[Array, "B N T"]
    """The row's largest logit less the log of the mean of `exp(logit)` over its other tokens: what the largest holds
    against them, since its share is `1 / (1 + (S - 1) exp(-gap))`. 0 where attention is uniform."""


def attend(query: Array, key: Array, value: Array, *, scale: float, blocks: bool) -> Float[Array, "B T N H"]:
    """The output of attention."""

    def rows(query: Array, key: Array, value: Array) -> Array:
        return _output(_exponentials(query, key, scale)[1], value)

    return _tokens_first(_over_heads(rows, query, key, value, blocks=blocks))


def attend_and_measure(
    query: Array, key: Array, value: Array, *, scale: float, blocks: bool
) -> tuple[Float[Array, "B T N H"], Statistics]:
    """The output of attention and the statistics of its rows, in one pass."""

    def rows(query: Array, key: Array, value: Array) -> tuple[Array, Statistics]:
        shifted, exponentials = _exponentials(query, key, scale)
        return _output(exponentials, value), _statistics(shifted, exponentials)

    out, statistics = _over_heads(rows, query, key, value, blocks=blocks)
    return _tokens_first(out), statistics


def measure(query: Array, key: Array, *, scale: float, blocks: bool) -> Statistics:
    """The statistics alone."""

    def rows(query: Array, key: Array) -> Statistics:
        return _statistics(*_exponentials(query, key, scale))

    return _over_heads(rows, query, key, blocks=blocks)


def accumulator(dtype: jnp.dtype | type) -> jnp.dtype:
    """The dtype of logits, softmax and latents where weights are of `dtype`: float32, and float64 for float64."""
    return jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)


def _exponentials(query: Array, key: Array, scale: float) -> tuple[Float[Array, "*X t S"], Float[Array, "*X t S"]]:
    """Logits less the largest of their row, and their exponentials."""
    wide = accumulator(query.dtype)
    if query.dtype == wide:  # of a narrow dtype, scaled queries would be rounded once more
        query, scale = query * scale, 1.0
    logits = jnp.einsum("...tH,...SH->...tS", query, key, preferred_element_type=wide)
    logits = logits if scale == 1.0 else logits * scale
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted, jnp.exp(shifted)


def _output(exponentials: Float[Array, "*X t S"], value: Array) -> Float[Array, "*X t H"]:
    mixed = jnp.einsum(
        "...tS,...SH->...tH", exponentials.astype(value.dtype), value, preferred_element_type=exponentials.dtype
    )
    return (mixed / exponentials.sum(axis=-1, keepdims=True)).astype(value.dtype)


def _statistics(shifted: Float[Array, "*X t S"], exponentials: Float[Array, "*X t S"]) -> Statistics:
    normaliser = exponentials.sum(axis=-1)
    entropy = jnp.log(normaliser) - (exponentials * shifted).sum(axis=-1) / normaliser
    largest = shifted == 0
    # Summed without the largest, not by subtraction: of a sharp row nothing would be left. Of equal largest ones all
    # but one are others. Both floors keep the logarithm finite.
    others = jnp.where(largest, 0.0, exponentials).sum(axis=-1) + (largest.astype(shifted.dtype).sum(axis=-1) - 1)
    others = jnp.maximum(others, jnp.finfo(shifted.dtype).tiny)
    return Statistics(entropy, math.log(max(shifted.shape[-1] - 1, 1)) - jnp.log(others))


def _over_heads(function: Callable[..., Any], query: Array, *rest: Array, blocks: bool) -> Any:
    """`function` of query rows and all keys and values, a head each: [B T N ...] arrays to [B N T ...] ones.

    With `blocks`, one head and one block of its rows at a time, the logits recomputed in the gradient.
    """
    batch, length, heads, _ = query.shape
    arrays = [jnp.moveaxis(array, 2, 1).reshape(-1, array.shape[1], array.shape[3]) for array in (query, *rest)]
    found = _by_blocks(function, *arrays) if blocks else function(*arrays)
    return jax.tree.map(lambda array: array[:, :length].reshape(batch, heads, length, *array.shape[2:]), found)


def _by_blocks(function: Callable[..., Any], query: Float[Array, "X T H"], *rest: Float[Array, "X S H"]) -> Any:
    length = query.shape[1]
    count = -(-length // max(_BLOCK_ROWS, _BLOCK_LOGITS // rest[0].shape[1]))
    rows = -(-length // count)
    # Rows that fill up the last block are computed and cut off: no other row sees them.
    padded = jnp.pad(query, ((0, 0), (0, count * rows - length), (0, 0)))

    @jax.checkpoint
    def one_head(arrays: tuple[Array, ...]) -> Any:
        head, *others = arrays
        if count == 1:
            return function(head, *others)
        found = jax.lax.map(lambda block: function(block, *others), head.reshape(count, rows, -1))
        return jax.tree.map(lambda array: array.reshape(count * rows, *array.shape[2:]), found)

    return jax.lax.map(one_head, (padded, *rest))


def _tokens_first(array: Float[Array, "B N T H"]) -> Float[Array, "B T N H"]:
    return jnp.moveaxis(array, 1, 2)
