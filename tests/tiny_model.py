"""Writes an untrained model with the built-in one's shape, in little: what whole Ray runs draw with in a moment."""

import json
from dataclasses import fields, replace
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from entscale_jax.models import (
    AutoencoderKL,
    CLIPTextModel,
    SuperResolutionUNetConfig,
    UNet2DConditionModel,
    UNet2DConfig,
    UNet2DModel,
    VQModel,
    VQModelConfig,
)
from entscale_jax.scenes.export import export_folder
from entscale_jax.scenes.recipe import Recipe
from entscale_jax.scenes.tokenizer import write_tokenizer
from entscale_jax.weights.torch_format import AbstractRngs, save_parameters


def write_tiny_model(folder: Path, seed: int = 0, recipe: Recipe | None = None) -> Path:
    """A diffusers folder of the recipe's architectures, `tiny_recipe`'s if none is given."""
    recipe = recipe or tiny_recipe()
    write_tokenizer(folder / "tokenizer")
    words = len(json.loads((folder / "tokenizer" / "vocab.json").read_text()))
    text = replace(recipe.text, vocab_size=words)
    rng = np.random.default_rng(seed)
    export_folder(
        folder,
        recipe,
        unet=untrained(lambda: UNet2DConditionModel(recipe.unet, rngs=AbstractRngs()), rng),
        autoencoder=untrained(lambda: AutoencoderKL(recipe.autoencoder, rngs=AbstractRngs()), rng),
        text=untrained(lambda: CLIPTextModel(text, rngs=AbstractRngs()), rng),
        scaling_factor=1.0,
    )
    return folder


def write_tiny_upscaler(folder: Path, seed: int = 0) -> Path:
    """A diffusers folder shaped as Stable Diffusion's upscaler: four times the size, noise levels up to 39."""
    recipe = tiny_recipe()
    plain = {each.name: getattr(recipe.unet, each.name) for each in fields(recipe.unet)}
    own = {"in_channels": 7, "num_class_embeds": 40, "only_cross_attention": (True, False)}
    write_tiny_model(folder, seed, replace(recipe, unet=SuperResolutionUNetConfig(**{**plain, **own})))
    index = json.loads((folder / "model_index.json").read_text())
    parts = {"_class_name": "StableDiffusionUpscalePipeline", "low_res_scheduler": ["diffusers", "DDPMScheduler"]}
    (folder / "model_index.json").write_text(json.dumps({**index, **parts, "max_noise_level": 350}))
    (folder / "low_res_scheduler").mkdir()
    noise = {"_class_name": "DDPMScheduler", "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
    (folder / "low_res_scheduler" / "scheduler_config.json").write_text(json.dumps(noise))
    return folder


def write_tiny_ldm_upscaler(folder: Path, seed: int = 0) -> Path:
    """A diffusers folder shaped as Latent Diffusion's super-resolution: four times the size."""
    unet = {
        "sample_size": 16,
        "in_channels": 6,
        "block_out_channels": (16, 32),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "norm_num_groups": 8,
    }
    stages = {name: (f"{block}Block2D",) * 3 for name, block in _STAGES.items()}
    vqvae = {**stages, "block_out_channels": (8, 8, 16), "norm_num_groups": 4, "latent_channels": 3}
    scheduler = {"beta_schedule": "scaled_linear", "beta_start": 0.0015, "beta_end": 0.0155, "clip_sample": False}
    kinds = {"unet": "UNet2DModel", "vqvae": "VQModel", "scheduler": "DDIMScheduler"}
    index = {"_class_name": "LDMSuperResolutionPipeline", **{part: ["diffusers", kind] for part, kind in kinds.items()}}
    for part, config in (("unet", unet), ("vqvae", vqvae), ("scheduler", scheduler)):
        (folder / part).mkdir(parents=True)
        name = "scheduler_config.json" if part == "scheduler" else "config.json"
        (folder / part / name).write_text(json.dumps({"_class_name": kinds[part], **config}))
    (folder / "model_index.json").write_text(json.dumps(index))
    rng = np.random.default_rng(seed)
    for part, make in {
        "unet": lambda: UNet2DModel(UNet2DConfig.from_json(unet), rngs=AbstractRngs()),
        "vqvae": lambda: VQModel(VQModelConfig.from_json(vqvae), rngs=AbstractRngs()),
    }.items():
        save_parameters(untrained(make, rng), folder / part / "diffusion_pytorch_model.safetensors")
    return folder


_STAGES = {"down_block_types": "DownEncoder", "up_block_types": "UpDecoder"}


def tiny_recipe() -> Recipe:
    """Two levels, trained (were they trained) at 32x32 pixels with 4 to a latent cell."""
    recipe = Recipe()
    return replace(
        recipe,
        unet=replace(
            recipe.unet,
            sample_size=8,
            down_block_types=("CrossAttnDownBlock2D",) * 2,
            mid_block_type="UNetMidBlock2DCrossAttn",
            up_block_types=("CrossAttnUpBlock2D",) * 2,
            block_out_channels=(16, 32),
            layers_per_block=1,
            transformer_layers_per_block=(1, 2),
            norm_num_groups=8,
            cross_attention_dim=24,
            attention_head_dim=(2, 4),
        ),
        text=replace(recipe.text, hidden_size=24, intermediate_size=48, num_attention_heads=2),
        autoencoder=replace(
            recipe.autoencoder,
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            block_out_channels=(8, 8, 16),
        ),
    )


def untrained(make, rng):
    """The module that `make` describes, with random weights."""
    # Shapes from NNX and numbers from numpy: initialising by JAX would compile a program a shape, half a minute of it.
    graph, state = nnx.split(nnx.eval_shape(make))

    def fill(path, leaf):
        if len(leaf.shape) == 1:
            return np.full(leaf.shape, 0.0 if "bias" in str(path[-2]) else 1.0, leaf.dtype)
        return (rng.standard_normal(leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1]))).astype(leaf.dtype)

    return nnx.merge(graph, jax.tree_util.tree_map_with_path(fill, state))
