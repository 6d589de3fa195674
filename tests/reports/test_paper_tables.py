"""Tables of a run whose features and columns are known: distances by their formulas, written here once more."""

import csv
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
from entscale_jax.reports.paper.paper_tables import make_tables
from entscale_jax.reports.paper.published import published
from entscale_jax.reports.paper.table_formats import as_csv, latex, markdown
from entscale_jax.reports.paper.tables_command import Choice, write_section
from entscale_jax.reports.records import Size
from entscale_jax.reports.run_folder import read_run
from entscale_jax.scales import Scaling
from entscale_jax.sweep import compaction
from entscale_jax.sweep.plan import Cell
from entscale_jax.sweep.run_spec import dump_spec
from entscale_jax.sweep.spec import SweepSpec
from entscale_jax.sweep.store import RunFolder, cell_row

PNG = b"\x89PNG\r\n\x1a\n....IEND\xaeB`\x82"
IDENTITY = "scenes 0123456789abcdef, resize none"
SIZES = ((128, 128), (64, 64), (192, 128))
METHODS = (Scaling.of("original"), Scaling.of("entropy"))
PROMPTS = tuple(f"number {number}" for number in range(40))
WIDTH = 3
KINDS = ("scenes_fid", "scenes_kid")
SPEC = {
    "name": "known",
    "models": ["scenes"],
    "sizes": [f"{width}x{height}" for width, height in SIZES],
    "methods": ["original", "entropy"],
    "prompts": list(PROMPTS),
    "metrics": ["objects", "scenes_fid", "scenes_kid", "scenes_clip"],
}


def make_cell(size, method, prompt):
    fields = {"width": size[0], "height": size[1], "method": method, "prompt": prompt}
    return Cell(
        model="scenes",
        weights_hash="ab" * 32,
        seed=7,
        train_size=(128, 128),
        sampler="ddim",
        steps=2,
        guidance=2.0,
        **fields,
    )


def values_of(size, method):
    """What is measured of the pictures of a size and method: features, cosines, and objects."""
    rng = np.random.default_rng([*size, METHODS.index(method)])
    shift = 0.0 if size == SIZES[0] else (1.0 if method == METHODS[0] else 0.25)
    features = (rng.standard_normal((len(PROMPTS), WIDTH)) * [1.0, 2.0, 0.5] + shift).astype(np.float32)
    return features, rng.uniform(0.1, 0.4, len(PROMPTS)), rng.integers(0, 3, (len(PROMPTS), 2))


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch):
    monkeypatch.setattr("entscale_jax.statistics.RESAMPLES", 500)


@pytest.fixture
def make_run(tmp_path, monkeypatch):
    """Writes the run, its rows in parts of so many or loose; `spec` and `identity` may be changed."""

    def make(name="run", part_rows=None, identity=IDENTITY, prompts=PROMPTS, sizes=SIZES, **changes):
        if part_rows:
            monkeypatch.setattr(compaction, "PART_ROWS", part_rows)
        run = RunFolder(tmp_path / name)
        spec = {**SPEC, "sizes": [f"{width}x{height}" for width, height in sizes], "prompts": list(prompts), **changes}
        cells = [make_cell(size, method, prompt) for size in sizes for method in METHODS for prompt in prompts]
        with run.opened():
            run.prepare(dump_spec(SweepSpec.model_validate(spec), prompts, {"scenes": "ab" * 32}), cells)
            for cell in cells:
                size = cell.width, cell.height
                features, cosines, objects = (part[PROMPTS.index(cell.prompt)] for part in values_of(size, cell.method))
                tokens = size[0] * size[1] // 64
                layer = {"layer": "mid", "tokens": tokens, "train_tokens": 256, "entropy": [1.0], "logit_gap": [1.0]}
                row = {
                    **cell_row(cell),
                    "seconds": 0.5,
                    "objects_exact": not objects.any(),
                    "objects_missing": int(objects[0]),
                    "objects_extra": int(objects[1]),
                    "scenes_clip": float(cosines),
                    "error": None,
                    "entropy_layers": [layer],
                    "features": {identity: [float(value) for value in features]},
                }
                run.write(cell, PNG, row)
            run.settle()
        return run.path

    return make


