import os

import pytest
from sweep_fakes import small_plan

from entscale_jax.sweep.storage import files
from entscale_jax.sweep.store import RunFolder, cell_row, write_json, write_whole

PNG = b"\x89PNG\r\n\x1a\n....IEND\xaeB`\x82"


@pytest.fixture
def run(tmp_path):
    run = RunFolder(tmp_path / "run")
    with run.opened():
        run.prepare("sweep: {}\n")
        yield run


@pytest.fixture
def cell():
    return small_plan().cells[0]


def test_a_file_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_whole(path, "old")
    seen = []

    def crash(source, target):
        seen.append((os.path.dirname(source), source.read_text(), path.read_text()))
        raise OSError("the disk is full")

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(OSError, match="the disk is full"):
        write_whole(path, "new")
    assert seen == [(str(tmp_path), "new", "old")]
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


def test_the_image_is_there_before_its_row(run, cell, monkeypatch):
    order = []

    def record(path, data, original=write_whole):
        order.append(path.suffix)
        original(path, data)

    monkeypatch.setattr(files, "write_whole", record)
    run.write(cell, PNG, cell_row(cell))
    assert order == [".png", ".json"]


def test_a_whole_cell_counts(run, cell):
    assert run.read_rows([cell]) == {}
    run.write(cell, PNG, cell_row(cell))
    row = run.read_rows([cell])[cell.id]
    assert row["image"] == f"images/{cell.id}.png"
    assert (row["width"], row["height"], row["method"], row["seed"]) == (64, 64, "original", 0)


@pytest.mark.parametrize(
    "harm",
    [
        lambda run, cell: (run.images / f"{cell.id}.png").unlink(),
        lambda run, cell: (run.images / f"{cell.id}.png").write_bytes(PNG[:-3]),
        lambda run, cell: (run.images / f"{cell.id}.png").write_bytes(b""),
        lambda run, cell: (run.rows / f"{cell.id}.json").unlink(),
        lambda run, cell: (run.rows / f"{cell.id}.json").write_text('{"cell"'),
        lambda run, cell: (run.rows / f"{cell.id}.json").write_text("[]"),
        lambda run, cell: write_json(run.rows / f"{cell.id}.json", {"cell": "other"}),
    ],
)
def test_half_a_cell_is_unfinished(run, cell, harm):
    run.write(cell, PNG, cell_row(cell))
    harm(run, cell)
    assert run.read_rows([cell]) == {}


def test_a_failed_cell_counts_without_an_image(run, cell):
    run.write_failure(cell, cell_row(cell), "RuntimeError: no")
    row = run.read_rows([cell])[cell.id]
    assert (row["image"], row["error"]) == (None, "RuntimeError: no")


def test_leftovers_of_an_interrupted_writer_are_removed_and_nothing_else(run):
    for folder in (run.path, run.rows, run.images):
        (folder / ".a.123.tmp").write_text("")
        (folder / "notes.tmp").write_text("")
    run.prepare("sweep: {}\n")
    assert sorted(path.name for path in run.path.rglob("*.tmp")) == ["notes.tmp"] * 3
