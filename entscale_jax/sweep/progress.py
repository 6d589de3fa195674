"""How a run tells what it is at: live bars on a terminal, one line a chunk elsewhere."""

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from .events import Event
from .tally import Tally

SHOWN_BUCKETS = 8
"""Bars of buckets at once, below the one of the whole run."""


class RunProgress:
    """Shows the events of a run. Use it as a context manager around the drawing."""

    def __init__(self, console: Console):
        self.tally = Tally()
        self._console = console
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("cells"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[told]}", markup=False),
            console=console,
            disable=not console.is_terminal,
        )
        self._whole = self._bar.add_task("starting", total=None, told="")
        self._rows: dict[str, TaskID] = {}

    def __enter__(self) -> "RunProgress":
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self._bar.stop()

    def __call__(self, event: Event) -> None:
        """Counts an event and shows what has changed."""
        self.tally.add(event)
        kind = event["event"]
        if kind == "cell_failed":
            self.say(f"failed: {_name(event)}, {event['prompt']!r}: {event['error']}")
        elif kind == "gave_up":
            self.say(f"failed: {_name(event)}, {event['cells']} cells: {event['error']}")
        elif kind == "retry":
            self.say(f"trying again ({event['attempt']}): {_name(event)}: {event['error']}")
        elif kind == "divided" and event["error"]:
            sizes = " + ".join(map(str, event["parts"]))
            self.say(f"trying again as {sizes} cells in batches of {event['batch']}: {_name(event)}: {event['error']}")
        elif kind == "stopping":
            interrupted = event["why"] == "interrupted"
            reason = "interrupted" if interrupted else "too many cells failed"
            again = "; Ctrl-C again stops at once" if interrupted else ""
            self.say(f"{reason}: finishing the {event['in_hand']} calls in hand{again}")
        if kind in ("chunk", "gave_up") and not self._console.is_terminal:
            self._say_chunk(event)
        self._update()

    def say(self, line: str) -> None:
        """A line of its own, above the bars."""
        self._bar.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _say_chunk(self, event: Event) -> None:
        seconds = event.get("compile_seconds", 0.0) + event.get("steady_seconds", 0.0)
        place = f"[{self.tally.finished}/{self.tally.cells}]"
        self.say(f"{place} {_name(event)}: {event['cells']} cells in {seconds:.1f} s, {told(self.tally)}")

    def _update(self) -> None:
        tally = self.tally
        description = "drawing" if tally.drawn else "starting"
        self._bar.update(
            self._whole, description=description, total=tally.cells, completed=tally.finished, told=told(tally)
        )
        for name in tally.open_buckets():
            if name not in self._rows and len(self._rows) < SHOWN_BUCKETS:
                self._rows[name] = self._bar.add_task(name, total=tally.buckets[name].cells, told="")
        for name, row in list(self._rows.items()):
            if name not in tally.open_buckets():
                self._bar.remove_task(self._rows.pop(name))
            else:
                self._bar.update(row, completed=tally.buckets[name].done, told=told_left(tally.left_in(name)))


def told(tally: Tally) -> str:
    """What a line says after the count: images a second, failures where there are any, and the time left."""
    parts = [f"{tally.images_per_second():.2f} images/s" if tally.drawn else ""]
    parts += [f"{tally.failed} failed" if tally.failed else "", told_left(tally.left())]
    return ", ".join(part for part in parts if part)


def told_left(seconds: float | None) -> str:
    """The time left, in words; empty where nothing is known of it."""
    return "" if seconds is None else f"about {duration(seconds)} left"


def duration(seconds: float) -> str:
    """Seconds as a person says them: `40 s`, `3 min`, `2 h 05 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def _name(event: Event) -> str:
    return f"{event['size']} {event['method']}"
