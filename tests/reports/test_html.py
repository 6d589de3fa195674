"""The whole page, made from a synthetic run and read back as a browser would."""

import base64
import hashlib
import html
import io
import json
import math
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from page import Page
from PIL import Image
from synthetic_run import SyntheticRun

from entscale_jax.errors import UserError
from entscale_jax.reports import write_report

CIRCLE, SQUARE = "a red circle", "a blue square"
HOSTILE = "<script>alert('x')</script> & \"more\" <img src=http://example.org/x.png>"


def make_page(run: SyntheticRun, folder: Path) -> Page:
    return Page(write_report(run.write(folder)).read_text(encoding="utf-8"))


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "run"


def test_path_is_that_of_the_design(folder):
    assert write_report(SyntheticRun().write(folder)) == folder / "report" / "index.html"
    assert [path.name for path in (folder / "report").iterdir()] == ["index.html"]


def test_page_needs_nothing_from_elsewhere(folder):
    page = make_page(SyntheticRun(), folder)
    assert page.references
    assert [text for text in page.references if not text.startswith("#")] == []
    assert not {"link", "iframe", "object"} & set(page.tags)
    # The reader of this test does see what a page fetches.
    assert Page('<script src="http://example.org/x.js"></script>').references == ["http://example.org/x.js"]


def test_only_the_script_of_the_page_may_run(folder):
    text = write_report(SyntheticRun().write(folder)).read_text(encoding="utf-8")
    (code,) = Page(text).scripts
    allowed = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    (policy,) = re.findall('http-equiv="Content-Security-Policy" content="(.*?)"', text)
    policy = html.unescape(policy)
    assert "default-src 'none'" in policy
    assert re.findall("script-src (.*?);", policy) == [f"'sha256-{allowed}'"]


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def test_pictures_stand_in_the_page_small_and_beside_it_whole_in_pairs(folder):
    run = SyntheticRun(seeds=(0, 5))
    page = make_page(run, folder)
    cells = [
        next(
            row
            for row in run.rows
            if (row["width"], row["height"], row["method"], row["prompt"], row["seed"]) == (*size, method, prompt, seed)
        )
        for size in run.sizes
        for prompt in run.prompts
        for seed in run.seeds
        for method in run.methods
    ]
    shown = [(picture["prompt"], picture["method"], picture["seed"]) for picture in page.pictures]
    assert shown == [(cell["prompt"], cell["method"], cell["seed"]) for cell in cells]
    for picture, cell in zip(page.pictures, cells, strict=True):
        assert (folder / "report" / picture["file"]).resolve() == (folder / cell["image"]).resolve()
        kind, data = picture["thumbnail"].split(",")
        assert kind == "data:image/webp;base64"
        np.testing.assert_array_equal(pixels(base64.b64decode(data)), pixels((folder / cell["image"]).read_bytes()))


def test_the_link_to_a_pair_outlives_a_larger_run(tmp_path):
    small = make_page(SyntheticRun(), tmp_path / "small").data["cards"]
    large = SyntheticRun(sizes=((32, 32), (64, 64), (96, 64)), prompts=("more", CIRCLE, SQUARE), methods=("entropy",))
    found = {card["id"]: card["prompt"] for card in make_page(large, tmp_path / "large").data["cards"]}
    assert len(found) == 9
    assert [found[card["id"]] for card in small] == [card["prompt"] for card in small]


def test_every_text_is_escaped(folder):
    size, other = (64, 64), (96, 64)
    run = SyntheticRun(
        prompts=(HOSTILE, CIRCLE), models=("</td>scenes<b>",), errors={(size, "entropy", HOSTILE): HOSTILE}
    )
    text = write_report(run.write(folder)).read_text(encoding="utf-8")
    page = Page(text)
    # The page's data and its code.
    assert text.count("<script") == text.count("</script") == page.tags.count("script") == 2
    assert len(page.scripts) == 1
    assert "http://example.org" not in "".join(page.references)
    assert {picture["prompt"] for picture in page.pictures} == {HOSTILE, CIRCLE}
    assert HOSTILE in page.row("64x64", "entropy", HOSTILE, "0")[4]
    assert page.row("weights of </td>scenes<b>")
    assert other in run.sizes


