"""Noising: the timesteps that training draws."""

import jax.numpy as jnp
import numpy as np

from entscale_jax.scenes.diffusion_stage import _Noising
from entscale_jax.scenes.recipe import Recipe


def test_timesteps_are_logit_normal_and_never_beyond_the_schedule():
    # Of the normal distribution with mean 1 and deviation 0.8: 2.5%, 16%, half, 84%, and the ends.
    shares = jnp.array([0.0, 0.0227501, 0.1586553, 0.5, 0.8413447, 1.0], jnp.float32)
    quantiles = 1 + 0.8 * np.array([-2.0, -1.0, 0.0, 1.0])
    latents = jnp.zeros((6, 2, 2, 4), jnp.float32)
    _, _, timesteps = _Noising(Recipe())(latents, latents, shares)
    np.testing.assert_allclose(timesteps[1:-1], np.floor(1000 / (1 + np.exp(-quantiles))), atol=1)
    assert (timesteps[0], timesteps[-1]) == (0, 999)
