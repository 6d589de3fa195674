"""Noise schedules against diffusers' `DDIMScheduler`, and what of a config a sampler reads, ignores and refuses."""

import inspect
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from test_samplers import PEERS, STABLE_DIFFUSION

from entscale_jax.errors import UserError
from entscale_jax.sampling import DDIM, DPMSolver, Euler, choose_sampler, read_sampler
from entscale_jax.sampling.samplers import DIFFUSERS_NAMES, SAMPLERS
from entscale_jax.sampling.schedule import _linspace

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


def schedules(**config):
    raw = {**STABLE_DIFFUSION, **config}
    return DDIM.from_json(raw), DDIMScheduler.from_config(raw)


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("rescale", [False, True])
def test_alphas_are_equal(schedule, rescale):
    ours, theirs = schedules(beta_schedule=schedule, rescale_betas_zero_snr=rescale)
    expected = theirs.alphas_cumprod.numpy()
    if rescale:
        # It takes square roots, whose last bit differs, and subtracts the last value: measured 4.2e-7.
        np.testing.assert_allclose(ours.alphas_cumprod(), expected, atol=1e-6)
    else:
        np.testing.assert_array_equal(ours.alphas_cumprod(), expected)
    other, _ = schedules(beta_schedule=schedule, rescale_betas_zero_snr=not rescale)
    assert np.abs(other.alphas_cumprod() - expected).max() > 1e-5


def test_trained_betas_are_taken():
    ours, theirs = schedules(trained_betas=np.linspace(0.001, 0.3, 40).tolist(), num_train_timesteps=40)
    np.testing.assert_array_equal(ours.alphas_cumprod(), theirs.alphas_cumprod.numpy())


@pytest.mark.parametrize(
    ("first", "last", "count"), [(0.0001, 0.02, 1000), (0.03, 0.11, 999), (0.1, 0.2, 1), (1.0, 2.0, 2)]
)
def test_linspace_has_the_bits_of_torch(first, last, count):
    np.testing.assert_array_equal(_linspace(first, last, count), torch.linspace(first, last, count).numpy())


def test_spacings_and_offsets_differ():
    options = itertools.product(("leading", "linspace", "trailing"), (0, 1))
    tables = {
        tuple(schedules(timestep_spacing=spacing, steps_offset=offset)[0].table(25).timesteps)
        for spacing, offset in options
    }
    assert len(tables) == 4  # the offset is for "leading" alone


@pytest.mark.parametrize("name", PEERS)
def test_a_config_of_another_sampler_reads_as_diffusers_reads_it(name):
    raw = {
        "_class_name": "PNDMScheduler",
        "_diffusers_version": "0.8.0",
        "num_train_timesteps": 1000,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "prediction_type": "v_prediction",
        **STABLE_DIFFUSION,
    }
    for extra in ({}, {"clip_sample": False}, {"timestep_spacing": "trailing"}):
        ours, theirs = choose_sampler({**raw, **extra}, name), PEERS[name].from_config({**raw, **extra})
        shared = [field for field in ours.__dataclass_fields__ if field in theirs.config]
        assert {"steps_offset", "prediction_type", "timestep_spacing"} <= {*shared}
        for field in shared:
            assert getattr(ours, field) == theirs.config[field], field


