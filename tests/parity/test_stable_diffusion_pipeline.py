"""The shipped folder belongs to PyTorch users too: `StableDiffusionPipeline` opens it and draws the same pictures."""

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from parity_cases import SCENES

from entscale_jax.parity.compare import image_error
from entscale_jax.pipeline import TextToImage

CAPTIONS = ["a red circle", "a blue square and a green triangle"]


@pytest.fixture(params=[pytest.param("sd1", marks=pytest.mark.full), "sd2", "scenes"])
def model(request, folders):
    if request.param == "scenes" and not SCENES.is_dir():
        pytest.skip("entscale_jax/scenes/model is not in this checkout")
    return folders.get(request.param, SCENES)


def _draw_with_torch(folder, captions, noise, steps):
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    assert pipeline.safety_checker is None
    latents = torch.from_numpy(noise).permute(0, 3, 1, 2)
    factor = pipeline.vae_scale_factor
    return pipeline(
        captions,
        height=noise.shape[1] * factor,
        width=noise.shape[2] * factor,
        num_inference_steps=steps,
        guidance_scale=5.0,
        latents=latents,
        output_type="np",
    ).images


def test_torch_draws_the_same_captions(model):
    captions = [caption[:14] for caption in CAPTIONS] if model != SCENES else CAPTIONS
    pipe = TextToImage.from_pretrained(model)
    noise = np.random.default_rng(1).standard_normal((2, *pipe.info.train_grid, 4)).astype(np.float32)
    height, width = pipe.info.train_size
    options = {"height": height, "width": width, "rule": "original", "steps": 5, "guidance": 5.0}
    expected = _draw_with_torch(model, captions, noise, 5)
    out = pipe(captions, latents=noise, **options)
    assert image_error(out.images, expected) <= 1.0
    swapped = pipe(captions[::-1], latents=noise, **options)
    assert image_error(swapped.images, expected) > 1.0
