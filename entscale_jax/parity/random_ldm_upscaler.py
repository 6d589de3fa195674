"""A small folder shaped as Latent Diffusion's super-resolution model, of random weights saved by PyTorch."""

import math
from pathlib import Path
from typing import Any

from diffusers.models.autoencoders.vq_model import VQModel
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion_superresolution import LDMSuperResolutionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler

from .random_models import randomise

UNET: dict[str, Any] = {
    "sample_size": 16,
    "in_channels": 6,
    "out_channels": 3,
    "block_out_channels": (16, 24, 40),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "attention_head_dim": 8,
    "norm_num_groups": 8,
}
"""As published but for widths and a level less, and attention at a level more."""
VQ: dict[str, Any] = {
    "block_out_channels": (8, 12, 20),
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "latent_channels": 3,
    "num_vq_embeddings": 59,
    "norm_num_groups": 4,
}
"""It shrinks by 4."""
_SHARPEN = 4.0
"""Enlarges `to_q` of attention: a scale does nothing to uniform attention."""


def build(folder: Path, seed: int = 0) -> Path:
    """Writes a pipeline's folder whose every parameter is random, and returns it."""
    unet, vqvae = UNet2DModel(**UNET), VQModel(**VQ)
    for offset, module in enumerate((unet, vqvae)):
        randomise(module, seed * 10 + offset)
    for name, parameter in unet.named_parameters():
        if name.endswith("to_q.weight"):
            parameter.data *= _SHARPEN
    # Codes as wide apart as latents of unit variance, so that many of them are some cell's nearest.
    codes = vqvae.quantize.embedding.weight
    codes.data *= math.sqrt(codes.shape[1])
    LDMSuperResolutionPipeline(vqvae=vqvae, unet=unet, scheduler=_scheduler()).save_pretrained(folder)
    return folder


def _scheduler() -> DDIMScheduler:
    """The betas of CompVis' `bsr_sr/config.yaml`; the rest as diffusers' conversion of it has."""
    return DDIMScheduler(beta_start=0.0015, beta_end=0.0155, beta_schedule="scaled_linear", clip_sample=False)
