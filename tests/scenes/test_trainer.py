"""The training loop: a stopped run goes on as if it had not been, whatever stopped it, and says what it did."""

import itertools
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entscale_jax.errors import UserError
from entscale_jax.scenes import provenance
from entscale_jax.scenes.recipe import Stage, Upkeep
from entscale_jax.scenes.trainer import Hooks, Run, train

STAGE = Stage(steps=6, batch=2, learning_rate=0.1, warmup=2)
LAYER = "down_blocks/0/attentions/1/transformer_blocks/0/attn1"


@pytest.fixture(autouse=True)
def _standard_promotion():
    # optax multiplies rates by whole step counts.
    with jax.numpy_dtype_promotion("standard"):
        yield


def loss(parameters, batch, keys):
    noise = jax.vmap(lambda key: jax.random.normal(key, (3,)))(keys)
    value = jnp.mean((batch @ parameters["weight"] - 1.0) ** 2) + 0.01 * jnp.mean(noise @ parameters["weight"])
    return value, {"loss": value}


def batches(step: int, count: int = 2) -> np.ndarray:
    return np.random.default_rng(step).normal(size=(count, 3)).astype(np.float32)


def run(folder: Path, *, stage=STAGE, stop_at=None, seen=None, hooks=Hooks(), upkeep=Upkeep(save_steps=2), **other):  # noqa: B008
    def until_stopped(step: int) -> np.ndarray:
        if step == stop_at:
            raise InterruptedError
        if seen is not None:
            seen.append(step)
        return batches(step, stage.batch)

    settings = {"name": "test", "folder": folder, "recipe": {"rate": 1}, "upkeep": upkeep, "say": lambda line: None}
    return train({"weight": jnp.zeros(3)}, loss, until_stopped, stage, Run(**{**settings, **other}), hooks)


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_a_resumed_run_equals_an_undisturbed_one(tmp_path):
    whole, _ = run(tmp_path / "whole")
    with pytest.raises(InterruptedError):
        run(tmp_path / "parts", stop_at=5)
    seen = []
    resumed, _ = run(tmp_path / "parts", seen=seen)
    assert seen[0] == 4  # from the checkpoint, not from the start
    np.testing.assert_array_equal(resumed["weight"], whole["weight"])
    assert np.abs(np.asarray(whole["weight"])).max() > 0.01


def test_a_finished_run_is_exported_again_but_not_trained(tmp_path):
    first, segments = run(tmp_path)
    exported = []
    again, later = run(tmp_path, stop_at=0, hooks=Hooks(export=lambda average, segments: exported.append(average)))
    np.testing.assert_array_equal(first["weight"], again["weight"])
    np.testing.assert_array_equal(first["weight"], exported[0]["weight"])
    assert later == segments


def test_what_is_exported_is_the_average(tmp_path):
    exported = []
    final, _ = run(
        tmp_path, hooks=Hooks(export=lambda average, segments: exported.append(np.asarray(average["weight"])))
    )
    assert len(exported) == 3
    np.testing.assert_array_equal(exported[-1], final["weight"])
    assert not np.array_equal(exported[0], exported[-1])


_TRAINING = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_trainer import *
with jax.numpy_dtype_promotion("standard"):
    {body}
"""


def start(body: str, devices: int = 1) -> subprocess.Popen:
    environment = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    code = _TRAINING.format(tests=str(Path(__file__).parent), body=body)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-c", code], env=environment, text=True, **pipes)


LONG = replace(STAGE, steps=600)


def telling(most: int):
    """Says what a run says, and after `most` lines of steps waits, so that no run ends before it is killed."""
    told = itertools.count(1)

    def say(line: str) -> None:
        print(line, flush=True)
        if "/600" in line and next(told) == most:
            sys.stdin.read()

    return say


def test_a_run_killed_at_any_moment_goes_on(tmp_path):
    """Killed twice, by SIGKILL, while it saves at every third step."""
    whole, _ = run(tmp_path / "whole", stage=LONG, upkeep=Upkeep(log_every=1000))
    settings = "stage=LONG, upkeep=Upkeep(save_steps=3, log_every=10), say=telling(20)"
    body = f"run(Path({str(tmp_path / 'parts')!r}), {settings})"
    for after in (4, 7):
        process = start(body)
        for line in itertools.islice((line for line in process.stdout if "/600" in line), after):
            assert line
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    seen = []
    resumed, _ = run(tmp_path / "parts", stage=LONG, upkeep=Upkeep(log_every=1000), seen=seen)
    assert 30 <= seen[0] < 600
    np.testing.assert_array_equal(resumed["weight"], whole["weight"])


def test_devices_share_a_batch_without_changing_what_is_learnt(tmp_path):
    """The bound is float32's: sums over pictures in another order. Other batches are far beyond it."""
    stage = "stage=replace(STAGE, batch=4)"
    body = f"print(len(jax.devices()), *run(Path({str(tmp_path / 'two')!r}), {stage})[0]['weight'].tolist())"
    process = start(body, devices=2)
    devices, *two = process.communicate()[0].split()
    assert (process.returncode, devices) == (0, "2")
    one, _ = run(tmp_path / "one", stage=replace(STAGE, batch=4))
    other, _ = run(tmp_path / "other", stage=replace(STAGE, batch=4, seed=1))
    np.testing.assert_allclose(np.float32(two), one["weight"], rtol=2e-6, atol=1e-7)
    assert np.abs(np.asarray(other["weight"]) - np.asarray(one["weight"])).max() > 1e-5


