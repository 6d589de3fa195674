"""One scan that takes latents from noise to a picture, by any sampler, under any rule, with or without guidance."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt32

from ..attention import accumulator
from ..errors import UserError
from ..models import Conditioning, UNet
from ..models.convolution import prepared
from ..scales import ScaleRule, Scaling
from .sampler import Latents, Memory, Sampler

Context = Float[Array, "batch text features"] | Conditioning
"""Text states, with what SDXL and super-resolution want beside them."""
Strength = float | Float[Array, ""] | Float[Array, "batch"]
"""Of guidance: one for all pictures, or one each."""

State = tuple[Latents, Memory]
"""Latents with what their sampler carries beside them."""
Advance = Callable[[Latents, Memory, Latents | None], State]
"""One step: latents, memory and the step's own noise, if any, to latents and memory."""


@runtime_checkable
class Fuse(Protocol):
    """Makes one step of whole pictures out of steps of parts of them. Static in a program, so hashable."""

    @property
    def at_once(self) -> int:
        """Parts of each picture that `advance` takes in one call: all pictures' first ones, then the second ones."""
        ...

    def __call__(self, advance: Advance, latents: Latents, memory: Memory, noise: Latents | None) -> State:
        """The step of the whole pictures."""
        ...


class Measured(NamedTuple):
    """What was measured of attention: layer -> means over its tokens in nats, [calls batch heads]; else empty dicts."""

    entropy: dict[str, Float[Array, "*calls batch heads"]]
    logit_gap: dict[str, Float[Array, "*calls batch heads"]]


def sample(
    unet: UNet,
    latents: Latents,
    context: Context,
    *,
    schedule: Sampler,
    steps: int,
    rule: Scaling | ScaleRule | str | Mapping[str, object] = ScaleRule.ENTROPY,
    **options: Any,
) -> Latents:
    """Latents of pictures. Pure: works inside a caller's `jit`, under `vmap`, on a mesh.

    Args:
        unet: predicts noise, velocity or the clean sample.
        latents: the start, unit variance, float32 or float64; the result has their dtype. With `first`, instead, what
            `schedule.noised` made.
        context: text states of the captions; for SDXL and for super-resolution a `Conditioning`.
        schedule: a sampler with the model's noise schedule; static.
        steps: how many; static.
        rule: the scale rule of self-attention; static.
        **options: the rest of `denoise`'s, but for `measure_entropy`.
    """
    return denoise(unet, latents, context, schedule=schedule, steps=steps, rule=rule, **options)[0]


