"""Patch-FID of runs whose pictures are known: crops are cut here once more by hand, distances by their formula."""

import csv
import hashlib
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.linalg
from PIL import Image

from entscale_jax.errors import UserError
from entscale_jax.metrics.extractor import Extractor
from entscale_jax.png import png_bytes
from entscale_jax.reports.paper import patch_figures as module
from entscale_jax.reports.paper.patch_figures import patch_figures
from entscale_jax.reports.paper.tables_command import Choice, write_tables
from entscale_jax.reports.records import Size
from entscale_jax.reports.run_folder import read_run
from entscale_jax.scales import Scaling
from entscale_jax.sweep.plan import Cell
from entscale_jax.sweep.run_spec import dump_spec
from entscale_jax.sweep.spec import SweepSpec
from entscale_jax.sweep.store import RunFolder, cell_row

TRAIN = (16, 16)
SIZES = (TRAIN, (32, 24), (16, 8), (24, 16))  # (width, height)
CORNERS = {(32, 24): [(0, 0), (0, 16), (8, 0), (8, 16)], (24, 16): [(0, 0), (0, 8)], TRAIN: [(0, 0)]}
"""(top, left) of the crops of 16x16 that cover a picture from edge to edge."""
METHODS = (Scaling.of("original"), Scaling.of("entropy"))
PROMPTS = tuple(f"number {number}" for number in range(20))
ORIGINAL, ENTROPY = "original", "entropy"


