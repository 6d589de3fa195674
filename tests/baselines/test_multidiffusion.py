"""Windows cover a picture, their steps are averaged, and where there is one window it is the plain sampler."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from entscale_jax import UserError
from entscale_jax.baselines import MultiDiffusion, Windows
from entscale_jax.baselines.multidiffusion import starts
from entscale_jax.sampling import DPMSolver

CAPTIONS = ["a red circle", "a blue square"]
QUICK = {"steps": 3, "guidance": 3.0, "seed": 5, "sampler": "ddim"}
ROUNDING = 1e-4


@pytest.mark.parametrize(
    ("cells", "window", "stride", "expected"),
    [
        (64, 64, 8, (0,)),
        (96, 64, 8, (0, 8, 16, 24, 32)),
        (256, 64, 8, tuple(range(0, 200, 8))),
        (97, 64, 8, (0, 8, 16, 24, 32, 33)),
        (65, 64, 8, (0, 1)),
        (28, 28, 8, (0,)),
        (20, 8, 8, (0, 8, 12)),
    ],
)
def test_windows_along_a_side_by_hand(cells, window, stride, expected):
    assert starts(cells, window, stride) == expected


def test_published_windows_of_a_panorama():
    """512x4096 in MultiDiffusion's own `get_views`: (4096 / 8 - 64) / 8 + 1 = 57 windows in one row."""
    windows = Windows((64, 512), (64, 64), 8, 4)
    assert windows.corners == tuple((0, 8 * i) for i in range(57))
    assert windows.counts[0, :20].tolist() == [1] * 8 + [2] * 8 + [3] * 4
    assert windows.counts.max() == 8


def test_every_cell_is_in_a_window():
    for grid, stride in itertools.product([(8, 8), (9, 13), (30, 8), (21, 22)], [1, 3, 8]):
        counts = Windows(grid, (8, 8), stride, 4).counts
        assert counts.shape == grid
        assert counts.min() >= 1


@pytest.mark.parametrize("most", [1, 2, 4, 100])
def test_steps_are_averaged(most):
    """A step that depends on its whole window, on what the sampler carries and on noise; the mean taken by NumPy."""
    rng = np.random.default_rng(0)
    latents, memory, noise = (rng.standard_normal((2, 11, 13, 4)).astype(np.float32) for _ in range(3))

    def step(latents, memory, noise):
        mean = latents.mean(axis=(1, 2), keepdims=True)
        return 2 * latents - mean + 0.1 * noise, (memory[0] + mean * latents,)

    windows = Windows((11, 13), (6, 6), 4, most)
    assert len(windows.corners) == 9
    assert windows.at_once == {1: 1, 2: 2, 4: 3, 100: 9}[most]
    after, (kept,) = windows(step, jnp.asarray(latents), (jnp.asarray(memory),), jnp.asarray(noise))
    sums, times = np.zeros((2, *latents.shape)), np.zeros((11, 13, 1))
    for top, left in itertools.product((0, 4, 5), (0, 4, 7)):
        part = (slice(None), slice(top, top + 6), slice(left, left + 6))
        stepped, (carried,) = step(latents[part], (memory[part],), noise[part])
        sums[(0, *part)] += stepped
        sums[(1, *part)] += carried
        times[part[1:]] += 1
    np.testing.assert_allclose(after, sums[0] / times, atol=1e-5)
    np.testing.assert_allclose(kept, sums[1] / times, atol=1e-5)
    assert np.abs(np.asarray(after) - step(latents, (memory,), noise)[0]).max() > 0.1


