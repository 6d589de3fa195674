"""Every update in float64, restated here from its paper: diffusers computes some of them in float32 at any dtype."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_samplers import both, grid

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

BOUND = 1e-12
STEPS = 20


def ddim(ours, steps, prediction, eta):
    """Song et al., Eqs. 12 and 16. Yields a function (latents, output, noise, past) -> latents for each call."""
    alphas = np.append(
        ours.alphas_cumprod().astype(np.float64), 1.0 if ours.set_alpha_to_one else ours.alphas_cumprod()[0]
    )
    for timestep in ours.table(steps).timesteps:
        now, after = alphas[timestep], alphas[max(timestep - 1000 // steps, -1)]

        def update(latents, output, noise, past, now=now, after=after):
            clean, direction = convert(latents, output, now, prediction)
            sigma = eta * np.sqrt((1 - after) / (1 - now)) * np.sqrt(1 - now / after)
            rest = np.sqrt(1 - after - sigma**2)
            return np.sqrt(after) * clean + rest * direction + sigma * noise

        yield update


def euler(ours, steps, prediction, ancestral):
    """Karras et al. 2022, Algorithm 2 without churn; the ancestral split of Song et al. 2021 as k-diffusion has it."""
    sigmas = ours._run(steps)[1].astype(np.float64)
    for now, after in pairwise(sigmas):

        def update(latents, output, noise, past, now=now, after=after):
            clean, _ = convert(latents / np.sqrt(1 + now**2), output, 1 / (1 + now**2), prediction)
            up = np.sqrt(after**2 * (now**2 - after**2) / now**2) if ancestral else 0.0
            down = np.sqrt(after**2 - up**2)
            return latents + (latents - clean) / now * (down - now) + up * noise

        yield update


def dpm_solver(ours, steps, prediction):
    """Lu et al. 2022, DPM-Solver++(2M) by its lambda, first order at both ends."""
    sigmas = ours._run(steps)[1].astype(np.float64)
    signal = 1 / np.sqrt(1 + sigmas**2)
    noise_level = sigmas * signal
    with np.errstate(divide="ignore"):
        log_ratio = np.log(signal / noise_level)
    for call in range(steps):

        def update(latents, output, noise, past, call=call):
            clean, _ = convert(latents, output, signal[call] ** 2, prediction)
            past.append(clean)
            step = log_ratio[call + 1] - log_ratio[call]
            mixed = clean
            if 0 < call < steps - 1:
                ratio = (log_ratio[call] - log_ratio[call - 1]) / step
                mixed = (1 + 1 / (2 * ratio)) * clean - 1 / (2 * ratio) * past[-2]
            return noise_level[call + 1] / noise_level[call] * latents - signal[call + 1] * (np.exp(-step) - 1) * mixed

        yield update


def pndm(ours, steps, prediction):
    """Liu et al. 2022, Eqs. 11 and 12; the first step is taken by Heun's rule, the next two by lower orders."""
    alphas = np.append(
        ours.alphas_cumprod().astype(np.float64), 1.0 if ours.set_alpha_to_one else ours.alphas_cumprod()[0]
    )
    stride, timesteps = 1000 // steps, ours.table(steps).timesteps
    for call, timestep in enumerate(timesteps):

        def update(latents, output, noise, past, call=call, timestep=timestep):
            now, then = timestep, timestep - stride
            if call == 1:
                now, then = timestep + stride, timestep
                latents, mean = past[0], (output + past[1]) / 2
            else:
                past.extend([latents, output] if call == 0 else [output])
                known = past[:0:-1]
                mean = {
                    1: lambda e: e[0],
                    2: lambda e: (3 * e[0] - e[1]) / 2,
                    3: lambda e: (23 * e[0] - 16 * e[1] + 5 * e[2]) / 12,
                }.get(len(known), lambda e: (55 * e[0] - 59 * e[1] + 37 * e[2] - 9 * e[3]) / 24)(known)
            now, then = alphas[now], alphas[max(then, -1)]
            if prediction == "v_prediction":
                mean = np.sqrt(now) * mean + np.sqrt(1 - now) * latents
            below = now * np.sqrt(1 - then) + np.sqrt(now * (1 - now) * then)
            return np.sqrt(then / now) * latents - (then - now) * mean / below

        yield update


def convert(latents, output, alpha, prediction):
    """Clean sample and noise."""
    if prediction == "epsilon":
        return (latents - np.sqrt(1 - alpha) * output) / np.sqrt(alpha), output
    clean = np.sqrt(alpha) * latents - np.sqrt(1 - alpha) * output
    return clean, np.sqrt(alpha) * output + np.sqrt(1 - alpha) * latents


RESTATED = {
    "ddim": lambda ours, steps, prediction: ddim(ours, steps, prediction, ours.eta),
    "pndm": pndm,
    "euler": lambda ours, steps, prediction: euler(ours, steps, prediction, ancestral=False),
    "euler_ancestral": lambda ours, steps, prediction: euler(ours, steps, prediction, ancestral=True),
    "dpmsolver++": dpm_solver,
}
CASES = [
    *(("ddim", options) for options in grid(eta=[0.0, 0.7], prediction_type=["epsilon", "v_prediction"])),
    *(
        (name, options)
        for name in ("pndm", "euler_ancestral")
        for options in grid(prediction_type=["epsilon", "v_prediction"], timestep_spacing=["leading", "trailing"])
    ),
    *(
        (name, options)
        for name in ("euler", "dpmsolver++")
        for options in grid(prediction_type=["epsilon", "v_prediction"], use_karras_sigmas=[False, True])
    ),
    ("euler_ancestral", {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}),
]


def worst(name, options, restated=None):
    """(error, call) of the step that is furthest from the restated one, relative to the largest value."""
    ours, _, _ = both(name, options)
    rng, past, errors = np.random.default_rng(3), [], []
    table = ours.table(STEPS)
    latents = rng.standard_normal((2, 3, 5, 4)) * table.start
    memory = ours.memory(jnp.asarray(latents))
    updates = [*(restated or RESTATED[name])(ours, STEPS, ours.prediction_type)]
    assert len(updates) == len(table.timesteps)
    for call, update in enumerate(updates):
        output, noise = rng.standard_normal((2, *latents.shape))
        row = type(table.columns)(*(jnp.asarray(column[call], jnp.float64) for column in table.columns))
        given = jnp.asarray(noise) if ours.stochastic else None
        got, memory = ours.step(jnp.asarray(latents), jnp.asarray(output), row, memory, given)
        expected = update(latents, output, noise if ours.stochastic else 0.0, past)
        assert got.dtype == jnp.float64
        errors.append((float(np.abs(got - expected).max() / np.abs(expected).max()), call))
        latents = expected
    return max(errors)


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_every_update_is_the_papers(name, options):
    with jax.enable_x64(True):
        error, call = worst(name, options)
    assert error < BOUND, f"step {call} is off by {error}"


@pytest.mark.parametrize(
    ("name", "options", "other"),
    [
        ("euler_ancestral", {}, "euler"),
        ("euler", {}, "euler_ancestral"),
        ("ddim", {"eta": 0.7}, "ddim"),
        ("dpmsolver++", {"solver_type": "heun"}, "dpmsolver++"),
        ("dpmsolver++", {"solver_order": 3}, "dpmsolver++"),
    ],
)
def test_another_update_is_seen(name, options, other):
    restated = {**RESTATED, "ddim": lambda ours, steps, prediction: ddim(ours, steps, prediction, 0.0)}
    with jax.enable_x64(True):
        error, _ = worst(name, options, restated=restated["ddim" if name == "ddim" else other])
    assert error > 1e6 * BOUND
