"""Draws chunks with Ray: one actor a device, which keeps its compiled programs and returns bytes to the driver.

Retries are the runner's: Ray's own would hide the loss of compiled programs and spend every restart on one bad chunk.
"""

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ..errors import UserError
from .devices import Placement, place_workers
from .executor import Event, Failed, Failure, Finished, Lost, Result
from .plan import Task
from .spec import Metric
from .worker import Worker

START_SECONDS = 300.0
"""How long workers may take to start; nodes of a cluster can be slow."""
GET_SECONDS = 60.0
"""How long a result that is ready may take to arrive."""


@contextlib.contextmanager
def connected(address: str) -> Iterator[None]:
    """A connection to the Ray cluster at `address`; `local` starts one that ends with the connection.

    Raises UserError where no cluster answers.
    """
    own = {"include_dashboard": False, "object_store_memory": 256 * 2**20} if address == "local" else {}
    began = not ray.is_initialized()
    if began:
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False, **own)
        except (ConnectionError, RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"no Ray cluster at {address!r} ({reason}): start one, or leave the address out") from error
    try:
        yield
    finally:
        if began:
            ray.shutdown()


class RayExecutor:
    """The executor of whole sweeps. Use it inside `connected`."""

    def __init__(
        self,
        metrics: Sequence[Metric],
        folders: Mapping[str, str],
        workers: int | str,
        platforms: str | None,
        store: str | None = None,
    ):
        self._arguments = (tuple(metrics), dict(folders), store)
        self._workers = workers
        self._platforms = platforms
        self._actors: dict[str, Any] = {}
        self._placements: dict[str, Placement] = {}
        self._hellos: dict[str, Any] = {}
        self._devices: dict[str, dict[str, Any]] = {}
        self._running: dict[Any, tuple[str, Task]] = {}

    def start(self) -> list[str]:
        nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]
        placements = place_workers(ray.cluster_resources(), nodes, self._workers, self._platforms)
        names = [self._start(f"worker-{number}", placement) for number, placement in enumerate(placements)]
        deadline = time.monotonic() + START_SECONDS
        for name in names:
            self._await_hello(name, deadline - time.monotonic())
        return names

    def submit(self, worker: str, task: Task) -> None:
        self._running[self._actors[worker].draw.remote(task)] = (worker, task)

    def wait(self, seconds: float) -> list[Event]:
        if not self._running:
            time.sleep(min(seconds, 0.1))
            return []
        refs = list(self._running)
        ray.wait(refs, num_returns=1, timeout=seconds)
        ready, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
        return [self._event(ref) for ref in ready]

    def replace(self, worker: str) -> str:
        placement = self._placements.pop(worker)
        with contextlib.suppress(RayError):
            ray.kill(self._actors.pop(worker), no_restart=True)
        stem, _, life = worker.partition(".")
        return self._start(f"{stem}.{int(life or 0) + 1}", placement)

    def devices(self) -> list[dict[str, Any]]:
        return [{"worker": name, **device} for name, device in self._devices.items()]

    def close(self) -> None:
        for actor in self._actors.values():
            with contextlib.suppress(RayError):
                ray.kill(actor, no_restart=True)
        self._actors.clear()
        self._running.clear()

    def _start(self, name: str, placement: Placement) -> str:
        options: dict[str, Any] = {**placement.options, "runtime_env": {"env_vars": dict(placement.env)}}
        if placement.node is not None:
            # Soft: where the node is gone, its worker draws on another.
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(placement.node, soft=True)
        remote = cast(Any, ray.remote(Worker))
        actor = remote.options(max_restarts=0, max_task_retries=0, **options).remote(*self._arguments)
        self._actors[name] = actor
        self._placements[name] = placement
        self._hellos[name] = actor.hello.remote(placement.kind.value)
        return name

    def _await_hello(self, name: str, seconds: float) -> None:
        try:
            self._devices[name] = ray.get(self._hellos[name], timeout=max(seconds, 1.0))
        except GetTimeoutError:
            raise UserError(f"{name} did not start within {START_SECONDS:.0f} s: check `ray status`") from None
        except RayError as error:
            cause = getattr(error, "cause", None) or error
            if isinstance(cause, UserError):
                raise UserError(str(cause)) from error
            raise UserError(f"{name} can't start: {_last_line(cause)}") from error

    def _event(self, ref: Any) -> Event:
        worker, task = self._running.pop(ref)
        try:
            value: Result | Failure = ray.get(ref, timeout=GET_SECONDS)
        except RayActorError as error:
            return Lost(worker, task, _last_line(error).split(" Some common causes")[0])
        except RayError as error:
            return Failed(worker, task, Failure(f"{type(error).__name__}: {_last_line(error)}"))
        if worker not in self._devices:
            # Calls of an actor run in order, so a worker that drew has said hello.
            with contextlib.suppress(RayError):
                self._devices[worker] = ray.get(self._hellos[worker], timeout=GET_SECONDS)
        if isinstance(value, Failure):
            return Failed(worker, task, value)
        return Finished(worker, task, value)


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]
