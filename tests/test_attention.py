"""Attention and its entropy against NumPy in float64, and the scale's type."""

import re
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from entscale_jax import EntropyScaledAttention, Scaling, UserError, attention_entropy, dot_product_attention
from entscale_jax.attention import (
    _KERNELS,
    _Call,
    _choose,
    attention_mean_entropy,
    attention_statistics,
    attention_with_statistics,
    check_scale,
)

# Co-prime sizes, so that a swapped axis can't pass.
B, T, S, N, H = 2, 13, 17, 3, 5


def arrays(dtype=np.float32, rows=T):
    rng = np.random.default_rng(0)
    shapes = ((B, rows, N, H), (B, S, N, H), (B, S, N, H))
    return tuple(jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)


def reference_logits(query, key, scale):
    return np.einsum("btnh,bsnh->bnts", np.asarray(query, np.float64), np.asarray(key, np.float64)) * scale


def reference_weights(query, key, scale):
    logits = reference_logits(query, key, scale)
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


def reference_gap(logits):
    ordered = np.sort(logits, axis=-1)
    return ordered[..., -1] - np.log(np.exp(ordered[..., :-1]).mean(axis=-1))


@pytest.mark.parametrize("implementation", [None, "xla", "chunked"])
def test_logit_gap_is_the_largest_logit_above_the_log_of_the_mean_of_exp_of_the_others(implementation):
    query, key, _ = arrays()
    logits = reference_logits(query, key, 1.3)
    wanted = reference_gap(logits)
    _, found = attention_statistics(query, key, scale=1.3, implementation=implementation)
    assert found.shape == (B, N, T)
    np.testing.assert_allclose(found, wanted, atol=5e-6)
    _, other = attention_statistics(query, key, scale=1.3 * 1.01, implementation=implementation)
    assert np.abs(np.asarray(other) - wanted).max() > 1000 * 5e-6
    # Not over all logits, the largest among them.
    assert np.abs(logits.max(axis=-1) - np.log(np.exp(logits).mean(axis=-1)) - wanted).min() > 0.01


def test_logit_gap_says_what_share_the_largest_has():
    query, key, _ = arrays()
    share = reference_weights(query, key, 1.3).max(axis=-1)
    _, found = attention_statistics(query, key, scale=1.3)
    np.testing.assert_allclose(1 / (1 + (S - 1) * np.exp(-np.asarray(found, float))), share, rtol=1e-5)


def test_logit_gap_is_zero_for_equal_keys_and_finite_for_one_that_wins_by_far():
    query, key, _ = arrays()
    _, found = attention_statistics(query, jnp.zeros_like(key), scale=1.0)
    np.testing.assert_allclose(found, np.zeros((B, N, T)), atol=1e-6)
    _, found = attention_statistics(query, key, scale=1e4)
    assert np.isfinite(found).all()
    assert np.min(found) > 20


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
    monkeypatch.setattr("entscale_jax.kernels.plain._BLOCK_LOGITS", 32 * S)
    monkeypatch.setattr("entscale_jax.kernels.plain._BLOCK_ROWS", 1)
    query, key, value = arrays(rows=rows)
    found = dot_product_attention(query, key, value, scale=0.5, implementation="chunked")
    np.testing.assert_allclose(
        found, dot_product_attention(query, key, value, scale=0.5, implementation="xla"), atol=1e-6
    )


@pytest.mark.parametrize("rows", [7, 16, 37])
def test_blocks_of_rows_equal_numpy_in_float64(rows, monkeypatch):
    monkeypatch.setattr("entscale_jax.kernels.plain._BLOCK_LOGITS", 1)
    monkeypatch.setattr("entscale_jax.kernels.plain._BLOCK_ROWS", 8)
    with jax.enable_x64(True):
        query, key, value = arrays(np.float64, rows=rows)
        wanted = np.einsum("bnts,bsnh->btnh", reference_weights(query, key, 0.7), np.asarray(value))
        found, wrong = (
            np.asarray(dot_product_attention(query, key, value, scale=scale, implementation="chunked"))
            for scale in (0.7, 0.7 * (1 + 1e-9))
        )
    assert np.abs(found - wanted).max() <= 1e-12
    assert np.abs(wrong - wanted).max() > 100 * 1e-12


def _lowered(batch, tokens, heads, head_dim):
    query = jax.ShapeDtypeStruct((batch, tokens, heads, head_dim), jnp.float32)
    return jax.jit(lambda *arrays: dot_product_attention(*arrays, scale=0.125)).lower(query, query, query).as_text()


