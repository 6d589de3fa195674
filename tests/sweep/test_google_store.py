"""Runs at gs://, against a server of Google's storage API of this process; `test_cloud_store` has the faults."""

import contextlib
from http import HTTPStatus

import pytest
from s3_server import StoringExecutor
from sweep_fakes import FakeExecutor

from entscale_jax.errors import UserError
from entscale_jax.sweep.fetch import fetch_run
from entscale_jax.sweep.status import read_status
from entscale_jax.sweep.storage.places import open_files

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


@pytest.fixture
def bucket(monkeypatch):
    """A new bucket that this process's gs:// leads to: its URI."""
    from gcp_storage_emulator import server

    # It answers one call at a time, so the others have to be let wait.
    monkeypatch.setattr(server.server.HTTPServer, "request_queue_size", 128)
    for _, handlers in server.HANDLERS:
        if handlers.get("POST") is server.objects.insert:
            monkeypatch.setitem(handlers, "POST", _conditional(server.objects.insert))
    running = server.create_server("127.0.0.1", 0, in_memory=True, default_bucket="runs")
    running.start()
    port = running._api._httpd.server_port
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
    yield f"gs://runs/{port}"
    running.stop()


def _conditional(insert):
    """The server's upload with the condition that it leaves out: `ifGenerationMatch=0` makes an object that is new."""
    from gcp_storage_emulator.exceptions import NotFound

    def checked(request, response, storage, *arguments, **keywords):
        if "ifGenerationMatch" in request.query:
            with contextlib.suppress(NotFound):
                storage.get_file_obj(request.params["bucket_name"], request.data["meta"]["name"])
                response.status = HTTPStatus.PRECONDITION_FAILED
                response.json({"error": {"code": 412, "message": "conditionNotMet"}})
                return
        insert(request, response, storage, *arguments, **keywords)

    return checked


def test_files_are_whole_and_made_once(bucket, tmp_path):
    files = open_files(f"{bucket}/run")
    assert files.read("spec.yaml") is None
    assert files.list("rows") == []
    files.write("spec.yaml", b"one")
    files.write("spec.yaml", b"two")
    assert files.read("spec.yaml") == b"two"
    assert files.create("rows/a.json", b"mine")
    assert not files.create("rows/a.json", b"another's")
    assert files.read_many(["rows/a.json", "rows/b.json"]) == {"rows/a.json": b"mine"}
    assert [entry.name for entry in files.list("rows")] == ["rows/a.json"]
    assert [entry.name for entry in files.list("")] == ["spec.yaml"]
    (tmp_path / "table").write_bytes(b"rows" * 1000)
    files.upload(tmp_path / "table", "samples.parquet")
    assert files.download("samples.parquet", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"rows" * 1000
    assert not files.download("entropy.parquet", tmp_path / "none")
    files.remove(["rows/a.json", "rows/b.json"])
    assert files.list("rows") == []


def test_a_run_is_drawn_resumed_and_brought_home(sweep, bucket, tmp_path):
    place = f"{bucket}/run"
    assert sweep(StoringExecutor(place, 2), place) == 0
    again = FakeExecutor()
    assert sweep(again, place) == 0
    assert again.started == 0
    status = read_status(place)
    assert status.ended
    folder, fetched = fetch_run(place, tmp_path / "home")
    assert fetched.brought
    images = {path.name: path.read_bytes() for path in (folder / "images").iterdir()}
    assert sweep(FakeExecutor(), tmp_path / "local") == 0
    assert images == {path.name: path.read_bytes() for path in (tmp_path / "local" / "images").iterdir()}


def test_a_bucket_that_is_not_there_is_told_at_once(sweep, bucket):
    with pytest.raises(UserError, match="gs://nothing/run"):
        sweep(FakeExecutor(), "gs://nothing/run")
