"""Draws chunks with Ray: one actor a device, which keeps its compiled programs and returns bytes to the driver.

Retries are the runner's: Ray's own would hide the loss of compiled programs and spend every restart on one bad chunk.
"""

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, cast

import ray
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    GetTimeoutError,
    ObjectLostError,
    ObjectStoreFullError,
    OutOfDiskError,
    RayActorError,
    RayError,
)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ...errors import UserError
from ..executor import Event, Failed, Failure, Finished, Lost, Ready, Result
from ..plan import Task
from ..spec import Device, SweepSpec
from ..worker import Worker
from .devices import Placement, place_workers
from .ray_metrics import RayMetrics

START_SECONDS = 300.0
"""How long the first worker may take to start; nodes of a cluster can be slow."""
OTHERS_SECONDS = 60.0
"""How long the other workers are waited for before the first ones begin."""
IN_VAIN = 3
"""Workers that may die in one place before they have greeted, until none is started there any more."""
LOOK_SECONDS = 15.0
"""How often new devices are looked for."""
CLIENT_TRIES = 3
"""Ray's client server forks a process for each client among gRPC's threads, which now and then kills it at once."""
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
            _connect(address, own)
        except (ConnectionError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"no Ray cluster at {address!r} ({reason}): start one, or leave the address out") from error
    try:
        yield
    finally:
        if began:
            ray.shutdown()


def _connect(address: str, own: Mapping[str, Any]) -> None:
    """A connection; a ray:// server whose process for this client died at its start is asked again."""
    for again in range(CLIENT_TRIES, 0, -1):
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False, **own)
            return
        except ConnectionAbortedError:
            if again == 1:
                raise


