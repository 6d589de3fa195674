"""Stable Diffusion, Latent Diffusion, SDXL and SD3's transformer in NNX: diffusers' module names, channels last."""

from .autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from .clip_text import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTextProjectionConfig
from .conditioning import (
    Conditioning,
    LatentDiffusionText,
    LowResolution,
    NoText,
    StableDiffusionText,
    StableDiffusionXLText,
    TextEncoders,
    TextStates,
)
from .flax_configs import FlaxAutoencoderKLConfig, FlaxUNet2DConditionConfig
from .ldm_bert import LDMBertConfig, LDMBertModel
from .sd3_transformer import SD3Transformer2DModel, SD3TransformerConfig
from .super_resolution import SuperResolutionUNetConfig
from .time_embedding import AddedConditions
from .unet_2d import UNet, UNet2DConfig, UNet2DModel
from .unet_2d_condition import UNet2DConditionConfig, UNet2DConditionModel
from .vq_model import VQModel, VQModelConfig

__all__ = [
    "AddedConditions",
    "AutoencoderKL",
    "AutoencoderKLConfig",
    "CLIPTextConfig",
    "CLIPTextModel",
    "CLIPTextModelWithProjection",
    "CLIPTextProjectionConfig",
    "Conditioning",
    "FlaxAutoencoderKLConfig",
    "FlaxUNet2DConditionConfig",
    "LDMBertConfig",
    "LDMBertModel",
    "LatentDiffusionText",
    "LowResolution",
    "NoText",
    "SD3Transformer2DModel",
    "SD3TransformerConfig",
    "StableDiffusionText",
    "StableDiffusionXLText",
    "SuperResolutionUNetConfig",
    "TextEncoders",
    "TextStates",
    "UNet",
    "UNet2DConditionConfig",
    "UNet2DConditionModel",
    "UNet2DConfig",
    "UNet2DModel",
    "VQModel",
    "VQModelConfig",
]
