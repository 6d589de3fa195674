"""Super-resolution without text against PyTorch diffusers: the UNet in float64, the whole pipeline in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.pipelines.latent_diffusion import pipeline_latent_diffusion_superresolution as published
from flax import nnx
from PIL import Image

from entscale_jax.parity.compare import precision, relative_error
from entscale_jax.parity.reference import TimeProjection64
from entscale_jax.scales import Scaling
from entscale_jax.upscaler import Upscaler
from entscale_jax.weights.upscaler_folder import describe_upscaler

UNET_BOUND, UNET_CONTROL = 1e-9, 1e-3
"""Of the largest output."""
BOUND, CONTROL = 1.0, 10.0
"""Steps of 1/255: the rounding to bytes is half of one."""
GRID = (12, 20)
"""Of the UNet alone; diffusers' needs sides that its levels divide."""
STEPS = 3


@pytest.fixture(scope="module")
def folder(folders):
    return folders["ldm-upscaler"]


def _by_a_wrong_rule(unet, multiplier):
    found = [name for name, module in unet.named_modules() if hasattr(module, "to_q")]
    for name in found:
        unet.get_submodule(name).to_q.weight.data *= multiplier
        unet.get_submodule(name).to_q.bias.data *= multiplier
    return found


def test_the_unet_is_pytorch_s(folder):
    inputs = np.random.default_rng(0).standard_normal((2, *GRID, 6))
    timesteps = np.array([981.0, 20.0])
    with precision(float64=True):
        info = describe_upscaler(folder).model
        graph, weights = nnx.split(info.load("unet", jnp.float64))

        def predict(weights, inputs):
            return nnx.merge(graph, weights)(inputs, jnp.asarray(timesteps), None, Scaling.of("original"))

        got = np.asarray(jax.jit(predict)(weights, inputs))
    torch_unet = UNet2DModel.from_pretrained(folder, subfolder="unet", torch_dtype=torch.float64).eval()
    # diffusers computes the sinusoids in float32, whatever the UNet's dtype.
    torch_unet.time_proj = TimeProjection64(info.unet.block_out_channels[0], True, 0)

    def expected(timesteps):
        with torch.no_grad():
            out = torch_unet(torch.tensor(inputs.transpose(0, 3, 1, 2)), torch.tensor(timesteps))
        return out.sample.numpy().transpose(0, 2, 3, 1)

    error, time = (relative_error(got, expected(given)) for given in (timesteps, timesteps + 1))
    print("UNet", error)
    assert error <= UNET_BOUND
    layers = _by_a_wrong_rule(torch_unet, 0.9)
    rule = relative_error(got, expected(timesteps))
    print("controls", time, rule)
    assert min(time, rule) > UNET_CONTROL
    assert {name.replace(".", "/") for name in layers} == set(info.unet.self_attention)
    assert set(info.unet.self_attention.values()) == {1, 2}


def test_the_pipeline_is_pytorch_s(folder, monkeypatch):
    """Pictures whose sides 32 does not divide, so that both sides shrink them first."""
    rng = np.random.default_rng(1)
    coarse = rng.integers(0, 256, (2, 5, 9, 3), np.uint8)
    images = coarse.repeat(8, 1).repeat(8, 2)
    latents = rng.standard_normal((2, 32, 64, 3)).astype(np.float32)
    with precision(float64=False):
        upscaler = Upscaler.from_pretrained(folder)
        got = upscaler(images, ["", "left unread"], latents=latents, steps=STEPS)
    assert got.images.shape == (2, 128, 256, 3)
    assert got.broken.tolist() == [0, 0]
    assert got.images.std() > 20
    pipe = published.LDMSuperResolutionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)

    def distance(images=images, sign=1):
        made = []
        for image, noise in zip(images, sign * latents, strict=True):
            given = torch.tensor(noise.transpose(2, 0, 1)[None])
            monkeypatch.setattr(published, "randn_tensor", lambda shape, given=given, **_: given)
            made.append(pipe(Image.fromarray(image), num_inference_steps=STEPS, output_type="np").images[0])
        return np.abs(got.images - 255 * np.stack(made)).max()

    error = distance()
    print("pipeline", error)
    assert error <= BOUND
    controls = {"pictures": distance(images=images[::-1]), "latents": distance(sign=-1)}
    _by_a_wrong_rule(pipe.unet, 0.9)
    controls["rule"] = distance()
    print("controls", controls)
    assert min(controls.values()) > CONTROL
