"""Everything that was chosen about the built-in model, in one place: change it here, train again."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ..metrics.captions import TRAIN_SIZE
from ..models import AutoencoderKLConfig, CLIPTextConfig, UNet2DConditionConfig

SIZE = TRAIN_SIZE


@dataclass(frozen=True, kw_only=True)
class Stage:
    """How one of the three trainings runs: a warm-up, a constant rate, then a linear decay to zero."""

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
    optimizer: Literal["adam", "muon"] = "adam"
    """`muon` orthogonalises the changes of the transformers' matrices; Adam keeps the other weights."""
    muon_rate: float = 0.01
    """Muon's learning rate, which runs through the same schedule."""


@dataclass(frozen=True, kw_only=True)
class Upkeep:
    """What is said and kept while training. Nothing here changes a weight."""

    log_every: int = 50
    """Steps between two lines of the log."""
    monitored: int = 8
    """Noised training latents on which entropy and logit gap are measured for each line."""
    save_minutes: float = 5.0
    """Between checkpoints, and so the most that a stop can cost."""
    save_steps: int | None = None
    """Checkpoints also at each multiple of so many steps."""
    watch_minutes: float = 30.0
    """Between two readings of the captions below, each at a checkpoint; the last step has one in any case."""
    watch_captions: int = 48


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
    sample_size=SIZE // AUTOENCODER.factor,
    down_block_types=("CrossAttnDownBlock2D",),
    mid_block_type=None,
    up_block_types=("CrossAttnUpBlock2D",),
    block_out_channels=(96,),
    layers_per_block=1,
    transformer_layers_per_block=2,
    norm_num_groups=16,
    cross_attention_dim=96,
    attention_head_dim=3,
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
    """Architectures, noise, the three stages and how they are watched."""

    autoencoder: AutoencoderKLConfig = AUTOENCODER
    text: CLIPTextConfig = TEXT
    unet: UNet2DConditionConfig = UNET
    scheduler: Mapping[str, Any] = field(default_factory=SCHEDULER.copy)
    autoencoder_stage: Stage = Stage(
        steps=2000, batch=8, learning_rate=2e-3, warmup=30, gradient_norm=0.5, optimizer="muon", muon_rate=0.02
    )
    binding_stage: Stage = Stage(steps=2365, batch=16, learning_rate=1e-3, decay=0.0, optimizer="muon", muon_rate=0.01)
    """Before `diffusion_stage`, with whole kernels: so the UNet learns soonest what the words mean."""
    diffusion_stage: Stage = Stage(
        steps=12500, batch=16, learning_rate=1e-3, warmup=30, optimizer="muon", muon_rate=0.01
    )
    pointwise: tuple[str, ...] = (
        "down_blocks/0/resnets/0/conv2",
        "up_blocks/0/resnets/0/conv1",
        "up_blocks/0/resnets/0/conv2",
        "up_blocks/0/resnets/1/conv2",
    )
    """Convolutions of the UNet that keep the centre of their kernels alone in `diffusion_stage`. What they no longer
    see around them, self-attention has to carry: the others reach four tokens each way, of sixteen."""
    autoencoder_sizes: tuple[tuple[int, int], ...] = ((64, 64), (64, 64), (128, 128), (256, 256))
    """Height and width of the pictures that the autoencoder learns, a step each at random: it must be true to what the
    UNet makes at any size, and small objects are the hardest. `batch` is counted at the training size; smaller pictures
    come in larger batches."""
    kl_weight: float = 1e-6
    """Of the autoencoder's divergence from a unit Gaussian, summed over a picture, beside the mean absolute error."""
    unconditional: float = 0.1
    """Share of the captions replaced by the empty one, for guidance."""
    timestep_logits: tuple[float, float] = (1.0, 0.8)
    """Mean and deviation of the normal numbers whose sigmoid is a training timestep's share of all: two thirds fall on
    550 to 857 of 1000, where layout is decided. Source: the logit-normal sampling of arXiv 2403.03206."""
    kind_weight: float = 0.5
    """Of the cross-entropy of a layer that says of each latent cell what is drawn there, from what the UNet's last
    convolution sees. It is not exported: it makes the UNet bind the text to places sooner."""
    attention_gain: float = 2.0
    """Factor on the initial `to_q` and `to_k` of every self-attention: above 1, attention starts with structure."""
    query_key_rate: float = 1.0
    """Factor on the learning rate of the same two."""
    entropy_weight: float = 0.02
    """Of the penalty: the mean over self-attention layers of relu(mean entropy - (log T - entropy_below)), in nats."""
    entropy_below: float = 1.0
    entropy_pictures: int = 2
    """The penalty reads the first so many pictures of a device's batch."""
    upkeep: Upkeep = Upkeep()