def picture(size, method, prompt):
    rng = np.random.default_rng([*size, METHODS.index(method), PROMPTS.index(prompt)])
    low = 40 * METHODS.index(method) * (size != TRAIN)
    colours = rng.integers(low, 256, (4, 4, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(colours).resize(size, Image.Resampling.NEAREST))


@pytest.fixture
def make_run(tmp_path):
    """Writes a run as a sweep does, with its pictures; `spec` may be changed."""

    def make(name="run", sizes=SIZES, prompts=PROMPTS, methods=METHODS, **changes):
        run = RunFolder(tmp_path / name)
        spec = {
            **{"name": name, "models": ["scenes"], "methods": [method.label for method in methods]},
            **{"sizes": [f"{width}x{height}" for width, height in sizes], "prompts": list(prompts)},
            **{"seeds": [0], "train_size": f"{TRAIN[0]}x{TRAIN[1]}", "metrics": [], **changes},
        }
        cells = [_cell(size, method, prompt) for size in sizes for method in methods for prompt in prompts]
        with run.opened():
            run.prepare(dump_spec(SweepSpec.model_validate(spec), prompts, {"scenes": "ab" * 32}), cells)
            for cell in cells:
                png = png_bytes(picture((cell.width, cell.height), cell.method, cell.prompt), {})
                told = {"seconds": 1.0, "sha256": hashlib.sha256(png).hexdigest(), "error": None, "entropy_layers": []}
                run.write(cell, png, {**cell_row(cell), **told})
        return run.path

    return make


def _cell(size, method, prompt):
    fixed = {"model": "scenes", "weights_hash": "ab" * 32, "train_size": TRAIN, "sampler": "ddim", "steps": 2}
    return Cell(width=size[0], height=size[1], method=method, prompt=prompt, seed=0, guidance=2.0, **fixed)


class Seeing:
    """An extractor of the mean colour of pictures, which counts what it is shown and may be stopped."""

    def __init__(self, code="0123456789abcdef", stop=None):
        self.shown, self.stop = 0, stop
        self.extractor = Extractor("scenes", code, 3, "none", self._run)

    def __call__(self):
        return self.extractor

    def _run(self, images):
        self.shown += 1
        if self.shown == self.stop:
            raise KeyboardInterrupt
        return images.reshape(len(images), -1, 3).mean(axis=1, dtype=np.float32) / 64


def crops(size, method, prompts=PROMPTS, corners=None):
    """Mean colours of the crops, in float64."""
    pictures = [picture(size, method, prompt) for prompt in prompts]
    found = [one[top : top + 16, left : left + 16] for one in pictures for top, left in corners or CORNERS[size]]
    return np.array([one.reshape(-1, 3).mean(axis=0) for one in found]) / 64


def frechet(first, second):
    """Heusel et al. 2017, equation 6, by the matrix root."""
    step = first.mean(0) - second.mean(0)
    root = scipy.linalg.sqrtm(np.cov(first.T) @ np.cov(second.T))
    return float(step @ step + np.trace(np.cov(first.T) + np.cov(second.T) - 2 * np.real(root)))


def values(figures):
    return {(str(size), method): figure.value for (size, method), figure in figures.items()}


def test_figures_are_those_of_crops_cut_by_hand(make_run):
    figures = patch_figures(read_run(make_run()), Seeing())
    reference = crops(TRAIN, METHODS[0])
    # Neither the training size nor one that holds no crop of it.
    assert {(str(size), method) for size, method in figures} == {
        *((size, method) for size in ("32x24", "24x16") for method in (ORIGINAL, ENTROPY))
    }
    for (size, method), figure in figures.items():
        place, number = (size.width, size.height), METHODS.index(Scaling.of(method))
        assert figure.value == pytest.approx(frechet(crops(place, METHODS[number]), reference), rel=1e-4)
        assert (figure.count, figure.pictures) == (len(PROMPTS) * len(CORNERS[place]), len(PROMPTS))
        assert (figure.reference_count, figure.reference_pictures) == (20, 20)
        assert (figure.name, figure.crop, figure.interval) == ("scenes_patch_fid", "16x16 grid", None)
        assert figure.extractor == "scenes 0123456789abcdef"
    # The controls: crops at the wrong places, and of the other method, are far outside of that bound.
    found = values(figures)["32x24", ORIGINAL]
    wrong = frechet(crops((32, 24), METHODS[0], corners=[(0, 0), (0, 8), (4, 0), (4, 8)]), reference)
    assert abs(wrong / found - 1) > 1e-2
    assert values(figures)["32x24", ENTROPY] / found > 1.1


def test_what_was_seen_is_kept_and_serves_without_the_pictures(make_run):
    folder = make_run()
    first = Seeing()
    found = values(patch_figures(read_run(folder), first))
    for path in (folder / "images").iterdir():
        path.unlink()
    again = Seeing()
    assert values(patch_figures(read_run(folder), again)) == found
    assert (first.shown > 0, again.shown) == (True, 0)
    # The controls: for another extractor and other crops the pictures would have to be looked at.
    with pytest.raises(UserError, match="is missing, and patch-FID needs all of them"):
        patch_figures(read_run(folder), Seeing("f" * 16))
    spec = folder / "spec.yaml"
    spec.write_text(spec.read_text().replace("train_size: 16x16", "train_size: 16x8"))
    with pytest.raises(UserError, match="is missing, and patch-FID needs all of them"):
        patch_figures(read_run(folder), Seeing())


def test_a_stopped_look_goes_on_to_the_same_bits(make_run, monkeypatch):
    monkeypatch.setattr(module, "AT_ONCE", 1)
    whole = Seeing()
    expected = values(patch_figures(read_run(make_run("undisturbed")), whole))
    folder = make_run()
    with pytest.raises(KeyboardInterrupt):
        patch_figures(read_run(folder), Seeing(stop=whole.shown - 3))
    rest = Seeing()
    assert values(patch_figures(read_run(folder), rest)) == expected
    assert 0 < rest.shown < whole.shown / 2


def test_a_run_that_has_grown_is_looked_at_anew(make_run):
    small = make_run("small", prompts=PROMPTS[:10])
    before = values(patch_figures(read_run(small), Seeing()))
    grown = make_run("small")
    after = values(patch_figures(read_run(grown), Seeing()))
    assert after == values(patch_figures(read_run(make_run("whole")), Seeing()))
    assert after != before


@pytest.mark.parametrize("kind", ["run", "folder", "parquet"])
def test_references(make_run, tmp_path, kind):
    run = make_run(sizes=SIZES[1:2])
    prompts = PROMPTS[:15]
    if kind == "run":
        place = make_run("other", sizes=SIZES[:1], prompts=prompts)
        expected, named = crops(TRAIN, METHODS[0], prompts), "other, its own pictures at 16x16"
    else:
        size = (24, 16)
        place = tmp_path / "real"
        place.mkdir()
        for number, prompt in enumerate(prompts):
            Image.fromarray(picture(size, METHODS[1], prompt)).save(place / f"{number:02d}.png")
        expected, named = crops(size, METHODS[1], prompts), "real (15 pictures)"
        if kind == "parquet":
            data = [path.read_bytes() for path in sorted(place.iterdir())]
            place = tmp_path / "real.parquet"
            pq.write_table(pa.table({"image": data}), place)
            named = "real.parquet (15 pictures)"
    figure = patch_figures(read_run(run), Seeing(), place)[Size("scenes", 32, 24), ORIGINAL]
    assert figure.value == pytest.approx(frechet(crops((32, 24), METHODS[0]), expected), rel=1e-4)
    assert (figure.reference, figure.reference_count, figure.reference_pictures) == (named, len(expected), 15)


def _alter(folder, change):
    row = next(path for path in sorted((folder / "rows").iterdir()) if json.loads(path.read_text())["height"] == 24)
    change(folder, row, json.loads(row.read_text()))


def _repaint(folder, path, row):
    (folder / row["image"]).write_bytes(png_bytes(np.zeros((24, 32, 3), np.uint8), {}))


def _forget_hash(folder, path, row):
    path.write_text(json.dumps({**row, "sha256": None}))


def _lose(folder, path, row):
    (folder / row["image"]).unlink()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_repaint, "has the SHA-256 .* and its row tells of .*: it was changed after it was drawn"),
        (_forget_hash, "has no hash in its row to be held to"),
        (_lose, "is missing, and patch-FID needs all of them"),
    ],
)
def test_a_picture_that_is_not_that_of_its_row_is_told(make_run, change, says):
    folder = make_run()
    _alter(folder, change)
    with pytest.raises(UserError, match=says):
        patch_figures(read_run(folder), Seeing())


