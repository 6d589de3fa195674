"""Weights through float16: every weight is one that float16 has, and what that costs is seen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from entscale_jax.parity.float16 import differences, rounded, rounded_model


def test_rounding_is_to_the_nearest_and_leaves_the_original():
    layer = nnx.Linear(1, 3, rngs=nnx.Rngs(0))
    layer.kernel.set_value(jnp.array([[1.0, 1.0 + 2**-12, 1e-9]]))
    np.testing.assert_array_equal(rounded(layer).kernel.get_value(), [[1.0, 1.0, 0.0]])
    assert layer.kernel.get_value()[0, 1] > 1


@pytest.mark.full
def test_only_rounding_makes_a_difference(tiny):
    once = rounded_model(tiny)
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(once.unet))} == {np.dtype(np.float32)}
    assert all(error > 1e-5 for _, error in differences(once, tiny, steps=2))
    assert [error for _, error in differences(once, rounded_model(once), steps=2)] == [0.0] * 5
