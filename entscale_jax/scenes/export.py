"""Writes the trained modules as a folder that PyTorch's `StableDiffusionPipeline.from_pretrained` opens."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..models import AutoencoderKL, CLIPTextModel, UNet2DConditionModel
from ..weights.torch_format import save_parameters
from .recipe import Recipe
from .tokenizer import write_tokenizer

_PARTS = {
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "safety_checker": [None, None],
    "feature_extractor": [None, None],
}


def export_folder(
    folder: Path,
    recipe: Recipe,
    *,
    unet: UNet2DConditionModel,
    autoencoder: AutoencoderKL,
    text: CLIPTextModel,
    scaling_factor: float,
) -> None:
    """Configs, weights in float32 and tokenizer of the built-in model, under `folder`."""
    for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    save_parameters(unet, folder / "unet" / "diffusion_pytorch_model.safetensors")
    save_parameters(autoencoder, folder / "vae" / "diffusion_pytorch_model.safetensors")
    save_parameters(text, folder / "text_encoder" / "model.safetensors", prefix="text_model.")
    write_tokenizer(folder / "tokenizer")
    vae = dataclasses.replace(autoencoder.config, scaling_factor=scaling_factor)
    _write(
        folder / "model_index.json",
        {"_class_name": "StableDiffusionPipeline", **_PARTS, "requires_safety_checker": False},
    )
    _write(folder / "unet" / "config.json", _config("UNet2DConditionModel", unet.config))
    _write(folder / "vae" / "config.json", {**_config("AutoencoderKL", vae), "force_upcast": False})
    _write(folder / "text_encoder" / "config.json", {**dataclasses.asdict(text.config), **_text_remarks(text)})
    _write(folder / "scheduler" / "scheduler_config.json", recipe.scheduler)


def _config(name: str, config: Any) -> dict[str, Any]:
    return {"_class_name": name, **dataclasses.asdict(config)}


def _text_remarks(text: CLIPTextModel) -> dict[str, Any]:
    end = text.config.vocab_size - 1
    return {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "bos_token_id": end - 1,
        "eos_token_id": end,
        "pad_token_id": end,
        "projection_dim": text.config.hidden_size,
    }


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
