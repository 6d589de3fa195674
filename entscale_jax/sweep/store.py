"""The run folder, on this machine or at a URI: images first and then their rows; rows are the memory.

A file that is there is whole, and a row without its image is unfinished work. What is whole is never drawn again. Rows
are files of their own, `rows/CELL.json`, until PART_ROWS of them are gathered into a part (see `parts`); then they go.
"""

import contextlib
import json
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import UserError
from ..row_choice import choose_rows
from .cell_writer import Row, cell_row, dump_json, image_name, row_name, store_cell
from .compaction import Compaction
from .events import NAME as EVENTS
from .events import Event, EventLog, ObjectLog, Observer, parse_events, read_events
from .plan import Cell
from .storage.files import PatientFiles, write_whole
from .storage.lease import Lease, held_message, leased
from .storage.parts import SAMPLES, decode, samples_name
from .storage.places import open_files

__all__ = ["Outcome", "Row", "RunFolder", "cell_row", "read_json", "write_json", "write_whole"]

_PNG_END = b"IEND\xaeB`\x82"
_READ_AT_ONCE = 1024
_WRITTEN_AT_ONCE = 8
_TABLES = ("samples.parquet", "entropy.parquet", "programs.json", "memory.json", "environment.json")


def write_json(path: Path, value: object) -> None:
    """Writes JSON as `write_whole` does."""
    write_whole(path, dump_json(value))


