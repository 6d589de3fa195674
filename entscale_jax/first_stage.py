"""The autoencoder's programs: latents to pixels and back, of the whole picture or tile by tile."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int32, UInt8

from .batches import batch_groups, check_limit
from .image_rows import ImageRows
from .models import AutoencoderKL, VQModel
from .models.convolution import prepared
from .models.tiling import by_tiles, decoding_tiles, encoding_tiles
from .program_cache import ProgramCache
from .sampling import Latents

Pixels = Float[Array | np.ndarray, "batch H W 3"]


class Decoded(NamedTuple):
    """Pictures as bytes, and what bytes can't tell."""

    images: UInt8[Array | np.ndarray, "batch H W 3"]
    broken: Int32[Array | np.ndarray, "batch"]
    """Of each picture, how many values were NaN or infinite before they became bytes."""


class FirstStage:
    """Decodes latents of the denoiser to bytes, and encodes pictures to latents."""

    def __init__(
        self,
        vae: AutoencoderKL | VQModel,
        latent_dtype: jnp.dtype,
        cache: ProgramCache,
        rows: ImageRows | None = None,
    ):
        self._rows = rows
        self._graph, self._weights = nnx.split(vae)
        self.config = vae.config
        self._latent_dtype, self._cache = latent_dtype, cache
        self._dtype = jax.tree.leaves(self._weights)[0].dtype

    def check(self, *, tiling: bool, decode_batch: int | None) -> None:
        """Raises UserError for a limit that is none, and for tiles that the model does not have."""
        check_limit(decode_batch, "decode_batch")
        if tiling:
            decoding_tiles(self.config)

    def decode(self, latents: Latents, *, tiling: bool, decode_batch: int | None) -> Decoded:
        """Pixels of the whole bucket."""
        groups = batch_groups(len(latents), decode_batch, "decode_batch")
        decode = self._decode_tiles if tiling else self._decode_whole
        if len(groups) < 2:
            return decode(latents)
        whole = np.asarray(latents)
        parts = [decode(whole[rows]) for rows in groups]
        images, broken = (
            np.concatenate([np.asarray(part) for part in kind])[: len(latents)] for kind in zip(*parts, strict=True)
        )
        return Decoded(images, broken)

    def encode(self, images: Pixels, noise: Latents, *, tiling: bool) -> Latents:
        """Latents as the denoiser has them, of pictures in [-1, 1], drawn from their distribution with unit noise."""
        images = jnp.asarray(images, self._dtype)

        def moments(part: Pixels) -> Array:
            return self._moments(part)(self._weights, part)

        found = by_tiles(moments, images, encoding_tiles(self.config)) if tiling else moments(images)
        return self._drawing(found, noise)(self._weights, found, noise)

    def compile_decoding(self, batch: int, grid: tuple[int, int], *, tiling: bool, decode_batch: int | None) -> None:
        """Compiles what `decode` runs on latents of this shape, without running it."""
        count = len(batch_groups(batch, decode_batch, "decode_batch")[0])

        def of_shape(height: int, width: int, channels: int) -> jax.ShapeDtypeStruct:
            where = None if self._rows is None else self._rows.whole
            return jax.ShapeDtypeStruct((count, height, width, channels), self._latent_dtype, sharding=where)

        if not (tiling and decoding_tiles(self.config).act(*grid)):
            self._decoding(of_shape(*grid, self.config.latent_channels))
            return
        for shape in decoding_tiles(self.config).shapes(*grid):
            self._tile(of_shape(*shape, self.config.latent_channels))
        height, width = (side * self.config.factor for side in grid)
        self._rounding(of_shape(height, width, self.config.out_channels))

    def compile_encoding(self, batch: int, grid: tuple[int, int], *, tiling: bool) -> None:
        """Compiles what `encode` runs on pictures of this latent grid, without running it."""
        height, width = (side * self.config.factor for side in grid)
        shapes = encoding_tiles(self.config).shapes(height, width) if tiling else {(height, width)}
        for shape in shapes:
            self._moments(jax.ShapeDtypeStruct((batch, *shape, 3), self._dtype))
        noise = jax.ShapeDtypeStruct((batch, *grid, self.config.latent_channels), self._latent_dtype)
        moments = jax.ShapeDtypeStruct((batch, *grid, self.config.moment_channels), self._dtype)
        self._drawing(moments, noise)

    def _model(self, weights: nnx.State) -> Any:
        return prepared(nnx.merge(self._graph, weights))

    def _decode_whole(self, latents: Any) -> Decoded:
        return self._decoding(latents)(self._weights, latents)

    def _decode_tiles(self, latents: Any) -> Decoded:
        tiles = decoding_tiles(self.config)
        if not tiles.act(*latents.shape[1:3]):
            return self._decode_whole(latents)
        images = by_tiles(lambda tile: self._tile(tile)(self._weights, tile), latents, tiles)
        return self._rounding(images)(images)

    def _decoding(self, latents: Any) -> Callable:
        def decode_latents(weights: nnx.State, latents: Latents) -> Decoded:
            rows = self._rows
            if rows is None:
                return _to_bytes(self._pixels(weights, latents))
            return rows.join(_to_bytes(self._pixels(weights, rows.split(latents))))

        return self._cache.get(("decode", latents.shape), decode_latents, self._weights, latents)

    def _tile(self, latents: Any) -> Callable:
        def decode_tile(weights: nnx.State, latents: Latents) -> Float[Array, "batch H W 3"]:
            return self._pixels(weights, latents)

        return self._cache.get(("tile", latents.shape), decode_tile, self._weights, latents)

    def _rounding(self, images: Any) -> Callable:
        def round_pixels(images: Float[Array, "batch H W 3"]) -> Decoded:
            return _to_bytes(images)

        return self._cache.get(("round", images.shape), round_pixels, images)

    def _moments(self, images: Any) -> Callable:
        def encode_images(weights: nnx.State, images: Float[Array, "batch H W 3"]) -> Float[Array, "batch h w moments"]:
            return self._model(weights).moments(images)

        return self._cache.get(("moments", images.shape), encode_images, self._weights, images)

    def _drawing(self, moments: Any, noise: Any) -> Callable:
        def draw_latents(weights: nnx.State, moments: Float[Array, "batch h w moments"], noise: Latents) -> Latents:
            latents = self._model(weights).draw(moments, noise.astype(moments.dtype))
            return latents.astype(noise.dtype) * self.config.scaling_factor

        return self._cache.get(("draw latents", noise.shape), draw_latents, self._weights, moments, noise)

    def _pixels(self, weights: nnx.State, latents: Latents) -> Float[Array, "batch H W 3"]:
        scaled = (latents / self.config.scaling_factor).astype(self._dtype)
        return self._model(weights).decode(scaled).astype(latents.dtype)


def _to_bytes(images: Float[Array, "batch H W 3"]) -> Decoded:
    rounded = jnp.round(jnp.clip(images / 2 + 0.5, 0.0, 1.0) * 255).astype(jnp.uint8)
    return Decoded(rounded, jnp.sum(~jnp.isfinite(images), axis=(1, 2, 3), dtype=jnp.int32))
