"""Every sampler against the diffusers class it is named after: timesteps, inputs, every step, with its index."""

import itertools
import math

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_euler_ancestral_discrete import EulerAncestralDiscreteScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_pndm import PNDMScheduler

from entscale_jax.sampling import SAMPLERS, choose_sampler

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

PEERS = {
    "ddim": DDIMScheduler,
    "pndm": PNDMScheduler,
    "euler": EulerDiscreteScheduler,
    "euler_ancestral": EulerAncestralDiscreteScheduler,
    "dpmsolver++": DPMSolverMultistepScheduler,
}
STABLE_DIFFUSION = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "skip_prk_steps": True}
STEPS = (1, 2, 5, 20, 50)
STEP_BOUND = 1e-5
"""Largest error of a step in float32, relative to the largest value."""


def grid(**options):
    return [dict(zip(options, values, strict=True)) for values in itertools.product(*options.values())]


ENDS_AT_SIGMA_MIN = [
    {"final_sigmas_type": "sigma_min", **options}
    for options in grid(
        solver_order=[1, 2, 3],
        solver_type=["midpoint", "heun"],
        lower_order_final=[False, True],
        euler_at_final=[False, True],
        use_karras_sigmas=[False, True],
    )
]


def ends_in_nan(options):
    """Whether diffusers' last step divides by zero: Karras sigmas reach sigma_min a step before the end.

    Order 1 and order 2 by the midpoint don't divide by the step's length.
    """
    high = options["solver_order"] == 3 or (options["solver_order"] == 2 and options["solver_type"] == "heun")
    return high and options["use_karras_sigmas"] and not options["euler_at_final"]


SPACED = {"timestep_spacing": ["leading", "linspace", "trailing"], "steps_offset": [0, 1]}
PREDICTED = {"prediction_type": ["epsilon", "v_prediction"]}
CASES = [
    *(
        ("ddim", options)
        for options in grid(clip_sample=[False, True], set_alpha_to_one=[False, True], **SPACED, **PREDICTED)
    ),
    *(("ddim", options) for options in grid(eta=[0.5, 1.0], clip_sample=[False], **PREDICTED)),
    ("ddim", {"prediction_type": "sample", "clip_sample": False}),
    *(("pndm", options) for options in grid(set_alpha_to_one=[False, True], **SPACED, **PREDICTED)),
    *(("euler_ancestral", options) for options in grid(**SPACED, **PREDICTED)),
    *(
        ("euler", options)
        for options in grid(
            use_karras_sigmas=[False, True], final_sigmas_type=["zero", "sigma_min"], **SPACED, **PREDICTED
        )
    ),
    ("euler", {"prediction_type": "sample"}),
    *(
        ("dpmsolver++", options)
        for options in grid(
            use_karras_sigmas=[False, True],
            final_sigmas_type=["zero", "sigma_min"],
            lower_order_final=[False, True],
            **SPACED,
        )
    ),
    *(
        ("dpmsolver++", options)
        for options in grid(
            solver_order=[1, 2, 3],
            solver_type=["midpoint", "heun"],
            final_sigmas_type=["zero", "sigma_min"],
            **PREDICTED,
        )
    ),
    ("dpmsolver++", {"prediction_type": "sample"}),
    *(
        (name, {"beta_schedule": schedule, **extra})
        for name in PEERS
        for schedule in ("linear", "scaled_linear", "squaredcos_cap_v2")
        for extra in ({}, {"trained_betas": np.linspace(0.001, 0.02, 1000).tolist()})
    ),
    *(
        (name, {"rescale_betas_zero_snr": True, "timestep_spacing": spacing, "prediction_type": "v_prediction"})
        for name in ("ddim", "euler", "euler_ancestral", "dpmsolver++")
        for spacing in ("leading", "linspace", "trailing")
    ),
    ("dpmsolver++", {"use_karras_sigmas": True, "beta_schedule": "squaredcos_cap_v2"}),
    ("euler", {"use_karras_sigmas": True, "sigma_min": 0.05, "sigma_max": 12.0}),
    ("ddim", {"clip_sample": True, "clip_sample_range": 0.7}),
    *((name, {"num_train_timesteps": 600}) for name in PEERS),
    *(("dpmsolver++", options) for options in ENDS_AT_SIGMA_MIN if not ends_in_nan(options)),
    *(("dpmsolver++", {"use_karras_sigmas": True, **options}) for options in grid(solver_order=[1, 3])),
    *(
        (name, {"rescale_betas_zero_snr": True, "use_karras_sigmas": True, "prediction_type": "v_prediction"})
        for name in ("euler", "dpmsolver++")
    ),
    *(
        (name, {"use_karras_sigmas": True, "beta_schedule": schedule, "num_train_timesteps": 600})
        for name in ("euler", "dpmsolver++")
        for schedule in ("linear", "squaredcos_cap_v2")
    ),
]


