"""Every bound of parity in one place, beside the error that was measured and the reason why it is no smaller."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Bound:
    """The largest error that passes."""

    limit: float
    measured: str
    reason: str


ROUNDING = "rounding of float64, in another order"
SINGLE = "rounding of float32, in another order, over some hundred layers"

BOUNDS = {
    ("text encoder", "float64"): Bound(1e-9, "1.3e-15", ROUNDING),
    ("text encoder", "float32"): Bound(1e-5, "5.0e-07", SINGLE),
    ("pooled text", "float64"): Bound(1e-9, "7.8e-16", ROUNDING),
    ("pooled text", "float32"): Bound(1e-5, "4.3e-07", SINGLE),
    ("time embedding", "float64"): Bound(
        1e-4, "4.6e-05", "diffusers computes the angles, up to 999, in float32: the error is absolute"
    ),
    ("time embedding", "float32"): Bound(1e-4, "3.1e-05", "as above; exp and multiplication round differently"),
    ("UNet", "float64"): Bound(1e-9, "1.1e-14", ROUNDING),
    ("UNet", "float32"): Bound(1e-4, "2.3e-06", SINGLE),
    ("VAE decode", "float64"): Bound(1e-9, "1.2e-14", ROUNDING),
    ("VAE decode", "float32"): Bound(1e-4, "2.4e-06", SINGLE),
    ("DDIM latents", "float64"): Bound(1e-5, "2.7e-07", "the noise schedule has the rounding of float32 on both sides"),
    ("DDIM latents", "float32"): Bound(1e-4, "1.9e-05", SINGLE),
    ("DDIM images", "float64"): Bound(
        1.0, "0.5", "steps of 1/255; our pictures are rounded to bytes, which is half of one"
    ),
    ("DDIM images", "float32"): Bound(
        1.0, "0.5", "steps of 1/255; our pictures are rounded to bytes, which is half of one"
    ),
}

CONTROL_UNET = 100.0
"""By how much the UNet has to miss its float64 bound when the reference follows the other rule."""
CONTROL_DDIM = 20.0
"""How many times its error against the right reference DDIM's latents have to differ from those of the other rule."""
CONTROL_MULTIPLIER = 0.02
"""Controls are asked for where each level's multiplier is at least so far from 1: nearer, the rules are nearly one."""
IMAGE_QUANTILE = 0.999
"""The share of image values that has to meet the bound."""
