"""Latent Diffusion's modules in float64 against PyTorch, with either first stage, and mistakes that must not pass."""

import json
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.vae import VectorQuantizer as TorchQuantizer
from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMTextToImagePipeline
from flax import nnx
from parity_cases import ENTROPY, ORIGINAL

from entscale_jax.models import (
    AutoencoderKL,
    AutoencoderKLConfig,
    LDMBertConfig,
    LDMBertModel,
    UNet2DConditionConfig,
    UNet2DConditionModel,
    VQModel,
    VQModelConfig,
)
from entscale_jax.models.layers import Layers
from entscale_jax.models.vq_model import VectorQuantizer
from entscale_jax.parity import random_models
from entscale_jax.parity.compare import CAPTIONS, TIMESTEP, call, precision, relative_error
from entscale_jax.parity.reference_ldm import ReferenceLDM
from entscale_jax.weights.tokenizer import Tokenizer, TokenizerKind
from entscale_jax.weights.torch_format import AbstractRngs, load_parameters

BOUND = 1e-9
CONTROL = 100 * BOUND
TRAINING = ("kl", "vq")
GRIDS = {
    "kl": ((7, 13), (15, 9), (19, 25), (27, 18), (29, 31)),
    "vq": ((9, 11), (7, 13), (17, 29), (29, 17), (25, 31)),
}
KINDS: dict[str, tuple[Any, Any]] = {
    "unet": (UNet2DConditionConfig, UNet2DConditionModel),
    "bert": (LDMBertConfig, LDMBertModel),
    "kl": (AutoencoderKLConfig, AutoencoderKL),
    "vq": (VQModelConfig, VQModel),
}


@dataclass(frozen=True)
class Opened:
    """One folder on both sides, in float64."""

    unet: Any
    vae: Any
    text: Any
    tokenizer: Tokenizer
    reference: Any

    def latents(self, grid, seed=0):
        return np.random.default_rng(seed).standard_normal((len(CAPTIONS), *grid, self.vae.config.latent_channels))


@pytest.fixture(scope="module")
def folders(folders):
    return {kind: folders[f"ldm-{kind}"] for kind in ("kl", "vq")}


@pytest.fixture(autouse=True)
def _float64():
    # As in test_modules.
    jax.config.update("jax_disable_most_optimizations", True)
    with precision(float64=True), jax.numpy_dtype_promotion("standard"):
        yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def opened(folders) -> Callable[[str], Opened]:
    found = {}

    def load(folder, part, kind, stem):
        config, module = KINDS[kind]
        config = config.from_json(json.loads((folder / part / "config.json").read_text()))
        build = lambda: module(config, rngs=AbstractRngs(), dtype=jnp.float64)  # noqa: E731
        return load_parameters(build, folder / part / f"{stem}.safetensors", jnp.float64)

    def get(kind):
        if kind not in found:
            folder, stem = folders[kind], "diffusion_pytorch_model"
            found[kind] = Opened(
                load(folder, "unet", "unet", stem),
                load(folder, "vqvae", kind, stem),
                load(folder, "bert", "bert", "model"),
                Tokenizer(folder / "tokenizer", 77, TokenizerKind.BERT),
                ReferenceLDM(folder, float64=True),
            )
        return found[kind]

    return get


@contextmanager
def changed(thing, name, value):
    before = getattr(thing, name)
    setattr(thing, name, value)
    yield
    setattr(thing, name, before)


def _cases(quick):
    return [
        pytest.param(kind, grid, marks=() if grid in grids[:quick] else pytest.mark.full)
        for kind, grids in GRIDS.items()
        for grid in grids
    ]


@pytest.mark.parametrize("scaling", [ORIGINAL, ENTROPY], ids=lambda scaling: scaling.label)
@pytest.mark.parametrize(("kind", "grid"), _cases(quick=1))
def test_unet(opened, kind, grid, scaling):
    both = opened(kind)
    latents, context = both.latents(grid), both.reference.text_states(CAPTIONS)
    got = call(both.unet, latents, np.full(len(CAPTIONS), float(TIMESTEP)), context, rule=scaling)
    other = ENTROPY if scaling is ORIGINAL else ORIGINAL
    error, swapped = (
        relative_error(got, both.reference.unet_once(latents, TIMESTEP, context, rule.rule.value))
        for rule in (scaling, other)
    )
    assert error <= BOUND
    assert swapped >= CONTROL


