"""The files of a run at `s3://` or `gs://`, by fsspec, with the credentials that the services' own tools find."""

import threading
from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from ...errors import UserError
from .files import Entry

_PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}
_BATCH = 64
"""Objects that are read or removed at a time."""
_S3_OPTIONS: dict[str, Any] = {
    # With more it asks for the size of each object before it reads it; what is read here is small.
    "max_concurrency": 1,
    # Waiting is the store's: a call that can't get through says so soon.
    "config_kwargs": {"connect_timeout": 5, "read_timeout": 30, "retries": {"mode": "standard", "max_attempts": 1}},
}


class CloudFiles:
    """Objects below a prefix. One PUT makes an object, so it is whole; one with `If-None-Match` makes it once."""

    remote = True

    def __init__(self, scheme: str, root: str):
        self._scheme = scheme
        self._root = root.strip("/")
        self._lock = threading.Lock()

    @property
    def place(self) -> str:
        return f"{self._scheme}://{self._root}"

    @cached_property
    def _system(self) -> Any:
        # Threads that share a file system share its connections, too. What others write must be seen, so no listing is
        # remembered.
        try:
            if self._scheme != "s3":
                # fsspec's own choice asks for the bucket's kind first, by a right that one who reads and writes lacks.
                from gcsfs.core import GCSFileSystem

                return GCSFileSystem(use_listings_cache=False)
            from s3fs import S3FileSystem

            return S3FileSystem(use_listings_cache=False, **_S3_OPTIONS)
        except ImportError as error:
            package = _PACKAGES[self._scheme]
            raise UserError(f"{self.place} needs {package}: pip install 'entscale-jax[cloud]'") from error

    def _fs(self) -> Any:
        with self._lock:
            return self._system

    def _key(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def read(self, name: str) -> bytes | None:
        try:
            return self._fs().cat_file(self._key(name))
        except FileNotFoundError:
            return None

    def read_many(self, names: Sequence[str]) -> dict[str, bytes]:
        keys = {self._key(name): name for name in names}
        found = self._fs().cat(list(keys), on_error="return", batch_size=_BATCH)
        for value in found.values():
            if isinstance(value, Exception) and not isinstance(value, FileNotFoundError):
                raise value
        return {keys[key]: value for key, value in found.items() if isinstance(value, bytes)}

    def write(self, name: str, data: bytes) -> None:
        self._fs().pipe_file(self._key(name), data)

    def create(self, name: str, data: bytes) -> bool:
        try:
            self._fs().pipe_file(self._key(name), data, mode="create")
        except FileExistsError:
            return False
        except OSError as error:
            if _says_exists(error):
                return False
            raise
        return True

    def list(self, folder: str) -> list[Entry]:
        try:
            found = self._fs().ls(self._key(folder), detail=True, refresh=True)
        except FileNotFoundError as error:
            # The service says so of a bucket alone; that there is nothing below a prefix is the library's finding.
            if error.__cause__ is not None:
                raise
            return []
        start = len(self._root) + 1
        return [
            Entry(entry["name"][start:], entry["size"] or 0, _modified(entry))
            for entry in found
            if entry["type"] == "file" and not entry["name"].endswith("/")
        ]

    def remove(self, names: Iterable[str]) -> None:
        keys = [self._key(name) for name in names]
        for start in range(0, len(keys), 1000):
            try:
                self._fs().rm(keys[start : start + 1000])
            except FileNotFoundError:
                self._remove_one_by_one(keys[start : start + 1000])

    def _remove_one_by_one(self, keys: Sequence[str]) -> None:
        for key in keys:
            try:
                self._fs().rm_file(key)
            except FileNotFoundError:
                continue

    def upload(self, path: Path, name: str) -> None:
        self._fs().put_file(str(path), self._key(name))

    def download(self, name: str, path: Path) -> bool:
        try:
            self._fs().get_file(self._key(name), str(path))
        except FileNotFoundError:
            return False
        return True


def _modified(entry: dict[str, Any]) -> float:
    when = entry.get("LastModified") or entry.get("mtime")
    return when.timestamp() if isinstance(when, datetime) else 0.0


def _says_exists(error: BaseException | None) -> bool:
    """Whether a conditional write was refused as there is an object; stores differ in how they say it."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict) and response.get("Error", {}).get("Code") in ("PreconditionFailed", "412"):
            return True
        if str(getattr(error, "code", "")) == "412":
            return True
        error = error.__cause__
    return False
