"""Whole sweeps with workers in this process: retries, deaths, Ctrl-C, and going on where an earlier run stopped."""

import hashlib
import json
import signal
import sys

import pyarrow.parquet as pq
import pytest
import sweep_fakes as fakes
from sweep_fakes import FakeExecutor

from entscale_jax.errors import UserError
from entscale_jax.png import read_text
from entscale_jax.sweep import plan_sweep, run_sweep

CELLS = 3 * 2 * 5 * 2
RUN_ONLY = ("seconds", "device")
"""Columns in which two runs of the same cells may differ."""


def _rows(run):
    rows = pq.read_table(run / "samples.parquet").to_pylist()
    return [{name: value for name, value in row.items() if name not in RUN_ONLY} for row in rows]


def _images(run):
    return {path.name: path.read_bytes() for path in (run / "images").iterdir()}


def _same(one, other):
    assert _rows(one) == _rows(other)
    assert _images(one) == _images(other)
    assert pq.read_table(one / "entropy.parquet") == pq.read_table(other / "entropy.parquet")


@pytest.fixture
def undisturbed(sweep, tmp_path):
    assert sweep(FakeExecutor(), tmp_path / "undisturbed") == 0
    return tmp_path / "undisturbed"


class After:
    """A fault that comes once, at the given calls (from 0)."""

    def __init__(self, fault, *calls):
        self.fault, self.calls, self.seen = fault, calls, -1

    def __call__(self, worker, task):
        self.seen += 1
        if self.seen not in self.calls:
            return None
        if isinstance(self.fault, BaseException):
            raise self.fault
        return self.fault


def test_every_cell_is_a_row_and_an_image(undisturbed, spec_file):
    rows = pq.read_table(undisturbed / "samples.parquet").to_pylist()
    assert [row["cell"] for row in rows] == [cell.id for cell in plan_sweep(spec_file).plan.cells]
    assert len(rows) == CELLS == len(_images(undisturbed))
    for row in rows:
        assert row["error"] is None
        assert row["image"] == f"images/{row['cell']}.png"
        assert hashlib.sha256((undisturbed / row["image"]).read_bytes()).hexdigest() == row["sha256"]
        assert row["seconds"] >= 0
        assert row["device"] == "fake:w0"
        assert 0 < row["entropy"] < 1
        assert row["objects_exact"] is False


def test_columns_are_those_of_the_design(undisturbed):
    assert pq.read_schema(undisturbed / "samples.parquet").names == [
        *("cell", "model", "width", "height", "method", "prompt", "seed", "image", "seconds", "device"),
        *("objects_exact", "objects_missing", "objects_extra", "entropy", "scenes_clip", "clip"),
        *("sha256", "error"),
    ]
    assert pq.read_schema(undisturbed / "entropy.parquet").names == [
        *("cell", "model", "width", "height", "method", "layer", "tokens", "train_tokens", "step"),
        *("entropy", "logit_gap"),
    ]


def test_entropy_has_a_row_a_layer_and_step(undisturbed):
    table = pq.read_table(undisturbed / "entropy.parquet").to_pylist()
    assert len(table) == CELLS * 2 * 3
    tokens = {(row["width"], row["height"], row["layer"]): (row["tokens"], row["train_tokens"]) for row in table}
    # Latent grids of 64x64, 96x64 and 30x30 pixels (bucket 32x32): 16x16, 24x16 and 8x8, a quarter a side at level 2.
    assert tokens == {
        (64, 64, "down/attn1"): (256, 256),
        (64, 64, "mid/attn1"): (16, 16),
        (96, 64, "down/attn1"): (384, 256),
        (96, 64, "mid/attn1"): (24, 16),
        (30, 30, "down/attn1"): (64, 256),
        (30, 30, "mid/attn1"): (4, 16),
    }
    assert all(0 < row["logit_gap"] < 1 and row["logit_gap"] != row["entropy"] for row in table)
    samples = {row["cell"]: row["entropy"] for row in pq.read_table(undisturbed / "samples.parquet").to_pylist()}
    for cell, mean in samples.items():
        values = [row["entropy"] for row in table if row["cell"] == cell]
        assert mean == pytest.approx(sum(values) / 6, rel=1e-6)


def test_an_image_says_what_made_it(undisturbed):
    row = pq.read_table(undisturbed / "samples.parquet").to_pylist()[-1]
    text = read_text(undisturbed / row["image"])
    assert text["caption"] == row["prompt"]
    assert (text["seed"], text["rule"], text["size"]) == (str(row["seed"]), row["method"], "30x30")
    assert text["model"] == f"fake {'ab' * 32}"
    assert "jax-" in text["versions"]


