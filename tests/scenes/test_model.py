"""The model that ships: small enough, from the recipe in the code, and drawing what its captions say."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

import entscale_jax
from entscale_jax import TextToImage
from entscale_jax.scenes.evaluate import evaluate, score
from entscale_jax.scenes.recipe import Recipe
from entscale_jax.weights.folder import describe

FOLDER = Path(entscale_jax.__file__).parent / "scenes" / "model"


def test_it_is_at_most_40_megabytes():
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert files
    assert sum(path.stat().st_size for path in files) <= 40e6


def test_its_configs_are_the_recipe():
    info, recipe = describe("scenes"), Recipe()
    assert info.unet == recipe.unet
    assert dataclasses.replace(info.text, vocab_size=0) == recipe.text
    assert dataclasses.replace(info.vae, scaling_factor=recipe.autoencoder.scaling_factor) == recipe.autoencoder
    assert info.train_size == (64, 64)


@pytest.fixture(scope="module")
def drawn():
    return evaluate(TextToImage.from_pretrained("scenes"))


@pytest.mark.full
def test_it_draws_half_of_128_captions_exactly(drawn):
    found, captions, _ = drawn
    assert len(captions) == 128
    assert found.exact >= 0.5, found


@pytest.mark.full
def test_its_pictures_are_not_those_of_other_captions(drawn):
    _, captions, images = drawn
    moved = captions[1:] + captions[:1]
    assert score(moved, images).exact < 0.05
    assert np.asarray(images).std() > 10
