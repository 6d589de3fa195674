"""Every update in float64, restated here from its paper: diffusers computes some of them in float32 at any dtype.

The tables it starts from, alpha-bars, sigmas and timesteps, are diffusers' own.
"""

from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_samplers import both, grid, sigmas_of_pytorch

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

BOUND = 1e-12
STEPS = {"dpmsolver++": (10, 20)}
"""20 for the others; DPM-Solver++ lowers its order at the end of fewer than 15."""


def ddim(theirs, steps, prediction, eta):
    """Song et al., Eqs. 12 and 16. Yields a function (latents, output, noise, past) -> latents for each call."""
    alphas = np.append(theirs.alphas_cumprod, theirs.final_alpha_cumprod).astype(np.float64)
    for timestep in theirs.timesteps.tolist():
        now, after = alphas[timestep], alphas[max(timestep - 1000 // steps, -1)]

        def update(latents, output, noise, past, now=now, after=after):
            clean, direction = convert(latents, output, now, prediction)
            sigma = eta * np.sqrt((1 - after) / (1 - now)) * np.sqrt(1 - now / after)
            rest = np.sqrt(1 - after - sigma**2)
            return np.sqrt(after) * clean + rest * direction + sigma * noise

        yield update


def euler(theirs, steps, prediction, ancestral):
    """Karras et al. 2022, Algorithm 2 without churn; the ancestral split of Song et al. 2021 as k-diffusion has it."""
    sigmas = theirs.sigmas.numpy().astype(np.float64)
    for now, after in pairwise(sigmas):

        def update(latents, output, noise, past, now=now, after=after):
            clean, _ = convert(latents / np.sqrt(1 + now**2), output, 1 / (1 + now**2), prediction)
            up = np.sqrt(after**2 * (now**2 - after**2) / now**2) if ancestral else 0.0
            down = np.sqrt(after**2 - up**2)
            return latents + (latents - clean) / now * (down - now) + up * noise

        yield update


def dpm_solver(theirs, steps, prediction, order=None, kind=None):
    """Lu et al. 2022, DPM-Solver++ of order 1 to 3 by its lambda, of lower order where it begins and where it ends."""
    config = theirs.config
    order, kind = order or config.solver_order, kind or config.solver_type
    sigmas = theirs.sigmas.numpy().astype(np.float64)
    signal = 1 / np.sqrt(1 + sigmas**2)
    noise_level = sigmas * signal
    with np.errstate(divide="ignore"):
        log_ratio = np.log(signal / noise_level)
    lowers = config.lower_order_final and steps < 15
    ends_low = config.final_sigmas_type == "zero" or lowers

    for call in range(steps):
        left = steps - call if lowers else order
        now = min(order, call + 1, left, 1 if ends_low and call == steps - 1 else order)

        def update(latents, output, noise, past, call=call, now=now):
            clean, _ = convert(latents, output, signal[call] ** 2, prediction)
            past.append(clean)
            step = log_ratio[call + 1] - log_ratio[call]
            decay = np.expm1(-step)
            out = noise_level[call + 1] / noise_level[call] * latents - signal[call + 1] * decay * clean
            if now == 1:
                return out
            before = (log_ratio[call] - log_ratio[call - 1]) / step
            slope = (clean - past[-2]) / before
            if now == 2:
                weight = -0.5 * decay if kind == "midpoint" else decay / step + 1
                return out + signal[call + 1] * weight * slope
            earlier = (log_ratio[call - 1] - log_ratio[call - 2]) / step
            bend = (slope - (past[-2] - past[-3]) / earlier) / (before + earlier)
            first, second = decay / step + 1, (decay + step) / step**2 - 0.5
            return out + signal[call + 1] * (first * (slope + before * bend) - second * bend)

        yield update


def pndm(theirs, steps, prediction):
    """Liu et al. 2022, Eqs. 11 and 12; the first step is taken by Heun's rule, the next two by lower orders."""
    alphas = np.append(theirs.alphas_cumprod, theirs.final_alpha_cumprod).astype(np.float64)
    stride, timesteps = 1000 // steps, theirs.timesteps.tolist()
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
    if prediction == "sample":
        return output, (latents - np.sqrt(alpha) * output) / np.sqrt(1 - alpha)
    clean = np.sqrt(alpha) * latents - np.sqrt(1 - alpha) * output
    return clean, np.sqrt(alpha) * output + np.sqrt(1 - alpha) * latents


RESTATED = {
    "ddim": ddim,
    "pndm": pndm,
    "euler": partial(euler, ancestral=False),
    "euler_ancestral": partial(euler, ancestral=True),
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
    *(("dpmsolver++", options) for options in grid(solver_order=[1, 2, 3], solver_type=["midpoint", "heun"])),
    *(
        ("dpmsolver++", {"final_sigmas_type": "sigma_min", **options})
        for options in grid(solver_order=[2, 3], lower_order_final=[False, True])
    ),
    *((name, {"prediction_type": "sample"}) for name in ("ddim", "euler", "dpmsolver++")),
]


@pytest.fixture(autouse=True)
def _square_roots_of_pytorch(monkeypatch):
    """PyTorch's float32 square root is an ulp off in places, in sigmas as in the alpha-bars of zero SNR."""
    for module in ("euler", "dpm_solver"):
        monkeypatch.setattr(f"entscale_jax.sampling.{module}.sigmas_of", sigmas_of_pytorch)


def worst(name, options, restated=None, steps=20):
    """(error, call) of the step that is furthest from the restated one, relative to the largest value."""
    ours, theirs, extra = both(name, options)
    theirs.set_timesteps(steps)
    rng, past, errors = np.random.default_rng(3), [], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(ours), "alphas_cumprod", lambda _: theirs.alphas_cumprod.numpy())
        table = ours.table(steps)
    latents = rng.standard_normal((2, 3, 5, 4)) * table.start
    memory = ours.memory(jnp.asarray(latents))
    restated = restated or partial(RESTATED[name], **extra)
    updates = [*restated(theirs, steps, theirs.config.prediction_type)]
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
    for steps in STEPS.get(name, (20,)):
        with jax.enable_x64(True):
            error, call = worst(name, options, steps=steps)
        assert error < BOUND, f"step {call} of {steps} is off by {error}"


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
    restated = {
        **RESTATED,
        "ddim": partial(ddim, eta=0.0),
        "dpmsolver++": partial(dpm_solver, order=2, kind="midpoint"),
    }
    with jax.enable_x64(True):
        error, _ = worst(name, options, restated=restated["ddim" if name == "ddim" else other])
    assert error > 1e6 * BOUND
