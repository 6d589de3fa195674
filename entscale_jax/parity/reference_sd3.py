"""SD3's transformer in PyTorch diffusers with our reading of the rule, against which ours is held.

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


class JointProcessor:
    """A diffusers attention processor that gives image rows and text rows scales of their own.

    Source: lambda = sqrt(log_T N / d), Eq. 7 of Jin et al., NeurIPS 2023; that N and T count image tokens, and that
    text rows keep 1 / sqrt(d), is our reading.
    """

    def __init__(self, train_tokens: int):
        self.train_tokens = train_tokens
        self.rule = "original"
        self.multiplier = 1.0
        self.record: list[torch.Tensor] | None = None

    def image_scale(self, tokens: int, head_dim: int) -> float:
        """Of rows whose query is an image token, where there are `tokens` of them."""
        if self.rule == "entropy":
            return math.sqrt(math.log(tokens) / math.log(self.train_tokens) / head_dim)
        return {"original": 1.0, "fixed": self.multiplier}[self.rule] / math.sqrt(head_dim)

    def text_scale(self, tokens: int, head_dim: int) -> float:
        """Of rows whose query is a text token."""
        return 1 / math.sqrt(head_dim)

    def __call__(self, attn: Any, hidden_states: torch.Tensor, encoder_hidden_states=None, attention_mask=None):
        if attention_mask is not None:
            raise ValueError("SD3's attention was given a mask: none of it is masked")
        linears = (attn.to_q, attn.to_k, attn.to_v)
        query, key, value = _heads(attn, hidden_states, linears, (attn.norm_q, attn.norm_k))
        tokens, head_dim = query.shape[2:]
        text_query = None
        if encoder_hidden_states is not None:
            linears = (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
            norms = (attn.norm_added_q, attn.norm_added_k)
            text_query, text_key, text_value = _heads(attn, encoder_hidden_states, linears, norms)
            key, value = torch.cat([key, text_key], dim=2), torch.cat([value, text_value], dim=2)
        scale = self.image_scale(tokens, head_dim)
        if self.record is not None:
            self.record.append(_entropy(query, key, scale))
        image = attn.to_out[0](_merged(F.scaled_dot_product_attention(query, key, value, scale=scale)))
        if text_query is None:
            return image
        scale = self.text_scale(tokens, head_dim)
        text = _merged(F.scaled_dot_product_attention(text_query, key, value, scale=scale))
        return image, text if attn.context_pre_only else attn.to_add_out(text)


class RMSNorm64(torch.nn.Module):
    """Division by the root of the mean square in float64; diffusers takes the mean in float32."""

    def __init__(self, norm: Any):
        super().__init__()
        self.weight, self.eps = norm.weight, norm.eps

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        mean = hidden_states.pow(2).mean(-1, keepdim=True)
        return hidden_states * torch.rsqrt(mean + self.eps) * self.weight


class ReferenceSD3:
    """A folder saved by `SD3Transformer2DModel`, in float32 or float64, with `JointProcessor` at every attention."""

    def __init__(self, folder: str | Path, *, float64: bool = False):
        self.dtype = torch.float64 if float64 else torch.float32
        self.model: Any = SD3Transformer2DModel.from_pretrained(str(folder), torch_dtype=self.dtype).eval()
        if float64:
            self.model.time_text_embed.time_proj = TimeProjection64(256, True, 0)
            _norms_in_float64(self.model)
        side = self.model.config["sample_size"] // self.model.config["patch_size"]
        self.layers = install(self.model, side * side)

    def predict(
        self,
        latents: np.ndarray,
        timesteps: np.ndarray,
        context: np.ndarray,
        pooled: np.ndarray,
        rule: str,
        multiplier: float = 1.0,
    ) -> np.ndarray:
        """[B, h, w, c], the model's output."""
        for layer in self.layers.values():
            layer.rule, layer.multiplier = rule, multiplier
        with torch.no_grad():
            out = self.model(
                hidden_states=self._tensor(latents).permute(0, 3, 1, 2).contiguous(),
                timestep=self._tensor(timesteps),
                encoder_hidden_states=self._tensor(context),
                pooled_projections=self._tensor(pooled),
                return_dict=False,
            )[0]
        return out.permute(0, 2, 3, 1).contiguous().numpy()

    def entropies(self, *arrays: np.ndarray, rule: str) -> dict[str, np.ndarray]:
        """Per layer [B, heads]: the entropy of its image rows over all keys in nats, mean over rows."""
        for layer in self.layers.values():
            layer.record = []
        self.predict(*arrays, rule=rule)
        found = {name: layer.record[0].numpy() for name, layer in self.layers.items() if layer.record}
        for layer in self.layers.values():
            layer.record = None
        return found

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.tensor(np.asarray(array), dtype=self.dtype)


def install(model: Any, train_tokens: int) -> dict[str, JointProcessor]:
    """Puts `JointProcessor` at every attention of a transformer trained on so many image tokens. Path -> processor."""
    processors = {name: JointProcessor(train_tokens) for name in model.attn_processors}
    model.set_attn_processor(dict(processors))
    return {name.removesuffix(".processor").replace(".", "/"): each for name, each in processors.items()}


def _norms_in_float64(module: torch.nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, RMSNorm):
            setattr(module, name, RMSNorm64(child))
        else:
            _norms_in_float64(child)


def _heads(attn: Any, hidden: torch.Tensor, linears: tuple, norms: tuple) -> list[torch.Tensor]:
    query, key, value = (linear(hidden).unflatten(-1, (attn.heads, -1)).transpose(1, 2) for linear in linears)
    norm_query, norm_key = norms
    return [norm_query(query) if norm_query else query, norm_key(key) if norm_key else key, value]


def _merged(heads: torch.Tensor) -> torch.Tensor:
    return heads.transpose(1, 2).flatten(2)


def _entropy(query: torch.Tensor, key: torch.Tensor, scale: float) -> torch.Tensor:
    log_weights = torch.log_softmax(scale * query @ key.transpose(-1, -2), dim=-1)
    return -(log_weights.exp() * log_weights).sum(-1).mean(-1)
