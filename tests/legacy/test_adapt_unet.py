"""diffusers' Flax UNet, adapted: against ours with the same weights, against PyTorch, and against itself unadapted."""

import math
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import FlaxControlNetModel, FlaxUNet2DConditionModel, UNet2DConditionModel
from diffusers.configuration_utils import flax_register_to_config
from diffusers.models.modeling_pytorch_flax_utils import load_flax_weights_in_pytorch_model
from flax.traverse_util import flatten_dict, unflatten_dict
from flax_pipelines import UNET, random_params, their_promotion

from entscale_jax import Scaling, UserError
from entscale_jax.adapters import adapt
from entscale_jax.parity import reference
from entscale_jax.weights.flax_format import unet_from_flax

BOUND, TORCH_BOUND, FLAX_FROM_TORCH = 1e-5, 1e-4, 4e-4
"""The last: Flax has the tanh GELU, and 1e-5 in a norm where PyTorch has 1e-6; 1.9e-4 measured, under either rule."""
KERNELS = {"plain": {}, "split": {"split_head_dim": True}, "chunked": {"use_memory_efficient_attention": True}}
DIVIDES, DOES_NOT = (16, 12), (7, 13)
STABLE_DIFFUSION = {
    "sample_size": 64,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "block_out_channels": (32, 64, 96, 64),
    "layers_per_block": 1,
    "attention_head_dim": 4,
    "cross_attention_dim": 20,
}
ONE_LEVEL = {
    "down_block_types": ("CrossAttnDownBlock2D",),
    "up_block_types": ("CrossAttnUpBlock2D",),
    "block_out_channels": (32,),
    "attention_head_dim": 2,
    "mid_block_type": None,
}
TEXT_TIME = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 10,
    "projection_class_embeddings_input_dim": 14 + 6 * 10,
}


@pytest.fixture(autouse=True)
def _as_flax_asks():
    with their_promotion():
        yield


@cache
def unet(**fields):
    """A UNet and its parameters."""
    with their_promotion():
        model = FlaxUNet2DConditionModel(**{**UNET, "transformer_layers_per_block": 1, **fields})
        return model, random_params(model, np.random.default_rng(0))


@cache
def inputs(grid, width=UNET["cross_attention_dim"]):
    rng = np.random.default_rng(1)
    sample = rng.standard_normal((2, 4, *grid)).astype(np.float32)
    return sample, np.array([481, 481]), rng.standard_normal((2, 7, width)).astype(np.float32)


@partial(jax.jit, static_argnums=0)
def call(model, params, *inputs):
    return model.apply({"params": params}, *inputs).sample


def flax(model, params, grid, **context):
    return np.asarray(call(model, params, *inputs(grid, model.cross_attention_dim)))


@cache
def ours(grid, rule):
    """Our UNet with the weights of `unet()`."""
    model, params = unet()
    sample, timesteps, context = inputs(grid)
    own = unet_from_flax(model.config, params)
    scaling = Scaling.of(rule)
    out = jax.jit(lambda *arrays: own(*arrays, scaling))(sample.transpose(0, 2, 3, 1), timesteps * 1.0, context)
    return np.asarray(out).transpose(0, 3, 1, 2)


def relative(got, expected):
    """The largest difference over the largest value expected; `pytest -s` shows it."""
    error = float(np.abs(got - expected).max() / np.abs(expected).max())
    print(f"{error:.1e}", end=" ")
    return error


