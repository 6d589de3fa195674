"""What the parity tests share: the models, the grids they are compared at, and where the shipped one is."""

from pathlib import Path

import entscale_jax
from entscale_jax.buckets import Bucket
from entscale_jax.scales import ScaleRule, Scaling

SCENES = Path(entscale_jax.__file__).parent / "scenes" / "model"
TRAINING = {"sd1": 16, "sd2": (12, 20), "sd2-base": 16, "ldm-kl": 16, "ldm-vq": (12, 20), "sdxl": (12, 20)}
"""Latent cells in training; (height, width) where they differ. Four levels: 16, 8, 4, 2 and 12x20, 6x10, 3x5, 2x3;
self-attention of SDXL at the second and third of three."""
GRIDS = {
    "sd1": ((7, 13), (15, 8), (16, 16), (19, 25), (27, 18), (28, 28)),
    "sd2": ((7, 13), (15, 8), (12, 20), (17, 29), (29, 17), (28, 28)),
    "scenes": ((7, 13), (15, 8), (16, 16), (19, 25), (27, 18), (28, 28)),
}
"""Latent cells (height, width): below the training grid, the grid itself, above; landscape, portrait and square; all
but the training grids are odd at some level. 28 is 224 pixels: 28, 14, 7, 4."""

ORIGINAL, ENTROPY = Scaling(ScaleRule.ORIGINAL), Scaling(ScaleRule.ENTROPY)


def bucket_of(pair, grid):
    """The bucket whose latent grid is `grid`."""
    return Bucket(grid[0] * pair.info.latent_factor, grid[1] * pair.info.latent_factor)
