"""Small transformers shaped as SD3's and SD3.5's, of random weights saved by PyTorch: parity without downloads."""

import math
from pathlib import Path
from typing import Any

import numpy as np
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel

from .random_models import ENTROPY_MARGIN, randomise
from .reference_sd3 import ReferenceSD3

TEXT_TOKENS = 7
_SHARPEN = 1.25
_ATTEMPTS = 40
_COMMON: dict[str, Any] = {"joint_attention_dim": 22, "pooled_projection_dim": 14, "out_channels": 6}
CONFIGS: dict[str, dict[str, Any]] = {
    "sd3": {
        **_COMMON,
        "sample_size": 12,
        "patch_size": 2,
        "in_channels": 5,
        "num_layers": 2,
        "attention_head_dim": 12,
        "num_attention_heads": 3,
        "caption_projection_dim": 36,
        "pos_embed_max_size": 11,
    },
    "sd3.5": {
        **_COMMON,
        "sample_size": 15,
        "patch_size": 3,
        "in_channels": 4,
        "num_layers": 3,
        "attention_head_dim": 20,
        "num_attention_heads": 2,
        "caption_projection_dim": 40,
        "pos_embed_max_size": 8,
        "dual_attention_layers": (0, 2),
        "qk_norm": "rms_norm",
    },
}
"""Widths are small and differ, so swapped axes can't pass."""


def build(folder: Path, kind: str, seed: int = 0) -> Path:
    """Writes a transformer's folder whose every parameter is random, and returns it.

    Queries and keys of image tokens are enlarged until each layer's mean entropy is `ENTROPY_MARGIN` below that of
    uniform attention over its keys.
    """
    model = SD3Transformer2DModel(**CONFIGS[kind])
    randomise(model, seed)
    model.save_pretrained(folder)
    _sharpen(ReferenceSD3(folder), folder, seed)
    return folder


def inputs(config: Any, grid: tuple[int, int], seed: int = 0) -> tuple[np.ndarray, ...]:
    """Latents, timesteps, text states and pooled text of two pictures, in float64."""
    random = np.random.default_rng(seed)
    shapes = [
        (2, *grid, config["in_channels"]),
        (2, TEXT_TOKENS, config["joint_attention_dim"]),
        (2, config["pooled_projection_dim"]),
    ]
    latents, context, pooled = (random.standard_normal(shape) for shape in shapes)
    return latents, np.array([481.0, 903.5]), context, pooled


def margins(reference: ReferenceSD3, seed: int = 0) -> dict[str, float]:
    """Nats between uniform attention and the mean entropy of each layer's image rows, at the training size."""
    side = reference.model.config["sample_size"]
    entropy = reference.entropies(*inputs(reference.model.config, (side, side), seed), rule="original")
    keys = {name: layer.train_tokens + ("attn2" not in name) * TEXT_TOKENS for name, layer in reference.layers.items()}
    return {name: math.log(keys[name]) - float(rows.mean()) for name, rows in entropy.items()}


def _sharpen(reference: ReferenceSD3, folder: Path, seed: int) -> None:
    modules = dict(reference.model.named_modules())
    uniform: list[str] = []
    for _ in range(_ATTEMPTS):
        uniform = [name for name, margin in margins(reference, seed).items() if margin < ENTROPY_MARGIN]
        if not uniform:
            reference.model.save_pretrained(folder)
            return
        for name in uniform:
            attention: Any = modules[name.replace("/", ".")]
            # Behind a norm of queries and keys a factor on their projections would be undone.
            for part in ("norm_q", "norm_k") if attention.norm_q else ("to_q", "to_k"):
                getattr(attention, part).weight.data *= _SHARPEN
    raise ValueError(f"attention of {', '.join(uniform)} stays uniform after {_ATTEMPTS} enlargements")
