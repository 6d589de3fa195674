"""Checkpoints of a training by orbax, written in the background; the last and the best are kept."""

import logging
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as managers

# Orbax warns at each checkpoint without a score, which most are.
logging.getLogger("absl").addFilter(lambda record: "tracked_metric" not in record.getMessage())


class Checkpoints:
    """The checkpoints under `folder`. A context: leaving it waits for the writing to end.

    A checkpoint comes into being by a rename, so a process killed in the middle leaves the one before.
    """

    def __init__(self, folder: Path):
        last = managers.LatestN(n=1)
        best = managers.BestN(get_metric_fn=_exact, n=1, keep_checkpoints_without_metrics=False)
        self._manager = ocp.CheckpointManager(
            folder.absolute(),
            item_handlers=ocp.StandardCheckpointHandler(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=managers.AnyPreservationPolicy([last, best]),
                best_fn=_exact,
                cleanup_tmp_directories=True,
            ),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self._manager.wait_until_finished()
        self._manager.close()

    def latest(self) -> int | None:
        """The step of the newest checkpoint."""
        return self._manager.latest_step()

    def restore(self, step: int, like: Any) -> Any:
        """The state of a checkpoint, shaped as `like`."""
        return self._manager.restore(step, args=ocp.args.StandardRestore(like))  # pyright: ignore[reportCallIssue]

    def notes(self, step: int) -> dict[str, Any]:
        """What was saved beside the state; empty in a checkpoint that has none."""
        metadata: Any = self._manager.metadata(step)
        return dict(metadata.custom_metadata or {})

    def best(self) -> float | None:
        """The best exact share among the checkpoints that are kept."""
        shares = [self._manager.metrics(step) for step in self._manager.all_steps()]
        return max((_exact(share) for share in shares if share), default=None)

    def save(self, step: int, state: Any, notes: Mapping[str, Any], score: Mapping[str, float] | None = None) -> None:
        """Copies the state to the host and writes it in the background."""
        # A view of a buffer would change under the writer: the next step takes the buffers over.
        copied = jax.tree.map(lambda leaf: np.array(leaf, copy=True), state)
        self._manager.save(
            step,
            args=ocp.args.StandardSave(copied),  # pyright: ignore[reportCallIssue]
            metrics=None if score is None else dict(score),
            custom_metadata=dict(notes),
        )


def _exact(score: Mapping[str, float]) -> float:
    return score["exact"]
