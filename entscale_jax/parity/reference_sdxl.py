"""A folder of SDXL in PyTorch diffusers, against which ours is held: two text encoders, and a UNet that is told sizes.

Like `reference`, it imports nothing else of this package. Arrays go in and out as NumPy, NHWC.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from .reference import DiffusersFolder, TimeProjection64, open_text, token_ids


class Conditions(NamedTuple):
    """All that SDXL's UNet is told of the prompts and sizes."""

    text_states: np.ndarray
    """[B, S, D], both encoders' penultimate states side by side."""
    text_embeds: np.ndarray
    """[B, P], the second encoder's pooled and projected embedding."""
    time_ids: np.ndarray
    """[B, 6], pixels: height and width of the original, top and left of its crop, height and width of the target."""


class ReferenceSDXL(DiffusersFolder):
    """A folder saved by `StableDiffusionXLPipeline`. Its UNet's context is `Conditions`."""

    def __init__(self, folder: str | Path, *, float64: bool = False, train_grid: tuple[int, int] | None = None):
        super().__init__(folder, float64=float64, train_grid=train_grid)
        self.tokenizer, self.text_encoder = open_text(CLIPTextModel, folder, "", self.dtype)
        self.tokenizer_2, self.text_encoder_2 = open_text(CLIPTextModelWithProjection, folder, "_2", self.dtype)
        config = self.unet.config
        if float64:
            self.unet.add_time_proj = TimeProjection64(
                config["addition_time_embed_dim"], config["flip_sin_to_cos"], config["freq_shift"]
            )

    def text_states(self, prompts: Sequence[str]) -> np.ndarray:
        """[B, S, D], both encoders' penultimate states side by side."""
        first = self._encode(self.tokenizer, self.text_encoder, prompts).hidden_states[-2]
        second = self._encode(self.tokenizer_2, self.text_encoder_2, prompts).hidden_states[-2]
        return torch.cat([first, second], dim=-1).numpy()

    def pooled(self, prompts: Sequence[str]) -> np.ndarray:
        """[B, P], the second encoder's pooled and projected embedding."""
        return self._encode(self.tokenizer_2, self.text_encoder_2, prompts).text_embeds.numpy()

    def conditions(self, prompts: Sequence[str], time_ids: Sequence[float] | None = None) -> Conditions:
        """What the UNet is told; without `time_ids`, that nothing was scaled or cropped in training size."""
        factor = 2 ** (len(self.vae.config["block_out_channels"]) - 1)
        height, width = (side * factor for side in self.train_grid)
        told = np.asarray(time_ids or (height, width, 0, 0, height, width), float)
        return Conditions(self.text_states(prompts), self.pooled(prompts), np.tile(told, (len(prompts), 1)))

    def away(self, count: int, negative_prompt: str | None, time_ids: Sequence[float]) -> Conditions:
        """Zeros in place of text where no negative prompt is given, as `force_zeros_for_empty_prompt` says."""
        told = self.conditions([negative_prompt or ""] * count, time_ids)
        if negative_prompt is not None:
            return told
        return Conditions(np.zeros_like(told.text_states), np.zeros_like(told.text_embeds), told.time_ids)

    def _encode(self, tokenizer: Any, encoder: Any, prompts: Sequence[str]) -> Any:
        with torch.no_grad():
            return encoder(torch.from_numpy(token_ids(tokenizer, prompts)), output_hidden_states=True)

    def _keywords(self, context: Conditions) -> dict[str, Any]:
        states, text_embeds, time_ids = map(self._tensor, context)
        return {
            "encoder_hidden_states": states,
            "added_cond_kwargs": {"text_embeds": text_embeds, "time_ids": time_ids},
        }
