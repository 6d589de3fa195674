"""MaxDiffusion's linen attention and UNet under the rule, for each of its kernels, against lambda written out by hand.

A stand-in has the package's place; with MAXDIFFUSION_PATH, the folder that holds `maxdiffusion`, the same tests run on
the real one, its TPU kernels in interpret mode. `benchmarks/results/maxdiffusion.md` has that run.
"""

import math
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from maxdiffusion_library import (
    BOUND,
    FIXED,
    HEADS,
    MULTIPLIER,
    PATH,
    WIDTH,
    N,
    T,
    attention,
    check,
    expected,
    hidden_states,
    is_query,
    linen_operation,
    message,
    plain,
    quick,
    random,
    scale,
)

from entscale_jax.adapters import adapt
from entscale_jax.adapters.maxdiffusion import KERNELS
from entscale_jax.errors import UserError

pytestmark = [pytest.mark.usefixtures("surroundings"), *([pytest.mark.filterwarnings("ignore")] if PATH else [])]

IN_FLAX_ATTENTION = [name for name in KERNELS if not name.startswith("ulysses_ring")]
"""`FlaxAttention` hands no `ulysses_shards` on, which those kernels require."""


@pytest.mark.parametrize("base2", [False, True], ids=["base e", "base 2"])
@pytest.mark.parametrize("kernel", quick(KERNELS))
def test_operation(library, kernel, base2):
    operation = linen_operation(library, kernel, use_base2_exp=base2)
    arrays = [2 * random(seed, 1, N, HEADS * WIDTH) for seed in range(3)]
    model, report = adapt(operation, train_tokens=T)
    out = model.apply({}, *arrays, method="apply_attention")
    check(out, plain(*arrays, WIDTH**-0.5), plain(*arrays, scale()))
    assert [layer.path for layer in report.layers] == [""]
    same = adapt(operation, train_tokens=T, rule="original").model.apply({}, *arrays, method="apply_attention")
    before = operation.apply({}, *arrays, method="apply_attention")
    np.testing.assert_array_equal(same, before)


@pytest.mark.parametrize("kernel", quick(IN_FLAX_ATTENTION))
def test_attention(library, kernel):
    module, params = attention(library, kernel)
    hidden = hidden_states()
    before = module.apply(params, hidden)
    out = adapt(module, train_tokens=T).model.apply(params, hidden)
    check(out, before, expected(params, hidden, hidden, scale()))
    np.testing.assert_array_equal(adapt(module, train_tokens=T, rule="original").model.apply(params, hidden), before)
    np.testing.assert_array_equal(module.apply(params, hidden), before)


def test_memory_efficient_attention(library):
    """It ignores `scale`, so that only a factor on the query reaches it."""
    module, params = attention(library, "dot_product", use_memory_efficient_attention=True)
    hidden = hidden_states()
    out = adapt(module, train_tokens=T).model.apply(params, hidden)
    # The real one does not put its heads together again, so that nothing written out by hand would equal it.
    wanted = jax.tree_util.tree_map_with_path(lambda path, array: array * (MULTIPLIER if is_query(path) else 1), params)
    check(out, module.apply(params, hidden), module.apply(wanted, hidden))


def test_split_heads(library):
    module, params = attention(library, "dot_product", split_head_dim=True)
    hidden = hidden_states()
    out = adapt(module, train_tokens=T).model.apply(params, hidden)
    check(out, module.apply(params, hidden), expected(params, hidden, hidden, scale()))


def test_short_sequences_fall_back(library):
    """Below `flash_min_seq_length` the kernel is another one, and the scale the same."""
    module, params = attention(library, "flash")
    module = module.clone(flash_min_seq_length=N + 1)
    hidden = hidden_states()
    out = adapt(module, train_tokens=T).model.apply(params, hidden)
    check(out, module.apply(params, hidden), expected(params, hidden, hidden, scale()))


def test_attention_refuses_a_context(library):
    module, params = attention(library, "dot_product")
    model = adapt(module, train_tokens=T).model
    with pytest.raises(UserError, match="cross-attention"):
        model.apply(params, hidden_states(), hidden_states(5))


