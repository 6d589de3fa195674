"""Rows are gathered into parts while a run goes on; whatever is killed when, each cell is one row of the tables."""

import io
import shutil

import pyarrow.parquet as pq
import pytest
from sweep_fakes import FakeExecutor, small_plan
from test_run_sweep import CELLS, After, _rows, _same

from entscale_jax.reports import run_folder
from entscale_jax.reports.run_folder import read_run
from entscale_jax.row_choice import choose_rows
from entscale_jax.sweep import compaction, plan_sweep, tables
from entscale_jax.sweep.storage.parts import decode
from entscale_jax.sweep.store import RunFolder, cell_row

PNG = b"\x89PNG\r\n\x1a\n....IEND\xaeB`\x82"


@pytest.fixture
def undisturbed(sweep, tmp_path):
    assert sweep(FakeExecutor(), tmp_path / "undisturbed") == 0
    return tmp_path / "undisturbed"


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(compaction, "PART_ROWS", 7)
    monkeypatch.setattr(tables, "CELLS_AT_ONCE", 5)


def _parts(run):
    return sorted((run / "samples").glob("part-*.parquet"))


def _cells_of_parts(run):
    return [cell for path in _parts(run) for cell in pq.read_table(path)["cell"].to_pylist()]


def test_a_run_in_parts_makes_the_tables_of_one_in_rows(sweep, undisturbed, tmp_path, small_parts):
    run = tmp_path / "run"
    assert sweep(FakeExecutor()) == 0
    assert len(_parts(run)) >= CELLS // 7
    assert len(set(_cells_of_parts(run))) == len(_cells_of_parts(run)) == CELLS
    assert list((run / "rows").iterdir()) == []
    _same(run, undisturbed)
    assert not _parts(undisturbed), "the control: few rows stay files"
    again = FakeExecutor()
    assert sweep(again) == 0
    assert again.started == 0


def test_a_report_made_while_rows_are_gathered_has_them_all(sweep, undisturbed, tmp_path, small_parts, monkeypatch):
    assert sweep(FakeExecutor(), tmp_path / "gathered") == 0
    read = run_folder._read_json

    def gathered_meanwhile(path):
        row = read(path)
        if path.parent.name == "rows":
            for part in _parts(tmp_path / "gathered"):
                shutil.copy(part, undisturbed / "samples")
            for other in (undisturbed / "rows").iterdir():
                other.unlink()
        return row

    whole = [(sample.cell, sample.sha256) for sample in read_run(undisturbed).samples]
    (undisturbed / "samples").mkdir(exist_ok=True)
    monkeypatch.setattr(run_folder, "_read_json", gathered_meanwhile)
    assert [(sample.cell, sample.sha256) for sample in read_run(undisturbed).samples] == whole
    assert list((undisturbed / "rows").iterdir()) == []


@pytest.mark.parametrize("call", [3, 10])
def test_an_interrupted_run_in_parts_goes_on(sweep, undisturbed, tmp_path, small_parts, call):
    assert sweep(FakeExecutor(fault=After(KeyboardInterrupt(), call))) == 130
    assert _parts(tmp_path / "run")
    rest = FakeExecutor()
    assert sweep(rest) == 0
    assert len(rest.log) == 18 - call
    _same(tmp_path / "run", undisturbed)


def test_rows_that_are_in_a_part_and_beside_it_count_once(sweep, undisturbed, tmp_path, small_parts):
    # As after a kill between writing a part and removing its rows.
    run = tmp_path / "run"
    kept = {path.name: path.read_bytes() for path in (undisturbed / "rows").iterdir()}
    assert sweep(FakeExecutor()) == 0
    newest = pq.read_table(_parts(run)[-1]).to_pylist()
    assert newest
    for path in (undisturbed / "rows").iterdir():
        (run / "rows" / path.name).write_bytes(kept[path.name])
    rest = FakeExecutor()
    assert sweep(rest) == 0
    assert rest.started == 0
    _same(run, undisturbed)


