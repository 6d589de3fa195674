"""What the runner asks of whatever draws its chunks, so that it can be tested without Ray."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from ..program_cache import ProgramMemory
from .plan import Task


@dataclass(frozen=True)
class Drawn:
    """One cell's image and measurements, or why there are none."""

    cell: str
    png: bytes = b""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """Columns of `samples.parquet` that only the worker knows."""
    entropy: Sequence[Mapping[str, Any]] = ()
    """One entry a layer: `layer`, `tokens`, `train_tokens`, and `entropy` and `logit_gap`, with a value a step."""
    features: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """What names an extractor -> its features of the image."""
    error: str | None = None
    stored: bool = False
    """The worker has stored image and row itself, so they are not sent."""


@dataclass(frozen=True)
class Compile:
    """A program that a worker made ready: compiled, or read from the cache."""

    name: str
    cached: bool
    seconds: float


@dataclass(frozen=True)
class Result:
    """What came of a task."""

    drawn: Sequence[Drawn]
    compiles: Sequence[Compile]
    compile_seconds: float
    """Tracing, lowering and compiling within the call."""
    steady_seconds: float
    """The rest of the call."""
    memory: Mapping[str, ProgramMemory] = field(default_factory=dict)
    """What each program of the task needs, by its name."""
    device_peak: int | None = None
    """The most bytes that the device's allocator had in use so far, whatever the worker drew; None where it can't tell.
    """


@dataclass(frozen=True)
class Failure:
    """What a worker hands back where drawing raised."""

    error: str
    """One line: the exception and where it was raised."""
    fatal: bool = False
    """The input is at fault, not the run: trying again can't help."""
    memory: bool = False
    """The device's memory is too small for the task's batch."""
    passing: bool = False
    """The cluster is at fault, as where its object store is full: the same may do well after a pause."""


@dataclass(frozen=True)
class Finished:
    """A worker drew its task."""

    worker: str
    task: Task
    result: Result


@dataclass(frozen=True)
class Failed:
    """The task raised; the worker lives on with its compiled programs."""

    worker: str
    task: Task
    failure: Failure


@dataclass(frozen=True)
class Lost:
    """The worker died, with or without a task in hand."""

    worker: str
    task: Task | None
    reason: str
    node: bool = False
    """The whole node is gone, preempted or killed, which is no fault of the task."""


@dataclass(frozen=True)
class Ready:
    """A worker that was started in place of a lost one, or late, can be given tasks."""

    worker: str


Event = Finished | Failed | Lost | Ready


def device_kind(device: Mapping[str, Any]) -> str:
    """What a worker has to draw with, by its entry of `Executor.devices`: those of one kind run out of memory alike."""
    memory = f", {device['memory'] / 2**30:.0f} GiB" if device.get("memory") else ""
    return f"{device.get('count', 1)} x {device.get('kind')}{memory}"


@runtime_checkable
class Executor(Protocol):
    """Workers that draw one task at a time. Names of workers are never used twice."""

    def start(self) -> Sequence[str]:
        """Starts the workers and returns the names of those that are ready; `wait` tells of later ones.

        Raises UserError where there can be none.
        """
        ...

    def submit(self, worker: str, task: Task) -> None:
        """Gives an idle worker a task."""
        ...

    def wait(self, seconds: float) -> Sequence[Event]:
        """What has happened, after waiting for a first event for at most so long."""
        ...

    def replace(self, worker: str) -> str:
        """Starts a worker in place of a lost one and returns its name; `wait` tells when it is ready."""
        ...

    def devices(self) -> Sequence[Mapping[str, Any]]:
        """One entry for each worker started so far: its name, node, device and versions."""
        ...

    def close(self) -> None:
        """Ends all workers, whatever they are at."""
        ...
