"""Everything that was chosen about the built-in model, in one place: change it here, train again."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..metrics.captions import TRAIN_SIZE
from ..models import AutoencoderKLConfig, CLIPTextConfig, UNet2DConditionConfig

SIZE = TRAIN_SIZE


@dataclass(frozen=True, kw_only=True)
class Stage:
    """How one of the two trainings runs: Adam, a warm-up, a constant rate, then a linear decay to zero."""

    steps: int
    batch: int
    learning_rate: float
    warmup: int = 100
    decay: float = 0.3
    """The last share of the steps, over which the learning rate falls to zero."""
    gradient_norm: float = 1.0
    ema: float = 0.998
    """Decay of the averaged weights, which are the ones exported."""
    seed: int = 0


AUTOENCODER = AutoencoderKLConfig(
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    block_out_channels=(8, 24, 48, 64),
    layers_per_block=1,
    norm_num_groups=8,
    mid_block_add_attention=False,
)
TEXT = CLIPTextConfig(
    vocab_size=0,  # the tokenizer's, filled in when training starts
    hidden_size=96,
    intermediate_size=384,
    num_hidden_layers=2,
    num_attention_heads=3,
    max_position_embeddings=24,
)
UNET = UNet2DConditionConfig(
    sample_size=SIZE // 4,
    down_block_types=("CrossAttnDownBlock2D",) * 3,
    up_block_types=("CrossAttnUpBlock2D",) * 3,
    block_out_channels=(64, 96, 128),
    layers_per_block=1,
    norm_num_groups=16,
    cross_attention_dim=96,
    attention_head_dim=(2, 3, 4),
    use_linear_projection=True,
)
SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "prediction_type": "v_prediction",
    "timestep_spacing": "leading",
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Architectures, noise and the two stages."""

    autoencoder: AutoencoderKLConfig = AUTOENCODER
    text: CLIPTextConfig = TEXT
    unet: UNet2DConditionConfig = UNET
    scheduler: Mapping[str, Any] = field(default_factory=SCHEDULER.copy)
    autoencoder_stage: Stage = Stage(steps=1600, batch=8, learning_rate=2e-3, gradient_norm=0.5)
    diffusion_stage: Stage = Stage(steps=4000, batch=16, learning_rate=8e-4)
    kl_weight: float = 1e-6
    """Of the autoencoder's divergence from a unit Gaussian, summed over a picture, beside the mean absolute error."""
    unconditional: float = 0.1
    """Share of the captions replaced by the empty one, for guidance."""
    timestep_power: float = 0.75
    """Training timesteps are 1000 u^power, u uniform: below 1 they lean to high noise, where layout is decided."""
