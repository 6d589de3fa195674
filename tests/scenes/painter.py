"""A model that paints what a test tells it to, instead of drawing: what measurements of pictures are tested with."""

from types import SimpleNamespace

import numpy as np

from entscale_jax import TextToImage
from entscale_jax.scales import Scaling
from entscale_jax.scenes.draw import draw_scene

SIZE = 64


class Painter(TextToImage):
    """Gives `paint(caption, seed, scaling)` for each picture, and keeps the calls."""

    def __init__(self, paint=None, weights="0"):
        self.info = SimpleNamespace(weights_hash=weights, train_size=(SIZE, SIZE), train_grid=(8, 8), latent_factor=8)
        self.paint, self.calls = paint or true_drawing, []

    def __call__(self, prompts, *, seed, rule, height=None, width=None, **rest):
        self.calls.append((tuple(prompts), seed, rule))
        seeds = range(seed, seed + len(prompts))
        images = [self.paint(caption, each, Scaling.of(rule)) for caption, each in zip(prompts, seeds, strict=True)]
        return SimpleNamespace(images=np.stack(images))


def true_drawing(caption, seed, scaling=None):
    return draw_scene(caption, np.random.default_rng(seed), height=SIZE, width=SIZE)


def blank(caption, seed, scaling=None):
    return np.full((SIZE, SIZE, 3), 232, np.uint8)