def test_object_counts(folder):
    size = (96, 64)
    objects = {
        (size, "original", CIRCLE): (False, 0, 3),
        (size, "original", SQUARE): (True, 0, 0),
        (size, "entropy", CIRCLE): (False, 1, 0),
        (size, "entropy", SQUARE): (False, 0, 1),
    }
    page = make_page(SyntheticRun(objects=objects), folder)
    # Of two images the mean of a resample is either value or their mean; the 95% interval holds both.
    assert page.row("96x64", "original", "2")[3:] == [
        "50.0 (0.0 to 100.0)",
        "0.00 (0.00 to 0.00)",
        "1.50 (0.00 to 3.00)",
    ]
    assert page.row("entropy", "2", "0.0 (0.0 to 0.0)") == [
        *("entropy", "2", "0.0 (0.0 to 0.0)", "0.50 (0.00 to 1.00)", "0.50 (0.00 to 1.00)")
    ]
    notes = {(picture["method"], picture["prompt"]): picture["note"] for picture in page.pictures[4:]}
    assert notes == {
        ("original", CIRCLE): "3 extra",
        ("original", SQUARE): "exact",
        ("entropy", CIRCLE): "1 missing",
        ("entropy", SQUARE): "1 extra",
    }


def test_differences_are_of_pairs_and_zero_in_the_interval_is_said(folder):
    size, prompts = (96, 64), tuple(f"caption {number}" for number in range(8))
    objects = {(size, "original", prompt): (False, 0, 2 + number) for number, prompt in enumerate(prompts)}
    objects |= {(size, "entropy", prompt): (False, number % 2, 1 + number) for number, prompt in enumerate(prompts)}
    page = make_page(SyntheticRun(prompts=prompts, objects=objects), folder)
    different = page.row("96x64", "entropy", "8")
    # Each pair has one extra object fewer, though the counts themselves spread over seven.
    assert different[5] == "−1.00 (−1.00 to −1.00)"
    assert different[3] == "0.0 (0.0 to 0.0)"
    assert different[6] == "more missing, fewer extra; others include 0"
    same = page.row("64x64 control: N = T", "entropy", "8")
    assert same[6] == "all include 0"


def test_a_pair_that_lacks_one_side_counts_in_no_difference(folder):
    run = SyntheticRun(errors={((96, 64), "entropy", CIRCLE): "RuntimeError: no memory"})
    page = make_page(run, folder)
    assert page.row("96x64", "original", "2")
    assert page.row("96x64", "entropy", "1")[6] == "all include 0"


def test_control_is_named_only_where_n_is_t(folder):
    page = make_page(SyntheticRun(), folder)
    scale = next(table for table in page.tables if table[0][1:3] == ["tokens N", "in training T"])
    assert [row[0] for row in scale[1:]] == ["64x64 control: N = T", "96x64"]


def test_multipliers_are_those_of_the_paper(folder):
    methods = ("original", "entropy", {"rule": "fixed", "multiplier": 1.3})
    page = make_page(SyntheticRun(methods=methods), folder)
    expected = [math.sqrt(math.log(now) / math.log(then)) for now, then in ((24 * 16, 256), (12 * 8, 64))]
    assert page.row("96x64", "384 / 96") == [
        *("96x64", "384 / 96", "256 / 64", "1.000 / 1.000", " / ".join(f"{value:.3f}" for value in expected)),
        "1.300 / 1.300",
    ]
    assert expected[0] > 1.03


def test_entropy_is_the_mean_over_layers_and_steps(folder):
    page = make_page(SyntheticRun(), folder)
    for tokens, start in ((384, ("96x64", "256")), (96, ("64", "96"))):
        uniform = math.log(tokens)
        row = page.row(*start)
        told = [f"{mean:.3f} ({mean:.3f} to {mean:.3f})" for mean in (uniform - 0.5, uniform - 0.75)]
        assert row[-4:] == [f"{uniform:.2f}", "2", *told]


