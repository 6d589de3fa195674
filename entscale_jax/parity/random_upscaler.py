"""A small folder shaped as Stable Diffusion's x4 upscaler, of random weights saved by PyTorch."""

from pathlib import Path
from typing import Any

from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_upscale import StableDiffusionUpscalePipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from transformers import CLIPTextConfig, CLIPTextModel

from .random_models import make_autoencoder, make_tokenizer, randomise

LENGTH = 19
"""Tokens that the text encoder reads."""
UNET: dict[str, Any] = {
    "sample_size": 12,
    "in_channels": 7,
    "out_channels": 4,
    "num_class_embeds": 500,
    "block_out_channels": (16, 24, 40),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "only_cross_attention": (True, True, False),
    "layers_per_block": 1,
    "attention_head_dim": 4,
    "cross_attention_dim": 28,
    "use_linear_projection": True,
    "norm_num_groups": 8,
}
"""As published but for widths and a level less: self-attention is at the coarsest level alone."""
TEXT: dict[str, Any] = {
    "hidden_size": 28,
    "num_attention_heads": 4,
    "intermediate_size": 44,
    "num_hidden_layers": 2,
    "hidden_act": "gelu",
    "projection_dim": 20,
}
VAE: dict[str, Any] = {
    "block_out_channels": (8, 12, 20),
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "scaling_factor": 0.08333,
}
"""It shrinks by 4."""
_SHARPEN = 6.0
"""Enlarges `to_q` of self-attention: a scale does nothing to uniform attention."""


def build(folder: Path, seed: int = 0) -> Path:
    """Writes a pipeline's folder whose every parameter is random, and returns it."""
    tokenizer = make_tokenizer(folder / "tokenizer", LENGTH, "!")
    ids: dict[str, Any] = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
    shape: dict[str, Any] = {"vocab_size": len(tokenizer), "max_position_embeddings": LENGTH}
    parts: dict[str, Any] = {
        "unet": UNet2DConditionModel(**UNET),
        "vae": make_autoencoder(**VAE),
        "text_encoder": CLIPTextModel(CLIPTextConfig(**TEXT, **shape, **ids)),
    }
    for offset, module in enumerate(parts.values()):
        randomise(module, seed * 10 + offset)
    for name, module in parts["unet"].named_modules():
        if name.endswith("attn1") and not module.is_cross_attention:
            module.to_q.weight.data *= _SHARPEN
    # Latents of unit variance are divided by 0.08333 before they are decoded.
    parts["vae"].post_quant_conv.weight.data *= VAE["scaling_factor"]
    schedule: dict[str, Any] = {"beta_start": 0.0001, "beta_end": 0.02}
    StableDiffusionUpscalePipeline(
        **parts,
        tokenizer=tokenizer,
        low_res_scheduler=DDPMScheduler(beta_schedule="scaled_linear", **schedule),
        scheduler=_scheduler(schedule),
        max_noise_level=350,
    ).save_pretrained(folder)
    return folder


def _scheduler(schedule: dict[str, Any]) -> Any:
    rest: dict[str, Any] = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
    return DDIMScheduler(beta_schedule="linear", prediction_type="v_prediction", **rest, **schedule)
