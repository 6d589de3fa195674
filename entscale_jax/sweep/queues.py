"""One queue of chunks per bucket: a worker stays on its bucket, so that each shape compiles once where it can."""

from collections import deque
from collections.abc import Iterable

from .plan import BucketKey, Task


class Queues:
    """What is left to be drawn, and which bucket each worker is on."""

    def __init__(self, tasks: Iterable[Task]):
        self._tasks: dict[BucketKey, deque[Task]] = {}
        self._on: dict[str, BucketKey] = {}
        for task in tasks:
            self.put_back(task)

    def __len__(self) -> int:
        return sum(len(tasks) for tasks in self._tasks.values())

    def take(self, worker: str) -> Task | None:
        """The next chunk for a worker: of its bucket, else of the one to move to; None where nothing is left."""
        key = self._on.get(worker)
        if key is None or not self._tasks.get(key):
            key = self._choose(worker)
        if key is None:
            self._on.pop(worker, None)
            return None
        self._on[worker] = key
        return self._tasks[key].popleft()

    def put_back(self, task: Task) -> None:
        """Queues a chunk (again), behind the others of its bucket."""
        self._tasks.setdefault(task.chunk.program.key, deque()).append(task)

    def leave(self, worker: str) -> None:
        """Forgets a worker that is gone."""
        self._on.pop(worker, None)

    def bucket_of(self, worker: str) -> BucketKey | None:
        """The bucket that a worker is on."""
        return self._on.get(worker)

    def _choose(self, worker: str) -> BucketKey | None:
        # A bucket that nobody is on comes first: a second worker on one would compile its programs once more.
        taken = {key for other, key in self._on.items() if other != worker}
        open_keys = [key for key, tasks in self._tasks.items() if tasks]
        return min(open_keys, key=lambda key: (key in taken, -self._work(key), key), default=None)

    def _work(self, key: BucketKey) -> int:
        return sum(task.chunk.cost for task in self._tasks[key])