def frechet(first, second):
    """Heusel et al. 2017, equation 6, by the matrix root."""
    first, second = first.astype(np.float64), second.astype(np.float64)
    step = first.mean(0) - second.mean(0)
    root = scipy.linalg.sqrtm(np.cov(first.T) @ np.cov(second.T))
    return float(step @ step + np.trace(np.cov(first.T) + np.cov(second.T) - 2 * np.real(root)))


def kernel_distance(first, second):
    """Binkowski et al. 2018: the unbiased estimate, pair by pair."""
    first, second = first.astype(np.float64), second.astype(np.float64)

    def mean(a, b, same):
        found = [(x @ y / WIDTH + 1) ** 3 for i, x in enumerate(a) for j, y in enumerate(b) if not (same and i == j)]
        return np.mean(found)

    return mean(first, first, True) + mean(second, second, True) - 2 * mean(first, second, False)


def by_metric(tables):
    return {table.metric: table for table in tables}


@pytest.mark.parametrize("part_rows", [None, 70])
def test_figures_are_those_of_the_formulas(make_run, part_rows):
    run = read_run(make_run(part_rows=part_rows))
    assert bool(run.parts) == bool(part_rows)
    tables = by_metric(make_tables(run))
    assert list(tables) == [
        *("scenes_fid", "scenes_kid", "scenes_clip", "objects_exact", "objects_missing", "objects_extra", "seconds")
    ]
    reference = values_of(SIZES[0], METHODS[0])[0]
    for size in SIZES[1:]:
        found = {}
        for method in METHODS:
            place = Size("scenes", *size), method.label
            features, cosines, objects = values_of(size, method)
            found[method] = tables["scenes_fid"].entries[place], tables["scenes_kid"].entries[place]
            assert found[method][0].figure.value == pytest.approx(frechet(features, reference), rel=1e-6)
            kid = found[method][1].figure
            assert kid.value == pytest.approx(1000 * kernel_distance(features, reference), rel=1e-6)
            assert kid.interval.low < kid.value < kid.interval.high
            assert tables["scenes_clip"].entries[place].figure.value == pytest.approx(cosines.mean(), rel=1e-6)
            assert tables["objects_missing"].entries[place].figure.value == pytest.approx(objects[:, 0].mean())
            exact = tables["objects_exact"].entries[place].figure
            assert (exact.value, exact.count) == (pytest.approx(100 * np.mean(~objects.any(1))), len(PROMPTS))
        first, second = found[METHODS[0]], found[METHODS[1]]
        assert first[0].difference is None
        assert second[0].difference == pytest.approx(second[0].figure.value - first[0].figure.value)
        assert second[1].difference.mean == pytest.approx(second[1].figure.value - first[1].figure.value)
        # The control: the other method's features give another figure.
        assert abs(second[0].figure.value - first[0].figure.value) > 0.1
    # A reference is not compared with itself, nor with what another method made of the same noise at its size.
    for metric in ("scenes_fid", "scenes_kid"):
        assert Size("scenes", 128, 128) not in {size for size, _ in tables[metric].entries}
    assert Size("scenes", 128, 128) in {size for size, _ in tables["scenes_clip"].entries}


def test_parts_and_rows_give_the_same_tables(make_run):
    rows, parts = (make_tables(read_run(make_run(*arguments))) for arguments in ((), ("parts", 70)))
    for one, other in zip(rows, parts, strict=True):
        assert list(one.entries) == list(other.entries)
        for place, entry in one.entries.items():
            # Sums come in another order, and parts hold cosines in float32.
            assert other.entries[place].figure.value == pytest.approx(entry.figure.value, rel=1e-7)


def test_a_kernel_distance_counts_what_it_is_of(make_run, monkeypatch):
    for module in ("metrics.kernel", "reports.paper.features"):
        monkeypatch.setattr(f"entscale_jax.{module}.MOST", 30)
    tables = by_metric(make_tables(read_run(make_run())))
    for entry in tables["scenes_kid"].entries.values():
        figure = entry.figure
        assert (figure.count, figure.interval.count, figure.reference_count) == (30, 30, 30)
    assert {entry.figure.count for entry in tables["scenes_fid"].entries.values()} == {40}
    text = markdown([tables["scenes_kid"]])
    assert "30 images a figure; compared with its own pictures at 128x128, 30 images; extractor" in text
    told = "the unbiased estimate over all pairs of pictures, of 4,096 at random where a set has more"
    assert text.count(told) == 1


