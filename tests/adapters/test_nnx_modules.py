"""Modules of someone else's in NNX: each way to the scale, told apart by every transformation."""

import math
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_models import (
    HEAD_DIM,
    TRAIN_TOKENS,
    Block,
    RMSNormed,
    TakesScale,
    TheirAttention,
    attend,
    by_hand,
    entropy_scale,
    relative,
    tokens,
)
from flax import nnx

from entscale_jax import UserError
from entscale_jax.adapters import adapt
from entscale_jax.adapters.linen_modules import multiplied

BOUND = 1e-5
SELF = {"layers": ["attn1"], "leave": ["attn2"], "train_tokens": TRAIN_TOKENS}


@pytest.fixture(scope="module")
def block():
    return Block(nnx.Rngs(0))


def check(model, expected, wrong, *inputs):
    """The model gives what is expected, and not what the other rule would give."""
    got = model(*inputs)
    assert relative(got, expected) < BOUND
    assert relative(got, wrong) > 100 * BOUND


@pytest.mark.parametrize("count", [16, 49, 144])
def test_self_attention_follows_its_tokens_and_cross_attention_does_not(block, count):
    hidden, context = tokens(count), tokens(7, seed=1)
    right = block.by_hand(hidden, context, entropy_scale(count, TRAIN_TOKENS, HEAD_DIM))
    wrong = block.by_hand(hidden, context, HEAD_DIM**-0.5)
    check(adapt(block, **SELF).model, right, wrong, hidden, context)
    assert np.array_equal(adapt(block, rule="original", **SELF).model(hidden, context), block(hidden, context))


def test_a_predicate_chooses_too(block):
    hidden, context = tokens(30), tokens(7, seed=1)
    model, report = adapt(
        block,
        layers=lambda path, module: path == "attn1" and isinstance(module, TheirAttention),
        leave=lambda path, module: path.endswith("2"),
        train_tokens=lambda path: {"attn1": TRAIN_TOKENS}[path],
    )
    assert [layer.path for layer in report.layers] == ["attn1"]
    assert report.left == ("attn2",)
    right = block.by_hand(hidden, context, entropy_scale(30, TRAIN_TOKENS, HEAD_DIM))
    check(model, right, block.by_hand(hidden, context, HEAD_DIM**-0.5), hidden, context)


def test_an_attention_that_takes_its_scale_gets_it():
    theirs, hidden = TakesScale(nnx.Rngs(1)), tokens(20)
    model, report = adapt(theirs, layers=[""], train_tokens={"": TRAIN_TOKENS})
    assert report.layers[0].head_dim == HEAD_DIM
    scales = entropy_scale(20, TRAIN_TOKENS, HEAD_DIM), HEAD_DIM**-0.5
    check(model, *(by_hand(hidden, hidden, *theirs.weights(), scale) for scale in scales), hidden)


def test_normalised_queries_are_multiplied_behind_their_norm():
    theirs, hidden = RMSNormed(nnx.Rngs(2)), tokens(20)
    with pytest.raises(UserError, match="'norm_q' normalises queries after it; give query='norm_q'"):
        adapt(theirs, layers=[""], train_tokens=TRAIN_TOKENS)
    model = adapt(theirs, layers=[""], train_tokens=TRAIN_TOKENS, query="norm_q").model
    undone = adapt(theirs, layers=[""], train_tokens=TRAIN_TOKENS, query="to_q").model
    assert relative(undone(hidden), np.asarray(theirs(hidden))) < BOUND

    def norm(query):
        return query / np.sqrt((query**2).mean(-1, keepdims=True) + 1e-6)

    scales = entropy_scale(20, TRAIN_TOKENS, HEAD_DIM), HEAD_DIM**-0.5
    check(model, *(by_hand(hidden, hidden, *theirs.weights(), scale, norm) for scale in scales), hidden)


