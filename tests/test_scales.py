"""The rule against the paper's own figures and closed forms."""

import math

import pytest

from entscale_jax import Bucket, ScaleRule, Scaling, UserError, attention_scale, token_counts
from entscale_jax.models import AutoencoderKLConfig, UNet2DConditionConfig

# unet/config.json of stable-diffusion-2-1-base, where it differs from diffusers' defaults.
SD_21_BASE = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 64,
    "attention_head_dim": [5, 10, 20, 20],
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
}


@pytest.mark.parametrize(
    ("pixels", "published"),
    [
        ((224, 224), (0.895, 0.873, 0.838, 0.816)),
        ((512, 512), (1.0, 1.0, 1.0, 1.0)),
        ((768, 768), (1.048, 1.057, 1.071, 1.093)),
    ],
)
def test_multipliers_of_stable_diffusion(pixels, published):
    """T from the UNet's config, N from the size; the figures are those of the paper's Eq. 7 at ceiling division."""
    unet = UNet2DConditionConfig.from_json(SD_21_BASE)
    vae = AutoencoderKLConfig(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
    )
    now = token_counts(Bucket.covering(*pixels, vae.factor).latent(vae.factor), unet.levels)
    found = [
        Scaling().multiplier_at(level, n, t) for level, (n, t) in enumerate(zip(now, unet.train_tokens, strict=True))
    ]
    assert found == pytest.approx(published, abs=1e-3)


def test_training_size_may_be_a_pair():
    unet = UNet2DConditionConfig.from_json({**SD_21_BASE, "sample_size": [36, 64]})
    assert unet.train_tokens == (2304, 576, 144, 40)


def test_entropy_scale_is_equation_7():
    assert attention_scale(784, 4096, 64) == pytest.approx(math.sqrt(math.log(784, 4096) / 64), rel=1e-15)


def test_original_is_the_inverse_root_of_the_width():
    assert attention_scale(784, 4096, 64, rule=ScaleRule.ORIGINAL) == 0.125


def test_entropy_equals_original_at_the_training_size_and_nowhere_else():
    assert attention_scale(256, 256, 40) == pytest.approx(attention_scale(256, 256, 40, rule="original"), rel=1e-15)
    assert attention_scale(255, 256, 40) < attention_scale(256, 256, 40) < attention_scale(257, 256, 40)


def test_scale_is_a_python_float():
    assert all(type(attention_scale(8, 9, 4, rule=rule)) is float for rule in ScaleRule)


def test_fixed_multiplies_one_value_or_one_a_level():
    assert attention_scale(10, 20, 4, rule="fixed", multiplier=0.8) == pytest.approx(0.4)
    per_level = Scaling.of({"rule": "fixed", "multiplier": [0.5, 2.0]})
    assert [per_level.scale_at(level, 10, 20, 4) for level in (0, 1)] == [0.25, 1.0]


def test_labels_tell_methods_apart():
    labels = [
        Scaling.of("original").label,
        Scaling.of("entropy").label,
        Scaling.of("fixed", 0.8).label,
        Scaling.of("fixed", (0.8, 1.0)).label,
    ]
    assert labels == ["original", "entropy", "fixed:0.8", "fixed:0.8,1"]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: attention_scale(10, 1, 4), r"train_tokens is 1: .*2 or more"),
        (lambda: attention_scale(0, 10, 4), r"tokens is 0: .*above 0"),
        (lambda: attention_scale(-3, 10, 4), r"tokens is -3"),
        (lambda: attention_scale(10, 10, 0), r"head_dim is 0"),
        (
            lambda: attention_scale(10, 10, 4, rule="entrpy"),
            r"unknown rule 'entrpy': use one of original, entropy, fixed",
        ),
        (lambda: attention_scale(10, 10, 4, multiplier=0.9), r"takes no multiplier"),
        (lambda: attention_scale(10, 10, 4, rule="fixed", multiplier=-1.0), r"multiplier is -1.0"),
        (lambda: attention_scale(10, 10, 4, train_entropy=0.5), r"train_entropy is 0.5"),
        (lambda: Scaling.of({"rule": "fixed", "multiply": 2}), r"a rule is a name or"),
        (lambda: Scaling.of("fixed", (1.0, 2.0)).check_levels(3), r"2 values and the model 3 levels"),
    ],
)
def test_errors_name_the_value_and_the_remedy(call, said):
    with pytest.raises(UserError, match=said) as error:
        call()
    assert "\n" not in str(error.value)
