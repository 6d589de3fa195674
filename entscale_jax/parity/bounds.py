"""Every bound of parity in one place, with the reason why it is no smaller; docs/parity.md adds what was measured."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Bound:
    """The largest error that passes."""

    limit: float
    reason: str


ROUNDING = "rounding of float64, in another order"
SINGLE = "rounding of float32, in another order, over some hundred layers"

BOUNDS = {
    ("text encoder", "float64"): Bound(1e-9, ROUNDING),
    ("text encoder", "float32"): Bound(1e-5, SINGLE),
    ("pooled text", "float64"): Bound(1e-9, ROUNDING),
    ("pooled text", "float32"): Bound(1e-5, SINGLE),
    ("time embedding", "float64"): Bound(
        1e-4, "diffusers computes the angles, up to 999, in float32: the error is absolute"
    ),
    ("time embedding", "float32"): Bound(1e-4, "as above; exp and multiplication round differently"),
    ("UNet", "float64"): Bound(1e-9, ROUNDING),
    ("UNet", "float32"): Bound(1e-4, SINGLE),
    ("VAE encode", "float64"): Bound(1e-9, ROUNDING),
    ("VAE encode", "float32"): Bound(1e-4, SINGLE),
    ("VAE decode", "float64"): Bound(1e-9, ROUNDING),
    ("VAE decode", "float32"): Bound(1e-4, SINGLE),
    ("DDIM latents", "float64"): Bound(1e-5, "the noise schedule has the rounding of float32 on both sides"),
    ("DDIM latents", "float32"): Bound(1e-4, SINGLE),
    ("DDIM images", "float64"): Bound(1.0, "steps of 1/255; our pictures are rounded to bytes, which is half of one"),
    ("DDIM images", "float32"): Bound(1.0, "steps of 1/255; our pictures are rounded to bytes, which is half of one"),
}

CONTROL = 100.0
"""How many times its bound a control has to be: axes or captions swapped, or in float64 the UNet by the other rule."""
CONTROL_DDIM = 20.0
"""How many times its error against the right reference DDIM's latents have to differ from those of the other rule."""
CONTROL_MULTIPLIER = 0.02
"""Controls are asked for where each level's multiplier is at least so far from 1: nearer, the rules are nearly one."""
IMAGE_QUANTILE = 0.999
"""The share of image values that has to meet the bound."""