def test_two_rules_and_a_warm_program(library):
    """One jitted function, its module static, runs four models in turn and each is itself again."""
    module, params = attention(library, "dot_product")
    hidden = hidden_states()
    run = jax.jit(lambda model, params, hidden: model.apply(params, hidden), static_argnums=0)
    before = run(module, params, hidden)
    models = [adapt(module, train_tokens=T, rule=rule).model for rule in ("entropy", FIXED, "original")]
    scales = [scale(), 1.3 / math.sqrt(WIDTH), WIDTH**-0.5]
    for model, wanted in zip(models * 2, scales * 2, strict=True):
        assert np.abs(run(model, params, hidden) - expected(params, hidden, hidden, wanted)).max() <= BOUND
    np.testing.assert_array_equal(run(models[2], params, hidden), before)
    np.testing.assert_array_equal(run(module, params, hidden), before)
    assert run(adapt(module, train_tokens=T).model, params, hidden).shape == before.shape
    assert run._cache_size() == 4


UNET = {
    "sample_size": 8,
    "block_out_channels": (32, 64),
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "attention_head_dim": HEADS,
    "cross_attention_dim": 12,
}


def unet(library, **options):
    module = library.FlaxUNet2DConditionModel(**UNET, **options)
    return module, _unet_params(library, module.only_cross_attention)