def test_flax_own_attention_adapts():
    theirs = nnx.MultiHeadAttention(3, 12, decode=False, use_bias=False, rngs=nnx.Rngs(3))
    hidden, weights = tokens(20), []
    for name in ("query", "key", "value", "out"):
        kernel = np.asarray(getattr(theirs, name).kernel[...], np.float64)
        weights.append(kernel.reshape(12, 12))
    model, report = adapt(theirs, layers=[""], train_tokens=TRAIN_TOKENS)
    assert (report.layers[0].heads, report.layers[0].head_dim) == (3, HEAD_DIM)
    scales = entropy_scale(20, TRAIN_TOKENS, HEAD_DIM), HEAD_DIM**-0.5
    check(model, *(by_hand(hidden, hidden, *weights, scale) for scale in scales), hidden)


def test_original_and_copy_share_arrays_and_no_state(block):
    model = adapt(block, **SELF).model
    kernel, copied = block.attn1.to_q.kernel, model.attn1.to_q.kernel
    assert copied is not kernel
    assert copied[...].unsafe_buffer_pointer() == kernel[...].unsafe_buffer_pointer()
    assert type(block.attn1) is TheirAttention
    assert type(block.attn1.to_q) is nnx.Linear
    before = np.asarray(kernel[...])
    model.attn1.to_q.kernel[...] = copied[...] * 2
    assert np.array_equal(block.attn1.to_q.kernel[...], before)


def test_adapting_again_replaces_the_rule(block):
    hidden, context = tokens(30), tokens(7, seed=1)
    once = adapt(block, rule={"rule": "fixed", "multiplier": 3.0}, **SELF).model
    again = adapt(once, **SELF).model
    assert np.array_equal(again(hidden, context), adapt(block, **SELF).model(hidden, context))
    assert np.array_equal(adapt(once, rule="original", **SELF).model(hidden, context), block(hidden, context))


def test_every_transformation_draws_each_models_own_and_compiles_it_once(block):
    inputs = tokens(30), tokens(7, seed=1)
    models = [adapt(block, rule=rule, **SELF).model for rule in ("entropy", "original")]
    wanted = [np.asarray(model(*inputs)) for model in models]
    assert relative(wanted[0], wanted[1]) > 100 * BOUND
    traces = []

    @nnx.jit
    def by_nnx(model, *inputs):
        traces.append(1)
        return model(*inputs)

    @partial(jax.jit, static_argnums=0)
    def by_jax(graph, state, *inputs):
        traces.append(1)
        return nnx.merge(graph, state)(*inputs)

    def by_vmap(model, *inputs):
        graph, state = nnx.split(model)
        return jax.vmap(lambda *row: nnx.merge(graph, state)(*row))(*inputs)

    def by_pmap(model, *inputs):
        graph, state = nnx.split(model)
        call = jax.pmap(lambda graph, state, *rows: nnx.merge(graph, state)(*rows), static_broadcasted_argnums=0)
        rows = [row[None] for row in inputs]
        return call(graph, jax.tree.map(lambda leaf: leaf[None], state), *rows)[0]

    ways = (by_nnx, lambda model, *inputs: by_jax(*nnx.split(model), *inputs), by_vmap, by_pmap)
    for _ in range(2):
        for model, expected in zip(models, wanted, strict=True):
            for way in ways:
                assert relative(way(model, *inputs), expected) < BOUND
    assert len(traces) == 4
    by_nnx(adapt(block, **SELF).model, *inputs)
    assert len(traces) == 4


def test_threads_do_not_mix(block):
    inputs = tokens(30), tokens(7, seed=1)
    models = [adapt(block, rule={"rule": "fixed", "multiplier": 1 + k}, **SELF).model for k in range(4)]
    wanted = [np.asarray(model(*inputs)) for model in models]
    with ThreadPoolExecutor(4) as pool:
        drawn = list(pool.map(lambda k: np.asarray(models[k % 4](*inputs)), range(32)))
    assert all(np.array_equal(found, wanted[k % 4]) for k, found in enumerate(drawn))


