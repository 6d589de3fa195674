"""Cosines of image and caption are told with what scored them: weights, resize and crop, as each row holds it."""

import csv
import io
import json

import pytest
from synthetic_run import SyntheticRun

from entscale_jax.reports.paper.paper_tables import make_tables
from entscale_jax.reports.paper.table_formats import as_csv, markdown
from entscale_jax.reports.run_folder import read_run

CLIP = "clip 0123456789abcdef, resize PIL bicubic, shorter side 224, crop 224x224"
OTHER = "clip ffffffffffffffff, resize PIL bicubic, shorter side 224, crop 224x224"
SCENES = "scenes_clip 89abcdef01234567, resize none"


@pytest.fixture
def make_run(tmp_path):
    """A run of four images a method, whose cosines are 0.25 and 0.5 by the caption; `scorer` names that of a row."""

    def make(scorer):
        folder = SyntheticRun(metrics=("objects",), seeds=(0, 1), sizes=((64, 64),)).write(tmp_path / "run")
        for path in (folder / "rows").glob("*.json"):
            row = json.loads(path.read_text())
            cosine = 0.25 if row["prompt"] == "a red circle" else 0.5
            path.write_text(json.dumps({**row, "clip": cosine, "scenes_clip": cosine, **scorer(row)}))
        return read_run(folder)

    return make


def _rows(tables, metric):
    return [row for row in csv.DictReader(io.StringIO(as_csv(tables))) if row["metric"] == metric]


def test_figures_and_notes_tell_the_scorer(make_run):
    tables = make_tables(make_run(lambda row: {"clip_scorer": CLIP, "scenes_clip_scorer": SCENES}))
    for row in _rows(tables, "clip"):
        assert (row["value"], row["count"]) == ("0.375", "4")
        assert (row["extractor"], row["resize"]) == ("clip 0123456789abcdef", "PIL bicubic, shorter side 224")
        assert (row["crop"], row["pictures"]) == ("224x224", "")
    for row in _rows(tables, "scenes_clip"):
        assert (row["extractor"], row["resize"], row["crop"]) == ("scenes_clip 89abcdef01234567", "none", "none")
    assert {(row["extractor"], row["crop"]) for row in _rows(tables, "objects_exact")} == {("", "none")}
    text = markdown(tables)
    assert f"; extractor {CLIP}.\n" in text
    assert f"; extractor {SCENES}, no crop.\n" in text
    assert text.count("\n4 images a figure; ") == len(tables)


def test_rows_that_do_not_tell_it_are_not_said_to_be_resized_by_nothing(make_run):
    tables = make_tables(make_run(lambda row: {}))
    for metric in ("clip", "scenes_clip"):
        assert {(row["extractor"], row["resize"], row["crop"]) for row in _rows(tables, metric)} == {("", "", "")}
    assert markdown(tables).count("extractor, resize and crop were not recorded") == 2


@pytest.mark.parametrize("second", [OTHER, None])
def test_scores_of_other_weights_are_not_mixed(make_run, second):
    run = make_run(lambda row: {"clip_scorer": CLIP if row["seed"] == 0 else second})
    rows = _rows(make_tables(run), "clip")
    told = "clip ffffffffffffffff" if second else ""
    assert sorted((row["extractor"], row["method"], row["count"], row["value"]) for row in rows) == sorted(
        (extractor, method, "2", "0.375")
        for extractor in ("clip 0123456789abcdef", told)
        for method in ("original", "entropy")
    )
    assert {row["difference"] for row in rows if row["method"] == "entropy"} == {"0.0"}
