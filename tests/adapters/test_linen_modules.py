"""Modules of someone else's in linen: adapted ones are other values than their originals to whatever compiles them."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import jax
import numpy as np
import pytest
from attention_models import (
    HEAD_DIM,
    TRAIN_TOKENS,
    LinenAttention,
    LinenBlock,
    by_hand,
    entropy_scale,
    linen_by_hand,
    relative,
    tokens,
)
from flax import linen, nnx
from flax.nnx import bridge

from entscale_jax import UserError
from entscale_jax.adapters import adapt

BOUND = 1e-5
INPUTS = tokens(16), tokens(7, seed=1)
SELF = {"layers": ["attn1"], "leave": ["attn2"], "train_tokens": TRAIN_TOKENS, "inputs": INPUTS}


@pytest.fixture(scope="module")
def block():
    return LinenBlock()


@pytest.fixture(scope="module")
def params(block):
    return block.init(jax.random.key(0), *INPUTS)["params"]


@partial(jax.jit, static_argnums=0)
def call(model, params, *inputs):
    return model.apply({"params": params}, *inputs)


@pytest.mark.parametrize("count", [16, 49, 144])
def test_self_attention_follows_its_tokens_after_a_warm_jit_of_the_original(block, params, count):
    inputs = tokens(count), tokens(7, seed=1)
    before = np.asarray(call(block, params, *inputs))
    adapted, original = adapt(block, **SELF).model, adapt(block, rule="original", **SELF).model
    right = linen_by_hand(params, *inputs, entropy_scale(count, TRAIN_TOKENS, HEAD_DIM))
    wrong = linen_by_hand(params, *inputs, HEAD_DIM**-0.5)
    got = call(adapted, params, *inputs)
    assert relative(got, right) < BOUND
    assert relative(got, wrong) > 100 * BOUND
    assert np.array_equal(call(original, params, *inputs), before)
    assert np.array_equal(call(block, params, *inputs), before)


def test_equal_adaptations_are_equal_and_others_are_not(block):
    once, again = (adapt(block, **SELF).model for _ in range(2))
    other = adapt(block, rule="original", **SELF).model
    assert once == again
    assert hash(once) == hash(again)
    assert once != block
    assert once != other
    assert adapt(other, **SELF).model == once


def test_one_program_a_size_and_rule(block, params):
    traces = []

    @partial(jax.jit, static_argnums=0)
    def counted(model, params, *inputs):
        traces.append(1)
        return model.apply({"params": params}, *inputs)

    for _ in range(2):
        for rule in ("entropy", "original", {"rule": "fixed", "multiplier": 1.5}):
            for count in (16, 49):
                counted(adapt(block, rule=rule, **SELF).model, params, tokens(count), tokens(7, seed=1))
    assert len(traces) == 6


def test_another_method_that_apply_names_is_scaled_too(block, params):
    hidden = tokens(16)
    weights = [np.asarray(params["attn1"][to]["kernel"], np.float64) for to in ("to_q", "to_k", "to_v", "to_out")]
    got = adapt(block, **SELF).model.apply({"params": params}, hidden, method="only_self")
    assert relative(got, by_hand(hidden, hidden, *weights, entropy_scale(16, TRAIN_TOKENS, HEAD_DIM))) < BOUND
    assert relative(got, by_hand(hidden, hidden, *weights, HEAD_DIM**-0.5)) > 100 * BOUND


def test_an_adapted_module_works_inside_another(block, params):
    class Outer(linen.Module):
        inner: linen.Module

        def __call__(self, *inputs):
            return self.inner(*inputs) * 2

    inputs = tokens(49), tokens(7, seed=1)
    model = adapt(block, **SELF).model
    outer = Outer(model).apply({"params": {"inner": params}}, *inputs)
    assert relative(outer, 2 * np.asarray(call(model, params, *inputs))) < BOUND
    plain = Outer(block).apply({"params": {"inner": params}}, *inputs)
    assert relative(outer, np.asarray(plain)) > 100 * BOUND


def test_every_transformation_and_thread_draws_each_models_own(block, params):
    inputs = tokens(30), tokens(7, seed=1)
    models = [adapt(block, rule={"rule": "fixed", "multiplier": 1.0 + k}, **SELF).model for k in range(2)]
    wanted = [np.asarray(call(model, params, *inputs)) for model in models]
    assert relative(wanted[0], wanted[1]) > 100 * BOUND

    def by_vmap(model):
        return jax.vmap(lambda *row: model.apply({"params": params}, *row))(*inputs)

    @partial(jax.pmap, static_broadcasted_argnums=0)
    def mapped(model, params, *rows):
        return model.apply({"params": params}, *rows)

    def by_pmap(model):
        return mapped(model, jax.tree.map(lambda leaf: leaf[None], params), *(row[None] for row in inputs))[0]

    ways = (lambda model: model.apply({"params": params}, *inputs), by_vmap, by_pmap)
    with ThreadPoolExecutor(4) as pool:
        for way in ways:
            drawn = list(pool.map(lambda k, way=way: np.asarray(way(models[k % 2])), range(12)))
            assert max(relative(found, wanted[k % 2]) for k, found in enumerate(drawn)) < BOUND


def test_nnx_jit_draws_each_models_own_where_linen_is_bridged(block, params):
    inputs = tokens(30), tokens(7, seed=1)
    traces = []

    @nnx.jit
    def bridged(model, *inputs):
        traces.append(1)
        return model(*inputs)

    models = [adapt(block, rule=rule, **SELF).model for rule in ("entropy", "original")]
    for _ in range(2):
        for model in models:
            ours = bridge.lazy_init(bridge.ToNNX(model, nnx.Rngs(0)), *inputs)
            nnx.update(ours, jax.tree.map(nnx.Param, params))
            assert relative(bridged(ours, *inputs), np.asarray(call(model, params, *inputs))) < BOUND
    assert len(traces) == 2


def test_a_layer_that_was_compiled_inside_the_model_is_scaled_all_the_same():
    class Compiled(linen.Module):
        def setup(self):
            self.attn1 = linen.jit(LinenAttention)()

        def __call__(self, hidden):
            return self.attn1(hidden)

    model, hidden = Compiled(), tokens(16)
    params = model.init(jax.random.key(0), hidden)["params"]
    weights = [np.asarray(params["attn1"][to]["kernel"], np.float64) for to in ("to_q", "to_k", "to_v", "to_out")]
    adapted = adapt(model, layers=["attn1"], train_tokens=TRAIN_TOKENS, inputs=(hidden,)).model
    models = (model, HEAD_DIM**-0.5), (adapted, entropy_scale(16, TRAIN_TOKENS, HEAD_DIM))
    for each, scale in models * 2:
        assert relative(each.apply({"params": params}, hidden), by_hand(hidden, hidden, *weights, scale)) < BOUND


def test_a_layer_that_a_call_skips_is_an_error():
    class Skips(linen.Module):
        def setup(self):
            self.attn1 = LinenAttention()

        def __call__(self, hidden, attend=True):
            return self.attn1(hidden) if attend else hidden

    model, hidden = Skips(), tokens(16)
    params = model.init(jax.random.key(0), hidden)
    adapted = adapt(model, layers=["attn1"], train_tokens=TRAIN_TOKENS, inputs=(hidden,)).model
    with pytest.raises(UserError, match="the scale of attn1 was not reached in this call"):
        adapted.apply(params, hidden, attend=False)


def test_flax_own_attention_adapts():
    model, hidden = linen.MultiHeadDotProductAttention(3, qkv_features=12, use_bias=False), tokens(16)
    params = model.init(jax.random.key(0), hidden)
    adapted, report = adapt(model, layers=[""], train_tokens=TRAIN_TOKENS, inputs=(hidden,))
    assert report.layers[0].heads == 3
    factor = entropy_scale(16, TRAIN_TOKENS, 1)
    by_weights = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf * factor if "query" in str(path) else leaf, params
    )
    expected = np.asarray(model.apply(by_weights, hidden))
    assert relative(adapted.apply(params, hidden), expected) < BOUND
    assert relative(model.apply(params, hidden), expected) > 100 * BOUND


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"layers": ["attn1"]}, "inputs is missing: the layers of LinenBlock, a linen module, are found by tracing it"),
        ({"inputs": INPUTS}, "layers is missing: which attention of LinenBlock is self-attention can't be known"),
        ({"inputs": INPUTS, "layers": ["attn1"]}, "attention of LinenBlock is neither in layers= nor in leave=: attn2"),
        ({**SELF, "layers": ["attn2"], "leave": ["attn1"]}, "attn2 was given context: it is cross-attention"),
    ],
)
def test_what_cannot_be_adapted_is_said_in_one_line(block, params, options, said):
    with pytest.raises(UserError) as error:
        adapt(block, **options).model.apply({"params": params}, *INPUTS)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
