"""Convolutions by patches and by tiles, against PyTorch in float64, and that other devices keep XLA's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from entscale_jax.models import convolution
from entscale_jax.models.convolution import Conv, Tiles, prepared

BOUND = 2e-5
"""Of outputs of deviation 1: float32 sums over 9 x 130 products, in another order."""


def make(channels=70, features=130, *, stride=1, margin=1, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    conv = Conv(channels, features, (3, 3), strides=stride, padding=margin, param_dtype=dtype, rngs=nnx.Rngs(0))
    kernel = rng.standard_normal((3, 3, channels, features)) / np.sqrt(9 * channels)
    conv.kernel.set_value(jnp.asarray(kernel, dtype))
    assert conv.bias is not None
    conv.bias.set_value(jnp.asarray(rng.standard_normal(features), dtype))
    return conv


def images(height, width, channels=70, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(1).standard_normal((2, height, width, channels)), dtype)


def reference(conv, inputs, *, stride=1, margin=1):
    kernel, bias = (torch.from_numpy(np.array(part[...], np.float64)) for part in (conv.kernel, conv.bias))
    inputs = torch.from_numpy(np.array(inputs, np.float64)).permute(0, 3, 1, 2)
    found = torch.nn.functional.conv2d(inputs, kernel.permute(3, 2, 0, 1), bias, stride=stride, padding=margin)
    return found.permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize(("height", "width"), [(12, 16), (13, 11), (1, 2), (7, 4)])
def test_tiles_equal_pytorch(height, width, monkeypatch):
    conv, inputs = make(), images(height, width)
    monkeypatch.setattr(convolution, "_FEW_ROWS", 0)
    monkeypatch.setattr(convolution, "_LITTLE_WORK", 0)
    ready = prepared(conv)
    np.testing.assert_allclose(ready(inputs), reference(conv, inputs), atol=BOUND)
    text = jax.jit(ready).lower(inputs).as_text()
    assert "stablehlo.convolution" not in text
    ready.tiles.set_value(ready.tiles[...].at[5].multiply(1.001))
    assert np.abs(np.asarray(ready(inputs)) - reference(conv, inputs)).max() > 5 * BOUND


@pytest.mark.parametrize(("stride", "margin"), [(1, 1), (2, 1), (2, 0)])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (5, 7)])
def test_patches_equal_pytorch(height, width, stride, margin, monkeypatch):
    monkeypatch.setattr(convolution, "_HEAVY", 0)
    conv, inputs = make(stride=stride, margin=margin), images(height, width)
    wanted = reference(conv, inputs, stride=stride, margin=margin)
    np.testing.assert_allclose(conv(inputs), wanted, atol=BOUND)
    assert "stablehlo.convolution" not in jax.jit(conv).lower(inputs).as_text()
    other = reference(conv, inputs[:, ::-1], stride=stride, margin=margin)
    assert np.abs(np.asarray(conv(inputs)) - other).max() > 1


def test_other_devices_and_dtypes_have_the_convolution_of_flax(monkeypatch):
    inputs = images(16, 16)

    def lowered(conv, inputs):
        return jax.jit(lambda inputs: conv(inputs)).lower(inputs).as_text()

    assert "stablehlo.convolution" not in lowered(prepared(make()), inputs)
    monkeypatch.setattr(convolution, "_on_cpu", lambda: False)
    conv = make()
    assert prepared(conv) is conv
    plain = nnx.merge(nnx.graphdef(nnx.Conv(70, 130, (3, 3), padding=1, rngs=nnx.Rngs(0))), nnx.state(conv))
    assert lowered(conv, inputs) == lowered(plain, inputs)
    monkeypatch.undo()
    narrow = inputs.astype(jnp.bfloat16)
    assert "stablehlo.convolution" in lowered(prepared(make(dtype=jnp.bfloat16)), narrow)


def test_float64_is_the_convolution_of_flax():
    with jax.enable_x64(True):
        conv, inputs = make(dtype=jnp.float64), images(16, 16, dtype=jnp.float64)
        np.testing.assert_allclose(prepared(conv)(inputs), reference(conv, inputs), atol=1e-13)


def test_preparing_leaves_the_module_as_it_is():
    conv = make()
    ready = prepared(conv)
    assert not hasattr(conv, "tiles")
    assert jax.tree.leaves(nnx.state(ready, Tiles))
    assert not jax.tree.leaves(nnx.state(conv, Tiles))


def test_narrow_heavy_and_strided_convolutions_have_no_tiles(monkeypatch):
    assert not hasattr(prepared(make(channels=63)), "tiles")
    assert not hasattr(prepared(make(stride=2)), "tiles")
    assert not hasattr(prepared(make(margin=0)), "tiles")
    monkeypatch.setattr(convolution, "_LARGEST_KERNEL", 9 * 70 * 130 - 1)
    assert not hasattr(prepared(make()), "tiles")


def test_tiles_are_made_once_before_the_steps():
    from entscale_jax.sampling.sample import prepared as used

    conv, inputs = make(), images(16, 16)

    def steps(kernel):
        ready = used(nnx.merge(nnx.graphdef(conv), {**nnx.state(conv), "kernel": kernel}))
        return jax.lax.scan(lambda carry, _: (carry + ready(inputs).mean(), None), 0.0, length=3)[0]

    jaxpr = jax.make_jaxpr(steps)(conv.kernel)
    loop = next(equation for equation in jaxpr.eqns if equation.primitive.name == "scan")
    assert any(constant.aval.shape == (16, 70, 130) for constant in loop.invars)
