"""Trains UNet and text encoder of the built-in model together, in the latents of its autoencoder.

Twice: first as they are, then with convolutions that see less of what is around them.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from ..attention import Record
from ..metrics.captions import KINDS, parse_caption
from ..models import AutoencoderKL, CLIPTextModel, UNet2DConditionModel
from ..sampling import NoiseSchedule
from ..scales import ScaleRule, Scaling
from ..weights.tokenizer import Tokenizer
from .autoencoder_stage import normal, to_unit
from .captions import sample_captions
from .draw import kind_map, paint, place
from .optimizers import scale_query_key
from .pointwise import keep_centres, use_centres
from .provenance import Segment
from .recipe import SIZE, Recipe, Stage
from .structure import flatness, recorder
from .trainer import Hooks, Measures, Run, Structure, train

Latents = Float[Array, "batch h w c"]
Batch = dict[str, Array]


class TextToLatents(nnx.Module):
    """The modules that are trained together. `kinds` is there for training alone."""

    def __init__(self, unet: UNet2DConditionModel, text: CLIPTextModel, *, seed: int):
        self.unet, self.text = unet, text
        self.kinds = nnx.Linear(unet.config.block_out_channels[0], len(KINDS) + 1, rngs=nnx.Rngs(seed))
        """Says of each latent cell what is drawn there, from what the UNet's last convolution sees."""

    def __call__(
        self,
        noisy: Latents,
        timesteps: Float[Array, "batch"],
        tokens: Int[Array, "batch length"],
        record: Record | None,
    ) -> tuple[Latents, Float[Array, "batch h w kinds"]]:
        """The predicted velocity, and for each cell a logit of the ground and one of each kind."""
        unet: Any = self.unet
        unet.conv_out, last = _Both(unet.conv_out, self.kinds), unet.conv_out
        output = unet(noisy, timesteps, self.text(tokens), _PLAIN, record)
        unet.conv_out = last
        channels = unet.config.out_channels
        return output[..., :channels], output[..., channels:]


class _Both(nnx.Module):
    """Two maps of the same features, side by side."""

    def __init__(self, first: nnx.Module, second: nnx.Module):
        self.first, self.second = first, second

    def __call__(self, hidden: Latents) -> Float[Array, "batch h w both"]:
        return jnp.concatenate([self.first(hidden), self.second(hidden)], axis=-1)


Export = Callable[[TextToLatents, list[Segment]], None]
"""Takes averaged modules and their provenance."""


def untrained(recipe: Recipe, vocab_size: int) -> TextToLatents:
    """The modules as the recipe's seed makes them."""
    seed = recipe.binding_stage.seed
    rngs = nnx.Rngs(seed)
    modules = TextToLatents(
        UNet2DConditionModel(recipe.unet, rngs=rngs),
        CLIPTextModel(replace(recipe.text, vocab_size=vocab_size), rngs=rngs),
        seed=seed,
    )
    nnx.update(modules, scale_query_key(nnx.state(modules, nnx.Param), recipe.attention_gain))
    return modules


def train_diffusion(
    recipe: Recipe,
    stage: Stage,
    modules: TextToLatents,
    autoencoder: AutoencoderKL,
    scaling_factor: float,
    tokenize: Tokenizer,
    run: Run,
    *,
    pointwise: Sequence[str] = (),
    seen: int = 0,
    export: Export,
    hooks: Hooks = Hooks(),  # noqa: B008
) -> tuple[TextToLatents, list[Segment]]:
    """The trained modules, their weights averaged, and their provenance.

    Args:
        recipe: noise, text and attention.
        stage: which of its two.
        modules: the start.
        autoencoder: makes the latents.
        scaling_factor: of the latents.
        tokenize: of captions.
        run: folder, name, provenance.
        pointwise: names of the UNet's convolutions that keep the centre of their kernels alone.
        seen: steps that the start was trained for, whose pictures are not shown again.
        export: called at each checkpoint.
        hooks: read and keep what was exported.
    """
    keep_centres(modules.unet, pointwise)
    graph, parameters = nnx.split(modules, nnx.Param)
    data = _Data(recipe, stage, autoencoder, scaling_factor, tokenize)
    noising = _Noising(recipe)

    def loss(parameters: nnx.State, batch: Batch, keys: jax.Array) -> tuple[Float[Array, ""], Measures]:
        model = nnx.merge(graph, parameters)
        use_centres(model.unet, pointwise)
        noise = normal(keys, batch["latents"].shape[1:])
        noisy, velocity, timesteps = noising(batch["latents"], noise, batch["uniform"])
        layers = model.unet.attention_layers()
        for layer in layers.values():
            layer.recorded = recipe.entropy_pictures
        record, readings = recorder()
        output, logits = model(noisy, timesteps, batch["tokens"], record if recipe.entropy_weight else None)
        measures = {"loss": jnp.mean((output - velocity) ** 2)}
        total = measures["loss"]
        if recipe.kind_weight:
            measures["kinds"] = _surprise(logits, batch["kinds"])
            total += recipe.kind_weight * measures["kinds"]
        if recipe.entropy_weight:
            measures["penalty"] = flatness(readings, layers, recipe.entropy_below)
            total += recipe.entropy_weight * measures["penalty"]
        return total, measures

    average, segments = train(
        parameters,
        loss,
        lambda step: data(seen + step),
        stage,
        run,
        replace(
            hooks,
            structure=_structure(graph, data, noising, recipe),
            export=lambda average, segments: export(nnx.merge(graph, average), segments),
        ),
        query_key_rate=recipe.query_key_rate,
    )
    return nnx.merge(graph, average), segments


