"""The driver's loop: in which order it gives tasks out and stores what comes back."""

from typing import Any, cast

import pytest
from sweep_fakes import FakeExecutor, small_plan

from entscale_jax.errors import UserError
from entscale_jax.sweep.executor import Failed, Failure
from entscale_jax.sweep.runner import Runner


class Notes(FakeExecutor):
    """Notes the order in which tasks, told by their chunks, are begun and stored."""

    def __init__(self, workers):
        super().__init__(workers)
        self.notes = []

    def submit(self, worker, task):
        self.notes.append(("begin", task.chunk.index))
        super().submit(worker, task)


class NotingSink:
    def __init__(self, notes):
        self.notes = notes

    def finished(self, worker, task, result):
        self.notes.append(("store", task.chunk.index))

    def __getattr__(self, name):
        return lambda *arguments: None


def _run(executor):
    plan = small_plan()
    runner = Runner(plan.tasks({cell.id for cell in plan.cells}), executor, cast(Any, NotingSink(executor.notes)))
    runner.start()
    return runner, plan


def test_a_worker_has_its_next_task_before_its_result_is_stored():
    executor = Notes(1)
    runner, plan = _run(executor)
    assert runner.run().drawn == len(plan.cells)
    order = [kind for kind, _ in executor.notes]
    assert order == ["begin", *["begin", "store"] * (len(plan.chunks) - 1), "store"]
    stored = [chunk for kind, chunk in executor.notes if kind == "store"]
    assert sorted(stored) == [chunk.index for chunk in plan.chunks]


def test_a_result_that_came_with_a_fatal_failure_is_stored():
    class Together(Notes):
        def wait(self, seconds):
            (finished,) = super().wait(seconds)
            return [finished, Failed("w1", self.waiting.popleft()[1], Failure("the folder has no unet", fatal=True))]

    executor = Together(2)
    runner, _ = _run(executor)
    with pytest.raises(UserError, match="no unet"):
        runner.run()
    assert [kind for kind, _ in executor.notes] == ["begin", "begin", "store"]
