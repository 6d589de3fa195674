"""What becomes of a task that failed: tried again, split until the cell at fault is alone, or given up.

A chunk is tried twice. One that fails both times, or kills its worker, is split in halves, and each half at its next
fault again, so that the neighbours of a cell at fault are drawn; a cell alone has two tries more. Halves stay in the
program and keep every cell's position: their bits are those of the whole. A node that is gone, and a full object
store, are not the task's fault and count apart. Out of memory is no fault to try again but a batch to halve, of that
bucket on devices like that one.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from .plan import BucketKey, Program, Task

Batches = Mapping[tuple[BucketKey, str], int]
"""The largest batch of a bucket on devices of a kind (see `executor.device_kind`), where that is known to be halved."""

ATTEMPTS = 3
"""How often a chunk of one cell is tried before it is given up."""
WHOLE = 2
"""How often a chunk of several cells is tried before it is split."""
ALONE = 2
"""How often a cell that is alone after splits is tried."""
NODES = 8
"""Nodes that may be lost under a task before that counts as its own fault."""
PASSING = 20
"""Failures of the cluster that may pass, before one counts as the task's own fault."""
GUILTY = 2
"""Cells that alone were at fault, after which a program that has drawn nothing is given up whole."""


@dataclass(frozen=True)
class Verdict:
    """Tasks that go back into the queues, and those whose cells have failed."""

    again: tuple[Task, ...] = ()
    given_up: tuple[Task, ...] = ()
    suspects: bool = False
    """What goes back is drawn last, as it is likely to fail or to kill its worker again."""


class Retries:
    """Remembers what failed how often in one run, and which batches it or an earlier one has halved."""

    def __init__(self, batches: Batches = MappingProxyType({})):
        self._faults: Counter[object] = Counter()
        self._nodes: Counter[object] = Counter()
        self._passing: Counter[object] = Counter()
        self._pieces: set[object] = set()
        self._guilty: Counter[Program] = Counter()
        self._drawn: set[Program] = set()
        self._limits = dict(batches)

    def drew(self, task: Task) -> None:
        """Notes that the task's program can draw."""
        self._drawn.add(task.program)

    def tries(self, task: Task) -> int:
        """How often the task has failed so far, for whatever reason."""
        return self._faults[task.key] + self._nodes[task.key] + self._passing[task.key]

    def is_hopeless(self, task: Task) -> bool:
        """Whether its program has drawn nothing, and cells of it failed alone: more of them would fail as well."""
        return self._guilty[task.program] >= GUILTY and task.program not in self._drawn

    def fault(self, task: Task) -> Verdict:
        """After an error, or the death of the worker."""
        self._faults[task.key] += 1
        cells = task.drawings
        if self._faults[task.key] < self._allowed(task, cells):
            return Verdict((task,), suspects=task.key in self._pieces)
        if cells == 1:
            self._guilty[task.program] += 1
            return Verdict(given_up=(task,))
        halves = task.halves()
        self._pieces |= {half.key for half in halves}
        return Verdict(halves, suspects=True)

    def node_lost(self, task: Task) -> Verdict:
        """After the node of the worker was lost."""
        self._nodes[task.key] += 1
        return Verdict((task,)) if self._nodes[task.key] < NODES else self.fault(task)

    def passing(self, task: Task) -> Verdict:
        """After a failure of the cluster that may pass."""
        self._passing[task.key] += 1
        return Verdict((task,)) if self._passing[task.key] < PASSING else self.fault(task)

    def out_of_memory(self, task: Task, device: str) -> Verdict:
        """Halves the batch of the task's bucket on such devices; at a batch of one the cell has failed."""
        batch = len(task.cells)
        if batch == 1:
            return Verdict(given_up=(task,))
        key = task.chunk.program.key, device
        self._limits[key] = min(self._limits.get(key, batch), batch // 2)
        return Verdict(self.within_limit(task, device))

    def limit(self, task: Task, device: str) -> int | None:
        """The largest batch of the task's bucket on such devices, where it was halved."""
        return self._limits.get((task.chunk.program.key, device))

    def within_limit(self, task: Task, device: str) -> tuple[Task, ...]:
        """The task, or as many of the bucket's halved batch as hold its cells.

        Halved as often as it takes: cells come to the same places however often a run stops in between.
        """
        limit = self.limit(task, device)
        if limit is None or len(task.cells) <= limit:
            return (task,)
        halved = task.smaller(len(task.cells) // 2)
        if task.key in self._pieces:
            self._pieces |= {part.key for part in halved}
        return tuple(part for half in halved for part in self.within_limit(half, device))

    def _allowed(self, task: Task, cells: int) -> int:
        if task.key in self._pieces:
            return ALONE if cells == 1 else 1
        return ATTEMPTS if cells == 1 else WHOLE
