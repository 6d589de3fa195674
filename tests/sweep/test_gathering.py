"""What happens to a run's rows while they are being gathered into a part: stored anew, read, counted."""

import threading

import pytest
from sweep_fakes import FakeExecutor, small_plan
from test_run_sweep import CELLS, After, _same

from entscale_jax.errors import UserError
from entscale_jax.sweep import compaction, plan_sweep
from entscale_jax.sweep.cell_writer import row_name, store_cell
from entscale_jax.sweep.compaction import Compaction
from entscale_jax.sweep.storage.files import LocalFiles, PatientFiles
from entscale_jax.sweep.store import RunFolder, cell_row

PNG = b"\x89PNG\r\n\x1a\n....IEND\xaeB`\x82"
OLD = "RuntimeError: no"
PATIENCE = 60.0


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(compaction, "PART_ROWS", 7)


@pytest.fixture
def cells():
    return small_plan().cells[:15]


class Gated(LocalFiles):
    """A folder where a part waits to be written, told by `begun`, until `released`; may play a URI, and hide rows."""

    def __init__(self, folder, *, remote=False, hides=False):
        super().__init__(folder)
        self.remote = remote
        self.hides = hides
        self.begun, self.released = threading.Event(), threading.Event()

    def create(self, name, data):
        if name.startswith("samples/"):
            self.begun.set()
            assert self.released.wait(PATIENCE)
        return super().create(name, data)

    def list(self, folder):
        return [] if self.hides and folder == "rows" else super().list(folder)


def _begun(files, cells):
    """A run whose first seven cells failed, and are being gathered."""
    run = RunFolder(files.folder, PatientFiles(files))
    run.prepare("sweep: {}\n", cells)
    for cell in cells[:7]:
        run.write_failure(cell, cell_row(cell), OLD)
    assert files.begun.wait(PATIENCE)
    return run


def _draw(run, cell):
    run.write(cell, PNG, {**cell_row(cell), "error": None})


def _errors(run, cells):
    return {cell: outcome.error for cell, outcome in run.read_outcomes(cells).items()}


@pytest.mark.parametrize("hides", [False, True])
def test_a_cell_drawn_while_its_failure_is_gathered_stays_drawn(tmp_path, cells, hides):
    files = Gated(tmp_path / "run", hides=hides)
    expected = {cell.id: None if cell is cells[3] else OLD for cell in cells[:7]}
    run = _begun(files, cells)
    _draw(run, cells[3])
    files.released.set()
    assert _errors(run, cells) == expected
    run.settle()
    files.hides = False
    assert _errors(RunFolder(files.folder), cells) == expected
    assert run.part_numbers() == [0, 1]
    assert list(run.rows.iterdir()) == []


def test_removed_whatever_it_holds_it_would_be_lost(tmp_path, cells, monkeypatch):
    # The control of the test above.
    monkeypatch.setattr(Compaction, "_remove", lambda self, texts: self._files.remove(texts))
    files = Gated(tmp_path / "run")
    run = _begun(files, cells)
    _draw(run, cells[3])
    files.released.set()
    assert _errors(run, cells)[cells[3].id] == OLD


def test_no_row_is_written_between_the_look_at_it_and_its_end(tmp_path, cells):
    files = Gated(tmp_path / "run")
    files.released.set()
    written = []

    def read(name):
        data = LocalFiles.read(files, name)
        if name == row_name(cells[3].id) and run.part_numbers() and not written:
            written.append(threading.Thread(target=_draw, args=(run, cells[3])))
            written[0].start()
            written[0].join(0.3)
        return data

    files.read = read
    run = RunFolder(files.folder, PatientFiles(files))
    run.prepare("sweep: {}\n", cells)
    for cell in cells[:7]:
        run.write_failure(cell, cell_row(cell), OLD)
    run.settle()
    written[0].join(PATIENCE)
    assert _errors(run, cells)[cells[3].id] is None


def test_at_a_uri_a_row_that_another_driver_had_made_anew_stays(tmp_path, cells):
    files = Gated(tmp_path / "run", remote=True)
    run = _begun(files, cells)
    other = RunFolder(files.folder, PatientFiles(Gated(files.folder, remote=True)))
    other.forget_failures([cells[3].id])
    assert store_cell(other.files, cells[3].id, PNG, {**cell_row(cells[3]), "error": None})
    files.released.set()
    assert _errors(run, cells) == {cell.id: None if cell is cells[3] else OLD for cell in cells[:7]}


