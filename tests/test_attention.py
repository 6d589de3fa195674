"""Attention and its entropy against NumPy in float64, and the scale's type."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from entscale_jax import EntropyScaledAttention, Scaling, UserError, attention_entropy, dot_product_attention
from entscale_jax.attention import check_scale

# Co-prime sizes, so that a swapped axis can't pass.
B, T, S, N, H = 2, 13, 17, 3, 5


def arrays(dtype=np.float32, rows=T):
    rng = np.random.default_rng(0)
    shapes = ((B, rows, N, H), (B, S, N, H), (B, S, N, H))
    return tuple(jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)


def reference_weights(query, key, scale):
    logits = np.einsum("btnh,bsnh->bnts", np.asarray(query, np.float64), np.asarray(key, np.float64)) * scale
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


@pytest.mark.parametrize("implementation", [None, "xla", "chunked"])
def test_attention_equals_numpy(implementation):
    query, key, value = arrays()
    found = dot_product_attention(query, key, value, scale=0.7, implementation=implementation)
    wanted = np.einsum("bnts,bsnh->btnh", reference_weights(query, key, 0.7), value)
    np.testing.assert_allclose(found, wanted, atol=2e-6)
    wrong = dot_product_attention(query, key, value, scale=0.7 * 1.02, implementation=implementation)
    assert np.abs(np.asarray(wrong) - wanted).max() > 100 * 2e-6


@pytest.mark.parametrize("implementation", [None, "xla", "chunked"])
def test_entropy_equals_numpy(implementation):
    query, key, _ = arrays()
    weights = reference_weights(query, key, 1.3)
    wanted = -(weights * np.log(weights)).sum(-1)
    found = attention_entropy(query, key, scale=1.3, implementation=implementation)
    assert found.shape == (B, N, T)
    np.testing.assert_allclose(found, wanted, atol=5e-6)
    assert np.abs(np.asarray(attention_entropy(query, key, scale=1.0)) - wanted).max() > 0.01


def test_entropy_of_equal_keys_is_log_of_their_number():
    query, key, _ = arrays()
    found = attention_entropy(query, jnp.zeros_like(key), scale=1.0)
    np.testing.assert_allclose(found, np.full((B, N, T), np.log(S)), rtol=1e-6)


def test_entropy_stays_finite_at_huge_logits():
    query, key, _ = arrays()
    found = np.asarray(attention_entropy(query, key, scale=1e4))
    assert np.isfinite(found).all()
    assert found.min() >= 0


@pytest.mark.parametrize("rows", [7, 64, 100])
def test_blocks_of_rows_equal_the_whole(rows, monkeypatch):
    monkeypatch.setattr("entscale_jax.attention._BLOCK_LOGITS", 32 * S)
    query, key, value = arrays(rows=rows)
    found = dot_product_attention(query, key, value, scale=0.5, implementation="chunked")
    np.testing.assert_allclose(
        found, dot_product_attention(query, key, value, scale=0.5, implementation="xla"), atol=1e-6
    )


def test_chunks_have_the_gradient_of_the_whole():
    query, key, value = arrays()

    def gradient(implementation):
        def loss(*arrays):
            return (dot_product_attention(*arrays, scale=0.6, implementation=implementation) ** 2).sum()

        return jax.grad(loss, argnums=(0, 1, 2))(query, key, value)

    for chunked, whole in zip(gradient("chunked"), gradient("xla"), strict=True):
        np.testing.assert_allclose(chunked, whole, atol=1e-5)


def test_float64_stays_float64():
    with jax.enable_x64(True):
        query, key, value = arrays(np.float64)
        wanted = np.einsum("bnts,bsnh->btnh", reference_weights(query, key, 0.7), np.asarray(value))
        for implementation in ("xla", "chunked"):
            found = dot_product_attention(query, key, value, scale=0.7, implementation=implementation)
            assert found.dtype == jnp.float64
            np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("scale", [1, np.float32(0.5), np.float64(0.5), jnp.float32(0.5), None])
def test_scale_must_be_a_python_float(scale):
    with pytest.raises(TypeError, match=r"scale is .*: give a Python float"):
        check_scale(scale)
    query, key, value = arrays()
    with pytest.raises(TypeError):
        dot_product_attention(query, key, value, scale=scale)
    with pytest.raises(TypeError):
        attention_entropy(query, key, scale=scale)


def test_a_traced_scale_is_refused():
    query, key, value = arrays()
    with pytest.raises(TypeError):
        jax.jit(lambda scale: dot_product_attention(query, key, value, scale=scale))(0.5)


def test_unknown_implementation_is_named():
    query, key, value = arrays()
    with pytest.raises(UserError, match="unknown attention implementation 'flash'"):
        dot_product_attention(query, key, value, scale=0.5, implementation="flash")


def test_module_takes_its_scale_from_its_tokens():
    module = EntropyScaledAttention(6, 2, 3, train_tokens=16, rngs=nnx.Rngs(0))
    assert module.scale(16) == pytest.approx(3**-0.5)
    assert module.scale(64) == pytest.approx((np.log(64) / np.log(16) / 3) ** 0.5)
    assert module.scale(64, Scaling.of("original")) == pytest.approx(3**-0.5)


def test_module_records_entropy_and_draws_the_same():
    module = EntropyScaledAttention(6, 2, 3, train_tokens=16, rngs=nnx.Rngs(0))
    hidden, seen = jnp.asarray(np.random.default_rng(0).normal(size=(2, 9, 6)), jnp.float32), {}
    recorded = module(hidden, record=seen.__setitem__)
    np.testing.assert_array_equal(recorded, module(hidden))
    assert seen["attn1"].shape == (2, 2)
