"""The networks that ship tell scenes apart: counts, sizes, faults, captions; those of random weights do not."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from entscale_jax.errors import UserError
from entscale_jax.metrics.captions import KINDS, parse_caption
from entscale_jax.metrics.frechet import fid
from entscale_jax.metrics.moments import Moments
from entscale_jax.metrics.scenes_models import (
    CONTRAST,
    EXTRACTOR,
    FOLDER,
    ScenesScorer,
    load_extractor,
    scenes_extractor,
)
from entscale_jax.metrics.scenes_networks import ContrastConfig, ScenesContrast, ScenesExtractor
from entscale_jax.scenes.alter import Alteration
from entscale_jax.scenes.draw import draw_batch
from entscale_jax.scenes.metric_evaluate import held_out_sets, with_faults

COUNT = 64


@pytest.fixture(scope="module")
def captions():
    return held_out_sets(np.random.default_rng(0), COUNT)


@pytest.fixture(scope="module")
def scorer():
    return ScenesScorer.load()


def _right(module, images, captions):
    truth = np.array([[*(kind in parse_caption(caption) for kind in KINDS), False] for caption in captions], float)
    return (np.abs(np.asarray(module.tell(jnp.asarray(images)))[:, :13] - truth) < 0.5).all(axis=1).mean()


def test_the_extractor_counts_what_training_never_showed(captions):
    images = draw_batch(captions, np.random.default_rng(1))
    assert _right(load_extractor(), images, captions) > 0.7  # measured over 256: docs of the benchmark
    assert _right(ScenesExtractor(rngs=nnx.Rngs(0)), images, captions) < 0.1


def test_features_are_32_and_know_the_size_of_objects_not_of_pictures(captions):
    """The same objects on a larger ground have the same sums; the same pixels enlarged have others."""
    extractor = scenes_extractor()
    images = draw_batch(captions[:16], np.random.default_rng(1))
    wide = np.pad(images, [(0, 0), (32, 32), (0, 128), (0, 0)], constant_values=232)
    found, larger, enlarged = (extractor(each, batch=16) for each in (images, wide, images.repeat(2, 1).repeat(2, 2)))
    assert found.shape == (16, 32)
    assert (extractor.width, extractor.name, extractor.resize) == (32, "scenes", "none")
    counted = slice(0, 24)
    spread = found[:, counted].std()
    assert np.abs(larger - found)[:, counted].mean() < 0.1 * spread
    assert np.abs(enlarged - found)[:, counted].mean() > 0.5 * spread


def test_the_distance_grows_with_faults(captions):
    extractor, rng = scenes_extractor(), np.random.default_rng(2)
    reference = Moments.of(extractor(draw_batch(held_out_sets(rng, 128), rng)))
    values = [
        fid(Moments.of(extractor(with_faults(captions, rng, share, Alteration.REPEATED))), reference)
        for share in (0.0, 0.5, 1.0)
    ]
    assert values[0] < values[1] < values[2]


def test_captions_find_their_pictures(captions, scorer):
    images = draw_batch(captions, np.random.default_rng(3))
    own = np.arange(COUNT)
    cosines = scorer.see(list(images)) @ scorer.read(captions).T
    assert (cosines.argmax(axis=1) == own).mean() > 0.7
    assert (cosines.argmax(axis=0) == own).mean() > 0.7
    np.testing.assert_allclose(scorer(list(images), captions), np.diag(cosines), atol=1e-5)
    untrained = ScenesScorer(ScenesContrast(ContrastConfig(), rngs=nnx.Rngs(0)), scorer.tokenizer, "")
    control = untrained.see(list(images)) @ untrained.read(captions).T
    assert (control.argmax(axis=1) == own).mean() < 0.15


def test_pictures_of_several_sizes_keep_their_order(captions, scorer):
    rng = np.random.default_rng(4)
    images = [draw_batch(captions[:1], rng, height=size, width=64)[0] for size in (64, 128, 128, 64)]
    found = scorer.see(images, batch=4)
    np.testing.assert_allclose(found, np.concatenate([scorer.see([image], batch=4) for image in images]), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    assert scorer.see([]).shape == scorer.read([]).shape == (0, 48)
    with pytest.raises(UserError, match="4 pictures and 3 captions"):
        scorer(images, captions[:3])


@pytest.mark.parametrize("name", [EXTRACTOR, CONTRAST])
def test_what_ships_is_small_and_says_what_made_it(name):
    assert (FOLDER / name).stat().st_size <= 2**20
    made = json.loads((FOLDER / name).with_suffix(".json").read_text())
    assert sum(segment["steps"] for segment in made["segments"]) > 0


def test_other_weights_are_refused():
    with pytest.raises(UserError, match=r"missing key head\.bias"):
        load_extractor(FOLDER / CONTRAST)
