"""Sizes, grids and token counts."""

import pytest

from entscale_jax import Bucket, UserError, token_counts
from entscale_jax.buckets import level_grids, parse_size


def test_levels_halve_with_ceiling():
    assert level_grids((28, 28), 4) == ((28, 28), (14, 14), (7, 7), (4, 4))
    assert level_grids((36, 64), 4) == ((36, 64), (18, 32), (9, 16), (5, 8))


def test_tokens_are_cells():
    assert token_counts((36, 64), 4) == (2304, 576, 144, 40)


def test_covering_rounds_up_and_leaves_multiples():
    assert Bucket.covering(225, 510, 8) == Bucket(232, 512)
    assert Bucket.covering(224, 512, 8) == Bucket(224, 512)


def test_size_is_written_width_first():
    assert parse_size("512x288") == (512, 288)
    assert str(Bucket(288, 512)) == "512x288"


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: parse_size("0x0"), "size '0x0' has no pixels"),
        (lambda: parse_size("large"), "size 'large' is not WIDTHxHEIGHT: write for example 224x160"),
        (lambda: parse_size("224"), "size '224' is not WIDTHxHEIGHT"),
        (lambda: Bucket(0, 64), "height is 0"),
        (lambda: Bucket(64, 6.5), "width is 6.5: give a whole number"),
        (lambda: Bucket(4, 64).latent(8), "below one latent cell of 8x8 pixels"),
        (lambda: token_counts((2, 2), 4), "1 token at the deepest of 4 levels: 2 are needed"),
        (lambda: token_counts((0, 2), 4), "has no cells"),
    ],
)
def test_errors_name_the_value_and_the_remedy(call, said):
    with pytest.raises(UserError, match=said) as error:
        call()
    assert "\n" not in str(error.value)
