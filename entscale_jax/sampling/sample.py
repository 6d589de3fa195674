"""One scan that takes latents from noise to a picture, under any rule, with or without guidance."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..models import UNet2DConditionModel
from ..scales import ScaleRule, Scaling
from .ddim import Latents, ddim_step
from .schedule import NoiseSchedule

Context = Float[Array, "batch text features"]


class Measured(NamedTuple):
    """What was measured of attention: layer -> means over its tokens in nats, [steps batch heads]; else empty dicts."""

    entropy: dict[str, Float[Array, "*steps batch heads"]]
    logit_gap: dict[str, Float[Array, "*steps batch heads"]]


def sample(
    unet: UNet2DConditionModel,
    latents: Latents,
    context: Context,
    *,
    schedule: NoiseSchedule,
    steps: int,
    rule: Scaling | ScaleRule | str | Mapping[str, object] = ScaleRule.ENTROPY,
    unconditional: Context | None = None,
    guidance: float | Float[Array, ""] | Float[Array, "batch"] = 1.0,
) -> Latents:
    """Latents of pictures, by deterministic DDIM. Pure: works inside a caller's `jit`, under `vmap`, on a mesh.

    Args:
        unet: predicts noise or velocity.
        latents: the start, unit variance, float32 or float64; the result has their dtype.
        context: text states of the captions.
        schedule: of the model; static.
        steps: how many; static.
        rule: the scale rule of self-attention; static.
        unconditional: text states to guide away from; None draws without guidance, at half the cost.
        guidance: strength of classifier-free guidance, for all pictures or one each. 1 has no effect.
    """
    return denoise(
        unet,
        latents,
        context,
        schedule=schedule,
        steps=steps,
        rule=rule,
        unconditional=unconditional,
        guidance=guidance,
    )[0]


def denoise(
    unet: UNet2DConditionModel,
    latents: Latents,
    context: Context,
    *,
    schedule: NoiseSchedule,
    steps: int,
    rule: Scaling | ScaleRule | str | Mapping[str, object] = ScaleRule.ENTROPY,
    unconditional: Context | None = None,
    guidance: float | Float[Array, ""] | Float[Array, "batch"] = 1.0,
    measure_entropy: bool = False,
) -> tuple[Latents, Measured]:
    """`sample`, and with `measure_entropy` the mean entropy and logit gap of each self-attention layer.

    With guidance they are those of the caption's half of the batch.
    """
    scaling = Scaling.of(rule)
    scaling.check_levels(unet.config.levels)
    dtype, count = unet.conv_in.kernel.get_value().dtype, latents.shape[0]
    text = context if unconditional is None else jnp.concatenate([unconditional, context])
    strength = jnp.broadcast_to(jnp.asarray(guidance, latents.dtype), (count,))[:, None, None, None]

    def step(latents: Latents, row: tuple) -> tuple[Latents, Measured]:
        timestep, alpha, next_alpha = row
        measured = Measured({}, {})

        def record(layer: str, entropy: Float[Array, "both heads"], gap: Float[Array, "both heads"]) -> None:
            measured.entropy[layer], measured.logit_gap[layer] = entropy[-count:], gap[-count:]

        inputs = latents.astype(dtype)
        if unconditional is not None:
            inputs = jnp.concatenate([inputs, inputs])
        timesteps = jnp.broadcast_to(timestep.astype(dtype), inputs.shape[:1])
        output = unet(inputs, timesteps, text, scaling, record if measure_entropy else None).astype(latents.dtype)
        if unconditional is not None:
            away, towards = jnp.split(output, 2)
            output = away + strength * (towards - away)
        return ddim_step(latents, output, alpha, next_alpha, schedule), measured

    table = tuple(jnp.asarray(column, latents.dtype) for column in schedule.ddim(steps))
    return jax.lax.scan(step, latents, table)
