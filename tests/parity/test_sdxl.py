"""The models of SDXL in float64 against PyTorch, and the mistakes that must not pass."""

import dataclasses
import json
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.models.embeddings import Timesteps
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel as TorchUNet
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from flax import nnx
from parity_cases import ENTROPY, ORIGINAL

from entscale_jax.errors import UserError
from entscale_jax.models import (
    AddedConditions,
    AutoencoderKL,
    AutoencoderKLConfig,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTextProjectionConfig,
    UNet2DConditionConfig,
    UNet2DConditionModel,
)
from entscale_jax.models.time_embedding import added_embedding, timestep_embedding
from entscale_jax.parity import random_models, random_sdxl
from entscale_jax.parity.bounds import CONTROL
from entscale_jax.parity.compare import CAPTIONS, call, precision, relative_error
from entscale_jax.parity.reference_sdxl import ReferenceSDXL
from entscale_jax.weights.torch_format import AbstractRngs, load_parameters

BOUND = 1e-9
MISSED = CONTROL * BOUND
TRAINING = (12, 20)
"""Latent cells. Self-attention, at the levels 1 and 2, has 6x10 and 3x5 tokens."""
GRIDS = ((7, 13), (13, 31), (15, 8), (17, 29), (28, 27))
QUICK = ((7, 13), (17, 29))
TIMESTEP = 481
TIME_IDS = np.array([[768.0, 1023, 11, 237, 56, 104], [517, 300, 5, 64, 136, 232]])
"""Of each caption; no two alike, so that none can take another's place."""
PARTS = {
    "unet": (UNet2DConditionModel, UNet2DConditionConfig, "diffusion_pytorch_model.safetensors"),
    "vae": (AutoencoderKL, AutoencoderKLConfig, "diffusion_pytorch_model.safetensors"),
    "text_encoder": (CLIPTextModel, CLIPTextConfig, "model.safetensors"),
    "text_encoder_2": (CLIPTextModelWithProjection, CLIPTextProjectionConfig, "model.safetensors"),
}


@pytest.fixture(scope="module")
def folder(folders):
    return folders["sdxl"]


@pytest.fixture(scope="module")
def reference(folder):
    return ReferenceSDXL(folder, float64=True)


@pytest.fixture(scope="module")
def ours(folder):
    """Part -> our module in float64, loaded once; fields of its config may be given instead."""

    @cache
    def load(part, **fields):
        module, config, file = PARTS[part]
        read = dataclasses.replace(config.from_json(json.loads((folder / part / "config.json").read_text())), **fields)
        return load_parameters(
            lambda: module(read, rngs=AbstractRngs(), dtype=jnp.float64), folder / part / file, jnp.float64
        )

    return load


@pytest.fixture(autouse=True)
def _float64():
    jax.config.update("jax_disable_most_optimizations", True)
    # As in test_modules: flax mixes dtypes in its norms; float32 that crept in would miss the bound.
    with precision(float64=True), jax.numpy_dtype_promotion("standard"):
        yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def told(reference):
    """All that the UNet is told of the captions."""
    return reference.conditions(CAPTIONS)._replace(time_ids=TIME_IDS)


def _noise(grid, seed=0):
    return np.random.default_rng(seed).standard_normal((len(CAPTIONS), *grid, 4))


def _unet(unet, latents, told, scaling):
    graph, weights = nnx.split(unet)

    def predict(weights, latents, timesteps, context, added):
        return nnx.merge(graph, weights)(latents, timesteps, context, scaling, added=added)

    timesteps = np.full(len(latents), TIMESTEP, latents.dtype)
    states, *added = told
    return np.asarray(jax.jit(predict)(weights, latents, timesteps, states, AddedConditions(*added)))


@pytest.mark.parametrize("scaling", [ORIGINAL, ENTROPY], ids=lambda scaling: scaling.label)
@pytest.mark.parametrize(
    "grid", [pytest.param(grid, marks=() if grid in QUICK else pytest.mark.full) for grid in GRIDS]
)
def test_unet(ours, reference, told, grid, scaling):
    latents = _noise(grid)
    got = _unet(ours("unet"), latents, told, scaling)
    other = ENTROPY if scaling is ORIGINAL else ORIGINAL
    assert relative_error(got, reference.unet_once(latents, TIMESTEP, told, scaling.rule.value)) <= BOUND
    assert relative_error(got, reference.unet_once(latents, TIMESTEP, told, other.rule.value)) >= MISSED


