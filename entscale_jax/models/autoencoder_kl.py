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
# sample_size is a remark on training; force_upcast is about half precision, in which the caller chooses the dtype.
_INERT = frozenset({"sample_size", "force_upcast"})


@dataclass(frozen=True, kw_only=True)
class AutoencoderKLConfig(VAEConfig):
    """The fields of diffusers' `AutoencoderKL` that Stable Diffusion uses, with its defaults."""

    latent_channels: int = 4
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True

    model: ClassVar = "AutoencoderKL"

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "AutoencoderKLConfig":
        """From diffusers' config.json. Raises UserError naming every field that is not implemented."""
        return read_config(cls, raw, model=cls.model, fixed=_FIXED, inert=_INERT)


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
        moments = self.encoder(images)
        if self.config.use_quant_conv:
            moments = self.quant_conv(moments)
        mean, log_variance = jnp.split(moments, 2, axis=-1)
        return mean, jnp.clip(log_variance, -30.0, 20.0)

    def sample_latents(self, images: Images, noise: Mapped) -> Mapped:
        """Latents drawn from their distribution with unit noise, not multiplied by `scaling_factor`."""
        mean, log_variance = self.encode(images)
        return mean + jnp.exp(0.5 * log_variance) * noise

    def decode(self, latents: Images) -> Mapped:
        """Pixels, meant to lie in [-1, 1], from latents that were divided by `scaling_factor`."""
        if self.config.use_post_quant_conv:
            latents = self.post_quant_conv(latents)
        return self.decoder(latents)
