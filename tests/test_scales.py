"""The rule against the paper's own figures and closed forms."""

import math

import numpy as np
import pytest

from entscale_jax import Bucket, ScaleRule, Scaling, UserError, attention_scale, token_counts
from entscale_jax.models import AutoencoderKLConfig, UNet2DConditionConfig
from entscale_jax.scales import UndefinedScale, multiplier_text
from entscale_jax.train_entropy import TrainEntropy

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
            r"unknown rule 'entrpy': use one of original, entropy, fixed, calibrated",
        ),
        (lambda: attention_scale(10, 10, 4, multiplier=0.9), r"takes no multiplier"),
        (lambda: attention_scale(10, 10, 4, rule="fixed", multiplier=-1.0), r"multiplier is -1.0"),
        (lambda: attention_scale(10, 10, 4, train_entropy=0.5), r"train_entropy is 0.5"),
        (lambda: attention_scale(10, 10, 4, rule="calibrated", train_entropy=-0.5), r"is -0.5: .*in nats, 0 or more"),
        (lambda: attention_scale(10, 10, 4, rule="calibrated", train_entropy=math.nan), r"is nan"),
        (lambda: attention_scale(10, 10, 4, rule="calibrated", multiplier=0.9), r"takes no multiplier"),
        (lambda: Scaling.of("entropy", train_entropy={"a": 1.0}), r"'entropy' takes no train_entropy"),
        (lambda: Scaling.of("calibrated", train_entropy={}), r"train_entropy is \{\}: give layer -> nats"),
        (lambda: Scaling.of("calibrated").multiplier_at(0, 9, 9, "mid/attn1"), r"'mid/attn1' has no E_T"),
        (
            lambda: Scaling.of("calibrated", train_entropy={"a": 1.0}).multiplier_at(0, 9, 9, "mid/attn1"),
            r"no E_T for layer 'mid/attn1'",
        ),
        (lambda: Scaling.of({"rule": "fixed", "multiply": 2}), r"a rule is a name or"),
        (lambda: Scaling.of("fixed", (1.0, 2.0)).check_levels(3), r"2 values and the model 3 levels"),
    ],
)
def test_errors_name_the_value_and_the_remedy(call, said):
    with pytest.raises(UserError, match=said) as error:
        call()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("tokens", "train_tokens"), [(28**2, 64**2), (96**2, 64**2), (35, 256), (7, 4096)])
def test_calibrated_with_no_entropy_is_the_papers_rule(tokens, train_tokens):
    assert attention_scale(tokens, train_tokens, 64, rule="calibrated") == attention_scale(tokens, train_tokens, 64)
    with_entropy = attention_scale(tokens, train_tokens, 64, rule="calibrated", train_entropy=0.5)
    assert with_entropy != pytest.approx(attention_scale(tokens, train_tokens, 64), rel=1e-3)


def test_calibrated_by_hand():
    """N = e^6 would be 403.4; of whole tokens: log 400 = 5.991465, log 256 = 5.545177, and E_T = 4."""
    found = attention_scale(400, 256, 40, rule="calibrated", train_entropy=4.0)
    assert found == pytest.approx(math.sqrt(1.9914645 / 1.5451774 / 40), rel=1e-7)


def test_calibrated_is_original_at_the_training_size():
    assert attention_scale(256, 256, 40, rule="calibrated", train_entropy=4.2) == 1 / math.sqrt(40)


def test_calibrated_keeps_the_entropy_of_gaussian_logits():
    """Rows of many logits of deviation 1 at T = 4,096 tokens; at four times as many the rule holds what others lose."""
    rng = np.random.default_rng(0)

    def entropy(tokens, multiplier):
        logits = multiplier * rng.standard_normal((64, tokens))
        weights = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        return -(weights * np.log(weights)).sum(axis=1).mean()

    trained, tokens = entropy(4096, 1.0), 4 * 4096
    gaps = {
        rule: entropy(tokens, attention_scale(tokens, 4096, 1, rule=rule, train_entropy=given)) - trained
        for rule, given in (("original", 0.0), ("entropy", 0.0), ("calibrated", trained))
    }
    assert gaps["original"] == pytest.approx(math.log(4), abs=0.02)
    assert gaps["entropy"] > 1.2
    assert abs(gaps["calibrated"]) < 0.35


@pytest.mark.parametrize(
    ("tokens", "train_tokens", "said"),
    [
        (64, 256, "N = 64, T = 256, E_T = 4.2: log N = 4.159 does not exceed E_T"),
        (256, 64, "N = 256, T = 64, E_T = 4.2: log T = 4.159 does not exceed E_T"),
        (60, 64, "N = 60, T = 64, E_T = 4.2: log T"),
    ],
)
def test_calibrated_has_no_value_where_entropy_is_out_of_reach(tokens, train_tokens, said):
    with pytest.raises(UndefinedScale, match=said):
        attention_scale(tokens, train_tokens, 8, rule="calibrated", train_entropy=4.2)
    scaling = Scaling.of("calibrated", train_entropy={"down/attn1": 4.2, "up/attn1": 1.0})
    with pytest.raises(UndefinedScale, match=f"in layer down/attn1 at {said}"):
        scaling.multiplier_at(0, tokens, train_tokens, "down/attn1")
    assert scaling.over_layers(0, tokens, train_tokens, ["up/attn1", "down/attn1"]) is None
    assert scaling.over_layers(0, tokens, train_tokens, ["up/attn1"]) is not None


def test_a_level_shows_the_range_of_its_layers():
    scaling = Scaling.of("calibrated", train_entropy={"a": 0.0, "b": 4.0})
    alone = scaling.over_layers(0, 400, 256, ["a"])
    both = scaling.over_layers(0, 400, 256, ["a", "b"])
    assert alone == pytest.approx(math.sqrt(math.log(400) / math.log(256)))
    assert both == (alone, pytest.approx(math.sqrt(1.9914645 / 1.5451774)))
    assert [multiplier_text(value) for value in (alone, both, None, math.nan)] == [
        "1.039",
        "1.039-1.135",
        "undefined",
        "-",
    ]
    assert scaling.over_layers(0, 256, 256, ["a", "b"]) == 1.0


def test_labels_tell_given_entropies_apart_and_not_a_models_own():
    one, other = (Scaling.of("calibrated", train_entropy={"a": value}) for value in (1.0, 2.0))
    assert one.label != other.label
    assert one.label.startswith("calibrated:")
    own = Scaling.of("calibrated", train_entropy=TrainEntropy((("a", 1.0),), shipped=True))
    assert own.label == Scaling.of("calibrated").label == "calibrated"
    assert own == one
    assert hash(own) == hash(one)
    assert own != other
