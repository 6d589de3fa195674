"""Which devices a cluster offers, chosen at run time: TPUs, else GPUs, else one worker for each node's CPUs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from ..errors import UserError


class Kind(StrEnum):
    """What a worker draws on, by JAX's name of the platform."""

    TPU = "tpu"
    GPU = "gpu"
    CPU = "cpu"


@dataclass(frozen=True)
class Placement:
    """How Ray places one worker. Devices are claimed with no CPU beside them: an actor would hold one by default."""

    kind: Kind
    options: Mapping[str, Any]
    """Options of the actor, `num_cpus=0` among them."""
    node: str | None
    """The node's id, for CPU workers."""
    env: Mapping[str, str]
    """Variables that have to be there before JAX is imported."""


def place_workers(
    resources: Mapping[str, float],
    cpu_nodes: Sequence[str],
    workers: int | str,
    platforms: str | None,
) -> list[Placement]:
    """One placement a worker.

    Args:
        resources: what the whole cluster has, as `ray.cluster_resources()` tells.
        cpu_nodes: ids of the nodes that have CPUs.
        workers: how many workers, or `auto`: one a device.
        platforms: the user's own JAX_PLATFORMS; `cpu` leaves accelerators alone.

    Raises UserError where more workers are asked for than there are TPU chips, or where nothing can draw.
    """
    kind = _kind(resources, platforms)
    if kind is Kind.CPU:
        return _on_cpus(cpu_nodes, workers, platforms)
    devices = int(resources[kind.name])
    count = devices if workers == "auto" else int(workers)
    if kind is Kind.TPU and count > devices:
        raise UserError(f"workers is {count} and there are {devices} TPU chips: a chip serves one worker")
    # JAX finds the device by itself: an empty JAX_PLATFORMS undoes the driver's own, which is cpu.
    env = {"JAX_PLATFORMS": platforms or ""}
    if kind is Kind.TPU:
        return [Placement(kind, {"num_cpus": 0, "resources": {"TPU": 1}}, None, env)] * count
    share = min(1.0, devices / count)
    if share < 1:
        # Ray's share of a GPU limits no memory, and JAX would take three quarters for each worker.
        env["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{0.9 * share:.3f}"
    return [Placement(kind, {"num_cpus": 0, "num_gpus": share}, None, env)] * count


def _kind(resources: Mapping[str, float], platforms: str | None) -> Kind:
    wanted = (platforms or "").split(",")[0]
    if wanted == "cpu":
        return Kind.CPU
    for kind in (Kind.TPU, Kind.GPU):
        if resources.get(kind.name, 0) >= 1:
            return kind
    return Kind.CPU


def _on_cpus(nodes: Sequence[str], workers: int | str, platforms: str | None) -> list[Placement]:
    if not nodes:
        raise UserError("the cluster has no node with a CPU, GPU or TPU: nothing can draw")
    count = len(nodes) if workers == "auto" else int(workers)
    env = {"JAX_PLATFORMS": platforms or "cpu"}
    return [Placement(Kind.CPU, {"num_cpus": 0}, nodes[number % len(nodes)], env) for number in range(count)]
