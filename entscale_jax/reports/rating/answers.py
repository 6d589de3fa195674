"""What raters answered, in files that only grow: a line is on the disk before the next picture is shown."""

import errno
import json
import os
import re
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...errors import UserError

FOLDER = "ratings"
LOWEST, HIGHEST = 1, 10
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,39}")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One rating of one picture."""

    cell: str
    score: int
    time: str
    """When it was given, ISO 8601 in UTC."""


def rater_name(text: str) -> str:
    """The name as its file is called. Raises UserError for what could be no file's name everywhere."""
    name = text.strip().lower()
    if not _NAME.fullmatch(name):
        raise UserError(
            f"rater {text!r}: give 1 to 40 letters a to z, digits, '.', '_' or '-', the first a letter or a digit"
        )
    return name


def is_score(value: object) -> bool:
    """Whether this is a whole number from 1 to 10."""
    return isinstance(value, int) and not isinstance(value, bool) and LOWEST <= value <= HIGHEST


def read_answers(file: Path) -> tuple[list[Answer], list[str]]:
    """The answers in a file in the order in which they were given, and a line for each line of it that is none.

    Changes nothing. Raises UserError where the file can't be read.
    """
    answers, notes = [], []
    for number, line in enumerate(_read(file).splitlines(), 1):
        answer = _answer(line)
        if answer is not None:
            answers.append(answer)
        elif line.strip():
            notes.append(f"{file}: line {number} is no whole answer and is left out")
    return answers, notes


def scores_of(answers: list[Answer]) -> dict[str, int]:
    """Cell -> score, the last one where a rater changed it."""
    return {answer.cell: answer.score for answer in answers}


class AnswerFile:
    """A rater's file, open for more answers."""

    def __init__(self, run: Path, rater: str):
        self.path = run / FOLDER / f"{rater_name(rater)}.jsonl"
        self._lock = threading.Lock()
        self.note = self._mend() if self.path.exists() else None
        """One line where the file ended within an answer, as after a crash; None where it was whole."""
        self._scores: dict[str, int] = {}
        self._read_size = 0

    @property
    def scores(self) -> dict[str, int]:
        """Cell -> score, with what another server of the run has added to the file meanwhile.

        Raises UserError where the file can't be read.
        """
        with self._lock:
            size = self.path.stat().st_size if self.path.exists() else 0
            if size != self._read_size:
                self._scores = scores_of(read_answers(self.path)[0]) if size else {}
                self._read_size = size
            return self._scores

    def add(self, answer: Answer) -> None:
        """Appends an answer and returns when it is on the disk. Raises OSError where it is not, the file as before."""
        line = (json.dumps(asdict(answer)) + "\n").encode()
        with self._lock:
            is_new = not self.path.exists()
            self.path.parent.mkdir(exist_ok=True)
            _append(self.path, line)
            if is_new:
                _sync_folder(self.path.parent)

    def _mend(self) -> str | None:
        """Ends the file with a line's end: what was cut within a line goes into a file beside it."""
        content = _read(self.path)
        kept, end, rest = content.rpartition(b"\n")
        if not rest:
            return None
        try:
            if _answer(rest) is not None:
                _append(self.path, b"\n")
                return None
            aside = self.path.with_suffix(".cut")
            _append(aside, rest + b"\n")
            with open(self.path, "r+b") as file:
                file.truncate(len(kept + end))
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(f"{self.path} can't be written ({error.strerror}): make its folder writable") from error
        return (
            f"{self.path} ended within an answer: its last {len(rest)} bytes are set aside in {aside.name}, "
            f"{len(scores_of(read_answers(self.path)[0]))} rated pictures are kept"
        )


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"{file} can't be read: {error.strerror}") from error


def _answer(line: bytes) -> Answer | None:
    try:
        values = json.loads(line)
    except ValueError:
        return None
    if not isinstance(values, Mapping) or not _is_answer(values):
        return None
    return Answer(**{name: values[name] for name in ("cell", "score", "time")})


def _is_answer(values: Mapping[str, Any]) -> bool:
    return isinstance(values.get("cell"), str) and is_score(values.get("score")) and isinstance(values.get("time"), str)


def _append(path: Path, data: bytes) -> None:
    with open(path, "ab", buffering=0) as file:
        start = file.seek(0, os.SEEK_END)
        try:
            if file.write(data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file.fileno())
        except OSError:
            file.truncate(start)
            raise


def _sync_folder(folder: Path) -> None:
    """So that the file's name is on the disk, too; where folders can't be opened, as on Windows, it can't be asked."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
