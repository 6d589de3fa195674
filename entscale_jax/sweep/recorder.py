"""Where a run's results go: into the run folder, the ledger of programs, and as events to those who watch."""

from collections.abc import Mapping, Sequence
from typing import Any

from .cell_writer import cell_row, drawn_row
from .environment import describe_environment
from .events import Observer, make_event, tell_all
from .executor import Executor, Result
from .plan import BucketKey, Task
from .programs import Ledger
from .queues import Takeover
from .retries import Batches
from .runner import Stop
from .store import RunFolder


class Recorder:
    """The runner's sink in earnest. The driver alone holds it, so nothing is written twice at a time."""

    def __init__(self, run: RunFolder, executor: Executor, observers: Sequence[Observer]):
        self._run = run
        self._executor = executor
        self._observers = observers
        self._ledger = Ledger(run)

    def tell(self, kind: str, **fields: Any) -> None:
        """Tells every observer an event that happens now."""
        tell_all(self._observers, make_event(kind, **fields))

    def started(self) -> None:
        last = self._run.read_json("environment.json") or {}
        earlier = [*last.pop("earlier", []), *([last] if last else [])]
        devices = [dict(device) for device in self._executor.devices()]
        self._run.write_json("environment.json", {**describe_environment(devices), "earlier": earlier})
        self.tell("workers", workers=devices)

    def finished(self, worker: str, task: Task, result: Result) -> int:
        cells = {cell.id: cell for cell in task.wanted_cells}
        failed, whole = 0, []
        for drawn in result.drawn:
            cell = cells[drawn.cell]
            if drawn.error is not None:
                failed += 1
                self._run.write_failure(cell, cell_row(cell), drawn.error)
                size = f"{cell.width}x{cell.height}"
                self.tell(
                    "cell_failed", cell=cell.id, **{**_size(task), "size": size}, prompt=cell.prompt, error=drawn.error
                )
                continue
            if drawn.stored:
                self._run.note_stored(cell)
                continue
            whole.append((cell, drawn.png, drawn_row(cell, drawn)))
        self._run.write_many(whole)
        self._ledger.add(worker, self._device(worker), task, result)
        self.tell(
            "chunk",
            worker=worker,
            **_place(task),
            cells=len(cells),
            failed=failed,
            cost=task.cost,
            compile_seconds=round(result.compile_seconds, 3),
            steady_seconds=round(result.steady_seconds, 3),
        )
        return failed

    def failed(self, worker: str, task: Task) -> None:
        self._ledger.tried(worker, self._device(worker), task)

    def gave_up(self, task: Task, error: str) -> None:
        for cell in task.wanted_cells:
            self._run.write_failure(cell, cell_row(cell), error)
        self.tell("gave_up", **_place(task), cells=len(task.wanted_cells), cost=task.cost, error=error)

    def retrying(self, task: Task, attempt: int, error: str) -> None:
        self.tell("retry", **_place(task), attempt=attempt, error=error)

    def divided(self, task: Task, parts: tuple[Task, ...], error: str) -> None:
        cells = [len(part.wanted_cells) for part in parts]
        self.tell("divided", **_place(task), parts=cells, batch=parts[0].program.batch, error=error)

    def halved(self, task: Task, device: str, batch: int) -> None:
        self._ledger.halved(task.chunk.program.key, device, batch)

    def took_over(self, worker: str, takeover: Takeover) -> None:
        self._ledger.took_over(worker, takeover)
        self.tell("takeover", worker=worker, bucket=bucket_name(takeover.key), others=takeover.others)

    def stopping(self, why: Stop, in_hand: int) -> None:
        self.tell("stopping", why=why.value, in_hand=in_hand)

    @property
    def batches(self) -> Batches:
        """Those that the run has halved so far, see `Ledger`."""
        return self._ledger.batches

    def close(self) -> None:
        """Writes what is held back."""
        self._ledger.flush()

    def summary(self) -> list[str]:
        """What the workers of this run compiled, a line each."""
        return self._ledger.summary()

    def _device(self, worker: str) -> Mapping[str, Any]:
        found = [device for device in self._executor.devices() if device["worker"] == worker]
        return {key: value for key, value in (found[0] if found else {}).items() if key != "worker"}


def bucket_name(key: BucketKey) -> str:
    """A bucket as events and metrics call it: its model and its size in pixels."""
    return f"{key.model} {key.bucket}"


def _size(task: Task) -> dict[str, str]:
    chunk = task.chunk
    return {"size": f"{chunk.width}x{chunk.height}", "method": chunk.program.method.label}


def _place(task: Task) -> dict[str, Any]:
    return {"chunk": task.chunk.index, "bucket": bucket_name(task.chunk.program.key), **_size(task)}
