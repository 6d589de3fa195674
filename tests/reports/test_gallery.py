"""How large a picture is shown."""

import pytest

from entscale_jax.reports.gallery import enlargement


@pytest.mark.parametrize(
    ("width", "height", "factor"),
    [(64, 64, 3), (64, 36, 3), (36, 64, 3), (96, 64, 2), (128, 32, 2), (256, 64, 1), (512, 288, 1), (1024, 1024, 1)],
)
def test_small_pictures_grow_by_whole_steps_and_large_ones_never_shrink(width, height, factor):
    assert enlargement(width, height) == factor