def read_json(path: Path) -> Any:
    """The value of a JSON file; None where it is missing or broken."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


class Outcome(NamedTuple):
    """What a run remembers of a finished cell, in short: its error, None where it is drawn, and its seconds."""

    error: str | None
    seconds: float | None


class RunFolder:
    """Reads and writes the files of one run; only the driver holds one. Raises UserError where they can't be had."""

    def __init__(self, place: Path | str, files: PatientFiles | None = None):
        self.files = files or open_files(place)
        self._order: dict[str, int] = {}
        self._lease: Lease | None = None
        self._compaction = Compaction(self.files, self._order, self._whole_row, self._check_held)

    @property
    def place(self) -> str:
        """The folder or URI, for the user."""
        return self.files.place

    @property
    def remote(self) -> bool:
        """Whether the run lives at a URI, so that workers write to it themselves."""
        return self.files.remote

    @property
    def path(self) -> Path:
        """The folder of a run on this machine."""
        if self.remote:
            raise TypeError(f"{self.place} is no local folder")
        return Path(self.place)

    @property
    def images(self) -> Path:
        """The folder of images of a run on this machine."""
        return self.path / "images"

    @property
    def rows(self) -> Path:
        """The folder of rows that are in no part yet, of a run on this machine."""
        return self.path / "rows"

    def exists(self) -> bool:
        """Whether a run was begun here."""
        return self.spec() is not None

    def spec(self) -> str | None:
        """The text of the run's `spec.yaml`; None where no run was begun here."""
        data = self.files.read("spec.yaml")
        return None if data is None else data.decode()

    def read_json(self, name: str) -> Any:
        """The value of a JSON file of the run; None where it is missing or broken."""
        try:
            return json.loads(self.files.read(name) or b"")
        except ValueError:
            return None

    def write_json(self, name: str, value: object) -> None:
        """Makes or replaces a JSON file of the run."""
        self.files.write(name, dump_json(value).encode())

    @contextlib.contextmanager
    def opened(self) -> Iterator["RunFolder"]:
        """Makes the folder and holds it against another driver. Raises UserError where it can't be written."""
        self._check_mine()
        with leased(self.files) if self.remote else self._locked() as lease:
            self._lease = lease
            try:
                yield self
            finally:
                self._compaction.close()
                self._lease = None

    def prepare(self, spec: str, cells: Iterable[Cell] = ()) -> None:
        """Writes the spec of a new run, makes its folders and removes what an interrupted writer left.

        `cells` are those of the plan in its order; without them rows are not gathered into parts.
        """
        self._order.update((cell.id, position) for position, cell in enumerate(cells))
        if not self.exists():
            self.files.create("spec.yaml", spec.encode())
        if self.remote:
            return
        for folder in (
            self.path,
            self.images,
            self.rows,
            self.path / "samples",
            self.path / "entropy",
            self.path / "features",
        ):
            if folder in (self.path, self.images, self.rows):
                folder.mkdir(exist_ok=True)
            for leftover in folder.glob(".*.tmp"):
                leftover.unlink()

    def forget(self) -> None:
        """Removes all results, for a run that starts again from nothing."""
        self._compaction.finish()
        for folder, end in (
            ("rows", ".json"),
            ("samples", ".parquet"),
            ("entropy", ".parquet"),
            ("features", ".parquet"),
            ("images", ".png"),
        ):
            self.files.remove(entry.name for entry in self.files.list(folder) if entry.name.endswith(end))
        self.files.remove(_TABLES)
        self._compaction.forget()

    def event_log(self) -> Observer:
        """Keeps the events that it is told; see `events`."""
        return ObjectLog(self.files.write_once) if self.remote else EventLog(self.path / EVENTS)

    def events(self) -> Iterator[Event]:
        """All events of the run, the oldest first."""
        names = sorted(entry.name for entry in self.files.list("events"))
        for start in range(0, len(names), _READ_AT_ONCE):
            data = self.files.read_many(names[start : start + _READ_AT_ONCE])
            for name in sorted(data):
                yield from parse_events(data[name].decode(errors="replace").splitlines(keepends=True))
        # A run that was brought home and goes on there has both.
        if not self.remote:
            yield from read_events(self.path / EVENTS)

    def read_outcomes(self, cells: Sequence[Cell]) -> dict[str, Outcome]:
        """What came of those cells that are whole or have failed, by cell id; parts are read in three columns only."""
        # Read before the parts, and newer than they are; the same in `read_rows`.
        loose = [(row["cell"], row.get("error"), row.get("seconds")) for row in self._loose_rows(cells)]
        found = [(row["cell"], row["error"], row["seconds"]) for row in self._part_rows(("error", "seconds"))]
        found += loose
        chosen = choose_rows((cell, error is not None) for cell, error, _ in found)
        known = ((cell.id, chosen.get(cell.id)) for cell in cells)
        return {cell: Outcome(*found[position][1:]) for cell, position in known if position is not None}

    def read_rows(self, cells: Sequence[Cell]) -> dict[str, Row]:
        """The rows of those cells that are whole or have failed, by cell id. Those in parts are without layers."""
        loose = list(self._loose_rows(cells))
        found = [*self._part_rows(tuple(SAMPLES)), *loose]
        chosen = choose_rows((row["cell"], row.get("error") is not None) for row in found)
        return {cell.id: found[chosen[cell.id]] for cell in cells if cell.id in chosen}

    def loose_rows(self, cells: Sequence[Cell]) -> Iterator[Row]:
        """The rows of cells that are whole or have failed and in no part yet."""
        return self._loose_rows(cells)

    def part_numbers(self) -> list[int]:
        """The parts, the oldest first."""
        return self._compaction.part_numbers()

    def present_images(self) -> Collection[str] | None:
        """Names of the images that are there; None at a URI, where that rows are written last must do.

        A listing there may be behind, and is long: an image that it hides would be drawn again.
        """
        return None if self.remote else {entry.name for entry in self.files.list("images")}

    def write(self, cell: Cell, png: bytes, row: Row) -> None:
        """Stores a drawn cell: the image, then the row that makes it count."""
        self.write_many([(cell, png, row)])

    def write_many(self, drawn: Sequence[tuple[Cell, bytes, Row]]) -> None:
        """The same for several cells at once, which wait for the disk or the network together."""
        self._check_held()
        with ThreadPoolExecutor(_WRITTEN_AT_ONCE) as pool:
            for _ in pool.map(lambda one: self._write(*one), drawn):
                pass
        for cell, _, _ in drawn:
            self._compaction.note(cell.id)

    def _write(self, cell: Cell, png: bytes, row: Row) -> None:
        if self.remote:
            store_cell(self.files, cell.id, png, row)
        else:
            self.files.write(image_name(cell.id), png)
            self._compaction.replace(cell.id, dump_json({**row, "image": image_name(cell.id)}).encode())

    def write_failure(self, cell: Cell, row: Row, error: str) -> None:
        """Stores that a cell could not be drawn, and why."""
        self._check_held()
        data = dump_json({**row, "image": None, "error": error}).encode()
        if self.remote:
            self.files.create(row_name(cell.id), data)
        else:
            self._compaction.replace(cell.id, data)
        self._compaction.note(cell.id)

    def note_stored(self, cell: Cell) -> None:
        """A worker has stored the cell."""
        self._check_held()
        self._compaction.note(cell.id)

    def forget_failures(self, cells: Iterable[str]) -> None:
        """Lets cells that failed be drawn again; until they are, those in no part are unfinished."""
        self._compaction.finish()
        self.files.remove(row_name(cell) for cell in cells)

    def settle(self) -> None:
        """Gathers the rows that are left, where there are many or others are in parts already."""
        self._compaction.settle()

    def _part_rows(self, columns: tuple[str, ...]) -> Iterator[Row]:
        numbers = self.part_numbers()
        images = self.present_images() if numbers else None
        wanted = tuple(dict.fromkeys(("cell", *columns, *(() if images is None else ("image", "error")))))
        for start in range(0, len(numbers), 16):
            names = [samples_name(number) for number in numbers[start : start + 16]]
            data = self.files.read_many(names)
            for name in names:
                for row in decode(data[name], wanted).to_pylist() if name in data else ():
                    if images is None or row["error"] is not None or row["image"] in images:
                        yield row

    def _loose_rows(self, cells: Sequence[Cell]) -> Iterator[Row]:
        known = {row_name(cell.id): cell.id for cell in cells}
        names = [name for name in self._compaction.loose_names() if name in known]
        for start in range(0, len(names), _READ_AT_ONCE):
            data = self.files.read_many(names[start : start + _READ_AT_ONCE])
            for name, text in data.items():
                if (row := self._whole_row(known[name], text)) is not None:
                    yield row

    def _whole_row(self, cell: str, text: bytes) -> Row | None:
        """The row in a file's text; None where it is broken, another cell's, or without its image."""
        try:
            row = json.loads(text)
        except ValueError:
            return None
        if not isinstance(row, dict) or row.get("cell") != cell:
            return None
        if row.get("error") is not None or self.remote or _ends_as_png(self.path / str(row.get("image"))):
            return row
        return None

    def _check_held(self) -> None:
        if self._lease is not None:
            self._lease.check()

    def _check_mine(self) -> None:
        if self.exists():
            return
        if self.remote:
            strangers = [entry.name for entry in self.files.list("")]
        elif self.path.is_dir():
            strangers = [entry.name for entry in self.path.iterdir() if not entry.name.startswith(".")]
        else:
            return
        if strangers:
            raise UserError(f"{self.place} holds {strangers[0]!r} and no run: give an empty or new folder with --out")

    @contextlib.contextmanager
    def _locked(self) -> Iterator[Lease | None]:
        """Holds a local folder by a lock of its file system, and where that has none by a lease."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = open(self.path / ".lock", "w")  # noqa: SIM115
        except OSError as error:
            raise UserError(
                f"out folder {self.place} can't be written ({error.strerror}): give another with --out"
            ) from error
        with lock:
            if self._lock(lock.fileno()):
                yield None
            else:
                with leased(self.files) as lease:
                    yield lease

    def _lock(self, descriptor: int) -> bool:
        try:
            import fcntl
        except ImportError:  # Windows has no such lock.
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(held_message(self.place, {})) from None
        except OSError:  # A file system without locks, as some network ones are.
            return False
        return True


def _ends_as_png(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            file.seek(-len(_PNG_END), os.SEEK_END)
            return file.read() == _PNG_END
    except OSError:
        return False