@pytest.mark.parametrize("count", [4, 19])
def test_kernel_distances_of_few_pictures_have_no_interval(make_run, count):
    run = read_run(make_run(prompts=PROMPTS[:count]))
    tables = by_metric(make_tables(run))
    reference = values_of(SIZES[0], METHODS[0])[0][:count]
    found = [1000 * kernel_distance(values_of((64, 64), method)[0][:count], reference) for method in reversed(METHODS)]
    entry = tables["scenes_kid"].entries[Size("scenes", 64, 64), "entropy"]
    assert entry.figure.value == pytest.approx(found[0], rel=1e-6)
    assert entry.figure.interval is None
    assert entry.difference == pytest.approx(found[0] - found[1], rel=1e-6)
    assert "nan" not in as_csv([tables["scenes_kid"]])
    text = markdown([tables["scenes_kid"]])
    assert "intervals from 20 pictures on" in text
    assert "in brackets" not in text


def test_kernel_distances_of_enough_pictures_have_an_interval(make_run):
    tables = by_metric(make_tables(read_run(make_run(prompts=PROMPTS[:20]))))
    entry = tables["scenes_kid"].entries[Size("scenes", 64, 64), "entropy"]
    assert entry.figure.interval.low < entry.figure.value < entry.figure.interval.high
    assert entry.difference.low < entry.difference.mean < entry.difference.high


def test_another_run_is_the_reference(make_run):
    run, other = make_run(), make_run("other", sizes=SIZES[:1])
    tables = by_metric(make_tables(read_run(run), other))
    entry = tables["scenes_fid"].entries[Size("scenes", 128, 128), "original"]
    assert entry.figure.value == pytest.approx(0.0, abs=1e-9)
    assert entry.figure.reference == "other, its own pictures at 128x128"


def extractor(identity="scenes 0123456789abcdef, resize none"):
    name, _, rest = identity.partition(" ")
    code, _, resize = rest.partition(", resize ")

    def run(images):
        wide = images.reshape(len(images), -1, 3).astype(np.float32)
        return wide.mean(axis=1) / 64

    return Extractor(name=name, hash=code, width=WIDTH, resize=resize, run=run)


def write_pictures(folder, count=24):
    folder.mkdir()
    rng = np.random.default_rng(3)
    pictures = rng.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"{number:03d}.png")
    return pictures


def test_pictures_of_a_folder_or_a_parquet_file_are_the_reference(make_run, tmp_path):
    run = read_run(make_run())
    pictures = write_pictures(tmp_path / "real")
    data = [(tmp_path / "real" / f"{number:03d}.png").read_bytes() for number in range(len(pictures))]
    pq.write_table(pa.table({"image": data}), tmp_path / "real.parquet", row_group_size=5)
    seen = extractor().run(pictures)
    for place in (tmp_path / "real", tmp_path / "real.parquet"):
        for _ in range(2):  # the second time what was seen is read
            tables = by_metric(make_tables(run, place, lambda identity, run: extractor(identity)))
            group = Size("scenes", 64, 64), "entropy"
            expected = frechet(values_of((64, 64), METHODS[1])[0], seen)
            assert tables["scenes_fid"].entries[group].figure.value == pytest.approx(expected, rel=1e-6)
            assert tables["scenes_fid"].entries[group].figure.reference_count == len(pictures)


def test_a_stopped_look_at_pictures_goes_on(make_run, tmp_path, monkeypatch):
    monkeypatch.setattr("entscale_jax.reports.paper.references.BATCH", 4)
    run = read_run(make_run())
    write_pictures(tmp_path / "real")
    calls = []

    def opened(stop):
        def run_once(images):
            calls.append(len(images))
            if len(calls) == stop:
                raise KeyboardInterrupt
            return extractor().run(images)

        return lambda identity, run: Extractor(
            name="scenes", hash="0123456789abcdef", width=WIDTH, resize="none", run=run_once
        )

    with pytest.raises(KeyboardInterrupt):
        make_tables(run, tmp_path / "real", opened(11))
    done = as_csv(make_tables(run, tmp_path / "real", opened(None)))
    assert len(calls) < 11 + 24
    monkeypatch.setattr("entscale_jax.reports.paper.references.BATCH", 4)
    undisturbed = read_run(make_run("undisturbed"))
    assert done == as_csv(make_tables(undisturbed, tmp_path / "real", opened(None)))


