"""What a run is at, told from its folder alone, so that any shell can look while the driver draws, or after it."""

import os
import platform
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ..errors import UserError
from .events import Event
from .progress import told, told_left
from .store import RunFolder
from .tally import BucketTally, Tally


@dataclass(frozen=True)
class Status:
    """What the events of a run add up to, at its last one."""

    tally: Tally
    last: Event
    errors: tuple[str, ...]
    """Why cells of the newest run failed, the last ones."""
    running: bool | None
    """Whether its driver lives; None where this can't be seen from here."""

    @property
    def ended(self) -> bool:
        return self.last["event"] == "end"


SHOWN_ERRORS = 5
OUTCOMES = {"done": "done", "interrupted": "stopped by Ctrl-C", "failures": "stopped, as too many cells failed"}
"""How an `end` is told."""


def read_status(place: Path | str) -> Status:
    """The status of the newest run in a folder or at a URI. Raises UserError where there is none."""
    run = RunFolder(place)
    if not run.exists():
        raise UserError(f"{place} holds no run: give the folder that entscale sweep wrote, such as runs/aspect")
    status = fold(run.events())
    if status is None:
        raise UserError(f"{place} has no event yet: the run has not begun to draw, or an older version drew it")
    return status


def fold(events: Iterable[Event]) -> Status | None:
    """What the events of a log add up to, at the time of the last one; None where there are none."""
    now = 0.0
    tally = Tally(clock=lambda: now)
    last: Event | None = None
    begun: Event = {}
    errors: list[str] = []
    for event in events:
        now = _seconds(event)
        tally.add(event)
        last = event
        if event["event"] == "run":
            begun = event
            errors.clear()
        elif event["event"] in ("gave_up", "cell_failed"):
            errors.append(f"{event['size']} {event['method']}: {event['error']}")
    return None if last is None else Status(tally, last, tuple(errors[-SHOWN_ERRORS:]), _is_alive(begun))


def show_status(run: Path | str, console: Console) -> None:
    """Prints the status of a run. Raises UserError where there is none."""
    status = read_status(run)
    tally = status.tally
    for line in (
        f"{run}: {_state(status)}",
        f"{tally.finished} of {tally.cells} cells, {tally.failed} failed",
        *([f"{told(tally)}, {tally.workers} workers"] if tally.drawn and not status.ended else []),
    ):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if any(bucket.done < bucket.cells for bucket in tally.buckets.values()) and not status.ended:
        console.print(_table(tally))
    for error in status.errors:
        console.print(f"failed: {error}", highlight=False, markup=False, soft_wrap=True)


def _state(status: Status) -> str:
    ago = max(time.time() - _seconds(status.last), 0.0)
    if status.ended:
        outcome = OUTCOMES.get(status.last["outcome"], "stopped")
        return f"{outcome}, {_ago(ago)} ago"
    if status.running:
        return f"drawing, last heard of {_ago(ago)} ago"
    if status.running is None:
        return f"last heard of {_ago(ago)} ago"
    return f"its driver is gone, last heard of {_ago(ago)} ago; the same command goes on from there"


def _ago(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds // size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _table(tally: Tally) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=0)
    for name in ("bucket", "done", "failed", "compile s", "s/image", "left"):
        table.add_column(name, justify="left" if name == "bucket" else "right")
    for name, bucket in tally.buckets.items():
        left = told_left(tally.left_in(name)).removesuffix(" left") if bucket.cost_left else ""
        table.add_row(name, *_columns(bucket), left)
    return table


def _columns(bucket: BucketTally) -> tuple[str, ...]:
    each = f"{bucket.steady_seconds / bucket.done:.2f}" if bucket.done else ""
    return f"{bucket.done}/{bucket.cells}", str(bucket.failed or ""), f"{bucket.compile_seconds:.1f}", each


def _seconds(event: Event) -> float:
    try:
        return datetime.fromisoformat(str(event.get("time"))).timestamp()
    except ValueError:
        return 0.0


def _is_alive(run: Event) -> bool | None:
    """Whether the driver that told of a run lives, without touching its lock: looking must not be in anyone's way."""
    pid = run.get("pid")
    if run.get("host") != platform.node() or not isinstance(pid, int) or os.name != "posix":
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
