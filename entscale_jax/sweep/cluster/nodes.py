"""How many nodes a cluster's YAML promises, so that a sweep does not begin before they have come."""

from collections.abc import Mapping
from typing import Any

NODES_SECONDS = 900.0
"""How long nodes may take to come; a cloud gives a GPU in minutes."""


def promised_nodes(config: object) -> int:
    """The head and the fewest workers of a Ray cluster configuration, written or resolved; 1 for any other file."""
    if not isinstance(config, Mapping) or "provider" not in config:
        return 1
    types = config.get("available_node_types")
    if isinstance(types, Mapping):
        return 1 + sum(_whole(kind.get("min_workers")) for kind in types.values() if isinstance(kind, Mapping))
    provider = config["provider"]
    workers = provider.get("worker_ips") if isinstance(provider, Mapping) else None
    count = len(workers) if isinstance(workers, list) else 0
    wanted = config.get("min_workers")
    return 1 + (count if wanted is None else min(_whole(wanted), count))


def _whole(value: Any) -> int:
    return value if isinstance(value, int) and value > 0 else 0
