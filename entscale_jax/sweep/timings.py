"""What a run has measured so far of its buckets: seconds to make a program ready, and seconds of drawing by cost."""

from collections import Counter

from .executor import Result
from .plan import BucketKey, Task

_MAIN = "denoise_latents"
"""The program that is made ready once for each `Program`; what is compiled beside it counts with it."""


class Timings:
    """Sums over results. Where a bucket has none yet, the mean of the others stands for it."""

    def __init__(self):
        self._programs: Counter[BucketKey] = Counter()
        self._compile: Counter[BucketKey] = Counter()
        self._cost: Counter[BucketKey] = Counter()
        self._steady: Counter[BucketKey] = Counter()

    def add(self, task: Task, result: Result) -> None:
        """Counts what a task took."""
        key = task.chunk.program.key
        self._programs[key] += sum(compiled.name == _MAIN for compiled in result.compiles)
        self._compile[key] += result.compile_seconds  # pyright: ignore[reportArgumentType]
        self._cost[key] += task.cost  # pyright: ignore[reportArgumentType]
        self._steady[key] += result.steady_seconds  # pyright: ignore[reportArgumentType]

    def compile_seconds(self, key: BucketKey) -> float | None:
        """Seconds to make one program of the bucket ready; None where none was yet."""
        return _ratio(self._compile, self._programs, key)

    def draw_seconds(self, key: BucketKey, cost: float) -> float | None:
        """Seconds of one worker for tasks of so much cost; None where nothing was drawn yet."""
        rate = _ratio(self._steady, self._cost, key)
        return None if rate is None else rate * cost


def _ratio(above: Counter, below: Counter, key: BucketKey) -> float | None:
    if below[key]:
        return above[key] / below[key]
    total = sum(below.values())
    return sum(above.values()) / total if total else None
