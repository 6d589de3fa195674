"""One queue of tasks per bucket: a worker stays on its bucket, so that each program is compiled once where it can be.

Order. 1. A worker draws its bucket until that is empty. 2. Then, and at a cold start, it goes to the bucket with most
work left of those that no worker is on: the largest first, so that no long one is left for the end. 3. Where every
bucket has a worker it may take over part of one, which compiles that bucket's programs once more and so has to pay:
with W seconds of drawing waiting for the n workers there, and C seconds to make one program ready, those n are through
after W / n, and a newcomer helps from C on. It goes where W / n - C is largest, if that is above zero; else it waits.
4. W and C are those that this run has measured, of the bucket or, where it has none yet, of all; before anything is
measured it goes, as every device would be idle otherwise. 5. Within a bucket it prefers programs that it has ready,
or that no other worker has, so that workers of one bucket share its programs out. 6. Tasks that killed a worker, or
failed, come when nothing else is left. Each takeover is noted in `programs.json` with its W and C.
"""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import count

from .plan import BucketKey, Program, Task
from .timings import Timings


@dataclass(frozen=True)
class Takeover:
    """A worker that went to a bucket which others had begun, and the measurements that this was decided on."""

    key: BucketKey
    others: int
    """Workers that are there; none where those are dead, or went on as they left nothing waiting."""
    compile_seconds: float | None
    """To make one program ready; None where none was measured yet."""
    left_seconds: float | None
    """Drawing that waited there, for one worker."""


class Queues:
    """What is left to be drawn, and which bucket each worker is on. `told` is called with each takeover."""

    def __init__(
        self,
        tasks: Iterable[Task],
        timings: Timings | None = None,
        told: Callable[[str, Takeover], None] = lambda worker, takeover: None,
    ):
        self._timings = timings or Timings()
        self._told = told
        self._waiting: dict[BucketKey, _Waiting] = {}
        self._suspects: list[Task] = []
        self._on: dict[str, BucketKey] = {}
        self._ready: dict[str, set[Program]] = {}
        self._been: dict[BucketKey, set[str]] = {}
        for task in tasks:
            self.put_back(task)

    def __len__(self) -> int:
        return sum(len(waiting) for waiting in self._waiting.values()) + len(self._suspects)

    def take(self, worker: str) -> Task | None:
        """The next task for a worker: of its bucket, else of one to move to, else a suspect.

        None where nothing is left, or nothing that pays.
        """
        key = self._on.get(worker)
        if key is None or not self._waiting.get(key):
            key = self._choose(worker)
        if key is not None:
            self._move(worker, key)
            task = self._waiting[key].take(self._ready.get(worker, set()), self._held_by_others(worker))
        elif self._suspects:
            task = min(self._suspects, key=lambda task: self._suspicion(worker, task))
            self._suspects.remove(task)
            self._move(worker, task.chunk.program.key)
        else:
            self._on.pop(worker, None)
            return None
        self._ready.setdefault(worker, set()).add(task.program)
        return task

    def put_back(self, task: Task, *, suspect: bool = False) -> None:
        """Queues a task (again): behind the others of its bucket, or as a suspect behind everything."""
        if suspect:
            self._suspects.append(task)
        else:
            self._waiting.setdefault(task.chunk.program.key, _Waiting()).put(task)

    def leave(self, worker: str) -> None:
        """Forgets a worker that is gone."""
        self._on.pop(worker, None)
        self._ready.pop(worker, None)

    def bucket_of(self, worker: str) -> BucketKey | None:
        """The bucket that a worker is on."""
        return self._on.get(worker)

    def _choose(self, worker: str) -> BucketKey | None:
        open_keys = sorted(key for key, waiting in self._waiting.items() if waiting)
        free = [key for key in open_keys if not self._others(worker, key)]
        if free:
            return max(free, key=lambda key: self._waiting[key].cost)
        gains = {key: self._gain(worker, key) for key in open_keys}
        best = max(gains, key=lambda key: (gains[key], self._waiting[key].cost), default=None)
        return best if best is not None and gains[best] > 0 else None

    def _gain(self, worker: str, key: BucketKey) -> float:
        """Seconds for which a newcomer would help, by rule 3; infinite where nothing is measured yet."""
        left = self._timings.draw_seconds(key, self._waiting[key].cost)
        if left is None:
            return float("inf")
        has_one = any(program in self._ready.get(worker, ()) for program in self._waiting[key].programs)
        start = 0.0 if has_one else self._timings.compile_seconds(key) or 0.0
        return left / self._others(worker, key) - start

    def _move(self, worker: str, key: BucketKey) -> None:
        before, self._on[worker] = self._on.get(worker), key
        been = self._been.setdefault(key, set())
        if before != key and been - {worker}:
            cost = self._waiting[key].cost if key in self._waiting else 0.0
            seconds = self._timings.compile_seconds(key), self._timings.draw_seconds(key, cost)
            self._told(worker, Takeover(key, self._others(worker, key), *seconds))
        been.add(worker)

    def _others(self, worker: str, key: BucketKey) -> int:
        return sum(on == key for other, on in self._on.items() if other != worker)

    def _held_by_others(self, worker: str) -> set[Program]:
        return {program for other, ready in self._ready.items() if other != worker for program in ready}

    def _suspicion(self, worker: str, task: Task) -> tuple[int, bool, int]:
        """The fewest cells first: the one at fault is soon alone."""
        return len(task.wanted_cells), self._on.get(worker) != task.chunk.program.key, task.chunk.index


class _Waiting:
    """The tasks of one bucket, by program, each in the order that it came."""

    def __init__(self):
        self._tasks: dict[Program, deque[tuple[int, Task]]] = {}
        self._places = count()
        self._length = 0
        self.cost = 0.0

    def __len__(self) -> int:
        return self._length

    @property
    def programs(self) -> Iterable[Program]:
        return self._tasks

    def put(self, task: Task) -> None:
        self._tasks.setdefault(task.program, deque()).append((next(self._places), task))
        self._length += 1
        self.cost += task.cost

    def take(self, own: set[Program], others: set[Program]) -> Task:
        """The first task of those whose program is ready in the worker or in no other one, if there is such a one."""
        program = min(self._tasks, key=lambda program: (program in others - own, self._tasks[program][0][0]))
        _, task = self._tasks[program].popleft()
        if not self._tasks[program]:
            del self._tasks[program]
        self._length -= 1
        self.cost = self.cost - task.cost if self._length else 0.0
        return task
