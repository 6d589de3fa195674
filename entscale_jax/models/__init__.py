"""The models of Stable Diffusion in NNX, with diffusers' module names and channels last."""

from .autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from .clip_text import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTextProjectionConfig
from .time_embedding import AddedConditions
from .unet_2d_condition import UNet2DConditionConfig, UNet2DConditionModel

__all__ = [
    "AddedConditions",
    "AutoencoderKL",
    "AutoencoderKLConfig",
    "CLIPTextConfig",
    "CLIPTextModel",
    "CLIPTextModelWithProjection",
    "CLIPTextProjectionConfig",
    "UNet2DConditionConfig",
    "UNet2DConditionModel",
]
