"""Entropy of diffusers' adapted Flax UNet: of every row in float64, from queries and keys of the unadapted one."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax_pipelines import their_promotion
from test_adapt_unet import DIVIDES, KERNELS, by_weights, inputs, levels_by_hand, unet

from entscale_jax import UserError
from entscale_jax.adapters import adapt

BOUND = 1e-5
"""Nats; 6.9e-7 measured, and the rule `original` is 2.5e-1 away."""


@pytest.fixture(autouse=True)
def _as_flax_asks():
    with their_promotion():
        yield


def arrays(grid):
    """Of JAX: of NumPy's timesteps diffusers makes another shape."""
    return [jnp.asarray(array) for array in inputs(grid)]


@partial(jax.jit, static_argnums=(0, 1))
def projections(model, grid, params):
    """Their `to_q` and `to_k` by the path of their attention, of self-attention."""
    _, state = model.apply(
        {"params": params}, *arrays(grid), capture_intermediates=_is_projection, mutable=["intermediates"]
    )
    found = jax.tree_util.tree_flatten_with_path(state["intermediates"])[0]
    named = {"/".join(str(key.key) for key in path[:-2]): array for path, array in found}
    return {path: array for path, array in named.items() if "/attn1/" in path}


def _is_projection(module, _):
    return module.name in ("to_q", "to_k")


def by_hand(model, params, grid, heads):
    """Layer -> [batch, heads], N x N in float64."""
    projected, found = projections(model, grid, params), {}
    for path in [path.removesuffix("/to_q") for path in projected if path.endswith("to_q")]:
        width = projected[f"{path}/to_q"].shape[-1] // heads[path]
        query, key = (
            np.asarray(projected[f"{path}/{to}"], np.float64).reshape(2, -1, heads[path], width)
            for to in ("to_q", "to_k")
        )
        logits = np.einsum("bthd,bshd->bhts", query, key) / np.sqrt(query.shape[-1])
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        found[path] = -(weights * np.log(np.maximum(weights, 1e-300))).sum(-1).mean(-1)
    return found


@partial(jax.jit, static_argnums=(0, 1))
def measured(model, grid, params):
    out, state = model.apply({"params": params}, *arrays(grid), mutable=["intermediates"])
    return out.sample, state["intermediates"]


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_entropy_is_that_of_every_row_on_every_path(kernel):
    model, params = unet(**KERNELS[kernel])
    adapted, report = adapt(model, measure_entropy=True)
    multipliers = levels_by_hand(DIVIDES, (8, 8), 2)
    factors = {layer.path: multipliers[layer.level] for layer in report.layers}
    heads = {layer.path: layer.heads for layer in report.layers}
    sample, intermediates = measured(adapted, DIVIDES, params)
    entropy = report.entropy(intermediates)
    wanted, other = (by_hand(unet()[0], each, DIVIDES, heads) for each in (by_weights(params, factors), params))
    assert set(entropy) == set(wanted) == set(factors)
    errors, controls = (
        [np.abs(np.asarray(entropy[path][0]) - each[path]).max() for path in entropy] for each in (wanted, other)
    )
    print(f"{max(errors):.1e} ({max(controls):.1e})", end=" ")
    assert max(errors) < BOUND
    assert max(controls) > 100 * BOUND
    if kernel == "plain":
        plain = jax.jit(lambda params: adapt(model).model.apply({"params": params}, *arrays(DIVIDES)).sample)(params)
        assert np.abs(sample - plain).max() < 1e-5 * np.abs(plain).max()


def test_grids_that_do_not_divide_are_measured_too():
    model, params = unet()
    adapted, report = adapt(model, measure_entropy=True)
    shapes = jax.eval_shape(partial(measured, adapted, (7, 13)), params)[1]
    assert {path: each.shape for path, each in jax.eval_shape(report.entropy, shapes).items()} == {
        layer.path: (1, 2, layer.heads) for layer in report.layers
    }


def test_a_unet_that_is_not_asked_has_the_program_that_it_had():
    model, params = unet()

    def text(model, mutable=()):
        def call(params):
            out, state = model.apply({"params": params}, *arrays(DIVIDES), mutable=mutable)
            return out.sample, state

        return jax.jit(call).lower(params).as_text()

    may, may_not = adapt(model, measure_entropy=True).model, adapt(model).model
    assert text(may) == text(may_not)
    assert text(may, ["intermediates"]) != text(may_not)
    assert set(jax.eval_shape(may.init_weights, jax.random.key(0))) == set(params)


def test_a_pipeline_names_its_unet():
    pipeline = type("FlaxStableDiffusionPipeline", (), {"__module__": "diffusers.x"})()
    with pytest.raises(UserError, match=r"hands nothing on .*: measure adapt\(pipe.unet, measure_entropy=True\)"):
        adapt(pipeline, measure_entropy=True)
