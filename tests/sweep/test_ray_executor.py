"""Where workers are started, as nodes come and go, with Ray's view of the cluster played."""

import contextlib
from types import SimpleNamespace

import pytest
import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, ObjectStoreFullError, RayTaskError

from entscale_jax.errors import UserError
from entscale_jax.sweep.cluster import ray_executor
from entscale_jax.sweep.cluster.ray_executor import CLIENT_TRIES, IN_VAIN, RayExecutor
from entscale_jax.sweep.spec import SweepSpec

KEYS = {"name": "a", "models": ["m"], "sizes": ["8x8"], "methods": ["entropy"], "prompts": ["a"]}


class Actor:
    """Says hello by its own name."""

    def __init__(self, name):
        self.hello = self
        self.name = name

    def remote(self, kind, devices):
        return f"hello of {self.name}"


class Made:
    """Takes the place of `ray.remote(...)` and remembers options."""

    def __init__(self):
        self.options_of = []

    def options(self, **options):
        self.options_of.append(options)
        return self

    def remote(self, *arguments):
        return Actor(len(self.options_of))


@pytest.fixture
def cluster(monkeypatch):
    """Nodes by name, to change as a test goes; `made` has the options of each actor that was started."""
    nodes = {"n0": {"CPU": 2.0}, "n1": {"CPU": 2.0}}
    made = Made()
    monkeypatch.setattr(
        ray_executor, "_living_nodes", lambda: [{"NodeID": name, "Resources": has} for name, has in nodes.items()]
    )
    monkeypatch.setattr(
        ray, "cluster_resources", lambda: {k: sum(n.get(k, 0) for n in nodes.values()) for k in ("CPU", "GPU", "TPU")}
    )
    monkeypatch.setattr(ray, "remote", lambda worker: made)
    monkeypatch.setattr(ray, "kill", lambda actor, no_restart: None)
    monkeypatch.setattr(ray, "wait", lambda refs, num_returns, timeout: (list(refs)[:num_returns], []))
    monkeypatch.setattr(ray, "get", lambda ref, timeout: {"kind": "cpu"})
    monkeypatch.setattr(ray_executor, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(
        ray_executor, "NodeAffinitySchedulingStrategy", lambda node, soft: SimpleNamespace(node_id=node, soft=soft)
    )
    return SimpleNamespace(nodes=nodes, made=made)


def _executor(**changes):
    return RayExecutor(SweepSpec.model_validate({**KEYS, **changes}), {}, "cpu")


def _nodes(cluster):
    return [options["scheduling_strategy"].node_id for options in cluster.made.options_of]


def test_a_worker_is_started_again_on_its_node_and_elsewhere_where_that_is_gone(cluster):
    executor = _executor()
    assert executor.start() == ["worker-0", "worker-1"]
    assert _nodes(cluster) == ["n0", "n1"]
    assert executor.replace("worker-1") == "worker-1.1"
    assert _nodes(cluster)[-1] == "n1"
    del cluster.nodes["n1"]
    cluster.nodes["n2"] = {"CPU": 2.0}
    assert executor.replace("worker-1.1") == "worker-1.2"
    assert _nodes(cluster)[-1] == "n2"


def test_a_node_that_comes_later_gets_a_worker_and_one_that_asked_for_a_number_does_not(cluster):
    executor, fixed = _executor(), _executor(workers=2)
    executor.start(), fixed.start()
    cluster.nodes["n2"] = {"CPU": 2.0}
    before = len(_nodes(cluster))
    assert [event.worker for event in executor.wait(0.0)] == ["worker-2"]
    assert _nodes(cluster)[before:] == ["n2"]
    assert executor.wait(0.0) == []
    assert fixed.wait(0.0) == []


def test_where_workers_never_live_none_is_started_any_more(cluster, monkeypatch):
    executor = _executor()
    executor.start()
    started = len(_nodes(cluster))
    name = executor.replace("worker-1")

    def get(ref, timeout):
        raise ActorDiedError

    monkeypatch.setattr(ray, "get", get)
    for _ in range(10):
        (lost,) = executor.wait(0.0) or [None]
        if lost is None:
            break
        assert (lost.worker, lost.task, lost.node) == (name, None, False)
        name = executor.replace(name)
    assert len(_nodes(cluster)) == started + 1 + IN_VAIN


def _without_device():
    """What Ray raises where a worker's hello does."""
    said = UserError("Ray offers a GPU on node9 and JAX finds only cpu: install the extra cuda")
    return RayTaskError("hello", "a traceback", said).as_instanceof_cause()


def test_where_a_late_worker_lacks_its_device_the_others_draw_on(cluster, monkeypatch):
    executor = _executor()
    executor.start()
    started = len(_nodes(cluster))
    name = executor.replace("worker-1")
    executor._running["ref of a task"] = ("worker-0", "task")

    def get(ref, timeout):
        if ref == "ref of a task":
            return SimpleNamespace()
        raise _without_device()

    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(ray, "wait", lambda refs, num_returns, timeout: ([ref for ref in refs if "hello" in ref], []))
    for _ in range(10):
        (lost,) = executor.wait(0.0) or [None]
        if lost is None:
            break
        assert (lost.worker, lost.task, lost.node) == (name, None, False)
        assert lost.reason.startswith("Ray offers a GPU on node9 and JAX finds only cpu")
        name = executor.replace(name)
    assert len(_nodes(cluster)) == started + 1 + IN_VAIN
    monkeypatch.setattr(ray, "wait", lambda refs, num_returns, timeout: (list(refs), []))
    assert [event.task for event in executor.wait(0.0)] == ["task"]


@pytest.mark.parametrize("lacking", [1, 2])
def test_workers_start_where_one_has_its_device_and_are_refused_where_none_has(cluster, monkeypatch, lacking):
    hellos = []

    def get(ref, timeout):
        hellos.append(ref)
        if len(hellos) <= lacking:
            raise _without_device()
        return {"kind": "cpu"}

    monkeypatch.setattr(ray, "get", get)
    executor = _executor()
    if lacking == 2:
        with pytest.raises(UserError, match="worker-0 can't start: Ray offers a GPU on node9"):
            executor.start()
    else:
        assert executor.start() == ["worker-1"]
        assert [event.worker for event in executor.wait(0.0)] == ["worker-0.1"]


def test_the_name_of_a_worker_that_was_given_up_is_not_used_again(cluster, monkeypatch):
    executor = _executor()
    executor.start()
    name = "worker-1"
    monkeypatch.setattr(ray, "get", lambda ref, timeout: pytest.fail("nobody is to be heard"))
    for _ in range(2 + IN_VAIN):
        name = executor.replace(name)
    assert "worker-1" not in {other.partition(".")[0] for other in executor._placements}
    cluster.nodes.update({"n2": {"CPU": 2.0}, "n3": {"CPU": 2.0}})
    monkeypatch.setattr(ray, "get", lambda ref, timeout: {"kind": "cpu"})
    monkeypatch.setattr(ray, "wait", lambda refs, num_returns, timeout: (list(refs)[-2:], []))
    assert [event.worker for event in executor.wait(0.0)] == ["worker-2", "worker-3"]


@pytest.mark.parametrize(
    ("error", "lost", "node", "passing"),
    [
        (ObjectStoreFullError("no room"), False, False, True),
        (ray.exceptions.RaySystemError("broken"), False, False, False),
        (ActorDiedError(), True, False, False),
        (ActorUnavailableError("Socket closed", None), True, True, False),
        ("The actor died because its node has died.", True, True, False),
    ],
)
def test_what_ray_raises_is_told_apart(cluster, monkeypatch, error, lost, node, passing):
    if isinstance(error, str):
        message, error = error, ActorDiedError()
        monkeypatch.setattr(ActorDiedError, "__str__", lambda self: message)
    executor = _executor()
    executor.start()

    def get(ref, timeout):
        raise error

    monkeypatch.setattr(ray, "get", get)
    executor._running["ref"] = ("worker-0", "task")
    (event,) = executor.wait(0.0)
    assert (type(event).__name__, event.task) == ("Lost" if lost else "Failed", "task")
    if lost:
        assert event.node is node
    else:
        assert event.failure.passing is passing


@pytest.mark.parametrize(("dies", "tries", "comes"), [(1, 2, True), (CLIENT_TRIES, CLIENT_TRIES, False)])
def test_a_client_server_that_dies_at_its_start_is_asked_again(monkeypatch, dies, tries, comes):
    asked = []

    def init(**keywords):
        asked.append(keywords["address"])
        if len(asked) <= dies:
            raise ConnectionAbortedError("Initialization failure from server:\nit died")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    refused = contextlib.nullcontext() if comes else pytest.raises(UserError, match="server: it died")
    with refused, ray_executor.connected("ray://head:10001"):
        pass
    assert len(asked) == tries


def test_an_address_where_nothing_is_is_asked_once(monkeypatch):
    asked = []

    def init(**keywords):
        asked.append(keywords["address"])
        raise ConnectionError("ray client connection timeout")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    with (
        pytest.raises(UserError, match="no Ray cluster at 'ray://head:10001'"),
        ray_executor.connected("ray://head:10001"),
    ):
        pass
    assert len(asked) == 1