def test_a_reference_that_does_not_fit_is_told(make_run, tmp_path):
    run = read_run(make_run(sizes=SIZES[1:]))
    with pytest.raises(UserError, match="has no pictures of scenes at 16x16, its training size, by rule original"):
        patch_figures(run, Seeing())
    few = make_run("few", sizes=SIZES[:1], prompts=PROMPTS[:3])
    with pytest.raises(UserError, match=r"needs a reference of more than 3 crops.*few, its own pictures .* has 3"):
        patch_figures(run, Seeing(), few)
    (tmp_path / "small").mkdir()
    for number in range(9):
        Image.fromarray(np.zeros((8, 16, 3), np.uint8)).save(tmp_path / "small" / f"{number}.png")
    with pytest.raises(UserError, match=r"small/0.png is 16x8, and patch-FID cuts .* 16x16: take smaller pictures"):
        patch_figures(run, Seeing(), tmp_path / "small")


def test_a_place_where_nothing_can_be_kept_is_told(make_run):
    folder = make_run()
    (folder / "patches").write_text("")
    with pytest.raises(UserError, match=r"folder .*/patches can't be written \(File exists\): free its place"):
        patch_figures(read_run(folder), Seeing())


def test_the_table_says_what_it_is_of(make_run, monkeypatch):
    monkeypatch.setattr("entscale_jax.reports.paper.tables_command._scenes", Seeing())
    folder = make_run(metrics=["scenes_patch_fid"])
    text = write_tables(folder)
    assert "40 to 80 crops of 20 images a figure; compared with its own pictures at 16x16, 20 crops of 20" in text
    assert "extractor scenes 0123456789abcdef, resize none, crop 16x16 grid; no interval: it is biased" in text
    assert "not above the training size in both sides, so without crops: 16x16, 16x8" in text
    rows = list(csv.DictReader(io.StringIO(write_tables(folder, form="csv"))))
    row = next(one for one in rows if (one["size"], one["method"]) == ("32x24", "entropy"))
    assert (row["metric"], row["count"], row["pictures"], row["crop"]) == ("scenes_patch_fid", "80", "20", "16x16 grid")
    assert float(row["difference"]) == pytest.approx(
        frechet(crops((32, 24), METHODS[1]), crops(TRAIN, METHODS[0]))
        - frechet(crops((32, 24), METHODS[0]), crops(TRAIN, METHODS[0])),
        rel=1e-3,
    )
    # A run that did not ask for it has it where the command does.
    other = make_run("other")
    with pytest.raises(UserError, match="measured nothing that a table is made of"):
        write_tables(other)
    assert "40 to 80 crops" in write_tables(other, Choice(measure=("scenes_patch_fid",)))


@pytest.mark.parametrize(
    ("choice", "sizes", "says"),
    [
        (Choice(measure=("fid",)), SIZES, "--measure 'fid' is unknown: give scenes_patch_fid or patch_fid"),
        (Choice(measure=("patch_fid",)), SIZES, "patch_fid needs Inception's weights: give --inception FILE"),
        (Choice(measure=("scenes_patch_fid",)), (TRAIN, (16, 8)), "needs pictures above the training size in both"),
    ],
)
def test_what_can_not_be_measured_is_told(make_run, monkeypatch, choice, sizes, says):
    monkeypatch.setattr("entscale_jax.reports.paper.tables_command._scenes", Seeing())
    folder = make_run(sizes=sizes, metrics=[])
    for path in (folder / "rows").glob("*.json"):
        row = json.loads(path.read_text())
        path.write_text(json.dumps({**row, "objects_exact": True, "objects_missing": 0, "objects_extra": 0}))
    with pytest.raises(UserError, match=says):
        write_tables(folder, choice)
