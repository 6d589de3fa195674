"""What a trained model was made by: one segment for each training, machine and version that had a part in it."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from ..environment import commit, versions
from .recipe_file import recipe_hash

FILE = "provenance.json"
Segment = dict[str, Any]
_PACKAGES = ("entscale-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


class Ledger:
    """The segments of a training that goes on: earlier ones, then its own, which grows."""

    def __init__(self, earlier: Sequence[Segment], stage: str, values: Mapping[str, Any], devices: Sequence[Any]):
        made_by = {
            "stage": stage,
            "recipe": recipe_hash(values),
            "devices": _describe(devices),
            "commit": commit(),
            "versions": versions(_PACKAGES),
        }
        self._earlier = list(earlier)
        self._own: Segment = {**made_by, "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "steps": 0, "seconds": 0.0}
        # A training that was interrupted and gone on with under the same conditions is one segment.
        if self._earlier and all(self._earlier[-1].get(name) == value for name, value in made_by.items()):
            self._own = self._earlier.pop()
        self._before = self._own["steps"], self._own["seconds"]

    def segments(self, steps: int, seconds: float) -> list[Segment]:
        """All segments, after `steps` more steps that took `seconds` in this process."""
        done, spent = self._before
        if done + steps == 0:
            return list(self._earlier)
        return [*self._earlier, {**self._own, "steps": done + steps, "seconds": round(spent + seconds, 1)}]


def steps_of(segments: Sequence[Segment], stage: str) -> int:
    """How many steps of `stage` the segments hold."""
    return sum(segment.get("steps", 0) for segment in segments if segment.get("stage") == stage)


def _describe(devices: Sequence[Any]) -> str:
    return f"{len(devices)} x {devices[0].device_kind} ({jax.default_backend()})"