@pytest.mark.parametrize("grid", [DIVIDES, DOES_NOT], ids=["divides", "does not"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_adapted_equals_ours_on_every_path_after_a_warm_jit_of_the_original(kernel, grid):
    model, params = unet(**KERNELS[kernel])
    before = flax(model, params, DIVIDES)
    for rule, other in (("entropy", "original"), ("original", "entropy")):
        got = flax(adapt(model, rule=rule).model, params, grid)
        assert relative(got, ours(grid, rule)) < BOUND
        assert relative(got, ours(grid, other)) > 100 * BOUND
        if (rule, grid) == ("original", DIVIDES):
            assert np.array_equal(got, before)
    assert np.array_equal(flax(model, params, DIVIDES), before)


def test_grids_that_do_not_divide_fail_unadapted():
    model, params = unet()
    with pytest.raises(TypeError, match="concatenate"):
        flax(model, params, DOES_NOT)


def test_adapted_before_the_original_was_ever_compiled():
    model, params = unet()
    fresh = jax.jit(lambda model, *arrays: model.apply({"params": arrays[0]}, *arrays[1:]).sample, static_argnums=0)
    adapted = adapt(model).model
    first = fresh(adapted, params, *inputs(DIVIDES))
    assert np.array_equal(fresh(model, params, *inputs(DIVIDES)), flax(model, params, DIVIDES))
    assert np.array_equal(fresh(adapted, params, *inputs(DIVIDES)), first)
    assert relative(first, ours(DIVIDES, "entropy")) < BOUND


@cache
def in_torch():
    """The Stable-Diffusion-shaped UNet in PyTorch, with diffusers' own conversion, and the reference's processors."""
    model, params = unet(**STABLE_DIFFUSION)
    fields = {name: value for name, value in model.config.items() if name in STABLE_DIFFUSION}
    torch_unet = UNet2DConditionModel(**fields, norm_num_groups=32)
    with warnings.catch_warnings():
        # diffusers hands JAX's own memory to PyTorch, which warns of writing to it.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        load_flax_weights_in_pytorch_model(torch_unet, params)
    return torch_unet.eval(), reference.install(torch_unet, (64, 64))


def torch_output(grid, rule, record=False):
    torch_unet, layers = in_torch()
    for layer in layers.values():
        layer.rule, layer.record = rule, [] if record else None
    sample, timesteps, context = map(torch.from_numpy, inputs(grid, STABLE_DIFFUSION["cross_attention_dim"]))
    with torch.no_grad():
        return torch_unet(sample, timesteps, encoder_hidden_states=context).sample.numpy()


@pytest.mark.parametrize("grid", [(28, 28), (36, 64)], ids=["224x224", "512x288"])
def test_adapted_equals_pytorch_with_the_scale(grid):
    model, params = unet(**STABLE_DIFFUSION)
    expected = torch_output(grid, "entropy")
    assert relative(flax(adapt(model, arithmetic="torch").model, params, grid), expected) < TORCH_BOUND
    if grid == (28, 28):
        original = flax(adapt(model, arithmetic="torch", rule="original").model, params, grid)
        assert relative(original, torch_output(grid, "original")) < TORCH_BOUND
        assert relative(original, expected) > 100 * TORCH_BOUND
    else:
        assert TORCH_BOUND < relative(flax(adapt(model).model, params, grid), expected) < FLAX_FROM_TORCH


def test_attention_of_these_weights_has_structure():
    torch_output((28, 28), "original", record=True)
    _, layers = in_torch()
    tokens = {0: 784, 1: 196, 2: 49, 3: 16}
    margins = [math.log(tokens[layer.level]) - float(layer.record[0].mean()) for layer in layers.values()]
    assert min(margins) > 0.5


def test_the_report_has_the_papers_multipliers():
    model, _ = unet(**STABLE_DIFFUSION)
    report = adapt(model).report
    assert str(report) == (
        "FlaxUNet2DConditionModel trained at 64x64 cells: rule entropy in 10 self-attention layers, 10 other attention "
        "layers left as they are"
    )
    by_level = {row.level: row for row in report.at(28, 28)}
    assert [by_level[level].tokens for level in (0, 1, 2, 3)] == [784, 196, 49, 16]
    assert [by_level[level].multiplier for level in (0, 1, 2, 3)] == pytest.approx(
        [0.895, 0.873, 0.838, 0.816], abs=6e-4
    )
    assert {row.head_dim for row in report.at(28, 28)} == {8, 16, 24}
    assert by_level[3].path == "mid_block/attentions_0/transformer_blocks_0/attn1"
    with pytest.raises(UserError, match="leaves 1 token"):
        report.at(8, 8)


def by_weights(params, multipliers):
    """The parameters with `to_q` of self-attention multiplied: what a scale is, for one size."""
    flat = {
        path: leaf * multipliers["/".join(path[:-2])] if path[-2] == "to_q" and path[-3] == "attn1" else leaf
        for path, leaf in flatten_dict(params).items()
    }
    return unflatten_dict(flat)


def levels_by_hand(grid, train, levels):
    """`sqrt(log_T N)` of each level."""

    def tokens(sides, level):
        return math.prod(math.ceil(side / 2**level) for side in sides)

    return [math.sqrt(math.log(tokens(grid, level)) / math.log(tokens(train, level))) for level in range(levels)]


def test_sdxl_shaped_unets_and_training_sizes_of_the_callers():
    model, params = unet(**TEXT_TIME)
    rng = np.random.default_rng(0)
    added = {"text_embeds": rng.standard_normal((2, 14)), "time_ids": rng.standard_normal((2, 6))}
    added = jax.tree.map(partial(np.asarray, dtype=np.float32), added)
    multipliers = levels_by_hand(DIVIDES, (10, 6), 2)
    report = adapt(model, train_size=(10, 6)).report
    assert {layer.level: layer.train_tokens for layer in report.layers} == {0: 60, 1: 15}
    scaled = by_weights(params, {layer.path: multipliers[layer.level] for layer in report.layers})
    expected = call(model, scaled, *inputs(DIVIDES), added)
    got = call(adapt(model, train_size=(10, 6)).model, params, *inputs(DIVIDES), added)
    assert relative(got, expected) < BOUND
    assert relative(got, call(model, params, *inputs(DIVIDES), added)) > 100 * BOUND


def test_attention_with_a_context_is_left_alone():
    model, params = unet(only_cross_attention=(False, True))
    _, report = adapt(model)
    assert {layer.path.split("/")[0] for layer in report.layers} == {"down_blocks_0", "mid_block", "up_blocks_1"}
    assert "down_blocks_1/attentions_0/transformer_blocks_0/attn1" in report.left
    multipliers = levels_by_hand(DIVIDES, (8, 8), 2)
    ones = dict.fromkeys(report.left, 1.0)
    scaled = by_weights(params, ones | {layer.path: multipliers[layer.level] for layer in report.layers})
    expected = call(model, scaled, *inputs(DIVIDES))
    assert relative(call(adapt(model).model, params, *inputs(DIVIDES)), expected) < BOUND


def test_two_rules_in_turn_in_threads_under_vmap_and_pmap_and_one_program_each():
    model, params = unet(**ONE_LEVEL)
    layers = adapt(model).report.layers
    scaled = by_weights(params, dict.fromkeys([layer.path for layer in layers], *levels_by_hand(DIVIDES, (8, 8), 1)))
    wanted = {"entropy": flax(model, scaled, DIVIDES), "original": flax(model, params, DIVIDES)}
    traces = []

    def counted(model, params, *arrays):
        traces.append(1)
        with their_promotion():
            return model.apply({"params": params}, *arrays).sample

    jitted = jax.jit(counted, static_argnums=0)
    mapped = jax.pmap(counted, static_broadcasted_argnums=0)
    arrays = inputs(DIVIDES)
    stacked = jax.tree.map(lambda leaf: leaf[None], (params, *arrays))

    def by_vmap(model, params, *arrays):
        rows = [jnp.asarray(array)[:, None] for array in arrays]
        return jax.jit(jax.vmap(partial(counted, model), in_axes=(None, 0, 0, 0)))(params, *rows)[:, 0]

    ways = (jitted, lambda model, *_: mapped(model, *stacked)[0], by_vmap)
    with ThreadPoolExecutor(2) as pool:
        # Twice: the second time nothing is traced, though the models are adapted anew.
        for way in ways + ways[:2]:
            drawn = list(pool.map(lambda rule, way=way: way(adapt(model, rule=rule).model, params, *arrays), wanted))
            for found, right, wrong in zip(drawn, wanted.values(), reversed(wanted.values()), strict=True):
                assert relative(np.asarray(found), right) < BOUND
                assert relative(np.asarray(found), wrong) > 100 * BOUND
    assert len(traces) == 6


def test_adapting_again_replaces_the_rule():
    model, _ = unet()
    once = adapt(model, rule={"rule": "fixed", "multiplier": 2.0}).model
    assert adapt(once).model == adapt(model).model
    assert adapt(model).model != model


def test_an_adapted_unet_is_saved_as_what_it_is(tmp_path):
    model, params = unet()
    adapt(model).model.save_pretrained(tmp_path, params=params)
    loaded, again = FlaxUNet2DConditionModel.from_pretrained(str(tmp_path))
    assert type(loaded) is FlaxUNet2DConditionModel
    assert np.array_equal(again["conv_in"]["kernel"], params["conv_in"]["kernel"])


def test_chunked_attention_is_refused_where_it_reads_tokens_twice():
    model, params = unet(use_memory_efficient_attention=True)
    shapes = (
        jax.eval_shape(lambda: params),
        *(jax.ShapeDtypeStruct(array.shape, array.dtype) for array in inputs((130, 128))),
    )
    with pytest.raises(UserError, match="is wrong at 16640 tokens, which are no multiple of 16384"):
        jax.eval_shape(partial(call, adapt(model).model), *shapes)
    jax.eval_shape(partial(call, adapt(unet()[0]).model), *shapes)


@flax_register_to_config
class FlaxOtherAttention(FlaxUNet2DConditionModel):
    """A UNet of the user's own, with one more attention, of a class that is not known."""

    def setup(self):
        from flax import linen

        super().setup()
        self.extra = linen.MultiHeadDotProductAttention(2, name="extra")

    def __call__(self, sample, timesteps, context, *args, **kwargs):
        self.extra(context)
        return super().__call__(sample, timesteps, context, *args, **kwargs)


@pytest.mark.parametrize(
    ("make", "options", "said"),
    [
        (lambda: FlaxOtherAttention(**UNET), {}, "is of no known class: extra; known is FlaxAttention"),
        (
            lambda: unet(only_cross_attention=True, mid_block_type=None)[0],
            {},
            "nothing matched: FlaxUNet2DConditionModel",
        ),
        (lambda: FlaxUNet2DConditionModel(**{**UNET, "sample_size": None}), {}, "sample_size=None; give train_size="),
        (lambda: unet()[0], {"train_size": (1, 1)}, "leaves 1 token at the deepest of 2 levels"),
        (lambda: unet()[0], {"train_size": (0, 8)}, "height is 0"),
        (lambda: unet()[0], {"layers": ["attn1"]}, "layers can't be given for a FlaxUNet2DConditionModel"),
        (
            lambda: unet()[0],
            {"rule": {"rule": "fixed", "multiplier": (1, 2, 3)}},
            "has 3 values and the model 2 levels",
        ),
        (lambda: FlaxControlNetModel(), {}, "FlaxControlNetModel is not known: of diffusers' Flax, adapt takes"),
        (lambda: FlaxUNet2DConditionModel, {}, "FlaxUNet2DConditionModel is a class: give a model"),
    ],
)
def test_what_cannot_be_adapted_is_said_in_one_line(make, options, said):
    with pytest.raises(UserError) as error:
        adapt(make(), **options)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
