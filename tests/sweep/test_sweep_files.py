"""The files in `sweeps/`: what they draw, and that Ray takes them for cluster configurations."""

import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import sweep_fakes as fakes
import yaml

from entscale_jax.buckets import token_counts
from entscale_jax.sweep.plan import make_plan
from entscale_jax.sweep.prompts import resolve_prompts
from entscale_jax.sweep.spec import read_sweep

SWEEPS = Path(__file__).parents[2] / "sweeps"
FILES = ("aspect.yaml", "resolution.yaml")


@pytest.fixture(scope="module")
def ray_schema():
    from importlib.util import find_spec

    spec = find_spec("ray")
    if spec is None or spec.origin is None:
        pytest.skip("Ray is not installed")
    return json.loads((Path(spec.origin).parent / "autoscaler" / "ray-schema.json").read_text())


def _plan(name):
    file = read_sweep(SWEEPS / name)
    prompts = resolve_prompts(file.spec, file.folder)
    return make_plan(file.spec, prompts, {"scenes": fakes.FakeInfo("scenes")})


@pytest.mark.parametrize("name", FILES)
def test_ray_takes_it_for_a_cluster(name, ray_schema):
    config = yaml.safe_load((SWEEPS / name).read_text())
    jsonschema.validate(config, ray_schema)
    assert config["provider"] == {"type": "local", "head_ip": "127.0.0.1", "worker_ips": []}
    with pytest.raises(jsonschema.ValidationError, match="Additional properties are not allowed"):
        jsonschema.validate({**config, "sweep": config["metadata"]["sweep"]}, ray_schema)


@pytest.mark.parametrize(("name", "cells"), [("aspect.yaml", 6 * 2 * 8), ("resolution.yaml", 5 * 2 * 8)])
def test_it_is_planned_whole(name, cells):
    assert len(_plan(name).cells) == cells


def test_aspect_covers_long_side_short_side_and_the_control():
    train = token_counts((16, 16), 3)
    sizes = {(chunk.width, chunk.height): chunk.program.key.bucket for chunk in _plan("aspect.yaml").chunks}
    tokens = {size: token_counts(bucket.latent(4), 3) for size, bucket in sizes.items()}
    assert {max(size) for size in sizes} == {64, 96, 128}
    assert any(width < height for width, height in sizes)
    for size, counts in tokens.items():
        # The control is equal at every level: both rules draw the same there, and nowhere else.
        assert (counts == train) == (size == (128, 32))
        if size != (128, 32):
            assert all(now != then for now, then in zip(counts, train, strict=True))


def test_resolution_goes_from_half_to_twice_the_training_size():
    sizes = {(chunk.width, chunk.height) for chunk in _plan("resolution.yaml").chunks}
    assert all(width == height for width, height in sizes)
    assert (min(sizes), max(sizes)) == ((32, 32), (128, 128))
    assert (64, 64) in sizes


def test_the_script_says_in_one_line_what_is_wrong(tmp_path):
    (tmp_path / "s.yaml").write_text("sweeep: {}\n")
    command = [sys.executable, str(SWEEPS / "run.py"), str(tmp_path / "s.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        f"Error: {tmp_path / 's.yaml'}:1: unknown key 'sweeep' at the top: did you mean 'sweep'?"
    )


def test_the_script_finds_the_configuration_that_ray_left(tmp_path):
    import os

    command = [sys.executable, str(SWEEPS / "run.py")]
    environment = {**os.environ, "HOME": str(tmp_path)}
    (tmp_path / "ray_bootstrap_config.yaml").write_text('{"cluster_name": "c", "metadata": {"sweep": {"nam": "a"}}}')
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path, env=environment)
    assert done.returncode == 2
    assert "ray_bootstrap_config.yaml:1: unknown key 'nam': did you mean 'name'?" in done.stderr
