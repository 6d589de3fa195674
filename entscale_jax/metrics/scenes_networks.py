"""The networks that look at scenes for the metrics, at any size in pixels; how they learn is told in `scenes`.

Objects of scenes keep their size in pixels when a picture grows, so what is summed over positions counts them and what
is averaged describes the ground and the drawing, whatever the size of the picture.
"""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from ..models import CLIPTextModelWithProjection, CLIPTextProjectionConfig
from ..models.layers import Layers
from .captions import BACKGROUND

Pictures = UInt8[Array, "batch height width 3"]
Embedded = Float[Array, "batch features"]

KINDS_AND_UNKNOWN = 13
"""The twelve kinds of `captions.KINDS`, then whatever is none of them."""
QUALITIES = 5
"""Blur, noise, and the shift of each colour channel."""
_CELLS = 16.0
"""About as many cells of 8x8 pixels as an object covers, so that one object moves a summed feature by about 1."""


@dataclass(frozen=True, kw_only=True)
class TrunkConfig:
    """Channels after each halving, and how many convolutions follow at an eighth of the size."""

    widths: tuple[int, int, int] = (24, 48, 64)
    blocks: int = 2


@dataclass(frozen=True, kw_only=True)
class ExtractorConfig:
    """Of the extractor: 32 features, of which `summed` count."""

    trunk: TrunkConfig = TrunkConfig()
    features: int = 32
    summed: int = 24


CAPTIONS = CLIPTextProjectionConfig(
    vocab_size=583,
    hidden_size=64,
    intermediate_size=192,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=24,
    projection_dim=48,
    eos_token_id=582,
)
"""The text tower; its vocabulary is that of the built-in model's tokenizer."""


@dataclass(frozen=True, kw_only=True)
class ContrastConfig:
    """Of the contrastive model."""

    trunk: TrunkConfig = TrunkConfig()
    summed: int = 64
    averaged: int = 16
    text: CLIPTextProjectionConfig = field(default=CAPTIONS)


class Trunk(nnx.Module):
    """Convolutions from pixels to cells of 8x8 pixels; each sees 47 pixels around, more than the largest object.

    There is no normalisation: it would raise what is left of an empty ground to the height of an object.
    """

    def __init__(self, config: TrunkConfig, make: Layers):
        sizes = (3, *config.widths)
        width = config.widths[-1]
        self.down = nnx.List(make.conv(sizes[level], sizes[level + 1], stride=2) for level in range(3))
        self.blocks = nnx.List(make.conv(width, width) for _ in range(config.blocks))

    def __call__(self, pictures: Pictures) -> Float[Array, "batch h w channels"]:
        """[batch height width 3] pixels -> [batch ceil(height / 8) ceil(width / 8) width]."""
        hidden = from_ground(pictures)
        for conv in self.down:
            hidden = jax.nn.silu(conv(hidden))
        for conv in self.blocks:
            hidden = hidden + jax.nn.silu(conv(hidden))
        return hidden


class ScenesExtractor(nnx.Module):
    """Pictures of scenes to 32 features, and those to what they were trained to tell."""

    def __init__(self, config: ExtractorConfig = ExtractorConfig(), *, rngs: nnx.Rngs):
        make = Layers(rngs)
        self.config = config
        self.trunk = Trunk(config.trunk, make)
        self.project = make.conv(config.trunk.widths[-1], config.features, 1, padding=0)
        self.head = make.linear(config.features, KINDS_AND_UNKNOWN + QUALITIES)

    def __call__(self, pictures: Pictures) -> Embedded:
        """[batch height width 3] pixels -> [batch 32], not negative."""
        return _pooled(jax.nn.relu(self.project(self.trunk(pictures))), self.config.summed)

    def tell(self, pictures: Pictures) -> Float[Array, "batch told"]:
        """How many of each kind and how many unknown things are there, and blur, noise and shifts of colour."""
        return self.head(self(pictures))


class ScenesContrast(nnx.Module):
    """Pictures of scenes and their captions to unit vectors, whose product says how well they fit."""

    def __init__(self, config: ContrastConfig = ContrastConfig(), *, rngs: nnx.Rngs):
        make = Layers(rngs)
        pooled, width = config.summed + config.averaged, config.text.projection_dim
        self.config = config
        self.trunk = Trunk(config.trunk, make)
        self.project = make.conv(config.trunk.widths[-1], pooled, 1, padding=0)
        self.hidden = make.linear(pooled, 2 * pooled)
        self.embed = make.linear(2 * pooled, width)
        self.text = CLIPTextModelWithProjection(config.text, rngs=rngs)

    def see(self, pictures: Pictures) -> Embedded:
        """[batch height width 3] pixels -> [batch 48], of length 1."""
        pooled = _pooled(jax.nn.relu(self.project(self.trunk(pictures))), self.config.summed)
        return unit(self.embed(jax.nn.silu(self.hidden(pooled))))

    def read(self, tokens: Int[Array, "batch length"]) -> Embedded:
        """[batch length] token ids -> [batch 48], of length 1."""
        return unit(self.text(tokens)[1])


def unit(vectors: Float[Array, "*rows width"]) -> Float[Array, "*rows width"]:
    """Each divided by its length."""
    return vectors / jnp.linalg.norm(vectors, axis=-1, keepdims=True)


def from_ground(pictures: Pictures) -> Float[Array, "batch height width 3"]:
    """Pixels as differences from the ground, so that a convolution's padding of zeros goes on with the ground."""
    ground = jnp.asarray(BACKGROUND, jnp.float32).reshape(1, 1, 1, 3)
    return (pictures.astype(jnp.float32) - ground) / jnp.float32(128)


def _pooled(hidden: Float[Array, "batch h w channels"], summed: int) -> Embedded:
    sums = hidden[..., :summed].sum(axis=(1, 2)) / _CELLS
    return jnp.concatenate([sums, hidden[..., summed:].mean(axis=(1, 2))], axis=-1)
