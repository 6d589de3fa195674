"""DDIM against diffusers' `DDIMScheduler`: timesteps exactly, then every step, with its index in the message."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler

from entscale_jax.errors import UserError
from entscale_jax.sampling import NoiseSchedule
from entscale_jax.sampling.ddim import ddim_step

SPACINGS = ("leading", "linspace", "trailing")
STABLE_DIFFUSION = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}

STEP_BOUND = 2e-6
"""Largest error of a step, relative to the largest value. Measured 3.3e-7, some roundings of float32; a table of alphas
that is one entry off gives 1e-3 and more."""


def _schedules(**config):
    raw = {**STABLE_DIFFUSION, **config}
    return NoiseSchedule.from_json(raw), DDIMScheduler.from_config(raw)


def _output(latents, step):
    """Stands in for a model: any function of the latents will do, as both samplers get the same one."""
    return np.tanh(latents * (1 + 0.1 * step)) + 0.3 * np.cos(3 * latents)


def _worst_step(ours, theirs, steps, outputs=_output):
    """(error, index) of the step with the largest relative error, both samplers going from the same latents."""
    theirs.set_timesteps(steps)
    latents = np.random.default_rng(3).standard_normal((2, 3, 5, 4)).astype(np.float32)
    errors = []
    for index, (timestep, *alphas) in enumerate(zip(*ours.ddim(steps), strict=True)):
        output = outputs(latents, index).astype(np.float32)
        alpha, next_alpha = (jnp.asarray(value, jnp.float32) for value in alphas)
        got = np.asarray(ddim_step(jnp.asarray(latents), jnp.asarray(output), alpha, next_alpha, ours))
        step = theirs.step(torch.from_numpy(output), int(timestep), torch.from_numpy(latents), return_dict=False)
        expected = step[0].numpy()
        errors.append((float(np.abs(got - expected).max() / np.abs(expected).max()), index))
        latents = expected
    return max(errors)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("steps", [1, 3, 7, 25, 50, 51, 999])
def test_timesteps_are_equal(spacing, offset, steps):
    ours, theirs = _schedules(timestep_spacing=spacing, steps_offset=offset)
    theirs.set_timesteps(steps)
    assert ours.ddim(steps).timesteps.tolist() == theirs.timesteps.tolist()


def test_spacings_and_offsets_differ():
    tables = {
        (spacing, offset): tuple(_schedules(timestep_spacing=spacing, steps_offset=offset)[0].ddim(25).timesteps)
        for spacing, offset in itertools.product(SPACINGS, (0, 1))
    }
    assert len(set(tables.values())) == 4  # the offset is for "leading" alone


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("rescale", [False, True])
def test_alphas_are_equal(schedule, rescale):
    ours, theirs = _schedules(beta_schedule=schedule, rescale_betas_zero_snr=rescale)
    expected = theirs.alphas_cumprod.numpy()
    # Measured 3.8e-7 relative; rescaled 4.2e-7 absolute, since it subtracts the last value and ends in zero.
    np.testing.assert_allclose(ours.alphas_cumprod(), expected, rtol=1e-6, atol=1e-6 if rescale else 0)
    other, _ = _schedules(beta_schedule=schedule, rescale_betas_zero_snr=not rescale)
    assert np.abs(other.alphas_cumprod() - expected).max() > 1e-5


def test_trained_betas_are_taken():
    betas = np.linspace(0.001, 0.3, 40).tolist()
    ours, theirs = _schedules(trained_betas=betas, num_train_timesteps=40)
    np.testing.assert_allclose(ours.alphas_cumprod(), theirs.alphas_cumprod.numpy(), rtol=1e-6)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("to_one", [False, True])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_every_step_is_equal(prediction, clip, to_one, spacing):
    config = {"clip_sample": clip, "set_alpha_to_one": to_one, "timestep_spacing": spacing, "steps_offset": 1}
    error, index = _worst_step(*_schedules(prediction_type=prediction, **config), 25)
    assert error < STEP_BOUND, f"step {index} is off by {error}"


def test_terminal_step_without_signal_is_equal():
    config = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"}
    error, index = _worst_step(*_schedules(clip_sample=False, **config), 10)
    assert error < STEP_BOUND, f"step {index} is off by {error}"


@pytest.mark.parametrize(
    ("changed", "steps"),
    [
        ({"prediction_type": "v_prediction"}, range(25)),
        ({"clip_sample": True}, range(25)),
        ({"clip_sample_range": 2.0, "clip_sample": True}, range(25)),
        ({"set_alpha_to_one": True}, (24,)),
        ({"beta_end": 0.0121}, range(25)),
    ],
)
def test_a_changed_field_is_seen(changed, steps):
    plain = {"clip_sample": False, "set_alpha_to_one": False}
    ours, _ = _schedules(**plain)
    _, theirs = _schedules(**{**plain, **changed})
    error, index = _worst_step(ours, theirs, 25)
    assert error > 10 * STEP_BOUND
    assert index in steps


def test_a_config_of_another_sampler_reads_as_ddim_reads_it():
    raw = {
        "_class_name": "PNDMScheduler",
        "_diffusers_version": "0.8.0",
        "num_train_timesteps": 1000,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "prediction_type": "v_prediction",
        **STABLE_DIFFUSION,
    }
    for extra in ({}, {"clip_sample": False}):
        ours, theirs = NoiseSchedule.from_json({**raw, **extra}), DDIMScheduler.from_config({**raw, **extra})
        for field in ("clip_sample", "steps_offset", "set_alpha_to_one", "prediction_type", "timestep_spacing"):
            assert getattr(ours, field) == theirs.config[field]


def test_more_steps_than_timesteps_are_refused():
    ours, theirs = _schedules(steps_offset=1)
    with pytest.raises(ValueError, match="1001"):
        theirs.set_timesteps(1001)
    for steps in (1001, 0, -3, True):
        with pytest.raises(UserError, match="from 1 to 1000"):
            ours.ddim(steps)
    with pytest.raises(UserError, match="steps_offset=1"):
        ours.ddim(1000)
