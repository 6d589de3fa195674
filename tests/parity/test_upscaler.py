"""The upscaler against PyTorch diffusers' own pipeline: the UNet by itself in float64, the whole of it in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion import pipeline_stable_diffusion_upscale
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_upscale import StableDiffusionUpscalePipeline
from flax import nnx

from entscale_jax.parity.compare import precision, relative_error
from entscale_jax.parity.reference import TimeProjection64
from entscale_jax.scales import Scaling
from entscale_jax.upscaler import Upscaler
from entscale_jax.weights.upscaler_folder import describe_upscaler

UNET_BOUND, UNET_CONTROL = 1e-9, 1e-3
"""Of the largest output; measured 5.9e-15 in float64."""
BOUND, CONTROL = 1.0, 10.0
"""Steps of 1/255; measured 0.50 in float32, which is the rounding to bytes."""
CAPTIONS = ["a red circle", "a blue one"]
GRID = (11, 18)
"""Of the UNet alone, where no level but the first is even; the pipeline's is one that diffusers does not shrink."""
SIZE = (12, 20)
STEPS, GUIDANCE, LEVEL = 3, 5.0, 20


@pytest.fixture(scope="module")
def folder(folders):
    return folders["upscaler"]


def _by_a_wrong_rule(unet, multiplier):
    """The PyTorch UNet with another scale of self-attention: attention to text stays as it is."""
    found = [(name, module) for name, module in unet.named_modules() if name.endswith("attn1")]
    own = [name for name, module in found if not module.is_cross_attention]
    assert 0 < len(own) < len(found)
    for name, module in found:
        if name in own:
            module.to_q.weight.data *= multiplier
    return own


def test_the_unet_is_pytorch_s(folder):
    rng = np.random.default_rng(0)
    inputs, text = rng.standard_normal((2, *GRID, 7)), rng.standard_normal((2, 19, 28))
    timesteps, labels = np.array([981.0, 20.0]), np.array([20, 333])
    with precision(float64=True):
        info = describe_upscaler(folder).model
        graph, weights = nnx.split(info.load("unet", jnp.float64))

        def predict(weights, inputs, labels):
            unet, original = nnx.merge(graph, weights), Scaling.of("original")
            return unet(inputs, jnp.asarray(timesteps), jnp.asarray(text), original, labels=labels)

        got = np.asarray(jax.jit(predict)(weights, inputs, labels))
    torch_unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", torch_dtype=torch.float64).eval()
    # diffusers computes the sinusoids in float32, whatever the UNet's dtype.
    torch_unet.time_proj = TimeProjection64(info.unet.block_out_channels[0], True, 0)

    def expected(labels):
        given = (torch.tensor(each) for each in (inputs.transpose(0, 3, 1, 2), timesteps, text, labels))
        with torch.no_grad():
            return torch_unet(*given).sample.numpy().transpose(0, 2, 3, 1)

    error = relative_error(got, expected(labels))
    print("UNet", error)
    assert error <= UNET_BOUND
    label = relative_error(got, expected(labels + 1))
    own = _by_a_wrong_rule(torch_unet, 0.9)
    rule = relative_error(got, expected(labels))
    print("controls", label, rule)
    assert min(label, rule) > UNET_CONTROL
    assert {name.replace(".", "/") for name in own} == set(info.unet.self_attention)
    assert set(info.unet.self_attention.values()) == {2}  # as only the coarsest level attends to itself


def test_the_pipeline_is_pytorch_s(folder, monkeypatch):
    rng = np.random.default_rng(1)
    coarse = rng.integers(0, 256, (2, 3, 5, 3), np.uint8)
    images = coarse.repeat(4, 1).repeat(4, 2)
    latents, noise = (rng.standard_normal((2, *SIZE, channels)).astype(np.float32) for channels in (4, 3))
    with precision(float64=False):
        upscaler = Upscaler.from_pretrained(folder)
        options = {"steps": STEPS, "guidance": GUIDANCE, "noise_level": LEVEL}
        got = upscaler(images, CAPTIONS, latents=latents, noise=noise, **options)
    assert got.images.shape == (2, 48, 80, 3)
    assert got.broken.tolist() == [0, 0]
    pipe = StableDiffusionUpscalePipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    added = torch.tensor(noise.transpose(0, 3, 1, 2))
    monkeypatch.setattr(pipeline_stable_diffusion_upscale, "randn_tensor", lambda shape, **_: added)

    def distance(level=LEVEL, prompts=CAPTIONS):
        expected = pipe(
            prompt=prompts,
            image=images.astype(np.float32) / 255,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            noise_level=level,
            latents=torch.tensor(latents.transpose(0, 3, 1, 2)),
            output_type="np",
        ).images
        return float(np.abs(got.images - 255 * expected).max())

    error = distance()
    print("pipeline", error)
    assert error <= BOUND
    controls = {"level": distance(level=LEVEL + 1)}  # another row of the table, and hardly other noise
    controls["captions"] = distance(prompts=CAPTIONS[::-1])
    added.neg_()
    controls["noise of the picture"] = distance()
    added.neg_()
    _by_a_wrong_rule(pipe.unet, 0.9)
    controls["rule"] = distance()
    print("controls", controls)
    assert min(controls.values()) > CONTROL
    before = dict(upscaler.programs.cache.compiled)
    with precision(float64=False):
        upscaler(images, CAPTIONS, latents=latents, noise=noise, **{**options, "noise_level": 300, "guidance": 2.0})
    assert upscaler.programs.cache.compiled == before