@cache
def _unet_params(library, only_cross_attention):
    """The same for every kernel. Queries are larger than those of a fresh model, so that a scale shows."""
    module = library.FlaxUNet2DConditionModel(**UNET, only_cross_attention=only_cross_attention)
    shapes = nn.meta.unbox(jax.eval_shape(module.init_weights, jax.random.key(0)))
    numbers = np.random.default_rng(0)

    def draw(path, shape):
        if path[-1].key != "kernel":
            return jnp.full(shape.shape, float(path[-1].key == "scale"))
        spread = (4.0 if is_query(path) else 1.0) / math.sqrt(math.prod(shape.shape[:-1]))
        return jnp.asarray(spread * numbers.standard_normal(shape.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


# What is compared is compiled in the same way, so the compiler may be quick.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


@partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def _draw(module, params, sample, context):
    return module.apply({"params": params}, sample, jnp.ones(1, jnp.int32), context).sample


def draw(module, params, grid):
    """One step at a grid; one jitted function for all models, adapted or not, so that it must tell them apart."""
    return _draw(module, params, random(5, 1, 4, *grid), random(6, 1, 3, 12))


def by_hand(params, grid, only=()):
    """The parameters that make the unadapted model the adapted one at a grid: `to_q` of self-attention multiplied."""
    counts = (grid[0] * grid[1], -(-grid[0] // 2) * -(-grid[1] // 2))
    factors = [math.sqrt(math.log(count) / math.log(train)) for count, train in zip(counts, (64, 16), strict=True)]
    fine = ("down_blocks_0", "up_blocks_1")

    def multiply(path, array):
        if not is_query(path, "attn1") or path[0].key in only:
            return array
        return array * (factors[0] if path[0].key in fine else factors[1])

    return jax.tree_util.tree_map_with_path(multiply, params)


def test_unet(library):
    module, params = unet(library)
    model, report = adapt(module)
    grid = (12, 6)
    out, before = draw(model, params, grid), draw(module, params, grid)
    check(out, before, draw(module, by_hand(params, grid), grid))
    np.testing.assert_array_equal(draw(module, params, grid), before)
    assert [(layer.level, layer.train_tokens) for layer in report.layers] == [
        (0, 64), (1, 16), (1, 16), (1, 16), (1, 16), (0, 64), (0, 64)
    ]  # fmt: skip
    assert len(report.left) == 7
    assert all(path.endswith("attn2") for path in report.left)


def test_unet_at_a_grid_that_does_not_divide(library):
    module, params = unet(library)
    grid = (7, 10)
    with pytest.raises(TypeError, match="concatenate"):
        draw(module, params, grid)
    plain_model = adapt(module, rule="original").model
    out = draw(adapt(module).model, params, grid)
    assert out.shape == (1, 4, *grid)
    check(out, draw(plain_model, params, grid), draw(plain_model, by_hand(params, grid), grid))


@pytest.mark.full
def test_unet_with_a_flash_kernel(library):
    module, params = unet(library, attention_kernel="flash", mesh=library.mesh or object(), flash_min_seq_length=32)
    if library.real:
        module = module.clone(flash_block_sizes=library.blocks)
    grid = (12, 6)
    out = draw(adapt(module).model, params, grid)
    check(out, draw(module, params, grid), draw(module, by_hand(params, grid), grid))


@pytest.mark.full
def test_unet_whose_attn1_is_cross_attention(library):
    module, params = unet(library, only_cross_attention=(True, False))
    model, report = adapt(module)
    grid = (12, 6)
    assert {layer.level for layer in report.layers} == {1}
    assert "down_blocks_0/attentions_0/transformer_blocks_0/attn1" in report.left
    wanted = by_hand(params, grid, only=("down_blocks_0", "up_blocks_1"))
    check(draw(model, params, grid), draw(module, params, grid), draw(module, wanted, grid))


def test_train_size(library):
    module, _ = unet(library)
    report = adapt(module, train_size=(16, 12)).report
    assert {layer.train_tokens for layer in report.layers} == {192, 48}


def test_linen_joint_attention(library):
    """Flux of linen: a block hands queries to the operation of an attention that it never calls."""
    block = library.FluxSingleTransformerBlock(
        dim=HEADS * WIDTH, num_attention_heads=HEADS, attention_head_dim=WIDTH, mesh=library.mesh
    )
    inputs = random(2, 2, N, HEADS * WIDTH), random(3, 2, HEADS * WIDTH)
    params = nn.meta.unbox(block.init(jax.random.key(0), *inputs))
    with pytest.raises(UserError, match="inputs is missing"):
        adapt(block, train_tokens=T)
    model, report = adapt(block, train_tokens=T, inputs=inputs)
    assert [layer.path for layer in report.layers] == ["attn"]
    wanted = jax.tree_util.tree_map_with_path(
        lambda path, array: array * (MULTIPLIER if path[-2].key == "query_norm" else 1), params
    )
    check(model.apply(params, *inputs), block.apply(params, *inputs), block.apply(wanted, *inputs))


def test_a_block_alone(library):
    """Told self from cross by how each is called."""
    block = library.FlaxBasicTransformerBlock(HEADS * WIDTH, HEADS, WIDTH)
    inputs = hidden_states(), random(3, 1, 5, HEADS * WIDTH)
    params = nn.meta.unbox(block.init(jax.random.key(0), *inputs))
    model, report = adapt(block, train_tokens=T, inputs=inputs)
    assert ([layer.path for layer in report.layers], report.left) == (["attn1"], ("attn2",))
    wanted = jax.tree_util.tree_map_with_path(
        lambda path, array: array * (MULTIPLIER if is_query(path, "attn1") else 1), params
    )
    check(model.apply(params, *inputs), block.apply(params, *inputs), block.apply(wanted, *inputs))


def test_a_module_of_the_users_own(library):
    class Own(nn.Module):
        def setup(self):
            self.first, self.second = (library.FlaxAttention(HEADS * WIDTH, HEADS, WIDTH) for _ in range(2))

        def __call__(self, hidden, context):
            return self.second(self.first(hidden), context)

    inputs = hidden_states(), random(3, 1, 5, HEADS * WIDTH)
    params = nn.meta.unbox(Own().init(jax.random.key(0), *inputs))
    model, _ = adapt(Own(), train_tokens=T, inputs=inputs, layers=["first"], leave=["second"])
    wanted = jax.tree_util.tree_map_with_path(
        lambda path, array: array * (MULTIPLIER if is_query(path, "first") else 1), params
    )
    check(model.apply(params, *inputs), Own().apply(params, *inputs), Own().apply(wanted, *inputs))


def test_pipeline():
    """Its copy has another UNet, and sizes in pixels; the real one needs every part of a checkpoint."""
    import maxdiffusion_unet_stand_in as stand_in

    module = stand_in.FlaxUNet2DConditionModel(
        sample_size=8, block_out_channels=(32, 64), attention_head_dim=HEADS, cross_attention_dim=12
    )
    pipeline = stand_in.FlaxStableDiffusionPipeline(module)
    copy, report = adapt(pipeline)
    assert pipeline.unet is module
    assert copy.unet != module
    assert report.train_size == (64, 64)
    assert {row.tokens for row in report.at(96, 48)} == {72, 18}


def test_an_unknown_kernel_is_refused(library):
    module, _ = unet(library)
    said = message(lambda: adapt(module.clone(attention_kernel="mine")))
    assert "the scale of FlaxUNet2DConditionModel can't be reached: its kernel 'mine'" in said


def test_what_is_missing_is_said(library):
    assert "train_tokens" in message(lambda: adapt(linen_operation(library, "flash")))


def test_the_registry_is_known(library):
    """A kernel that MaxDiffusion adds is read before it is trusted."""
    assert set(library.KERNEL_REGISTRY) == set(KERNELS)
