"""Which devices a cluster offers, chosen at run time: TPUs, else GPUs, else one worker for each node's CPUs."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from ...errors import UserError
from ..spec import TPU_CHIPS, Device

MEMORY = 0.9
"""Share of a GPU's memory that its workers take together where they share it."""


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
    devices: int = 1
    """Devices that JAX should find in the worker."""


def place_workers(
    resources: Mapping[str, float],
    cpu_nodes: Sequence[str],
    workers: int | str,
    platforms: str | None,
    device: Device | None = None,
    by_node: Sequence[Mapping[str, float]] = (),
) -> list[Placement]:
    """One placement a worker.

    Args:
        resources: what the whole cluster has, as `ray.cluster_resources()` tells.
        cpu_nodes: ids of the nodes that have CPUs.
        workers: how many workers, or `auto`: as many as there are devices for. A number of workers of a named kind may
            be more than a cluster has yet, whose autoscaler then brings nodes.
        platforms: the user's own JAX_PLATFORMS; `cpu` leaves accelerators alone, unless the spec names a kind.
        device: what the spec says of devices.
        by_node: the same resources node by node, as a worker's devices have to be on one; the total if not given.

    Raises UserError where more workers are asked for than there are devices, or where nothing can draw.
    """
    device = device or Device()
    kind = _kind(resources, platforms, device)
    if kind is Kind.CPU:
        return _on_cpus(cpu_nodes, workers, platforms, device)
    # JAX finds the device by itself: an empty JAX_PLATFORMS undoes the driver's own, which is cpu.
    env = {"JAX_PLATFORMS": "" if platforms in (None, "cpu") else platforms}
    nodes = by_node or (resources,)
    place = _on_tpus if kind is Kind.TPU else _on_gpus
    return place([node.get(kind.name, 0) for node in nodes], workers, env, device)


def _kind(resources: Mapping[str, float], platforms: str | None, device: Device) -> Kind:
    if device.kind != "auto":
        return Kind(device.kind)
    wanted = (platforms or "").split(",")[0]
    if wanted == "cpu":
        return Kind.CPU
    for kind in (Kind.TPU, Kind.GPU):
        if resources.get(kind.name, 0) >= 1:
            return kind
    return Kind.CPU


def _on_tpus(chips: Sequence[float], workers: int | str, env: Mapping[str, str], device: Device) -> list[Placement]:
    if device.per_worker is not None and device.per_worker not in TPU_CHIPS:
        options = ", ".join(map(str, TPU_CHIPS))
        raise UserError(f"device.per_worker is {device.per_worker:g}: a worker can have {options} TPU chips")
    each = int(device.per_worker or 1)
    fit = sum(int(count // each) for count in chips)
    count = _count(workers, fit, "TPU", each, sum(chips), device)
    return [Placement(Kind.TPU, {"num_cpus": 0, "resources": {"TPU": each}}, None, env, each)] * count


def _on_gpus(gpus: Sequence[float], workers: int | str, env: Mapping[str, str], device: Device) -> list[Placement]:
    total, whole = sum(gpus), sum(map(int, gpus))
    if device.per_worker is None and workers != "auto" and whole:
        count = int(workers)
        # One over a whole number, as a share is of one GPU: of two thirds, two GPUs have room for two only.
        share = 1.0 / -(-count // whole)
    else:
        share = device.per_worker or 1.0
        # A hundredth more, as three thirds of a GPU are one.
        fit = sum(int(count // share) if share >= 1 else int(count) * int(1.001 / share) for count in gpus)
        count = _count(workers, fit, "GPU", share, total, device)
    env = dict(env)
    if device.memory_fraction is not None:
        env["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{device.memory_fraction:.3f}"
    elif share < 1:
        # Ray's share of a GPU limits no memory, and JAX would take three quarters for each worker.
        env["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{MEMORY * share:.3f}"
    return [Placement(Kind.GPU, {"num_cpus": 0, "num_gpus": share}, None, env, max(1, int(share)))] * count


def _count(workers: int | str, fit: int, name: str, each: float, total: float, device: Device) -> int:
    """Workers for which there are devices, or as many as were asked for."""
    what = "TPU chips" if name == "TPU" else f"{name}s"
    if workers == "auto":
        if not fit:
            raise UserError(
                f"no node has {each:g} {what} for a worker (the cluster has {total:g}): change device.per_worker or "
                "device.kind, or give the number of workers that nodes are still to come for"
            )
        return fit
    if int(workers) > fit and (total or device.kind == "auto"):
        single = "a chip serves one worker" if name == "TPU" else f"a worker takes {each:g}"
        raise UserError(f"workers is {workers} and there are {total:g} {what}: {single}")
    return int(workers)


def _on_cpus(nodes: Sequence[str], workers: int | str, platforms: str | None, device: Device) -> list[Placement]:
    if not nodes:
        raise UserError("the cluster has no node with a CPU, GPU or TPU: nothing can draw")
    count = len(nodes) if workers == "auto" else int(workers)
    env = {"JAX_PLATFORMS": "cpu" if device.kind == "cpu" else platforms or "cpu"}
    each = int(device.per_worker or 1)
    if each > 1:
        flag = f"--xla_force_host_platform_device_count={each}"
        env["XLA_FLAGS"] = " ".join(part for part in (os.environ.get("XLA_FLAGS"), flag) if part)
    return [Placement(Kind.CPU, {"num_cpus": 0}, nodes[number % len(nodes)], env, each) for number in range(count)]
