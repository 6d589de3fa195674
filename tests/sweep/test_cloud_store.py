"""Runs at s3://, against a real S3 server of this process: nothing twice, nothing lost, whoever is killed when."""

import io
import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
from s3_server import Between, StoringExecutor
from sweep_fakes import FakeExecutor, small_plan
from test_run_sweep import After

from entscale_jax.errors import UserError
from entscale_jax.sweep import compaction
from entscale_jax.sweep.cell_writer import cell_row, store_cell
from entscale_jax.sweep.status import read_status
from entscale_jax.sweep.storage import lease, patience
from entscale_jax.sweep.storage.files import PatientFiles
from entscale_jax.sweep.storage.places import open_files
from entscale_jax.sweep.store import RunFolder

# Of botocore and of moto's own server.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
PNG = b"\x89PNG\r\n\x1a\n....IEND\xaeB`\x82"
CELLS, CALLS = 24, 12
SPEC = """\
sweep:
  name: small
  model: fake
  sizes: [64x64, 96x64, 30x30]
  methods: [original, entropy]
  prompts: [a red circle, a blue square, a green triangle, a yellow square]
  sampler: {name: ddim, steps: 3, guidance: 5.0}
  batch: 2
  metrics: [entropy]
"""
OTHER_PNG = PNG.replace(b"....", b"::::")


_UNDISTURBED = []


@pytest.fixture
def undisturbed(sweep, tmp_path_factory):
    """The same sweep in a folder, drawn once for all tests."""
    if not _UNDISTURBED:
        out = tmp_path_factory.mktemp("undisturbed") / "run"
        assert sweep(FakeExecutor(), out) == 0
        _UNDISTURBED.append(out)
    return _UNDISTURBED[0]