@pytest.mark.parametrize("kind", TRAINING)
def test_tokens_of_the_levels_are_pytorchs(opened, kind):
    both = opened(kind)
    ours = {name: (layer.level, layer.train_tokens) for name, layer in both.unet.attention_layers().items()}
    assert ours == {name: (layer.level, layer.train_tokens) for name, layer in both.reference.layers.items()}


@pytest.mark.parametrize("kind", TRAINING)
def test_text_encoder(opened, kind):
    both = opened(kind)
    captions = ["", "a red circle", "Two blue squares, zigzag!", "red " * 75]
    tokens = both.tokenizer(captions)
    assert tokens.tolist() == both.reference.token_ids(captions).tolist()
    got = call(both.text, tokens)
    assert got.dtype == np.float64
    assert relative_error(got, both.reference.text_states(captions)) <= BOUND


def test_text_encoder_by_another_rule_fails(opened):
    both = opened("kl")
    tokens = both.tokenizer(CAPTIONS)
    got, ids = call(both.text, tokens), torch.from_numpy(tokens).long()
    layer = both.reference.text_encoder.model.layers[0]
    half = both.reference.text_encoder.config.head_dim / both.reference.text_encoder.config.d_model

    def miss():
        return relative_error(got, both.reference.text_states(CAPTIONS))

    with torch.no_grad():
        masked = both.reference.text_encoder(ids, attention_mask=ids != 0)[0].numpy()
    assert relative_error(got, masked) > CONTROL
    with changed(layer, "activation_fn", torch.nn.GELU("tanh")):
        assert miss() > CONTROL
    with changed(layer.self_attn, "scaling", layer.self_attn.scaling * half**0.5):
        assert miss() > CONTROL
    with changed(layer, "self_attn_layer_norm", layer.final_layer_norm):
        assert miss() > CONTROL
    with changed(layer.final_layer_norm, "eps", 1e-6):
        assert miss() > CONTROL
    assert miss() <= BOUND


def test_text_encoder_sees_what_follows(opened):
    """A causal model would give the first states whatever comes after them."""
    text, tokens = opened("kl").text, opened("kl").tokenizer(["a red circle", "a red square"])
    first = call(text, tokens)[:, :3]
    assert np.abs(first[0] - first[1]).max() > 1e-3


@pytest.mark.parametrize(
    ("kind", "grid"), [("kl", (7, 13)), *(pytest.param("vq", grid, marks=pytest.mark.full) for grid in GRIDS["vq"])]
)
def test_decode(opened, kind, grid):
    both = opened(kind)
    latents = both.latents(grid)
    got = call(both.vae, latents / both.vae.config.scaling_factor, method="decode")
    assert got.shape == (2, 8 * grid[0], 8 * grid[1], 3)
    assert both.vae.config.factor == 8
    assert relative_error(got, both.reference.decode(latents)) <= BOUND
    assert relative_error(got, both.reference.decode(latents * both.vae.config.scaling_factor)) > CONTROL


@pytest.mark.parametrize("kind", TRAINING)
def test_encode(opened, kind):
    both = opened(kind)
    images = np.random.default_rng(4).uniform(-1, 1, (2, 40, 56, 3))
    got = call(both.vae, images, method="encode") if kind == "vq" else _moments(both.vae, images)
    assert relative_error(got, both.reference.encode(images)) <= BOUND
    turned = both.reference.encode(images.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3)
    assert relative_error(got, turned) > CONTROL


def _moments(vae, images):
    graph, weights = nnx.split(vae)
    parts = jax.jit(lambda weights, images: nnx.merge(graph, weights).encode(images))(weights, images)
    return np.concatenate(parts, axis=-1)