def test_what_a_sampler_carries_is_as_of_a_sampler_for_each_window(tiny):
    """DPM-Solver++ remembers an output: of the whole picture here, in the reference of each window by itself."""
    sampler = tiny.info.sampler("dpmsolver++")
    assert isinstance(sampler, DPMSolver)
    table = sampler.table(5)
    windows = Windows((9, 11), (6, 6), 2, 3)
    start = np.random.default_rng(1).standard_normal((1, 9, 11, 4)).astype(np.float32)
    latents = reference = jnp.asarray(start)
    memory = sampler.memory(latents)
    parts = [(slice(None), slice(top, top + 6), slice(left, left + 6)) for top, left in windows.corners]
    own = {index: sampler.memory(latents[part]) for index, part in enumerate(parts)}
    for call in range(5):
        row = type(table.columns)(*(jnp.asarray(column[call], jnp.float32) for column in table.columns))

        def step(latents, memory, noise, row=row):
            output = jnp.tanh(latents) - latents.mean(axis=(1, 2), keepdims=True)
            return sampler.step(latents, output, row, memory, noise)

        latents, memory = windows(step, latents, memory, None)
        total, times = np.zeros(start.shape), np.zeros((9, 11, 1))
        for index, part in enumerate(parts):
            stepped, own[index] = step(reference[part], own[index], None)
            total[part] += stepped
            times[part[1:]] += 1
        reference = jnp.asarray(total / times, jnp.float32)
    np.testing.assert_allclose(latents, reference, atol=1e-4)
    assert np.abs(np.asarray(latents) - start).max() > 0.1


@pytest.mark.parametrize("size", [(32, 32), pytest.param((20, 32), marks=pytest.mark.full)])
def test_one_window_is_the_plain_sampler(tiny, size):
    """At the training size the windows' size is that of training; below it, the picture's own."""
    sides = {"height": size[0], "width": size[1]}
    plain = tiny(CAPTIONS, rule="original", **sides, **QUICK)
    one = MultiDiffusion(stride=3).draw(tiny, CAPTIONS, **sides, **QUICK)
    np.testing.assert_array_equal(one.latents, plain.latents)
    np.testing.assert_array_equal(one.images, plain.images)


def test_a_larger_picture_is_of_windows_and_its_program_is_compiled_once(tiny):
    sides, method = {"height": 32, "width": 46}, MultiDiffusion(stride=3, at_once=1)
    static = {name: QUICK[name] for name in ("steps", "guidance", "sampler")}
    made = set(tiny.programs.cache.compiled)
    method.compile(tiny, batch=2, **sides, **static)
    new = set(tiny.programs.cache.compiled) - made
    assert [key[1].fuse for key in new if key[0] == "denoise"] == [Windows((8, 12), (8, 8), 3, 1)]
    before = dict(tiny.programs.cache.compiled)
    out = method.draw(tiny, CAPTIONS, **sides, **QUICK)
    method.draw(tiny, CAPTIONS[::-1], **sides, **{**QUICK, "seed": 9})
    assert tiny.programs.cache.compiled == before
    assert out.images.shape == (2, 32, 46, 3)


@pytest.mark.full
def test_a_larger_picture_is_another_one_and_the_same_however_many_windows_are_denoised_at_once(tiny):
    sides = {"height": 32, "width": 46}
    one, three, wider = (
        MultiDiffusion(**options).draw(tiny, CAPTIONS, **sides, **QUICK).latents
        for options in ({"stride": 3, "at_once": 1}, {"stride": 3, "at_once": 3}, {"stride": 4})
    )
    np.testing.assert_allclose(three, one, atol=ROUNDING)
    plain = tiny(CAPTIONS, rule="original", **sides, **QUICK)
    assert np.abs(plain.latents - one).max() > 100 * ROUNDING
    assert np.abs(wider - one).max() > 100 * ROUNDING


def test_work_is_cells_denoised_over_cells(tiny):
    method = MultiDiffusion(stride=4)
    assert method.work(tiny.info, (32, 32)) == 1.0
    assert method.work(tiny.info, (16, 32)) == 1.0
    assert method.work(tiny.info, (32, 64)) == 3 * 64 / 128


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"stride": 9}, "stride 9 leaves gaps between windows of 8x8 latent cells"),
        ({"stride": 0}, "stride is 0: give a whole number from 1"),
        ({"at_once": 0}, "at_once is 0: give a whole number from 1"),
    ],
)
def test_what_can_t_be(tiny, options, said):
    with pytest.raises(UserError, match=said):
        MultiDiffusion(**options).draw(tiny, CAPTIONS[0], height=32, width=64, **QUICK)


def test_entropy_is_not_measured_of_windows(tiny):
    with pytest.raises(UserError, match="entropy can't be measured where a picture is drawn in parts"):
        MultiDiffusion().draw(tiny, CAPTIONS[0], height=32, width=64, measure_entropy=True, **QUICK)
