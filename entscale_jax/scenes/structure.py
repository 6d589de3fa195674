"""How structured self-attention is while a model trains: what the log says, and a penalty where it is too flat."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from ..attention import EntropyScaledAttention, Record

Readings = dict[str, tuple[Float[Array, ""], Float[Array, ""]]]
"""Layer -> mean entropy and mean logit gap over pictures, heads and rows, in nats."""


def recorder() -> tuple[Record, Readings]:
    """A `record` for a model's call, and what it fills."""
    readings: Readings = {}

    def record(layer: str, entropy: Float[Array, "B N"], gap: Float[Array, "B N"]) -> None:
        readings[layer] = entropy.mean(), gap.mean()

    return record, readings


def flatness(readings: Readings, layers: dict[str, EntropyScaledAttention], below: float) -> Float[Array, ""]:
    """Mean over layers of `relu(entropy - (log T - below))`, in nats."""
    excess = [
        jnp.maximum(readings[name][0] - (math.log(layer.train_tokens) - below), 0.0) for name, layer in layers.items()
    ]
    return jnp.stack(excess).mean()
