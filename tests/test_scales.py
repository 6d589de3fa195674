"""The rule against the paper's own figures and closed forms."""

import math

import pytest

from entscale_jax import ScaleRule, Scaling, UserError, attention_scale, token_counts

SD_LEVELS, SD_GRID = 4, (64, 64)


@pytest.mark.parametrize(
    ("pixels", "published"),
    [
        ((224, 224), (0.895, 0.873, 0.838, 0.816)),
        ((512, 512), (1.0, 1.0, 1.0, 1.0)),
        ((768, 768), (1.048, 1.057, 1.071, 1.093)),
    ],
)
def test_multipliers_of_stable_diffusion(pixels, published):
    """Grids of a VAE that shrinks by 8; the figures are those of DIGEST.md's table, from the paper's Eq. 7."""
    now = token_counts((pixels[0] // 8, pixels[1] // 8), SD_LEVELS)
    train = token_counts(SD_GRID, SD_LEVELS)
    found = [Scaling().multiplier_at(level, n, t) for level, (n, t) in enumerate(zip(now, train, strict=True))]
    assert found == pytest.approx(published, abs=1e-3)


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
