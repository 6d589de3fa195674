"""A folder of Latent Diffusion in PyTorch diffusers, against which ours is held; it imports nothing else of ours."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.vq_model import VQModel
from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertModel
from transformers import BertTokenizer

from .reference import Reference

_FIRST_STAGES: dict[str, Any] = {"AutoencoderKL": AutoencoderKL, "VQModel": VQModel}
_LENGTH = 77
"""Tokens a caption, which the pipeline sets itself: BERT's tokenizer knows of 512."""


class ReferenceLDM(Reference):
    """As `Reference`, with the parts of diffusers' `LDMTextToImagePipeline`: `bert`, and `vqvae` of either kind."""

    pipeline_sets: ClassVar[Mapping[str, Any]] = {}

    def _open_vae(self, folder: str) -> Any:
        config: Any = VQModel.load_config(folder, subfolder="vqvae")
        kind = _FIRST_STAGES[config["_class_name"]]
        return kind.from_pretrained(folder, subfolder="vqvae", torch_dtype=self.dtype).eval()

    def _open_text(self, folder: str) -> tuple[Any, Any]:
        tokenizer = BertTokenizer.from_pretrained(folder, subfolder="tokenizer", model_max_length=_LENGTH)
        return tokenizer, LDMBertModel.from_pretrained(folder, subfolder="bert", dtype=self.dtype).eval()

    def encode(self, images: np.ndarray) -> np.ndarray:
        """[B, h, w, c], latents before they are rounded to the codebook, or moments as `Reference` gives them."""
        if isinstance(self.vae, AutoencoderKL):
            return super().encode(images)
        with torch.no_grad():
            latents = self.vae.encode(self._nchw(images)).latents
            return latents.permute(0, 2, 3, 1).contiguous().numpy()
