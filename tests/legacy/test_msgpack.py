"""A folder that diffusers' Flax pipeline saved, opened here: the function of its own classes, and the same picture.

Runs where diffusers is older than 0.40, the first without Flax.
"""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from diffusers import FlaxUNet2DConditionModel
from flax import nnx
from flax_pipelines import UNET, build, random_params, their_promotion

from entscale_jax import TextToImage
from entscale_jax.models import AddedConditions
from entscale_jax.scales import ScaleRule, Scaling
from entscale_jax.weights.flax_format import Arithmetic, unet_from_flax

CAPTIONS = ["a red circle", "a blue square"]
GRID, SIZE = (12, 8), {"height": 24, "width": 16}
STEPS, GUIDANCE = 8, 7.5
DRAW = {"steps": STEPS, "guidance": GUIDANCE, "rule": "original", **SIZE}
BOUNDS = {
    # Relative to the largest value. Flax takes the sines of a timestep, and of a size, in float32 whatever its dtype:
    # that is what float64 leaves, and where all are 0 it leaves nothing.
    "float64": (1e-11, 2e-5),
    "float32": (1e-5, 1e-5),
    "text": 1e-5,
    "autoencoder": 1e-5,
}
CONTROL = 10
"""By how many bounds a wrong function must miss."""
TIMESTEPS = (0, 481)
"""Of the two pictures that a UNet is tested on."""
VARIANTS = {
    "convolutions": {},
    "chunked": {"use_memory_efficient_attention": True},
    "dense, split heads, sizes": {
        "use_linear_projection": True,
        "split_head_dim": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 16 + 6 * 8,
    },
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(their pipeline, its parameters, the folder)."""
    folder = tmp_path_factory.mktemp("flax")
    pipe, params = build(folder)
    return pipe, params, folder / "model"


@pytest.fixture(scope="module")
def opened(saved):
    """The folder as ours."""
    return TextToImage.from_pretrained(saved[2])


def _inputs(dtype):
    rng = np.random.default_rng(1)
    latents, context = rng.standard_normal((2, *GRID, 4)), rng.standard_normal((2, 24, UNET["cross_attention_dim"]))
    return latents.astype(dtype), context.astype(dtype)


def _theirs(unet, params, dtype, *added):
    """What their class gives, channels last."""
    latents, context = _inputs(dtype)
    run = jax.jit(lambda params, *inputs: unet.apply({"params": params}, *inputs).sample)
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    with their_promotion():
        out = run(params, latents.transpose(0, 3, 1, 2), np.array(TIMESTEPS, np.int32), context, *added)
    return np.asarray(out).transpose(0, 2, 3, 1)


def _ours(unet, dtype, rule=ScaleRule.ORIGINAL, added=None):
    latents, context = _inputs(dtype)
    run = nnx.jit(lambda unet, *inputs: unet(*inputs[:3], Scaling(rule), None, *inputs[3:]))
    return np.asarray(run(unet, latents, np.array(TIMESTEPS, dtype), context, added))


def _error(got, expected):
    assert got.shape == expected.shape
    return float(np.abs(got - expected).max() / np.abs(expected).max())


def _errors(got, expected):
    return np.array([_error(*pair) for pair in zip(got, expected, strict=True)])


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_unet_in_float64(variant):
    """With products this exact, any other epsilon, GELU, layout or order of layers shows."""
    fields = {**UNET, **VARIANTS[variant]}
    added = keywords = None
    if "addition_embed_type" in fields:
        added = AddedConditions(np.ones((2, 16)), np.stack([np.zeros(6), np.arange(6.0)]))
        keywords = added._asdict()
    with jax.enable_x64(True):
        theirs = FlaxUNet2DConditionModel(**fields, dtype=np.float64)
        params = random_params(theirs, np.random.default_rng(2))
        expected = _theirs(theirs, params, np.float64, keywords)
        got = _ours(unet_from_flax(theirs.config, params, np.float64), np.float64, added=added)
    assert np.all(_errors(got, expected) <= BOUNDS["float64"])


def test_the_unet_of_the_folder(saved, opened):
    pipe, params, _ = saved
    expected = _theirs(pipe.unet, params["unet"], np.float32)
    got = _errors(_ours(opened.unet, np.float32), expected)
    assert np.all(got <= BOUNDS["float32"])
    # Controls: PyTorch's function of the same weights, and another rule.
    torch = unet_from_flax(pipe.unet.config, params["unet"], arithmetic=Arithmetic.TORCH)
    entropy = _ours(opened.unet, np.float32, ScaleRule.ENTROPY)
    for wrong in (_ours(torch, np.float32), entropy):
        assert np.all(_errors(wrong, expected) > CONTROL * np.array(BOUNDS["float32"]))


def test_a_grid_on_which_theirs_fails(saved, opened):
    pipe, params, _ = saved
    timesteps, context = jnp.array(TIMESTEPS, jnp.float32), _inputs(np.float32)[1]
    with their_promotion(), pytest.raises(TypeError, match="concatenate"):
        jax.eval_shape(pipe.unet.apply, {"params": params["unet"]}, jnp.zeros((2, 4, 7, 5)), timesteps, context)
    assert nnx.eval_shape(opened.unet, jnp.zeros((2, 7, 5, 4)), timesteps, context).shape == (2, 7, 5, 4)


def test_the_text_encoder_of_the_folder(saved, opened):
    pipe, params, _ = saved
    tokens = opened.tokenizers[0](CAPTIONS)
    with their_promotion():
        assert np.array_equal(pipe.prepare_inputs(CAPTIONS), tokens)
        expected = np.asarray(pipe.text_encoder(tokens, params=params["text_encoder"])[0])
    got = np.asarray(opened.text((jnp.asarray(tokens),)).states)
    assert _error(got, expected) <= BOUNDS["text"]
    assert _error(got[::-1], expected) > CONTROL * BOUNDS["text"]


def test_the_autoencoder_of_the_folder(saved, opened):
    pipe, params, _ = saved
    rng = np.random.default_rng(3)
    pixels, latents = (
        jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in ((1, 24, 16, 3), (1, *GRID, 4))
    )
    with their_promotion():
        variables = {"params": params["vae"]}
        encoded = pipe.vae.apply(variables, pixels.transpose(0, 3, 1, 2), method=pipe.vae.encode).latent_dist
        decoded = pipe.vae.apply(variables, latents, method=pipe.vae.decode).sample.transpose(0, 2, 3, 1)
    mean, log_variance = (np.asarray(each) for each in opened.vae.encode(pixels))
    assert _error(mean, np.asarray(encoded.mean)) <= BOUNDS["autoencoder"]
    assert _error(log_variance, np.asarray(encoded.logvar)) <= BOUNDS["autoencoder"]
    assert _error(np.asarray(opened.vae.decode(latents)), np.asarray(decoded)) <= BOUNDS["autoencoder"]


def test_the_picture(saved, opened):
    """Guided DDIM from the same latents, to within one step of 255: all of that is our rounding to bytes."""
    pipe, params, _ = saved
    latents = np.random.default_rng(4).standard_normal((2, *GRID, 4)).astype(np.float32)
    with their_promotion():
        options = {"num_inference_steps": STEPS, "guidance_scale": jnp.float32(GUIDANCE), **SIZE}
        noise = latents.transpose(0, 3, 1, 2)
        expected = pipe(pipe.prepare_inputs(CAPTIONS), params, None, latents=noise, **options).images

    def error(**options):
        return np.abs(opened(CAPTIONS, **DRAW | options, latents=latents).images - 255.0 * expected).max()

    assert np.mean((expected <= 0) | (expected >= 1)) < 0.1, "pictures that saturate would agree whatever is wrong"
    assert error() <= 1.0
    assert error(rule="entropy") > 4.0


def test_a_folder_in_bfloat16(saved, opened, tmp_path):
    """As the hub's `bf16` branches."""
    pipe, params, folder = saved
    half = tmp_path / "half"
    shutil.copytree(folder, half)
    pipe.unet.save_pretrained(
        half / "unet", params=jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params["unet"])
    )
    loaded = TextToImage.from_pretrained(half)
    for wide, narrow in zip(
        *(jax.tree.leaves(nnx.state(each.unet, nnx.Param)) for each in (opened, loaded)), strict=True
    ):
        assert narrow.dtype == np.float32
        assert np.array_equal(wide.astype(jnp.bfloat16), narrow.astype(jnp.bfloat16))
        assert narrow.size < 100 or not np.array_equal(wide, narrow)
