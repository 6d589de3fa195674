"""Eq. 5 where it holds and where it does not, and the section that says which of the two a model's logits are."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from entscale_jax.attention import attention_entropy
from entscale_jax.scenes.gaussian import Probe, logit_variance, measure, section

TOKENS, WIDTH = 4096, 64


def halves(keys, scale):
    """Means of log N - H and of sigma^2 / 2 for 32 queries."""
    query = jnp.asarray(np.random.default_rng(1).standard_normal((1, 32, 1, WIDTH)), jnp.float32)
    key = jnp.asarray(keys.reshape(1, TOKENS, 1, WIDTH), jnp.float32)
    below = math.log(TOKENS) - attention_entropy(query, key, scale=scale)
    return float(below.mean()), float(logit_variance(query, key, scale=scale).mean()) / 2


def test_gaussian_keys_have_the_entropy_of_equation_5_and_others_do_not():
    rng = np.random.default_rng(0)
    gaussian = rng.standard_normal((TOKENS, WIDTH))
    below, half = halves(gaussian, 1 / 8)
    assert half == pytest.approx(0.5, rel=0.1)
    assert below == pytest.approx(half, rel=0.1)
    # Sharper than N tokens can be, no row loses more than log N, whatever the variance says.
    below, half = halves(gaussian, 1.0)
    assert half > 30
    assert below < math.log(TOKENS)


def test_variance_is_that_of_the_logits():
    rng = np.random.default_rng(0)
    query, key = rng.standard_normal((2, 5, 3, 4)), rng.standard_normal((2, 7, 3, 4)) + 1
    logits = 0.3 * np.einsum("btnh,bsnh->bnts", query, key)
    found = logit_variance(jnp.asarray(query, jnp.float32), jnp.asarray(key, jnp.float32), scale=0.3)
    np.testing.assert_allclose(found, logits.var(axis=-1), rtol=1e-4)


def test_the_probe_leaves_the_picture_and_measures_what_the_pipeline_does(tiny):
    found = measure(tiny, count=2)
    assert set(found) == set(tiny.layers)
    sharper = measure(tiny, 2.0, count=2)
    assert all(sharper[name][0] > found[name][0] for name in found)
    # The drawing is the same, so that only the factor enters: sigma^2 is four times as large.
    assert all(sharper[name][1] == pytest.approx(4 * found[name][1], rel=1e-3) for name in found)
    assert not any(isinstance(module, Probe) for module in vars(tiny.unet).values())


@pytest.mark.full
def test_the_section_has_a_line_a_layer_and_a_column_a_multiplier_and_size(tiny):
    lines = section(tiny, count=1, multipliers=(1.0, 2.0), sides=(1.0, 1.5))
    first = min(tiny.layers)
    assert sum(line.startswith(f"| `{first}` |") for line in lines) == 3
    assert "| layer | at 1 | at 2 |" in lines
    assert "| layer | 1 to 2 |" in lines
    assert "| layer | 32x32 | 48x48 |" in lines