@pytest.mark.parametrize("name", PEERS)
def test_every_field_of_the_diffusers_class_is_read_or_held_to_the_values_that_work(name):
    """A field that a later diffusers adds fails here until someone has read what it does."""
    without_effect = {
        "ddim": {"dynamic_thresholding_ratio", "sample_max_value"},
        "dpmsolver++": {"dynamic_thresholding_ratio", "sample_max_value", "flow_shift", "time_shift_type"},
    }
    kind, theirs = SAMPLERS[name], inspect.signature(PEERS[name].__init__).parameters
    known = {*kind.__dataclass_fields__} | {*kind.only} | without_effect.get(name, set())
    assert {*theirs} - {"self"} - known == set()
    for field in set(kind.__dataclass_fields__) & set(theirs):
        default = theirs[field].default
        assert getattr(kind(**({"skip_prk_steps": True} if name == "pndm" else {})), field) == default or (
            field == "skip_prk_steps"
        ), field


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({"_class_name": "UniPCMultistepScheduler"}, "scheduler UniPCMultistepScheduler is not implemented"),
        ({"_class_name": "DDIMScheduler", "thresholding": True}, "thresholding=True is not implemented"),
        ({"_class_name": "PNDMScheduler", "skip_prk_steps": False}, "skip_prk_steps=False is not implemented"),
        ({"_class_name": "PNDMScheduler"}, "skip_prk_steps=False is not implemented"),
        ({"_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous"}, "timestep_type='continuous'"),
        ({"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++"}, "algorithm_type="),
        ({"_class_name": "DPMSolverMultistepScheduler", "solver_order": 4}, "solver_order=4: implemented are 1, 2, 3"),
        ({"_class_name": "DDIMScheduler", "beta_schedule": "sigmoid"}, "beta_schedule='sigmoid': implemented are"),
        ({"_class_name": "DDIMScheduler", "timestep_spacing": "even"}, "timestep_spacing='even': implemented are"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(raw, said):
    with pytest.raises(UserError, match=said):
        read_sampler(raw)


def test_a_choice_of_another_sampler_and_of_options():
    raw = {"_class_name": "UniPCMultistepScheduler", **STABLE_DIFFUSION}
    assert isinstance(choose_sampler(raw, "euler"), Euler)
    chosen = choose_sampler(raw, {"name": "dpmsolver++", "use_karras_sigmas": True})
    assert isinstance(chosen, DPMSolver)
    assert chosen.use_karras_sigmas
    assert chosen.beta_schedule == "scaled_linear"
    assert choose_sampler({**raw, "_class_name": "DDIMScheduler"}, {"eta": 1.0}) == replace(
        DDIM.from_json(raw), eta=1.0
    )
    with pytest.raises(UserError, match="sampler 'heun' is none: use ddim, pndm, euler"):
        choose_sampler(raw, "heun")
    with pytest.raises(UserError, match="sampler euler has no option 'eta': it has"):
        choose_sampler(raw, {"name": "euler", "eta": 1.0})
    assert {DIFFUSERS_NAMES[kind.__name__] for kind in PEERS.values()} == set(SAMPLERS)


@pytest.mark.parametrize("name", PEERS)
def test_a_number_of_steps_that_can_not_be_is_refused(name):
    sampler = choose_sampler(STABLE_DIFFUSION, name)
    for steps in (1001, 0, -3, True):
        with pytest.raises(UserError, match="from 1 to 1000"):
            sampler.table(steps)


def test_steps_that_leave_those_of_training_are_refused():
    with pytest.raises(UserError, match="1000 steps with steps_offset=1 leave the 1000 of training"):
        DDIM(steps_offset=1).table(1000)
    with pytest.raises(UserError, match="two steps of this schedule fall together"):
        DPMSolver(timestep_spacing="leading").table(1000)


def test_options_of_a_call_are_checked_as_those_of_a_folder():
    raw = {"_class_name": "DDIMScheduler", "num_train_timesteps": 4}
    betas = [0.1, 0.2, 0.3, 0.4]
    assert choose_sampler(raw, {"name": "ddim", "trained_betas": betas}).trained_betas == tuple(betas)
    with pytest.raises(UserError, match=r"sampler euler: steps_offset='1' \(input should be a valid integer\)"):
        choose_sampler(raw, {"name": "euler", "steps_offset": "1"})
    with pytest.raises(UserError, match="scheduler: num_train_timesteps=4 with 3 trained_betas"):
        choose_sampler(raw, {"name": "ddim", "trained_betas": betas[:3]})
    with pytest.raises(UserError, match="prediction_type='sample' is not implemented, only 'epsilon'"):
        choose_sampler(raw, {"name": "euler_ancestral", "prediction_type": "sample"})


def test_betas_may_be_an_array():
    raw, betas = {"_class_name": "DDIMScheduler", "num_train_timesteps": 4}, (0.1, 0.2, 0.3, 0.4)
    chosen = choose_sampler(raw, {"trained_betas": np.array(betas)})
    assert chosen.trained_betas == betas
    assert hash(chosen) == hash(DDIM(num_train_timesteps=4, trained_betas=betas))
    _, theirs = schedules(num_train_timesteps=4, trained_betas=list(betas))
    np.testing.assert_array_equal(chosen.alphas_cumprod(), theirs.alphas_cumprod.numpy())


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ({"name": "ddim", "trained_betas": 5}, r"sampler ddim: trained_betas=5 \(input should be a valid tuple"),
        ({"name": "ddim", "trained_betas": []}, "num_train_timesteps=1000 with 0 trained_betas"),
        ({"name": "ddim", "trained_betas": ["a"] * 1000}, r"trained_betas=\('a', 'a', .*\.\.\.\) \(input should"),
        ({"name": "ddim", "eta": np.zeros((40, 40))}, r"eta=\(\[0\.0, "),
        ({"name": ["ddim"]}, r"sampler \['ddim'\] is none"),
    ],
)
def test_a_choice_of_another_kind_is_one_short_line(choice, said):
    with pytest.raises(UserError, match=said) as caught:
        choose_sampler(STABLE_DIFFUSION, choice)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
