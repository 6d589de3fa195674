"""PyTorch's own pipelines open the same folders and draw the same pictures: text to image and image to image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMTextToImagePipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img import StableDiffusionImg2ImgPipeline
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_euler_ancestral_discrete import EulerAncestralDiscreteScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_pndm import PNDMScheduler
from flax import nnx
from parity_cases import SCENES

from entscale_jax.parity.compare import image_error, precision
from entscale_jax.parity.reference import Reference
from entscale_jax.parity.reference_ldm import ReferenceLDM
from entscale_jax.parity.reference_sdxl import ReferenceSDXL
from entscale_jax.pipeline import TextToImage
from entscale_jax.sampling import call_noise

# Of diffusers' DPMSolverMultistepScheduler with NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

CAPTIONS = ["a red circle", "a blue one"]
STEPS, GUIDANCE = 5, 5.0
SCHEDULERS = {
    "ddim": DDIMScheduler,
    "pndm": PNDMScheduler,
    "euler": EulerDiscreteScheduler,
    "euler_ancestral": EulerAncestralDiscreteScheduler,
    "dpmsolver++": DPMSolverMultistepScheduler,
}
GRIDS = {
    "sd1": (9, 7),
    "sd2": (7, 11),
    "sd2-base": (9, 7),
    "scenes": (16, 16),
    "ldm-kl": (9, 7),
    "ldm-vq": (7, 11),
    "sdxl": (9, 7),
}
"""Latent cells (h, w)."""


@pytest.fixture(autouse=True)
def _exact_products():
    with precision(float64=False):
        yield


@pytest.fixture(scope="module")
def opened(folders):
    """Model -> its folder and the pipeline here, opened once."""
    made = {}

    def open_once(model):
        if model == "scenes" and not SCENES.is_dir():
            pytest.skip("entscale_jax/scenes/model is not in this checkout")
        if model not in made:
            folder = folders.get(model, SCENES)
            made[model] = folder, TextToImage.from_pretrained(folder)
        return made[model]

    return open_once


def _in_torch(kind, folder, sampler, rule, *, opened_by=Reference, fields=None, **arguments):
    """What PyTorch's pipeline draws, with the reference's UNet, whose self-attention passes the scale of `rule` on."""
    reference = opened_by(folder)
    # diffusers' image to image compares it with 64, and can't where it is a pair; nothing else reads it there.
    reference.unet.register_to_config(sample_size=64)
    pipeline = kind.from_pretrained(folder, unet=reference.unet)
    pipeline.set_progress_bar_config(disable=True)
    # Stable Diffusion's own PNDM; configs of other samplers don't say it, and diffusers' default is another.
    own = {"skip_prk_steps": True} if sampler == "pndm" else {}
    pipeline.scheduler = SCHEDULERS[sampler].from_config(pipeline.scheduler.config, **own, **fields or {})
    with reference._scaled(rule, 1.0, None):
        options = {"prompt": CAPTIONS, "guidance_scale": GUIDANCE, **arguments}
        return pipeline(num_inference_steps=STEPS, output_type="np", **options).images


def _nchw(array):
    return torch.tensor(np.asarray(array)).permute(0, 3, 1, 2).contiguous()


def _noise(model, channels=4):
    return np.random.default_rng(1).standard_normal((2, *GRIDS[model], channels)).astype(np.float32)


CASES = [
    ("sd1", "ddim", "entropy"),
    pytest.param("sd1", "pndm", "original", marks=pytest.mark.full),
    pytest.param("sd2", "euler", "original", marks=pytest.mark.full),
    ("sd2", "dpmsolver++", "entropy"),
    ("sd2-base", "pndm", "entropy"),
    ("scenes", "ddim", "original"),
]


@pytest.mark.parametrize(("model", "sampler", "rule"), CASES)
def test_text_to_image(opened, model, sampler, rule):
    folder, pipe = opened(model)
    noise, (height, width) = _noise(model), (8 * side for side in GRIDS[model])
    expected = _in_torch(
        StableDiffusionPipeline, folder, sampler, rule, height=height, width=width, latents=_nchw(noise)
    )
    options = {"height": height, "width": width, "steps": STEPS, "guidance": GUIDANCE, "sampler": sampler}
    out = pipe(CAPTIONS, latents=noise, rule=rule, **options)
    assert image_error(out.images, expected) <= 1.0
    swapped = pipe(CAPTIONS[::-1], latents=noise, rule=rule, **options)
    assert image_error(swapped.images, expected) > 1.0
    if rule == "entropy":
        assert image_error(pipe(CAPTIONS, latents=noise, rule="original", **options).images, expected) > 1.0


DRAWN = [
    ("sd1", {"name": "euler_ancestral"}, {}),
    ("sd1", {"name": "ddim", "eta": 0.7}, {"eta": 0.7}),
    ("sd1", {"name": "dpmsolver++", "use_karras_sigmas": True}, {}),
]


@pytest.mark.parametrize(("model", "sampler", "call"), DRAWN, ids=str)
def test_samplers_that_draw_noise_or_take_options(opened, model, sampler, call, monkeypatch):
    """Whole trajectories; the noise of each call is given to PyTorch, and each option left out fails."""
    folder, pipe = opened(model)
    noise, (height, width) = _noise(model), (8 * side for side in GRIDS[model])
    each = iter(np.asarray(call_noise(jnp.array([5, 6], jnp.uint32), STEPS, noise.shape[1:])))
    for name in ("ddim", "euler_ancestral_discrete"):
        module = f"diffusers.schedulers.scheduling_{name}"
        monkeypatch.setattr(f"{module}.randn_tensor", lambda *_, **__: _nchw(next(each)))
    fields = {name: value for name, value in sampler.items() if name == "use_karras_sigmas"}
    drawn = {"height": height, "width": width, "latents": _nchw(noise)}
    expected = _in_torch(StableDiffusionPipeline, folder, sampler["name"], "entropy", fields=fields, **drawn, **call)
    options = {"height": height, "width": width, "steps": STEPS, "guidance": GUIDANCE, "latents": noise}
    options |= {"seed": [5, 6], "sampler": sampler}
    assert image_error(pipe(CAPTIONS, **options).images, expected) <= 1.0
    other = {"seed": [5, 7]} if sampler["name"] == "euler_ancestral" else {"sampler": sampler["name"]}
    assert image_error(pipe(CAPTIONS, **options | other).images, expected) > 1.0


GUIDED = {
    "a negative prompt": ({"negative_prompt": ["a green star"] * 2}, {"negative_prompt": "a green star"}),
    "rescaled": ({"guidance_rescale": 0.7}, {"guidance_rescale": 0.7}),
    "not guided": ({"guidance_scale": 1.0}, {"guidance": 1.0}),
}


@pytest.mark.parametrize("way", GUIDED)
def test_guidance(opened, way):
    theirs, ours = GUIDED[way]
    folder, pipe = opened("sd1")
    noise, (height, width) = _noise("sd1"), (8 * side for side in GRIDS["sd1"])
    drawn = {"height": height, "width": width, "latents": _nchw(noise)}
    expected = _in_torch(StableDiffusionPipeline, folder, "ddim", "entropy", **drawn, **theirs)
    options = {"height": height, "width": width, "steps": STEPS, "guidance": GUIDANCE, "latents": noise}
    assert image_error(pipe(CAPTIONS, sampler="ddim", **options | ours).images, expected) <= 1.0
    assert image_error(pipe(CAPTIONS, sampler="ddim", **options).images, expected) > 1.0


def test_guidance_a_picture(opened):
    """PyTorch has one strength a call: it draws each picture by itself."""
    folder, pipe = opened("sd1")
    noise, (height, width) = _noise("sd1"), (8 * side for side in GRIDS["sd1"])
    strengths, drawn = (2.0, 7.5), {"height": height, "width": width}
    expected = [
        _in_torch(
            StableDiffusionPipeline,
            folder,
            "ddim",
            "entropy",
            **drawn,
            prompt=CAPTIONS[index],
            latents=_nchw(noise[index : index + 1]),
            guidance_scale=strength,
        )
        for index, strength in enumerate(strengths)
    ]
    options = {**drawn, "steps": STEPS, "latents": noise, "sampler": "ddim"}
    found = pipe(CAPTIONS, guidance=list(strengths), **options).images
    assert image_error(found, np.concatenate(expected)) <= 1.0
    found = pipe(CAPTIONS, guidance=list(strengths[::-1]), **options).images
    assert image_error(found, np.concatenate(expected)) > 1.0


@pytest.mark.parametrize(
    ("model", "dtype", "first_stage"), [("sdxl", "bfloat16", "float32"), ("sd1", "bfloat16", "bfloat16")]
)
def test_the_autoencoder_that_overflows_stays_in_float32(folders, model, dtype, first_stage):
    pipe = TextToImage.from_pretrained(folders[model], dtype=dtype)
    for module, expected in ((pipe.unet, dtype), (pipe.vae, first_stage)):
        assert {str(leaf.dtype) for leaf in jax.tree.leaves(nnx.state(module))} == {expected}


STARTED_LATE = [
    ("sd1", "ddim", "entropy"),
    ("scenes", "ddim", "original"),
    # tests/sampling starts every sampler late; here the pipelines around them are what is left.
    pytest.param("sd2", "dpmsolver++", "entropy", marks=pytest.mark.full),
    pytest.param("sd2-base", "pndm", "entropy", marks=pytest.mark.full),
]


@pytest.mark.parametrize(("model", "sampler", "rule"), STARTED_LATE)
def test_image_to_image(opened, model, sampler, rule, monkeypatch):
    folder, pipe = opened(model)
    noise, (height, width) = _noise(model), (8 * side for side in GRIDS[model])
    rng = np.random.default_rng(2)
    images = np.kron(rng.integers(0, 256, (2, height // 8, width // 8, 3)), np.ones((1, 8, 8, 1))).astype(np.uint8)
    drawn_from = np.asarray(call_noise(jnp.array([5, 6], jnp.uint32), 1, noise.shape[1:], stream=2))[0]
    module = "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img"
    monkeypatch.setattr(f"{module}.randn_tensor", lambda *_, **__: _nchw(noise))
    monkeypatch.setattr("diffusers.models.autoencoders.vae.randn_tensor", lambda *_, **__: _nchw(drawn_from))
    expected = _in_torch(
        StableDiffusionImg2ImgPipeline, folder, sampler, rule, image=images.astype(np.float32) / 255, strength=0.6
    )
    options = {"steps": STEPS, "guidance": GUIDANCE, "sampler": sampler, "latents": noise, "rule": rule}
    options |= {"image": images, "strength": 0.6, "seed": 5}
    assert image_error(pipe(CAPTIONS, **options).images, expected) <= 1.0
    for wrong in ({"strength": 0.4}, {"seed": 6}, {"image": images[::-1]}):
        assert image_error(pipe(CAPTIONS, **options | wrong).images, expected) > 1.0, wrong


@pytest.mark.parametrize(("model", "sampler", "rule"), [("ldm-kl", "ddim", "entropy"), ("ldm-vq", "pndm", "original")])
def test_latent_diffusion(opened, model, sampler, rule):
    folder, pipe = opened(model)
    noise, (height, width) = _noise(model, pipe.info.vae.latent_channels), (8 * side for side in GRIDS[model])
    static = {"height": height, "width": width}
    expected = _in_torch(
        LDMTextToImagePipeline, folder, sampler, rule, opened_by=ReferenceLDM, latents=_nchw(noise), **static
    )
    options = {"steps": STEPS, "guidance": GUIDANCE, "sampler": sampler, "latents": noise, "rule": rule, **static}
    assert image_error(pipe(CAPTIONS, **options).images, expected) <= 1.0
    for wrong in ({"rule": "fixed", "multiplier": 0.5}, {"guidance": 4.0}):
        assert image_error(pipe(CAPTIONS, **options | wrong).images, expected) > 1.0, wrong


SIZES = {"original_size": (301, 207), "crops_coords_top_left": (3, 11), "target_size": (97, 61)}


@pytest.mark.parametrize(
    ("sampler", "rule", "sizes", "negative"),
    [
        ("euler", "entropy", {}, None),
        ("dpmsolver++", "original", SIZES, "dull"),
        pytest.param("ddim", "entropy", SIZES, "", marks=pytest.mark.full),
    ],
)
def test_stable_diffusion_xl(opened, sampler, rule, sizes, negative):
    folder, pipe = opened("sdxl")
    noise, (height, width) = _noise("sdxl"), (8 * side for side in GRIDS["sdxl"])
    given = {"height": height, "width": width, **sizes}
    away = None if negative is None else [negative] * len(CAPTIONS)
    expected = _in_torch(
        StableDiffusionXLPipeline,
        folder,
        sampler,
        rule,
        opened_by=ReferenceSDXL,
        latents=_nchw(noise),
        negative_prompt=away,
        **given,
    )
    options = {"steps": STEPS, "guidance": GUIDANCE, "sampler": sampler, "rule": rule, "negative_prompt": negative}
    options |= {"latents": noise, **given}
    assert image_error(pipe(CAPTIONS, **options).images, expected) <= 1.0
    other = "a red one" if negative is None else None
    for wrong in ({"target_size": (61, 97)}, {"negative_prompt": other}, {"rule": "fixed", "multiplier": 0.5}):
        assert image_error(pipe(CAPTIONS, **options | wrong).images, expected) > 1.0, wrong
