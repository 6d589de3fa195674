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
        return to_unit(_scenes(np.random.default_rng((stage.seed, step)), stage.batch))

    average, segments = train(parameters, loss, batches, stage, run)
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


def _scenes(rng: np.random.Generator, count: int) -> UInt8[np.ndarray, "batch height width 3"]:
    return draw_batch(sample_captions(rng, count), rng, height=SIZE, width=SIZE)
