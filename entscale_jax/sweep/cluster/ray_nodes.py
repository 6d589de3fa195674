"""Waits for the nodes that a cluster's YAML promises: `ray up` returns when the head is there, workers come later."""

import time

import ray
from rich.console import Console

from .nodes import NODES_SECONDS

POLL_SECONDS = 2.0
TOLD_EVERY = 30.0


def await_nodes(promised: int, console: Console, limit: float = NODES_SECONDS) -> int:
    """Returns how many nodes are there: those promised, or fewer after `limit` seconds. Needs a connection to Ray."""
    start = told = time.monotonic()
    while (there := sum(bool(node["Alive"]) for node in ray.nodes())) < promised:
        now = time.monotonic()
        if now - start >= limit:
            _say(console, f"{there} of {promised} nodes came within {limit / 60:.0f} min: drawing on those")
            return there
        if now - told >= TOLD_EVERY or now - start < POLL_SECONDS:
            _say(console, f"waiting for nodes: {there} of {promised} are there")
            told = now
        time.sleep(POLL_SECONDS)
    return there


def _say(console: Console, line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)
