"""The models of Stable Diffusion and Latent Diffusion in NNX, with diffusers' module names and channels last."""

from .autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from .clip_text import CLIPTextConfig, CLIPTextModel
from .conditioning import (
    AddedConditions,
    Conditioning,
    LatentDiffusionText,
    StableDiffusionText,
    TextEncoders,
    TextStates,
)
from .ldm_bert import LDMBertConfig, LDMBertModel
from .unet_2d_condition import UNet2DConditionConfig, UNet2DConditionModel
from .vq_model import VQModel, VQModelConfig

__all__ = [
    "AddedConditions",
    "AutoencoderKL",
    "AutoencoderKLConfig",
    "CLIPTextConfig",
    "CLIPTextModel",
    "Conditioning",
    "LDMBertConfig",
    "LDMBertModel",
    "LatentDiffusionText",
    "StableDiffusionText",
    "TextEncoders",
    "TextStates",
    "UNet2DConditionConfig",
    "UNet2DConditionModel",
    "VQModel",
    "VQModelConfig",
]