def names(case):
    name, options = case
    said = (f"{key}={value}" for key, value in options.items() if key != "trained_betas")
    return "-".join((name, *said, *(["trained_betas"] if "trained_betas" in options else [])))


def both(name, options):
    """Our sampler and diffusers', from one config."""
    raw = {**STABLE_DIFFUSION, "clip_sample": False, **options}
    eta = raw.pop("eta", 0.0)
    ours = choose_sampler(raw, {"name": name, **({"eta": eta} if eta else {})})
    return ours, PEERS[name].from_config(raw), {"eta": eta} if name == "ddim" else {}


def model(latents, call):
    """Stands in for a UNet: any function of its input will do, as both samplers get the same one."""
    return np.tanh(latents * (1 + 0.1 * call)) + 0.3 * np.cos(3 * latents)


def worst(name, options, steps, peer_options=None, first=0):
    """(error, what, call): the largest relative error of an input or a step, both going from the same latents."""
    ours, _, _ = both(name, options)
    _, theirs, extra = both(name, options if peer_options is None else peer_options)
    theirs.set_timesteps(steps)
    table = ours.table(steps, first)
    timesteps = theirs.timesteps[first:]
    # Where the first two timesteps are equal, diffusers begins at the second and runs out of its table, unless told.
    if hasattr(theirs, "set_begin_index") and (first or table.timesteps[0] in table.timesteps[1:]):
        theirs.set_begin_index(first)
    rng = np.random.default_rng(3)
    latents = rng.standard_normal((2, 3, 5, 4)).astype(np.float32) * float(theirs.init_noise_sigma)
    errors = [(abs(table.start - float(theirs.init_noise_sigma)) / table.start, "start", 0)]
    memory = ours.memory(jnp.asarray(latents))
    for call, timestep in enumerate(timesteps):
        peer_input = theirs.scale_model_input(torch.from_numpy(latents), timestep).numpy()
        errors.append((relative(latents * np.float32(table.input_scale[call]), peer_input), "input", call))
        output = model(peer_input, call).astype(np.float32)
        noise = rng.standard_normal(latents.shape).astype(np.float32)
        row = type(table.columns)(*(jnp.asarray(column[call], jnp.float32) for column in table.columns))
        given = jnp.asarray(noise) if ours.stochastic else None
        got, memory = ours.step(jnp.asarray(latents), jnp.asarray(output), row, memory, given)
        expected = peer_step(theirs, output, timestep, latents, noise, extra)
        # From a sigma of 4096 a step falls to a few: float32 keeps the digits of what it started from.
        largest = np.abs(latents).max() if "rescale_betas_zero_snr" in options else 0.0
        errors.append((relative(np.asarray(got), expected, largest), "step", call))
        latents = expected
    assert call + 1 == len(table.timesteps)
    return max(errors, key=lambda error: math.inf if math.isnan(error[0]) else error[0])


def peer_step(theirs, output, timestep, latents, noise, extra):
    if extra.get("eta"):
        extra = {**extra, "variance_noise": torch.from_numpy(noise)}
    with pytest.MonkeyPatch.context() as patch:
        module = __import__(type(theirs).__module__, fromlist=["randn_tensor"])
        if hasattr(module, "randn_tensor"):
            patch.setattr(module, "randn_tensor", lambda *_, **__: torch.from_numpy(noise))
        given = torch.from_numpy(output), timestep, torch.from_numpy(latents)
        return theirs.step(*given, return_dict=False, **extra)[0].numpy()


def sigmas_of_pytorch(alphas):
    """`sigmas_of` with PyTorch's square root, which is not always the nearest float32."""
    ratio = torch.from_numpy((np.float32(1) - alphas) / alphas)
    return (ratio**0.5).numpy()


def relative(got, expected, largest=0.0):
    return float(np.abs(got - expected).max() / max(np.abs(expected).max(), largest))


@pytest.mark.parametrize("case", CASES, ids=names)
def test_timesteps_are_equal(case, monkeypatch):
    ours, theirs, _ = both(*case)
    for steps in STEPS:
        theirs.set_timesteps(steps)
        found, wanted = ours.table(steps).timesteps, theirs.timesteps.numpy()
        if case[0].startswith("euler") and case[1].get("use_karras_sigmas"):
            # Fractions, by logarithms of float32 square roots: those of PyTorch differ from numpy's in the last bit.
            # With zero SNR the alpha-bars come of such roots as well.
            atol = 2e-4 if "rescale_betas_zero_snr" in case[1] else 1e-4
            np.testing.assert_allclose(found, wanted, rtol=0, atol=atol, err_msg=f"{steps} steps")
            monkeypatch.setattr("entscale_jax.sampling.euler.sigmas_of", sigmas_of_pytorch)
            monkeypatch.setattr(type(ours), "alphas_cumprod", lambda _: theirs.alphas_cumprod.numpy().copy())
            found = ours.table(steps).timesteps
            monkeypatch.undo()
        assert found.tolist() == wanted.tolist(), f"{steps} steps"