def test_seconds_keep_compiling_apart(folder):
    page = make_page(SyntheticRun(sizes=((96, 64),)), folder)
    assert page.row("96x64", "entropy", "4") == ["96x64", "entropy", "4", "7", "12.2", "3.5", "0.50"]
    assert page.row("denoise") == ["denoise", "4", "3", "1", "9.8"]
    assert page.row("convert")[1] == "-"


def test_what_ran_where(folder):
    page = make_page(SyntheticRun(), folder)
    assert page.row("commit") == ["commit", "c0ffee"]
    assert page.row("versions.jax") == ["versions.jax", "0.10.2"]
    assert page.row("devices.0.device") == ["devices.0.device", "TFRT_CPU_0"]
    assert page.row("weights of scenes") == ["weights of scenes", "0123abcd" * 8]


def test_failed_cells_keep_their_error(folder):
    page = make_page(SyntheticRun(errors={((64, 64), "entropy", SQUARE): "RuntimeError: no memory"}), folder)
    assert page.row("64x64", "entropy", SQUARE, "0")[4] == "RuntimeError: no memory"
    assert "1 of 8 cells failed" in page.text
    assert len(page.pictures) == 7


def test_a_whole_run_says_nothing_of_failures_or_missing_cells(folder):
    page = make_page(SyntheticRun(), folder)
    assert "Unfinished" not in page.text
    assert "failed" not in page.text
    assert "8 images of scenes at 2 sizes" in page.text


def test_an_unfinished_run_says_how_much_is_done(folder):
    SyntheticRun().write(folder)
    for path in sorted((folder / "rows").iterdir())[5:]:
        path.unlink()
    page = Page(write_report(folder).read_text())
    assert "Unfinished: 5 of 8 cells are done" in page.text
    assert [picture["note"] for picture in page.all_pictures if picture["state"] == "open"] == ["not drawn yet"] * 3
    assert len(page.pictures) == 5


def test_what_limits_leave_out_is_not_called_missing(folder):
    limited = SyntheticRun(limits={"entropy": 1})
    limited.write(folder)
    beyond = [row for row in limited.rows if row["method"] == "entropy" and row["prompt"] == SQUARE]
    for row in beyond:
        (folder / "rows" / f"{row['cell']}.json").unlink()
    page = Page(write_report(folder).read_text())
    assert "Unfinished" not in page.text
    assert [picture["state"] for picture in page.all_pictures if picture["state"] != "drawn"] == ["left out"] * 2
    # The control: without limits the same cells are missing.
    spec = folder / "spec.yaml"
    spec.write_text(spec.read_text().replace("  limits:\n    entropy: 1\n", ""))
    page = Page(write_report(folder).read_text())
    assert [picture["state"] for picture in page.all_pictures if picture["state"] != "drawn"] == ["open"] * 2


def test_a_seed_for_each_caption_is_planned_once(folder):
    page = make_page(SyntheticRun(prompts=(CIRCLE, SQUARE, CIRCLE), seeds={"first": 7}), folder)
    assert "Unfinished" not in page.text
    assert "12 images of scenes at 2 sizes (width x height in pixels), 3 pairs" in " ".join(page.text.split())


def test_a_lost_picture_is_named(folder):
    run = SyntheticRun()
    run.write(folder)
    (folder / run.rows[0]["image"]).unlink()
    page = Page(write_report(folder).read_text())
    lost = [picture["note"] for picture in page.all_pictures if picture["state"] == "lost"]
    assert lost == [f"{run.rows[0]['image']} is missing"]
    assert len(page.pictures) == 7


def test_a_picture_cut_in_the_middle_is_named(folder):
    run = SyntheticRun()
    image = run.write(folder) / run.rows[3]["image"]
    image.write_bytes(image.read_bytes()[:50])
    page = Page(write_report(folder).read_text())
    lost = [picture["note"] for picture in page.all_pictures if picture["state"] == "lost"]
    assert lost == [f"{run.rows[3]['image']} can't be read"]


