"""What compiled programs say that they need, against sums made here of the arrays that they are given."""

import jax
import numpy as np
import pytest
from flax import nnx

from entscale_jax.baselines import MultiDiffusion
from entscale_jax.program_cache import ProgramCache, ProgramMemory

STEPS = 2


@pytest.fixture(scope="module")
def needs(tiny):
    """(side in pixels, method) -> what its programs need; the model was trained at 32."""
    options = {"steps": STEPS, "guidance": 5.0, "rule": "original"}
    found = {
        (side, "original"): tiny.compile(height=side, width=side, decode=side == 32, **options) for side in (32, 64)
    }
    windows = MultiDiffusion(stride=4, at_once=1)
    del options["rule"]
    found[64, "windows"] = windows.compile(tiny, height=64, width=64, decode=False, **options)
    return found


def bytes_of(module):
    return sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(module)))


def test_arguments_are_the_weights_and_the_inputs(tiny, needs):
    for (side, _), programs in needs.items():
        latents = 4 * (side // 4) ** 2 * tiny.unet.config.in_channels
        length = max(tiny.programs._lengths)
        states = 2 * 4 * length * tiny.unet.config.cross_attention_dim
        found = programs["denoise_latents"]
        # One picture: its latents, text states with and without the caption, the strength of guidance.
        assert found.arguments == bytes_of(tiny.unet) + latents + states + 4
        assert found.outputs == pytest.approx(latents, abs=64)
    decoding = needs[32, "original"]["decode_latents"].arguments
    assert bytes_of(tiny.vae.decoder) < decoding < bytes_of(tiny.vae)


def test_weights_that_are_closed_over_are_no_arguments():
    weights = np.ones((256, 256), np.float32)
    given, closed = ProgramCache(), ProgramCache()
    given.get("given", lambda matrix, vector: matrix @ vector, weights, weights[0])
    closed.get("closed", lambda vector: weights @ vector, weights[0])
    (first,), (second,) = (cache.take_memory().values() for cache in (given, closed))
    assert first.arguments == weights.nbytes + weights[0].nbytes
    assert second.arguments == weights[0].nbytes
    assert given.take_memory() == {}


def test_larger_pictures_need_more_and_windows_less(needs):
    def temporaries(*key):
        return needs[key]["denoise_latents"].temporaries

    assert needs[64, "original"]["denoise_latents"].needed > needs[32, "original"]["denoise_latents"].needed
    assert temporaries(64, "original") > 2 * temporaries(32, "original")
    # One window of the training size at a time, beside latents of the whole picture.
    assert temporaries(32, "original") <= temporaries(64, "windows") < 0.6 * temporaries(64, "original")


def test_what_is_needed_counts_shared_bytes_once():
    assert ProgramMemory(arguments=10, outputs=4, temporaries=3, aliased=4).needed == 13
