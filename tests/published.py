"""The UNet configs of the checkpoints that people use, as their `unet/config.json` has them, and what follows for T."""

from typing import Any

_CROSS, _PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"
_CROSS_UP, _PLAIN_UP = "CrossAttnUpBlock2D", "UpBlock2D"

_COMMON: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "act_fn": "silu",
    "center_input_sample": False,
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 4,
}
_FOUR_LEVELS: dict[str, Any] = {
    **_COMMON,
    "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": [_CROSS, _CROSS, _CROSS, _PLAIN],
    "up_block_types": [_PLAIN_UP, _CROSS_UP, _CROSS_UP, _CROSS_UP],
}
_STABLE_DIFFUSION_2: dict[str, Any] = {
    **_FOUR_LEVELS,
    "attention_head_dim": [5, 10, 20, 20],
    "cross_attention_dim": 1024,
    "dual_cross_attention": False,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "use_linear_projection": True,
}
UNETS: dict[str, dict[str, Any]] = {
    "SD 1.5": {**_FOUR_LEVELS, "sample_size": 64, "attention_head_dim": 8, "cross_attention_dim": 768},
    "SD 2.1 base": {**_STABLE_DIFFUSION_2, "sample_size": 64},
    "SD 2.1": {**_STABLE_DIFFUSION_2, "sample_size": 96, "upcast_attention": True},
    "LDM": {**_FOUR_LEVELS, "sample_size": 32, "attention_head_dim": 8, "cross_attention_dim": 1280},
    "SDXL": {
        **_COMMON,
        "sample_size": 128,
        "block_out_channels": [320, 640, 1280],
        "down_block_types": [_PLAIN, _CROSS, _CROSS],
        "up_block_types": [_CROSS_UP, _CROSS_UP, _PLAIN_UP],
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "attention_head_dim": [5, 10, 20],
        "num_attention_heads": None,
        "transformer_layers_per_block": [1, 2, 10],
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "upcast_attention": None,
        "addition_embed_type": "text_time",
        "addition_embed_type_num_heads": 64,
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
        "class_embed_type": None,
        "class_embeddings_concat": False,
        "conv_in_kernel": 3,
        "conv_out_kernel": 3,
        "cross_attention_norm": None,
        "dual_cross_attention": False,
        "encoder_hid_dim": None,
        "encoder_hid_dim_type": None,
        "mid_block_only_cross_attention": None,
        "num_class_embeds": None,
        "only_cross_attention": False,
        "resnet_out_scale_factor": 1.0,
        "resnet_skip_time_act": False,
        "resnet_time_scale_shift": "default",
        "time_cond_proj_dim": None,
        "time_embedding_act_fn": None,
        "time_embedding_dim": None,
        "time_embedding_type": "positional",
        "timestep_post_act": None,
    },
}

TRAIN_TOKENS: dict[str, dict[int, int]] = {
    "SD 1.5": {0: 4096, 1: 1024, 2: 256, 3: 64},
    "SD 2.1 base": {0: 4096, 1: 1024, 2: 256, 3: 64},
    "SD 2.1": {0: 9216, 1: 2304, 2: 576, 3: 144},
    "LDM": {0: 1024, 1: 256, 2: 64, 3: 16},
    "SDXL": {1: 4096, 2: 1024},
}
"""T of each level that has self-attention, finest 0: the squares of 64, 96, 32 and 128 over powers of 4."""

SIZES: dict[str, tuple[tuple[int, int], ...]] = {
    "SD 1.5": ((224, 224), (512, 288), (296, 520)),
    "SD 2.1 base": ((224, 224), (512, 288), (296, 520)),
    "SD 2.1": ((336, 336), (768, 432), (440, 776)),
    "LDM": ((224, 224), (512, 288), (296, 520)),
    "SDXL": ((448, 448), (1024, 576), (592, 1040)),
}
"""(width, height) in pixels that full-size models are compared at."""