def test_every_plot_has_a_text_alternative(folder):
    page = make_page(SyntheticRun(), folder)
    assert page.tags.count("svg") == 4
    assert len([label for label in page.labels if label.startswith("Plot of")]) == 4


def test_a_run_without_metrics(folder, monkeypatch):
    info = SimpleNamespace(
        weights_hash="0123abcd" * 8,
        bucket=lambda height, width: (height, width),
        tokens=lambda bucket: (bucket[0] * bucket[1] // 16, bucket[0] * bucket[1] // 64),
        train_tokens=(256, 64),
        levels=2,
        unet=SimpleNamespace(self_attention={}),
    )
    monkeypatch.setattr("entscale_jax.reports.levels.describe", lambda model, train_size: info)
    page = make_page(SyntheticRun(metrics=()), folder)
    assert "the sweep has no metric objects" in page.text
    assert "the sweep has no metric entropy" in page.text
    assert "svg" not in page.tags
    assert page.row("96x64", "384 / 96")[4] == "1.036 / 1.048"


def test_multipliers_are_not_taken_from_other_weights(folder, monkeypatch):
    info = SimpleNamespace(weights_hash="ff" * 32)
    monkeypatch.setattr("entscale_jax.reports.levels.describe", lambda model, train_size: info)
    assert "Not known for all sizes" in make_page(SyntheticRun(metrics=()), folder).text


def test_multipliers_of_a_model_that_is_gone(folder):
    run = SyntheticRun(metrics=(), models=("no-such-folder/model",))
    assert "Not known for all sizes" in make_page(run, folder).text


def test_several_models_are_told_apart(folder):
    page = make_page(SyntheticRun(models=("one", "two")), folder)
    assert page.row("one 96x64", "entropy", "4")
    assert page.row("two 96x64", "entropy", "4")
    assert len(page.pictures) == 16
    assert "16 images of one, two at 2 sizes" in page.text


def test_the_same_run_gives_the_same_page(folder):
    SyntheticRun().write(folder)
    assert write_report(folder).read_bytes() == write_report(folder).read_bytes()


def test_missing_folder(tmp_path):
    with pytest.raises(UserError, match=r"nowhere is no folder: give the run folder"):
        write_report(tmp_path / "nowhere")


def test_a_file_is_no_run(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is no folder"):
        write_report(tmp_path / "file")


def test_another_folder_is_no_run(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(UserError, match=r"holds no spec\.yaml, so it is no run"):
        write_report(tmp_path)
    assert not (tmp_path / "report").exists()


def test_a_run_without_rows(folder):
    SyntheticRun().write(folder)
    for path in (folder / "rows").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="has no finished cell yet: go on with `entscale sweep"):
        write_report(folder)


def test_a_broken_row_is_named(folder):
    run = SyntheticRun()
    row = run.write(folder) / "rows" / f"{run.rows[3]['cell']}.json"
    row.write_text(row.read_text()[:20])
    with pytest.raises(UserError, match=rf"{row.name} can't be read.*remove it"):
        write_report(folder)


@pytest.mark.parametrize("text", ["sweep: {sizes: [1x1]}", "cluster_name: x", "- a", "a: [b", ""])
def test_a_spec_that_is_none(folder, text):
    SyntheticRun().write(folder)
    (folder / "spec.yaml").write_text(text)
    with pytest.raises(UserError, match=r"spec\.yaml"):
        write_report(folder)


def test_an_unwritable_place(folder):
    SyntheticRun().write(folder)
    (folder / "report").write_text("in the way")
    with pytest.raises(UserError, match="can't be written"):
        write_report(folder)


def test_an_old_page_stays_where_a_new_one_cannot_be_made(folder):
    SyntheticRun().write(folder)
    target = write_report(folder)
    before = target.read_bytes()
    (folder / "programs.json").write_text(json.dumps({"buckets": [{"model": "scenes"}]}))
    with pytest.raises(UserError, match="a record without 'width': written by another version"):
        write_report(folder)
    assert target.read_bytes() == before
