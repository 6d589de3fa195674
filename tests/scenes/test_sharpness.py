"""Sharpness in closed form, and the way through the autoencoder."""

import jax.numpy as jnp
import numpy as np
import pytest

from entscale_jax.scenes.sharpness import edge_energy, round_trip, signal_to_noise


def ramp(width):
    """A step from 0 to 240 over `width` pixels, in every row of a picture."""
    row = np.clip(np.arange(32) - 8, 0, width) * (240 // width)
    return np.broadcast_to(row[None, None, :, None], (1, 32, 32, 3)).astype(np.uint8)


@pytest.mark.parametrize("width", [2, 4, 8])
def test_an_edge_over_n_pixels_has_an_nth_of_the_energy(width):
    assert edge_energy(ramp(width)) == pytest.approx(edge_energy(ramp(1)) / width)


def test_signal_to_noise_in_closed_form():
    reference = np.full((2, 8, 8, 3), 100, np.uint8)
    images = reference + np.array([1, 10], np.uint8)[:, None, None, None]
    assert signal_to_noise(images, reference) == pytest.approx([48.1308, 28.1308], abs=1e-4)  # 20 log10(255)


def test_a_round_trip_encodes_and_decodes(tiny):
    images = np.random.default_rng(0).integers(0, 256, (1, 16, 24, 3)).astype(np.uint8)
    got = round_trip(tiny, images)
    mean, _ = tiny.vae.encode(jnp.asarray(images, jnp.float32) / 127.5 - 1.0)
    expected = np.clip(np.asarray(tiny.vae.decode(mean)) / 2 + 0.5, 0, 1) * 255
    assert np.abs(got - expected).max() <= 0.51
    assert got.std() > 1
