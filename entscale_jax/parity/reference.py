"""The same folder in PyTorch diffusers, against which every figure of ours is held.

It states lambda in its own lines and imports nothing of this package, so a mistake in our rule can't hide in its check.
Arrays go in and out as NumPy, NHWC.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils import logging

Multiplier = float | Sequence[float]


class SelfAttention:
    """A diffusers attention processor that passes its own scale on. diffusers' processors ignore `attn.scale`.

    Source: lambda = sqrt(log_T N / d), Eq. 7 of Jin et al., NeurIPS 2023; with the layer's entropy E_T in training,
    from Eq. 5 there, lambda = sqrt((log N - E_T) / (log T - E_T) / d).
    """

    def __init__(self, level: int, train_tokens: int):
        self.level = level
        self.train_tokens = train_tokens
        self.rule = "original"
        self.multiplier: Multiplier = 1.0
        self.train_entropy = math.nan
        self.record: list[torch.Tensor] | None = None

    def scale(self, tokens: int, head_dim: int) -> float:
        if self.rule == "entropy":
            return math.sqrt(math.log(tokens) / math.log(self.train_tokens) / head_dim)
        if self.rule == "calibrated":
            now, then = math.log(tokens) - self.train_entropy, math.log(self.train_tokens) - self.train_entropy
            return math.sqrt(now / then / head_dim)
        if self.rule == "fixed":
            value = self.multiplier if isinstance(self.multiplier, int | float) else self.multiplier[self.level]
            return value / math.sqrt(head_dim)
        if self.rule == "original":
            return 1 / math.sqrt(head_dim)
        raise ValueError(f"the reference knows no rule {self.rule!r}")

    def __call__(self, attn: Any, hidden_states: torch.Tensor, encoder_hidden_states=None, attention_mask=None):
        if encoder_hidden_states is not None or attention_mask is not None:
            raise ValueError("attn1 was given a context or a mask: it is no plain self-attention")
        projections = (attn.to_q, attn.to_k, attn.to_v)
        query, key, value = (_heads(linear(hidden_states), attn.heads) for linear in projections)
        scale = self.scale(hidden_states.shape[1], query.shape[-1])
        if self.record is not None:
            self.record.append(_entropy(query, key, scale))
        mixed = F.scaled_dot_product_attention(query, key, value, scale=scale)
        return attn.to_out[0](mixed.transpose(1, 2).flatten(2))


class TimeProjection64(torch.nn.Module):
    """The sinusoid of the timestep in float64; diffusers computes it in float32 whatever the model's dtype."""

    def __init__(self, channels: int, flip_sin_to_cos: bool, shift: float):
        super().__init__()
        self.channels = channels
        self.flip = flip_sin_to_cos
        self.shift = shift

    def forward(self, timesteps: torch.Tensor) -> torch.Tensor:
        half = self.channels // 2
        exponents = torch.arange(half, dtype=torch.float64) / (half - self.shift)
        angles = timesteps.double()[:, None] * 10000.0**-exponents
        sine, cosine = angles.sin(), angles.cos()
        return torch.cat([cosine, sine] if self.flip else [sine, cosine], dim=-1)


@dataclass(frozen=True)
class Drawing:
    """What DDIM ended in."""

    latents: np.ndarray
    """[B, h, w, c]."""
    images: np.ndarray
    """[B, H, W, 3], from 0 to 1."""
    entropy: dict[str, np.ndarray]
    """Per layer [steps, B, heads] in nats, mean over rows; of guided pairs the captioned half; empty if unasked."""


