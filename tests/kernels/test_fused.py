"""Kernels of others: splash attention emulated, against NumPy in float64; both kernels lowered for their devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as bindings

from entscale_jax.kernels import fused

SCALE = 0.37


def arrays(head_dim, rows, tokens, dtype=jnp.float32):
    rng = np.random.default_rng(head_dim)
    lengths = (rows, tokens, tokens)
    return tuple(jnp.asarray(rng.standard_normal((1, length, 2, head_dim)), dtype) for length in lengths)


def reference(query, key, value, scale):
    """Output, log-sum-exp and entropy of every row."""
    query, key, value = (np.asarray(array, np.float64) for array in (query, key, value))
    logits = scale * np.einsum("btnh,bsnh->btns", query, key)
    exponentials = np.exp(logits)
    normaliser = exponentials.sum(-1)
    weights = exponentials / normaliser[..., None]
    entropy = -(weights * np.log(weights)).sum(-1)
    return np.einsum("btns,bsnh->btnh", weights, value), np.log(normaliser), entropy


@pytest.mark.parametrize(("rows", "tokens"), [(49, 49), (784, 784), (49, 300)])
@pytest.mark.parametrize("head_dim", [40, 64, 80, 160])
def test_splash_equals_numpy(head_dim, rows, tokens):
    query, key, value = arrays(head_dim, rows, tokens)
    scale = SCALE * 8 / head_dim**0.5
    wanted, log_sum_exp, _ = reference(query, key, value, scale)
    out, found = fused.splash_with_log_sum_exp(query, key, value, scale=scale, interpret=True)
    np.testing.assert_allclose(out, wanted, atol=5e-5)
    np.testing.assert_allclose(found, log_sum_exp, atol=5e-5)
    wrong, _, _ = reference(query, key, value, scale * 1.02)
    assert np.abs(np.asarray(out) - wrong).max() > 100 * 5e-5


def test_splash_has_the_gradient_of_attention():
    query, key, value = arrays(40, 49, 49)

    def plain(query, key, value):
        weights = jax.nn.softmax(SCALE * jnp.einsum("btnh,bsnh->bnts", query, key), axis=-1)
        return jnp.einsum("bnts,bsnh->btnh", weights, value)

    def gradient(attend):
        return jax.grad(lambda *arrays: (attend(*arrays) ** 2).sum(), argnums=(0, 1, 2))(query, key, value)

    splash = functools.partial(fused.splash, scale=SCALE, interpret=True)
    for found, wanted in zip(gradient(splash), gradient(plain), strict=True):
        np.testing.assert_allclose(found, wanted, atol=2e-4)


@pytest.mark.parametrize("garbage", [1e3, -1e30, 3e38])
def test_what_fills_a_block_changes_nothing(garbage, monkeypatch):
    query, key, value = arrays(40, 49, 300)
    attend = functools.partial(fused.splash, query, key, value, scale=SCALE, interpret=True)
    clean, fill = attend(), fused.fill_blocks

    def fill_with_garbage(array):
        filled = fill(array)
        return filled.at[:, :, array.shape[2] :].set(garbage)

    monkeypatch.setattr(fused, "fill_blocks", fill_with_garbage)
    np.testing.assert_array_equal(attend(), clean)
    monkeypatch.setattr(fused, "_segments", lambda true, rows: jnp.zeros(rows, jnp.int32))  # unmasked
    assert not np.allclose(attend(), clean, atol=1e-2)


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf, 3e38])
def test_keys_that_fill_a_block_are_not_read(garbage, monkeypatch):
    """Not even where they are no numbers. Values that fill are multiplied by 0, so they stay the zeros they are."""
    query, key, value = arrays(40, 49, 300)
    attend = functools.partial(fused.splash_with_log_sum_exp, query, key, value, scale=SCALE, interpret=True)
    clean, fill = attend(), fused.fill_blocks

    def fill_with_garbage(array):
        filled = fill(array)
        return filled.at[:, :, array.shape[2] :].set(garbage) if array.shape[2:] == (300, 40) else filled

    monkeypatch.setattr(fused, "fill_blocks", fill_with_garbage)
    for found, wanted in zip(attend(), clean, strict=True):
        np.testing.assert_array_equal(found, wanted)
    monkeypatch.setattr(fused, "_segments", lambda true, rows: jnp.zeros(rows, jnp.int32))  # unmasked
    assert not np.allclose(attend()[0], clean[0], atol=1e-2)


def test_zeros_that_are_not_masked_would_change_the_softmax(monkeypatch):
    query, key, value = arrays(40, 49, 49)
    clean, _, _ = reference(query, key, value, SCALE)
    monkeypatch.setattr(fused, "_segments", lambda true, rows: jnp.zeros(rows, jnp.int32))
    assert np.abs(np.asarray(fused.splash(query, key, value, scale=SCALE, interpret=True)) - clean).max() > 0.05


@pytest.mark.parametrize(("head_dim", "deviation"), [(40, 1), (160, 3)])
def test_mean_entropy_in_bfloat16_is_that_of_float64(head_dim, deviation):
    query, key, _ = arrays(head_dim, 300, 300, jnp.bfloat16)
    scale = deviation / head_dim**0.5
    kernel = functools.partial(fused.splash_with_log_sum_exp, interpret=True)
    _, _, rows = reference(query, key, key, scale)
    found = fused.mean_entropy(kernel, query, key, scale=scale)
    np.testing.assert_allclose(found, rows.mean(axis=1), atol=1e-2)
    _, _, wrong = reference(query, key, key, 1.05 * scale)
    assert np.abs(np.asarray(found) - wrong.mean(axis=1)).min() > 2e-2


@pytest.mark.parametrize(("deviation", "error"), [(3, 1e-2), (12, 5e-2)])
def test_rows_of_the_identity_are_not_exact_in_bfloat16(deviation, error):
    """Why rows are not offered."""
    query, key, _ = arrays(64, 300, 300, jnp.bfloat16)
    scale = deviation / 64**0.5
    mixed, log_sum_exp = fused.splash_with_log_sum_exp(query, key, key, scale=scale, interpret=True)
    by_row = log_sum_exp - scale * (query.astype(jnp.float32) * mixed.astype(jnp.float32)).sum(axis=-1)
    _, _, rows = reference(query, key, key, scale)
    assert np.abs(np.asarray(by_row) - rows).max() > error


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("tokens", [49, 784])
@pytest.mark.parametrize("head_dim", [40, 64, 80, 160])
def test_splash_is_lowered_for_tpu(head_dim, tokens, dtype):
    shape = jax.ShapeDtypeStruct((1, tokens, 2, head_dim), dtype)

    def lowered(scale):
        attend = jax.jit(functools.partial(fused.splash, scale=scale))
        return jax.export.export(attend, platforms=["tpu"])(shape, shape, shape).mlir_module()

    text = lowered(0.1875)
    assert "tpu_custom_call" in text
    assert "1.875000e-01" in text
    assert "1.875000e-01" not in lowered(0.3125)


@pytest.fixture
def hopper(monkeypatch):
    """The bindings ask a device for its age and for cuDNN's; without one the answers are those of a Hopper."""
    monkeypatch.setattr(bindings, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(bindings, "check_compute_capability", lambda capability: True)
    monkeypatch.setattr(bindings, "is_cuda_compute_capability_equal", lambda capability: False)


def _for_cuda(function, tokens, head_dim):
    shape = jax.ShapeDtypeStruct((1, tokens, 2, head_dim), jnp.bfloat16)
    unchecked = [jax.export.DisabledSafetyCheck.custom_call("__cudnn$fmhaSoftmax")]
    return jax.export.export(jax.jit(function), platforms=["cuda"], disabled_checks=unchecked)(shape, shape, shape)


@pytest.mark.parametrize("tokens", [49, 784])
@pytest.mark.parametrize("head_dim", [40, 64, 80, 160])
def test_cudnn_is_lowered_for_cuda(head_dim, tokens, hopper):
    text, other = (
        _for_cuda(functools.partial(fused.cudnn, scale=scale), tokens, head_dim).mlir_module()
        for scale in (0.1875, 0.3125)
    )
    assert "__cudnn$fmhaSoftmax" in text
    assert "0.1875" in text
    assert "0.1875" not in other


def test_cudnn_gives_the_log_sum_exp_in_float32(hopper):
    """The control is JAX's public function, which rounds it to the inputs' dtype: see the next test."""
    public = functools.partial(jax.nn.dot_product_attention, implementation="cudnn", return_residual=True)
    for kernel, dtype in ((fused.cudnn_with_log_sum_exp, jnp.float32), (public, jnp.bfloat16)):
        exported = _for_cuda(functools.partial(kernel, scale=0.1875), 49, 40)
        assert [(array.shape, array.dtype) for array in exported.out_avals] == [
            ((1, 49, 2, 40), jnp.bfloat16),
            ((1, 49, 2), dtype),
        ]


def test_a_log_sum_exp_in_bfloat16_would_spoil_the_mean():
    """300 equal keys: every row's is log 300, which lies between two numbers of bfloat16."""
    query, key, _ = arrays(40, 300, 300, jnp.bfloat16)
    kernel = functools.partial(fused.splash_with_log_sum_exp, interpret=True)

    def rounded(*arrays, scale):
        out, log_sum_exp = kernel(*arrays, scale=scale)
        return out, log_sum_exp.astype(jnp.bfloat16)

    equal = jnp.zeros_like(key)
    np.testing.assert_allclose(fused.mean_entropy(kernel, query, equal, scale=SCALE), np.log(300), atol=1e-4)
    assert np.abs(np.asarray(fused.mean_entropy(rounded, query, equal, scale=SCALE)) - np.log(300)).min() > 1e-2


@pytest.mark.parametrize(("length", "size"), [(49, 128), (784, 128), (1024, 512), (4096, 512), (240, 256), (9216, 512)])
def test_blocks_fill_up_by_an_eighth_or_are_the_least(length, size):
    assert fused.block_size(length) == size


def test_cudnn_is_not_found_on_a_cpu(monkeypatch):
    assert not fused.has_cudnn()
    monkeypatch.setattr(bindings, "check_cudnn_version", lambda: 91000)
    assert fused.has_cudnn()