@pytest.mark.parametrize(("tokens", "rows"), [(65_536, 256), (65_537, 256), (4096, 256), (1500, 500)])
def test_blocks_are_not_too_narrow_and_no_array_holds_all_logits(tokens, rows, monkeypatch):
    text = _lowered(1, tokens, 1, 512)
    assert f"x{tokens}xf32>" in text  # of a block
    assert f"{tokens}x{tokens}xf32>" not in text
    heights = {int(found) for found in re.findall(rf"tensor<(\d+)x{tokens}xf32>", text)}
    assert rows - 6 <= max(heights) <= rows
    monkeypatch.setitem(_KERNELS, "chunked", replace(_KERNELS["chunked"], pays=lambda call: False))
    assert f"{tokens}x{tokens}xf32>" in _lowered(1, tokens, 1, 512)


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


def test_module_records_entropy_and_logit_gap_and_draws_the_same():
    module = EntropyScaledAttention(6, 2, 3, train_tokens=16, rngs=nnx.Rngs(0))
    hidden, seen = jnp.asarray(np.random.default_rng(0).normal(size=(2, 9, 6)), jnp.float32), {}

    def record(layer, entropy, gap):
        seen[layer] = np.asarray(entropy), np.asarray(gap)

    recorded = module(hidden, record=record)
    np.testing.assert_array_equal(recorded, module(hidden))
    query, key = (np.asarray(to(hidden)).reshape(2, 9, 2, 3) for to in (module.to_q, module.to_k))
    logits = reference_logits(query, key, (np.log(9) / np.log(16) / 3) ** 0.5)
    weights = reference_weights(query, key, (np.log(9) / np.log(16) / 3) ** 0.5)
    entropy, gap = seen["attn1"]
    np.testing.assert_allclose(entropy, -(weights * np.log(weights)).sum(-1).mean(-1), atol=5e-6)
    np.testing.assert_allclose(gap, reference_gap(logits).mean(-1), atol=5e-6)


@pytest.mark.parametrize(("deviation", "bound"), [(1, 1e-5), (3, 1e-5), (12, 3e-5)])
@pytest.mark.parametrize("head_dim", [40, 64, 80, 160])
def test_streamed_entropy_and_output_equal_float64(head_dim, deviation, bound):
    rng = np.random.default_rng(head_dim)
    query, key = (jnp.asarray(rng.standard_normal((1, tokens, 2, head_dim)), jnp.float32) for tokens in (300, 784))
    value = jnp.asarray(rng.uniform(-1, 1, (1, 784, 2, head_dim)), jnp.float32)
    scale = deviation / head_dim**0.5  # products of unit normal vectors have the deviation sqrt(d)
    weights = reference_weights(query, key, scale)
    entropy = -(weights * np.log(np.maximum(weights, 1e-300))).sum(-1)
    wanted = np.einsum("bnts,bsnh->btnh", weights, value)
    out, found = attention_with_statistics(query, key, value, scale=scale, implementation="chunked")
    out_wrong, wrong = attention_with_statistics(query, key, value, scale=scale * 1.001, implementation="chunked")
    assert np.abs(np.asarray(found.entropy) - entropy).max() <= bound
    assert np.abs(np.asarray(wrong.entropy) - entropy).max() > 10 * bound
    assert np.abs(np.asarray(out) - wanted).max() <= 1e-5
    assert np.abs(np.asarray(out_wrong) - wanted).max() > 10 * 1e-5


