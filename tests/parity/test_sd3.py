"""The SD3 transformer against PyTorch's with the scale on the picture's queries, in float64 and float32."""

import json
import math
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel as TorchSD3
from flax import nnx

from entscale_jax import Scaling, UserError
from entscale_jax.adapters import adapt
from entscale_jax.models import SD3Transformer2DModel, SD3TransformerConfig
from entscale_jax.parity.compare import precision
from entscale_jax.parity.random_models import randomise
from entscale_jax.parity.reference_sd3 import ReferenceSD3
from entscale_jax.weights.torch_format import AbstractRngs, load_parameters

BOUND = {"float64": 1e-9, "float32": 1e-5}
GRIDS = ((8, 8), (12, 8), (4, 6))
"""Latent cells in patches of two: training's, larger, smaller."""
BASE = {
    "sample_size": 8,
    "in_channels": 5,
    "out_channels": 5,
    "num_layers": 3,
    "attention_head_dim": 12,
    "num_attention_heads": 3,
    "joint_attention_dim": 22,
    "caption_projection_dim": 36,
    "pooled_projection_dim": 14,
    "pos_embed_max_size": 7,
}
MODELS = {"sd3": {}, "sd3.5": {"qk_norm": "rms_norm", "dual_attention_layers": (0, 1)}}
FIXED = {"rule": "fixed", "multiplier": 1.6}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    @cache
    def of(name):
        folder = tmp_path_factory.mktemp("sd3") / name
        model = TorchSD3(**BASE, **MODELS[name])
        randomise(model, 0)
        for key, parameter in model.named_parameters():
            # Far from uniform attention, on which a scale would do nothing.
            if "norm_q" in key or "norm_k" in key or (name == "sd3" and (".to_q.w" in key or ".to_k.w" in key)):
                parameter.data *= 1.5
        model.save_pretrained(folder)
        return folder

    return of


def ours(folder, dtype="float32"):
    config = SD3TransformerConfig.from_json(json.loads((folder / "config.json").read_text()))
    file = folder / "diffusion_pytorch_model.safetensors"
    return load_parameters(
        lambda: SD3Transformer2DModel(config, rngs=AbstractRngs(), dtype=jnp.dtype(dtype)), file, dtype
    )


def inputs(grid, dtype):
    rng = np.random.default_rng(0)
    arrays = rng.standard_normal((2, *grid, 5)), np.array([481.0, 3.0]), rng.standard_normal((2, 9, 22))
    return [array.astype(dtype) for array in (*arrays, rng.standard_normal((2, 14)))]


@nnx.jit(static_argnames="rule")
def call(model, *arrays, rule=None):
    return model(*arrays, rule)


