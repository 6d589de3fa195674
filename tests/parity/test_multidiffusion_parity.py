"""MultiDiffusion against a PyTorch reference written here from the paper: windows, and the mean of their steps."""

import itertools

import numpy as np
import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler

from entscale_jax.baselines import MultiDiffusion
from entscale_jax.parity.compare import precision, relative_error
from entscale_jax.pipeline import TextToImage

STEPS, GUIDANCE = 4, 5.0
BOUND = 1e-5
"""Of the largest latent; measured 1.1e-6 to 1.8e-6 in float32, 3.7e-7 in float64: the noise schedule is float32."""
CONTROL = 1e-2
CAPTIONS = ["a red circle", "a blue one"]


@pytest.fixture(scope="module")
def folder(folders):
    return folders["sd1"]


def _places(cells, window, stride):
    """By hand: 0, stride, 2 stride and so on while the window fits, then one that ends at the border."""
    places = []
    place = 0
    while place + window < cells:
        places.append(place)
        place += stride
    return [*places, cells - window]


def _reference(folder, start, states, empty, *, window, stride, float64, mean=True):
    """[B, c, h, w] from [B, c, h, w]. Without `mean` a window overwrites what those before it made."""
    dtype = torch.float64 if float64 else torch.float32
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", torch_dtype=dtype).eval()
    config = DDIMScheduler.from_pretrained(folder, subfolder="scheduler").config
    scheduler = DDIMScheduler.from_config(config, clip_sample=False, steps_offset=1)
    scheduler.set_timesteps(STEPS)
    latents = torch.tensor(start, dtype=dtype)
    text = torch.cat([torch.tensor(empty, dtype=dtype), torch.tensor(states, dtype=dtype)])
    (high, wide), (tall, broad) = latents.shape[2:], window
    with torch.no_grad():
        for timestep in scheduler.timesteps:
            total, times = torch.zeros_like(latents), torch.zeros_like(latents)
            for top, left in itertools.product(_places(high, tall, stride), _places(wide, broad, stride)):
                part = (..., slice(top, top + tall), slice(left, left + broad))
                both = torch.cat([latents[part]] * 2)
                away, towards = unet(both, timestep, encoder_hidden_states=text).sample.chunk(2)
                guided = away + GUIDANCE * (towards - away)
                stepped = scheduler.step(guided, timestep, latents[part]).prev_sample
                total[part] = total[part] + stepped if mean else stepped
                times[part] = times[part] + 1 if mean else 1
            latents = total / times
    return latents.numpy()


def _case(folder, cells, float64):
    pipe = TextToImage.from_pretrained(folder, dtype="float64" if float64 else "float32")
    start = np.random.default_rng(3).standard_normal((len(CAPTIONS), 4, *cells))
    states = np.concatenate([found.states for found in pipe._encode(CAPTIONS)])
    empty = np.concatenate([found.states for found in pipe._encode([""] * len(CAPTIONS))])
    return pipe, start, states, empty


def _drawn(pipe, start, method):
    cells, factor = start.shape[2:], pipe.info.latent_factor
    sides = {"height": cells[0] * factor, "width": cells[1] * factor}
    options = {"sampler": "ddim", "steps": STEPS, "guidance": GUIDANCE, "decode": False}
    return method.draw(pipe, CAPTIONS, latents=start.transpose(0, 2, 3, 1), **sides, **options).latents


SIZES = {"both sides longer": (21, 19), "one side shorter": (11, 22), "the training size": (16, 16)}
"""Latent cells (h, w) of a model trained at 16x16."""
CASES = [
    pytest.param("both sides longer", False),
    pytest.param("both sides longer", True, marks=pytest.mark.full),
    pytest.param("one side shorter", False, marks=pytest.mark.full),
    pytest.param("the training size", False, marks=pytest.mark.full),
]


@pytest.mark.parametrize(("case", "float64"), CASES)
def test_latents_are_those_of_pytorch(folder, case, float64):
    cells = SIZES[case]
    with precision(float64):
        pipe, start, states, empty = _case(folder, cells, float64)
        window = tuple(map(min, cells, pipe.info.train_grid))
        shared = {"window": window, "float64": float64}
        expected = _reference(folder, start, states, empty, stride=3, **shared)
        got = _drawn(pipe, start, MultiDiffusion(stride=3, at_once=2)).transpose(0, 3, 1, 2)
        error = relative_error(got, expected)
        print(case, float64, error)
        assert error <= BOUND
        if case == "both sides longer":
            for wrong in ({"stride": 4}, {"stride": 3, "mean": False}):
                assert relative_error(_reference(folder, start, states, empty, **wrong, **shared), expected) > CONTROL
                assert relative_error(got, _reference(folder, start, states, empty, **wrong, **shared)) > CONTROL


@pytest.mark.full
def test_stable_diffusion_xl_s_conditions_go_to_each_window_of_their_picture(folders):
    """Pooled text and sizes are a picture's: with three windows at once each picture's are those of one at a time."""
    pipe = TextToImage.from_pretrained(folders["sdxl"])
    height, width = pipe.info.train_size
    options = {"height": height, "width": width * 3 // 2, "steps": 2, "guidance": GUIDANCE, "decode": False}
    together, single = (
        MultiDiffusion(stride=5, at_once=most).draw(pipe, CAPTIONS, seed=[1, 1], **options).latents for most in (3, 1)
    )
    assert relative_error(together, single) <= BOUND
    assert relative_error(single[::-1], single) > CONTROL