def test_formats(make_run):
    tables = make_tables(read_run(make_run()))
    rows = list(csv.DictReader(io.StringIO(as_csv(tables))))
    fid = next(row for row in rows if (row["metric"], row["size"], row["method"]) == ("scenes_fid", "64x64", "entropy"))
    assert (fid["count"], fid["reference_count"], fid["extractor"]) == ("40", "40", "scenes 0123456789abcdef")
    assert (fid["low"], fid["difference_from"]) == ("", "original")
    text = markdown(tables)
    assert "| 64x64 |" in text
    assert "entropy less original" in text
    assert "compared with its own pictures at 128x128, 40 images; extractor scenes 0123456789abcdef" in text
    printed = latex(tables)
    assert "scenes\\_" not in printed.split("\\caption")[0]
    assert printed.count("\\begin{tabular}") == len(tables)


def test_a_document_keeps_its_prose(make_run, tmp_path):
    run, document = make_run(), tmp_path / "tables.md"
    document.write_text("Before.\n<!-- measured: tables -->\nthe last ones\n<!-- end of measured: tables -->\nAfter.\n")
    write_section(run, document)
    text = document.read_text()
    assert text.startswith("Before.\n")
    assert text.endswith("After.\n")
    assert "the last ones" not in text
    assert "240 of 240 images drawn" in text
    assert "| 64x64 |" in text
    with pytest.raises(UserError, match="has no section 'tables'"):
        write_section(run, tmp_path / "run" / "spec.yaml")


def test_a_document_holds_the_tables_that_are_asked_for(make_run, tmp_path):
    run, document = make_run(), tmp_path / "tables.md"
    document.write_text("<!-- measured: cost -->\n<!-- end of measured: cost -->\n")
    write_section(run, document, Choice(only=("seconds",)), section="cost")
    text = document.read_text()
    assert "Seconds an image" in text
    assert f"`entscale tables {run} --only seconds --document {document} --section cost`" in text
    assert "distance" not in text
    with pytest.raises(UserError, match="--only 'fid' is none of the run's tables: scenes_fid, "):
        write_section(run, document, Choice(only=("seconds", "fid")), section="cost")
    assert document.read_text() == text


def test_the_papers_figures_stand_beside_those_of_its_models(make_run):
    assert published("fid", Size("stabilityai/stable-diffusion-2-1-base", 224, 224), "entropy").value == 41.8925
    assert published("clip", Size("/models/ldm-text2im-large-256", 256, 192), "original").value == 0.3070
    assert published("fid", Size("scenes", 224, 224), "entropy") is None


def test_a_run_without_metrics_is_told(make_run):
    run = make_run(metrics=[])
    for path in (run / "rows").glob("*.json"):
        row = json.loads(path.read_text())
        kept = {name: row[name] for name in row if not name.startswith(("objects", "scenes", "features"))}
        path.write_text(json.dumps(kept))
    with pytest.raises(UserError, match="measured nothing that a table is made of"):
        make_tables(read_run(run))


def test_features_of_another_extractor_are_told(make_run):
    run, other = make_run(), make_run("other", identity="scenes ffffffffffffffff, resize none")
    with pytest.raises(UserError, match=r"has features of scenes ffff.* and the run those of scenes 0123"):
        make_tables(read_run(run), other)


def test_a_reference_that_is_too_small_is_told(make_run, tmp_path):
    run = read_run(make_run())
    write_pictures(tmp_path / "real", WIDTH)
    with pytest.raises(UserError, match=r"needs a reference of more than 3 pictures.* has 3"):
        make_tables(run, tmp_path / "real", lambda identity, run: extractor(identity))


def keep(folder, size, method, count):
    """Leaves so many cells of a size and method."""
    for path in [
        path
        for path in sorted((folder / "rows").glob("*.json"))
        if (row := json.loads(path.read_text()))
        and ((row["width"], row["height"]), row["method"]) == (size, method.label)
    ][count:]:
        path.unlink()