class DiffusersFolder(ABC):
    """UNet and autoencoder of a diffusers folder, in float32 or float64, with `SelfAttention` at every `attn1`.

    `train_grid` (h, w) in latent cells overrides the UNet's `sample_size`.
    """

    pipeline_sets: ClassVar[Mapping[str, Any]] = {}
    """Fields of the scheduler's config that diffusers' pipeline sets, whatever the folder says."""

    def __init__(self, folder: str | Path, *, float64: bool = False, train_grid: tuple[int, int] | None = None):
        folder = str(folder)
        self.dtype = torch.float64 if float64 else torch.float32
        self.unet: Any = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", torch_dtype=self.dtype).eval()
        self.vae: Any = self._open_vae(folder)
        config = self.unet.config
        if float64:
            self.unet.time_proj = TimeProjection64(
                config["block_out_channels"][0], config["flip_sin_to_cos"], config["freq_shift"]
            )
        self.train_grid = train_grid or _pair(config["sample_size"])
        self.layers = install(self.unet, self.train_grid)
        schedule: Any = DDIMScheduler.load_config(folder, subfolder="scheduler")
        self.scheduler: Any = DDIMScheduler.from_config({**schedule, **self.pipeline_sets})

    def _open_vae(self, folder: str) -> Any:
        return AutoencoderKL.from_pretrained(folder, subfolder="vae", torch_dtype=self.dtype).eval()

    @abstractmethod
    def conditions(self, prompts: Sequence[str], time_ids: Sequence[float] | None = None) -> Any:
        """What `unet_once` takes as `context` for these prompts: an array, or a NamedTuple of arrays.

        `time_ids` are sizes in pixels where the UNet is told them, by default those of the training size.
        """

    def away(self, count: int, negative_prompt: str | None, time_ids: Sequence[float]) -> Any:
        """What guidance leads away from, for so many prompts."""
        return self.conditions([negative_prompt or ""] * count, time_ids)

    @abstractmethod
    def _keywords(self, context: Any) -> dict[str, Any]:
        """The arguments of diffusers' UNet that hold `context`."""

    @contextmanager
    def _scaled(self, rule: str, multiplier: Multiplier, train_entropy: Mapping[str, float] | None) -> Iterator[None]:
        for name, layer in self.layers.items():
            layer.rule, layer.multiplier = rule, multiplier
            layer.train_entropy = math.nan if train_entropy is None else train_entropy[name]
        with torch.no_grad():
            yield

    @contextmanager
    def _recording(self) -> Iterator[None]:
        for layer in self.layers.values():
            layer.record = []
        try:
            yield
        finally:
            for layer in self.layers.values():
                layer.record = None

    def unet_once(
        self,
        latents: np.ndarray,
        timestep: float,
        context: Any,
        rule: str,
        multiplier: Multiplier = 1.0,
        train_entropy: Mapping[str, float] | None = None,
    ) -> np.ndarray:
        """[B, h, w, c], the UNet's output at one timestep. `train_entropy` is E_T a layer, for rule `calibrated`."""
        with self._scaled(rule, multiplier, train_entropy):
            return _nhwc(self._predict(self._nchw(latents), timestep, **self._keywords(context)))

    def entropies(
        self,
        latents: np.ndarray,
        timestep: float,
        context: Any,
        rule: str,
        multiplier: Multiplier = 1.0,
        train_entropy: Mapping[str, float] | None = None,
    ) -> dict[str, np.ndarray]:
        """Per self-attention layer [B, heads]: the entropy of its rows in nats, mean over rows."""
        with self._recording():
            self.unet_once(latents, timestep, context, rule, multiplier, train_entropy)
            return {name: layer.record[0].numpy() for name, layer in self.layers.items() if layer.record}

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """[B, H, W, 3], about -1 to 1, of the diffusion model's latents (their scaling factor is divided out)."""
        with torch.no_grad():
            return _nhwc(self.vae.decode(self._nchw(latents) / self.vae.config["scaling_factor"]).sample)

    def encode(self, images: np.ndarray) -> np.ndarray:
        """[B, h, w, 2 c], the moments of the latents: their mean, then their log-variance."""
        with torch.no_grad():
            return _nhwc(self.vae.encode(self._nchw(images)).latent_dist.parameters)

    def ddim(
        self,
        latents: np.ndarray,
        prompts: Sequence[str],
        *,
        steps: int,
        guidance: float,
        rule: str,
        multiplier: Multiplier = 1.0,
        train_entropy: Mapping[str, float] | None = None,
        negative_prompt: str | None = None,
        measure_entropy: bool = False,
    ) -> Drawing:
        """DDIM with eta 0 and classifier-free guidance from the given initial `latents` [B, h, w, c]."""
        factor = 2 ** (len(self.vae.config["block_out_channels"]) - 1)
        height, width = (side * factor for side in latents.shape[1:3])
        told = (height, width, 0, 0, height, width)
        context = self.conditions(prompts, told)
        if guidance != 1:
            context = _joined(self.away(len(prompts), negative_prompt, told), context)
        with self._scaled(rule, multiplier, train_entropy), self._recording() if measure_entropy else nullcontext():
            final = self._denoise(self._nchw(latents), self._keywords(context), steps, guidance)
            entropy = self._recorded(len(prompts))
        images = np.clip(self.decode(_nhwc(final)) / 2 + 0.5, 0, 1)
        return Drawing(_nhwc(final), images, entropy)

    def _denoise(self, current: torch.Tensor, keywords: dict[str, Any], steps: int, guidance: float) -> torch.Tensor:
        self.scheduler.set_timesteps(steps)
        for timestep in self.scheduler.timesteps.tolist():
            if guidance == 1:
                prediction = self._predict(current, timestep, **keywords)
            else:
                plain, captioned = self._predict(torch.cat([current, current]), timestep, **keywords).chunk(2)
                prediction = plain + guidance * (captioned - plain)
            current = self.scheduler.step(prediction, timestep, current, return_dict=False)[0]
        return current

    def _recorded(self, batch: int) -> dict[str, np.ndarray]:
        return {
            name: torch.stack([step[-batch:] for step in layer.record]).numpy()
            for name, layer in self.layers.items()
            if layer.record
        }

    def _predict(self, latents: torch.Tensor, timestep: float, **keywords: Any) -> torch.Tensor:
        return self.unet(latents, timestep, **keywords, return_dict=False)[0]

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.tensor(np.asarray(array), dtype=self.dtype)

    def _nchw(self, array: np.ndarray) -> torch.Tensor:
        return self._tensor(array).permute(0, 3, 1, 2).contiguous()


