"""A run comes home whole, and what came before does not come twice."""

import sys

import pyarrow.parquet as pq
import pytest
from s3_server import StoringExecutor
from sweep_fakes import FakeExecutor
from test_cloud_store import SPEC
from test_run_sweep import After

from entscale_jax import cli
from entscale_jax.errors import UserError
from entscale_jax.reports.run_folder import read_run
from entscale_jax.sweep import compaction
from entscale_jax.sweep.fetch import fetch_run
from entscale_jax.sweep.storage.places import open_files

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
CELLS = 24


@pytest.fixture
def spec_file(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(SPEC)
    return path


@pytest.fixture
def place(s3, monkeypatch):
    monkeypatch.setattr(compaction, "PART_ROWS", 7)
    return f"{s3}/folder/run"


def test_a_run_comes_home_whole(sweep, place, tmp_path):
    assert sweep(StoringExecutor(place), place) == 0
    folder, first = fetch_run(place, tmp_path / "home")
    files = open_files(place)
    assert pq.read_table(folder / "samples.parquet").num_rows == CELLS
    for name in (entry.name for part in ("", "images", "samples", "entropy") for entry in files.list(part)):
        assert (folder / name).read_bytes() == files.read(name)
    assert not (folder / "locks").exists()
    assert read_run(folder).planned == CELLS
    at_home = FakeExecutor()
    assert sweep(at_home, folder) == 0
    assert at_home.started == 0
    again = fetch_run(place, tmp_path / "home")[1]
    assert (again.brought, again.kept) == (0, first.brought)


def test_an_interrupted_fetch_goes_on_and_brings_what_is_new(sweep, place, tmp_path):
    assert sweep(StoringExecutor(place, fault=After(KeyboardInterrupt(), 6)), place) == 130
    folder, _ = fetch_run(place, tmp_path / "home")
    images = {path.name: path.stat().st_mtime_ns for path in (folder / "images").iterdir()}
    assert len(images) == CELLS // 2
    next((folder / "images").iterdir()).unlink()
    assert sweep(StoringExecutor(place), place) == 0
    _, rest = fetch_run(place, tmp_path / "home")
    assert len(list((folder / "images").iterdir())) == CELLS
    assert rest.kept >= CELLS // 2 - 1
    at_home = FakeExecutor()
    assert sweep(at_home, folder) == 0
    assert at_home.started == 0


@pytest.mark.parametrize(
    ("run", "says"),
    [
        ("runs/aspect", "is on this machine already: fetch takes s3://BUCKET/FOLDER"),
        ("{s3}/nothing", "holds no spec.yaml, so it is no run"),
    ],
)
def test_what_is_no_run_there(s3, tmp_path, run, says):
    with pytest.raises(UserError, match=says):
        fetch_run(run.format(s3=s3), tmp_path / "home")
    assert not (tmp_path / "home").exists()


def test_a_folder_of_something_else_is_left_alone(sweep, place, tmp_path):
    assert sweep(StoringExecutor(place), place) == 0
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("")
    with pytest.raises(UserError, match=r"holds 'thesis.tex' and no run"):
        fetch_run(place, tmp_path / "home")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "spec.yaml").write_text("sweep: {}\n")
    with pytest.raises(UserError, match=r"holds another sweep than s3://"):
        fetch_run(place, tmp_path / "other")


def test_the_command(sweep, place, tmp_path, monkeypatch, capsys):
    assert sweep(StoringExecutor(place), place) == 0
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["entscale", "fetch", place])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    assert "runs/run: " in capsys.readouterr().out
    assert (tmp_path / "runs" / "run" / "samples.parquet").is_file()
    monkeypatch.setattr(sys, "argv", ["entscale", "report", place])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert f"bring it home with `entscale fetch {place}`" in capsys.readouterr().err