def test_the_rows_of_a_part_that_was_just_written_are_removed(tmp_path, small_parts):
    cells = small_plan().cells[:7]
    run = RunFolder(tmp_path / "run")
    with run.opened():
        run.prepare("sweep: {}\n", cells)
        for cell in cells[:-1]:
            run.write(cell, PNG, {**cell_row(cell), "error": None})
        left = {path.name: path.read_bytes() for path in run.rows.iterdir()}
        run.write(cells[-1], PNG, {**cell_row(cells[-1]), "error": None})  # with it they begin to be gathered
        run.settle()
    assert len(left) == 6
    for name, data in left.items():
        (run.rows / name).write_bytes(data)
    again = RunFolder(tmp_path / "run")
    with again.opened():
        again.prepare("sweep: {}\n", cells)
        again.settle()
    assert len(_cells_of_parts(run.path)) == 7
    assert list(run.rows.iterdir()) == []


def test_an_image_lost_from_a_part_is_drawn_again(sweep, undisturbed, tmp_path, small_parts, spec_file):
    assert sweep(FakeExecutor()) == 0
    lost = plan_sweep(spec_file).plan.cells[9].id
    (tmp_path / "run" / "images" / f"{lost}.png").unlink()
    rest = FakeExecutor()
    assert sweep(rest) == 0
    assert [cell.id for _, task in rest.log for cell in task.wanted_cells] == [lost]
    _same(tmp_path / "run", undisturbed)


def test_parts_without_the_newest_columns_go_on(sweep, undisturbed, tmp_path, small_parts):
    run, newest = tmp_path / "run", ["scenes_clip_scorer", "clip_scorer"]
    assert sweep(FakeExecutor(fault=After(KeyboardInterrupt(), 10))) == 130
    older = _parts(run)
    for path in older:
        pq.write_table(pq.read_table(path).drop_columns(newest), path)
    assert sweep(FakeExecutor()) == 0
    assert pq.read_table(run / "samples.parquet").select(newest).to_pylist() == CELLS * [dict.fromkeys(newest)]
    _same(run, undisturbed)
    assert older
    assert read_run(run).samples[0].scorers == {}


def test_failed_cells_of_parts_are_drawn_again(sweep, undisturbed, tmp_path, small_parts):
    def fault(worker, task):
        return "RuntimeError: no" if task.chunk.width == 96 else None

    assert sweep(FakeExecutor(fault=fault)) == 1
    retried = FakeExecutor()
    assert sweep(retried, retry_failed=True) == 0
    assert {task.chunk.width for _, task in retried.log} == {96}
    _same(tmp_path / "run", undisturbed)


def test_a_report_reads_parts_as_it_reads_rows(sweep, undisturbed, tmp_path, small_parts):
    assert sweep(FakeExecutor(fault=After(KeyboardInterrupt(), 10))) == 130
    part_way, rows = read_run(tmp_path / "run"), read_run(undisturbed)
    drawn = {sample.cell: sample for sample in part_way.samples}
    assert 0 < len(drawn) < CELLS
    for sample in rows.samples:
        if sample.cell in drawn:
            assert drawn[sample.cell].image == sample.image
            assert drawn[sample.cell].entropy == pytest.approx(sample.entropy, rel=1e-6)
    assert sweep(FakeExecutor()) == 0
    whole = {(e.size, e.method, e.layer): e for e in read_run(tmp_path / "run").entropy}
    assert whole.keys() == {(e.size, e.method, e.layer) for e in rows.entropy}
    for entry in rows.entropy:
        assert whole[entry.size, entry.method, entry.layer].entropy == pytest.approx(entry.entropy, rel=1e-6)
    assert len(_rows(tmp_path / "run")) == CELLS


def test_the_newest_row_counts_but_no_failure_against_a_drawn_one():
    assert choose_rows([("a", False), ("b", True), ("a", True), ("b", False), ("c", True), ("c", True)]) == {
        "a": 0,
        "b": 3,
        "c": 5,
    }


def test_a_part_reads_back_in_single_columns(undisturbed):
    data = (undisturbed / "samples.parquet").read_bytes()
    assert decode(data, ("cell", "error")).column_names == ["cell", "error"]
    assert decode(data).num_rows == pq.read_table(io.BytesIO(data)).num_rows
