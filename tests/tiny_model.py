"""Writes an untrained model with the built-in one's shape, in little: what whole Ray runs draw with in a moment."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from entscale_jax.models import AutoencoderKL, CLIPTextModel, UNet2DConditionModel
from entscale_jax.scenes.export import export_folder
from entscale_jax.scenes.recipe import Recipe
from entscale_jax.scenes.tokenizer import write_tokenizer


def write_tiny_model(folder: Path, seed: int = 0) -> Path:
    """A diffusers folder of two levels, trained (were it trained) at 32x32 pixels with 4 to a latent cell."""
    write_tokenizer(folder / "tokenizer")
    words = len(json.loads((folder / "tokenizer" / "vocab.json").read_text()))
    recipe = Recipe()
    rng = np.random.default_rng(seed)
    unet = replace(
        recipe.unet,
        sample_size=8,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        block_out_channels=(16, 32),
        norm_num_groups=8,
        cross_attention_dim=24,
        attention_head_dim=(2, 4),
    )
    text = replace(recipe.text, vocab_size=words, hidden_size=24, intermediate_size=48, num_attention_heads=2)
    autoencoder = replace(recipe.autoencoder, block_out_channels=(8, 8, 16))
    export_folder(
        folder,
        recipe,
        unet=_untrained(lambda: UNet2DConditionModel(unet, rngs=nnx.Rngs(0)), rng),
        autoencoder=_untrained(lambda: AutoencoderKL(autoencoder, rngs=nnx.Rngs(0)), rng),
        text=_untrained(lambda: CLIPTextModel(text, rngs=nnx.Rngs(0)), rng),
        scaling_factor=1.0,
    )
    return folder


def _untrained(make, rng):
    # Shapes from NNX and numbers from numpy: initialising by JAX would compile a program a shape, half a minute of it.
    graph, state = nnx.split(nnx.eval_shape(make))

    def fill(path, leaf):
        if len(leaf.shape) == 1:
            return np.full(leaf.shape, 0.0 if "bias" in str(path[-2]) else 1.0, leaf.dtype)
        return (rng.standard_normal(leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1]))).astype(leaf.dtype)

    return nnx.merge(graph, jax.tree_util.tree_map_with_path(fill, state))