@pytest.fixture
def spec_file(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(SPEC)
    return path


@pytest.fixture
def place(s3):
    return f"{s3}/folder/run"


@pytest.fixture
def files(place):
    return open_files(place)


@contextmanager
def impatient():
    """Half a second of patience, in small pauses."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(patience, "PATIENCE_SECONDS", 0.5)
        patch.setattr(patience, "FIRST_PAUSE", 0.05)
        yield


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(compaction, "PART_ROWS", 7)


def _rows(table):
    rows = pq.read_table(table).to_pylist()
    return [{name: value for name, value in row.items() if name not in ("seconds", "device")} for row in rows]


def _same(files, folder):
    """The run at the URI and that in the folder hold the same tables, and the same images under the same names."""
    for name in ("samples.parquet", "entropy.parquet"):
        assert _rows(io.BytesIO(files.read(name))) == _rows(folder / name)
    images = [entry.name for entry in files.list("images")]
    assert files.read_many(images) == {name: (folder / name).read_bytes() for name in images}
    assert len(images) == CELLS


def _without_part_rows(files):
    return {entry.name for entry in files.list("rows")} == set() != {entry.name for entry in files.list("samples")}


@pytest.mark.parametrize("executor", [lambda place: FakeExecutor(2), lambda place: StoringExecutor(place, 2)])
def test_a_run_at_a_uri_is_that_in_a_folder(sweep, undisturbed, place, files, small_parts, executor):
    assert sweep(executor(place), place) == 0
    _same(files, undisturbed)
    assert _without_part_rows(files)
    status = read_status(place)
    assert (status.ended, status.tally.finished, status.tally.failed) == (True, CELLS, 0)
    again = FakeExecutor()
    assert sweep(again, place) == 0
    assert again.started == 0


def test_a_worker_sends_back_no_images_that_it_stored(place):
    from entscale_jax.sweep.cell_writer import store_result

    plan = small_plan()
    executor = FakeExecutor()
    executor.submit("w0", plan.chunks[0].task({cell.id for cell in plan.cells}))
    (event,) = executor.wait(1)
    assert all(drawn.png for drawn in event.result.drawn)
    stored = store_result(open_files(place), event.task, event.result)
    assert all(drawn.stored and not drawn.png and not drawn.entropy for drawn in stored.drawn)


@pytest.mark.parametrize("fault", [KeyboardInterrupt(), "die", "RuntimeError: no"])
def test_what_is_stored_is_kept_whatever_happens(sweep, undisturbed, place, files, fault):
    code = sweep(StoringExecutor(place, fault=After(fault, 5)), place)
    assert code == (130 if isinstance(fault, KeyboardInterrupt) else 0)
    rest = StoringExecutor(place)
    assert sweep(rest, place) == 0
    assert len(rest.log) == (CALLS - 5 if code else 0)
    _same(files, undisturbed)


class Calls:
    """A fault of none: does something at a call of the workers (from 0)."""

    def __init__(self, number, do):
        self._left, self._do = number, do

    def __call__(self, worker, task):
        self._left -= 1
        if self._left == -1:
            self._do()


class Killed(BaseException):
    """Ends a writer where it stands."""


def _killed_at(files, folder):
    """Files whose writer is killed when it is about to make one in the folder."""

    def create(inner, name, data):
        if name.startswith(folder):
            raise Killed
        return inner.create(name, data)

    return PatientFiles(Between(files.inner, create=create))


def test_a_writer_killed_between_image_and_row_leaves_unfinished_work(files, place):
    cell = small_plan().cells[0]
    with pytest.raises(Killed):
        store_cell(_killed_at(files, "rows"), cell.id, PNG, cell_row(cell))
    assert [entry.name for entry in files.list("images")] == [f"images/{cell.id}.png"]
    assert RunFolder(place).read_outcomes([cell]) == {}
    assert store_cell(files, cell.id, PNG, cell_row(cell))
    assert RunFolder(place).read_rows([cell])[cell.id]["image"] == f"images/{cell.id}.png"
    assert len(files.list("images")) == 1


def test_a_row_names_its_own_image_where_a_dead_writer_left_another(files, place):
    cell = small_plan().cells[0]
    with pytest.raises(Killed):
        store_cell(_killed_at(files, "rows"), cell.id, OTHER_PNG, cell_row(cell))
    assert store_cell(files, cell.id, PNG, cell_row(cell))
    row = RunFolder(place).read_rows([cell])[cell.id]
    assert files.read(row["image"]) == PNG
    assert files.read(f"images/{cell.id}.png") == OTHER_PNG


def test_of_two_writers_of_a_cell_one_makes_the_row(files, place):
    cell = small_plan().cells[0]
    assert store_cell(files, cell.id, PNG, {**cell_row(cell), "device": "a"})
    assert not store_cell(files, cell.id, OTHER_PNG, {**cell_row(cell), "device": "b"})
    row = RunFolder(place).read_rows([cell])[cell.id]
    assert row["device"] == "a"
    assert files.read(row["image"]) == PNG


def test_without_conditional_writes_the_second_would_win(files, place):
    # The control of the test above.
    cell = small_plan().cells[0]
    careless = PatientFiles(Between(files.inner, create=lambda inner, *arguments: inner.write(*arguments) or True))
    assert store_cell(careless, cell.id, PNG, {**cell_row(cell), "device": "a"})
    assert store_cell(careless, cell.id, OTHER_PNG, {**cell_row(cell), "device": "b"})
    assert RunFolder(place).read_rows([cell])[cell.id]["device"] == "b"


def test_a_write_whose_answer_was_lost_is_no_loss(files, monkeypatch):
    monkeypatch.setattr(patience, "FIRST_PAUSE", 0.05)
    lost = []

    def create(inner, name, data):
        made = inner.create(name, data)
        if not lost:
            lost.append(name)
            raise TimeoutError("no answer")
        return made

    assert PatientFiles(Between(files.inner, create=create)).create("rows/a.json", b"mine")
    assert lost
    assert not PatientFiles(Between(files.inner, create=create)).create("rows/a.json", b"another's")


def _lagging(place, hidden):
    """The run's folder with a listing that hides the newest files of rows and parts."""

    def listing(inner, folder):
        entries = sorted(inner.list(folder), key=lambda entry: (entry.modified, entry.name))
        return entries if folder not in ("rows", "samples", "locks") else entries[: max(0, len(entries) - hidden)]

    return RunFolder(place, PatientFiles(Between(open_files(place).inner, list=listing)))


@pytest.mark.parametrize("parts", [7, 1000])
def test_cells_that_a_listing_hides_are_one_row_each(sweep, undisturbed, place, files, monkeypatch, parts):
    with monkeypatch.context() as patch:
        patch.setattr(compaction, "PART_ROWS", parts)
        patch.setattr("entscale_jax.sweep.api.RunFolder", lambda where: _lagging(where, 3))
        assert sweep(StoringExecutor(place, fault=After(KeyboardInterrupt(), 6)), place) == 130
        rest = StoringExecutor(place)
        assert sweep(rest, place) == 0
        drawn_again = sum(len(task.wanted_cells) for _, task in rest.log) - CELLS // 2
    assert 0 <= drawn_again <= 3, "those alone that the listing hid"
    _same(files, undisturbed)


def test_a_part_that_a_listing_hides_is_not_overwritten(place, files, monkeypatch, small_parts):
    cells = small_plan().cells[:14]
    for chunk in (cells[:7], cells[7:]):
        run = _lagging(place, 1)
        run.prepare("sweep: {}\n", cells)
        for cell in chunk:
            run.write(cell, PNG, cell_row(cell))
        run.settle()
    assert len(files.list("samples")) == 2
    assert RunFolder(place).read_outcomes(cells).keys() == {cell.id for cell in cells}


def test_resuming_asks_for_parts_and_never_for_cells(sweep, place, files, s3_server, small_parts, fake_models):
    assert sweep(StoringExecutor(place), place) == 0
    s3_server.requests.clear()
    assert sweep(FakeExecutor(), place) == 0
    parts = len(files.list("samples"))
    about_cells = [path for _, path in s3_server.requests if "/images/" in path or "/rows/" in path]
    assert about_cells == []
    assert parts >= CELLS / 7
    assert len(s3_server.requests) < 3 * parts + 30


def test_the_count_of_requests_tells_a_run_without_parts(sweep, place, s3_server):
    # The control of the test above: left as rows, each is asked for.
    assert sweep(StoringExecutor(place, fault=After(KeyboardInterrupt(), 6)), place) == 130
    s3_server.requests.clear()
    assert sweep(FakeExecutor(), place, dry_run=True) == 0
    assert len([path for _, path in s3_server.requests if "/rows/" in path]) == CELLS // 2


def test_the_second_driver_of_a_run_is_told(sweep, place, console, monkeypatch):
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.05)
    monkeypatch.setattr(lease, "WATCH_SECONDS", 0.05)

    def start_another(worker, task):
        with pytest.raises(UserError, match=r"is being written by another sweep \(process \d+ on "):
            sweep(FakeExecutor(), place)
        return "fatal seen"

    with pytest.raises(UserError, match=r"^seen$"):
        sweep(FakeExecutor(fault=start_another), place)
    assert sweep(FakeExecutor(), place) == 0


