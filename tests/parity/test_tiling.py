"""Decoding and encoding by tiles against diffusers' `enable_tiling()`, in float64, at grids that no tile divides."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL as TorchAutoencoderKL
from flax import nnx

from entscale_jax import UserError
from entscale_jax.models import AutoencoderKL, AutoencoderKLConfig
from entscale_jax.models.tiling import Tiles, decoding_tiles, encoding_tiles, tiled_decode, tiled_encode
from entscale_jax.parity.compare import precision, relative_error
from entscale_jax.weights.torch_format import AbstractRngs, load_parameters

BOUND = 1e-9
CONFIG = {
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "block_out_channels": (4, 6, 10),
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "latent_channels": 3,
    "sample_size": 32,
}
FACTOR, CELLS = 4, 8
"""Pixels along a latent cell, and cells along a tile; 6 cells lie between the beginnings of two tiles."""
GRIDS = ((7, 11), (13, 9), (19, 5))
"""Latent cells: one tile high but more than a stride; ends cut twice; four tiles below each other, one beside."""


@pytest.fixture(autouse=True)
def _float64():
    jax.config.update("jax_disable_most_optimizations", True)
    with precision(float64=True), jax.numpy_dtype_promotion("standard"):
        yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def expected():
    """diffusers' autoencoder with tiling, of random weights."""
    torch.manual_seed(3)
    vae = TorchAutoencoderKL(**CONFIG).double().requires_grad_(False)
    for name, parameter in vae.named_parameters():
        if parameter.ndim == 1:
            parameter.add_(0.2 * torch.randn(parameter.shape, dtype=parameter.dtype))
        elif name.startswith("encoder.conv_out"):
            parameter.mul_(100)  # so that some log-variances are clipped
    vae.enable_tiling()
    return vae


class _Ours:
    """The same weights here, each method compiled once a shape."""

    def __init__(self, folder):
        self.config = AutoencoderKLConfig(**CONFIG)
        vae = load_parameters(
            lambda: AutoencoderKL(self.config, rngs=AbstractRngs(), dtype=jnp.float64),
            folder / "diffusion_pytorch_model.safetensors",
            jnp.float64,
        )
        self.decode, self.moments = _compiled(vae, "decode"), _compiled(vae, "moments")


def _compiled(vae, method):
    graph, weights = nnx.split(vae)
    run = jax.jit(lambda weights, images: getattr(nnx.merge(graph, weights), method)(images))
    return lambda images: run(weights, jnp.asarray(images))


@pytest.fixture(scope="module")
def ours(expected, tmp_path_factory):
    folder = tmp_path_factory.mktemp("vae")
    expected.save_pretrained(folder)
    with precision(float64=True):
        return _Ours(folder)


def _nchw(array):
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(array, -1, 1)))


def _nhwc(tensor):
    return np.moveaxis(tensor.numpy(), 1, -1)


def _decoded(vae, latents):
    return _nhwc(vae.decode(_nchw(latents)).sample)


def _encoded(vae, images):
    found = vae.encode(_nchw(images)).latent_dist
    return _nhwc(found.mean), _nhwc(found.logvar)


def _latents(grid):
    return np.random.default_rng(0).standard_normal((2, *grid, 3))


def _images(grid):
    return np.random.default_rng(1).uniform(-1, 1, (2, grid[0] * FACTOR, grid[1] * FACTOR, 3))


@pytest.mark.parametrize("grid", GRIDS)
def test_tiled_decode(expected, ours, grid, monkeypatch):
    found = tiled_decode(ours.decode, _latents(grid), ours.config)
    assert found.shape == (2, grid[0] * FACTOR, grid[1] * FACTOR, 3)
    assert relative_error(found, _decoded(expected, _latents(grid))) <= BOUND
    # With another overlap diffusers' pictures have other sizes, so what is told apart is the part that both have.
    monkeypatch.setattr(expected, "tile_overlap_factor", 0.5)
    other = _decoded(expected, _latents(grid))[:, : found.shape[1], : found.shape[2]]
    assert relative_error(np.asarray(found)[:, : other.shape[1], : other.shape[2]], other) > 100 * BOUND
    monkeypatch.setattr(expected, "use_tiling", False)
    assert relative_error(found, _decoded(expected, _latents(grid))) > 100 * BOUND


@pytest.mark.parametrize("grid", GRIDS[::2])
def test_tiled_encode(expected, ours, grid, monkeypatch):
    found = tiled_encode(ours.moments, _images(grid), ours.config)
    for got, wanted in zip(found, _encoded(expected, _images(grid)), strict=True):
        assert relative_error(got, wanted) <= BOUND
    assert np.max(found[1]) == 20  # clipped, so that the order of clipping and blending shows
    monkeypatch.setattr(expected, "use_tiling", False)
    for got, wanted in zip(found, _encoded(expected, _images(grid)), strict=True):
        assert relative_error(got, wanted) > 100 * BOUND


@pytest.mark.parametrize("grid", [(CELLS, CELLS), (3, CELLS)])
def test_within_one_tile_tiling_changes_nothing(expected, ours, grid):
    found = tiled_decode(ours.decode, _latents(grid), ours.config)
    np.testing.assert_array_equal(found, ours.decode(_latents(grid)))
    assert relative_error(found, _decoded(expected, _latents(grid))) <= BOUND


def test_tiles_are_those_of_diffusers(expected, ours):
    assert decoding_tiles(ours.config) == Tiles(expected.tile_latent_min_size, expected.tile_sample_min_size)
    assert encoding_tiles(ours.config) == Tiles(expected.tile_sample_min_size, expected.tile_latent_min_size)


def test_few_shapes_serve_many_tiles(ours):
    tiles = Tiles(read=64, made=512)
    assert [(span.start, span.stop) for span in tiles.spans(110)] == [(0, 64), (48, 110), (96, 110)]
    assert tiles.shapes(256, 256) == {(64, 64), (64, 16), (16, 64), (16, 16)}
    seen = []
    tiled_decode(lambda tile: seen.append(tile.shape[1:3]) or ours.decode(tile), _latents((13, 9)), ours.config)
    assert len(seen) == 6
    assert set(seen) == decoding_tiles(ours.config).shapes(13, 9)
    assert decoding_tiles(ours.config).shapes(3, CELLS) == {(3, CELLS)}


@pytest.mark.parametrize("size", [24, 8, 0, (32, 32)])
def test_sizes_whose_tiles_would_not_meet_are_refused(size):
    config = AutoencoderKLConfig(**{**CONFIG, "sample_size": size})
    with pytest.raises(UserError, match=r"sample_size=.* gives no tiles.*a multiple of 16"):
        decoding_tiles(config)
