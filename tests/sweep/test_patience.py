"""What can pass is waited for, what can't is told at once, and neither leaves anything half-written."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
from PIL import Image
from s3_server import Between
from sweep_fakes import FakeExecutor
from test_run_sweep import CELLS

from entscale_jax.errors import UserError
from entscale_jax.sweep.storage import patience
from entscale_jax.sweep.storage.files import LocalFiles, PatientFiles
from entscale_jax.sweep.storage.patience import patiently
from entscale_jax.sweep.store import RunFolder


class Clock:
    """Time that passes by sleeping alone."""

    def __init__(self):
        self.now, self.pauses = 0.0, []

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.pauses.append(seconds)
        self.now += seconds


@pytest.fixture
def clock():
    return Clock()


def _fails(times, error):
    left = [error] * times

    def call():
        if left:
            raise left.pop()
        return "done"

    return call


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class ServerDisconnectedError(Exception):
    """As aiohttp's, which is no OSError."""

    __module__ = "aiohttp.client_exceptions"


@pytest.mark.parametrize(
    "error", [FULL, OSError(errno.EIO, ""), ConnectionResetError(), TimeoutError(), ServerDisconnectedError("gone")]
)
def test_what_can_pass_is_tried_again_for_two_minutes(clock, error):
    assert patiently(_fails(12, error), "x", sleep=clock.sleep, clock=clock) == "done"
    assert 60 <= clock.now <= 120
    assert max(clock.pauses) == patience.LONGEST_PAUSE


def test_what_stays_is_told_in_one_line(clock):
    with pytest.raises(
        UserError, match=r"^writing x failed for \d+ s \(No space left on device\): mend that"
    ) as caught:
        patiently(_fails(1000, FULL), "writing x", sleep=clock.sleep, clock=clock)
    assert 100 <= clock.now <= 120
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "error", [PermissionError("denied"), OSError(errno.EROFS, "read-only"), FileNotFoundError("no bucket")]
)
def test_a_refusal_is_told_at_once(clock, error):
    with pytest.raises(UserError, match=r"^x is refused \((denied|read-only|no bucket)\)"):
        patiently(_fails(1, error), "x", sleep=clock.sleep, clock=clock)
    assert clock.pauses == []


def test_a_mistake_of_the_program_is_no_fault_of_the_store(clock):
    with pytest.raises(ZeroDivisionError):
        patiently(_fails(1, ZeroDivisionError()), "x", sleep=clock.sleep, clock=clock)


def test_a_run_that_is_ending_waits_no_more(clock):
    with pytest.raises(UserError, match="failed for 0 s"):
        patiently(_fails(1, FULL), "x", hurried=lambda: True, sleep=clock.sleep, clock=clock)


class Disk:
    """Makes run folders on a disk that is full from a write on, for so many seconds; each try leaves half a file."""

    def __init__(self, first, seconds, clock):
        self.writes, self.first, self.seconds, self.clock = 0, first, seconds, clock
        self.full_since = None

    def write(self, inner, name, data):
        self.writes += 1
        if self.writes == self.first:
            self.full_since = self.clock()
        if self.full_since is not None and self.clock() - self.full_since < self.seconds:
            path = inner.folder / name
            path.with_name(f".{path.name}.1-1.tmp").write_bytes(data[: len(data) // 2])
            raise FULL
        inner.write(name, data)

    def open(self, place):
        return RunFolder(place, PatientFiles(Between(LocalFiles(Path(place)), write=self.write)))


@pytest.fixture
def fast(monkeypatch, clock):
    """A clock of the store's, so that minutes pass at once."""
    monkeypatch.setattr(patience, "time", SimpleNamespace(sleep=clock.sleep, monotonic=clock))
    return clock


def test_a_disk_that_is_full_for_a_minute_costs_nothing(sweep, tmp_path, monkeypatch, fast):
    disk = Disk(30, 60.0, fast)
    monkeypatch.setattr("entscale_jax.sweep.api.RunFolder", disk.open)
    executor = FakeExecutor()
    assert sweep(executor) == 0
    assert fast.now > 50
    assert disk.writes > 40
    assert len(executor.log) == 18, "results in hand are held, not drawn again"
    assert pq.read_table(tmp_path / "run" / "samples.parquet").num_rows == CELLS
    # Not full, it does not wait: the control.
    before = fast.now
    monkeypatch.setattr("entscale_jax.sweep.api.RunFolder", Disk(30, 0.0, fast).open)
    assert sweep(FakeExecutor(), tmp_path / "other") == 0
    assert fast.now == before


def test_a_disk_that_stays_full_ends_the_run_and_half_a_file_counts_for_nothing(sweep, tmp_path, monkeypatch, fast):
    with monkeypatch.context() as patch:
        patch.setattr("entscale_jax.sweep.api.RunFolder", Disk(30, float("inf"), fast).open)
        with pytest.raises(
            UserError, match=r"^writing .*run/.* failed for .* s \(No space left on device\): mend that"
        ):
            sweep(FakeExecutor())
    halves = list((tmp_path / "run").rglob("*.tmp"))
    assert halves
    rest = FakeExecutor()
    assert sweep(rest) == 0
    assert 0 < len(rest.log) < 18
    assert not list((tmp_path / "run").rglob("*.tmp"))
    assert pq.read_table(tmp_path / "run" / "samples.parquet").num_rows == CELLS


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of three MiB."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        pytest.skip("only root on Linux mounts file systems")
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(place)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def _check_whole(run):
    """Every image and row that is there under its name is whole, and no row lacks its image."""
    for image in (run / "images").glob("*.png"):
        with Image.open(image) as opened:
            opened.load()
    rows = [json.loads(path.read_text()) for path in (run / "rows").glob("*.json")]
    assert rows
    assert all((run / row["image"]).is_file() for row in rows)
    return len(rows)


def test_a_real_disk_that_is_full_is_waited_for_and_the_same_command_goes_on(sweep, small_disk, fast, monkeypatch):
    run, filler = small_disk / "run", small_disk / "of someone else"
    filler.write_bytes(bytes(2500 * 2**10))
    with pytest.raises(UserError, match=r"^writing .* failed for \d+ s \(No space left on device\): mend that"):
        sweep(FakeExecutor(), run)
    assert fast.now > 100
    assert 0 < _check_whole(run) < CELLS
    # Someone makes room while the next run waits.
    pause = fast.sleep
    monkeypatch.setattr(patience.time, "sleep", lambda seconds: (filler.unlink(missing_ok=True), pause(seconds)))
    waited, rest = fast.now, FakeExecutor()
    assert sweep(rest, run) == 0
    assert waited < fast.now < waited + 60
    assert not filler.exists()
    assert 0 < len(rest.log) < 18
    assert _check_whole(run) == CELLS
    # With that room from the start, nothing waits: the control.
    shutil.rmtree(run)
    waited = fast.now
    assert sweep(FakeExecutor(), run) == 0
    assert fast.now == waited
