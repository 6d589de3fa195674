"""The order in which a rater sees pictures, and which."""

from itertools import pairwise

import pytest
from synthetic_run import SyntheticRun

from entscale_jax.errors import UserError
from entscale_jax.reports.rating.rating_order import rated_pairs, rating_order
from entscale_jax.reports.run_folder import read_run

PROMPTS = tuple(f"caption {number}" for number in range(6))
FIXED = {"rule": "fixed", "multiplier": 0.8}


def make_run(folder, **keys):
    return read_run(SyntheticRun(**{"prompts": PROMPTS, "metrics": (), **keys}).write(folder))


def pair_of(sample):
    return sample.size, sample.prompt, sample.seed


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("order") / "run", methods=("original", "entropy", FIXED))


@pytest.mark.parametrize("count", [2, 3, 12])
def test_every_picture_once_and_those_of_a_pair_apart(run, count):
    pairs = rated_pairs(run, count)
    for rater in map(str, range(200)):
        order = rating_order(pairs, rater)
        assert len({sample.cell for sample in order}) == len(order) == 3 * count
        places = [pair_of(sample) for sample in order]
        assert all(one != next_one for one, next_one in pairwise(places))


def test_orders_are_random_for_each_rater_and_the_same_again(run):
    pairs = rated_pairs(run)
    orders = {rater: [sample.cell for sample in rating_order(pairs, rater)] for rater in map(str, range(200))}
    assert len({tuple(order) for order in orders.values()}) == 200
    assert orders["7"] == [sample.cell for sample in rating_order(pairs, "7")]
    # A method is as often first of its pair as another: 200 raters, 12 pairs, a third each with deviation 23.
    firsts = {"original": 0, "entropy": 0, "fixed:0.8": 0}
    for rater in orders:
        seen = set()
        for sample in rating_order(pairs, rater):
            firsts[sample.method] += pair_of(sample) not in seen
            seen.add(pair_of(sample))
    assert all(abs(count - 800) < 5 * 23 for count in firsts.values())


def test_some_pairs_are_the_same_for_all_and_spread_over_sizes(run):
    few, more = rated_pairs(run, 4), rated_pairs(run, 7)
    assert few == more[:4]
    sizes = [pair.samples[0].size for pair in more]
    assert {sizes.count(size) for size in run.sizes} == {3, 4}


def test_pairs_that_lack_a_picture_are_left_out(tmp_path):
    errors = {((64, 64), "entropy", PROMPTS[0]): "RuntimeError: no memory"}
    synthetic = SyntheticRun(prompts=PROMPTS, metrics=(), errors=errors)
    folder = synthetic.write(tmp_path / "run")
    (lost,) = [
        row for row in synthetic.rows if (row["prompt"], row["width"], row["method"]) == (PROMPTS[1], 96, "original")
    ]
    (folder / lost["image"]).unlink()
    pairs = {(pair.samples[0].size.width, pair.samples[0].prompt) for pair in rated_pairs(read_run(folder))}
    assert pairs == {(width, prompt) for width in (64, 96) for prompt in PROMPTS} - {(64, PROMPTS[0]), (96, PROMPTS[1])}


def test_a_method_that_draws_at_some_sizes_only(tmp_path):
    errors = {((64, 64), "entropy", prompt): "x" for prompt in PROMPTS}
    synthetic = SyntheticRun(prompts=PROMPTS, metrics=(), methods=("original", "entropy", FIXED), errors=errors)
    folder = synthetic.write(tmp_path / "run")
    for row in synthetic.rows:
        if row["error"]:
            (folder / "rows" / f"{row['cell']}.json").unlink()
    pairs = rated_pairs(read_run(folder))
    assert sorted(len(pair.samples) for pair in pairs) == [2] * 6 + [3] * 6
    for rater in map(str, range(100)):
        places = [pair_of(sample) for sample in rating_order(pairs, rater)]
        assert len(places) == 30
        assert all(one != next_one for one, next_one in pairwise(places))


@pytest.mark.parametrize("keys", [{"methods": ("entropy",)}, {"prompts": PROMPTS[:1], "sizes": ((64, 64),)}])
def test_too_little_to_rate(tmp_path, keys):
    with pytest.raises(UserError, match="rating needs two pairs of pictures by two methods"):
        rated_pairs(make_run(tmp_path / "run", **keys))


@pytest.mark.parametrize("count", [-1, 0, 1, 13])
def test_counts_of_pairs_that_can_not_be(run, count):
    with pytest.raises(UserError, match=rf"{count} pairs: give 2 to 12, the pairs that are whole"):
        rated_pairs(run, count)
