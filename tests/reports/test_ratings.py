"""Table 3 from stated scores: means, differences within raters, and what intervals can be."""

import json
from itertools import product

import numpy as np
import pytest
from synthetic_run import SyntheticRun

from entscale_jax.errors import UserError
from entscale_jax.reports.paper.paper_tables import make_tables
from entscale_jax.reports.rating.agreement import Metric
from entscale_jax.reports.rating.ratings import rating_tables, read_ratings
from entscale_jax.reports.run_folder import read_run

PROMPTS = ("one", "two", "three")
SMALL, WIDE = (64, 64), (96, 64)
# Rater -> size, method -> the scores of the three captions; None was not rated.
GIVEN = {
    "ann": {
        (SMALL, "original"): (2, 4, 6),
        (SMALL, "entropy"): (4, 5, 9),
        (WIDE, "original"): (8, None, None),
    },
    # Ten points milder, and without the first caption under `entropy`.
    "bob": {(SMALL, "original"): (4, 6, 8), (SMALL, "entropy"): (None, 7, 10)},
}


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory):
    run = SyntheticRun(prompts=PROMPTS, sizes=(SMALL, WIDE), metrics=())
    folder = run.write(tmp_path_factory.mktemp("ratings") / "run")
    cells = {(row["width"], row["height"], row["method"], row["prompt"]): row["cell"] for row in run.rows}
    (folder / "ratings").mkdir()
    for rater, given in GIVEN.items():
        lines = [
            {"cell": cells[*size, method, prompt], "score": score, "time": "t"}
            for (size, method), scores in given.items()
            for prompt, score in zip(PROMPTS, scores, strict=True)
            if score is not None
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / "ratings" / f"{rater}.jsonl").write_text(text)
    return folder


@pytest.fixture(scope="module")
def tables(synthetic):
    return rating_tables(read_run(synthetic), read_ratings(synthetic)[0])


def bounds(*values):
    """The 95% interval of the mean, of every way to resample `values` once each."""
    means = np.mean(list(product(values, repeat=len(values))), axis=1)
    return tuple(np.quantile(means, (0.025, 0.975), method="inverted_cdf"))


def test_means_are_over_pictures_of_the_means_of_raters(tables):
    rows = {(row.size, row.method): row for row in tables.means}
    assert set(rows) == {("64x64", "original"), ("64x64", "entropy"), ("96x64", "original")}
    original = rows["64x64", "original"]
    assert (original.mean.mean, original.mean.count, original.answers) == (5, 3, 6)  # of 3, 5 and 7
    assert (original.mean.low, original.mean.high) == pytest.approx(bounds(3, 5, 7))
    assert rows["64x64", "entropy"].mean.mean == pytest.approx((4 + 6 + 9.5) / 3)
    assert rows["64x64", "entropy"].answers == 5


def test_differences_are_within_raters(tables):
    (row,) = tables.differences
    assert (row.size, row.method, row.baseline) == ("64x64", "entropy", "original")
    # Ann: 2, 1, 3; Bob: none, 1, 2. The difference of the means would be 1.5, as the milder rater lacks a picture.
    assert row.difference.mean == pytest.approx((2 + 1 + 2.5) / 3)
    assert (row.difference.low, row.difference.high) == pytest.approx(bounds(2, 1, 2.5))
    means = {row.method: row.mean.mean for row in tables.means if row.size == "64x64"}
    assert means["entropy"] - means["original"] == pytest.approx(1.5)


def test_agreement_is_of_pictures_that_two_rated(tables):
    by_size = {row.size: row for row in tables.agreement}
    assert [*by_size] == [None, "64x64", "96x64"]
    assert (by_size["64x64"].raters, by_size["64x64"].alpha.count) == (2, 5)
    assert by_size["64x64"].metric is Metric.ORDINAL
    assert by_size["96x64"].alpha is None
    assert by_size[None].alpha == by_size["64x64"].alpha


def test_the_metric_can_be_named(synthetic):
    tables = rating_tables(read_run(synthetic), read_ratings(synthetic)[0], metric=Metric.INTERVAL)
    # By hand: pairs (2, 4), (4, 6), (6, 8), (5, 7), (9, 10), so observed 2 (4 + 4 + 4 + 4 + 1) = 34; expected over
    # 2, 4, 4, 6, 6, 8, 5, 7, 9, 10: twice 10 times the sum of squares less twice the square of the sum, over 9.
    values = (2, 4, 4, 6, 6, 8, 5, 7, 9, 10)
    expected = 2 * (10 * sum(value**2 for value in values) - sum(values) ** 2) / 9
    assert tables.agreement[0].alpha.mean == pytest.approx(1 - 34 / expected)


def test_a_file_cut_in_the_middle_is_told_and_the_rest_counts(synthetic, tmp_path):
    folder = tmp_path / "cut"
    (folder / "ratings").mkdir(parents=True)
    content = (synthetic / "ratings" / "ann.jsonl").read_bytes()
    (folder / "ratings" / "ann.jsonl").write_bytes(content[:-10])
    scores, notes = read_ratings(folder)
    assert len(scores["ann"]) == 6
    assert notes == [f"{folder / 'ratings' / 'ann.jsonl'}: line 7 is no whole answer and is left out"]
    assert (folder / "ratings" / "ann.jsonl").read_bytes() == content[:-10]


def test_cells_of_another_run_count_nowhere(synthetic):
    run, (scores, _) = read_run(synthetic), read_ratings(synthetic)
    assert rating_tables(run, {**scores, "eve": {"0123": 1}}) == rating_tables(run, scores)


def test_a_run_without_ratings(tmp_path):
    with pytest.raises(UserError, match="has no ratings yet: have its pictures rated with `entscale rate"):
        read_ratings(tmp_path)


def test_table_3_stands_among_the_tables(synthetic):
    table = next(table for table in make_tables(read_run(synthetic)) if table.metric == "rating")
    places = {(str(size), method): entry for (size, method), entry in table.entries.items()}
    first, other = places["64x64", "original"], places["64x64", "entropy"]
    assert (first.figure.value, first.figure.count) == (5.0, 3)
    assert other.figure.value == pytest.approx(6.5)
    assert other.difference.mean == pytest.approx((2 + 1 + 2.5) / 3)
    assert "2 raters, 12 answers" in table.notes
    assert any(note.startswith("Krippendorff's alpha (ordinal) at 64x64: ") for note in table.notes)
