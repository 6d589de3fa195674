"""Small random UNets and pipelines of PyTorch diffusers, and calls of them."""

import numpy as np
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from entscale_jax.parity import random_ldm, random_models, random_sdxl
from entscale_jax.parity.reference import Reference
from entscale_jax.parity.reference_ldm import ReferenceLDM
from entscale_jax.parity.reference_sdxl import ReferenceSDXL

CAPTIONS = ("a red circle", "a blue square")
FAMILIES = {
    "sd1": (Reference, lambda folder: random_models.build(folder, "sd1", sample_size=16)),
    "sd2": (Reference, lambda folder: random_models.build(folder, "sd2", sample_size=(12, 20), seed=1)),
    "sd2-base": (Reference, lambda folder: random_models.build(folder, "sd2-base", sample_size=16, seed=2)),
    "ldm-kl": (ReferenceLDM, lambda folder: random_ldm.build(folder, "kl", sample_size=16)),
    "ldm-vq": (ReferenceLDM, lambda folder: random_ldm.build(folder, "vq", sample_size=(12, 20), seed=1)),
    "sdxl": (ReferenceSDXL, lambda folder: random_sdxl.build(folder, sample_size=(12, 20))),
}
FIXED = {"rule": "fixed", "multiplier": 1.7}
ONE_ATTENTION = {"block_out_channels": (8,), "down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
"""In the middle: all that `torch.compile` needs to be slow on."""


def small(**fields):
    """A UNet of two levels, its `to_q` and `to_k` enlarged so that a scale shows."""
    options = {
        "sample_size": 8,
        "block_out_channels": (8, 8),
        "down_block_types": ("CrossAttnDownBlock2D",) * 2,
        "up_block_types": ("CrossAttnUpBlock2D",) * 2,
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 2,
        "cross_attention_dim": 6,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet2DConditionModel(**{**options, **fields}).eval()
    for name, parameter in unet.named_parameters():
        if "to_q" in name or "to_k" in name:
            parameter.data *= 6
    return unet


def draw(unet, grid=(12, 8)):
    """One step of a `small` UNet at a grid of (h, w) cells."""
    generator = torch.Generator().manual_seed(0)
    sample, context = (torch.randn(shape, generator=generator) for shape in ((2, 4, *grid), (2, 5, 6)))
    with torch.no_grad():
        return unet(sample.to(unet.dtype), 3, context.to(unet.dtype)).sample


def attention(unet):
    """The first self-attention."""
    return unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1


def relative(got, wanted):
    """The largest difference over the largest value wanted."""
    got, wanted = (np.asarray(array, np.float64) for array in (got, wanted))
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())
