"""The ledger of programs: which worker made how many of each, and seconds per bucket, compile and steady apart."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ..baselines import Baseline, Method, Upscale
from ..buckets import Bucket
from ..program_cache import ProgramMemory
from .executor import Compile, Result
from .plan import BucketKey, Program, Task
from .queues import Takeover
from .retries import Batches
from .store import RunFolder

PROGRAMS = {"encode_text": "text", "denoise_latents": "denoise", "decode_latents": "decode"}
"""Names, in JAX, of the programs that draw; what else a worker compiles is counted under `other`."""

REMOTE_SECONDS = 5.0
"""Between two writings of the ledger at a URI, where each is a call that the driver waits for."""


@dataclass
class Count:
    """How often a program was compiled and how often read from the cache, and the seconds of both."""

    compiled: int = 0
    cached: int = 0
    seconds: float = 0.0

    @property
    def made(self) -> int:
        return self.compiled + self.cached

    def add(self, compiled: Compile) -> None:
        self.cached += compiled.cached
        self.compiled += not compiled.cached
        self.seconds += compiled.seconds


@dataclass
class WorkerPrograms:
    """What one worker process made ready, and what its tasks call for: a program of each kind once, never again."""

    programs: dict[str, Count] = field(default_factory=lambda: {kind: Count() for kind in PROGRAMS.values()})
    other: dict[str, Count] = field(default_factory=dict)
    served: set[tuple[str, ...]] = field(default_factory=set)

    def add(self, task: Task, compiles: Sequence[Compile]) -> None:
        self.served |= calls_for(task.program)
        for compiled in compiles:
            if compiled.name in PROGRAMS:
                self.programs[PROGRAMS[compiled.name]].add(compiled)
            else:
                self.other.setdefault(compiled.name, Count()).add(compiled)

    takeovers: list[dict[str, Any]] = field(default_factory=list)

    def expected(self) -> dict[str, int]:
        """Programs of each kind that the drawn tasks call for."""
        return {name: sum(item[0] == name for item in self.served) for name in PROGRAMS.values()}

    def summary(self) -> str:
        """Programs of each kind made ready, of those called for, and the others."""
        expected = self.expected()
        kinds = [f"{name} {count.made} of {expected[name]}" for name, count in self.programs.items()]
        others = [f"{name} {count.made}" for name, count in sorted(self.other.items())]
        return "; ".join([", ".join(kinds), *([f"others: {', '.join(others)}"] if others else [])])

    def as_json(self) -> dict[str, Any]:
        return {
            "expected": self.expected(),
            "programs": {name: asdict(count) for name, count in self.programs.items()},
            "other": {name: asdict(count) for name, count in sorted(self.other.items())},
            "takeovers": self.takeovers,
        }


def calls_for(program: Program) -> set[tuple[str, ...]]:
    """The programs of each kind that drawing runs."""
    bucket = (program.key.model, str(program.key.bucket), str(program.batch))
    return {
        ("text", program.key.model),
        ("decode", *bucket),
        (
            "denoise",
            *bucket,
            _denoises_as(program.method),
            *map(str, (program.steps, program.guided, program.measures)),
        ),
        *_calls_for_enlarging(program),
    }


def _calls_for_enlarging(program: Program) -> set[tuple[str, ...]]:
    method = program.method
    if not isinstance(method, Upscale):
        return set()
    # One picture after the other, whatever the batch.
    pictures = (method.upscaler, str(program.key.bucket), "1")
    sampling = ("original", *map(str, (method.steps, method.guidance != 1.0, False)))
    return {("text", method.upscaler), ("decode", *pictures), ("denoise", *pictures, *sampling)}


def _denoises_as(method: Method) -> str:
    return method.denoises_as if isinstance(method, Baseline) else method.label


class Ledger:
    """Grows with every result and is kept in `programs.json`, so that an interrupted run keeps its figures.

    The file holds `workers`, one entry for each worker process of all runs; `buckets`, one for each model, bucket,
    method and batch: `compile_seconds`, `steady_seconds`, `images` drawn in them, and what `note_memory` adds; and
    `batches`, the largest batch of a model's bucket on devices of a kind where those ran out of memory, which a later
    run keeps to. An entry of `workers` says what its tasks called for (`expected`), what it made ready, and of the
    expected programs how many an earlier worker of the run had made ready before: `again`. The `takeovers` of all
    workers explain those: each brings one more worker to a bucket that others have begun, which makes each of its
    programs ready at most once.
    """

    def __init__(self, run: RunFolder):
        self._write = run.write_json
        self._pause = REMOTE_SECONDS if run.remote else 0.0
        self._written = float("-inf")
        earlier = run.read_json("programs.json") or {}
        self._earlier: list[Mapping[str, Any]] = earlier.get("workers", [])
        self._run = 1 + max((entry["run"] for entry in self._earlier), default=0)
        self._buckets: list[dict[str, Any]] = earlier.get("buckets", [])
        self._batches: list[dict[str, Any]] = earlier.get("batches", [])
        self._workers: dict[str, WorkerPrograms] = {}
        self._devices: dict[str, Mapping[str, Any]] = {}
        self._first: dict[tuple[str, ...], str] = {}
        """The worker that was first to make each program ready."""

    def add(self, worker: str, device: Mapping[str, Any], task: Task, result: Result) -> None:
        """Counts a result and writes the file; at a URI not every time."""
        self._count(worker, device, task).add(task, result.compiles)
        entry = self._bucket(task)
        entry["compile_seconds"] += result.compile_seconds
        entry["steady_seconds"] += result.steady_seconds
        entry["images"] += len(task.wanted_cells)
        entry["calls"] += 1
        note_memory(entry, task, result.memory, result.device_peak)
        if time.monotonic() - self._written >= self._pause:
            self.flush()

    def flush(self) -> None:
        """Writes the file, where there is anything to write."""
        if self._workers:
            workers = [*self._earlier, *self._now()]
            self._write("programs.json", {"workers": workers, "buckets": self._buckets, "batches": self._batches})
            self._written = time.monotonic()

    def halved(self, key: BucketKey, device: str, batch: int) -> None:
        """Keeps that a bucket's batch was halved on devices of a kind; written at once, as it cost a failure."""
        place = {**_place(key), "device": device}
        self._batches = [entry for entry in self._batches if not place.items() <= entry.items()]
        self._batches.append({**place, "batch": batch})
        self.flush()

    @property
    def batches(self) -> Batches:
        """Halved batches of this run and those before it."""
        return {
            (BucketKey(entry["model"], Bucket(entry["height"], entry["width"])), entry["device"]): entry["batch"]
            for entry in self._batches
        }

    def tried(self, worker: str, device: Mapping[str, Any], task: Task) -> None:
        """Counts what a task called for that raised; what was made ready for it is told with the next result."""
        self._count(worker, device, task).add(task, ())

    def took_over(self, worker: str, takeover: Takeover) -> None:
        """Notes that a worker went to a bucket which others had begun."""
        entry = {
            "model": takeover.key.model,
            "bucket": str(takeover.key.bucket),
            "others": takeover.others,
            "compile_seconds": takeover.compile_seconds,
            "left_seconds": takeover.left_seconds,
        }
        self._workers.setdefault(worker, WorkerPrograms()).takeovers.append(entry)

    def summary(self) -> list[str]:
        """One line for each worker of this run."""
        return [f"programs of {name}: {programs.summary()}" for name, programs in self._workers.items()]

    def _count(self, worker: str, device: Mapping[str, Any], task: Task) -> WorkerPrograms:
        self._devices[worker] = device
        programs = self._workers.setdefault(worker, WorkerPrograms())
        for program in calls_for(task.program) - programs.served:
            self._first.setdefault(program, worker)
        return programs

    def _now(self) -> list[dict[str, Any]]:
        return [
            {
                "run": self._run,
                "worker": name,
                "device": self._devices[name],
                **programs.as_json(),
                "again": self._again(name, programs),
            }
            for name, programs in self._workers.items()
            if name in self._devices
        ]

    def _again(self, worker: str, programs: WorkerPrograms) -> dict[str, int]:
        known = [program for program in programs.served if self._first[program] != worker]
        return {kind: sum(program[0] == kind for program in known) for kind in PROGRAMS.values()}

    def _bucket(self, task: Task) -> dict[str, Any]:
        program = task.program
        key = {**_place(program.key), "method": program.method.label, "batch": program.batch}
        for entry in self._buckets:
            if key.items() <= entry.items():
                return entry
        self._buckets.append({**key, "compile_seconds": 0.0, "steady_seconds": 0.0, "images": 0, "calls": 0})
        return self._buckets[-1]


def note_memory(
    entry: dict[str, Any], task: Task, memory: Mapping[str, ProgramMemory], device_peak: int | None = None
) -> None:
    """Adds to an entry of `buckets` what its programs need, in bytes, and the `sizes` of the pictures made by them.

    `device_peak` is the least of the allocator's peaks that workers told after a call: each holds what that call needed
    and whatever its worker drew before, so the least is the nearest bound.
    """
    sizes = {f"{cell.width}x{cell.height}" for cell in task.wanted_cells}
    entry["sizes"] = sorted(sizes.union(entry.get("sizes", ())))
    found = entry.setdefault("memory", {})
    for name, needs in memory.items():
        if name not in found or needs.needed > found[name]["needed"]:
            found[name] = {**asdict(needs), "needed": needs.needed}
    if device_peak is not None:
        entry["device_peak"] = min(device_peak, entry.get("device_peak", device_peak))


def _place(key: BucketKey) -> dict[str, Any]:
    return {"model": key.model, "width": key.bucket.width, "height": key.bucket.height}
