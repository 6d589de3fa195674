"""The event log of a run, `events.jsonl`: what happened and when, for whoever watches from outside.

Each line is a JSON object with `time` (ISO 8601, UTC), `event`, and the fields of its kind:

| event | fields |
| --- | --- |
| `run` | `cells` of the sweep, of which `finished` before and `failed` then, `chunks` to draw, `buckets`: a list of `bucket`, `cells` and `cost` to draw; `host`, `pid` |
| `workers` | `workers`: a list of `worker`, `node`, `platform`, `kind` and what else each told of itself |
| `chunk` | a chunk that was drawn: `chunk` (its index), `worker`, `bucket`, `size`, `method`, `cells`, `failed`, `cost`, `compile_seconds`, `steady_seconds` |
| `cell_failed` | a cell that was drawn and can't be kept: `cell`, `size`, `method`, `prompt`, `error` |
| `retry` | `chunk`, `attempt` to come, `bucket`, `size`, `method`, `error` |
| `divided` | a chunk that is tried again in parts: `chunk`, `parts`: the cells of each, `batch`, `bucket`, `size`, `method`, `error`; empty where the bucket's batch was halved before |
| `takeover` | a worker that went to a bucket which others had begun: `worker`, `bucket`, `others` there |
| `stopping` | nothing more is begun: `why` (`interrupted` or `failures`), `in_hand` chunks |
| `gave_up` | a chunk that can't be drawn: `chunk`, `bucket`, `size`, `method`, `cells`, `cost`, `error` |
| `end` | `outcome` (`done`, `interrupted`, `failures` or `stopped`), `finished` and `failed` cells of the sweep |

A run that goes on later appends to the same file, beginning with another `run`.
"""  # noqa: E501 - rows of a table

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..errors import UserError

NAME = "events.jsonl"
Event = Mapping[str, Any]
Observer = Callable[[Event], None]
"""Is told each event once, in order, by the driver."""


def make_event(kind: str, **fields: Any) -> Event:
    """An event that happens now."""
    return {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": kind, **fields}


def tell_all(observers: Iterable[Observer], event: Event) -> None:
    """Tells one event to each observer."""
    for observer in observers:
        observer(event)


class EventLog:
    """Appends events to a file, each as a whole line or not at all. The driver alone holds one.

    A log that can't be written loses events and never the run: rows are what counts.
    """

    def __init__(self, path: Path):
        self._path = path
        _drop_partial_line(path)

    def __call__(self, event: Event) -> None:
        line = (json.dumps(event, ensure_ascii=False) + "\n").encode()
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        except OSError:
            return
        try:
            _append(descriptor, line)
        finally:
            os.close(descriptor)


class ObjectLog:
    """The same log where nothing can be appended to, as at a URI: objects of some seconds of events each.

    Their names, `events/START-NUMBER.jsonl`, sort as they were written. What can't be written goes with the next.
    """

    def __init__(
        self,
        write: Callable[[str, bytes], object],
        seconds: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._write = write
        self._seconds = seconds
        self._clock = clock
        self._lines: list[str] = []
        self._last = clock()
        self._start = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")
        self._number = 0

    def __call__(self, event: Event) -> None:
        self._lines.append(json.dumps(event, ensure_ascii=False) + "\n")
        if event["event"] in ("run", "workers", "end") or self._clock() - self._last >= self._seconds:
            self._flush()

    def _flush(self) -> None:
        self._last = self._clock()
        try:
            self._write(f"events/{self._start}-{self._number:06d}.jsonl", "".join(self._lines).encode())
        except (OSError, UserError):
            return
        self._number += 1
        self._lines.clear()


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """The events of a log in order; a line that is being written, or broken, is left out."""
    try:
        file = open(path, encoding="utf-8", errors="replace")  # noqa: SIM115
    except OSError:
        return
    with file:
        yield from parse_events(file)


def parse_events(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The events of a log's lines, which keep their ends."""
    for line in lines:
        event = _parse(line) if line.endswith("\n") else None
        if event is not None:
            yield event


def _parse(line: str) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and isinstance(event.get("event"), str) else None


def _append(descriptor: int, line: bytes) -> None:
    size = os.fstat(descriptor).st_size
    try:
        whole = os.write(descriptor, line) == len(line)
    except OSError:
        whole = False
    if not whole:  # A full disk takes a part of a line.
        os.ftruncate(descriptor, size)


def _drop_partial_line(path: Path) -> None:
    # What a driver left that was killed while it wrote.
    try:
        with open(path, "r+b") as file:
            end = file.seek(0, os.SEEK_END)
            while end:
                start = max(0, end - (1 << 16))
                file.seek(start)
                newline = file.read(end - start).rfind(b"\n")
                end = start + newline + 1
                if newline >= 0:
                    break
            file.truncate(end)
    except OSError:
        return
