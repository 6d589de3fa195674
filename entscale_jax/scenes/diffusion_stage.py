"""Trains UNet and text encoder of the built-in model together, in the latents of its autoencoder."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from ..models import AutoencoderKL, CLIPTextModel, UNet2DConditionModel
from ..sampling import NoiseSchedule
from ..scales import ScaleRule, Scaling
from ..weights.tokenizer import Tokenizer
from .autoencoder_stage import to_unit
from .captions import sample_captions
from .draw import draw_batch
from .recipe import SIZE, Recipe
from .trainer import Watch, train


class TextToLatents(nnx.Module):
    """The two modules that are trained together."""

    def __init__(self, recipe: Recipe, vocab_size: int, rngs: nnx.Rngs):
        self.unet = UNet2DConditionModel(recipe.unet, rngs=rngs)
        self.text = CLIPTextModel(replace(recipe.text, vocab_size=vocab_size), rngs=rngs)


def train_diffusion(
    recipe: Recipe,
    autoencoder: AutoencoderKL,
    scaling_factor: float,
    tokenize: Tokenizer,
    vocab_size: int,
    folder: Path,
    *,
    resume: bool,
    watch: Watch | None = None,
) -> TextToLatents:
    """The trained modules, their weights averaged. `watch` is called with them at every checkpoint."""
    stage = recipe.diffusion_stage
    graph, parameters = nnx.split(TextToLatents(recipe, vocab_size, nnx.Rngs(stage.seed)), nnx.Param)
    encoder, encoder_weights = nnx.split(autoencoder)
    alphas = jnp.asarray(NoiseSchedule.from_json(recipe.scheduler).alphas_cumprod())

    @jax.jit
    def encode(weights: nnx.State, images: Float[Array, "batch height width 3"]) -> Float[Array, "batch h w c"]:
        return nnx.merge(encoder, weights).encode(images)[0] * scaling_factor

    def loss(parameters: nnx.State, batch: dict[str, Array], key: jax.Array) -> Float[Array, ""]:
        model = nnx.merge(graph, parameters)
        noise_key, time_key = jax.random.split(key)
        latents = batch["latents"]
        noise = jax.random.normal(noise_key, latents.shape)
        uniform = jax.random.uniform(time_key, latents.shape[:1])
        timesteps = jnp.floor(len(alphas) * uniform**recipe.timestep_power).astype(jnp.int32)
        alpha = alphas[timesteps][:, None, None, None]
        noisy = jnp.sqrt(alpha) * latents + jnp.sqrt(1 - alpha) * noise
        velocity = jnp.sqrt(alpha) * noise - jnp.sqrt(1 - alpha) * latents
        context = model.text(batch["tokens"])
        output = model.unet(noisy, timesteps.astype(jnp.float32), context, Scaling(ScaleRule.ORIGINAL))
        return jnp.mean((output - velocity) ** 2)

    def batches(step: int) -> dict[str, Array | np.ndarray]:
        rng = np.random.default_rng((stage.seed, step))
        captions = sample_captions(rng, stage.batch)
        images = to_unit(draw_batch(captions, rng, height=SIZE, width=SIZE))
        dropped = rng.random(stage.batch) < recipe.unconditional
        shown = ["" if drop else caption for caption, drop in zip(captions, dropped, strict=True)]
        return {"latents": encode(encoder_weights, images), "tokens": tokenize(shown)}

    def watch_modules(step: int, average: nnx.State) -> str:
        return watch(step, nnx.merge(graph, average)) if watch else ""

    average = train(
        parameters, loss, batches, stage, folder=folder, resume=resume, name="diffusion", watch=watch_modules
    )
    return nnx.merge(graph, average)
