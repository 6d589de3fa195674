"""Whether logits are Gaussian enough for Eq. 5, on which rule `calibrated` stands: its entropy against the measured.

`python -m entscale_jax.scenes.gaussian docs/method.md` writes section `gaussian`.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from ..attention import EntropyScaledAttention, Record, attention_entropy, split_heads
from ..marks import table
from ..pipeline import TextToImage
from ..scales import Scaling
from .captions import balanced_captions
from .pictures import GUIDANCE, ORIGINAL
from .section import write_section

MULTIPLIERS = (0.5, 0.7, 1.0, 1.4, 2.0)
_COUNT, _STEPS = 16, 20
_SEED = 1_000_003
"""Of captions and noise, which no other measurement has."""

Means = Mapping[str, tuple[float, float]]
"""Layer -> mean of log N - H and of sigma^2 / 2, over rows, heads, steps and images, in nats."""


class Probe(nnx.Module):
    """Self-attention that attends as it did, and records what Eq. 5 says beside what is, at a multiple of its scale."""

    def __init__(self, inner: EntropyScaledAttention, multiplier: float):
        self.inner, self.multiplier = inner, multiplier

    def __call__(
        self, hidden: Float[Array, "B T D"], rule: Scaling | None = None, record: Record | None = None
    ) -> Float[Array, "B T D"]:
        """As `EntropyScaledAttention`; `record` gets means of log N - H and of sigma^2 / 2."""
        if record is not None:
            inner = self.inner
            query, key = (split_heads(to(hidden), inner.heads) for to in (inner.to_q, inner.to_k))
            scale = self.multiplier * inner.scale(hidden.shape[1], rule)
            below = math.log(hidden.shape[1]) - attention_entropy(query, key, scale=scale)
            half = logit_variance(query, key, scale=scale) / 2
            record(inner.layer, below.mean(axis=-1), half.mean(axis=-1))
        return self.inner(hidden, rule)


def logit_variance(
    query: Float[Array, "B T N H"], key: Float[Array, "B S N H"], *, scale: float
) -> Float[Array, "B N T"]:
    """`sigma_i^2 = lambda^2 Q_i Sigma_K Q_i^T`, the variance of each row's logits. Source: Eq. 5 of the paper."""
    centred = key - key.mean(axis=1, keepdims=True)
    covariance = jnp.einsum("BSNH,BSNK->BNHK", centred, centred) / key.shape[1]
    return scale**2 * jnp.einsum("BTNH,BNHK,BTNK->BNT", query, covariance, query)


def measure(pipe: TextToImage, multiplier: float = 1.0, size: tuple[int, int] | None = None, *, count: int) -> Means:
    """Eq. 5 beside what is, of logits at `multiplier` times their scale, in pictures drawn under rule `original`.

    `size` is (height, width) in pixels, the training size if None. Drawing itself is not touched by the multiplier.
    """
    unet = nnx.clone(pipe.unet)
    for _, module in list(nnx.iter_modules(unet)):
        for name, child in list(vars(module).items()):
            if isinstance(child, EntropyScaledAttention):
                setattr(module, name, Probe(child, multiplier))
    height, width = size or pipe.info.train_size
    out = pipe.with_modules(unet=unet)(
        balanced_captions(count, _SEED),
        height=height,
        width=width,
        rule=ORIGINAL,
        sampler="ddim",
        steps=_STEPS,
        guidance=GUIDANCE,
        seed=_SEED,
        decode=False,
        measure_entropy=True,
    )
    if out.entropy is None or out.logit_gap is None:
        raise ValueError("the pipeline measured nothing")
    return {name: (float(np.mean(out.entropy[name])), float(np.mean(out.logit_gap[name]))) for name in out.entropy}


def section(
    pipe: TextToImage,
    *,
    count: int = _COUNT,
    multipliers: Sequence[float] = MULTIPLIERS,
    sides: Sequence[float] = (0.5, 0.75, 1.0, 1.5),
) -> list[str]:
    """The lines of section `gaussian`. `sides` are those of the sizes, of the training size's."""
    by_multiplier = {value: measure(pipe, value, count=count) for value in multipliers}
    height, width = pipe.info.train_size
    sizes = [(round(side * height), round(side * width)) for side in sides]
    by_size = {size: measure(pipe, size=size, count=count) for size in sizes}
    return [
        f"{count} pictures of balanced captions, {_STEPS} steps of DDIM, guidance {GUIDANCE:g}, drawn under rule",
        "`original`; means over rows, heads, steps and pictures, in nats. Made by",
        "`python -m entscale_jax.scenes.gaussian docs/method.md`.",
        "",
        f"At the training size, {width}x{height}, the logits of each layer multiplied after the fact: log T - H as",
        "measured, and in brackets sigma²/2, which it is where logits are Gaussian:",
        "",
        *table(("layer", *(f"at {value:g}" for value in multipliers)), _rows(by_multiplier)),
        "",
        "The same as a power of the multiplier, of which Eq. 5 says 2, from each multiplier to the next:",
        "",
        *table(
            ("layer", *(f"{low:g} to {high:g}" for low, high in pairwise(multipliers))),
            _powers(by_multiplier),
        ),
        "",
        "At other sizes log N - H and, in brackets, sigma²/2; the rule takes both for constants of the layer:",
        "",
        *table(("layer", *(f"{width}x{height}" for height, width in sizes)), _rows(by_size)),
    ]


def _rows(found: Mapping[Any, Means]) -> list[tuple[str, ...]]:
    layers = next(iter(found.values()))
    return [
        (f"`{layer}`", *(f"{below:.2f} ({half:.2f})" for below, half in (means[layer] for means in found.values())))
        for layer in layers
    ]


def _powers(found: Mapping[float, Means]) -> list[tuple[str, ...]]:
    steps = list(pairwise(found))
    return [
        (
            f"`{layer}`",
            *(
                f"{math.log(found[high][layer][0] / found[low][layer][0]) / math.log(high / low):.2f}"
                for low, high in steps
            ),
        )
        for layer in next(iter(found.values()))
    ]


if __name__ == "__main__":
    write_section("gaussian", lambda pipe, _: section(pipe))
