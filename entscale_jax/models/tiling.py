"""Decodes and encodes by overlapping tiles, so that memory follows the size of a tile and not of the picture.

The result is another one than that of the whole: normalisation and attention see one tile at a time. It is that of
diffusers' `AutoencoderKL` after `enable_tiling()`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Array, Float

from ..errors import UserError
from .autoencoder_kl import LOG_VARIANCE, AutoencoderKLConfig

Images = Float[Array | np.ndarray, "batch height width channels"]
Made = Float[Array | np.ndarray, "batch new_height new_width new_channels"]
_OVERLAP = 4
"""A tile shares one part in so many with the tile before it: diffusers' `tile_overlap_factor` of 0.25."""


@dataclass(frozen=True)
class Tiles:
    """The side of a square tile in cells, in what the model reads and in what it makes; both multiples of 4."""

    read: int
    made: int

    def act(self, height: int, width: int) -> bool:
        """Whether an input of this size is cut into tiles: one that a single tile holds is not."""
        return max(height, width) > self.read

    def spans(self, length: int) -> list[slice]:
        """The tiles along one side of the input. The last ones are cut off by its end."""
        return [slice(start, min(start + self.read, length)) for start in range(0, length, _stride(self.read))]

    def shapes(self, height: int, width: int) -> set[tuple[int, int]]:
        """Every (height, width) that a tile of the input has: up to three lengths a side, whatever their number."""
        if not self.act(height, width):
            return {(height, width)}
        rows, columns = ({span.stop - span.start for span in self.spans(length)} for length in (height, width))
        return {(row, column) for row in rows for column in columns}


def decoding_tiles(config: AutoencoderKLConfig) -> Tiles:
    """Tiles of latents, `sample_size` pixels wide when decoded. Raises UserError for a size that can't be tiled."""
    pixels, cells = _sides(config)
    return Tiles(read=cells, made=pixels)


def encoding_tiles(config: AutoencoderKLConfig) -> Tiles:
    """Tiles of `sample_size` pixels. Raises UserError for a size that can't be tiled."""
    pixels, cells = _sides(config)
    return Tiles(read=pixels, made=cells)


def tiled_decode(decode: Callable[[Images], Made], latents: Images, config: AutoencoderKLConfig) -> Made:
    """Pixels [batch height width channels] from latents, tile by tile.

    Args:
        decode: `AutoencoderKL.decode`, of one tile; compile it, once for each of `decoding_tiles(config).shapes(..)`.
        latents: divided by `scaling_factor`.
        config: the model's.

    Source: `AutoencoderKL.tiled_decode` of diffusers.
    """
    return by_tiles(decode, latents, decoding_tiles(config))


def tiled_encode(moments: Callable[[Images], Made], images: Images, config: AutoencoderKLConfig) -> tuple[Made, Made]:
    """Mean and clipped log-variance of latents from pixels, tile by tile.

    Args:
        moments: `AutoencoderKL.moments`, of one tile; compile it, once for each of `encoding_tiles(config).shapes(..)`.
        images: in [-1, 1], height and width multiples of `config.factor`.
        config: the model's.

    Source: `AutoencoderKL.tiled_encode` of diffusers, which blends before it clips.
    """
    mean, log_variance = np.split(np.asarray(by_tiles(moments, images, encoding_tiles(config))), 2, axis=-1)
    return mean, np.clip(log_variance, *LOG_VARIANCE)


def by_tiles(model: Callable[[Images], Made], images: Images, tiles: Tiles) -> Made:
    """What `model` makes of `images`, each tile fading in over the cells that it shares with those before it.

    A tile is blended with the finished one above it, then with the finished one to its left, which fixes what the
    corners show that four tiles share.
    """
    if not tiles.act(*images.shape[1:3]):
        return model(images)
    images = np.asarray(images)
    fade, kept = partial(_fade_in, cells=tiles.made // _OVERLAP), _stride(tiles.made)
    rows, above = [], []
    for span in tiles.spans(images.shape[1]):
        row: list[np.ndarray] = []
        for column, other in enumerate(tiles.spans(images.shape[2])):
            tile = np.asarray(model(images[:, span, other]))
            tile = fade(above[column], tile, axis=1) if above else tile
            row.append(fade(row[-1], tile, axis=2) if row else tile)
        rows.append(_side_by_side(row, kept))
        above = row
    return np.concatenate(rows, axis=1)


def _fade_in(before: np.ndarray, tile: np.ndarray, *, axis: int, cells: int) -> np.ndarray:
    """`tile`, its first cells going over linearly from the last of `before`; all of them where it has fewer."""
    cells = min(cells, tile.shape[axis])
    share = (np.arange(cells) / cells).astype(tile.dtype).reshape([-1 if each == axis else 1 for each in range(4)])
    _, last = np.split(before, [before.shape[axis] - cells], axis)
    first, rest = np.split(tile, [cells], axis)
    return np.concatenate([(1 - share) * last + share * first, rest], axis)


def _side_by_side(row: Sequence[np.ndarray], kept: int) -> np.ndarray:
    return np.concatenate([tile[:, :kept, :kept] for tile in row], axis=2)


def _stride(side: int) -> int:
    return side - side // _OVERLAP


def _sides(config: AutoencoderKLConfig) -> tuple[int, int]:
    """Of a tile, in pixels and in latent cells."""
    pixels = config.sample_size
    if not isinstance(pixels, int) or pixels < 1 or pixels % (_OVERLAP * config.factor):
        # diffusers takes other numbers too, and then joins tiles that lie apart in pixels and in latents.
        raise UserError(
            f"AutoencoderKL: sample_size={pixels!r} gives no tiles: tiling needs one number, "
            f"a multiple of {_OVERLAP * config.factor}; draw without tiling"
        )
    return pixels, pixels // config.factor
