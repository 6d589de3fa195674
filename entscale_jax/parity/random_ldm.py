"""Small folders shaped as Latent Diffusion's, of random weights saved by PyTorch, with either kind of first stage."""

import json
import math
import string
from pathlib import Path
from typing import Any

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.vq_model import VQModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import (
    LDMBertConfig,
    LDMBertModel,
    LDMTextToImagePipeline,
)
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from transformers import BertTokenizer

from .random_models import randomise, sharpen
from .reference_ldm import ReferenceLDM

_STATES = 36
_VQ_SCALING = 0.7
_FIRST_STAGE: dict[str, Any] = {"block_out_channels": (8, 12, 20, 28), "layers_per_block": 1, "norm_num_groups": 4}


def build(folder: Path, first_stage: str, *, sample_size: int | tuple[int, int], seed: int = 0) -> Path:
    """Writes a pipeline's folder whose every parameter is random, and returns it.

    Args:
        folder: where to.
        first_stage: `kl`, as the published model has it, or `vq`.
        sample_size: latent cells at training, one number or (height, width); the first stage shrinks by 8, which
            diffusers' pipeline takes for granted.
        seed: of the weights.

    Self-attention is sharpened as in `random_models.build`.
    """
    tokenizer = _tokenizer(folder / "tokenizer")
    vqvae = {"kl": _autoencoder, "vq": _vq_model}[first_stage]()
    unet, bert = _unet(sample_size, vqvae.config["latent_channels"]), _text_encoder(tokenizer)
    for offset, module in enumerate((unet, vqvae, bert)):
        randomise(module, seed * 10 + offset)
    if isinstance(vqvae, VQModel):
        _spread(vqvae)
    parts: dict[str, Any] = {"vqvae": vqvae, "bert": bert, "tokenizer": tokenizer, "unet": unet}
    LDMTextToImagePipeline(**parts, scheduler=_scheduler()).save_pretrained(folder)
    sharpen(ReferenceLDM(folder), folder, seed)
    return folder


def _scheduler() -> DDIMScheduler:
    """The betas of CompVis' `txt2img-1p4B-eval.yaml`; as early diffusers wrote it, the rest is the class's default."""
    return DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)


def _unet(sample_size: int | tuple[int, int], channels: int) -> UNet2DConditionModel:
    """As published, of one block a level and small widths, which differ, so swapped axes can't pass; 8 heads."""
    config: dict[str, Any] = {
        "sample_size": sample_size,
        "in_channels": channels,
        "out_channels": channels,
        "block_out_channels": (32, 40, 48, 56),
        "layers_per_block": 1,
        "attention_head_dim": 8,
        "cross_attention_dim": _STATES,
        "norm_num_groups": 8,
    }
    return UNet2DConditionModel(**config)


def _autoencoder() -> AutoencoderKL:
    blocks: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
    }
    return AutoencoderKL(**_FIRST_STAGE, **blocks)


def _vq_model() -> VQModel:
    """With attention at the deepest level too, as the VQ models of some checkpoints have it."""
    return VQModel(
        **_FIRST_STAGE,
        down_block_types=("DownEncoderBlock2D",) * 3 + ("AttnDownEncoderBlock2D",),
        up_block_types=("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * 3,
        num_vq_embeddings=59,
        scaling_factor=_VQ_SCALING,
    )


def _spread(vqvae: VQModel) -> None:
    """Codes as wide apart as latents of unit variance, so that many of them are some cell's nearest."""
    codes = vqvae.quantize.embedding.weight
    codes.data *= math.sqrt(codes.shape[1]) / _VQ_SCALING


def _text_encoder(tokenizer: BertTokenizer) -> LDMBertModel:
    """Of heads that together are narrower than the states."""
    config = LDMBertConfig(
        vocab_size=len(tokenizer),
        encoder_layers=2,
        encoder_ffn_dim=52,
        encoder_attention_heads=4,
        head_dim=7,
        d_model=_STATES,
    )
    return LDMBertModel(config)


def _tokenizer(folder: Path) -> BertTokenizer:
    """BERT's with a few words, and pieces of one character for all others of ASCII."""
    folder.mkdir(parents=True, exist_ok=True)
    special, words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], ["red", "blue", "circle", "square", "##s"]
    letters = string.ascii_lowercase + string.digits
    pieces = [*letters, *string.punctuation, *(f"##{letter}" for letter in letters if letter != "s")]
    (folder / "vocab.txt").write_text("\n".join([*special, *words, *pieces]) + "\n")
    config = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 512}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return BertTokenizer.from_pretrained(str(folder))
