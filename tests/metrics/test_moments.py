"""Moments gathered in pieces are those of the whole, whatever the pieces, the order and the interruptions."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from entscale_jax.errors import UserError
from entscale_jax.metrics.moments import Moments, gather


def _features(count=230, width=7, offset=1e6, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, width)) @ rng.normal(size=(width, width)) + offset


def _pieces(features, sizes):
    ends = np.cumsum(sizes)
    return [features[end - size : end] for size, end in zip(sizes, ends, strict=True)]


def test_pieces_merge_to_the_whole():
    features = _features()
    first, second, third, fourth = (Moments.of(piece) for piece in _pieces(features, [1, 100, 2, 127]))
    merged = first.merge(second).merge(third.merge(fourth))
    assert merged.count == 230
    np.testing.assert_allclose(merged.mean, features.mean(axis=0), rtol=1e-14)
    expected = np.cov(features - 1e6, rowvar=False)
    np.testing.assert_allclose(merged.covariance, expected, rtol=1e-9, atol=1e-10)
    # Sums of squares, the other way to stream, have lost what is asked for at such a mean.
    squares = (features.T @ features - 230 * np.outer(features.mean(axis=0), features.mean(axis=0))) / 229
    assert np.abs(squares - expected).max() > 1e-4


def test_float32_features_are_summed_in_float64():
    features = _features(offset=300.0).astype(np.float32)
    expected = np.cov(features.astype(np.float64), rowvar=False)
    np.testing.assert_allclose(Moments.of(features).covariance, expected, rtol=1e-10, atol=1e-12)
    assert np.abs(np.cov(features, rowvar=False, dtype=np.float32) - expected).max() > 1e-7


def test_an_empty_piece_changes_nothing():
    moments = Moments.of(_features())
    for merged in (moments.merge(Moments.empty(7)), Moments.empty(7).merge(moments), moments.add(np.zeros((0, 7)))):
        assert merged.count == moments.count
        assert np.array_equal(merged.mean, moments.mean)
        assert np.array_equal(merged.deviations, moments.deviations)


def test_a_file_gives_back_the_same_bits(tmp_path):
    moments = Moments.of(_features(), extractor="abc")
    moments.save(tmp_path / "m.npz")
    again = Moments.load(tmp_path / "m.npz")
    assert (again.count, again.extractor, again.batches) == (230, "abc", 0)
    assert again.mean.tobytes() == moments.mean.tobytes()
    assert again.deviations.tobytes() == moments.deviations.tobytes()
    assert [file.name for file in tmp_path.iterdir()] == ["m.npz"]


def _batch(index, width=7):
    return np.random.default_rng(index).normal(index, 1 + index, (11, width)).astype(np.float32)


@pytest.mark.parametrize("every", [1, 4, 50])
@pytest.mark.parametrize("stop", [0, 3, 9])
def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path, every, stop):
    whole = gather(_batch, 10, tmp_path / "whole.npz")
    asked = []

    def stopping(index):
        if index == stop and not asked:
            raise KeyboardInterrupt
        return _batch(index)

    with pytest.raises(KeyboardInterrupt):
        gather(stopping, 10, tmp_path / "parts.npz", every=every)
    again = gather(lambda index: asked.append(index) or _batch(index), 10, tmp_path / "parts.npz", every=every)
    assert asked == list(range(stop // every * every, 10))
    assert again.deviations.tobytes() == whole.deviations.tobytes()
    assert again.mean.tobytes() == whole.mean.tobytes()
    other = gather(lambda index: _batch(index + 1), 10, tmp_path / "other.npz")
    assert other.mean.tobytes() != whole.mean.tobytes()


def test_a_killed_process_leaves_a_whole_file(tmp_path):
    file = tmp_path / "m.npz"
    script = (
        "import os, signal, sys; import numpy as np; from entscale_jax.metrics.moments import gather\n"
        "def batch(index):\n"
        "    if index == 5: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return np.random.default_rng(index).normal(index, 1 + index, (11, 7)).astype(np.float32)\n"
        "gather(batch, 10, sys.argv[1], every=2)"
    )
    done = subprocess.run([sys.executable, "-c", script, file], check=False, env={**os.environ, "JAX_PLATFORMS": "cpu"})
    assert done.returncode == -signal.SIGKILL
    assert Moments.load(file).batches == 4
    whole = gather(_batch, 10, tmp_path / "whole.npz")
    assert gather(_batch, 10, file).deviations.tobytes() == whole.deviations.tobytes()


def test_mistakes_are_told(tmp_path):
    moments = Moments.of(_features(), extractor="a")
    with pytest.raises(UserError, match="features of a can't be compared with those of b"):
        moments.merge(Moments.of(_features(), extractor="b"))
    with pytest.raises(UserError, match="width 7 can't be compared with features of width 6"):
        moments.merge(Moments.of(_features(width=6), extractor="a"))
    with pytest.raises(UserError, match="covariance of 1 features"):
        _ = Moments.of(_features(count=1)).covariance
    with pytest.raises(UserError, match="picture 3 are no numbers"):
        Moments.of(np.where(np.arange(10)[:, None] == 3, np.nan, np.ones((10, 2))))
    gather(_batch, 10, tmp_path / "m.npz", extractor="a")
    with pytest.raises(UserError, match="holds moments of 'a', asked for are 'b'"):
        gather(_batch, 10, tmp_path / "m.npz", extractor="b")
    with pytest.raises(UserError, match="holds 10 batches, asked for are 9"):
        gather(_batch, 9, tmp_path / "m.npz", extractor="a")


@pytest.mark.parametrize("cut", [0, 10, 400])
def test_a_file_cut_off_is_told(tmp_path, cut):
    file = tmp_path / "m.npz"
    Moments.of(_features()).save(file)
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(UserError, match="holds no moments"):
        Moments.load(file)
    with pytest.raises(UserError, match="holds no moments"):
        Moments.load(tmp_path / "absent.npz")
