"""Counts a run from its events: what is done, how fast, and how long each bucket and the whole may still take."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .events import Event


@dataclass
class BucketTally:
    """One bucket of a run. Costs are those of `Chunk.cost`, which compare chunks."""

    cells: int
    cost: float
    done: int = 0
    failed: int = 0
    cost_done: float = 0.0
    cost_drawn: float = 0.0
    """The part of it that took `steady_seconds`: what was given up took none."""
    compile_seconds: float = 0.0
    steady_seconds: float = 0.0

    @property
    def cost_left(self) -> float:
        return max(self.cost - self.cost_done, 0.0)


@dataclass
class Tally:
    """Grows with `add`. `clock` tells seconds; who replays a log gives the log's own times."""

    clock: Callable[[], float] = time.monotonic
    cells: int = 0
    finished: int = 0
    """Cells of the sweep that count, those of earlier runs with them."""
    failed: int = 0
    chunks: int = 0
    """Chunks that are not done."""
    workers: int = 1
    started: float = 0.0
    drawn: int = 0
    """Cells of this run that were drawn and kept."""
    buckets: dict[str, BucketTally] = field(default_factory=dict)
    on: dict[str, str] = field(default_factory=dict)
    """Worker -> the bucket of its last chunk."""

    def add(self, event: Event) -> None:
        """Counts an event; those of kinds that change no number pass."""
        handler = {
            "run": self._run,
            "workers": self._workers,
            "chunk": self._chunk,
            "gave_up": self._gave_up,
            "divided": self._divided,
        }
        if (handle := handler.get(event["event"])) is not None:
            handle(event)

    def images_per_second(self) -> float:
        """Kept images of this run over its time since the workers were there."""
        return self.drawn / max(self.clock() - self.started, 1e-3)

    def left(self) -> float | None:
        """Seconds until the end with as many workers as now; None before the first chunk."""
        if self._rate() is None:
            return None
        untouched = [bucket for bucket in self.buckets.values() if bucket.cost_left and not bucket.cost_done]
        touched = [bucket.compile_seconds for bucket in self.buckets.values() if bucket.cost_done]
        compiling = len(untouched) * sum(touched) / max(len(touched), 1)
        drawing = sum(self._seconds(bucket) for bucket in self.buckets.values())
        return (drawing + compiling) / max(self.workers, 1)

    def left_in(self, name: str) -> float | None:
        """Seconds until a bucket is done by the workers that are on it now; None before the first chunk."""
        if self._rate() is None:
            return None
        return self._seconds(self.buckets[name]) / max(sum(bucket == name for bucket in self.on.values()), 1)

    def open_buckets(self) -> list[str]:
        """Names of the buckets that are begun and not done."""
        return [name for name, bucket in self.buckets.items() if bucket.cost_done and bucket.done < bucket.cells]

    def _seconds(self, bucket: BucketTally) -> float:
        own = bucket.steady_seconds / bucket.cost_drawn if bucket.cost_drawn else self._rate()
        return bucket.cost_left * (own or 0.0)

    def _rate(self) -> float | None:
        """Seconds for a unit of cost, over all buckets."""
        cost = sum(bucket.cost_drawn for bucket in self.buckets.values())
        return sum(bucket.steady_seconds for bucket in self.buckets.values()) / cost if cost else None

    def _run(self, event: Event) -> None:
        self.cells, self.finished, self.chunks = event["cells"], event["finished"], event["chunks"]
        self.failed = event.get("failed", 0)
        self.drawn, self.workers, self.started = 0, 1, self.clock()
        self.on = {}
        self.buckets = {one["bucket"]: BucketTally(one["cells"], one["cost"]) for one in event["buckets"]}

    def _workers(self, event: Event) -> None:
        self.workers, self.started = len(event["workers"]), self.clock()

    def _chunk(self, event: Event) -> None:
        bucket = self._done(event, event["failed"])
        bucket.cost_drawn += event["cost"]
        bucket.compile_seconds += event["compile_seconds"]
        bucket.steady_seconds += event["steady_seconds"]
        self.drawn += event["cells"] - event["failed"]
        self.on[event["worker"]] = event["bucket"]

    def _divided(self, event: Event) -> None:
        self.chunks += len(event["parts"]) - 1

    def _gave_up(self, event: Event) -> None:
        self._done(event, event["cells"])

    def _done(self, event: Any, failed: int) -> BucketTally:
        bucket = self.buckets.setdefault(event["bucket"], BucketTally(event["cells"], event["cost"]))
        bucket.done += event["cells"]
        bucket.failed += failed
        bucket.cost_done += event["cost"]
        self.chunks -= 1
        self.finished += event["cells"]
        self.failed += failed
        return bucket
