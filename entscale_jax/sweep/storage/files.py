"""The files of a run as the store sees them: whole when they appear, by name, in a local folder or at a URI."""

import os
import shutil
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

from .patience import patiently

Value = TypeVar("Value")


class Entry(NamedTuple):
    """A file that a listing tells of."""

    name: str
    """Relative to the run, such as `rows/0123456789abcdef.json`."""
    size: int
    modified: float
    """Seconds since 1970, by the clock of the store."""


@runtime_checkable
class Files(Protocol):
    """Names are relative to the run. Each file appears whole or not at all; what fails raises the library's error."""

    @property
    def place(self) -> str:
        """Where the run is, as the user writes it."""
        ...

    @property
    def remote(self) -> bool:
        """Whether other machines see the same files at the same place."""
        ...

    def read(self, name: str) -> bytes | None:
        """The contents; None where there is no such file."""
        ...

    def read_many(self, names: Sequence[str]) -> Mapping[str, bytes]:
        """The contents of those that are there."""
        ...

    def write(self, name: str, data: bytes) -> None:
        """Makes or replaces a file."""
        ...

    def create(self, name: str, data: bytes) -> bool:
        """Makes a file; False where there is one of that name, which stays."""
        ...

    def list(self, folder: str) -> Sequence[Entry]:
        """The files right in a folder, `` being the run itself; none where there is no such folder."""
        ...

    def remove(self, names: Iterable[str]) -> None:
        """Removes those of the files that are there."""
        ...

    def upload(self, path: Path, name: str) -> None:
        """Makes or replaces a file by a local one, which may be large; the local one may be gone afterwards."""
        ...

    def download(self, name: str, path: Path) -> bool:
        """Copies a file that may be large to a local one; False where there is none."""
        ...


def write_whole(path: Path, data: bytes | str) -> None:
    """Writes a file so that it appears at once, or not at all."""
    temporary = _beside(path)
    try:
        _fill(temporary, data if isinstance(data, bytes) else data.encode())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")


def _fill(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


class LocalFiles:
    """A folder of this machine. Files are written beside their place and renamed into it."""

    remote = False

    def __init__(self, folder: Path):
        self.folder = folder

    @property
    def place(self) -> str:
        return str(self.folder)

    def read(self, name: str) -> bytes | None:
        try:
            return (self.folder / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def read_many(self, names: Sequence[str]) -> dict[str, bytes]:
        found = ((name, self.read(name)) for name in names)
        return {name: data for name, data in found if data is not None}

    def write(self, name: str, data: bytes) -> None:
        path = self.folder / name
        try:
            write_whole(path, data)
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, data)

    def create(self, name: str, data: bytes) -> bool:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _beside(path)
        try:
            _fill(temporary, data)
            # Unlike a rename, a link fails where there is a file already.
            os.link(temporary, path)
        except FileExistsError:
            return False
        finally:
            temporary.unlink(missing_ok=True)
        return True

    def list(self, folder: str) -> list[Entry]:
        prefix = f"{folder}/" if folder else ""
        try:
            with os.scandir(self.folder / folder) as entries:
                return [
                    Entry(prefix + entry.name, status.st_size, status.st_mtime)
                    for entry in entries
                    if not entry.name.startswith(".") and entry.is_file() and (status := entry.stat())
                ]
        except (FileNotFoundError, NotADirectoryError):
            return []

    def remove(self, names: Iterable[str]) -> None:
        for name in names:
            (self.folder / name).unlink(missing_ok=True)

    def upload(self, path: Path, name: str) -> None:
        target = self.folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = _beside(target)
        try:
            shutil.move(path, temporary)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)

    def download(self, name: str, path: Path) -> bool:
        try:
            shutil.copyfile(self.folder / name, path)
        except FileNotFoundError:
            return False
        return True


class PatientFiles:
    """Files that are tried again while what fails can pass. Raises UserError where the store stays away or refuses."""

    def __init__(self, files: Files):
        self.inner = files
        self._hurried = False

    def hurry(self) -> None:
        """From now on each call is tried once: the run is ending, and was waited for enough."""
        self._hurried = True

    def _try(self, call: Callable[[], Value], place: str) -> Value:
        return patiently(call, place, hurried=lambda: self._hurried)

    @property
    def place(self) -> str:
        return self.inner.place

    @property
    def remote(self) -> bool:
        return self.inner.remote

    def name_of(self, name: str) -> str:
        """A file's whole name, for the user."""
        return f"{self.place}/{name}" if name else self.place

    def read(self, name: str) -> bytes | None:
        return self._try(lambda: self.inner.read(name), f"reading {self.name_of(name)}")

    def read_many(self, names: Sequence[str]) -> Mapping[str, bytes]:
        return self._try(lambda: self.inner.read_many(names), f"reading files in {self.place}") if names else {}

    def write(self, name: str, data: bytes) -> None:
        self._try(lambda: self.inner.write(name, data), f"writing {self.name_of(name)}")

    def write_once(self, name: str, data: bytes) -> None:
        """As `write`, tried a single time: for what the run can do without."""
        patiently(lambda: self.inner.write(name, data), f"writing {self.name_of(name)}", hurried=lambda: True)

    def create(self, name: str, data: bytes) -> bool:
        """As `Files.create`, but True too where the file holds the same: a try whose answer was lost had made it."""
        made = self._try(lambda: self.inner.create(name, data), f"writing {self.name_of(name)}")
        return made or self.read(name) == data

    def list(self, folder: str) -> Sequence[Entry]:
        return self._try(lambda: self.inner.list(folder), f"listing {self.name_of(folder)}")

    def remove(self, names: Iterable[str]) -> None:
        if those := list(names):
            self._try(lambda: self.inner.remove(those), f"removing files in {self.place}")

    def upload(self, path: Path, name: str) -> None:
        self._try(lambda: self.inner.upload(path, name), f"writing {self.name_of(name)}")

    def download(self, name: str, path: Path) -> bool:
        return self._try(lambda: self.inner.download(name, path), f"reading {self.name_of(name)}")
