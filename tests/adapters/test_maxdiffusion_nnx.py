"""MaxDiffusion's NNX attention under the rule, for each of its kernels; see `test_maxdiffusion` for what it runs on."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from maxdiffusion_library import (
    BOUND,
    CONTEXT,
    FIXED,
    HEADS,
    MULTIPLIER,
    PATH,
    WIDTH,
    N,
    T,
    check,
    hidden_states,
    message,
    nnx_operation,
    plain,
    quick,
    random,
    scale,
)

from entscale_jax.adapters import adapt
from entscale_jax.adapters.maxdiffusion import KERNELS
from entscale_jax.errors import UserError

pytestmark = [pytest.mark.usefixtures("surroundings"), *([pytest.mark.filterwarnings("ignore")] if PATH else [])]


class Block(nnx.Module):
    """A user's own transformer of MaxDiffusion's parts."""

    def __init__(self, library, kernel):
        def attention(is_self):
            return library.FlaxWanAttention(
                rngs=nnx.Rngs(0),
                query_dim=HEADS * WIDTH,
                heads=HEADS,
                dim_head=WIDTH,
                attention_kernel=kernel,
                flash_block_sizes=library.blocks,
                mesh=library.mesh or object(),
                is_self_attention=is_self,
                attention_config={"ulysses_shards": 1},
            )

        self.attn1, self.attn2 = attention(True), attention(False)

    def __call__(self, hidden, context):
        return self.attn1(hidden), self.attn2(hidden, context)


def expected_wan(module, hidden, context, scale):
    """What `FlaxWanAttention` computes, in float64: query and key are normalised over all heads."""

    def project(name, array):
        layer = getattr(module, name)
        kernel, bias = (np.asarray(value[...], np.float64) for value in (layer.kernel, layer.bias))
        return np.asarray(array, np.float64) @ kernel + bias

    def normalised(name, array):
        mean = (array**2).mean(-1, keepdims=True)
        return array / np.sqrt(mean + 1e-6) * np.asarray(getattr(module, name).scale[...], np.float64)

    query, key = normalised("norm_q", project("query", hidden)), normalised("norm_k", project("key", context))
    return project("proj_attn", plain(query, key, project("value", context), scale))


@pytest.mark.parametrize("kernel", quick(KERNELS))
def test_nnx_attention(library, kernel):
    block = Block(library, kernel)
    hidden, context = hidden_states(), random(3, 1, CONTEXT, HEADS * WIDTH)
    before = block(hidden, context)
    model, report = adapt(block, train_tokens=T)
    out = model(hidden, context)
    check(out[0], before[0], expected_wan(block.attn1, hidden, hidden, scale()))
    np.testing.assert_array_equal(out[1], before[1])
    assert ([layer.path for layer in report.layers], report.left) == (["attn1"], ("attn2",))
    assert (report.layers[0].heads, report.layers[0].head_dim) == (HEADS, WIDTH)
    same = adapt(block, train_tokens=T, rule="original").model(hidden, context)
    for one, other, again in zip(same, before, block(hidden, context), strict=True):
        np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(again, other)


def test_nnx_factor_on_the_projection_would_be_undone(library):
    """Why the operation is adapted and not `query`: a norm follows it."""
    block = Block(library, "dot_product")
    hidden = hidden_states()
    before = block.attn1(hidden)
    block.attn1.query.kernel[...] = MULTIPLIER * block.attn1.query.kernel[...]
    assert np.abs(block.attn1(hidden) - before).max() <= BOUND


def test_nnx_two_rules_and_a_warm_program(library):
    block = Block(library, "dot_product")
    hidden = hidden_states()
    run = nnx.jit(lambda model, hidden: model(hidden, hidden[:, :5])[0])
    before = run(block, hidden)
    models = [adapt(block, train_tokens=T, rule=rule).model for rule in ("entropy", FIXED, "original")]
    scales = [scale(), 1.3 / math.sqrt(WIDTH), WIDTH**-0.5]
    for model, wanted in zip(models * 2, scales * 2, strict=True):
        assert np.abs(run(model, hidden) - expected_wan(block.attn1, hidden, hidden, wanted)).max() <= BOUND
    np.testing.assert_array_equal(run(models[2], hidden), before)
    np.testing.assert_array_equal(run(block, hidden), before)
    again = adapt(models[0], train_tokens=T, rule="original").model
    np.testing.assert_array_equal(run(again, hidden), before)


def test_nnx_scale_follows_the_call(library):
    """One model, its N that of each call."""
    block = Block(library, "dot_product")
    model = adapt(block, train_tokens=T).model
    for tokens in (6, T):
        hidden = hidden_states(tokens)
        wanted = expected_wan(block.attn1, hidden, hidden, scale(tokens))
        assert np.abs(model.attn1(hidden) - wanted).max() <= BOUND
    np.testing.assert_array_equal(model.attn1(hidden), block.attn1(hidden))


def test_nnx_bfloat16(library):
    """The factor is rounded once, with the query."""
    operation = nnx_operation(library, "dot_product")
    query, key, value = (2 * random(seed, 1, N, HEADS * WIDTH).astype(jnp.bfloat16) for seed in range(3))
    wanted = (query.astype(jnp.float32) * MULTIPLIER).astype(jnp.bfloat16)
    out = adapt(operation, train_tokens=T, layers=[""]).model.apply_attention(query, key, value)
    assert out.dtype == operation.apply_attention(wanted, key, value).dtype
    np.testing.assert_array_equal(
        out.astype(jnp.float32), operation.apply_attention(wanted, key, value).astype(jnp.float32)
    )


def test_nnx_joint_attention(library):
    """Flux: captions and picture are one sequence, and N is the length of both."""
    module = library.NNXFluxAttention(
        rngs=nnx.Rngs(0), query_dim=HEADS * WIDTH, heads=HEADS, dim_head=WIDTH, mesh=library.mesh
    )
    picture, captions = random(2, 2, N - 5, HEADS * WIDTH), random(3, 2, 5, HEADS * WIDTH)
    model, report = adapt(module, train_tokens=T)
    assert [layer.path for layer in report.layers] == [""]
    wanted = nnx.clone(module)
    for name in ("query_norm", "encoder_query_norm"):
        norm = getattr(wanted, name)
        norm.scale[...] = MULTIPLIER * norm.scale[...]
    for out, before, rule in zip(*(each(picture, captions) for each in (model, module, wanted)), strict=True):
        check(out, before, rule)


@pytest.mark.parametrize("qk_norm", [True, False], ids=["norm", "no norm"])
@pytest.mark.parametrize("shortest", [0, N + 1], ids=["operation", "by itself"])
def test_nnx_attention_that_passes_its_operation(library, qk_norm, shortest):
    """Z-Image computes short sequences without its operation, so its last step before both is adapted."""
    module = library.ZImageAttention(
        nnx.Rngs(0),
        HEADS * WIDTH,
        HEADS,
        qk_norm=qk_norm,
        attention_kernel="flash",
        mesh=library.mesh,
        flash_block_sizes=library.blocks,
        flash_min_seq_length=shortest,
    )
    hidden = hidden_states()
    still = jnp.ones((1, N, WIDTH // 2)), jnp.zeros((1, N, WIDTH // 2))
    wanted = nnx.clone(module)
    last = wanted.norm_q.scale if qk_norm else wanted.to_q.kernel
    last[...] = MULTIPLIER * last[...]
    model = adapt(module, train_tokens=T).model
    check(model(hidden, still), module(hidden, still), wanted(hidden, still))


@pytest.mark.skipif(not PATH, reason="needs the real package: set MAXDIFFUSION_PATH")
@pytest.mark.parametrize("scan", [True, False], ids=["scan", "loop"])
def test_nnx_transformer(library, scan):
    """Wan whole, its blocks stacked and scanned or in a list."""
    module = library.WanModel(
        rngs=nnx.Rngs(0),
        num_attention_heads=HEADS,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=12,
        freq_dim=16,
        ffn_dim=32,
        num_layers=2,
        scan_layers=scan,
        mesh=library.mesh,
    )
    inputs = random(2, 1, 4, 1, 8, 12), jnp.ones(1), random(3, 1, 5, 12)
    model, report = adapt(module, train_tokens=T)
    assert {layer.path.rpartition("/")[2] for layer in report.layers} == {"attn1"}
    assert {path.rpartition("/")[2] for path in report.left} == {"attn2"}
    wanted = nnx.clone(module)
    for block in [wanted.blocks] if scan else wanted.blocks:
        scale = block.attn1.norm_q.scale
        scale[...] = MULTIPLIER * scale[...]
    check(*(each(*inputs) for each in (model, module, wanted)))


def test_nnx_names_can_be_given(library):
    block = Block(library, "dot_product")
    hidden, context = hidden_states(), random(3, 1, CONTEXT, HEADS * WIDTH)
    report = adapt(block, train_tokens={"attn1": T}, layers=["attn1"], leave=["attn2"]).report
    assert [layer.path for layer in report.layers] == ["attn1"]
    with pytest.raises(UserError, match="nothing matched"):
        adapt(block, train_tokens=T, leave=["attn1"])
    with pytest.raises(UserError, match=r"neither|can't be told"):
        adapt(block, train_tokens=T, layers=["attn1"])
    both = adapt(block, train_tokens=T, layers=["attn1", "attn2"]).model
    with pytest.raises(UserError, match="attn2 was given 384 keys for 24 queries"):
        both(hidden, context)


def test_nnx_leaves_what_is_no_picture(library):
    class Sounding(nnx.Module):
        def __init__(self):
            self.attn1, self.audio_attn1 = (Block(library, "dot_product").attn1 for _ in range(2))

    report = adapt(Sounding(), train_tokens=T).report
    assert ([layer.path for layer in report.layers], report.left) == (["attn1"], ("audio_attn1",))


def test_an_unknown_kernel_is_refused(library, monkeypatch):
    """It may norm its queries, by which a factor is undone; whoever has read it names the layer."""

    def norms(query, key, value, context):
        normed = query / jnp.linalg.norm(query, axis=-1, keepdims=True)
        return library.KERNEL_REGISTRY["dot_product"](normed, key, value, context)

    monkeypatch.setitem(library.KERNEL_REGISTRY, "mine", norms)
    said = message(lambda: adapt(Block(library, "mine"), train_tokens=T))
    assert "the scale of attn1 can't be reached" in said
    assert "'mine'" in said
    assert "dot_product" in said
    assert adapt(Block(library, "mine"), train_tokens=T, layers=["attn1"], leave=["attn2"]).report.layers


def test_an_attention_with_a_kernel_of_its_own_is_refused(library):
    class Own(nnx.Module):
        def __init__(self):
            self.attention_kernel = "dot_product"
            self.rotate = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
            self.attention_op = nnx_operation(library, "flash", axis_names_q=("", "activation_self_attn_heads"))

    said = message(lambda: adapt(Own(), train_tokens=T))
    assert "the scale of the model itself can't be reached: Own has a kernel of its own" in said
    assert adapt(Own(), train_tokens=T, query="rotate").report.layers


def test_what_is_missing_is_said(library):
    assert "train_tokens" in message(lambda: adapt(Block(library, "flash")))
    said = message(lambda: adapt(nnx_operation(library, "flash"), train_tokens=T))
    assert "can't be told self from cross" in said
