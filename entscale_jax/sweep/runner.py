"""Keeps every worker busy until each cell is drawn or given up: the driver's loop, with its retries."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from ..errors import UserError
from .executor import Event, Executor, Failed, Finished, Lost, Result
from .plan import Task
from .queues import Queues

ATTEMPTS = 3
"""How often a chunk is tried before its cells are given up."""
POLL_SECONDS = 1.0
DEATHS_IN_A_ROW = 12
"""Workers that may die with nothing drawn in between, and ATTEMPTS more for each worker: some four chunks that kill."""


@runtime_checkable
class Sink(Protocol):
    """Where results go, one call each, from the driver alone."""

    def started(self) -> None:
        """Notes that the workers are there."""
        ...

    def finished(self, worker: str, task: Task, result: Result) -> int:
        """Stores a result and returns the number of its cells that failed."""
        ...

    def gave_up(self, task: Task, error: str) -> None:
        """Stores that a task's cells can't be drawn."""
        ...

    def retrying(self, task: Task, attempt: int, error: str) -> None:
        """Says that a task will be tried again."""
        ...


class WorkersGone(RuntimeError):
    """Workers died again and again without drawing anything."""


@dataclass
class Outcome:
    """Cells drawn and cells given up in this run."""

    drawn: int = 0
    failed: int = 0


class Runner:
    """One run over some tasks. Raises UserError where a worker finds the input at fault, WorkersGone where all die."""

    def __init__(
        self, tasks: Iterable[Task], executor: Executor, sink: Sink, *, interrupted: Callable[[], bool] = lambda: False
    ):
        self.outcome = Outcome()
        self._interrupted = interrupted
        self._queues = Queues(tasks)
        self._executor = executor
        self._sink = sink
        self._idle: list[str] = []
        self._busy: set[str] = set()
        self._attempts: Counter[int] = Counter()
        self._deaths = 0

    def run(self) -> Outcome:
        """Draws everything; returns when the last chunk is stored. Raises KeyboardInterrupt where `interrupted`."""
        self._idle = list(self._executor.start())
        self._sink.started()
        self._submit()
        while self._busy or self._queues:
            for event in self._executor.wait(POLL_SECONDS):
                self._handle(event)
            if self._interrupted():
                raise KeyboardInterrupt
            self._submit()
        return self.outcome

    def _submit(self) -> None:
        for worker in list(self._idle):
            task = self._queues.take(worker)
            if task is None:
                continue
            self._idle.remove(worker)
            self._busy.add(worker)
            self._executor.submit(worker, task)

    def _handle(self, event: Event) -> None:
        self._busy.discard(event.worker)
        if isinstance(event, Finished):
            self._deaths = 0
            self._idle.append(event.worker)
            failed = self._sink.finished(event.worker, event.task, event.result)
            self.outcome.failed += failed
            self.outcome.drawn += len(event.task.wanted_cells) - failed
        elif isinstance(event, Failed):
            if event.failure.fatal:
                raise UserError(event.failure.error)
            self._idle.append(event.worker)
            self._retry(event.task, event.failure.error)
        else:
            self._lost(event)

    def _lost(self, event: Lost) -> None:
        self._deaths += 1
        self._queues.leave(event.worker)
        if event.worker in self._idle:
            self._idle.remove(event.worker)
        if event.task is not None:
            self._retry(event.task, f"the worker died: {event.reason}")
        workers = len(self._idle) + len(self._busy) + 1
        if self._deaths > DEATHS_IN_A_ROW + ATTEMPTS * workers:
            raise WorkersGone(f"{self._deaths} workers died in a row, the last one of: {event.reason}")
        if self._busy or self._queues:
            self._idle.append(self._executor.replace(event.worker))

    def _retry(self, task: Task, error: str) -> None:
        self._attempts[task.chunk.index] += 1
        attempt = self._attempts[task.chunk.index]
        if attempt < ATTEMPTS:
            self._sink.retrying(task, attempt + 1, error)
            self._queues.put_back(task)
        else:
            self._sink.gave_up(task, error)
            self.outcome.failed += len(task.wanted_cells)
