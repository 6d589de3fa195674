"""A small folder shaped as SDXL base, of random weights saved by PyTorch: parity is shown without downloads."""

from pathlib import Path
from typing import Any

from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from .random_models import as_published, make_autoencoder, make_tokenizer, randomise, sharpen
from .reference_sdxl import ReferenceSDXL

LENGTH = 19
"""Tokens that both encoders read."""
UNET: dict[str, Any] = {
    "block_out_channels": (24, 40, 64),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "transformer_layers_per_block": (1, 2, 3),
    "attention_head_dim": (3, 5, 4),
    "cross_attention_dim": 53,
    "use_linear_projection": True,
    "norm_num_groups": 8,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 10,
    "projection_class_embeddings_input_dim": 14 + 6 * 10,
}
TEXT: dict[str, Any] = {
    "hidden_size": 20,
    "num_attention_heads": 2,
    "intermediate_size": 36,
    "num_hidden_layers": 3,
    "hidden_act": "quick_gelu",
    "projection_dim": 20,
}
TEXT_2: dict[str, Any] = {
    "hidden_size": 33,
    "num_attention_heads": 3,
    "intermediate_size": 44,
    "num_hidden_layers": 4,
    "hidden_act": "gelu",
    "projection_dim": 14,
}


def build(folder: Path, *, sample_size: int | tuple[int, int], seed: int = 0) -> Path:
    """Writes a pipeline's folder whose every parameter is random, and returns it.

    `sample_size`: latent cells at training, one number or (height, width); the autoencoder shrinks by 8.
    """
    tokenizer = make_tokenizer(folder / "tokenizer", LENGTH, "<|endoftext|>")
    tokenizer_2 = make_tokenizer(folder / "tokenizer_2", LENGTH, "!")
    # As published, though the tokenizers say otherwise: 2 asks for the end of a text by transformers' older rule.
    ids: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
    shape: dict[str, Any] = {"vocab_size": len(tokenizer), "max_position_embeddings": LENGTH}
    parts: dict[str, Any] = {
        "unet": UNet2DConditionModel(**UNET, sample_size=sample_size),  # pyright: ignore[reportArgumentType]
        "vae": make_autoencoder(scaling_factor=0.13025, force_upcast=True),
        "text_encoder": CLIPTextModel(CLIPTextConfig(**TEXT, **shape, **ids)),
        "text_encoder_2": CLIPTextModelWithProjection(CLIPTextConfig(**TEXT_2, **shape, **ids)),
    }
    for offset, module in enumerate(parts.values()):
        randomise(module, seed * 10 + offset)
    StableDiffusionXLPipeline(
        **parts,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        scheduler=_scheduler(),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    ).save_pretrained(folder)
    as_published(folder / "scheduler" / "scheduler_config.json")
    sharpen(ReferenceSDXL(folder), folder, seed)
    return folder


def _scheduler() -> Any:
    config: dict[str, Any] = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "steps_offset": 1,
        "timestep_spacing": "leading",
    }
    return EulerDiscreteScheduler(**config)
