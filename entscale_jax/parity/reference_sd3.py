"""An SD3 transformer in PyTorch diffusers with the scale on the picture's queries, against which ours is held.

Like `reference`, it imports nothing else of this package. Arrays go in and out as NumPy, NHWC.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.models.normalization import RMSNorm
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel

from .reference import TimeProjection64


class PictureScaled:
    """A processor of joint attention: lambda on the picture's rows, `1 / sqrt(d)` on the text's.

    Source: lambda = sqrt(log_T N / d), Eq. 7 of Jin et al., NeurIPS 2023, with the picture's tokens for N and T.
    """

    def __init__(self, train_tokens: int):
        self.train_tokens = train_tokens
        self.rule, self.multiplier = "original", 1.0
        self.margin = 0.0
        """Of the last call: nats between the log of the keys' number and the mean entropy of the picture's rows."""

    def scale(self, tokens: int, head_dim: int) -> float:
        if self.rule == "entropy":
            return math.sqrt(math.log(tokens) / math.log(self.train_tokens) / head_dim)
        return {"original": 1.0, "fixed": self.multiplier}[self.rule] / math.sqrt(head_dim)

    def __call__(self, attn: Any, hidden_states: torch.Tensor, encoder_hidden_states=None, attention_mask=None):
        if attention_mask is not None:
            raise ValueError("the reference knows no mask")
        query, key, value = _heads(attn, hidden_states, ("to_q", "to_k", "to_v"), ("norm_q", "norm_k"))
        scale = self.scale(hidden_states.shape[1], query.shape[-1])
        if encoder_hidden_states is None:
            return attn.to_out[0](self._attend(query, key, value, scale))
        names, norms = ("add_q_proj", "add_k_proj", "add_v_proj"), ("norm_added_q", "norm_added_k")
        text = _heads(attn, encoder_hidden_states, names, norms)
        keys, values = torch.cat([key, text[1]], dim=2), torch.cat([value, text[2]], dim=2)
        seen = attn.to_out[0](self._attend(query, keys, values, scale))
        read = F.scaled_dot_product_attention(text[0], keys, values).transpose(1, 2).flatten(2)
        return seen, read if attn.context_pre_only else attn.to_add_out(read)

    def _attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
        log_weights = torch.log_softmax(scale * query @ key.transpose(-1, -2), dim=-1)
        entropy = -(log_weights.exp() * log_weights).sum(-1).mean()
        self.margin = math.log(key.shape[2]) - float(entropy)
        return F.scaled_dot_product_attention(query, key, value, scale=scale).transpose(1, 2).flatten(2)


class RMSNorm64(torch.nn.Module):
    """The root mean square in float64; diffusers takes it in float32 whatever the model's dtype."""

    def __init__(self, norm: RMSNorm):
        super().__init__()
        self.norm: Any = norm

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        mean_square = hidden_states.pow(2).mean(-1, keepdim=True)
        return hidden_states * torch.rsqrt(mean_square + self.norm.eps) * self.norm.weight


class ReferenceSD3:
    """The transformer of a folder, in float32 or float64, with `PictureScaled` at every attention."""

    def __init__(self, folder: str | Path, *, float64: bool = False):
        self.dtype = torch.float64 if float64 else torch.float32
        self.model: Any = SD3Transformer2DModel.from_pretrained(str(folder), dtype=self.dtype).eval()
        if float64:
            self.model.time_text_embed.time_proj = TimeProjection64(256, flip_sin_to_cos=True, shift=0)
            _replace_norms(self.model)
        config = self.model.config
        patches = config["sample_size"] // config["patch_size"]
        self.layers = {
            name.removesuffix(".processor").replace(".", "/"): PictureScaled(patches**2)
            for name in self.model.attn_processors
        }
        self.model.set_attn_processor(
            {f"{path.replace('/', '.')}.processor": layer for path, layer in self.layers.items()}
        )

    def once(
        self,
        latents: np.ndarray,
        timesteps: np.ndarray,
        context: np.ndarray,
        pooled: np.ndarray,
        rule: str,
        multiplier: float = 1.0,
    ) -> np.ndarray:
        """[B, h, w, c], one call."""
        for layer in self.layers.values():
            layer.rule, layer.multiplier = rule, multiplier
        given = (latents.transpose(0, 3, 1, 2), context, pooled, timesteps)
        with torch.no_grad():
            out = self.model(*(torch.tensor(array, dtype=self.dtype) for array in given), return_dict=False)[0]
        return out.permute(0, 2, 3, 1).numpy()


def _heads(attn: Any, states: torch.Tensor, names: tuple[str, ...], norms: tuple[str, str]) -> list[torch.Tensor]:
    found = [getattr(attn, name)(states).unflatten(-1, (attn.heads, -1)).transpose(1, 2) for name in names]
    for index, name in enumerate(norms):
        norm = getattr(attn, name)
        found[index] = found[index] if norm is None else norm(found[index])
    return found


def _replace_norms(model: torch.nn.Module) -> None:
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, RMSNorm):
                setattr(module, name, RMSNorm64(child))