def denoise(
    unet: UNet,
    latents: Latents,
    context: Context,
    *,
    schedule: Sampler,
    steps: int,
    rule: Scaling | ScaleRule | str | Mapping[str, object] = ScaleRule.ENTROPY,
    unconditional: Context | None = None,
    guidance: Strength = 1.0,
    guidance_rescale: float = 0.0,
    first: int = 0,
    step_noise: Float[Array, "calls batch height width channels"] | None = None,
    fuse: Fuse | None = None,
    measure_entropy: bool = False,
) -> tuple[Latents, Measured]:
    """`sample`, and with `measure_entropy` the mean entropy and logit gap of each self-attention layer.

    Arguments that `sample` names are as there.

    Args:
        unconditional: text states to guide away from; None draws without guidance, at half the cost.
        guidance: strength of classifier-free guidance, for all pictures or one each. 1 has no effect.
        guidance_rescale: how far the guided output is brought back to the deviation of the caption's own, 0 to 1:
            Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed", Section 3.4. Static.
        first: the call to begin with, for image to image; static.
        step_noise: unit noise for each call of a stochastic sampler; without it no noise is added.
        fuse: makes each step of parts of the pictures, whose self-attention then is within a part; None steps whole
            pictures. Static.
        measure_entropy: static. With guidance the measures are those of the caption's half of the batch.

    Raises UserError where entropy is to be measured of parts.
    """
    if fuse is not None and measure_entropy:
        raise UserError("entropy can't be measured where a picture is drawn in parts: leave measure_entropy out")
    scaling = Scaling.of(rule)
    scaling.check_levels(unet.config.levels)
    dtype, count = unet.conv_in.kernel.get_value().dtype, latents.shape[0]
    parts = 1 if fuse is None else fuse.at_once
    told = _both(context, unconditional, parts)
    strength = jnp.broadcast_to(jnp.asarray(guidance, latents.dtype), (count,))
    strength = (strength if parts == 1 else jnp.tile(strength, parts))[:, None, None, None]
    table, unet = schedule.table(steps, first), prepared(unet)

    def call(carry: tuple[Latents, Memory], row: tuple) -> tuple[tuple[Latents, Memory], Measured]:
        (latents, memory), (timestep, scale, columns, noise) = carry, row
        measured = Measured({}, {})

        def record(layer: str, entropy: Float[Array, "both heads"], gap: Float[Array, "both heads"]) -> None:
            measured.entropy[layer], measured.logit_gap[layer] = entropy[-count:], gap[-count:]

        def advance(latents: Latents, memory: Memory, noise: Latents | None) -> State:
            inputs = (latents * scale).astype(dtype)
            if unconditional is not None:
                inputs = jnp.concatenate([inputs, inputs])
            timesteps = jnp.broadcast_to(timestep.astype(accumulator(dtype)), inputs.shape[:1])
            if told.low is not None:
                inputs = jnp.concatenate([inputs, told.low.picture.astype(dtype)], axis=-1)
            labels = None if told.low is None else told.low.noise_level
            recorded = record if measure_entropy else None
            output = unet(inputs, timesteps, told.states, scaling, recorded, told.added, labels).astype(latents.dtype)
            if unconditional is not None:
                away, towards = jnp.split(output, 2)
                output = away + strength * (towards - away)
                if guidance_rescale:
                    output = _rescaled(output, towards, guidance_rescale)
            return schedule.step(latents, output, columns, memory, noise)

        if fuse is None:
            return advance(latents, memory, noise), measured
        return fuse(advance, latents, memory, noise), measured

    rows = jax.tree.map(
        lambda column: jnp.asarray(column, latents.dtype), (table.timesteps, table.input_scale, table.columns)
    )
    if not first:
        latents = latents * np.asarray(table.start, latents.dtype)
    carry = latents, schedule.memory(latents)
    (final, _), measured = jax.lax.scan(call, carry, (*rows, step_noise))
    return final, measured


def call_noise(
    seeds: UInt32[Array, "batch"], calls: int, shape: tuple[int, ...], *, stream: int = 1
) -> Float[Array, "calls batch height width channels"]:
    """Unit noise for each call, each picture's from its own seed alone; no stream is that of the start."""

    def of_picture(seed: UInt32[Array, ""]) -> Float[Array, "calls height width channels"]:
        return jax.random.normal(jax.random.fold_in(jax.random.key(seed), stream), (calls, *shape), jnp.float32)

    return jax.vmap(of_picture, out_axes=1)(seeds)


def _both(context: Context, unconditional: Context | None, parts: int) -> Conditioning:
    """The conditions of one call of the UNet, `parts` times each: of guided pictures, what leads away first."""
    halves = [context] * parts if unconditional is None else [unconditional] * parts + [context] * parts
    halves = [half if isinstance(half, Conditioning) else Conditioning(half) for half in halves]
    return jax.tree.map(lambda *half: jnp.concatenate(half), *halves)


def _rescaled(guided: Latents, towards: Latents, share: float) -> Latents:
    axes = tuple(range(1, guided.ndim))
    # The deviation as PyTorch takes it: of a sample.
    ratio = jnp.std(towards, axes, keepdims=True, ddof=1) / jnp.std(guided, axes, keepdims=True, ddof=1)
    return (share * ratio + 1.0 - share) * guided
