"""The model that ships: small enough, from the recipe in the code, and drawing what its captions say."""

import dataclasses
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

import entscale_jax
from entscale_jax import TextToImage
from entscale_jax.metrics.captions import TRAIN_SIZE
from entscale_jax.scenes.evaluate import FIRST_SEED, known_captions, score, structure
from entscale_jax.scenes.pictures import Drawing, draw
from entscale_jax.scenes.recipe import Recipe
from entscale_jax.weights.folder import describe

FOLDER = Path(entscale_jax.__file__).parent / "scenes" / "model"
PAGE = Path(__file__).parents[2] / "docs" / "scenes.md"


def test_it_is_at_most_40_megabytes():
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert files
    assert sum(path.stat().st_size for path in files) <= 40e6


def test_its_configs_are_the_recipe():
    info, recipe = describe("scenes"), Recipe()
    assert info.unet == recipe.unet
    assert dataclasses.replace(info.text, vocab_size=0) == recipe.text
    assert dataclasses.replace(info.vae, scaling_factor=recipe.autoencoder.scaling_factor) == recipe.autoencoder
    assert info.train_size == (TRAIN_SIZE, TRAIN_SIZE)


def test_it_is_drawn_with_its_own_guidance_by_default(tmp_path):
    other = shutil.copytree(FOLDER, tmp_path / "model")
    assert (describe("scenes").guidance, describe(other).guidance) == (2.0, 7.5)


@pytest.fixture(scope="module")
def pipe():
    return TextToImage.from_pretrained("scenes")


@pytest.fixture(scope="module")
def drawn(pipe, tmp_path_factory):
    captions = known_captions(32)
    return captions, draw(pipe, Drawing(captions=captions, seed=FIRST_SEED), tmp_path_factory.mktemp("drawn"))


@pytest.mark.full
def test_it_draws_as_many_captions_exactly_as_the_page_says(drawn):
    captions, _ = drawn
    (documented,) = re.findall(r"\*\*([\d.]+)% exact\*\* of 512", PAGE.read_text())
    share = float(documented) / 100
    chance = 3 * math.sqrt(share * (1 - share) / len(captions))
    assert score(*drawn).exact == pytest.approx(share, abs=chance), score(*drawn)


@pytest.mark.full
def test_its_pictures_are_not_those_of_other_captions(drawn):
    captions, images = drawn
    assert score(captions[1:] + captions[:1], images).exact < 0.05
    assert np.asarray(images).std() > 10


@pytest.mark.full
def test_attention_of_its_finest_level_has_structure(pipe):
    finest = {name: found for name, found in structure(pipe, count=4).items() if pipe.layers[name][0] == 0}
    assert finest
    assert all(found.most - found.entropy >= 0.5 for found in finest.values()), finest
