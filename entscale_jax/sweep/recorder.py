"""Where a run's results go: into the run folder, the ledger of programs and the progress line."""

from collections.abc import Mapping
from typing import Any

from .cell_writer import cell_row, drawn_row
from .environment import describe_environment
from .executor import Executor, Result
from .plan import Task
from .programs import Ledger
from .progress import RunProgress
from .store import RunFolder


class Recorder:
    """The runner's sink in earnest. The driver alone holds it, so nothing is written twice at a time."""

    def __init__(self, run: RunFolder, executor: Executor, progress: RunProgress):
        self._run = run
        self._executor = executor
        self._progress = progress
        self._ledger = Ledger(run)

    def started(self) -> None:
        last = self._run.read_json("environment.json") or {}
        earlier = [*last.pop("earlier", []), *([last] if last else [])]
        self._run.write_json("environment.json", {**describe_environment(self._executor.devices()), "earlier": earlier})

    def finished(self, worker: str, task: Task, result: Result) -> int:
        cells = {cell.id: cell for cell in task.wanted_cells}
        failed = 0
        for drawn in result.drawn:
            cell = cells[drawn.cell]
            if drawn.error is not None:
                failed += 1
                self._run.write_failure(cell, cell_row(cell), drawn.error)
                self._progress.say(f"failed: {_name(task)}, {cell.prompt!r}: {drawn.error}")
                continue
            if drawn.stored:
                self._run.note_stored(cell)
                continue
            self._run.write(cell, drawn.png, drawn_row(cell, drawn))
        self._ledger.add(worker, self._device(worker), task, result)
        self._progress.advance(len(cells), task.chunk.cost, _name(task), result.compile_seconds + result.steady_seconds)
        return failed

    def gave_up(self, task: Task, error: str) -> None:
        for cell in task.wanted_cells:
            self._run.write_failure(cell, cell_row(cell), error)
        self._progress.say(f"failed: {_name(task)}, {len(task.wanted_cells)} cells: {error}")
        self._progress.advance(len(task.wanted_cells), task.chunk.cost, _name(task), 0.0)

    def retrying(self, task: Task, attempt: int, error: str) -> None:
        self._progress.say(f"trying again ({attempt}): {_name(task)}: {error}")

    def close(self) -> None:
        """Writes what is held back."""
        self._ledger.flush()

    def summary(self) -> list[str]:
        """What the workers of this run compiled, a line each."""
        return self._ledger.summary()

    def _device(self, worker: str) -> Mapping[str, Any]:
        found = [device for device in self._executor.devices() if device["worker"] == worker]
        return {key: value for key, value in (found[0] if found else {}).items() if key != "worker"}


def _name(task: Task) -> str:
    return f"{task.chunk.width}x{task.chunk.height} {task.chunk.program.method.label}"
