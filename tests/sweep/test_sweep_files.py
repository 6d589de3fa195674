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
from entscale_jax.scenes.captions import balanced_captions
from entscale_jax.scenes.recipe import Recipe
from entscale_jax.sweep.plan import make_plan
from entscale_jax.sweep.prompts import resolve_prompts
from entscale_jax.sweep.sweep_file import read_sweep
from entscale_jax.weights.folder import describe

TRAIN_SIZE, FACTOR, LEVELS = 128, Recipe().autoencoder.factor, Recipe().unet.levels
SWEEPS = Path(__file__).parents[2] / "sweeps"
CALIBRATED = ("scenes-study-calibrated.yaml", "scenes-study-calibrated-entropy.yaml")
STUDY = ("scenes-study-rules.yaml", "scenes-study-multipliers.yaml", "scenes-study-entropy.yaml")
FILES = ("aspect.yaml", "resolution.yaml", *STUDY, *CALIBRATED)


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
    # E_T are of the model's own layers.
    own = any(scaling.label == "calibrated" for scaling in file.spec.methods)
    fake = fakes.FakeInfo("scenes", train_size=(TRAIN_SIZE, TRAIN_SIZE), factor=FACTOR, levels=LEVELS)
    model = describe("scenes") if own else fake
    return make_plan(file.spec, prompts, {"scenes": model})


@pytest.mark.parametrize("name", FILES)
def test_ray_takes_it_for_a_cluster(name, ray_schema):
    config = yaml.safe_load((SWEEPS / name).read_text())
    jsonschema.validate(config, ray_schema)
    assert config["provider"] == {"type": "local", "head_ip": "127.0.0.1", "worker_ips": []}
    with pytest.raises(jsonschema.ValidationError, match="Additional properties are not allowed"):
        jsonschema.validate({**config, "sweep": config["metadata"]["sweep"]}, ray_schema)


@pytest.mark.parametrize(
    ("name", "cells"),
    [
        ("aspect.yaml", 6 * 2 * 8),
        ("resolution.yaml", 5 * 2 * 8),
        ("scenes-study-rules.yaml", 7 * 2 * 256),
        ("scenes-study-multipliers.yaml", 7 * 8 * 64),
        ("scenes-study-entropy.yaml", 7 * 2 * 8),
        ("scenes-study-calibrated.yaml", (7 * 3 - 1) * 128),
        ("scenes-study-calibrated-entropy.yaml", (7 * 3 - 1) * 8),
    ],
)
def test_it_is_planned_whole(name, cells):
    assert len(_plan(name).cells) == cells


def _sizes(name):
    return {(chunk.width, chunk.height): chunk.program.key.bucket for chunk in _plan(name).chunks}


def test_aspect_covers_long_side_short_side_and_the_control():
    train = token_counts((TRAIN_SIZE // FACTOR,) * 2, LEVELS)
    sizes = _sizes("aspect.yaml")
    tokens = {size: token_counts(bucket.latent(FACTOR), LEVELS) for size, bucket in sizes.items()}
    assert {max(size) for size in sizes} == {128, 192, 256}
    assert any(width < height for width, height in sizes)
    for size, counts in tokens.items():
        # The control is equal at every level: both rules draw the same there, and nowhere else.
        assert (counts == train) == (size == (256, 64))
        if size != (256, 64):
            assert all(now != then for now, then in zip(counts, train, strict=True))


def test_resolution_goes_from_half_to_twice_the_training_size():
    sizes = _sizes("resolution.yaml")
    assert all(width == height for width, height in sizes)
    assert (min(sizes), max(sizes)) == ((64, 64), (256, 256))
    assert (128, 128) in sizes


@pytest.mark.parametrize("name", STUDY)
def test_the_study_draws_half_the_training_size_twice_and_five_more(name):
    sizes = _sizes(name)
    assert len(sizes) == 7
    assert {(64, 64), (128, 128), (256, 256)} <= sizes.keys()


def test_the_parts_of_the_study_draw_the_same_captions_from_the_same_noise():
    rules, multipliers, entropy = (
        list(dict.fromkeys((cell.prompt, cell.seed) for cell in _plan(name).cells)) for name in STUDY
    )
    assert (len(rules), len(multipliers), len(entropy)) == (256, 64, 8)
    assert rules[:64] == multipliers
    assert rules[:8] == entropy
    assert len({seed for _, seed in rules}) == 256
    # Training and evaluation read the captions of seed 0, from the first seeds on.
    assert [prompt for prompt, _ in rules] != balanced_captions(256)
    assert min(seed for _, seed in rules) > 10_000
    assert len({(cell.sampler, cell.steps, cell.guidance) for name in STUDY for cell in _plan(name).cells}) == 1


def test_the_study_of_calibrated_draws_the_cells_of_the_others_and_its_own():
    rules, entropy, calibrated, measured = (
        {_place(cell): cell for cell in _plan(name).cells} for name in (STUDY[0], STUDY[2], *CALIBRATED)
    )
    for ours, theirs in ((calibrated, rules), (measured, entropy)):
        assert {ours[key].method.label for key in ours.keys() - theirs.keys()} == {"calibrated"}
        assert {ours[key].method.label for key in ours.keys() & theirs.keys()} == {"original", "entropy"}
    assert [found.size for found in _plan(CALIBRATED[0]).undefined] == [(64, 64)]


def _place(cell):
    """What a cell is, but for its model, which one of the plans has a stand-in for."""
    parts = cell.width, cell.height, cell.method.label, cell.prompt, cell.seed
    return (*parts, cell.sampler, cell.steps, cell.guidance)


def test_the_study_has_the_multipliers_beside_the_rules():
    methods = {cell.method for cell in _plan("scenes-study-multipliers.yaml").cells}
    assert {method.multiplier for method in methods} == {0.5, 0.7, 0.8, 0.9, 1.1, 1.25, 1.6, 2.0}
    assert {method.rule.value for method in methods} == {"fixed"}
    assert {cell.method.label for cell in _plan("scenes-study-rules.yaml").cells} == {"original", "entropy"}


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
