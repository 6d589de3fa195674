"""What the metrics' networks are told of a picture is what the detector, which did not draw it, counts there."""

import numpy as np
import pytest

from entscale_jax.metrics.captions import KINDS, parse_caption
from entscale_jax.metrics.objects import UNKNOWN, count_objects
from entscale_jax.scenes import metric_pictures
from entscale_jax.scenes.captions import is_held_out
from entscale_jax.scenes.metric_pictures import draw_metric_picture
from entscale_jax.scenes.metric_stage import nearly, of_caption, random_set


@pytest.mark.parametrize(("height", "width"), [(128, 128), (96, 160)])
def test_counts_are_what_the_detector_sees(monkeypatch, height, width):
    monkeypatch.setattr(metric_pictures, "_SPOILT", 0.0)
    rng, unknown, repeated = np.random.default_rng(0), 0, 0
    for _ in range(100):
        picture = draw_metric_picture(rng, height, width)
        found = count_objects(picture.image)
        assert [found[kind] for kind in KINDS] == picture.counts[:12].tolist()
        assert sum(count for kind, count in found.items() if UNKNOWN in kind) == picture.counts[12]
        assert not picture.qualities.any()
        assert not is_held_out([kind for kind, count in zip(KINDS, picture.counts, strict=False) if count])
        unknown += picture.counts[12] > 0
        repeated += picture.counts[:12].max() > 1
    assert unknown > 3
    assert repeated > 5


def test_kinds_asked_for_are_drawn_whole(monkeypatch):
    monkeypatch.setattr(metric_pictures, "_SPOILT", 0.0)
    rng, kinds = np.random.default_rng(0), parse_caption("a red circle, a blue square and a green triangle")
    for _ in range(20):
        picture = draw_metric_picture(rng, 64, 64, kinds)
        assert count_objects(picture.image) == dict.fromkeys(kinds, 1)
        assert picture.counts.sum() == 3


def test_spoilt_pictures_say_how(monkeypatch):
    monkeypatch.setattr(metric_pictures, "_SPOILT", 1.0)
    rng = np.random.default_rng(0)
    pictures = [draw_metric_picture(rng, 64, 64, ()) for _ in range(200)]
    away = np.array([picture.image.reshape(-1, 3).mean(axis=0) - 232 for picture in pictures])
    noise = np.array([picture.image.std(axis=(0, 1)).mean() for picture in pictures])
    told = np.array([picture.qualities for picture in pictures])
    darker = told[:, 2:].max(axis=1) <= 0  # elsewhere noise is cut off at white
    assert 20 < darker.sum() < 180
    assert np.abs(away - 14 * told[:, 2:])[darker].max() < 1
    assert np.abs(noise - 12 * told[:, 1])[darker & (told[:, 0] == 0)].max() < 0.6
    assert told[:, 1].std() > 0.2


def test_captions_that_nearly_fit_differ_in_one_kind():
    rng = np.random.default_rng(0)
    for _ in range(200):
        kinds = random_set(rng)
        other = nearly(rng, kinds)
        assert not is_held_out(kinds)
        assert not is_held_out(other)
        assert 1 <= len(set(other)) == len(other) <= 4
        assert len(set(kinds) ^ set(other)) in (1, 2)
        assert max(len(set(kinds) - set(other)), len(set(other) - set(kinds))) == 1
    drawn = [of_caption(rng, random_set(rng)) for _ in range(300)]
    assert 20 < sum(len(set(kinds)) < len(kinds) for kinds in drawn) < 80