class RayExecutor:
    """The executor of whole sweeps. Use it inside `connected`."""

    def __init__(
        self,
        spec: SweepSpec,
        folders: Mapping[str, str],
        platforms: str | None,
        *,
        store: str | None = None,
        worker: type = Worker,
    ):
        self.observers = (RayMetrics(),)
        """Told of each event of the run, see `events`."""
        self._arguments = (tuple(spec.metrics), dict(folders), store, spec.sharding, spec.extractors)
        self._spec = spec
        self._platforms = platforms
        self._worker = worker
        self._actors: dict[str, Any] = {}
        self._placements: dict[str, Placement] = {}
        self._devices: dict[str, dict[str, Any]] = {}
        self._running: dict[Any, tuple[str, Task]] = {}
        self._in_vain: Counter[str] = Counter()
        self._looked = time.monotonic()
        self._coming: dict[Any, str] = {}
        """Hellos that have not been heard yet, and the workers' names."""

    def start(self) -> list[str]:
        for number, placement in enumerate(self._place(self._spec.device)):
            self._start(f"worker-{number}", placement)
        hellos = list(self._coming)
        first, _ = ray.wait(hellos, num_returns=1, timeout=START_SECONDS)
        if not first:
            raise UserError(f"no worker started within {START_SECONDS:.0f} s: check `ray status`")
        ready, _ = ray.wait(hellos, num_returns=len(hellos), timeout=OTHERS_SECONDS)
        events = [self._greet(ref) for ref in ready]
        names = [event.worker for event in events if isinstance(event, Ready)]
        lost = [event for event in events if isinstance(event, Lost)]
        if lost and not names:
            raise UserError(f"{lost[0].worker} can't start: {lost[0].reason}")
        for event in lost:
            self.replace(event.worker)
        return names

    def submit(self, worker: str, task: Task) -> None:
        self._running[self._actors[worker].draw.remote(task)] = (worker, task)

    def wait(self, seconds: float) -> list[Event]:
        self._grow()
        refs = [*self._running, *self._coming]
        if not refs:
            time.sleep(min(seconds, 0.1))
            return []
        ray.wait(refs, num_returns=1, timeout=seconds)
        ready, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
        return [self._event(ref) if ref in self._running else self._greet(ref) for ref in ready]

    def replace(self, worker: str) -> str:
        placement = self._elsewhere(self._placements.pop(worker))
        with contextlib.suppress(RayError):
            ray.kill(self._actors.pop(worker), no_restart=True)
        stem, _, life = worker.partition(".")
        name = f"{stem}.{int(life or 0) + 1}"
        self._in_vain[stem] = 0 if worker in self._devices else self._in_vain[stem] + 1
        # Where workers never come to life, as on a node without the package, the others draw on alone.
        return name if self._in_vain[stem] > IN_VAIN else self._start(name, placement)

    def devices(self) -> list[dict[str, Any]]:
        return [{"worker": name, **device} for name, device in self._devices.items()]

    def close(self) -> None:
        for actor in self._actors.values():
            with contextlib.suppress(RayError):
                ray.kill(actor, no_restart=True)
        self._actors.clear()
        self._running.clear()
        self._coming.clear()

    def _place(self, device: Device) -> list[Placement]:
        nodes = _living_nodes()
        return place_workers(
            ray.cluster_resources(),
            [node["NodeID"] for node in nodes if node["Resources"].get("CPU", 0) >= 1],
            self._spec.workers,
            self._platforms,
            device,
            [node["Resources"] for node in nodes],
        )

    def _grow(self) -> None:
        """Starts workers on devices that have come since, as an autoscaler brings them."""
        if time.monotonic() - self._looked < LOOK_SECONDS or self._spec.workers != "auto" or not self._placements:
            return
        self._looked = time.monotonic()
        kind = next(iter(self._placements.values())).kind
        try:
            wanted = self._place(self._spec.device.model_copy(update={"kind": kind.value}))
        except UserError:  # for the moment there are none
            return
        given_up = sum(count > IN_VAIN for count in self._in_vain.values())
        for _ in range(len(wanted) - len(self._placements) - given_up):
            names = {*self._placements, *self._in_vain}  # those given up, too: no name is used twice
            number = 1 + max(int(name.partition(".")[0].removeprefix("worker-")) for name in names)
            self._start(f"worker-{number}", self._elsewhere(wanted[-1], away=True))

    def _elsewhere(self, placement: Placement, *, away: bool = False) -> Placement:
        """On another node where its own is gone, or where it should be `away` from it: the one with fewest workers."""
        if placement.node is None:
            return placement
        nodes = [node["NodeID"] for node in _living_nodes() if node["Resources"].get("CPU", 0) >= 1]
        if not nodes or (placement.node in nodes and not away):
            return placement
        taken = Counter(other.node for other in self._placements.values())
        return replace(placement, node=min(nodes, key=lambda node: (taken[node], node)))

    def _start(self, name: str, placement: Placement) -> str:
        options: dict[str, Any] = {**placement.options, "runtime_env": {"env_vars": dict(placement.env)}}
        if placement.node is not None:
            # Soft: where the node is gone, its worker draws on another.
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(placement.node, soft=True)
        remote = cast(Any, ray.remote(self._worker))
        actor = remote.options(max_restarts=0, max_task_retries=0, **options).remote(*self._arguments)
        self._actors[name] = actor
        self._placements[name] = placement
        self._coming[actor.hello.remote(placement.kind.value, placement.devices)] = name
        return name

    def _greet(self, ref: Any) -> Ready | Lost:
        """What became of a worker that was started; one without its device is lost, as other nodes may have theirs."""
        name = self._coming.pop(ref)
        try:
            self._devices[name] = ray.get(ref, timeout=GET_SECONDS)
        except RayError as error:
            return Lost(name, None, _reason(error), node=_is_of_node(error))
        return Ready(name)

    def _event(self, ref: Any) -> Event:
        worker, task = self._running.pop(ref)
        try:
            value: Result | Failure = ray.get(ref, timeout=GET_SECONDS)
        except RayActorError as error:
            return Lost(worker, task, _reason(error), node=_is_of_node(error))
        except RayError as error:
            return Failed(worker, task, Failure(_reason(error), passing=isinstance(error, _PASSING)))
        if isinstance(value, Failure):
            return Failed(worker, task, value)
        return Finished(worker, task, value)


_PASSING = (GetTimeoutError, ObjectLostError, ObjectStoreFullError, OutOfDiskError)
"""What a cluster does while it is short of something, or as a node goes."""


def _living_nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


_OF_A_NODE = ("its node has died", "node was terminated", "node died")


def _is_of_node(error: BaseException) -> bool:
    """Whether the worker is gone with its node, which is preempted, drained or dead, and by no doing of its task."""
    # Of a worker that dies alone, its node tells within a second; where nobody told, the node itself is out of reach.
    if isinstance(error, ActorUnavailableError):
        return True
    return isinstance(error, ActorDiedError) and (error.preempted or any(word in str(error) for word in _OF_A_NODE))


def _reason(error: BaseException) -> str:
    """One line that says what happened."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, UserError):
        return " ".join(str(cause).split())
    if cause is not None:
        return f"{type(cause).__name__}: {_last_line(cause)}"
    line = _last_line(error).split(" Some common causes")[0]
    if not isinstance(error, RayActorError):
        return f"{type(error).__name__}: {line}"
    return f"{line} Its node was preempted" if error.preempted and "preempted" not in line else line


_WHICH_ACTOR = ("class_name:", "actor_id:", "pid:", "namespace:", "ip:")
"""Lines of Ray's that say which actor it was and not what happened."""


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines()]
    lines = [line for line in lines if line and not line.startswith(_WHICH_ACTOR)]
    return (lines[-1] if lines else type(error).__name__)[:300]
