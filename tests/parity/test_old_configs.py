"""What PyTorch's Stable Diffusion pipeline changes in configs of old folders is changed here too."""

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler

from entscale_jax.parity.compare import compare, image_error, precision
from entscale_jax.pipeline import TextToImage
from entscale_jax.weights.folder import describe

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

CAPTIONS = ["a red circle", "a blue one"]
SIDE, CELLS = 128, 16
OLD = {"no offset": {"steps_offset": 0}, "clipped": {"clip_sample": True}, "clipped by default": {"clip_sample": None}}


def _with(folder, out, part, changes):
    """A copy of the folder with fields of a config changed, or left out where they are None."""
    shutil.copytree(folder, out)
    (file,) = (out / part).glob("*config.json")
    config = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))
    return out


def _in_torch(folder, noise, config=None):
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    if config is not None:
        pipeline.scheduler = DDIMScheduler.from_config(config)
    latents = torch.from_numpy(noise).permute(0, 3, 1, 2).contiguous()
    options = {"num_inference_steps": 5, "guidance_scale": 5.0, "height": SIDE, "width": SIDE, "output_type": "np"}
    return pipeline(CAPTIONS, latents=latents, **options).images


@pytest.mark.parametrize("old", OLD)
def test_the_pipeline_sets_fields_of_the_scheduler(folders, tmp_path, old):
    folder = _with(folders["sd1"], tmp_path / "old", "scheduler", OLD[old])
    noise = np.random.default_rng(1).standard_normal((2, CELLS, CELLS, 4)).astype(np.float32)
    with precision(float64=False):
        pipe = TextToImage.from_pretrained(folder)
        out = pipe(CAPTIONS, height=SIDE, width=SIDE, steps=5, guidance=5.0, latents=noise, rule="original")
    assert image_error(out.images, _in_torch(folder, noise)) <= 1.0
    literal = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    assert image_error(out.images, _in_torch(folder, noise, literal)) > 1.0


def test_a_user_who_names_the_field_has_it(folders):
    assert describe(folders["sd1"], sampler={"name": "ddim", "steps_offset": 0}).schedule.steps_offset == 0
    assert describe(folders["sd1"], sampler="euler").schedule.steps_offset == 1


def test_other_pipelines_leave_the_scheduler_alone(folders, tmp_path):
    for model in ("ldm-kl", "sdxl"):
        folder = _with(folders[model], tmp_path / model, "scheduler", {"steps_offset": 0})
        assert describe(folder).schedule.steps_offset == 0


def test_the_table_of_parity_compares_an_old_folder(folders, tmp_path):
    folder = _with(folders["sd1"], tmp_path / "old", "scheduler", OLD["no offset"] | OLD["clipped"])
    rows = compare(folder, size=(SIDE, SIDE), rules=("original",), steps=3)
    assert [row.module for row in rows if not row.passed] == []


@pytest.mark.parametrize(
    ("model", "version", "grid"),
    [
        ("sd1", "0.8.1", (64, 64)),
        ("sd1", "0.9.0", (16, 16)),
        ("sd1", "0.10.0", (16, 16)),
        ("sd1", None, (16, 16)),
        ("ldm-kl", "0.8.1", (16, 16)),
    ],
)
def test_the_training_size_of_unets_from_before_diffusers_0_9(folders, tmp_path, model, version, grid):
    folder = _with(folders[model], tmp_path / "old", "unet", {"_diffusers_version": version})
    assert describe(folder).train_grid == grid


@pytest.mark.parametrize(("version", "size"), [("0.8.1", 64), ("0.10.0", 16)])
def test_diffusers_takes_that_size_too(folders, tmp_path, version, size):
    folder = _with(folders["sd1"], tmp_path / "old", "unet", {"_diffusers_version": version})
    assert StableDiffusionPipeline.from_pretrained(folder).unet.config["sample_size"] == size