def test_given_again_it_draws_nothing(sweep, undisturbed, console):
    before = {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*.*") if path.name != ".lock"}
    again = FakeExecutor()
    assert sweep(again, undisturbed) == 0
    assert again.started == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert "drawing nothing" in console.file.getvalue()


def test_a_worker_that_dies_is_replaced_and_its_chunk_drawn(sweep, undisturbed, tmp_path):
    executor = FakeExecutor(2, fault=After("die", 3))
    assert sweep(executor) == 0
    _same(tmp_path / "run", undisturbed)
    assert any(worker.endswith("+") for worker, _ in executor.log)
    assert executor.closed == 1


def test_an_error_is_tried_again_on_the_same_worker(sweep, undisturbed, tmp_path):
    executor = FakeExecutor(fault=After("RuntimeError: out of luck", 0, 1))
    assert sweep(executor) == 0
    _same(tmp_path / "run", undisturbed)
    assert {worker for worker, _ in executor.log} == {"w0"}


def _always(error, bucket="96x64"):
    return lambda worker, task: error if str(task.chunk.program.key.bucket) == bucket else None


@pytest.mark.parametrize(
    ("fault", "error"), [("RuntimeError: no", "RuntimeError: no"), ("die", "the worker died: killed")]
)
def test_after_the_last_attempt_the_cells_have_failed(sweep, tmp_path, console, fault, error):
    executor = FakeExecutor(fault=_always(fault))
    assert sweep(executor) == 1
    rows = pq.read_table(tmp_path / "run" / "samples.parquet").to_pylist()
    failed = [row for row in rows if row["width"] == 96]
    assert len(failed) == 20
    assert {error} < {row["error"] for row in failed}
    assert all(row["image"] is None and row["entropy"] is None for row in failed)
    assert all(row["error"] is None for row in rows if row["width"] != 96)
    assert "20 cells failed" in console.file.getvalue()


def test_failed_cells_are_drawn_again_only_where_asked(sweep, undisturbed, tmp_path):
    assert sweep(FakeExecutor(fault=_always("RuntimeError: no"))) == 1
    left_alone = FakeExecutor()
    assert sweep(left_alone) == 1
    assert left_alone.started == 0
    retried = FakeExecutor()
    assert sweep(retried, retry_failed=True) == 0
    assert {task.chunk.width for _, task in retried.log} == {96}
    _same(tmp_path / "run", undisturbed)


def test_workers_that_only_die_end_the_run(sweep):
    with pytest.raises(UserError, match="workers died in a row, the last one of: killed"):
        sweep(FakeExecutor(2, fault=lambda worker, task: "die"))


def test_a_mistake_that_a_worker_finds_ends_the_run_at_once(sweep):
    executor = FakeExecutor(fault=After("fatal the folder has no unet", 2))
    with pytest.raises(UserError, match=r"^the folder has no unet$"):
        sweep(executor)
    assert len(executor.log) == 3
    assert executor.closed == 1


@pytest.mark.parametrize("call", [0, 1, 5, 17])
def test_after_ctrl_c_the_same_command_goes_on(sweep, undisturbed, tmp_path, console, call):
    stopped = FakeExecutor(fault=After(KeyboardInterrupt(), call))
    assert sweep(stopped) == 130
    assert stopped.closed == 1
    printed = console.file.getvalue()
    assert "entscale sweep" in printed
    assert str(tmp_path / "run") in printed
    rest = FakeExecutor()
    assert sweep(rest) == 0
    assert len(rest.log) == 18 - call
    _same(tmp_path / "run", undisturbed)


def test_lost_rows_and_images_are_drawn_again_in_their_places(sweep, undisturbed, tmp_path, spec_file):
    assert sweep(FakeExecutor()) == 0
    run = tmp_path / "run"
    cells = plan_sweep(spec_file).plan.cells
    (run / "rows" / f"{cells[1].id}.json").unlink()
    (run / "images" / f"{cells[9].id}.png").unlink()
    (run / "images" / f"{cells[40].id}.png").write_bytes(b"\x89PNG half of one")
    (run / "rows" / f"{cells[59].id}.json").write_text('{"cell": ')
    (run / "rows" / f".{cells[0].id}.json.99.tmp").write_text("{")
    kept = (run / "images" / f"{cells[0].id}.png").stat().st_mtime_ns
    rest = FakeExecutor()
    assert sweep(rest) == 0
    drawn = [cell.id for _, task in rest.log for cell in task.wanted_cells]
    assert sorted(drawn) == sorted(cells[i].id for i in (1, 9, 40, 59))
    assert (run / "images" / f"{cells[0].id}.png").stat().st_mtime_ns == kept
    assert not list(run.rglob("*.tmp"))
    _same(run, undisturbed)


def test_a_cell_drawn_elsewhere_in_its_batch_would_differ(spec_file, fake_models):
    # The control of the tests above: the fake pipeline does tell positions apart, so equality shows that they are kept.
    task = plan_sweep(spec_file).plan.chunks[0].task({cell.id for cell in plan_sweep(spec_file).plan.chunks[0].cells})
    pipe = fakes.FakePipe()
    call = {"height": 64, "width": 64, "rule": task.cells[0].method, "sampler": "ddim", "steps": 3, "guidance": 5.0}
    one = pipe(["a"] * 4, seed=[1] * 4, measure_entropy=False, **call).images
    assert (one[0] != one[1]).any()


def test_tables_are_made_where_a_run_was_killed_before_them(sweep, undisturbed):
    for name in ("samples.parquet", "entropy.parquet"):
        (undisturbed / name).unlink()
    again = FakeExecutor()
    assert sweep(again, undisturbed) == 0
    assert again.started == 0
    assert len(_rows(undisturbed)) == CELLS
    assert (undisturbed / "entropy.parquet").is_file()


def test_no_resume_draws_everything_again(sweep, undisturbed):
    again = FakeExecutor()
    assert sweep(again, undisturbed, resume=False) == 0
    assert len(again.log) == 18


def test_one_image_that_cannot_be_measured_is_alone_in_failing(sweep, tmp_path, monkeypatch):
    from entscale_jax.metrics import objects

    def compare(image, caption, original=objects.compare):
        if caption == "a blue square":
            raise ArithmeticError("no\nsuch thing")
        return original(image, caption)

    monkeypatch.setattr(objects, "compare", compare)
    assert sweep(FakeExecutor()) == 1
    rows = pq.read_table(tmp_path / "run" / "samples.parquet").to_pylist()
    assert {row["prompt"] for row in rows if row["error"]} == {"a blue square"}
    assert {row["error"] for row in rows if row["error"]} == {
        f"ArithmeticError: no such thing (test_run_sweep.py:{compare.__code__.co_firstlineno + 2})"
    }
    assert sum(row["error"] is None for row in rows) == CELLS * 4 // 5


def test_another_sweep_in_the_folder_is_refused_with_the_difference(sweep, undisturbed, spec_file):
    text = spec_file.read_text()
    for old, new, difference in [
        ("30x30", "32x32", "sizes has 30x30 there and 32x32 here"),
        ("steps: 3", "steps: 4", "sampler.steps is 3 there and 4 here"),
        ("[0, 7]", "[0]", "seeds has 7 there and nothing here"),
        ("[0, 7]", "[7, 0]", "seeds is 0, 7 there and 7, 0 here"),
    ]:
        spec_file.write_text(text.replace(old, new))
        executor = FakeExecutor()
        with pytest.raises(UserError, match="holds another sweep") as caught:
            sweep(executor, undisturbed)
        assert difference in str(caught.value)
        assert executor.started == 0
    spec_file.write_text(text.replace("batch: 4", "batch: 4\n  workers: 3"))
    assert sweep(FakeExecutor(), undisturbed) == 0


def test_other_weights_in_the_folder_are_refused(sweep, undisturbed, monkeypatch):
    other = fakes.FakeInfo("fake", weights="cd" * 32)
    monkeypatch.setattr("entscale_jax.sweep.api.describe", lambda model, train_size=None: other)
    with pytest.raises(UserError, match=r"weights\.fake is abab.* there and cdcd.* here"):
        sweep(FakeExecutor(), undisturbed)


def test_the_folders_spec_is_a_sweep_of_the_same_cells(undisturbed, spec_file, fake_models, monkeypatch):
    assert plan_sweep(undisturbed / "spec.yaml").plan.cells == plan_sweep(spec_file).plan.cells
    other = fakes.FakeInfo("fake", weights="cd" * 32)
    monkeypatch.setattr("entscale_jax.sweep.api.describe", lambda model, train_size=None: other)
    with pytest.raises(UserError, match="was made with the weights abababababab of fake, which now has cdcdcdcdcdcd"):
        plan_sweep(undisturbed / "spec.yaml")


def test_an_out_folder_that_cannot_be_written(sweep, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"out folder .*file/run can't be written \(Not a directory\)"):
        sweep(FakeExecutor(), tmp_path / "file" / "run")


def test_a_folder_of_something_else_is_left_alone(sweep, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("")
    with pytest.raises(UserError, match=r"holds 'thesis.tex' and no run: give an empty or new folder"):
        sweep(FakeExecutor(), tmp_path / "home")
    assert [entry.name for entry in (tmp_path / "home").iterdir()] == ["thesis.tex"]


def test_two_drivers_do_not_write_one_folder(sweep, tmp_path):
    def start_another(worker, task):
        with pytest.raises(UserError, match="is being written by another sweep"):
            sweep(FakeExecutor())
        return "fatal seen"

    with pytest.raises(UserError, match=r"^seen$"):
        sweep(FakeExecutor(fault=start_another))


def test_the_environment_and_programs_of_every_run_are_kept(sweep, tmp_path):
    assert sweep(FakeExecutor(fault=After(KeyboardInterrupt(), 8))) == 130
    assert sweep(FakeExecutor(2)) == 0
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert [device["worker"] for device in environment["devices"]] == ["w0", "w1"]
    assert {"jax", "numpy"} <= environment["versions"].keys()
    assert [len(run["devices"]) for run in environment["earlier"]] == [1]
    programs = json.loads((tmp_path / "run" / "programs.json").read_text())
    assert [(entry["run"], entry["worker"]) for entry in programs["workers"]] == [(1, "w0"), (2, "w0"), (2, "w1")]
    assert all(
        entry["programs"]["denoise"] == {"compiled": 1, "cached": 0, "seconds": 0.5} for entry in programs["workers"]
    )
    assert programs["workers"][0]["expected"] == {"text": 1, "denoise": 3, "decode": 2}
    assert sum(entry["images"] for entry in programs["buckets"]) == CELLS
    assert len(programs["buckets"]) == 6
    assert sum(entry["compile_seconds"] for entry in programs["buckets"]) == 1.5


def test_dry_run_lists_everything_and_touches_nothing(sweep, tmp_path, console):
    executor = FakeExecutor()
    assert sweep(executor, dry_run=True) == 0
    assert executor.started == 0
    assert not (tmp_path / "run").exists()
    printed = console.file.getvalue()
    assert "60 cells, 0 of them in the run folder already; 18 chunks to draw" in printed
    assert "6 denoise, 3 decode, 1 text" in printed
    assert "384/96/24" in printed
    # sqrt(log 384 / log 256), sqrt(log 96 / log 64), sqrt(log 24 / log 16).
    assert "1.036/1.048/1.071" in printed
    assert "a rough estimate" in printed


def test_dry_run_of_a_run_estimates_from_its_timings(sweep, undisturbed, console, spec_file):
    next((undisturbed / "rows").iterdir()).unlink()
    assert sweep(FakeExecutor(), undisturbed, dry_run=True) == 0
    printed = console.file.getvalue()
    assert "60 cells, 59 of them in the run folder already; 1 chunks to draw" in printed
    assert "measured in this run folder" in printed


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "60 cells, 60 of them in the run folder already; 0 chunks to draw"),
        (
            {"retry_failed": True},
            "60 cells, 60 of them in the run folder already, of which 10 are drawn again; 3 chunks to draw",
        ),
        ({"resume": False}, "60 cells, 60 of them in the run folder already, of which 60 are drawn again; 18 chunks"),
    ],
)
def test_dry_run_tells_what_its_options_would_draw(sweep, tmp_path, console, options, told):
    executor = FakeExecutor(fault=lambda worker, task: "no" if _is_widest_original(task) else None)
    assert sweep(executor) == 1
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    assert sweep(FakeExecutor(), dry_run=True, **options) == 0
    assert told in console.file.getvalue()
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == files
    drawn = FakeExecutor()
    sweep(drawn, **options)
    assert len(drawn.log) == int(told.partition("; ")[2].partition(" ")[0])


def _is_widest_original(task):
    return task.chunk.width == 96 and task.program.method.label == "original"


def test_without_an_executor_a_sweep_starts_ray(fake_models, spec_file, tmp_path, monkeypatch, console):
    asked = []

    def with_ray(address):
        asked.append(address)
        return fakes.opening(FakeExecutor())

    monkeypatch.setattr("entscale_jax.sweep.api._with_ray", with_ray)
    assert run_sweep(spec_file, out=tmp_path / "run", address="auto", console=console) == 0
    assert asked == ["auto"]


class Loses:
    """Ctrl-C comes while Python does what it lets no exception out of."""

    def __del__(self):
        signal.raise_signal(signal.SIGINT)


def test_ctrl_c_that_python_loses_ends_the_run_all_the_same(sweep, monkeypatch):
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    signal.signal(signal.SIGINT, signal.default_int_handler)

    class Interrupted(FakeExecutor):
        def wait(self, seconds):
            Loses()
            return super().wait(seconds)

    assert sweep(Interrupted()) == 130
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
