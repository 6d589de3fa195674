"""Entropy of adapted models of JAX: of every row in float64, from weights alone, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_models import (
    HEAD_DIM,
    HEADS,
    TRAIN_TOKENS,
    Block,
    LinenAttention,
    LinenBlock,
    RMSNormed,
    TakesScale,
    TheirAttention,
    attend,
    entropy_scale,
    relative,
    tokens,
)
from flax import linen, nnx

from entscale_jax import UserError
from entscale_jax.adapters import adapt
from entscale_jax.adapters.entropy import mean_entropy
from entscale_jax.models import SD3Transformer2DModel, SD3TransformerConfig

BOUND = 1e-5
"""Nats, float32 against float64; 5.5e-7 measured, and another scale is 5.2e-2 away or more."""
HIDDEN, CONTEXT = tokens(16), tokens(7, seed=1)
SELF = {"layers": ["attn1"], "leave": ["attn2"], "train_tokens": TRAIN_TOKENS}
MEASURED = {**SELF, "measure_entropy": True}
LINEN = {"inputs": (HIDDEN, CONTEXT)}


def rows(query, key, scale, keys=slice(None), heads=HEADS):
    """[B N], N x N in float64, of queries and keys [B T D]."""
    query, key = (np.asarray(each, np.float64).reshape(*each.shape[:2], heads, -1) for each in (query, key))
    logits = scale * np.einsum("bthd,bshd->bhts", query, key[:, keys])
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return -(weights * np.log(np.maximum(weights, 1e-300))).sum(-1).mean(-1)


def of(hidden, query, key, scale, norm=lambda q: q):
    hidden = np.asarray(hidden, np.float64)
    return rows(norm(hidden @ query), norm(hidden @ key), scale)


def check(entropy, path, wanted, other):
    """One call, whose entropy is `wanted` and far from `other`; `pytest -s` shows both."""
    assert list(entropy) == [path]
    (found,) = entropy[path]
    error, control = (np.abs(np.asarray(found) - each).max() for each in (wanted, other))
    print(f"{error:.1e} ({control:.1e})", end=" ")
    assert found.shape == wanted.shape
    assert error < BOUND
    assert control > 100 * BOUND


def scales(count=16):
    return entropy_scale(count, TRAIN_TOKENS, HEAD_DIM), HEAD_DIM**-0.5


@pytest.fixture(scope="module")
def params():
    return LinenBlock().init(jax.random.key(0), HIDDEN, CONTEXT)["params"]


def linen_weights(params):
    return [np.asarray(params["attn1"][to]["kernel"], np.float64) for to in ("to_q", "to_k")]


@pytest.mark.parametrize("count", [16, 49])
def test_linen_sows_the_entropy_of_self_attention(params, count):
    hidden = tokens(count)
    adapted, report = adapt(LinenBlock(), **MEASURED, **LINEN)
    call = jax.jit(lambda params, *arrays: adapted.apply({"params": params}, *arrays, mutable=["intermediates"]))
    out, state = call(params, hidden, CONTEXT)
    wanted = [of(hidden, *linen_weights(params), scale) for scale in scales(count)]
    check(report.entropy(state["intermediates"]), "attn1", *wanted)
    plain = jax.jit(lambda params, *arrays: adapted.apply({"params": params}, *arrays))
    # Within rounding: programs compiled apart need not sum in one order.
    assert relative(out, np.asarray(plain(params, hidden, CONTEXT))) < 1e-6


def test_linen_programs_that_do_not_measure_are_as_they_were(params):
    """Those of a model that may and is not asked, and of one that may not, are one text."""

    def text(model, params, mutable=()):
        call = jax.jit(lambda params, *arrays: model.apply({"params": params}, *arrays, mutable=mutable))
        return call.lower(params, HIDDEN, CONTEXT).as_text()

    may, may_not = (adapt(LinenBlock(), **options, **LINEN).model for options in (MEASURED, SELF))
    assert text(may, params) == text(may_not, params)
    assert text(may_not, params, mutable=["intermediates"]) == text(may_not, params)
    assert text(may, params, mutable=["intermediates"]) != text(may, params)
    assert may != may_not
    assert set(may.init(jax.random.key(0), HIDDEN, CONTEXT)) == {"params"}


def test_linen_calls_and_modules_inside_others(params):
    class Outer(linen.Module):
        inner: linen.Module

        def __call__(self, hidden, context):
            return self.inner(self.inner(hidden, context), context)

    adapted, report = adapt(LinenBlock(), **MEASURED, **LINEN)
    _, state = Outer(adapted).apply({"params": {"inner": params}}, HIDDEN, CONTEXT, mutable=["intermediates"])
    entropy = report.entropy(state["intermediates"]["inner"])["attn1"]
    second = adapted.apply({"params": params}, HIDDEN, CONTEXT)
    assert entropy.shape == (2, 2, HEADS)
    for call, hidden in zip(entropy, (HIDDEN, second), strict=True):
        assert np.abs(call - of(hidden, *linen_weights(params), scales()[0])).max() < BOUND
    assert np.abs(entropy[0] - entropy[1]).max() > 100 * BOUND


@pytest.mark.parametrize("wrap", [linen.jit, linen.remat])
def test_linen_layers_that_are_compiled_inside_the_model(wrap):
    class Compiled(linen.Module):
        def setup(self):
            self.attn1 = wrap(LinenAttention)()

        def __call__(self, hidden):
            return self.attn1(hidden)

    params = Compiled().init(jax.random.key(0), HIDDEN)["params"]
    options = {"layers": ["attn1"], "train_tokens": TRAIN_TOKENS, "inputs": (HIDDEN,), "measure_entropy": True}
    adapted, report = adapt(Compiled(), **options)
    _, state = adapted.apply({"params": params}, HIDDEN, mutable=["intermediates"])
    wanted = [of(HIDDEN, *linen_weights(params), scale) for scale in scales()]
    check(report.entropy(state["intermediates"]), "attn1", *wanted)


@pytest.mark.parametrize("batched", [True, False])
def test_flax_own_attention_with_heads_in_its_projections(batched):
    model, hidden = linen.MultiHeadDotProductAttention(3, qkv_features=12, use_bias=False), HIDDEN
    hidden = hidden if batched else hidden[0]
    params = model.init(jax.random.key(0), hidden)
    options = {"layers": [""], "train_tokens": TRAIN_TOKENS, "inputs": (hidden,), "measure_entropy": True}
    adapted, report = adapt(model, **options)
    _, state = adapted.apply(params, hidden, mutable=["intermediates"])
    weights = [np.asarray(params["params"][name]["kernel"], np.float64).reshape(12, 12) for name in ("query", "key")]
    wanted = [of(hidden if batched else hidden[None], *weights, scale) for scale in scales()]
    check(report.entropy(state["intermediates"]), "", *wanted)
    mask = jnp.ones((1, 1, 16, 16) if batched else (1, 16, 16), bool)
    with pytest.raises(UserError, match="the model itself can't be measured where it is given mask"):
        adapted.apply(params, hidden, mask=mask, mutable=["intermediates"])
    adapted.apply(params, hidden, mask=mask)


def capture(model, *inputs):
    return nnx.capture(model, nnx.Intermediate)(*inputs)


def kernels(model, names=("to_q", "to_k")):
    return [np.asarray(getattr(model, name).kernel[...], np.float64).reshape(12, 12) for name in names]


@pytest.mark.parametrize("jit", [False, True])
def test_nnx_sows_the_entropy_of_self_attention(jit):
    block = Block(nnx.Rngs(0))
    adapted, report = adapt(block, **MEASURED)
    out, state = (nnx.jit(capture) if jit else capture)(adapted, HIDDEN, CONTEXT)
    check(report.entropy(state), "attn1", *[of(HIDDEN, *kernels(block.attn1), scale) for scale in scales()])
    plain = nnx.jit(lambda model, *inputs: model(*inputs)) if jit else lambda model, *inputs: model(*inputs)
    may_not = adapt(adapted, **SELF).model
    assert relative(out, np.asarray(plain(may_not, HIDDEN, CONTEXT))) < 1e-6
    assert nnx.graphdef(may_not) == nnx.graphdef(adapt(block, **SELF).model) != nnx.graphdef(adapted)
    assert type(adapt(adapted, **MEASURED).model.attn1).__mro__[2] is TheirAttention


def test_nnx_variables_that_stay_are_read_too():
    """Sown outside of `nnx.capture`, as before flax had it."""
    block = Block(nnx.Rngs(0))
    adapted, report = adapt(block, **MEASURED)
    for _ in range(2):
        with pytest.warns(DeprecationWarning, match="outside of 'nnx.capture"):
            adapted(HIDDEN, CONTEXT)
    entropy = np.asarray(report.entropy(nnx.pop(adapted, nnx.Intermediate))["attn1"])
    assert entropy.shape == (2, 2, HEADS)
    assert np.abs(entropy - of(HIDDEN, *kernels(block.attn1), scales()[0])).max() < BOUND


def by_rms(heads):
    split = heads.reshape(*heads.shape[:2], HEADS, HEAD_DIM)
    return (split / np.sqrt((split**2).mean(-1, keepdims=True) + 1e-6)).reshape(heads.shape)


class NormsBoth(RMSNormed):
    """Queries and keys are normalised."""

    def __init__(self, rngs):
        super().__init__(rngs)
        self.norm_k = nnx.RMSNorm(HEAD_DIM, rngs=rngs)

    def __call__(self, hidden):
        query, key, value = (
            to(hidden).reshape(*hidden.shape[:-1], HEADS, HEAD_DIM) for to in (self.to_q, self.to_k, self.to_v)
        )
        mixed = attend(self.norm_q(query), self.norm_k(key), value, HEAD_DIM**-0.5)
        return self.to_out(mixed.reshape(hidden.shape))


@pytest.mark.parametrize(
    ("kind", "options", "names", "norm"),
    [
        (TakesScale, {}, ("to_q", "to_k"), lambda q: q),
        (NormsBoth, {"query": "norm_q"}, ("to_q", "to_k"), by_rms),
        (
            lambda rngs: nnx.MultiHeadAttention(3, 12, decode=False, use_bias=False, rngs=rngs),
            {},
            ("query", "key"),
            lambda q: q,
        ),
    ],
    ids=["takes scale", "norms", "flax's own"],
)
def test_nnx_attention_of_every_kind(kind, options, names, norm):
    theirs = kind(nnx.Rngs(1))
    options = {"layers": [""], "train_tokens": TRAIN_TOKENS, "measure_entropy": True, **options}
    adapted, report = adapt(theirs, **options)
    _, state = capture(adapted, HIDDEN)
    check(report.entropy(state), "", *[of(HIDDEN, *kernels(theirs, names), scale, norm) for scale in scales()])


class Unmeasurable(TheirAttention):
    """Without heads in a field, or keys by a name that is known."""

    def __init__(self, rngs):
        super().__init__(rngs)
        self.anything = self.to_k
        del self.to_k, self.num_heads

    def __call__(self, hidden):
        query, key, value = (
            to(hidden).reshape(*hidden.shape[:-1], HEADS, HEAD_DIM) for to in (self.to_q, self.anything, self.to_v)
        )
        return self.to_out(attend(query, key, value, HEAD_DIM**-0.5).reshape(hidden.shape))


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        (RMSNormed, {"query": "norm_q"}, "which child computes its keys last can't be known; name it by key=, one of"),
        (NormsBoth, {"query": "to_q"}, "which child computes its keys last can't be known; name it by key=, one of"),
        (Unmeasurable, {}, "name it by key=, one of anything, to_out, to_q, to_v"),
        (Unmeasurable, {"key": "anything"}, "its module has no heads, num_heads or n_heads, by which its queries are"),
        (Unmeasurable, {"key": "to_x"}, "name it by key=, one of anything"),
        (TheirAttention, {"key": "to_out"}, ""),
    ],
)
def test_what_cannot_be_measured_is_said_in_one_line(kind, options, said):
    def measure():
        options_ = {"layers": [""], "train_tokens": TRAIN_TOKENS, "measure_entropy": True, **options}
        return capture(adapt(kind(nnx.Rngs(0)), **options_).model, HIDDEN)

    if not said:
        measure()
        return
    with pytest.raises(UserError) as error:
        measure()
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_intermediates_without_an_entropy_are_an_error(params):
    _, report = adapt(LinenBlock(), **MEASURED, **LINEN)
    _, unasked = adapt(LinenBlock(), **SELF, **LINEN).model.apply(
        {"params": params}, HIDDEN, CONTEXT, mutable=["intermediates"]
    )
    for found in ({}, unasked, {"attn2": {"attention_entropy": (jnp.ones((2, 3)),)}}):
        with pytest.raises(UserError, match=r"have no entropy of attn1: adapt\(..., measure_entropy=True\), and call"):
            report.entropy(found)
    with pytest.raises(UserError, match="calls of attn1 had batches of different sizes"):
        report.entropy({"attn1": {"attention_entropy": (jnp.ones((2, 3)), jnp.ones((1, 3)))}})


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_masked_keys_take_no_part(dtype):
    numbers = np.random.default_rng(0)
    query, key = (jnp.asarray(2 * numbers.standard_normal((2, 20, HEADS, HEAD_DIM)), dtype) for _ in range(2))
    mask = jnp.broadcast_to(jnp.arange(20) < 13, (2, 20))
    garbage = jnp.where(mask[..., None, None], key, 100 * key)
    merged = (np.asarray(each, np.float64).reshape(2, 20, -1) for each in (query, key))
    wanted = rows(*merged, 0.5, slice(13))
    for keys in (key, garbage):
        assert np.abs(mean_entropy(query, keys, scale=0.5, mask=mask) - wanted).max() < BOUND
    assert np.abs(mean_entropy(query, key, scale=0.5) - wanted).max() > 100 * BOUND


@nnx.jit
def ours(model, *inputs):
    """What a model of this package sows in one call, and what each of its parts gives."""
    capturing = nnx.capture(type(model).__call__, nnx.Intermediate, method_outputs=nnx.Intermediate)
    return capturing(model, *inputs)[1]


def output(state, path):
    """[... D] of a part, in float64."""
    for part in path.split("/"):
        state = state[int(part) if part.isdigit() else part]
    return np.asarray(state["__call__"].get_value()[0], np.float64)


def check_ours(model, inputs, grid_tokens, keys_of):
    """Of the queries and keys that `keys_of` finds, [B S N H] or [B S D], for a layer."""
    adapted, report = adapt(model, rule={"rule": "fixed", "multiplier": 1.3}, measure_entropy=True)
    state = ours(adapted, *inputs)
    entropy = report.entropy(state)
    for layer in report.layers:
        query, key = keys_of(state, layer)
        assert query.shape[1] == grid_tokens[layer.level]
        wanted, other = (
            rows(query.reshape(*query.shape[:2], -1), key.reshape(*key.shape[:2], -1), scale, heads=layer.heads)
            for scale in (1.3 * layer.head_dim**-0.5, layer.head_dim**-0.5)
        )
        check({layer.path: entropy[layer.path]}, layer.path, wanted, other)


@pytest.mark.full
def test_the_unet_of_this_package(tiny):
    rng = np.random.default_rng(0)
    shapes = (2, 7, 5, tiny.info.unet.in_channels), (2, 3, tiny.info.unet.cross_attention_dim)
    latents, context = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes)

    def keys_of(parts, layer):
        return [output(parts, f"{layer.path}/{to}") for to in ("to_q", "to_k")]

    check_ours(tiny.unet, (latents, jnp.full(2, 481.0), context), {0: 35, 1: 12}, keys_of)


def test_the_transformer_of_this_package_where_image_rows_read_text_too():
    config = SD3TransformerConfig(
        sample_size=8,
        num_layers=2,
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=6,
        caption_projection_dim=12,
        joint_attention_dim=5,
        pooled_projection_dim=3,
        qk_norm="rms_norm",
        dual_attention_layers=(0,),
    )
    model = SD3Transformer2DModel(config, rngs=nnx.Rngs(0))
    shapes = (2, 12, 8, 4), (2,), (2, 3, 5), (2, 3)
    rng = np.random.default_rng(0)
    inputs = [jnp.asarray(3 * rng.standard_normal(shape), jnp.float32) for shape in shapes]

    def keys_of(parts, layer):
        query, key = (output(parts, f"{layer.path}/{norm}") for norm in ("norm_q", "norm_k"))
        if layer.path.endswith("attn"):
            key = np.concatenate([key, output(parts, f"{layer.path}/norm_added_k")], axis=1)
        return query, key

    check_ours(model, inputs, {0: 24}, keys_of)


def test_a_callers_own_record_gets_what_is_sown(tiny):
    adapted, report = adapt(tiny.unet, measure_entropy=True)
    shapes = (1, 4, 4, tiny.info.unet.in_channels), (1, 3, tiny.info.unet.cross_attention_dim)
    latents, context = (jnp.ones(shape) for shape in shapes)
    recorded = {}

    def record(layer, entropy, *_):
        recorded[layer] = entropy.shape

    def call(model, *inputs):
        return nnx.capture(type(model).__call__, nnx.Intermediate)(model, *inputs, None, record)[1]

    state = nnx.eval_shape(call, adapted, latents, jnp.ones(1), context)
    assert recorded == {layer.path: (1, layer.heads) for layer in report.layers}
    assert {path: each.shape for path, each in jax.eval_shape(report.entropy, state).items()} == {
        layer.path: (1, 1, layer.heads) for layer in report.layers
    }


def test_a_pipeline_of_this_package_measures_by_its_call(tiny):
    with pytest.raises(UserError, match="a TextToImage measures by its call"):
        adapt(tiny, measure_entropy=True)
