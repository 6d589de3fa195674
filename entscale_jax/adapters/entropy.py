"""Exact entropy of self-attention inside adapted models of JAX: which arrays its logits are made of.

Measured is `softmax(lambda q k)` of the queries and keys that a call computes, in float32 or wider, mean over rows.
"""

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ..attention import accumulator, attention_entropy
from ..errors import UserError
from .layers import QUERIES, QUERY_NORMS, Modules, Reach, children, shown
from .report import AdaptedLayer

_KEYS: dict[str, str] = dict(zip(QUERIES, ("to_k", "key", "k_proj", "k"), strict=True))
_KEY_NORMS: dict[str, str] = dict(
    zip(QUERY_NORMS, ("norm_k", "k_norm", "key_norm", "key_ln", "norm_key", "ln_k"), strict=True)
)
_CLOSED = -1e9
"""A logit whose probability is 0 beside any other's, and whose share of the entropy is then exactly 0."""


def measure_entropy(model: Any) -> AbstractContextManager[dict[str, Any]]:
    """While it is entered, an adapted model or pipeline of PyTorch also measures: layer -> [calls, batch, heads] nats.

    The dict is filled when the block ends, with tensors in float32, or float64 for a model of that. Outputs are the
    same to the bit. With guidance a pipeline's batch is what its UNet gets, pictures without a prompt first.

    Raises UserError for a model that is not adapted, is compiled, or is of JAX, where `adapt(measure_entropy=True)` and
    `report.entropy` do this.
    """
    modules = {(kind.__module__.split(".")[0], kind.__name__) for kind in type(model).__mro__}
    if not modules & {("torch", "Module"), ("diffusers", "DiffusionPipeline")}:
        raise UserError(
            f"{type(model).__name__} is not of PyTorch: in JAX, adapt(model, measure_entropy=True) measures, and "
            "report.entropy(intermediates) reads"
        )
    from .diffusers_torch import measure

    return measure(model)


def logits_of(found: Modules, path: str, reach: Reach, key: str | None) -> tuple[str, str]:
    """The children of the attention at `path` whose outputs are its queries and keys, the last steps before logits.

    Raises UserError where they can't be known.
    """
    names = children(found, path)
    query = reach.child or next((name for name in (*QUERY_NORMS, *QUERIES) if name in names), None)
    norm = next((name for name in _KEY_NORMS.values() if name in names), None)
    found_key = key or _KEY_NORMS.get(query or "") or norm or _KEYS.get(query or "")
    if query is None or found_key not in names or (key is None and norm and query in QUERIES):
        raise UserError(
            f"the entropy of {shown(path)} can't be measured: which child computes its keys last can't be known; "
            f"name it by key=, one of {', '.join(sorted(names)) or 'none'}"
        )
    return query, found_key


class MeasuredCall:
    """One call of an attention: takes its queries and keys as they come, and then has its mean entropy."""

    def __init__(self, layer: AdaptedLayer, hidden: Any, scale: float | None):
        self.layer, self.batched, self.scale = layer, hidden.ndim == 3, scale
        """`scale` None stands for 1/sqrt(d): the multiplier is then in the queries."""
        self.arrays: dict[str, Any] = {}
        self.entropy: Float[Array, "B N"] | None = None

    def note(self, role: str, array: Any) -> bool:
        """Whether this array, `query` or `key`, was the last that the entropy wanted."""
        self.arrays[role] = array
        if self.entropy is not None or len(self.arrays) < 2:
            return False
        query, key = (_split(self.arrays[role], self.layer, self.batched) for role in ("query", "key"))
        scale = 1.0 / math.sqrt(query.shape[-1]) if self.scale is None else self.scale
        self.entropy = mean_entropy(query, key, scale=scale)
        return True

    def check(self) -> None:
        """Raises UserError where the call computed none."""
        if self.entropy is None:
            raise UserError(
                f"the entropy of {shown(self.layer.path)} was not measured in this call, which computes no "
                f"{' and '.join({'query', 'key'} - set(self.arrays))} by the child of that name; name it by "
                "query= and key="
            )


def mean_entropy(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S N H"],
    *,
    scale: float,
    mask: Bool[Array, "B S"] | None = None,
) -> Float[Array, "B N"]:
    """Nats, mean over all rows, in blocks of them; keys where `mask` is false take no part."""
    if mask is not None:
        # As one more column of queries and keys, whose product is 0 for keys that are read.
        wide = accumulator(query.dtype)
        bias = jnp.where(mask, 0.0, _CLOSED).astype(wide)[:, :, None, None]
        query = jnp.concatenate([query.astype(wide), jnp.ones_like(query[..., :1], wide)], axis=-1)
        key = jnp.concatenate([key.astype(wide), jnp.broadcast_to(bias, (*key.shape[:3], 1))], axis=-1)
    return attention_entropy(query, key, scale=scale).mean(axis=-1)


def check_unmasked(layer: AdaptedLayer, given: Mapping[str, Any]) -> None:
    """Raises UserError for a call with a mask, of which only the user's code knows what it does."""
    names = ("mask", "attention_mask", "attn_mask", "bias", "attention_bias")
    if masks := [name for name in names if given.get(name) is not None]:
        raise UserError(
            f"the entropy of {shown(layer.path)} can't be measured where it is given {', '.join(masks)}: what that "
            "masks can't be known; call it without"
        )


def _split(array: Any, layer: AdaptedLayer, batched: bool) -> Float[Array, "B T N H"]:
    """[B T D], [T D], or either with heads split already."""
    array = array if batched else array[None]
    if array.ndim == 4:
        return array
    if layer.heads is None:
        raise UserError(
            f"the entropy of {shown(layer.path)} can't be measured: its module has no heads, num_heads or n_heads, "
            "by which its queries are split"
        )
    return array.reshape(*array.shape[:2], layer.heads, -1)
