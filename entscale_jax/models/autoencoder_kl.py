"""The autoencoder between pixels and latents, as Stable Diffusion 1.x and 2.x use it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx

from .config import read_config
from .layers import Images, Layers, Mapped
from .vae import Decoder, Encoder, VAEConfig

_FIXED: Mapping[str, tuple] = {
    "act_fn": ("silu", "swish"),
    "shift_factor": (None,),
    "latents_mean": (None,),
    "latents_std": (None,),
}
# force_upcast is about half precision, in which the caller chooses the dtype.
_INERT = frozenset({"force_upcast"})


@dataclass(frozen=True, kw_only=True)
class AutoencoderKLConfig(VAEConfig):
    """The fields of diffusers' `AutoencoderKL` that Stable Diffusion uses, with its defaults."""

    latent_channels: int = 4
    sample_size: int | tuple[int, int] = 32
    """Pixels along a side in training, and so of a tile; nothing else depends on it."""
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True

    model: ClassVar = "AutoencoderKL"

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "AutoencoderKLConfig":
        """From diffusers' config.json. Raises UserError naming every field that is not implemented."""
        return read_config(cls, raw, model=cls.model, fixed=_FIXED, inert=_INERT)

    @property
    def moment_channels(self) -> int:
        """Numbers that a picture is encoded to for each latent cell: mean and log-variance."""
        return 2 * self.latent_channels


class AutoencoderKL(nnx.Module):
    """Encodes [batch height width 3] in [-1, 1] to the moments of latents, and decodes latents, unscaled."""

    def __init__(self, config: AutoencoderKLConfig, *, rngs: nnx.Rngs, dtype: jnp.dtype | type = jnp.float32):
        make = Layers(rngs, dtype)
        self.config = config
        channels = config.latent_channels
        self.encoder = Encoder(config, 2 * channels, make)
        self.decoder = Decoder(config, make)
        if config.use_quant_conv:
            self.quant_conv = make.conv(2 * channels, 2 * channels, 1, padding=0)
        if config.use_post_quant_conv:
            self.post_quant_conv = make.conv(channels, channels, 1, padding=0)

    def encode(self, images: Images) -> tuple[Mapped, Mapped]:
        """Mean and log-variance of the latents, the latter clipped to [-30, 20] as in diffusers."""
        return self.distribution(self.moments(images))

    def moments(self, images: Images) -> Mapped:
        """Mean and log-variance, not clipped, in one array: what tiles are blended of."""
        moments = self.encoder(images)
        return self.quant_conv(moments) if self.config.use_quant_conv else moments

    def distribution(self, moments: Images) -> tuple[Mapped, Mapped]:
        """Mean and clipped log-variance of what `moments` gave."""
        mean, log_variance = jnp.split(moments, 2, axis=-1)
        return mean, jnp.clip(log_variance, -30.0, 20.0)

    def draw(self, moments: Images, noise: Mapped) -> Mapped:
        """Latents from their distribution and unit noise, not multiplied by `scaling_factor`."""
        mean, log_variance = self.distribution(moments)
        return mean + jnp.exp(0.5 * log_variance) * noise

    def decode(self, latents: Images) -> Mapped:
        """Pixels, meant to lie in [-1, 1], from latents that were divided by `scaling_factor`."""
        if self.config.use_post_quant_conv:
            latents = self.post_quant_conv(latents)
        return self.decoder(latents)
