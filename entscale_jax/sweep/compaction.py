"""Gathers finished rows into parts beside the drawing, so that resuming reads few files however many cells there are.

A part is written whole before its rows' files go, so a row is always in one of them: who reads the files first and the
parts then misses none. Where it is in both, after a kill in between, the file is the same row or a newer one.

While a part is written, a cell in it may be stored anew: in a folder the driver replaces the row's file; at a URI it is
made only where there is none, but another driver may have removed it. So a file goes only where it still holds what the
part does. In a folder no file is written between that look and its end, and a writer waits for one file at most.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

from ..errors import UserError
from .cell_writer import Row, row_name
from .storage.files import PatientFiles
from .storage.parts import (
    decode,
    encode,
    entropy_name,
    entropy_table,
    features_name,
    features_table,
    part_number,
    samples_name,
    samples_table,
)

PART_ROWS = 2048
"""Rows of a part, and so about the most row files that a long run has at a time."""
_TELLING = ("image", "seconds", "device", "error")
"""Columns by which a row is known again."""
_LOCKS = 256
"""Among which the files of rows are shared out: so many that those written at a time seldom share one."""

WholeRow = Callable[[str, bytes], Row | None]
"""The row in the text of a cell's file; None where it doesn't count."""


class Compaction:
    """Knows the names of rows that are in no part. `order` is the place of each cell in the plan, filled in later.

    One thread stores rows and reads them; `check_held` raises UserError where another driver has taken the run over.
    """

    def __init__(
        self,
        files: PatientFiles,
        order: Mapping[str, int],
        whole_row: WholeRow,
        check_held: Callable[[], None],
    ):
        self._files = files
        self._order = order
        self._whole_row = whole_row
        self._check_held = check_held
        self._locks = tuple(threading.Lock() for _ in range(_LOCKS))
        self._guard = threading.Lock()
        self._written: set[str] = set()
        self._newest_part = -1
        self._loose = 0
        self._looked_for_gathered = False
        self._pool: ThreadPoolExecutor | None = None
        self._running: Future[None] | None = None

    def replace(self, cell: str, data: bytes) -> None:
        """Makes or replaces a row's file in a folder; see `note` for what has to follow."""
        name = row_name(cell)
        with self._lock(name):
            self._files.write(name, data)

    def note(self, cell: str) -> None:
        """A row was stored. Gathers in the background where there are enough; raises what an earlier time raised."""
        with self._guard:
            self._written.add(row_name(cell))
            self._loose += 1
            enough = self._loose >= PART_ROWS
        if self._running is not None and self._running.done():
            self.finish()
        if enough and self._running is None:
            self._pool = self._pool or ThreadPoolExecutor(1, thread_name_prefix="entscale-parts")
            self._running = self._pool.submit(self._gather, False)

    def settle(self) -> None:
        """Gathers what is left, where it is a part's worth, or others are in parts, or each file is a call away."""
        self.finish()
        self._gather(self._files.remote or bool(self.part_numbers()))

    def finish(self) -> None:
        """Waits for what is being gathered, and raises what that raised."""
        if self._running is not None:
            wait([self._running])
            running, self._running = self._running, None
            running.result()

    def close(self) -> None:
        """Waits for what is being gathered; nothing more is begun."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        self._pool = self._running = None

    def forget(self) -> None:
        """All rows and parts were removed."""
        with self._guard:
            self._written.clear()
            self._newest_part, self._loose = -1, 0

    def loose_names(self) -> list[str]:
        """Files of rows, those that a listing is too late for included as far as this process knows of them.

        Waits for what is being gathered, so that parts that are listed afterwards hold all other rows.
        """
        self.finish()
        return self._loose_names()

    def _loose_names(self) -> list[str]:
        listed = {entry.name for entry in self._files.list("rows") if entry.name.endswith(".json")}
        with self._guard:
            return sorted(listed | self._written)

    def part_numbers(self) -> list[int]:
        """The parts, the oldest first."""
        found = (part_number(entry.name) for entry in self._files.list("samples"))
        numbers = {number for number in found if number is not None}
        newest = max(numbers, default=-1)
        # A listing may be behind; a file that is asked for by name is not.
        while newest < self._newest_part or self._files.read(samples_name(newest + 1)) is not None:
            newest += 1
            numbers.add(newest)
        return sorted(numbers)

    def _lock(self, name: str) -> threading.Lock:
        return self._locks[hash(name) % _LOCKS]

    def _gather(self, everything: bool) -> None:
        if not self._looked_for_gathered:
            self._remove_gathered()
            self._looked_for_gathered = True
        with self._guard:
            self._loose = 0
        names = [name for name in self._loose_names() if _cell(name) in self._order]
        names.sort(key=lambda name: self._order[_cell(name)])
        while len(names) >= PART_ROWS or (everything and names):
            self._gather_part(names[:PART_ROWS])
            names = names[PART_ROWS:]
        with self._guard:
            self._loose += len(names)

    def _remove_gathered(self) -> None:
        """Removes files of rows that the newest part holds, where a kill came between the two."""
        numbers = self.part_numbers()
        data = self._files.read(samples_name(numbers[-1])) if numbers else None
        if data is None:
            return
        held = {row["cell"]: row for row in decode(data, ("cell", *_TELLING)).to_pylist()}
        listed = [name for name in self._loose_names() if _cell(name) in held]
        texts = self._files.read_many(listed)
        rows = {name: self._whole_row(_cell(name), text) for name, text in texts.items()}
        same = [name for name, row in rows.items() if row is not None and _same(row, held[_cell(name)])]
        self._remove({name: texts[name] for name in same})

    def _gather_part(self, names: Sequence[str]) -> None:
        with self._guard:
            # Before they are read: what is noted from here on may be another row, which the part lacks.
            self._written.difference_update(names)
        texts = self._files.read_many(names)
        rows = {name: self._whole_row(_cell(name), text) for name, text in texts.items()}
        whole = {name: row for name, row in rows.items() if row is not None}
        if whole:
            self._check_held()
            self._write_part(list(whole.values()))
            self._remove({name: texts[name] for name in whole})

    def _remove(self, texts: Mapping[str, bytes]) -> None:
        """Removes those files of rows that still hold the text."""
        if self._files.remote:
            now = self._files.read_many(list(texts))
            self._files.remove(name for name, text in texts.items() if now.get(name) == text)
            return
        for name, text in texts.items():
            with self._lock(name):
                if self._files.read(name) == text:
                    self._files.remove([name])

    def _write_part(self, rows: Sequence[Mapping[str, Any]]) -> None:
        number = max(self.part_numbers(), default=-1) + 1
        entropy = entropy_table(rows, self._order)
        if entropy.num_rows:
            self._files.write(entropy_name(number), encode(entropy))
        features = features_table(rows)
        if features.num_rows:
            self._files.write(features_name(number), encode(features))
        if not self._files.create(samples_name(number), encode(samples_table(rows))):
            raise UserError(f"{self._files.place} is being written by another sweep: wait for it")
        self._newest_part = number


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return all(one.get(name) == other[name] for name in _TELLING)


def _cell(name: str) -> str:
    return name.rsplit("/", 1)[-1].removesuffix(".json")
