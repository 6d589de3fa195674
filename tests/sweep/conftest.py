import io

import pytest
import sweep_fakes as fakes
from rich.console import Console


@pytest.fixture
def spec_file(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(fakes.SPEC)
    return path


@pytest.fixture
def console():
    """A console that is no terminal; `console.file.getvalue()` is what was printed."""
    return Console(file=io.StringIO(), width=300)


@pytest.fixture
def fake_models(monkeypatch):
    """Lets every model's name describe a fake one."""

    def describe(model, *, train_size=None):
        return fakes.FakeInfo(str(model), train_size=train_size or (64, 64))

    monkeypatch.setattr("entscale_jax.sweep.api.describe", describe)


@pytest.fixture
def sweep(fake_models, spec_file, console, tmp_path):
    """Runs the small sweep in `out` with an executor; further keywords go to `run_sweep`."""
    from entscale_jax.sweep import run_sweep

    def run(executor, out=None, **keywords):
        out = out or tmp_path / "run"
        return run_sweep(spec_file, out=out, console=console, open_executor=fakes.opening(executor), **keywords)

    return run


@pytest.fixture(scope="session")
def s3_server():
    """An S3 server of this process."""
    from s3_server import Server

    server = Server()
    yield server
    server.close()


@pytest.fixture
def s3(s3_server, monkeypatch):
    """A new bucket of it, which this process's s3:// leads to: its URI."""
    import uuid

    import boto3
    from s3_server import use

    use(monkeypatch, s3_server)
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    client = boto3.client("s3")
    client.create_bucket(Bucket=name)
    client.close()
    s3_server.requests.clear()
    return f"s3://{name}"