def test_unet_is_told_all_that_it_is_told(ours, reference, told):
    """Each condition in the wrong order, or of another, is seen: one program of ours against a reference misled."""
    latents = _noise((7, 13))
    got = _unet(ours("unet"), latents, told, ORIGINAL)

    def error(**wrong):
        return relative_error(got, reference.unet_once(latents, TIMESTEP, told._replace(**wrong), "original"))

    assert error() <= BOUND
    for name, order in {
        "crop before original": [2, 3, 0, 1, 4, 5],
        "target before original": [4, 5, 2, 3, 0, 1],
        "target before crop": [0, 1, 4, 5, 2, 3],
        "width before height": [1, 0, 3, 2, 5, 4],
    }.items():
        assert error(time_ids=TIME_IDS[:, order]) >= MISSED, name
    assert error(time_ids=TIME_IDS[[1, 0]]) >= MISSED
    assert error(text_embeds=told.text_embeds[[1, 0]]) >= MISSED
    first_token = _projected(reference, 0)
    assert error(text_embeds=first_token) >= MISSED
    swapped = np.concatenate([told.text_states[..., 20:], told.text_states[..., :20]], axis=-1)
    assert error(text_states=swapped) >= MISSED
    exact = reference.unet.add_time_proj
    reference.unet.add_time_proj = Timesteps(10, flip_sin_to_cos=True, downscale_freq_shift=0)
    single = error()
    reference.unet.add_time_proj = exact
    assert single >= MISSED, "sinusoids in float32"


def test_unet_without_its_conditions_is_refused(ours, told):
    unet = ours("unet")
    latents, timesteps = jnp.asarray(_noise((7, 13))), jnp.full(2, 481.0)
    with pytest.raises(UserError, match=r"added is missing.*text_time"):
        unet(latents, timesteps, jnp.asarray(told.text_states))
    plain = dataclasses.replace(
        unet.config,
        addition_embed_type=None,
        addition_time_embed_dim=None,
        projection_class_embeddings_input_dim=None,
    )
    added = AddedConditions(*map(jnp.asarray, told[1:]))

    def predict():
        unet = UNet2DConditionModel(plain, rngs=AbstractRngs(), dtype=jnp.float64)
        return unet(latents, timesteps, jnp.asarray(told.text_states), added=added)

    with pytest.raises(UserError, match="added was given"):
        jax.eval_shape(predict)


def test_the_unet_predicts_in_half_precision(ours):
    config, dtype = ours("unet").config, jnp.bfloat16

    def predict():
        unet = UNet2DConditionModel(config, rngs=AbstractRngs(), dtype=dtype)
        added = AddedConditions(jnp.zeros((2, 14), dtype), jnp.zeros((2, 6), jnp.float32))
        return unet(jnp.zeros((2, 7, 13, 4), dtype), jnp.zeros(2, dtype), jnp.zeros((2, 19, 53), dtype), added=added)

    with jax.numpy_dtype_promotion("strict"):
        assert jax.eval_shape(predict).dtype == dtype


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_sizes_are_embedded_in_float32_for_half_precision(dtype):
    """As in diffusers, which casts the sinusoid to the model's dtype and not the sizes before it."""
    ids = TIME_IDS.astype(np.float32)
    expected = Timesteps(10, True, 0)(torch.from_numpy(ids).flatten()).reshape(2, 60).numpy()
    got = np.asarray(added_embedding(jnp.zeros((2, 14), dtype), jnp.asarray(ids), 10, True, 0))
    assert got.dtype == dtype
    limit = 2 * float(jnp.finfo(dtype).eps)
    assert np.abs(got[:, 14:].astype(np.float32) - expected).max() <= limit
    halved = np.asarray(timestep_embedding(jnp.asarray(ids.ravel(), dtype), 10, True, 0), np.float32)
    assert np.abs(halved.reshape(2, 60) - expected).max() > 10 * limit


def _hidden(encoder, ids):
    with torch.no_grad():
        return encoder(torch.from_numpy(ids).long(), output_hidden_states=True)


def _ids(tokenizer):
    encoded = tokenizer(list(CAPTIONS), padding="max_length", max_length=random_sdxl.LENGTH, truncation=True)
    return np.asarray(encoded["input_ids"], np.int32)


def _projected(reference, position):
    """`text_embeds` as they would be, were a text to end at `position`."""
    encoder = reference.text_encoder_2
    last = _hidden(encoder, _ids(reference.tokenizer_2)).last_hidden_state
    with torch.no_grad():
        return encoder.text_projection(last[:, position]).numpy()


def test_text_encoder(ours, reference):
    ids = _ids(reference.tokenizer)
    expected = _hidden(reference.text_encoder, ids)
    got = call(ours("text_encoder"), ids, method="penultimate")
    assert relative_error(got, expected.hidden_states[-2].numpy()) <= BOUND
    assert relative_error(got, reference.text_states(CAPTIONS)[..., :20]) <= BOUND
    for wrong in (expected.hidden_states[-1], expected.hidden_states[-3], expected.last_hidden_state):
        assert relative_error(got, wrong.numpy()) >= MISSED
    assert relative_error(call(ours("text_encoder"), ids), expected.last_hidden_state.numpy()) <= BOUND


def _encoded(module, ids):
    graph, weights = nnx.split(module)
    return [np.asarray(each) for each in jax.jit(lambda weights, ids: nnx.merge(graph, weights)(ids))(weights, ids)]