def test_the_best_and_the_last_checkpoint_are_kept(tmp_path):
    scores = iter((0.2, 0.9, 0.9, 0.5, 0.1))
    kept = []
    hooks = Hooks(score=lambda: {"exact": next(scores)}, keep_best=lambda: kept.append(True))
    run(tmp_path, stage=replace(STAGE, steps=10), upkeep=Upkeep(save_steps=2, watch_minutes=0.0), hooks=hooks)
    assert sorted(int(entry.name) for entry in (tmp_path / "test").iterdir()) == [6, 10]
    assert len(kept) == 3  # 0.2, 0.9 and, since as good and longer trained, 0.9


def test_a_resumed_run_knows_what_the_best_was(tmp_path):
    good, poor = (Hooks(score=lambda share=share: {"exact": share}, keep_best=dict) for share in (0.8, 0.3))
    run(tmp_path, stage=replace(STAGE, steps=4), upkeep=Upkeep(), hooks=good)
    kept = []
    run(tmp_path, upkeep=Upkeep(), hooks=replace(poor, keep_best=lambda: kept.append(True)))
    assert sorted(int(entry.name) for entry in (tmp_path / "test").iterdir()) == [4, 6]
    assert not kept


def test_another_recipe_is_refused_and_its_fields_are_named(tmp_path):
    run(tmp_path, recipe={"rate": 1, "unet": {"width": 8}, "diffusion_stage": {"steps": 6}})
    with pytest.raises(UserError, match=r"unet\.width: was 8, is 16.*--checkpoints") as error:
        run(tmp_path, recipe={"rate": 1, "unet": {"width": 16}, "diffusion_stage": {"steps": 9}})
    assert "rate" not in str(error.value).split("(")[1]
    run(tmp_path, recipe={"rate": 1, "unet": {"width": 8}, "diffusion_stage": {"steps": 9}})  # longer is no other


def test_provenance_has_a_segment_for_each_commit_and_machine(tmp_path, monkeypatch):
    earlier = ({"stage": "autoencoder", "steps": 5},)
    monkeypatch.setattr(provenance, "commit", lambda: "first")
    for steps in (2, 4):
        _, segments = run(tmp_path, stage=replace(STAGE, steps=steps), earlier=earlier)
    assert [segment["steps"] for segment in segments] == [5, 4]
    monkeypatch.setattr(provenance, "commit", lambda: "second")
    _, segments = run(tmp_path)
    assert [(segment["steps"], segment.get("commit")) for segment in segments] == [
        (5, None),
        (4, "first"),
        (2, "second"),
    ]
    assert segments[2]["devices"] == "1 x cpu (cpu)"
    assert segments[2]["versions"]["jax"] == jax.__version__
    assert all(segment["seconds"] > 0 for segment in segments[1:])


def test_the_log_has_loss_time_and_structure(tmp_path):
    said = []
    hooks = Hooks(structure=lambda parameters: {LAYER: (4.0, 3.5, 5.5452)}, score=lambda: {"exact": 0.25, "extra": 1.5})
    run(tmp_path, upkeep=Upkeep(log_every=4), hooks=hooks, say=said.append)
    first, second, score = lines(tmp_path)
    assert (first["step"], second["step"], first["stage"]) == (4, 6, "test")
    assert first["layers"] == {LAYER: [4.0, 3.5, 5.5452]}
    assert first["seconds_a_step"] > 0
    assert score["score"] == {"exact": 0.25, "extra": 1.5}
    assert "loss" in said[0]
    assert "d0.1.0 4.00/5.55(3.5)" in said[0]
    assert "exact 0.250" in said[2]


def test_the_loss_logged_is_the_mean_since_the_line_before(tmp_path):
    each, thrice = (run(tmp_path / str(n), upkeep=Upkeep(log_every=n)) and lines(tmp_path / str(n)) for n in (1, 3))
    assert len({line["loss"] for line in each[3:]}) == 3
    np.testing.assert_allclose(thrice[1]["loss"], np.mean([line["loss"] for line in each[3:]]), rtol=1e-6)


def test_a_loss_that_is_no_number_stops_before_it_is_saved(tmp_path):
    with pytest.raises(UserError, match=r"step 4 .*no number"):
        train(
            {"weight": jnp.zeros(3)},
            loss,
            lambda step: batches(step) * np.float32("nan" if step == 3 else 1),
            STAGE,
            Run(
                name="test", folder=tmp_path, recipe={}, upkeep=Upkeep(save_steps=2, log_every=100), say=lambda _: None
            ),
        )
    assert [entry.name for entry in (tmp_path / "test").iterdir()] == ["2"]
