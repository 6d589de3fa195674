"""The autoencoder of Latent Diffusion whose latents are entries of a codebook."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from ..attention import accumulator
from ..errors import UserError
from .config import read_config
from .layers import Images, Layers, Mapped
from .vae import Decoder, Encoder, VAEConfig

_FIXED: Mapping[str, tuple] = {"act_fn": ("silu", "swish"), "norm_type": ("group",)}
# As for AutoencoderKL; lookup_from_codebook is about decoding codes, and latents are decoded here.
_INERT = frozenset({"sample_size", "force_upcast", "lookup_from_codebook"})


@dataclass(frozen=True, kw_only=True)
class VQModelConfig(VAEConfig):
    """The fields of diffusers' `VQModel` that Latent Diffusion uses, with its defaults."""

    latent_channels: int = 3
    num_vq_embeddings: int = 256
    vq_embed_dim: int | None = None
    """Width of an entry, which is what the UNet draws; None is `latent_channels`."""

    model: ClassVar = "VQModel"

    def __post_init__(self):
        super().__post_init__()
        if self.vq_embed_dim not in (None, self.latent_channels):
            raise UserError(
                f"VQModel: vq_embed_dim={self.vq_embed_dim!r}: implemented is latent_channels={self.latent_channels}"
            )

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "VQModelConfig":
        """From diffusers' config.json. Raises UserError naming every field that is not implemented."""
        return read_config(cls, raw, model=cls.model, fixed=_FIXED, inert=_INERT)

    @property
    def moment_channels(self) -> int:
        """Numbers that a picture is encoded to for each latent cell."""
        return self.latent_channels


class VQModel(nnx.Module):
    """Encodes [batch height width 3] in [-1, 1] to latents, and decodes the codebook's entries nearest to latents."""

    def __init__(self, config: VQModelConfig, *, rngs: nnx.Rngs, dtype: jnp.dtype | type = jnp.float32):
        make = Layers(rngs, dtype)
        self.config = config
        channels = config.latent_channels
        self.encoder = Encoder(config, channels, make)
        self.quant_conv = make.conv(channels, channels, 1, padding=0)
        self.quantize = VectorQuantizer(config, make)
        self.post_quant_conv = make.conv(channels, channels, 1, padding=0)
        self.decoder = Decoder(config, make)

    def encode(self, images: Images) -> Mapped:
        """Latents before they are rounded to the codebook, and not multiplied by `scaling_factor`, as in diffusers."""
        return self.quant_conv(self.encoder(images))

    def moments(self, images: Images) -> Mapped:
        """As `encode`: AutoencoderKL, whose pictures have a distribution of latents, has the same face."""
        return self.encode(images)

    def draw(self, moments: Images, noise: Mapped) -> Mapped:
        """The latents that `moments` gave: there is nothing to draw."""
        return moments

    def decode(self, latents: Images) -> Mapped:
        """Pixels, meant to lie in [-1, 1], from latents that were divided by `scaling_factor`."""
        return self.decoder(self.post_quant_conv(self.quantize(latents)))


class VectorQuantizer(nnx.Module):
    """The codebook."""

    def __init__(self, config: VQModelConfig, make: Layers):
        self.embedding = make.embed(config.num_vq_embeddings, config.latent_channels)

    def __call__(self, latents: Images) -> Images:
        """Each cell's nearest entry."""
        return self.embedding(self.nearest(latents))

    def nearest(self, latents: Images) -> Int[Array, "batch height width"]:
        """The index of each cell's nearest entry, the first of several.

        Distances are those of torch.cdist, with its root, which makes equals of the closest rivals; summed without a
        matrix product, whose rounding would decide between near entries.
        """
        wide = accumulator(latents.dtype)
        entries: Float[Array, "entries channels"] = self.embedding.embedding[...].astype(wide)
        apart = latents.astype(wide)[..., None, :] - entries[None, None, None]
        return jnp.argmin(jnp.sqrt((apart**2).sum(axis=-1)), axis=-1)
