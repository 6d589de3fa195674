"""What the autoencoder costs in sharpness: true drawings before and after it.

`python -m entscale_jax.scenes.sharpness docs/scenes.md` writes section `autoencoder`.
"""

from collections.abc import Sequence
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from ..marks import table
from ..models import AutoencoderKL
from ..pipeline import TextToImage
from ..statistics import bootstrap_mean, interval
from .autoencoder_stage import to_unit
from .captions import balanced_captions
from .draw import draw_batch
from .evaluate import CAPTIONS_SEED
from .pictures import Images, means, verdicts
from .section import write_section

SIZES = ((64, 64), (96, 96), (96, 128), (128, 128), (128, 192), (192, 192), (256, 256))
"""Height and width in pixels."""
_COUNT = 64
_BATCH = 16


def round_trip(pipe: TextToImage, images: Images) -> Images:
    """`images` encoded, the latents' mean taken, and decoded. Height and width fill whole latent cells."""
    return np.concatenate([_round_trip(pipe, images[i : i + _BATCH]) for i in range(0, len(images), _BATCH)])


def signal_to_noise(images: Images, reference: Images) -> Float[np.ndarray, "batch"]:
    """Peak signal-to-noise ratio of each picture against its reference, in dB; the peak is 255."""
    error = ((images.astype(np.float64) - reference) ** 2).mean(axis=(1, 2, 3))
    return 10 * np.log10(255**2 / error)


def edge_energy(images: Images) -> Float[np.ndarray, "batch"]:
    """Mean square of the differences between neighbouring pixels: a step over n pixels instead of one has 1/n of it."""
    values = images.astype(np.float64)
    return sum((np.diff(values, axis=axis) ** 2).mean(axis=(1, 2, 3)) for axis in (1, 2))  # pyright: ignore[reportReturnType]


def section(pipe: TextToImage, *, sizes: Sequence[tuple[int, int]] = SIZES, count: int = _COUNT) -> list[str]:
    """The lines of section `autoencoder`."""
    captions = balanced_captions(count, CAPTIONS_SEED)
    rows = []
    for height, width in sizes:
        drawn = draw_batch(captions, np.random.default_rng((CAPTIONS_SEED, height, width)), height=height, width=width)
        decoded = round_trip(pipe, drawn)
        (noise,) = bootstrap_mean(signal_to_noise(decoded, drawn)[:, None])
        (edges,) = bootstrap_mean((edge_energy(decoded) / edge_energy(drawn))[:, None])
        exact = means(verdicts(captions, decoded))[0]
        rows.append((f"{width}x{height}", interval(noise, 1), interval(edges.scaled(100.0), 1), interval(exact, 1)))
    cell = pipe.info.latent_factor
    parameters = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(pipe.vae, nnx.Param)))
    return [
        f"True drawings of {count} captions, encoded and decoded by the autoencoder ({parameters / 1e3:.0f} thousand",
        f"parameters, {cell}x{cell} pixels to a latent cell). Edge energy is the mean square of the differences",
        "between neighbouring pixels, in percent of the drawing's: softer edges have less.",
        "Made by `python -m entscale_jax.scenes.sharpness docs/scenes.md`.",
        "",
        *table(("size", "PSNR, dB", "edge energy, %", "read exactly, %"), rows),
    ]


@nnx.jit
def _encode(vae: AutoencoderKL, images: Float[Array, "batch height width 3"]) -> Float[Array, "batch h w c"]:
    return vae.encode(images)[0] * vae.config.scaling_factor


def _round_trip(pipe: TextToImage, images: Images) -> Images:
    return np.asarray(pipe.programs.decode(_encode(cast(AutoencoderKL, pipe.vae), jnp.asarray(to_unit(images)))).images)


if __name__ == "__main__":
    write_section("autoencoder", lambda pipe, _: section(pipe))