def relative(got, expected):
    return float(np.abs(np.asarray(got) - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", MODELS)
def test_the_model_equals_pytorchs_at_every_size_and_rule(folders, name, dtype):
    with precision(dtype == "float64"):
        model, right = ours(folders(name), dtype), ReferenceSD3(folders(name), float64=dtype == "float64")
        for grid in GRIDS if dtype == "float64" else GRIDS[1:2]:
            arrays = inputs(grid, dtype)
            expected = {
                "entropy": right.once(*arrays, "entropy"),
                "original": right.once(*arrays, "original"),
                "fixed": right.once(*arrays, "fixed", 1.6),
            }
            for rule, other in (("entropy", "fixed"), ("original", "fixed"), (FIXED, "original")):
                got = call(model, *arrays, rule=Scaling.of(rule))
                assert relative(got, expected[rule if isinstance(rule, str) else "fixed"]) < BOUND[dtype]
                assert relative(got, expected[other]) > 100 * BOUND[dtype]
            if grid != GRIDS[0]:
                assert relative(call(model, *arrays), expected["entropy"]) < BOUND[dtype]
                assert relative(call(model, *arrays), expected["original"]) > 100 * BOUND[dtype]


@pytest.mark.parametrize("name", MODELS)
def test_the_reference_is_plain_diffusers_under_original_and_its_attention_has_structure(folders, name):
    right = ReferenceSD3(folders(name))
    latents, timesteps, context, pooled = arrays = inputs(GRIDS[1], "float32")
    plain = TorchSD3.from_pretrained(str(folders(name))).eval()
    with torch.no_grad():
        expected = plain(
            *map(torch.from_numpy, (latents.transpose(0, 3, 1, 2).copy(), context, pooled, timesteps))
        ).sample
    assert relative(right.once(*arrays, "original"), expected.permute(0, 2, 3, 1).numpy()) < 1e-5
    assert relative(right.once(*arrays, "entropy"), expected.permute(0, 2, 3, 1).numpy()) > 1e-3
    right.once(*arrays, "original")
    assert min(layer.margin for layer in right.layers.values()) > 0.5
    assert len(right.layers) == 3 + 2 * (name == "sd3.5")


def test_scales_are_the_rules_from_patch_grids(folders):
    model = ours(folders("sd3.5"))
    layers = model.attention_layers()
    assert set(layers) == set(ReferenceSD3(folders("sd3.5")).layers)
    assert {layer.train_tokens for layer in layers.values()} == {16}
    by_hand = math.sqrt(math.log(24) / math.log(16) / 12)
    assert all(layer.scale(24) == pytest.approx(by_hand, rel=1e-15) for layer in layers.values())
    adapted, report = adapt(model, train_size=(12, 12), rule="entropy")
    assert {row.train_tokens for row in report.at(12, 8)} == {36}
    assert {row.tokens for row in report.at(12, 8)} == {24}
    assert report.unit == "cells"
    arrays = inputs(GRIDS[1], "float32")
    fixed = Scaling.of({"rule": "fixed", "multiplier": math.sqrt(math.log(24) / math.log(36))})
    assert relative(call(adapted, *arrays), np.asarray(call(model, *arrays, rule=fixed))) < 1e-6
    assert relative(call(model, *arrays), np.asarray(call(model, *arrays, rule=fixed))) > 1e-3


@pytest.mark.parametrize(
    ("grid", "said"),
    [
        ((8, 7), "a latent grid of 7x8 is not divided by patches of 2x2"),
        ((16, 4), "has 2x8 patches: the model knows 7x7"),
    ],
)
def test_grids_that_cannot_be_drawn_are_said_in_one_line(folders, grid, said):
    with pytest.raises(UserError, match=said):
        nnx.eval_shape(ours(folders("sd3")), *map(jnp.asarray, inputs(grid, "float32")))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"qk_norm": "layer_norm"}, "qk_norm='layer_norm': implemented are"),
        ({"caption_projection_dim": 37}, "caption_projection_dim=37 must be the width"),
        ({"dual_attention_layers": [3]}, "dual_attention_layers has 3: num_layers is 3"),
        ({"sample_size": 7}, "a latent grid of 7x7 is not divided"),
        ({"flavour": 1}, "flavour=1 \\(unknown field\\)"),
        ({"num_layers": 0}, "num_layers=0 \\(only numbers above 0\\)"),
    ],
)
def test_configs_that_are_not_understood_are_refused(fields, said):
    with pytest.raises(UserError, match=said):
        SD3TransformerConfig.from_json({**BASE, **fields})


def test_weights_are_read_strictly(folders, tmp_path):
    from safetensors.numpy import load_file, save_file

    file = folders("sd3") / "diffusion_pytorch_model.safetensors"
    config = SD3TransformerConfig(**BASE)
    build = partial(SD3Transformer2DModel, config, rngs=AbstractRngs())
    tensors = load_file(file)
    tensors["extra"] = tensors.pop("pos_embed.pos_embed")
    save_file(tensors, tmp_path / "wrong.safetensors")
    with pytest.raises(UserError, match=r"missing key pos_embed.pos_embed; unused key extra"):
        load_parameters(build, tmp_path / "wrong.safetensors")
    assert jax.tree.leaves(nnx.state(load_parameters(build, file), nnx.Param))
