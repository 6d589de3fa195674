"""A UNet confined to windows: each part alone changes a larger picture, and all together draw its windows apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_model import untrained

from entscale_jax.errors import UserError
from entscale_jax.models import UNet2DConditionConfig, UNet2DConditionModel
from entscale_jax.scales import ScaleRule, Scaling
from entscale_jax.scenes.windows import Part, confine
from entscale_jax.weights.torch_format import AbstractRngs

WINDOW, GRID = (6, 8), (12, 16)
ROUNDING = 1e-5
CONFIG = UNet2DConditionConfig(
    sample_size=WINDOW,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
    mid_block_type=None,
    up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    block_out_channels=(8, 12),
    layers_per_block=1,
    norm_num_groups=4,
    cross_attention_dim=10,
    attention_head_dim=(2, 3),
)


def output(unet, latents):
    context = jnp.asarray(np.random.default_rng(1).standard_normal((1, 5, 10)), jnp.float32)
    times, context = jnp.full(len(latents), 481.0), jnp.repeat(context, len(latents), axis=0)
    return np.asarray(jax.jit(lambda *arrays: unet(*arrays, Scaling(ScaleRule.ORIGINAL)))(latents, times, context))


@pytest.fixture(scope="module")
def unet():
    return untrained(lambda: UNet2DConditionModel(CONFIG, rngs=AbstractRngs()), np.random.default_rng(0))


@pytest.fixture(scope="module")
def latents():
    return jnp.asarray(np.random.default_rng(0).standard_normal((1, *GRID, 4)), jnp.float32)


@pytest.fixture(scope="module")
def windows(latents):
    """The four windows of `latents`, each a picture: top left, top right, bottom left, bottom right."""
    return jnp.concatenate([latents[:, y : y + 6, x : x + 8] for y in (0, 6) for x in (0, 8)])


@pytest.fixture(scope="module")
def apart(unet, windows):
    return output(unet, windows)


def test_all_parts_confined_draw_each_window_as_a_picture_of_its_own(unet, latents, apart):
    whole = output(confine(unet, Part, grid=GRID, window=WINDOW), latents)
    rows = [np.concatenate([apart[i], apart[i + 1]], axis=1) for i in (0, 2)]
    np.testing.assert_allclose(whole[0], np.concatenate(rows), atol=ROUNDING)


def test_a_picture_of_one_window_stays_the_same(unet, windows, apart):
    confined = confine(unet, Part, grid=WINDOW, window=WINDOW)
    np.testing.assert_allclose(output(confined, windows), apart, atol=ROUNDING)


def test_each_part_alone_changes_a_larger_picture(unet, latents):
    plain = output(unet, latents)
    for part in Part:
        confined = output(confine(unet, [part], grid=GRID, window=WINDOW), latents)
        assert np.abs(confined - plain).max() > 100 * ROUNDING, part


def test_the_model_that_was_given_stays_as_it_is(unet):
    before = set(unet.attention_layers())
    confine(unet, Part, grid=GRID, window=WINDOW)
    assert set(unet.attention_layers()) == before


def test_windows_that_do_not_fill_a_level_are_refused(unet):
    with pytest.raises(UserError, match="windows of 8x6 cells do not fill 12x18"):
        confine(unet, Part, grid=(18, 12), window=WINDOW)
    with pytest.raises(UserError, match="at all 2 levels"):
        confine(unet, Part, grid=(14, 14), window=(7, 7))  # the deeper level has 7 cells a side, its windows 4
