"""Small folders shaped as Stable Diffusion's, of random weights saved by PyTorch: parity is shown without downloads."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_pndm import PNDMScheduler
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from .reference import DiffusersFolder, Reference

ENTROPY_MARGIN = 0.5
"""Nats by which each self-attention layer's mean entropy is below log T: a scale does nothing to uniform attention."""

_SHARPEN = 1.25
_ATTEMPTS = 40
# Pixels that saturate would agree whatever is wrong.
_GAINS = {"decoder.conv_out.weight": 0.5}


@dataclass(frozen=True, kw_only=True)
class Family:
    """What sets one family of Stable Diffusion apart. Widths are small and differ, so swapped axes can't pass."""

    unet: dict[str, Any]
    text: dict[str, Any]
    pad_token: str
    scheduler: Callable[[], Any]
    vae: dict[str, Any] = field(default_factory=dict)


SD1 = Family(
    unet={
        "block_out_channels": (32, 40, 56, 72),
        "layers_per_block": 1,
        "attention_head_dim": 4,
        "cross_attention_dim": 20,
        "use_linear_projection": False,
    },
    text={
        "hidden_size": 20,
        "num_attention_heads": 2,
        "intermediate_size": 36,
        "num_hidden_layers": 2,
        "hidden_act": "quick_gelu",
        "max_position_embeddings": 17,
    },
    pad_token="<|endoftext|>",
    scheduler=lambda: DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        steps_offset=1,
        set_alpha_to_one=False,
        clip_sample=False,
    ),
)
"""As 1.x: convolutional projections, one number of heads for all levels, quick_gelu, epsilon."""

SD2 = Family(
    unet={
        "block_out_channels": (24, 48, 72, 72),
        "layers_per_block": 2,
        "attention_head_dim": (2, 4, 6, 6),
        "cross_attention_dim": 28,
        "use_linear_projection": True,
        "upcast_attention": True,
    },
    text={
        "hidden_size": 28,
        "num_attention_heads": 4,
        "intermediate_size": 44,
        "num_hidden_layers": 3,
        "hidden_act": "gelu",
        "max_position_embeddings": 23,
    },
    pad_token="!",
    scheduler=lambda: _pndm("v_prediction"),
)
"""As 2.x: linear projections, heads per level, gelu, padding by "!", v-prediction, a scheduler config of PNDM."""

SD2_BASE = replace(SD2, scheduler=lambda: _pndm("epsilon"))
"""As 2.x base: the same but for what the UNet predicts."""

FAMILIES = {"sd1": SD1, "sd2": SD2, "sd2-base": SD2_BASE}


def build(folder: Path, family: str | Family, *, sample_size: int | tuple[int, int], seed: int = 0) -> Path:
    """Writes a pipeline's folder whose every parameter is random, and returns it.

    `sample_size`: latent cells at training, one number or (height, width); the autoencoder shrinks by 8. `to_q` and
    `to_k` of self-attention are enlarged until each layer's mean entropy is `ENTROPY_MARGIN` below log T.
    """
    traits = FAMILIES[family] if isinstance(family, str) else family
    tokenizer = make_tokenizer(folder / "tokenizer", traits.text["max_position_embeddings"], traits.pad_token)
    parts = {
        "unet": _unet(traits, sample_size),
        "vae": make_autoencoder(**traits.vae),
        "text_encoder": _text_encoder(traits, tokenizer),
    }
    for offset, module in enumerate(parts.values()):
        randomise(module, seed * 10 + offset)
    absent: dict[str, Any] = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    StableDiffusionPipeline(**parts, tokenizer=tokenizer, scheduler=traits.scheduler(), **absent).save_pretrained(
        folder
    )
    as_published(folder / "scheduler" / "scheduler_config.json")
    sharpen(Reference(folder), folder, seed)
    return folder


def _pndm(prediction_type: Literal["epsilon", "v_prediction"]) -> PNDMScheduler:
    return PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        steps_offset=1,
        set_alpha_to_one=False,
        skip_prk_steps=True,
        prediction_type=prediction_type,
    )


def margins(reference: DiffusersFolder, seed: int = 0) -> dict[str, float]:
    """Nats between log T and the mean entropy of each self-attention layer at the training size, on random latents."""
    channels = reference.unet.config["in_channels"]
    latents = np.random.default_rng(seed).standard_normal((1, *reference.train_grid, channels))
    context = reference.conditions(["a red circle"])
    entropy = reference.entropies(latents, 500, context, "original")
    return {name: math.log(reference.layers[name].train_tokens) - float(rows.mean()) for name, rows in entropy.items()}


def sharpen(reference: DiffusersFolder, folder: Path, seed: int) -> None:
    """Enlarges `to_q` and `to_k` until every margin is `ENTROPY_MARGIN`, and saves the UNet in `folder`."""
    modules = dict(reference.unet.named_modules())
    uniform: list[str] = []
    for _ in range(_ATTEMPTS):
        uniform = [name for name, margin in margins(reference, seed).items() if margin < ENTROPY_MARGIN]
        if not uniform:
            reference.unet.save_pretrained(folder / "unet")
            return
        for name in uniform:
            layer: Any = modules[name.replace("/", ".")]
            layer.to_q.weight.data *= _SHARPEN
            layer.to_k.weight.data *= _SHARPEN
    raise ValueError(
        f"attention of {', '.join(uniform)} stays uniform after {_ATTEMPTS} enlargements: take another seed"
    )


def _unet(traits: Family, sample_size: int | tuple[int, int]) -> UNet2DConditionModel:
    return UNet2DConditionModel(**{"norm_num_groups": 8, **traits.unet}, sample_size=sample_size)  # pyright: ignore[reportArgumentType]


def make_autoencoder(**fields: Any) -> AutoencoderKL:
    """One that shrinks by 8."""
    config: dict[str, Any] = {
        "block_out_channels": (8, 12, 20, 28),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 1,
        "norm_num_groups": 4,
        **fields,
    }
    return AutoencoderKL(**config)


def _text_encoder(traits: Family, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    ids = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
    return CLIPTextModel(CLIPTextConfig(vocab_size=len(tokenizer), projection_dim=20, **ids, **traits.text))


def make_tokenizer(folder: Path, length: int, pad_token: str) -> CLIPTokenizer:
    """CLIP's byte-level tokenizer with no merges: every character is a token."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = [chr(code) for code in range(33, 127)]
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": length,
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": pad_token,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return CLIPTokenizer.from_pretrained(str(folder))


def as_published(path: Path) -> None:
    """Adds `clip_sample: false`, which Stable Diffusion's configs hold whatever their class; DDIM's default is true."""
    path.write_text(json.dumps({**json.loads(path.read_text()), "clip_sample": False}, indent=2))


def randomise(module: torch.nn.Module, seed: int) -> None:
    """Norm weights about 1, biases about 0, matrices that keep the variance; pictures mostly within -1 to 1."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(module.named_parameters()):
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("bias"):
            value = 0.1 * noise
        elif parameter.ndim == 1:
            value = 1 + 0.2 * noise
        else:
            value = noise / math.sqrt(parameter[0].numel())
        parameter.data.copy_(value * _GAINS.get(name, 1.0))
