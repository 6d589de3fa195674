"""The run folder: every result is a file that appears at once, image first and then its row; rows are the memory.

Files are written beside their place and renamed into it, so a file that is there is whole. A row without its image is
unfinished work. What is whole is never drawn again.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError
from .plan import Cell

_PNG_END = b"IEND\xaeB`\x82"
Row = dict[str, Any]


def write_whole(path: Path, data: bytes | str) -> None:
    """Writes a file so that it appears at once, or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data if isinstance(data, bytes) else data.encode())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: object) -> None:
    """Writes JSON as `write_whole` does."""
    write_whole(path, json.dumps(value, indent=1) + "\n")


def read_json(path: Path) -> Any:
    """The value of a JSON file; None where it is missing or broken."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


class RunFolder:
    """Reads and writes the files of one run; only the driver holds one."""

    def __init__(self, path: Path):
        self.path = path
        self.images = path / "images"
        self.rows = path / "rows"

    def exists(self) -> bool:
        """Whether a run was begun here."""
        return (self.path / "spec.yaml").is_file()

    @contextlib.contextmanager
    def opened(self) -> Iterator["RunFolder"]:
        """Makes the folder and holds it against another driver. Raises UserError where it can't be written."""
        self._check_mine()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = open(self.path / ".lock", "w")  # noqa: SIM115
        except OSError as error:
            raise UserError(
                f"out folder {self.path} can't be written ({error.strerror}): give another with --out"
            ) from error
        with lock:
            self._lock(lock.fileno())
            yield self

    def prepare(self, spec: str) -> None:
        """Writes the spec of a new run, makes its folders and removes what an interrupted writer left."""
        if not self.exists():
            write_whole(self.path / "spec.yaml", spec)
        for folder in (self.path, self.images, self.rows):
            folder.mkdir(exist_ok=True)
            for leftover in folder.glob(".*.tmp"):
                leftover.unlink()

    def forget(self) -> None:
        """Removes all results, for a run that starts again from nothing."""
        names = ("samples.parquet", "entropy.parquet", "programs.json", "environment.json")
        for path in (*self.rows.glob("*.json"), *self.images.glob("*.png"), *(self.path / name for name in names)):
            path.unlink(missing_ok=True)

    def read_rows(self, cells: Sequence[Cell]) -> dict[str, Row]:
        """The rows of those cells that are whole or have failed, by cell id."""
        rows = {cell.id: read_json(self.rows / f"{cell.id}.json") for cell in cells}
        return {key: row for key, row in rows.items() if isinstance(row, dict) and self._is_whole(key, row)}

    def write(self, cell: Cell, png: bytes, row: Row) -> None:
        """Stores a drawn cell: the image, then the row that makes it count."""
        write_whole(self.images / f"{cell.id}.png", png)
        write_json(self.rows / f"{cell.id}.json", {**row, "image": f"images/{cell.id}.png"})

    def write_failure(self, cell: Cell, row: Row, error: str) -> None:
        """Stores that a cell could not be drawn, and why."""
        write_json(self.rows / f"{cell.id}.json", {**row, "image": None, "error": error})

    def _is_whole(self, cell: str, row: Mapping[str, Any]) -> bool:
        if row.get("cell") != cell:
            return False
        return row.get("error") is not None or _ends_as_png(self.images / f"{cell}.png")

    def _check_mine(self) -> None:
        if self.exists() or not self.path.is_dir():
            return
        strangers = [entry.name for entry in self.path.iterdir() if not entry.name.startswith(".")]
        if strangers:
            raise UserError(f"{self.path} holds {strangers[0]!r} and no run: give an empty or new folder with --out")

    def _lock(self, descriptor: int) -> None:
        try:
            import fcntl
        except ImportError:  # Windows has no such lock; there two drivers of one folder are the user's to avoid.
            return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{self.path} is being written by another sweep: wait for it, or give another --out"
            ) from None
        except OSError:  # A file system without locks, as some network ones are.
            return


def _ends_as_png(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            file.seek(-len(_PNG_END), os.SEEK_END)
            return file.read() == _PNG_END
    except OSError:
        return False


def cell_row(cell: Cell) -> Row:
    """The columns of a row that the plan knows already."""
    return {
        "cell": cell.id,
        "model": cell.model,
        "width": cell.width,
        "height": cell.height,
        "method": cell.method.label,
        "prompt": cell.prompt,
        "seed": cell.seed,
    }
