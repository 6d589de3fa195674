"""The reference has to deserve its name: plain diffusers under `original`, the paper's numbers under `entropy`."""

import math

import numpy as np
import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from parity_cases import TRAINING

from entscale_jax.parity import random_models, reference

FAMILIES = ("sd1", "sd2")


def _inputs(opened, grid, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((2, *grid, 4)), opened.text_states(["a red circle", "two blue squares"])


@pytest.mark.parametrize(
    ("grids", "multipliers"),
    [
        ((28, 14, 7, 4), (0.895, 0.873, 0.838, 0.816)),
        ((96, 48, 24, 12), (1.048, 1.057, 1.071, 1.093)),
        ((64, 32, 16, 8), (1, 1, 1, 1)),
    ],
)
def test_scale_is_the_papers_for_stable_diffusion(grids, multipliers):
    for level, (side, expected) in enumerate(zip(grids, multipliers, strict=True)):
        layer = reference.SelfAttention(level, (64 // 2**level) ** 2)
        layer.rule = "entropy"
        assert layer.scale(side**2, 64) * 8 == pytest.approx(expected, abs=1e-3)


def test_calibrated_scale_by_hand():
    """log 784 = 6.664409, log 4096 = 8.317766: (6.664409 - 3) / (8.317766 - 3) = 0.689088."""
    layer = reference.SelfAttention(0, 4096)
    layer.rule, layer.train_entropy = "calibrated", 3.0
    assert layer.scale(784, 64) == pytest.approx(math.sqrt(0.689088 / 64), rel=1e-6)
    layer.train_entropy = 0.0
    calibrated, layer.rule = layer.scale(784, 64), "entropy"
    assert calibrated == pytest.approx(layer.scale(784, 64), rel=1e-15)


def test_unknown_rule_is_refused():
    layer = reference.SelfAttention(0, 64)
    layer.rule = "entropic"
    with pytest.raises(ValueError, match="entropic"):
        layer.scale(64, 8)


@pytest.mark.parametrize("family", FAMILIES)
def test_rule_original_is_plain_diffusers(folders, references, family):
    opened = references[family, "float32"]
    latents, context = _inputs(opened, (9, 11))
    plain = UNet2DConditionModel.from_pretrained(str(folders[family]), subfolder="unet").eval()
    sample = torch.from_numpy(latents).float().permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = (
            plain(sample, 480, encoder_hidden_states=torch.from_numpy(context)).sample.permute(0, 2, 3, 1).numpy()
        )
    limit = 1e-5 * np.abs(expected).max()
    assert np.abs(opened.unet_once(latents, 480, context, "original") - expected).max() < limit
    assert np.abs(opened.unet_once(latents, 480, context, "entropy") - expected).max() > 100 * limit


@pytest.mark.parametrize("family", FAMILIES)
def test_fixed_multiplier_of_one_is_original_and_levels_count_from_the_finest(references, family):
    opened = references[family, "float64"]
    latents, context = _inputs(opened, (10, 13))
    original = opened.unet_once(latents, 20, context, "original")
    assert np.array_equal(opened.unet_once(latents, 20, context, "fixed", 1.0), original)
    grids = [(math.ceil(10 / 2**level), math.ceil(13 / 2**level)) for level in range(4)]
    train = [
        (math.ceil(opened.train_grid[0] / 2**level), math.ceil(opened.train_grid[1] / 2**level)) for level in range(4)
    ]
    by_hand = [
        math.sqrt(math.log(math.prod(now)) / math.log(math.prod(then))) for now, then in zip(grids, train, strict=True)
    ]
    entropy = opened.unet_once(latents, 20, context, "entropy")
    scaled = opened.unet_once(latents, 20, context, "fixed", by_hand)
    assert np.abs(scaled - entropy).max() < 1e-12
    assert np.abs(opened.unet_once(latents, 20, context, "fixed", by_hand[::-1]) - entropy).max() > 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_float64_time_projection_is_diffusers_formula(references, family):
    config = references[family, "float64"].unet.config
    width, flip, shift = config["block_out_channels"][0], config["flip_sin_to_cos"], config["freq_shift"]
    timesteps = np.array([0, 1, 40, 981, 999])
    single = reference.time_embedding(timesteps, width, flip_sin_to_cos=flip, shift=shift)
    double = references[family, "float64"].unet.time_proj(torch.from_numpy(timesteps)).numpy()
    assert double.dtype == np.float64
    assert np.abs(single - double).max() < 1e-4
    swapped = reference.TimeProjection64(width, not flip, shift)(torch.from_numpy(timesteps)).numpy()
    assert np.abs(single - swapped).max() > 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_random_models_have_structure_and_no_constant_parameter(references, family):
    opened = references[family, "float32"]
    built = random_models.margins(opened, seed=list(TRAINING).index(family))
    assert set(built) == set(opened.layers)
    assert min(built.values()) >= random_models.ENTROPY_MARGIN
    # On other latents a single layer may come short by a little; their mean may not.
    fresh = random_models.margins(opened, seed=7)
    assert np.mean(list(fresh.values())) >= random_models.ENTROPY_MARGIN
    for module in (opened.unet, opened.vae, opened.text_encoder):
        for name, parameter in module.named_parameters():
            assert parameter.std() > 0.01, f"{name} is constant"


def test_entropy_of_known_attention():
    layer_rows = torch.zeros(1, 1, 5, 3)
    assert reference._entropy(layer_rows, layer_rows, 1.0).item() == pytest.approx(math.log(5))
    logits = torch.tensor([[0.0], [math.log(2)], [math.log(5)]])[None, None]
    expected = -sum(p * math.log(p) for p in (1 / 8, 2 / 8, 5 / 8))
    assert reference._entropy(torch.ones(1, 1, 2, 1), logits, 1.0).item() == pytest.approx(expected)
    assert reference._entropy(torch.ones(1, 1, 2, 1), logits, 0.5).item() != pytest.approx(expected, abs=1e-2)