def test_text_encoder_2(ours, reference):
    ids = _ids(reference.tokenizer_2)
    ends = [row.tolist().index(reference.tokenizer_2.eos_token_id) for row in ids]
    assert 0 < ends[0] != ends[1] < random_sdxl.LENGTH - 1
    states, pooled = _encoded(ours("text_encoder_2"), ids)
    expected = _hidden(reference.text_encoder_2, ids)
    assert relative_error(states, expected.hidden_states[-2].numpy()) <= BOUND
    assert relative_error(states, reference.text_states(CAPTIONS)[..., 20:]) <= BOUND
    assert relative_error(pooled, reference.pooled(CAPTIONS)) <= BOUND
    for wrong in (expected.hidden_states[-1], expected.hidden_states[-3]):
        assert relative_error(states, wrong.numpy()) >= MISSED
    for position in range(random_sdxl.LENGTH):
        right = [position == end for end in ends]
        errors = [relative_error(pooled[row], _projected(reference, position)[row]) for row in range(2)]
        assert [error <= BOUND for error in errors] == right, position
        assert all(error >= MISSED for error, same in zip(errors, right, strict=True) if not same)


END, OTHER = 189, 40
IDS = np.array(
    [
        [188, 7, OTHER, END, OTHER, END, *[END] * 13],
        [188, OTHER, OTHER, 5, 3, 2, END, *[0] * 12],
        [188, 2, 9, 10, 11, 12, 13, *[0] * 12],  # no end at all: transformers takes the first token, or the highest
    ],
    np.int32,
)


@pytest.mark.parametrize("eos_token_id", [2, END, OTHER])
def test_a_text_ends_where_transformers_says(ours, reference, monkeypatch, eos_token_id):
    monkeypatch.setattr(reference.text_encoder_2.text_model, "eos_token_id", eos_token_id)
    expected = _hidden(reference.text_encoder_2, IDS).text_embeds.numpy()
    _, pooled = _encoded(ours("text_encoder_2", eos_token_id=eos_token_id), IDS)
    assert relative_error(pooled, expected) <= BOUND
    other = OTHER if eos_token_id != OTHER else END
    _, elsewhere = _encoded(ours("text_encoder_2", eos_token_id=other), IDS)
    assert relative_error(elsewhere, expected) >= MISSED


@pytest.mark.parametrize("grid", [(7, 13), pytest.param((15, 8), marks=pytest.mark.full)])
def test_vae(ours, reference, grid):
    vae, latents = ours("vae"), _noise(grid)
    assert vae.config.scaling_factor == 0.13025
    got = call(vae, latents / 0.13025, method="decode")
    assert relative_error(got, reference.decode(latents)) <= BOUND
    assert relative_error(got, reference.decode(latents * 0.13025 / 0.18215)) >= MISSED
    images = np.random.default_rng(4).uniform(-1, 1, (2, 8 * grid[0], 8 * grid[1], 3))
    moments = np.concatenate(call(vae, images, method="encode"), axis=-1)
    assert relative_error(moments, reference.encode(images)) <= BOUND
    assert relative_error(moments, reference.encode(images[..., [2, 1, 0]])) >= MISSED


def test_reference_is_plain_diffusers(folder):
    """Text, sizes and UNet as `StableDiffusionXLPipeline` itself has them, in float32."""
    opened = ReferenceSDXL(folder)
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False)
    with torch.no_grad():
        states, _, pooled, _ = pipeline.encode_prompt(list(CAPTIONS), device=torch.device("cpu"))
    height, width = (8 * side for side in TRAINING)
    sizes = ((height, width), (0, 0), (height, width))
    ids = pipeline._get_add_time_ids(*sizes, dtype=torch.float32, text_encoder_projection_dim=14)
    told = opened.conditions(CAPTIONS)
    assert relative_error(told.text_states, states.numpy()) <= 1e-6
    assert relative_error(told.text_embeds, pooled.numpy()) <= 1e-6
    assert told.time_ids.tolist() == ids.repeat(2, 1).tolist()
    latents = _noise((9, 11)).astype(np.float32)
    with torch.no_grad():
        expected = (
            TorchUNet.from_pretrained(folder, subfolder="unet")
            .eval()(
                torch.from_numpy(latents).permute(0, 3, 1, 2),
                480,
                encoder_hidden_states=states,
                added_cond_kwargs={"text_embeds": pooled, "time_ids": ids.repeat(2, 1)},
            )
            .sample.permute(0, 2, 3, 1)
            .numpy()
        )
    assert relative_error(opened.unet_once(latents, 480, told, "original"), expected) <= 1e-5
    assert relative_error(opened.unet_once(latents, 480, told, "entropy"), expected) > 1e-3


def test_random_model_has_structure_and_no_constant_parameter(reference):
    built = random_models.margins(reference)
    assert set(built) == set(reference.layers)
    assert {layer.level for layer in reference.layers.values()} == {1, 2}
    assert min(built.values()) >= random_models.ENTROPY_MARGIN
    for module in (reference.unet, reference.vae, reference.text_encoder, reference.text_encoder_2):
        for name, parameter in module.named_parameters():
            assert parameter.dtype == torch.float64
            assert parameter.std() > 0.01, f"{name} is constant"