@pytest.mark.parametrize("case", CASES, ids=names)
def test_every_step_is_equal(case):
    for steps in STEPS:
        error, what, call = worst(*case, steps)
        assert error < STEP_BOUND, f"{what} {call} of {steps} is off by {error}"


@pytest.mark.parametrize("options", [*filter(ends_in_nan, ENDS_AT_SIGMA_MIN)], ids=str)
def test_a_step_of_no_length_changes_nothing(options):
    """diffusers gives NaN there; it is 20 steps as `lower_order_final` ends fewer than 15 by order 1."""
    error, what, call = worst("dpmsolver++", options, 20)
    assert math.isnan(error)
    assert (what, call) == ("step", 19)
    ours, _, _ = both("dpmsolver++", options)
    table = ours.table(20)
    drawn = np.random.default_rng(3).standard_normal((4, 2, 3, 5, 4)).astype(np.float32)
    latents, output, *memory = (jnp.asarray(each) for each in drawn)
    row = type(table.columns)(*(jnp.asarray(column[-1], jnp.float32) for column in table.columns))
    after, _ = ours.step(latents, output, row, tuple(memory[: options["solver_order"] - 1]), None)
    assert np.array_equal(after, latents)


def test_every_sampler_has_a_peer():
    assert PEERS.keys() == SAMPLERS.keys()


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("ddim", {"prediction_type": "v_prediction"}),
        ("ddim", {"set_alpha_to_one": False}),
        ("pndm", {"set_alpha_to_one": True}),
        ("pndm", {"beta_end": 0.0121}),
        ("euler", {"use_karras_sigmas": True}),
        ("euler", {"final_sigmas_type": "sigma_min"}),
        ("euler", {"timestep_spacing": "trailing"}),
        ("euler_ancestral", {"prediction_type": "v_prediction"}),
        ("dpmsolver++", {"use_karras_sigmas": True}),
        ("dpmsolver++", {"solver_order": 3}),
        ("dpmsolver++", {"solver_type": "heun"}),
        ("dpmsolver++", {"lower_order_final": False, "final_sigmas_type": "sigma_min"}),
    ],
)
def test_a_changed_field_is_seen(name, changed):
    plain = {"final_sigmas_type": "sigma_min"} if "lower_order_final" in changed else {}
    error, _, _ = worst(name, plain, 10, peer_options={**plain, **changed})
    assert error > 10 * STEP_BOUND


@pytest.mark.parametrize("name", PEERS)
def test_another_samplers_step_is_seen(name):
    other = {"ddim": "euler", "pndm": "ddim", "euler": "euler_ancestral", "euler_ancestral": "euler"}.get(name, "ddim")
    ours, theirs = both(name, {})[0], both(other, {})[1]
    theirs.set_timesteps(10)
    table = ours.table(10)
    assert table.timesteps.tolist() != theirs.timesteps.tolist() or other in ("euler", "euler_ancestral")


@pytest.mark.parametrize(("name", "first"), [*itertools.product(PEERS, (1, 4, 9))])
def test_a_run_that_begins_later_is_equal(name, first):
    error, what, call = worst(name, {"timestep_spacing": "leading", "steps_offset": 1}, 10, first=first)
    assert error < STEP_BOUND, f"{what} {call} is off by {error}"


@pytest.mark.parametrize(("name", "first"), [*itertools.product(("pndm", "dpmsolver++"), (1, 4))])
def test_orders_of_a_whole_run_are_seen_in_one_that_begins_later(name, first, monkeypatch):
    whole = both(name, {})[0].table(10)
    later = type(whole.columns)(*(column[first:] for column in whole.columns))
    cut = whole._replace(timesteps=whole.timesteps[first:], input_scale=whole.input_scale[first:], columns=later)
    monkeypatch.setattr(SAMPLERS[name], "table", lambda *_: cut)
    error, _, _ = worst(name, {}, 10, first=first)
    assert error > 10 * STEP_BOUND


@pytest.mark.parametrize(("name", "first"), [*itertools.product(PEERS, (0, 3, 9))])
def test_noised_latents_are_equal(name, first):
    ours, theirs, _ = both(name, {})
    theirs.set_timesteps(10)
    clean, noise = np.random.default_rng(0).standard_normal((2, 2, 3, 5, 4)).astype(np.float32)
    if hasattr(theirs, "set_begin_index"):
        theirs.set_begin_index(first)
    timestep = theirs.timesteps[first : first + 1]
    expected = theirs.add_noise(torch.from_numpy(clean), torch.from_numpy(noise), timestep.repeat(2)).numpy()
    got = np.asarray(ours.noised(jnp.asarray(clean), jnp.asarray(noise), 10, first))
    assert relative(got, expected) < 1e-6
    other = np.asarray(ours.noised(jnp.asarray(clean), jnp.asarray(noise), 10, first - 1 if first else 1))
    assert relative(other, expected) > 1e-3