@pytest.mark.parametrize("implementation", ["xla", "chunked"])
def test_statistics_in_one_pass_are_those_of_two(implementation):
    query, key, value = arrays()
    out, found = attention_with_statistics(query, key, value, scale=0.7, implementation=implementation)
    np.testing.assert_array_equal(
        out, dot_product_attention(query, key, value, scale=0.7, implementation=implementation)
    )
    for one, other in zip(found, attention_statistics(query, key, scale=0.7), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_float64_entropy_is_float64_in_one_pass():
    with jax.enable_x64(True):
        query, key, value = arrays(np.float64)
        weights = reference_weights(query, key, 1.3)
        _, found = attention_with_statistics(query, key, value, scale=1.3)
        assert found.entropy.dtype == found.logit_gap.dtype == jnp.float64
        np.testing.assert_allclose(found.entropy, -(weights * np.log(weights)).sum(-1), rtol=1e-13)
        np.testing.assert_allclose(found.logit_gap, reference_gap(reference_logits(query, key, 1.3)), rtol=1e-12)


def test_logit_gap_counts_all_but_one_of_equal_largest_logits():
    query = jnp.ones((1, 1, 1, 1))
    key = jnp.asarray([2.0, 2.0, 0.0]).reshape(1, 3, 1, 1)
    found = attention_statistics(query, key, scale=1.0).logit_gap
    np.testing.assert_allclose(found, [[[2.0 - np.log((np.exp(2.0) + 1.0) / 2)]]], rtol=1e-6)


def _peak_beyond(function, *arrays):
    """The result, and the bytes that this process held at most meanwhile beyond what it held before."""
    program = jax.jit(function).lower(*arrays).compile()
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak to what is held now
    before = _resident("VmRSS")
    return jax.block_until_ready(program(*arrays)), _resident("VmHWM") - before


def _resident(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks of memory are Linux's to tell")
def test_entropy_of_65_536_tokens_holds_a_block_of_logits_only():
    """In CI 1,024 rows against all keys of 8 heads; benchmarks/entropy.py measures the whole."""
    rng = np.random.default_rng(0)
    query, key = (jnp.asarray(rng.standard_normal((1, tokens, 8, 40)), jnp.float32) for tokens in (1024, 65_536))
    found, beyond = _peak_beyond(lambda *arrays: attention_entropy(*arrays, scale=0.2), query, key)
    assert beyond < 2**30
    _, whole = _peak_beyond(
        lambda *arrays: attention_entropy(*arrays, scale=0.2, implementation="xla"), query[:, :256], key
    )
    assert whole > 2**30
    rows = [0, 517, 1023]
    weights = reference_weights(query[:, jnp.asarray(rows)], key, 0.2)
    np.testing.assert_allclose(found[:, :, jnp.asarray(rows)], -(weights * np.log(weights)).sum(-1), atol=1e-5)


def _call(**changes):
    sizes = {"dtype": jnp.dtype(jnp.bfloat16), "head_dim": 40, "tokens": 4096, "logits": 2**28}
    return _Call(**{"platform": "cpu", "capability": 0.0, "has_cudnn": True, **sizes, **changes})


@pytest.mark.parametrize(
    ("call", "chosen"),
    [
        (_call(), "chunked"),
        (_call(logits=2**20), "xla"),
        (_call(platform="cuda", capability=8.0), "cudnn"),
        (_call(platform="cuda", capability=8.0, has_cudnn=False, logits=2**20), "xla"),
        (_call(platform="cuda", capability=8.0, head_dim=160, logits=2**20), "xla"),
        (_call(platform="cuda", capability=9.0, head_dim=160), "cudnn"),
        (_call(platform="cuda", capability=9.0, dtype=jnp.dtype(jnp.float32)), "xla"),
        (_call(platform="cuda", capability=9.0, dtype=jnp.dtype(jnp.float32), logits=2**30), "chunked"),
        (_call(platform="cuda", capability=9.0, head_dim=36), "xla"),
        (_call(platform="tpu"), "tpu_splash"),
        (_call(platform="tpu", dtype=jnp.dtype(jnp.float32), head_dim=160), "tpu_splash"),
        (_call(platform="tpu", tokens=77), "xla"),
        (_call(platform="tpu", dtype=jnp.dtype(jnp.float16)), "xla"),
        (_call(platform="rocm"), "xla"),
    ],
)
def test_the_kernel_follows_device_dtype_head_width_and_tokens(call, chosen, monkeypatch):
    monkeypatch.setattr("entscale_jax.attention._describe", lambda query, key: call)
    query, key, _ = arrays()
    assert _choose(None, query, key) == chosen
    assert _choose(None, query, key, rows=True) in ("xla", "chunked")
    refused = {name: kernel.refuses(call) for name, kernel in _KERNELS.items()}
    for name, reason in refused.items():
        if reason is None:
            assert _choose(name, query, key) == name
            continue
        with pytest.raises(UserError, match=f"'{name}' can't run: it (needs|takes)"):
            _choose(name, query, key)


@pytest.mark.parametrize("implementation", ["cudnn", "tpu_splash"])
def test_rows_are_not_asked_of_a_kernel_that_shows_none(implementation):
    query, key, value = arrays()
    with pytest.raises(UserError, match="shows no rows"):
        attention_entropy(query, key, scale=0.5, implementation=implementation)
    with pytest.raises(UserError, match=r"can't run: it needs a (CUDA device|TPU), and this is cpu"):
        dot_product_attention(query, key, value, scale=0.5, implementation=implementation)


@pytest.mark.parametrize("implementation", [None, "xla", "chunked"])
def test_mean_entropy_is_the_mean_over_rows(implementation):
    query, key, _ = arrays()
    found = attention_mean_entropy(query, key, scale=1.3, implementation=implementation)
    weights = reference_weights(query, key, 1.3)
    np.testing.assert_allclose(found, -(weights * np.log(weights)).sum(-1).mean(-1), atol=5e-6)
