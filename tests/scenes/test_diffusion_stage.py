"""What training draws and asks of the UNet: timesteps, and what lies where."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_model import tiny_recipe

from entscale_jax import ScaleRule
from entscale_jax.metrics.captions import KINDS
from entscale_jax.scales import Scaling
from entscale_jax.scenes.diffusion_stage import _GROUND, _Noising, _surprise, untrained
from entscale_jax.scenes.recipe import Recipe


def test_timesteps_are_logit_normal_and_never_beyond_the_schedule():
    # Of the normal distribution with mean 1 and deviation 0.8: 2.5%, 16%, half, 84%, and the ends.
    shares = jnp.array([0.0, 0.0227501, 0.1586553, 0.5, 0.8413447, 1.0], jnp.float32)
    quantiles = 1 + 0.8 * np.array([-2.0, -1.0, 0.0, 1.0])
    latents = jnp.zeros((6, 2, 2, 4), jnp.float32)
    _, _, timesteps = _Noising(Recipe())(latents, latents, shares)
    np.testing.assert_allclose(timesteps[1:-1], np.floor(1000 / (1 + np.exp(-quantiles))), atol=1)
    assert (timesteps[0], timesteps[-1]) == (0, 999)


def test_the_layer_that_says_what_lies_where_leaves_the_velocity_as_it_is():
    modules = untrained(tiny_recipe(), vocab_size=32)
    noisy = jax.random.normal(jax.random.key(0), (2, 8, 8, 4))
    timesteps, tokens = jnp.array([700.0, 300.0]), jnp.zeros((2, 24), jnp.int32)
    weights = nnx.state(modules.unet)
    velocity, logits = nnx.jit(lambda modules: modules(noisy, timesteps, tokens, None))(modules)
    plain = nnx.jit(lambda unet, text: unet(noisy, timesteps, text(tokens), Scaling(ScaleRule.ORIGINAL)))
    np.testing.assert_allclose(velocity, plain(modules.unet, modules.text), atol=1e-6)
    assert logits.shape == (2, 8, 8, 1 + len(KINDS))
    assert jax.tree.structure(weights) == jax.tree.structure(nnx.state(modules.unet))  # what is exported


def test_the_surprise_is_the_cross_entropy_of_each_cell_with_less_for_the_ground():
    kinds = jnp.array([[[0, 3], [12, 0]]])
    ignorant = jnp.zeros((1, 2, 2, 13))
    assert _surprise(ignorant, kinds) == pytest.approx(np.log(13) * (2 + 2 * _GROUND) / 4, rel=1e-5)
    right = 50 * jax.nn.one_hot(kinds, 13)
    assert _surprise(right, kinds) == pytest.approx(0, abs=1e-6)
    # One cell wrong by a gap of 50 nats.
    assert _surprise(right, kinds.at[0, 0, 1].set(4)) == pytest.approx(50 / 4, rel=1e-5)
    assert _surprise(right, kinds.at[0, 0, 0].set(4)) == pytest.approx(50 / 4, rel=1e-5)
    assert _surprise(right, kinds.at[0, 0, 1].set(0)) == pytest.approx(50 * _GROUND / 4, rel=1e-5)


def test_what_lies_where_teaches_the_unet():
    modules = untrained(tiny_recipe(), vocab_size=32)
    graph, parameters = nnx.split(modules, nnx.Param)
    noisy = jax.random.normal(jax.random.key(0), (2, 8, 8, 4))
    kinds = jax.random.randint(jax.random.key(1), (2, 8, 8), 0, 13)

    @jax.jit
    def loss(parameters):
        _, logits = nnx.merge(graph, parameters)(noisy, jnp.array([700.0, 300.0]), jnp.zeros((2, 24), jnp.int32), None)
        return _surprise(logits, kinds)

    gradients = jax.grad(loss)(parameters)["unet"]
    assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(gradients["conv_in"]))
    assert all(float(jnp.abs(leaf).max()) == 0 for leaf in jax.tree.leaves(gradients["conv_out"]))
