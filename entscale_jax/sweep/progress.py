"""How a run tells what it is at: a live bar on a terminal, one line a chunk elsewhere."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


class RunProgress:
    """Counts cells and says how long the rest may take. Use it as a context manager around the drawing."""

    def __init__(self, console: Console, total: int, done: int, cost: float):
        self._console = console
        self._total = total
        self._done = done
        self._cost_left = self._cost = cost
        self._start = time.monotonic()
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("cells"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("starting", total=total, completed=done, left="")

    def __enter__(self) -> "RunProgress":
        self._start = time.monotonic()
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self._bar.stop()

    def advance(self, cells: int, cost: float, bucket: str, seconds: float) -> None:
        """So many more cells are done, of a chunk that was estimated at `cost`."""
        self._done += cells
        self._cost_left -= cost
        self._bar.update(self._task, completed=self._done, description=bucket, left=self._left())
        if not self._console.is_terminal:
            self.say(f"[{self._done}/{self._total}] {bucket}: {cells} cells in {seconds:.1f} s, {self._left()}")

    def say(self, line: str) -> None:
        """A line of its own, above the bar."""
        self._bar.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _left(self) -> str:
        spent = time.monotonic() - self._start
        left = max(self._cost_left, 0.0)
        return f"about {duration(spent * left / max(self._cost - left, 1))} left"


def duration(seconds: float) -> str:
    """Seconds as a person says them: `40 s`, `3 min`, `2 h 05 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
