"""The measurement of the detector: that it counts what it says, and that bad pictures spoil its figures."""

import jax.numpy as jnp
import numpy as np
import pytest

from entscale_jax import TextToImage
from entscale_jax.scenes import detector
from entscale_jax.scenes.alter import Alteration, Altered
from entscale_jax.scenes.detector import Share, measure, read_altered, read_true, round_trip
from entscale_jax.scenes.draw import paint


def test_true_and_altered_drawings_are_judged_right():
    assert read_true(64, 64, 30) == (30, 30)
    assert all(read_altered(alteration, 96, 64, 8) == (8, 8) for alteration in Alteration)


def test_a_picture_that_lost_its_objects_is_not():
    seen = []

    def through(images: np.ndarray) -> np.ndarray:
        seen.append(len(images))
        return np.full_like(images, 232)

    assert read_true(64, 36, 30, through) == (0, 30)
    assert seen == [25, 5]


def test_an_alteration_that_alters_nothing_is_not(monkeypatch):
    def nothing(alteration, objects, rng, *, height, width):
        return Altered(paint(objects, height=height, width=width), 1, 0)

    monkeypatch.setattr(detector, "alter", nothing)
    assert read_altered(Alteration.REMOVED, 64, 64, 5) == (0, 5)


def test_shares_read_as_percentages():
    assert (str(Share(7, 8)), str(Share(0, 0))) == ("87.5%", "-")


def test_the_round_trip_is_the_models_own(tiny):
    images = np.random.default_rng(0).integers(0, 256, (2, 38, 45, 3), dtype=np.uint8)
    out = round_trip(tiny)(images)
    assert (out.shape, out.dtype) == (images.shape, np.uint8)
    padded = np.pad(images, ((0, 0), (0, 2), (0, 3), (0, 0)), mode="edge").astype(np.float32) / 127.5 - 1
    whole = np.asarray(tiny.vae.decode(tiny.vae.encode(jnp.asarray(padded))[0]))
    expected = np.clip((whole + 1) * 127.5, 0, 255)[:, :38, :45]
    assert np.abs(out - expected).max() <= 0.51
    assert np.abs(out - images.astype(float)).mean() > 20  # untrained, and so no identity


def test_the_section_tells_each_sort_and_size(tiny, monkeypatch):
    monkeypatch.setattr(detector, "SIZES", ((80, 48), (64, 64)))
    lines = measure(tiny, 8)
    assert "| true | 100.0% | 8 |" in lines
    assert "| one object cut by half | 100.0% | 8 |" in lines
    assert "| true, encoded and decoded by the VAE | 0.0% | 8 |" in lines
    assert "| 80x48 | 100.0% | 100.0% | 0.0% |" in lines


@pytest.mark.full
def test_the_shipped_vae_keeps_what_the_detector_reads():
    through = round_trip(TextToImage.from_pretrained("scenes"))
    for size in ((64, 64), (128, 128), (256, 256)):
        assert read_true(*size, 100, through).right >= 98
