"""Writes the trained modules as a folder that PyTorch's `StableDiffusionPipeline.from_pretrained` opens."""

import dataclasses
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..models import AutoencoderKL, CLIPTextModel, UNet2DConditionModel
from ..weights.torch_format import save_parameters
from .provenance import FILE
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
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Configs, weights in float32, tokenizer and provenance of the built-in model, under `folder` all at once."""
    vae = dataclasses.replace(autoencoder.config, scaling_factor=scaling_factor)
    with replace_folder(folder) as new:
        for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler"):
            (new / part).mkdir()
        save_parameters(unet, new / "unet" / "diffusion_pytorch_model.safetensors")
        save_parameters(autoencoder, new / "vae" / "diffusion_pytorch_model.safetensors")
        save_parameters(text, new / "text_encoder" / "model.safetensors", prefix="text_model.")
        write_tokenizer(new / "tokenizer")
        _write(
            new / "model_index.json",
            {"_class_name": "StableDiffusionPipeline", **_PARTS, "requires_safety_checker": False},
        )
        _write(new / "unet" / "config.json", _config("UNet2DConditionModel", unet.config))
        _write(new / "vae" / "config.json", {**_config("AutoencoderKL", vae), "force_upcast": False})
        _write(new / "text_encoder" / "config.json", {**dataclasses.asdict(text.config), **_text_remarks(text)})
        _write(new / "scheduler" / "scheduler_config.json", recipe.scheduler)
        if provenance is not None:
            _write(new / FILE, provenance)


@contextmanager
def replace_folder(folder: Path) -> Iterator[Path]:
    """An empty folder beside `folder`, which takes its place at the end; a process killed before leaves the old one.

    Between two renames there is no `folder` for a moment, but the old one, `.old`, and the new one are whole.
    """
    new, old = (folder.with_name(folder.name + ending) for ending in (".new", ".old"))
    if new.exists():
        shutil.rmtree(new)
    if old.exists() and folder.exists():
        shutil.rmtree(old)
    new.mkdir(parents=True)
    yield new
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


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