def test_another_sweep_at_the_uri_is_refused_with_the_difference(sweep, place, spec_file):
    assert sweep(FakeExecutor(), place) == 0
    spec_file.write_text(spec_file.read_text().replace("steps: 3", "steps: 4"))
    with pytest.raises(UserError, match=rf"^{place} holds another sweep: sampler.steps is 3 there and 4 here"):
        sweep(FakeExecutor(), place)


def test_a_prefix_of_something_else_is_left_alone(sweep, place, files):
    files.write("thesis.tex", b"")
    with pytest.raises(UserError, match=r"holds 'thesis.tex' and no run: give an empty or new folder"):
        sweep(FakeExecutor(), place)
    assert [entry.name for entry in files.list("")] == ["thesis.tex"]


def test_a_bucket_that_is_not_there_is_told_at_once(sweep, s3, monkeypatch):
    monkeypatch.setattr(patience, "time", SimpleNamespace(monotonic=time.monotonic, sleep=_never))
    with pytest.raises(UserError, match=r"s3://no-such-bucket-here/run is refused \(.*bucket.*check the name"):
        sweep(FakeExecutor(), "s3://no-such-bucket-here/run")


def _never(seconds):
    raise AssertionError(f"waits {seconds} s for what can't pass")


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("s3://bucket", "names no folder in a bucket: write s3://BUCKET/FOLDER"),
        ("s3://", "names no folder in a bucket"),
        ("az://bucket/run", "is no place for a run: give a folder, s3://BUCKET/FOLDER or gs://BUCKET/FOLDER"),
        ("http://host/run", "is no place for a run"),
    ],
)
def test_uris_that_are_none_of_a_run(sweep, uri, says):
    with pytest.raises(UserError, match=says):
        sweep(FakeExecutor(), uri)


def test_a_store_that_is_away_for_a_while_is_waited_for(sweep, undisturbed, place, files, s3_server, monkeypatch):
    monkeypatch.setattr(patience, "FIRST_PAUSE", 0.1)
    back = threading.Timer(1.5, s3_server.start_again)

    def goes_away():
        s3_server.stop()
        back.start()

    executor = StoringExecutor(place, fault=Calls(5, goes_away))
    assert sweep(executor, place) == 0
    back.join()
    assert len(executor.log) == CALLS, "results in hand are held, not drawn again"
    _same(files, undisturbed)


def test_a_store_that_stays_away_ends_the_run_in_one_line(sweep, place, files, s3_server):
    try:
        with impatient(), pytest.raises(UserError) as caught:
            sweep(StoringExecutor(place, fault=Calls(5, s3_server.stop)), place)
    finally:
        s3_server.start_again()
    assert "failed for" in str(caught.value)
    assert "give the same command again" in str(caught.value)
    assert "\n" not in str(caught.value)
    rest = StoringExecutor(place)
    assert sweep(rest, place) == 0
    assert len(rest.log) == CALLS - 5


def test_failed_cells_are_drawn_again_where_asked(sweep, undisturbed, place, files, small_parts):
    def fault(worker, task):
        return "RuntimeError: no" if task.chunk.width == 96 else None

    assert sweep(StoringExecutor(place, fault=fault), place) == 1
    left_alone = StoringExecutor(place)
    assert sweep(left_alone, place) == 1
    assert left_alone.started == 0
    retried = StoringExecutor(place)
    assert sweep(retried, place, retry_failed=True) == 0
    assert {task.chunk.width for _, task in retried.log} == {96}
    _same(files, undisturbed)


def test_no_resume_begins_from_nothing(sweep, undisturbed, place, files, small_parts):
    assert sweep(StoringExecutor(place), place) == 0
    again = StoringExecutor(place)
    assert sweep(again, place, resume=False) == 0
    assert len(again.log) == CALLS
    _same(files, undisturbed)


def test_a_dry_run_at_a_uri_writes_nothing(sweep, place, s3_server):
    assert sweep(FakeExecutor(), place, dry_run=True) == 0
    assert {method for method, _ in s3_server.requests} <= {"GET", "HEAD"}