class Reference(DiffusersFolder):
    """A folder of Stable Diffusion 1.x or 2.x, with its text encoder."""

    pipeline_sets: ClassVar[Mapping[str, Any]] = {"steps_offset": 1, "clip_sample": False}

    def __init__(self, folder: str | Path, *, float64: bool = False, train_grid: tuple[int, int] | None = None):
        super().__init__(folder, float64=float64, train_grid=train_grid)
        self.tokenizer, self.text_encoder = self._open_text(str(folder))

    def _open_text(self, folder: str) -> tuple[Any, Any]:
        return open_text(CLIPTextModel, folder, "", self.dtype)

    def token_ids(self, prompts: Sequence[str]) -> np.ndarray:
        """[B, S] ids, padded to the tokenizer's length."""
        return token_ids(self.tokenizer, prompts)

    def text_states(self, prompts: Sequence[str]) -> np.ndarray:
        """[B, S, D], the last hidden state after its norm."""
        with torch.no_grad():
            return self.text_encoder(torch.from_numpy(self.token_ids(prompts))).last_hidden_state.numpy()

    def conditions(self, prompts: Sequence[str], time_ids: Sequence[float] | None = None) -> np.ndarray:
        """The text states; this UNet is told no sizes."""
        return self.text_states(prompts)

    def _keywords(self, context: np.ndarray) -> dict[str, Any]:
        return {"encoder_hidden_states": self._tensor(context)}


def install(unet: Any, train_grid: tuple[int, int]) -> dict[str, SelfAttention]:
    """Puts `SelfAttention` at every `attn1` of a UNet trained on (h, w) latent cells. Path -> processor."""
    processors, layers = dict(unet.attn_processors), {}
    for name in processors:
        path = name.removesuffix(".processor").replace(".", "/")
        if path.endswith("/attn1"):
            level = _level(path, len(unet.config["block_out_channels"]))
            height, width = (math.ceil(side / 2**level) for side in train_grid)
            processors[name] = layers[path] = SelfAttention(level, height * width)
    if not layers:
        raise ValueError("the UNet has no layer named attn1: nothing would be scaled")
    unet.set_attn_processor(processors)
    return layers


def _joined(away: Any, towards: Any) -> Any:
    if isinstance(towards, np.ndarray):
        return np.concatenate([away, towards])
    return type(towards)(*map(np.concatenate, zip(away, towards, strict=True)))


def time_embedding(timesteps: np.ndarray, channels: int, *, flip_sin_to_cos: bool, shift: float) -> np.ndarray:
    """[B, channels], diffusers' own sinusoid of the timesteps, in float32."""
    tensor = torch.from_numpy(np.asarray(timesteps))
    return get_timestep_embedding(tensor, channels, flip_sin_to_cos, downscale_freq_shift=shift).numpy()


def open_text(kind: Any, folder: str | Path, suffix: str, dtype: torch.dtype) -> tuple[CLIPTokenizer, Any]:
    """The tokenizer and the text encoder, of class `kind`, in the subfolders that end in `suffix`."""
    with _no_progress_bar():
        encoder = kind.from_pretrained(
            str(folder), subfolder=f"text_encoder{suffix}", attn_implementation="sdpa", dtype=dtype
        ).eval()
    return CLIPTokenizer.from_pretrained(str(folder), subfolder=f"tokenizer{suffix}"), encoder


def token_ids(tokenizer: CLIPTokenizer, prompts: Sequence[str]) -> np.ndarray:
    """[B, S] ids, padded to the tokenizer's length."""
    length = tokenizer.model_max_length
    encoded = tokenizer(list(prompts), padding="max_length", max_length=length, truncation=True)
    return np.asarray(encoded["input_ids"])


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    yield
    if shown:
        logging.enable_progress_bar()


def _pair(sample_size: int | Sequence[int]) -> tuple[int, int]:
    height, width = (sample_size, sample_size) if isinstance(sample_size, int) else sample_size
    return height, width


def _level(path: str, levels: int) -> int:
    block, index = path.split("/")[:2]
    if block == "down_blocks":
        return int(index)
    return levels - 1 - int(index) if block == "up_blocks" else levels - 1


def _heads(states: torch.Tensor, heads: int) -> torch.Tensor:
    return states.unflatten(-1, (heads, -1)).transpose(1, 2)


def _entropy(query: torch.Tensor, key: torch.Tensor, scale: float) -> torch.Tensor:
    log_weights = torch.log_softmax(scale * query @ key.transpose(-1, -2), dim=-1)
    return -(log_weights.exp() * log_weights).sum(-1).mean(-1)


def _nhwc(tensor: torch.Tensor) -> np.ndarray:
    return tensor.permute(0, 2, 3, 1).contiguous().numpy()