def test_decode_with_a_changed_codebook(opened):
    """The order of its entries means nothing; the order of their numbers does, and so does rounding to them."""
    both = opened("vq")
    latents = both.latents((9, 11))
    got = call(both.vae, latents / both.vae.config.scaling_factor, method="decode")
    codes = both.reference.vae.quantize.embedding.weight
    before = codes.data.clone()
    for permuted, same in ((before.flip(0), True), (before.roll(1, dims=1), False)):
        codes.data = permuted
        assert (relative_error(got, both.reference.decode(latents)) <= BOUND) is same
    codes.data = before
    raw = torch.from_numpy(latents / both.vae.config.scaling_factor).permute(0, 3, 1, 2)
    with torch.no_grad():
        unrounded = both.reference.vae.decode(raw, force_not_quantize=True).sample.permute(0, 2, 3, 1).numpy()
    assert relative_error(got, unrounded) > CONTROL


def _quantizers(codes):
    ours = VectorQuantizer(VQModelConfig(num_vq_embeddings=len(codes)), Layers(nnx.Rngs(0), jnp.asarray(codes).dtype))
    ours.embedding.embedding.set_value(jnp.asarray(codes))
    theirs = TorchQuantizer(*codes.shape, beta=0.25)
    theirs.embedding.weight.data = torch.from_numpy(codes)
    return ours, theirs


def _indices(ours, theirs, latents):
    got = call(ours, latents, method="nearest")
    with torch.no_grad():
        expected = theirs(torch.from_numpy(latents).permute(0, 3, 1, 2))[2][2].numpy()
    return got, expected.reshape(got.shape)


@pytest.mark.parametrize("grid", [(2, 3), (17, 29)], ids=["differences", "matrix product"])
def test_nearest_entry_is_pytorchs(grid):
    """torch.cdist takes a matrix product from 26 rows on."""
    generator = np.random.default_rng(0)
    ours, theirs = _quantizers(generator.standard_normal((211, 3)))
    got, expected = _indices(ours, theirs, generator.standard_normal((2, *grid, 3)))
    assert np.array_equal(got, expected)
    assert len(np.unique(got)) > 5
    _, others = _indices(*_quantizers(generator.standard_normal((211, 3))), generator.standard_normal((2, *grid, 3)))
    assert not np.array_equal(got, others)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_first_of_several_nearest_entries_is_taken(dtype):
    """Whole numbers have many equal distances, and exact ones."""
    generator = np.random.default_rng(1)
    codes = generator.integers(-2, 3, (40, 3)).astype(dtype)
    latents = generator.integers(-2, 3, (2, 9, 11, 3)).astype(dtype)
    got, expected = _indices(*_quantizers(codes), latents)
    assert np.array_equal(got, expected)
    apart = ((latents[..., None, :] - codes) ** 2).sum(-1)
    last = len(codes) - 1 - apart[..., ::-1].argmin(-1)
    assert np.mean(got != last) > 0.3


@pytest.mark.parametrize("kind", TRAINING)
def test_reference_under_the_original_rule_is_diffusers_own_pipeline(folders, kind):
    reference: Any = ReferenceLDM(folders[kind])
    noise = np.random.default_rng(2).standard_normal((2, 9, 11, reference.unet.config["in_channels"]))
    pipe: Any = LDMTextToImagePipeline.from_pretrained(str(folders[kind]))
    pipe.set_progress_bar_config(disable=True)
    latents = torch.from_numpy(noise).float().permute(0, 3, 1, 2)
    options = {"height": 72, "width": 88, "num_inference_steps": 3, "guidance_scale": 4.0, "latents": latents}
    expected = pipe(list(CAPTIONS), **options, output_type="np").images
    drawn, other = (
        reference.ddim(noise, CAPTIONS, steps=3, guidance=4.0, rule=rule).images for rule in ("original", "entropy")
    )
    limit = 2e-5
    assert np.abs(drawn - expected).max() < limit
    assert np.abs(other - expected).max() > 100 * limit


@pytest.mark.parametrize("kind", TRAINING)
def test_random_models_have_structure_and_no_constant_parameter(opened, kind):
    reference = opened(kind).reference
    margins = random_models.margins(reference, seed=list(TRAINING).index(kind))
    assert set(margins) == set(reference.layers)
    assert min(margins.values()) >= random_models.ENTROPY_MARGIN
    for module in (reference.unet, reference.vae, reference.text_encoder):
        for name, parameter in module.named_parameters():
            assert parameter.std() > 0.01, f"{name} is constant"
