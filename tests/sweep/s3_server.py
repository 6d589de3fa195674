"""An S3 server of this process, and a run's files with faults in between."""

import logging
import os
import socket

import pytest
from moto.server import ThreadedMotoServer
from sweep_fakes import FakeExecutor
from werkzeug.serving import BaseWSGIServer

from entscale_jax.sweep.cell_writer import store_result
from entscale_jax.sweep.executor import Failed, Failure, Finished
from entscale_jax.sweep.storage.places import open_files

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
}


logging.getLogger("werkzeug").setLevel(logging.WARNING)


class Server:
    """A server whose objects outlive that it is away, at the same port."""

    def __init__(self):
        # Bound and not listening, it refuses who calls while the server is away, and lets nobody else have the port.
        self._place = socket.socket()
        self._place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._place.bind(("127.0.0.1", 0))
        self.host, self.port = self._place.getsockname()
        self.requests: list[tuple[str, str]] = []
        self.start_again()

    @property
    def url(self):
        return f"http://{self.host}:{self.port}"

    def stop(self):
        server = self._server._server
        self._server.stop()
        # Otherwise the kernel goes on taking connections that nobody answers.
        server.server_close()

    def close(self):
        self.stop()
        self._place.close()

    def start_again(self):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(BaseWSGIServer, "allow_reuse_port", True, raising=False)
            self._server = ThreadedMotoServer(ip_address=self.host, port=self.port, verbose=False)
            self._server.start()
        self._count()

    def _count(self):
        inner = self._server._server.app

        def app(environ, start_response):
            self.requests.append((environ["REQUEST_METHOD"], environ["PATH_INFO"]))
            return inner(environ, start_response)

        self._server._server.app = app


class StoringExecutor(FakeExecutor):
    """Workers that store what they draw at a URI, as Ray's do."""

    def __init__(self, place, *arguments, **keywords):
        super().__init__(*arguments, **keywords)
        self.files = open_files(place)

    def wait(self, seconds):
        return [self._stored(event) for event in super().wait(seconds)]

    def _stored(self, event):
        if not isinstance(event, Finished):
            return event
        value = store_result(self.files, event.task, event.result)
        made = Failed if isinstance(value, Failure) else Finished
        return made(event.worker, event.task, value)


class Between:
    """Files with something in between: a method given by name takes the call, with the inner files first."""

    def __init__(self, inner, **methods):
        self._inner = inner
        self._methods = methods

    def __getattr__(self, name):
        if name in self._methods:
            return lambda *arguments: self._methods[name](self._inner, *arguments)
        return getattr(self._inner, name)


def use(monkeypatch, server):
    """Lets this process's s3:// be the server."""
    for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": server.url}.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
        if name in os.environ:
            monkeypatch.delenv(name)
