"""Models of this package adapt through the same call, and are then what a call by the rule makes of them."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_models import relative
from flax import nnx

from entscale_jax import Scaling, UserError
from entscale_jax.adapters import adapt
from entscale_jax.models import SD3Transformer2DModel, SD3TransformerConfig

GRID = 7, 5
BOUND = 1e-5
TRAINED = {"train_size": (8, 8)}


@pytest.fixture(scope="module")
def inputs(tiny):
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((2, *GRID, tiny.info.unet.in_channels)).astype(np.float32)
    context = rng.standard_normal((2, 3, tiny.info.unet.cross_attention_dim)).astype(np.float32)
    return jnp.asarray(latents), jnp.full(2, 481.0), jnp.asarray(context)


@nnx.jit(static_argnames="rule")
def call(unet, *inputs, rule=None):
    return unet(*inputs, rule)


def test_an_adapted_unet_draws_by_its_rule_where_a_call_names_none(tiny, inputs):
    entropy, original = (
        np.asarray(call(tiny.unet, *inputs, rule=Scaling.of(rule))) for rule in ("entropy", "original")
    )
    adapted, report = adapt(tiny.unet, rule="original")
    # Within rounding: programs compiled apart need not sum in one order.
    assert relative(call(adapted, *inputs), original) < BOUND
    for unet in (tiny.unet, adapt(adapted).model):
        assert {layer.rule for layer in unet.attention_layers().values()} == {Scaling.of("entropy")}
    assert relative(entropy, original) > 100 * BOUND
    assert {layer.path for layer in report.layers} == set(tiny.unet.attention_layers())
    assert report.unit == "cells"
    assert report.train_size == (8, 8)


def test_another_training_size_is_another_T_at_every_level(tiny, inputs):
    adapted, report = adapt(tiny.unet, train_size=(12, 4))
    assert {(layer.level, layer.train_tokens) for layer in report.layers} == {(0, 48), (1, 12)}
    assert adapted.config.train_tokens == (48, 12)
    assert tiny.unet.config.train_tokens == (64, 16)
    assert not np.array_equal(call(adapted, *inputs), call(tiny.unet, *inputs))
    multipliers = {row.level: row.multiplier for row in report.at(*GRID)}
    assert multipliers[0] == pytest.approx(np.sqrt(np.log(35) / np.log(48)))
    assert multipliers[1] == pytest.approx(np.sqrt(np.log(4 * 3) / np.log(12)))


def test_a_pipeline_counts_in_pixels_and_draws_by_its_rule(tiny):
    size = {"height": 16, "width": 20, "steps": 1, "seed": 3, "decode": False}
    adapted, report = adapt(tiny, rule="original")
    assert report.unit == "pixels"
    assert report.train_size == (32, 32)
    assert {row.tokens for row in report.at(16, 20)} == {20, 6}
    wanted = tiny("a red circle", rule="original", **size)
    named = tiny("a red circle", **size).latents
    assert relative(adapted("a red circle", **size).latents, wanted.latents) < BOUND
    assert relative(adapted("a red circle", rule="entropy", **size).latents, named) < BOUND
    assert relative(named, wanted.latents) > 10 * BOUND


@pytest.mark.full
def test_a_pipeline_trained_elsewhere(tiny):
    adapted, _ = adapt(tiny, train_size=(64, 64))
    assert adapted.info.train_size == (64, 64)
    assert tiny.info.train_size == (32, 32)
    options = {"height": 64, "width": 64, "steps": 1, "decode": False}
    wanted = tiny("a red circle", rule="original", **options)
    assert relative(adapted("a red circle", **options).latents, wanted.latents) < BOUND
    assert relative(tiny("a red circle", **options).latents, wanted.latents) > 10 * BOUND


def test_a_transformer_takes_its_tokens_from_patches():
    widths = {"num_attention_heads": 2, "attention_head_dim": 6, "caption_projection_dim": 12}
    config = SD3TransformerConfig(
        sample_size=8,
        num_layers=1,
        in_channels=4,
        out_channels=4,
        joint_attention_dim=5,
        pooled_projection_dim=3,
        **widths,
    )
    model = SD3Transformer2DModel(config, rngs=nnx.Rngs(0))
    adapted, report = adapt(model, train_size=(12, 12))
    assert {row[1:4] for row in report.at(12, 8)} == {(0, 24, 36)}
    assert (report.unit, report.train_size) == ("cells", (12, 12))
    assert set(model.attention_layers()) == {layer.path for layer in report.layers}
    assert model.config.train_tokens == 16
    # What these scales compute is held in test_entropy.
    for layers, train_tokens in ((adapted, 36), (model, 16)):
        (scale,) = {layer.scale(24) for layer in layers.attention_layers().values()}
        assert scale == pytest.approx(math.sqrt(math.log(24) / math.log(train_tokens) / 6))
    with pytest.raises(UserError, match="can't be cut into patches of 2x2"):
        report.at(7, 8)


@pytest.mark.parametrize("name", ["layers", "train_tokens", "query"])
def test_options_that_mean_nothing_here_are_refused(tiny, name):
    with pytest.raises(UserError, match=f"{name} can't be given for a UNet2DConditionModel"):
        adapt(tiny.unet, **{name: ["attn1"]})


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (np.zeros(3), "numpy.ndarray is not known: adapt takes diffusers' FlaxUNet2DConditionModel"),
        ("org/name", "builtins.str is not known"),
        (jax.jit(lambda x: x), "is not known"),
        (nnx.Linear, "Linear is a class: give a model, made or loaded"),
    ],
)
def test_unknown_models_are_said_in_one_line(model, said):
    with pytest.raises(UserError) as error:
        adapt(model)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_class_that_stands_for_flax_names_the_command_that_installs_it():
    class FlaxUNet2DConditionModel:
        pass

    FlaxUNet2DConditionModel.__module__ = "diffusers.utils.dummy_flax_objects"
    with pytest.raises(UserError, match=r"not installed: .* pip install 'entscale-jax\[legacy\]'"):
        adapt(FlaxUNet2DConditionModel)


def test_calibrated_takes_entropies_by_the_reports_paths(tiny):
    entropies = {layer.path: 0.5 + layer.level for layer in adapt(tiny.unet).report.layers}
    report = adapt(tiny.unet, rule="calibrated", train_entropy=entropies).report
    by_hand = [
        math.sqrt((math.log(35) - 0.5) / (math.log(64) - 0.5)),
        math.sqrt((math.log(12) - 1.5) / (math.log(16) - 1.5)),
    ]
    assert all(row.multiplier == pytest.approx(by_hand[row.level]) for row in report.at(*GRID))
    assert "undefined" not in report.table(*GRID)
    deep = {path: 2.6 if value > 1 else value for path, value in entropies.items()}
    undefined = adapt(tiny.unet, rule="calibrated", train_entropy=deep).report
    assert {row.multiplier for row in undefined.at(*GRID) if row.level == 1} == {None}
    assert undefined.table(*GRID).count("| undefined |") == sum(row.level == 1 for row in undefined.at(*GRID))


def test_calibrated_needs_the_entropy_of_every_layer(tiny):
    with pytest.raises(UserError, match="'calibrated' needs E_T of each layer of UNet2DConditionModel"):
        adapt(tiny.unet, rule="calibrated")
    with pytest.raises(UserError, match="does not ship"):
        adapt(tiny, rule="calibrated")
    with pytest.raises(UserError, match=r"has no E_T for .*attn1"):
        adapt(tiny.unet, rule="calibrated", train_entropy={"elsewhere": 1.0})
