"""The training loop: an interrupted run goes on as if it had not been, and the weights exported are an average."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entscale_jax.scenes.recipe import Stage
from entscale_jax.scenes.trainer import train

STAGE = Stage(steps=6, batch=2, learning_rate=0.1, warmup=2)


@pytest.fixture(autouse=True)
def _standard_promotion():
    # optax multiplies rates by whole step counts.
    with jax.numpy_dtype_promotion("standard"):
        yield


def loss(parameters, batch, key):
    noise = jax.random.normal(key, (3,))
    return jnp.mean((batch @ parameters["weight"] - 1.0) ** 2) + 0.01 * jnp.vdot(noise, parameters["weight"])


def batches(step: int) -> np.ndarray:
    return np.random.default_rng(step).normal(size=(2, 3)).astype(np.float32)


def run(folder: Path, *, resume: bool, stop_at: int | None = None, seen: list | None = None):
    def until_stopped(step: int) -> np.ndarray:
        if step == stop_at:
            raise InterruptedError
        if seen is not None:
            seen.append(step)
        return batches(step)

    start = {"weight": jnp.zeros(3)}
    return train(start, loss, until_stopped, STAGE, folder=folder, resume=resume, name="test", save_every=2)


def test_a_resumed_run_equals_an_undisturbed_one(tmp_path):
    whole = run(tmp_path / "whole", resume=False)
    with pytest.raises(InterruptedError):
        run(tmp_path / "parts", resume=False, stop_at=5)
    seen = []
    resumed = run(tmp_path / "parts", resume=True, seen=seen)
    assert seen[0] == 4  # from the checkpoint, not from the start
    np.testing.assert_array_equal(resumed["weight"], whole["weight"])
    assert np.abs(np.asarray(whole["weight"])).max() > 0.01


def test_a_finished_run_is_not_trained_again(tmp_path):
    first = run(tmp_path, resume=False)
    again = run(tmp_path, resume=True, stop_at=STAGE.steps)
    np.testing.assert_array_equal(first["weight"], again["weight"])


def test_what_is_watched_is_the_average(tmp_path):
    watched = {}

    def watch(step, average):
        watched[step] = np.asarray(average["weight"])
        return ""

    final = train(
        {"weight": jnp.zeros(3)},
        loss,
        batches,
        STAGE,
        folder=tmp_path,
        resume=False,
        name="test",
        save_every=3,
        watch=watch,
    )
    assert sorted(watched) == [3, 6]
    np.testing.assert_array_equal(watched[6], final["weight"])