def test_half_precision_queries_are_multiplied_in_float32():
    query = jnp.asarray(tokens(20), jnp.bfloat16)
    expected = (np.asarray(query, np.float64) * 0.8734567).astype(jnp.bfloat16)
    assert np.array_equal(multiplied(query, 0.8734567), expected)
    assert not np.array_equal(query * jnp.bfloat16(0.8734567), expected)
    assert multiplied(query, 1.0) is query


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "layers is missing: which attention of Block is self-attention can't be known"),
        ({"layers": []}, "nothing matched: layers= chose none of Block's attention layers; it has attn1, attn2"),
        ({"layers": ["attn3"]}, "layers names attn3, which the model lacks"),
        ({"layers": "attn1"}, "layers is 'attn1': give a list of paths"),
        ({"layers": ["attn1"]}, "attention of Block is neither in layers= nor in leave=: attn2"),
        ({"layers": ["attn1"], "leave": ["attn1", "attn2"]}, "attn1 is both in layers= and in leave="),
        ({"layers": ["attn1"], "leave": ["attn2"]}, "the training size of Block can't be derived"),
        ({**SELF, "train_tokens": {"attn": 3}}, "train_tokens has no T for attn1"),
        ({**SELF, "train_tokens": 1}, "train_tokens of attn1 is 1: log_T needs a whole number, 2 or more"),
        ({**SELF, "query": "to_x"}, "attn1 has no child 'to_x': query= names one of to_k, to_out, to_q, to_v"),
        ({**SELF, "inputs": (1,)}, "inputs can't be given for a Block"),
        ({**SELF, "rule": "entropic"}, "unknown rule 'entropic'"),
    ],
)
def test_what_cannot_be_adapted_is_said_in_one_line(block, options, said):
    with pytest.raises(UserError) as error:
        adapt(block, **options)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_call_whose_tokens_cannot_be_known_is_said_in_one_line(block):
    attention = adapt(block, **SELF).model.attn1
    with pytest.raises(
        UserError, match=r"tokens of attn1 can't be derived: its first argument has shape \[2, 3, 4, 12\]"
    ):
        attention(tokens(12).reshape(2, 3, 4, 12))
    with pytest.raises(UserError, match="attn1 was given context: it is cross-attention"):
        attention(tokens(12), tokens(7))
    with pytest.raises(UserError, match="outside their attention's call"):
        attention.to_q(tokens(12))


class Fused(nnx.Module):
    """Attention with one projection for all, and none that could be multiplied."""

    def __init__(self, rngs):
        self.to_qkv = nnx.Linear(12, 36, rngs=rngs)

    def __call__(self, hidden):
        return attend(*jnp.split(self.to_qkv(hidden)[..., None, :], 3, axis=-1), 1.0)[..., 0, :]


class FusedSelfAttention(Fused):
    """Known by its name."""


def test_a_scale_that_cannot_be_reached_is_an_error():
    with pytest.raises(UserError, match="the scale of the model itself, a FusedSelfAttention, can't be reached"):
        adapt(FusedSelfAttention(nnx.Rngs(0)), layers=[""], train_tokens=TRAIN_TOKENS)


def test_a_projection_that_is_not_used_is_an_error():
    class Unused(TheirAttention):
        def __call__(self, hidden):
            return self.to_k(hidden)

    model = adapt(Unused(nnx.Rngs(0)), layers=[""], train_tokens=TRAIN_TOKENS).model
    with pytest.raises(UserError, match="the scale of the model itself was not reached in this call"):
        model(tokens(12))


def test_the_report_needs_grids_for_a_size_and_takes_train_tokens_from_them(block):
    report = adapt(block, **SELF).report
    with pytest.raises(UserError, match="tokens of Block at 8x4 can't be derived: its grids aren't known"):
        report.at(4, 8)
    named = adapt(block, layers=["attn1"], leave=["attn2"], train_size=(8, 8), tokens=lambda h, w: [h * w]).report
    (row,) = named.at(4, 8)
    assert row[:6] == ("attn1", 0, 32, 64, 3, HEAD_DIM)
    assert row.multiplier == pytest.approx(math.sqrt(math.log(32) / math.log(64)))
    assert "| attn1 | 0 | 32 | 64 | 3 | 4 | 0.9129 |" in named.table(4, 8)
    assert str(named) == (
        "Block trained at 8x8: rule entropy in 1 self-attention layers, 1 other attention layers left as they are"
    )
