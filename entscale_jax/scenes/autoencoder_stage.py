"""Trains the autoencoder of the built-in model on drawn scenes."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, UInt8

from ..models import AutoencoderKL
from .captions import sample_captions
from .draw import draw_batch
from .provenance import Segment
from .recipe import SIZE, Recipe
from .trainer import Measures, Run, train

_SMALLEST_BATCH = 2

Pictures = UInt8[np.ndarray, "batch height width 3"]


def train_autoencoder(recipe: Recipe, run: Run) -> tuple[AutoencoderKL, list[Segment]]:
    """The trained autoencoder and its provenance."""
    stage = recipe.autoencoder_stage
    graph, parameters = nnx.split(AutoencoderKL(recipe.autoencoder, rngs=nnx.Rngs(stage.seed)), nnx.Param)

    def loss(
        parameters: nnx.State, images: Float[Array, "batch height width 3"], keys: jax.Array
    ) -> tuple[Float[Array, ""], Measures]:
        model = nnx.merge(graph, parameters)
        mean, log_variance = model.encode(images)
        latents = mean + jnp.exp(0.5 * log_variance) * normal(keys, mean.shape[1:])
        divergence = 0.5 * (mean**2 + jnp.exp(log_variance) - 1.0 - log_variance).sum() / images.shape[0]
        error = jnp.abs(model.decode(latents) - images)
        value = error.mean() + (error**2).mean() + recipe.kl_weight * divergence
        return value, {"loss": value, "error": error.mean()}

    def batches(step: int) -> Float[np.ndarray, "batch height width 3"]:
        rng = np.random.default_rng((stage.seed, step))
        height, width = recipe.autoencoder_sizes[rng.integers(len(recipe.autoencoder_sizes))]
        # About as many pixels a step whatever the size.
        count = _SMALLEST_BATCH * max(1, round(stage.batch * SIZE**2 / (height * width) / _SMALLEST_BATCH))
        return to_unit(_scenes(rng, count, height, width))

    average, segments = train(parameters, loss, batches, stage, run, smallest_batch=_SMALLEST_BATCH)
    return nnx.merge(graph, average), segments


def scaling_factor(model: AutoencoderKL, count: int = 64) -> float:
    """One over the standard deviation of the latents of `count` drawn scenes."""
    mean, _ = nnx.jit(lambda model, images: model.encode(images))(
        model, to_unit(_scenes(np.random.default_rng(1), count))
    )
    return 1.0 / float(mean.std())


def to_unit(images: UInt8[np.ndarray, "batch height width 3"]) -> Float[np.ndarray, "batch height width 3"]:
    """Pixels in [-1, 1], float32, as the autoencoder takes them."""
    return images.astype(np.float32) / np.float32(127.5) - np.float32(1)


def normal(keys: jax.Array, shape: tuple[int, ...]) -> Float[Array, "batch *shape"]:
    """Unit noise of `shape` for each key, one a picture."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


def _scenes(rng: np.random.Generator, count: int, height: int = SIZE, width: int = SIZE) -> Pictures:
    """Drawings of a size; half of those smaller than in training are windows of larger ones, objects cut by the edge.

    So the objects of small pictures have both sizes: those of `metrics.captions.radii`, and those of training, which a
    UNet may draw there.
    """
    whole = max(height, SIZE), max(width, SIZE)
    cut = count // 2 if whole != (height, width) else 0
    captions = sample_captions(rng, count)
    large = draw_batch(captions[:cut], rng, height=whole[0], width=whole[1])
    corners = rng.integers(0, (whole[0] - height + 1, whole[1] - width + 1), (cut, 2))
    windows = [picture[y : y + height, x : x + width] for picture, (y, x) in zip(large, corners, strict=True)]
    return np.stack([*windows, *draw_batch(captions[cut:], rng, height=height, width=width)])
