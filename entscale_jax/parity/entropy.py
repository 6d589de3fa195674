"""Entropy of every self-attention layer here and in PyTorch, for docs/parity.md.

`python -m entscale_jax.parity.entropy docs/parity.md` writes section `entropy`.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from ..buckets import Bucket
from ..errors import UserError
from ..marks import find_section, replace_section, table
from ..models import AddedConditions
from ..scales import ScaleRule, Scaling
from .compare import CAPTIONS, TIMESTEP, Pair, precision
from .document import GRIDS

SECTION = "entropy"
BOUNDS = {"float64": 1e-9, "float32": 1e-4}
"""Nats, of the mean over rows of one head."""
CONTROL = 1e-3
"""Nats by which the entropy under the other rule has to differ in every layer, where the rules are apart."""
RULES = (Scaling(ScaleRule.ORIGINAL), Scaling(ScaleRule.ENTROPY))

Entropies = dict[str, np.ndarray]
"""Layer -> nats [B, heads], a mean over rows."""


@dataclass(frozen=True)
class Difference:
    """One size and rule of ours against the reference."""

    error: float
    """The largest over layers, captions and heads, in nats."""
    other_rule: float | None
    """Against the reference under the other rule: in the layer that differs least the head that differs most.

    None where the rules are nearly one.
    """


def compared(pair: Pair, bucket: Bucket) -> dict[str, Difference]:
    """Rule -> the difference, for one call of the UNet on unit noise. To be used within `precision`."""
    latents = pair.noise(bucket)
    expected = {
        scaling.label: pair.reference.entropies(latents, TIMESTEP, pair.context, scaling.label) for scaling in RULES
    }
    original, entropy = (scaling.label for scaling in RULES)
    apart, found = pair.rules_differ(bucket, RULES[1]), {}
    for scaling, other in zip(RULES, (entropy, original), strict=True):
        ours = unet_entropies(pair, latents, scaling)
        control = min(_differences(ours, expected[other])) if apart else None
        found[scaling.label] = Difference(max(_differences(ours, expected[scaling.label])), control)
    return found


def unet_entropies(pair: Pair, latents: np.ndarray, scaling: Scaling) -> Entropies:
    """What our UNet records in one call at `TIMESTEP`."""
    graph, weights = nnx.split(pair.pipe.unet)
    states, *added = (pair.context,) if isinstance(pair.context, np.ndarray) else pair.context

    def call(weights: nnx.State, latents: Array, states: Array, added: list[Array]) -> dict[str, Float[Array, "B N"]]:
        recorded = {}

        def record(layer: str, entropy: Float[Array, "B N"], _: Float[Array, "B N"]) -> None:
            recorded[layer] = entropy

        timesteps = jnp.full(len(CAPTIONS), TIMESTEP, latents.dtype)
        conditions = AddedConditions(*added) if added else None
        nnx.merge(graph, weights)(latents, timesteps, states, scaling, record, conditions)
        return recorded

    return jax.tree.map(np.asarray, jax.jit(call)(weights, latents, states, added))


def _differences(ours: Entropies, expected: Entropies) -> list[float]:
    """The largest difference in each layer."""
    if set(ours) != set(expected):
        raise ValueError(f"layers differ: {sorted(ours)} here, {sorted(expected)} in PyTorch")
    for name, values in ours.items():
        if values.shape != expected[name].shape:
            raise ValueError(f"{name}: {values.shape} here, {expected[name].shape} in PyTorch")
    return [float(np.abs(values - expected[name]).max()) for name, values in ours.items()]


def section(model: str = "scenes", grids: Sequence[tuple[int, int]] = GRIDS) -> list[str]:
    """The lines of the section, at the training grid and `grids` (h, w)."""
    measured = {}
    for dtype in BOUNDS:
        with precision(float64=dtype == "float64"):
            pair = Pair(model, float64=dtype == "float64")
            factor = pair.info.latent_factor
            buckets = [Bucket(height * factor, width * factor) for height, width in (pair.info.train_grid, *grids)]
            measured[dtype] = {bucket: compared(pair, bucket) for bucket in buckets}
    rows = [
        (str(bucket), rule, *(_error(measured[dtype][bucket][rule], dtype) for dtype in BOUNDS), _control(one))
        for bucket, found in measured["float64"].items()
        for rule, one in found.items()
    ]
    header = ("size", "rule", *(f"{dtype}, bound {bound:.0e}" for dtype, bound in BOUNDS.items()), "the other rule")
    return table(header, rows)


def _error(found: Difference, dtype: str) -> str:
    return f"{found.error:.1e}{'' if found.error <= BOUNDS[dtype] else ' FAILED'}"


def _control(found: Difference) -> str:
    if found.other_rule is None:
        return ""
    return f"{found.other_rule:.1e}{'' if found.other_rule > CONTROL else ' FAILED'}"


if __name__ == "__main__":
    _parser = argparse.ArgumentParser(description="Compares entropy of attention with PyTorch.")
    _parser.add_argument("document", type=Path, help="Markdown with the marks of section entropy: docs/parity.md")
    _arguments = _parser.parse_args()
    try:
        find_section(_arguments.document, SECTION)
        replace_section(_arguments.document, SECTION, section())
    except UserError as error:
        _parser.exit(2, f"{error}\n")