def test_a_driver_that_lost_the_run_gathers_nothing(tmp_path, cells):
    def check_held():
        raise UserError("taken over")

    files = PatientFiles(LocalFiles(tmp_path))
    order = {cell.id: position for position, cell in enumerate(cells)}
    gathers = Compaction(files, order, lambda cell, text: {**cell_row(cells[order[cell]]), "error": OLD}, check_held)
    for cell in cells[:7]:
        gathers.replace(cell.id, b"{}")
    with pytest.raises(UserError, match="taken over"):
        gathers.settle()
    assert gathers.part_numbers() == []
    assert len(gathers.loose_names()) == 7


@pytest.mark.parametrize("read", [RunFolder.read_outcomes, RunFolder.read_rows])
@pytest.mark.parametrize("before", [True, False])
def test_rows_gathered_just_before_or_after_another_lists_them_are_read(tmp_path, cells, read, before):
    run = RunFolder(tmp_path / "run")
    run.prepare("sweep: {}\n", cells)
    for cell in cells[:6]:
        _draw(run, cell)
    waiting = [cells[6]]

    def gather():
        _draw(run, waiting.pop())
        run.settle()
        assert list(run.rows.iterdir()) == []

    class Meanwhile(LocalFiles):
        def list(self, folder):
            if folder == "rows" and before:
                gather()
            found = super().list(folder)
            if folder == "rows" and not before:
                gather()
            return found

    reader = RunFolder(run.path, PatientFiles(Meanwhile(run.path)))
    assert read(reader, cells).keys() >= {cell.id for cell in cells[:6]}
    assert not waiting


def test_reading_waits_for_what_is_being_gathered(tmp_path, cells):
    files = Gated(tmp_path / "run", hides=True)
    run = _begun(files, cells)
    timer = threading.Timer(0.3, files.released.set)
    timer.start()
    assert len(_errors(run, cells)) == 7
    timer.join()


def test_rows_stored_while_others_are_gathered_count_for_the_next_part(tmp_path, cells):
    files = Gated(tmp_path / "run")
    run = _begun(files, cells)
    for cell in cells[7:14]:
        _draw(run, cell)
    files.released.set()
    assert len(_errors(run, cells)) == 14
    assert run.part_numbers() == [0]
    _draw(run, cells[14])
    assert len(_errors(run, cells)) == 15
    assert run.part_numbers() == [0, 1]
    assert len(list(run.rows.iterdir())) == 1


def test_an_interrupted_retry_leaves_unfinished_cells_and_no_failures(sweep, tmp_path, monkeypatch):
    monkeypatch.setattr(compaction, "PART_ROWS", 1000)
    assert sweep(FakeExecutor(), tmp_path / "undisturbed") == 0
    assert sweep(FakeExecutor(fault=lambda worker, task: OLD)) == 1
    assert sweep(FakeExecutor(fault=After(KeyboardInterrupt(), 3)), retry_failed=True) == 130
    rest = FakeExecutor()
    assert sweep(rest) == 0
    assert len(rest.log) == 18 - 3
    _same(tmp_path / "run", tmp_path / "undisturbed")


@pytest.mark.parametrize("part_rows", [7, 1000])
def test_a_cell_lost_during_the_run_is_missing_in_the_end(sweep, tmp_path, spec_file, console, monkeypatch, part_rows):
    monkeypatch.setattr(compaction, "PART_ROWS", part_rows)
    lost = plan_sweep(spec_file).plan.cells[0].id
    image = tmp_path / "run" / "images" / f"{lost}.png"

    def fault(worker, task):
        if task.chunk.width == 30:
            image.unlink(missing_ok=True)

    assert sweep(FakeExecutor(fault=fault)) == 1
    assert f"{CELLS - 1} of {CELLS} cells are drawn" in console.file.getvalue()
    assert "\n1 cells are missing; the same command draws them\n" in console.file.getvalue()
    rest = FakeExecutor()
    assert sweep(rest) == 0
    assert [cell.id for _, task in rest.log for cell in task.wanted_cells] == [lost]
    assert console.file.getvalue().count("missing") == 1
