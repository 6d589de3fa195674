"""One driver a run: who holds it, who is told, and who may take it over."""

import json
import os
import subprocess
import sys

import pytest
from s3_server import Between

from entscale_jax.errors import UserError
from entscale_jax.sweep.storage import lease as module
from entscale_jax.sweep.storage.files import PatientFiles
from entscale_jax.sweep.storage.lease import Lease, leased
from entscale_jax.sweep.storage.places import open_files


@pytest.fixture
def files(tmp_path):
    return open_files(tmp_path)


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(module, "LEASE_SECONDS", 60.0)
    monkeypatch.setattr(module, "RENEW_SECONDS", 0.02)
    monkeypatch.setattr(module, "WATCH_SECONDS", 0.02)


def _edit(files, number, **changes):
    name = f"locks/{number:06d}.json"
    files.write(name, json.dumps({**json.loads(files.read(name)), **changes}).encode())


def test_a_second_driver_is_told_of_the_first(files):
    with leased(files), pytest.raises(UserError, match=rf"another sweep \(process {os.getpid()} on .*wait for it"):
        Lease(files).take()


def test_after_the_first_ended_the_second_need_not_wait(files, monkeypatch):
    monkeypatch.setattr(module, "LEASE_SECONDS", 1000.0)
    for _ in range(3):
        with leased(files):
            pass
    assert [entry.name for entry in sorted(files.list("locks"))] == [f"locks/00000{number}.json" for number in range(3)]


def test_a_holder_that_is_gone_from_this_machine_is_not_waited_for(files, monkeypatch):
    monkeypatch.setattr(module, "LEASE_SECONDS", 1000.0)
    code = (
        "import os, sys\n"
        "from entscale_jax.sweep.storage.lease import Lease\n"
        "from entscale_jax.sweep.storage.places import open_files\n"
        "Lease(open_files(sys.argv[1])).take(); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code, files.place], check=False, timeout=60)
    assert json.loads(files.read("locks/000000.json"))["over"] is False
    with leased(files):
        pass


def test_a_holder_elsewhere_is_watched_and_taken_over_where_it_is_dead(files, monkeypatch):
    monkeypatch.setattr(module, "LEASE_SECONDS", 0.4)
    with leased(files):
        pass
    _edit(files, 0, machine="another", over=False)
    with leased(files):
        assert files.read("locks/000001.json")


def test_a_holder_elsewhere_that_renews_is_not_taken_over(files, monkeypatch):
    # The control of the test above.
    with leased(files):
        monkeypatch.setattr(module, "_machine", lambda: "another")
        with pytest.raises(UserError, match="is being written by another sweep"):
            Lease(files).take()


def test_of_two_that_want_it_at_once_one_wins(files):
    with leased(files):
        pass

    def create(inner, name, data):
        if name == "locks/000001.json" and inner.read(name) is None:
            inner.create(name, json.dumps({"pid": 7, "node": "winner"}).encode())
        return inner.create(name, data)

    late = PatientFiles(Between(files.inner, create=create))
    with pytest.raises(UserError, match=r"process 7 on winner"):
        Lease(late).take()


def test_a_listing_that_hides_the_holder_hides_it_from_nobody(files):
    blind = PatientFiles(Between(files.inner, list=lambda inner, folder: []))
    with leased(files), pytest.raises(UserError, match="is being written by another sweep"):
        Lease(blind).take()


def test_a_driver_that_was_taken_over_is_told(files):
    with leased(files) as lease:
        lease.check()
        files.create("locks/000001.json", b"{}")
        lease._thread.join(60)
        assert lease._lost
        with pytest.raises(UserError, match="was taken over by another sweep"):
            lease.check()
    assert json.loads(files.read("locks/000000.json"))["over"] is False
