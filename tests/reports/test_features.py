"""Which features of a run are kept for kernel distances, and that nothing else is kept alive by them."""

import json

import numpy as np
import pytest
from synthetic_run import SyntheticRun

from entscale_jax.reports.paper import features as module
from entscale_jax.reports.paper.features import gather_features
from entscale_jax.reports.records import Size
from entscale_jax.reports.run_folder import read_run

IDENTITY = "scenes 0123456789abcdef, resize none"
PROMPTS = tuple(f"number {number}" for number in range(12))
LIMITED = 3


@pytest.fixture
def run(tmp_path):
    """Of two sizes; `entropy` drew three captions."""
    folder = SyntheticRun(prompts=PROMPTS, limits={"entropy": LIMITED}).write(tmp_path / "run")
    for path in (folder / "rows").iterdir():
        row = json.loads(path.read_text())
        number = PROMPTS.index(row["prompt"])
        if row["method"] == "entropy" and number >= LIMITED:
            path.unlink()
        else:
            path.write_text(json.dumps({**row, "features": {IDENTITY: [float(number), row["width"]]}}))
    return read_run(folder)


def test_kept_features_hold_no_others(run):
    for found in gather_features(run)[IDENTITY].values():
        assert all(features.base is None for features in found.kept.values())


def test_kept_are_the_same_captions_of_each_size_and_all_of_a_method_with_few(run, monkeypatch):
    monkeypatch.setattr(module, "MOST", 5)
    found = gather_features(run)[IDENTITY]
    sizes = [Size("scenes", 64, 64), Size("scenes", 96, 64)]
    first, second = (found[size, "original"] for size in sizes)
    assert set(first.kept) == set(second.kept)
    assert (len(first.kept), first.moments.count) == (5, len(PROMPTS))
    for size in sizes:
        limited = found[size, "entropy"]
        assert sorted(limited.features[:, 0]) == [0, 1, 2]
        assert limited.moments.count == LIMITED
        np.testing.assert_array_equal(limited.features[:, 1], size.width)
