"""`sample` as a pure function: inside a caller's `jit`, under `vmap`, and on a mesh of two devices."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from entscale_jax import UserError, sample

ROUNDING = 1e-4


@pytest.fixture(scope="module")
def inputs(tiny):
    rng = np.random.default_rng(0)
    latents = jnp.asarray(rng.normal(size=(4, 6, 10, 4)), jnp.float32)
    context = jnp.asarray(rng.normal(size=(4, 16, 24)), jnp.float32)
    return tiny.unet, latents, context, {"schedule": tiny.info.schedule, "steps": 3}


@pytest.fixture(scope="module")
def eager(inputs):
    unet, latents, context, static = inputs
    return sample(unet, latents, context, **static)


def test_inside_the_callers_jit(inputs, eager):
    unet, latents, context, static = inputs
    graph, state = nnx.split(unet)

    @jax.jit
    def brighter(state, latents, context):
        return 2 * sample(nnx.merge(graph, state), latents, context, **static)

    np.testing.assert_allclose(brighter(state, latents, context), 2 * eager, atol=2 * ROUNDING)
    assert np.abs(np.asarray(eager) - latents).max() > 0.1


def test_under_vmap(inputs, eager):
    unet, latents, context, static = inputs

    def two(latents, context):
        return sample(unet, latents, context, **static)

    paired = jax.vmap(two)(latents.reshape(2, 2, 6, 10, 4), context.reshape(2, 2, 16, 24))
    np.testing.assert_allclose(paired.reshape(eager.shape), eager, atol=ROUNDING)


def test_guidance_of_one_has_no_effect_and_zero_is_unconditional(inputs, eager):
    unet, latents, context, static = inputs
    away = jnp.zeros_like(context)
    one = sample(unet, latents, context, unconditional=away, guidance=1.0, **static)
    np.testing.assert_allclose(one, eager, atol=ROUNDING)
    none = sample(unet, latents, context, unconditional=away, guidance=0.0, **static)
    np.testing.assert_allclose(none, sample(unet, latents, away, **static), atol=ROUNDING)
    assert np.abs(np.asarray(none) - eager).max() > 10 * ROUNDING


def test_multipliers_are_one_a_level(inputs):
    unet, latents, context, static = inputs
    with pytest.raises(UserError, match="3 values and the model 2 levels"):
        sample(unet, latents, context, rule={"rule": "fixed", "multiplier": [1, 1, 1]}, **static)


def test_on_a_mesh_of_two_devices(tiny_folder, inputs, eager, tmp_path):
    """In a process of its own, since the number of a host's devices is fixed when JAX starts."""
    _, latents, context, _ = inputs
    np.savez(tmp_path / "inputs.npz", latents=latents, context=context)
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    subprocess.run(
        [sys.executable, "-c", MESH, str(tiny_folder), str(tmp_path)], check=True, env=environment, timeout=300
    )
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), eager, atol=ROUNDING)


MESH = """
import sys
import jax, numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec as P
from entscale_jax import TextToImage, sample

folder, work = sys.argv[1:]
pipe = TextToImage.from_pretrained(folder)
mesh = jax.make_mesh((2,), ("batch",))
inputs = np.load(f"{work}/inputs.npz")
latents, context = (jax.device_put(inputs[k], NamedSharding(mesh, P("batch"))) for k in ("latents", "context"))
graph, state = nnx.split(pipe.unet)
state = jax.device_put(state, NamedSharding(mesh, P()))

@jax.jit
def draw(state, latents, context):
    return sample(nnx.merge(graph, state), latents, context, schedule=pipe.info.schedule, steps=3)

out = draw(state, latents, context)
assert len(out.sharding.device_set) == 2, out.sharding
np.save(f"{work}/out.npy", out)
"""
