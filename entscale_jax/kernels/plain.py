"""Attention by plain products, all logits at once or a block of query rows at a time, with what its rows measure.

Letters are those of `entscale_jax.attention`. Each head is one matrix product; the softmax divides after the product
with the values, which is a pass less over the logits.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_BLOCK_LOGITS = 2**20
"""At most so many logits of a head are held at once by blocks (4 MiB in float32, measured on a CPU), ..."""
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
    # Summed without the largest where subtraction would leave little: there no other is above a half. Few heads are so
    # sharp that a pass over the logits has to be spent on it. The floors keep the logarithm finite.
    sharp = normaliser < 1.5
    others = jax.lax.cond(
        sharp.any(),
        lambda: jnp.where(sharp, jnp.where(exponentials > 0.75, 0.0, exponentials).sum(axis=-1), normaliser - 1.0),
        lambda: normaliser - 1.0,
    )
    others = jnp.maximum(others, jnp.finfo(shifted.dtype).tiny)
    return Statistics(entropy, math.log(max(shifted.shape[-1] - 1, 1)) - jnp.log(others))


def _over_heads(function: Callable[..., Any], query: Array, *rest: Array, blocks: bool) -> Any:
    """`function` of query rows and all keys and values, a head each: [B T N ...] arrays to [B N T ...] ones.

    With `blocks`, one head and one block of its rows at a time, the logits recomputed in the gradient.
    """
    if not blocks:
        batch = query.shape[0]
        return _apart(function(*map(_heads_first, (query, *rest))), batch)
    by_rows = partial(_by_rows, jax.checkpoint(function))
    apply = jax.custom_vjp(partial(_by_slices, by_rows))

    def backward(arrays: tuple[Array, ...], gradient: Any) -> Any:
        return jax.vjp(partial(_by_heads, by_rows), *arrays)[1](gradient)

    apply.defvjp(lambda *arrays: (_by_slices(by_rows, *arrays), arrays), backward)
    return apply(query, *rest)


def _by_slices(function: Callable[..., Any], *arrays: Array) -> Any:
    """One head after another, cut out where it lies: no array is copied whole."""
    batch, _, heads, _ = arrays[0].shape

    def one_head(index: Array) -> Any:
        return function(*(array[index // heads, :, index % heads] for array in arrays))

    return _apart(jax.lax.map(one_head, jnp.arange(batch * heads)), batch)


def _by_heads(function: Callable[..., Any], *arrays: Array) -> Any:
    """The same to take the gradient of: that of a slice is as large as its array, and would be added up once a head."""
    return _apart(jax.lax.map(lambda head: function(*head), tuple(map(_heads_first, arrays))), arrays[0].shape[0])


def _by_rows(function: Callable[..., Any], query: Float[Array, "T H"], *rest: Float[Array, "S H"]) -> Any:
    length = len(query)
    count = -(-length // max(_BLOCK_ROWS, _BLOCK_LOGITS // len(rest[0])))
    if count == 1:
        return function(query, *rest)
    rows = -(-length // count)
    # Rows that fill up the last block are computed and cut off: no other row sees them.
    padded = jnp.pad(query, ((0, count * rows - length), (0, 0))).reshape(count, rows, -1)
    found = jax.lax.map(lambda block: function(block, *rest), padded)
    return jax.tree.map(lambda array: array.reshape(count * rows, *array.shape[2:])[:length], found)


def _heads_first(array: Float[Array, "B T N H"]) -> Float[Array, "X T H"]:
    return jnp.moveaxis(array, 2, 1).reshape(-1, array.shape[1], array.shape[3])


def _apart(tree: Any, batch: int) -> Any:
    """[B * N ...] arrays to [B N ...] ones."""
    return jax.tree.map(lambda array: array.reshape(batch, -1, *array.shape[1:]), tree)


def _tokens_first(array: Float[Array, "B N T H"]) -> Float[Array, "B T N H"]:
    return jnp.moveaxis(array, 1, 2)