_PLAIN = Scaling(ScaleRule.ORIGINAL)
_GROUND = 0.1  # weight of a cell of the ground, of which there are five times as many


def _surprise(logits: Float[Array, "batch h w kinds"], kinds: Int[Array, "batch h w"]) -> Float[Array, ""]:
    """Mean cross-entropy of what is drawn at each cell, in nats."""
    weights = jnp.where(kinds == 0, _GROUND, 1.0)
    return jnp.mean(weights * optax.softmax_cross_entropy_with_integer_labels(logits, kinds))


class _Data:
    """step -> latents, tokens and kinds of freshly drawn scenes, numbers in [0, 1); the same step, the same batch."""

    def __init__(
        self,
        recipe: Recipe,
        stage: Stage,
        autoencoder: AutoencoderKL,
        scaling_factor: float,
        tokenize: Tokenizer,
    ):
        self._stage, self._unconditional, self._tokenize = stage, recipe.unconditional, tokenize
        self._cell = recipe.autoencoder.factor
        graph, self._weights = nnx.split(autoencoder)

        @jax.jit
        def encode(weights: nnx.State, images: Float[Array, "batch height width 3"]) -> Latents:
            return nnx.merge(graph, weights).encode(images)[0] * scaling_factor

        self._encode = encode

    def __call__(self, step: int, count: int | None = None) -> Batch:
        count = count or self._stage.batch
        rng = np.random.default_rng((self._stage.seed, step))
        captions = sample_captions(rng, count)
        scenes = [place(parse_caption(caption), rng) for caption in captions]
        images = to_unit(np.stack([paint(objects, height=SIZE, width=SIZE) for objects in scenes]))
        dropped = rng.random(count) < self._unconditional
        shown = ["" if drop else caption for caption, drop in zip(captions, dropped, strict=True)]
        # One in each of `count` equal parts: every batch has its share of every noise level.
        uniform = (rng.permutation(count) + rng.random(count)) / count
        return {
            "latents": self._encode(self._weights, images),
            "tokens": jnp.asarray(self._tokenize(shown)),
            "kinds": jnp.asarray([kind_map(objects, height=SIZE, width=SIZE, cell=self._cell) for objects in scenes]),
            "uniform": jnp.asarray(uniform, jnp.float32),
        }


class _Noising:
    """Noises latents as training does: uniform numbers become timesteps that lean to where layout is decided."""

    def __init__(self, recipe: Recipe):
        self._alphas = jnp.asarray(NoiseSchedule.from_json(recipe.scheduler).alphas_cumprod())
        self._mean, self._deviation = recipe.timestep_logits

    def __call__(
        self, latents: Latents, noise: Latents, uniform: Float[Array, "batch"]
    ) -> tuple[Latents, Latents, Float[Array, "batch"]]:
        """Noisy latents, the velocity that is to be predicted, and timesteps."""
        shares = jax.nn.sigmoid(self._mean + self._deviation * jax.scipy.stats.norm.ppf(uniform))
        count = len(self._alphas)
        timesteps = jnp.minimum(count * shares, count - 1).astype(jnp.int32)
        alpha = self._alphas[timesteps][:, None, None, None]
        noisy = jnp.sqrt(alpha) * latents + jnp.sqrt(1 - alpha) * noise
        velocity = jnp.sqrt(alpha) * noise - jnp.sqrt(1 - alpha) * latents
        return noisy, velocity, timesteps.astype(jnp.float32)


def _structure(graph: nnx.GraphDef, data: _Data, noising: _Noising, recipe: Recipe) -> Callable[[nnx.State], Structure]:
    """Entropy, logit gap and log T of each layer on fixed scenes, noised evenly over the timesteps of training."""
    count = recipe.upkeep.monitored
    # Beyond every step of a training, so that they are none of its scenes.
    batch = data(2**40, count)
    keys = jax.random.split(jax.random.key(0), count)
    noisy, _, timesteps = noising(batch["latents"], normal(keys, batch["latents"].shape[1:]), batch["uniform"])

    @jax.jit
    def read(parameters: nnx.State) -> dict[str, tuple[Array, Array]]:
        model = nnx.merge(graph, parameters)
        record, readings = recorder()
        model.unet(noisy, timesteps, model.text(batch["tokens"]), _PLAIN, record)
        return readings

    def structure(parameters: nnx.State) -> Structure:
        layers = nnx.merge(graph, parameters).unet.attention_layers()
        return {
            name: (round(float(entropy), 4), round(float(gap), 4), round(math.log(layers[name].train_tokens), 4))
            for name, (entropy, gap) in read(parameters).items()
        }

    return structure
