"""Keeps every worker busy until each cell is drawn or given up: the driver's loop. `retries` says what fails how."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Protocol, runtime_checkable

from ..errors import UserError
from .executor import Event, Executor, Failed, Finished, Lost, Ready, Result, device_kind
from .plan import Task
from .queues import Queues, Takeover
from .retries import Batches, Retries, Verdict
from .timings import Timings

POLL_SECONDS = 1.0
DEATHS_IN_A_ROW = 24
"""Workers that may die with nothing drawn in between, and three more for each worker: some four cells that kill."""
GONE_SECONDS = 600.0
"""How long a run waits for a first new worker where it has none left, as after a preemption."""
PAUSE_SECONDS = 2.0
"""How long nothing is begun after a failure of the cluster that may pass."""


class Stop(StrEnum):
    """Why a run ended before its last cell."""

    INTERRUPTED = "interrupted"
    FAILURES = "failures"


@runtime_checkable
class Sink(Protocol):
    """Where results go, one call each, from the driver alone."""

    def started(self) -> None:
        """Notes that the workers are there."""
        ...

    def finished(self, worker: str, task: Task, result: Result) -> int:
        """Stores a result and returns the number of its cells that failed."""
        ...

    def failed(self, worker: str, task: Task) -> None:
        """Notes that a task raised, for which the worker may have made programs ready."""
        ...

    def gave_up(self, task: Task, error: str) -> None:
        """Stores that a task's cells can't be drawn."""
        ...

    def retrying(self, task: Task, attempt: int, error: str) -> None:
        """Says that a task will be tried again."""
        ...

    def divided(self, task: Task, parts: tuple[Task, ...], error: str) -> None:
        """Says that a task will be tried in parts; without an error where its bucket's batch was halved before."""
        ...

    def halved(self, task: Task, device: str, batch: int) -> None:
        """Notes the largest batch that a task's bucket still has on devices of a kind."""
        ...

    def took_over(self, worker: str, takeover: Takeover) -> None:
        """Notes that a worker went to a bucket which others had begun."""
        ...

    def stopping(self, why: Stop, in_hand: int) -> None:
        """Says that only tasks in hand are finished."""
        ...


class WorkersGone(RuntimeError):
    """Workers died again and again without drawing anything, or none came back."""


@dataclass
class Outcome:
    """Cells drawn and cells given up in this run, and what ended it before its time."""

    drawn: int = 0
    failed: int = 0
    stop: Stop | None = None


