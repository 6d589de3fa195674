"""Whole pipelines of diffusers' Flax, adapted after a warm-up: the pictures that ours draws of the same folder."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from diffusers import FlaxStableDiffusionImg2ImgPipeline
from flax.jax_utils import replicate
from flax.training.common_utils import shard
from flax_pipelines import build, their_promotion
from test_adapt_unet import by_weights, levels_by_hand

from entscale_jax import TextToImage, UserError
from entscale_jax.adapters import adapt

CAPTIONS = ["a red circle", "a blue square"]
STEPS, GUIDANCE = 3, 4.0
TRAINED, DIVIDES, DOES_NOT = (64, 64), (32, 96), (56, 40)
"""Pixels (height, width), 8 to a cell: 8x8 cells in training, 4x12, and 7x5, of which 7 and 5 are odd."""
BYTE = 1.0
"""Steps of 1/255: ours are rounded to bytes, theirs are not, which is half a step."""


@pytest.fixture(autouse=True)
def _as_flax_asks():
    with their_promotion():
        yield


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(their pipeline, its parameters, the folder), with an autoencoder that shrinks by 8."""
    folder = tmp_path_factory.mktemp("flax")
    vae = {
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (8, 8, 16, 16),
        "norm_num_groups": 8,
    }
    pipe, params = build(folder, vae=vae, transformer_layers_per_block=1)
    return pipe, params, folder / "model"


@pytest.fixture(scope="module")
def ours(saved):
    pipe = TextToImage.from_pretrained(saved[2])

    def draw(size, rule):
        height, width = size
        options = {"steps": STEPS, "guidance": GUIDANCE, "sampler": "ddim", "latents": noise(size)}
        return pipe(CAPTIONS, height=height, width=width, rule=rule, **options).images.astype(np.float64)

    return draw


def noise(size):
    """[B h w c]"""
    return np.random.default_rng(3).standard_normal((2, size[0] // 8, size[1] // 8, 4)).astype(np.float32)


def theirs(pipe, params, size, *, jit):
    """Pictures in steps of 1/255."""
    height, width = size
    options = {"num_inference_steps": STEPS, "height": height, "width": width}
    latents, ids, key = (
        noise(size).transpose(0, 3, 1, 2),
        pipe.prepare_inputs(CAPTIONS),
        jax.random.split(jax.random.key(0), 1),
    )
    if not jit:
        # As an array: of a number diffusers makes one a picture, in a shape that broadcasts for one picture only.
        options |= {"latents": jnp.asarray(latents), "guidance_scale": jnp.float32(GUIDANCE)}
        return 255.0 * pipe(ids, params, key[0], **options).images
    options |= {"latents": shard(latents), "guidance_scale": GUIDANCE}
    images = pipe(shard(ids), replicate(params), key, jit=True, **options).images
    return 255.0 * images.reshape(2, height, width, 3)


def furthest(pictures, expected):
    """The largest difference in steps of 1/255; `pytest -s` shows it."""
    error = float(np.abs(pictures - expected).max())
    print(f"{error:.2f}", end=" ")
    return error


@pytest.mark.parametrize("jit", [False, True])
def test_a_warm_pipeline_adapted_draws_what_ours_draws(saved, ours, jit):
    pipe, params, _ = saved
    before = theirs(pipe, params, DIVIDES, jit=jit)
    adapted, report = adapt(pipe)
    assert report.unit == "pixels"
    assert report.train_size == TRAINED
    assert {row.tokens for row in report.at(*DOES_NOT)} == {35, 12}
    for size in (DIVIDES, DOES_NOT):
        drawn = theirs(adapted, params, size, jit=jit)
        assert furthest(drawn, ours(size, "entropy")) <= BYTE
        assert furthest(drawn, ours(size, "original")) > 4 * BYTE
    assert np.array_equal(theirs(pipe, params, DIVIDES, jit=jit), before)
    assert furthest(before, ours(DIVIDES, "original")) <= BYTE


def test_rule_original_only_mends_the_grid(saved, ours):
    pipe, params, _ = saved
    original = adapt(pipe, rule="original").model
    assert np.array_equal(theirs(original, params, DIVIDES, jit=True), theirs(pipe, params, DIVIDES, jit=True))
    with pytest.raises(TypeError, match="concatenate"):
        theirs(pipe, params, DOES_NOT, jit=True)
    assert furthest(theirs(original, params, DOES_NOT, jit=True), ours(DOES_NOT, "original")) <= BYTE


def test_image_to_image_is_the_original_with_its_queries_multiplied(saved):
    pipe, params, _ = saved
    parts = {name: getattr(pipe, name) for name in ("vae", "text_encoder", "tokenizer", "unet", "scheduler")}
    from_image = FlaxStableDiffusionImg2ImgPipeline(**parts, safety_checker=None, feature_extractor=None)
    adapted, report = adapt(from_image)
    height, width = DIVIDES
    image = np.random.default_rng(5).uniform(-1, 1, (1, 3, height, width)).astype(np.float32)

    def draw(pipe, params):
        size = {"height": height, "width": width, "num_inference_steps": 4, "strength": 0.75}
        ids, key = pipe.tokenizer(CAPTIONS[:1], padding="max_length", return_tensors="np").input_ids, jax.random.key(0)
        return 255.0 * pipe(ids, image, params, key, guidance_scale=GUIDANCE, jit=False, **size).images

    multipliers = levels_by_hand((height // 8, width // 8), (8, 8), 2)
    paths = {layer.path: multipliers[layer.level] for layer in report.layers}
    expected = draw(from_image, params | {"unet": by_weights(params["unet"], paths)})
    plain = draw(from_image, params)
    assert furthest(draw(adapted, params), expected) <= 0.1 * BYTE
    assert furthest(plain, expected) > 4 * BYTE
    assert np.array_equal(draw(from_image, params), plain)


def test_a_pipeline_of_another_kind_is_said_in_one_line(saved):
    pipe, _, _ = saved
    other = type("FlaxStableDiffusionControlNetPipeline", (type(pipe).__mro__[1],), {"__module__": "diffusers.x"})
    with pytest.raises(
        UserError, match="FlaxStableDiffusionControlNetPipeline is not known: of diffusers' Flax, adapt"
    ):
        adapt(other.__new__(other))
