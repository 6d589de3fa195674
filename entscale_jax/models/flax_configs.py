"""The configs of diffusers' Flax classes, which are not the functions of PyTorch's classes with the same fields."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from ..errors import UserError
from .autoencoder_kl import AutoencoderKLConfig
from .unet_2d_condition import UNet2DConditionConfig


@dataclass(frozen=True, kw_only=True)
class FlaxUNet2DConditionConfig(UNet2DConditionConfig):
    """Of `FlaxUNet2DConditionModel` (diffusers 0.39 and before): another GELU, another epsilon, always 32 groups."""

    model: ClassVar[str] = "FlaxUNet2DConditionModel"
    # Both are about how the same attention is computed.
    inert: ClassVar[frozenset[str]] = UNet2DConditionConfig.inert | {"split_head_dim", "use_memory_efficient_attention"}
    transformer_norm_eps: ClassVar[float] = 1e-5
    transformer_gelu: ClassVar[str] = "gelu_pytorch_tanh"

    def __post_init__(self):
        super().__post_init__()
        _check_only(self, {"norm_num_groups": 32, "norm_eps": 1e-5, "num_attention_heads": None})

    @property
    def in_torch(self) -> UNet2DConditionConfig:
        """That of PyTorch's class with the same fields."""
        return UNet2DConditionConfig(**{field.name: getattr(self, field.name) for field in fields(self)})


@dataclass(frozen=True, kw_only=True)
class FlaxAutoencoderKLConfig(AutoencoderKLConfig):
    """Of `FlaxAutoencoderKL`, which computes what PyTorch's class does where the fields that it ignores are these."""

    model: ClassVar[str] = "FlaxAutoencoderKL"

    def __post_init__(self):
        super().__post_init__()
        levels = len(self.block_out_channels)
        only = {
            "down_block_types": ("DownEncoderBlock2D",) * levels,
            "up_block_types": ("UpDecoderBlock2D",) * levels,
            "mid_block_add_attention": True,
            "use_quant_conv": True,
            "use_post_quant_conv": True,
        }
        _check_only(self, only)


def _check_only(config: UNet2DConditionConfig | AutoencoderKLConfig, only: Mapping[str, Any]) -> None:
    """Raises UserError for a field that the Flax class ignores, or refuses, with another value than its own."""
    for name, value in only.items():
        if getattr(config, name) != value:
            raise UserError(f"{config.model}: {name}={getattr(config, name)!r}: Flax's class computes with {value!r}")