class Runner:
    """One run over some tasks: `start`, then `run`.

    Raises UserError where a worker finds the input at fault, WorkersGone where all die.

    `interrupts` tells how often Ctrl-C was pressed: once finishes the tasks in hand, twice raises KeyboardInterrupt.
    After `max_failures` failed cells the tasks in hand are finished, too, and no more. `batches` are those that an
    earlier run has halved.
    """

    def __init__(
        self,
        tasks: Iterable[Task],
        executor: Executor,
        sink: Sink,
        *,
        interrupts: Callable[[], int] = lambda: 0,
        max_failures: int | None = None,
        batches: Batches = MappingProxyType({}),
    ):
        self.outcome = Outcome()
        self._interrupts = interrupts
        self._max_failures = max_failures
        self._timings = Timings()
        self._queues = Queues(tasks, self._timings, sink.took_over)
        self._retries = Retries(batches)
        self._executor = executor
        self._sink = sink
        self._idle: list[str] = []
        self._busy: set[str] = set()
        self._deaths = 0
        self._last_death = ""
        self._begin_at = 0.0
        self._nobody_since: float | None = None

    def start(self) -> None:
        """Starts the workers."""
        self._idle = list(self._executor.start())
        self._sink.started()

    def run(self) -> Outcome:
        """Draws everything, or until it is told to stop; returns when the last task in hand is stored."""
        self._submit()
        while self._busy or (self._queues and self.outcome.stop is None):
            for event in self._executor.wait(POLL_SECONDS):
                self._handle(event)
            if self._interrupts() > 1:
                raise KeyboardInterrupt
            self._submit()
            self._check_somebody()
        return self.outcome

    def _submit(self) -> None:
        if self._should_stop() or time.monotonic() < self._begin_at:
            return
        for worker in list(self._idle):
            task = self._next(worker)
            if task is None:
                continue
            self._idle.remove(worker)
            self._busy.add(worker)
            self._executor.submit(worker, task)

    def _next(self, worker: str) -> Task | None:
        while (task := self._queues.take(worker)) is not None:
            parts = self._retries.within_limit(task, self._device_of(worker))
            if self._retries.is_hopeless(task):
                self._give_up(task, "not tried: cells of the same program failed alone, and none was drawn")
            elif parts != (task,):
                self._sink.divided(task, parts, "")
                self._put_back(Verdict(parts))
            else:
                return task
        return None

    def _should_stop(self) -> bool:
        if self.outcome.stop is None:
            if self._interrupts():
                self._stop(Stop.INTERRUPTED)
            elif self._max_failures is not None and self.outcome.failed >= self._max_failures:
                self._stop(Stop.FAILURES)
        return self.outcome.stop is not None

    def _stop(self, why: Stop) -> None:
        if self._busy or self._queues:
            self.outcome.stop = why
            self._sink.stopping(why, len(self._busy))

    def _handle(self, event: Event) -> None:
        self._busy.discard(event.worker)
        if isinstance(event, Ready):
            self._idle.append(event.worker)
        elif isinstance(event, Finished):
            self._finished(event)
        elif isinstance(event, Failed):
            self._failed(event)
        else:
            self._lost(event)

    def _finished(self, event: Finished) -> None:
        self._deaths = 0
        self._idle.append(event.worker)
        self._timings.add(event.task, event.result)
        self._retries.drew(event.task)
        failed = self._sink.finished(event.worker, event.task, event.result)
        self.outcome.failed += failed
        self.outcome.drawn += len(event.task.wanted_cells) - failed

    def _failed(self, event: Failed) -> None:
        task, failure = event.task, event.failure
        if failure.fatal:
            raise UserError(failure.error)
        self._idle.append(event.worker)
        self._sink.failed(event.worker, task)
        if failure.memory:
            verdict = self._out_of_memory(event.worker, task)
        elif failure.passing:
            self._begin_at = time.monotonic() + PAUSE_SECONDS
            verdict = self._retries.passing(task)
        else:
            verdict = self._retries.fault(task)
        self._follow(verdict, task, failure.error)

    def _out_of_memory(self, worker: str, task: Task) -> Verdict:
        device = self._device_of(worker)
        verdict = self._retries.out_of_memory(task, device)
        if (batch := self._retries.limit(task, device)) is not None:
            self._sink.halved(task, device, batch)
        return verdict

    def _device_of(self, worker: str) -> str:
        return next((device_kind(one) for one in self._executor.devices() if one["worker"] == worker), "")

    def _lost(self, event: Lost) -> None:
        self._last_death = event.reason
        self._queues.leave(event.worker)
        if event.worker in self._idle:
            self._idle.remove(event.worker)
        if event.task is not None or not (self._idle or self._busy):
            # Those that never live on some nodes are not the fault of workers that draw on others.
            self._deaths += 1
        if event.task is not None:
            verdict = self._retries.node_lost(event.task) if event.node else self._retries.fault(event.task)
            self._follow(verdict, event.task, f"the worker died: {event.reason}")
        workers = len(self._idle) + len(self._busy) + 1
        if self._deaths > DEATHS_IN_A_ROW + 3 * workers:
            raise WorkersGone(f"{self._deaths} workers died in a row, the last one of: {event.reason}")
        if self.outcome.stop is None and (self._busy or self._queues):
            self._executor.replace(event.worker)

    def _follow(self, verdict: Verdict, task: Task, error: str) -> None:
        for lost in verdict.given_up:
            self._give_up(lost, error)
        if len(verdict.again) > 1:
            self._sink.divided(task, verdict.again, error)
        elif verdict.again:
            self._sink.retrying(task, self._retries.tries(task) + 1, error)
        self._put_back(verdict)

    def _put_back(self, verdict: Verdict) -> None:
        for task in verdict.again:
            self._queues.put_back(task, suspect=verdict.suspects)

    def _give_up(self, task: Task, error: str) -> None:
        self._sink.gave_up(task, error)
        self.outcome.failed += len(task.wanted_cells)

    def _check_somebody(self) -> None:
        """Raises WorkersGone where there has been no worker for long."""
        if self._idle or self._busy:
            self._nobody_since = None
            return
        self._nobody_since = self._nobody_since or time.monotonic()
        if time.monotonic() - self._nobody_since > GONE_SECONDS:
            raise WorkersGone(
                f"no worker was left, and none came back within {GONE_SECONDS:.0f} s; the last one died of: "
                f"{self._last_death}"
            )