def test_distances_of_few_pictures_are_told(make_run):
    folder, bias = make_run(), "pictures for 3 features: dominated by its bias"
    keep(folder, SIZES[1], METHODS[1], WIDTH)
    keep(folder, SIZES[2], METHODS[1], 1)
    (fid,) = make_tables(read_run(folder), only=["scenes_fid"])
    assert fid.notes[-2:] == (
        f"64x64 entropy of 3 {bias}",
        "of one picture, and so without a distance: 192x128 entropy",
    )
    assert (Size("scenes", 192, 128), "entropy") not in fid.entries
    few, reference = make_run("few", prompts=PROMPTS[:WIDTH]), make_run("other", sizes=SIZES[:1])
    (fid,) = make_tables(read_run(few), reference, only=["scenes_fid"])
    assert fid.notes[-1] == f"of 3 {bias}"
    # The control: of a picture more than features nothing is told.
    more = make_run("more", prompts=PROMPTS[: WIDTH + 1])
    (fid,) = make_tables(read_run(more), reference, only=["scenes_fid"])
    assert not any("bias" in note for note in fid.notes)


def test_pictures_without_a_distance_are_told(make_run):
    one, reference, said = make_run("one", sizes=SIZES[1:2], prompts=PROMPTS[:1]), make_run("other"), []
    with pytest.raises(
        UserError, match=r"scenes_fid is of two pictures or more .*one picture of each of 64x64 original, 64x64 entropy"
    ):
        make_tables(read_run(one), reference)
    tables = by_metric(make_tables(read_run(make_run("train", sizes=SIZES[:1])), say=said.append))
    assert "scenes_fid" not in tables
    assert [line[: line.index(" is of")] for line in said] == [f"no table of {name}: {name}" for name in KINDS]
    assert said[0].endswith("has none beside its own reference")


def test_a_run_without_its_training_size_needs_a_reference(make_run):
    run, said = read_run(make_run(sizes=SIZES[1:])), []
    tables = make_tables(run, say=said.append)
    assert [table.metric for table in tables] == [
        *("scenes_clip", "objects_exact", "objects_missing", "objects_extra", "seconds")
    ]
    assert [line.split(":")[0] for line in said] == ["no table of scenes_fid", "no table of scenes_kid"]
    assert "no pictures of scenes at its training size by rule original" in said[0]
    said.clear()
    assert [table.metric for table in make_tables(run, only=["scenes_clip"], say=said.append)] == ["scenes_clip"]
    assert said == []
    with pytest.raises(UserError, match="no pictures of scenes at its training size by rule original"):
        make_tables(run, only=["scenes_clip", "scenes_fid"])


def test_a_reference_that_does_not_fit_is_not_read_for_other_tables(make_run, tmp_path):
    run = read_run(make_run())
    write_pictures(tmp_path / "real", WIDTH)
    (table,) = make_tables(run, only=["objects_exact"])
    assert len(table.entries) == len(SIZES) * len(METHODS)
    with pytest.raises(UserError, match=r"--reference .*real is read by none of the tables of run .* asked for"):
        make_tables(run, tmp_path / "real", only=["objects_exact"])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "has no ratings yet: have"),
        ('{"cell": "ab', r"has no ratings yet \(.*ann.jsonl: line 1 is no whole answer"),
    ],
)
def test_ratings_that_hold_no_answer_leave_the_other_tables(make_run, content, says):
    folder, said = make_run(), []
    (folder / "ratings").mkdir()
    (folder / "ratings" / "ann.jsonl").write_text(content)
    assert "objects_exact" in by_metric(make_tables(read_run(folder), say=said.append))
    assert len(said) == 1
    with pytest.raises(UserError, match=says):
        make_tables(read_run(folder), only=["rating"])


def test_ratings_of_other_pictures_are_told(make_run):
    folder, said = make_run(), []
    (folder / "ratings").mkdir()
    (folder / "ratings" / "ann.jsonl").write_text('{"cell": "0123", "score": 7, "time": "2026-11-01T10:00:00+00:00"}\n')
    assert "objects_exact" in by_metric(make_tables(read_run(folder), say=said.append))
    assert said == [f"no table of rating: the ratings of run {folder} are of none of its pictures"]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: None, "is neither a folder of pictures, a Parquet file nor a run"),
        (lambda path: path.mkdir(), "holds no pictures"),
        (lambda path: path.write_text("hello"), "is no Parquet file"),
        (lambda path: pq.write_table(pa.table({"picture": [b""]}), path), "has no column 'image': it has picture"),
        (lambda path: pq.write_table(pa.table({"image": [b"x"] * 9}), path), "row .* is no picture"),
    ],
)
def test_a_place_that_is_no_reference_is_told(make_run, tmp_path, make, says):
    make(tmp_path / "place")
    with pytest.raises(UserError, match=says):
        make_tables(read_run(make_run()), tmp_path / "place", lambda identity, run: extractor(identity))
