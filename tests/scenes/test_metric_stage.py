"""The metrics' networks train, go on where they were stopped, and what they write opens; their losses by hand."""

import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from typer.testing import CliRunner

from entscale_jax.cli import app
from entscale_jax.errors import UserError
from entscale_jax.metrics.scenes_models import EXTRACTOR, FOLDER, ScenesScorer, load_extractor
from entscale_jax.scenes.metric_stage import CONTRAST, PARTS, MetricRecipe, _choice, train_metrics
from entscale_jax.scenes.recipe import Stage, Upkeep

SHIPPED = FOLDER / EXTRACTOR


def test_the_contrast_by_hand():
    logits = np.array([[1.0, 2.0, 0.5], [0.3, 0.1, 0.2], [5.0, 1.0, 1.0]])
    fits = np.array([[True, False, True], [False, True, False], [False, False, False]])
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = -(np.log(shares[0, 0] + shares[0, 2]) + np.log(shares[1, 1])) / 2  # the third row fits nothing
    found = _choice(jnp.asarray(logits, jnp.float32), jnp.asarray(fits))
    assert float(found) == pytest.approx(expected, rel=1e-6)


def test_another_part_is_told():
    result = CliRunner().invoke(app, ["train", "scenes-metrics", "--part", "text"])
    assert isinstance(result.exception, UserError)
    assert "give extractor or contrast" in str(result.exception)


@pytest.mark.full
@pytest.mark.parametrize("part", PARTS)
def test_a_stopped_training_goes_on_to_the_same_weights(tmp_path, part):
    stage = Stage(steps=6, batch=4, learning_rate=1e-3, warmup=2, decay=0.5)
    recipe = MetricRecipe(extractor_stage=stage, contrast_stage=stage, sizes=((64, 64), (64, 96)))
    upkeep = Upkeep(save_steps=3)
    names = ("whole", "parts", "level")
    if part == CONTRAST:
        for name in names:
            (tmp_path / name).mkdir()
            shutil.copy(SHIPPED, tmp_path / name)
    with jax.numpy_dtype_promotion("standard"):
        train_metrics(tmp_path / "whole", tmp_path / "whole", recipe=recipe, parts=[part], upkeep=upkeep)
        short = replace(recipe, **{f"{part}_stage": replace(stage, steps=3, decay=0.0)})
        long = replace(recipe, **{f"{part}_stage": replace(stage, decay=0.0)})
        train_metrics(tmp_path / "parts", tmp_path / "parts", recipe=short, parts=[part], upkeep=upkeep)
        train_metrics(tmp_path / "parts", tmp_path / "parts", recipe=long, parts=[part], upkeep=upkeep)
        train_metrics(tmp_path / "level", tmp_path / "level", recipe=long, parts=[part], upkeep=upkeep)
    files = {name: (tmp_path / name / f"{part}.safetensors").read_bytes() for name in names}
    assert files["parts"] == files["level"] != files["whole"]
    opened = {"extractor": load_extractor, "contrast": ScenesScorer.load}[part](
        tmp_path / "whole" / f"{part}.safetensors"
    )
    assert opened is not None
