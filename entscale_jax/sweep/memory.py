"""Device memory of a run that was drawn before workers recorded it: its programs are compiled once more and read."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..environment import commit
from ..errors import UserError
from .api import Sweep, plan_sweep
from .compiles import CompileCounter
from .drawer import Drawer, load_pipeline
from .environment import versions
from .plan import Task
from .programs import note_memory
from .store import read_json, write_json

NAME = "memory.json"
_PLACE = ("model", "width", "height", "method", "batch")


def record_memory(folder: Path, say: Callable[[str], None] = lambda line: None) -> None:
    """Writes `memory.json` into a run folder: entries as those of `buckets` in `programs.json` that lack `memory`.

    The programs are compiled by this machine, for those batches that were drawn. Does nothing where all is recorded.
    `say` is told of each bucket and method before its programs are compiled.

    Raises UserError where there is no run, where it was drawn on devices of another kind, and for other weights.
    """
    drawn = (read_json(folder / "programs.json") or {}).get("buckets", [])
    if not drawn:
        raise UserError(f"{folder} holds no programs.json of what a worker drew: give the folder of a run")
    missing = [entry for entry in drawn if not entry.get("memory")]
    known = {_place(entry) for entry in (read_json(folder / NAME) or {}).get("buckets", ())}
    if {_place(entry) for entry in missing} <= known:
        return
    kind = _same_kind(folder)
    sweep = plan_sweep(folder / "spec.yaml", folder)
    folders = {name: str(info.folder.resolve()) for name, info in sweep.plan.models.items()}
    drawer = Drawer(sweep.spec.metrics, load_pipeline(folders), CompileCounter(), kind)
    found = []
    for entry in missing:
        say(f"compiling {entry['method']} at {entry['width']}x{entry['height']}, {entry['batch']} images a call")
        found.append({key: entry[key] for key in _PLACE})
        for task in _tasks(sweep, entry):
            note_memory(found[-1], task, drawer.memory(task))
    made = {"platform": kind, "versions": versions(), "commit": commit()}
    write_json(folder / NAME, {"made": made, "buckets": found})


def _same_kind(folder: Path) -> str:
    """What JAX compiles for here. Raises UserError where the run was drawn on something else."""
    import jax

    from ..compilation import enable_cache

    enable_cache(every_program=True)
    devices = (read_json(folder / "environment.json") or {}).get("devices", [])
    here, kinds = jax.default_backend(), {device.get("platform") for device in devices}
    if kinds != {here}:
        raise UserError(
            f"run {folder} was drawn on {', '.join(sorted(map(str, kinds))) or 'an unknown device'} and JAX compiles "
            f"for {here} here, whose programs need other memory: give --memory where the run was drawn"
        )
    return here


def _tasks(sweep: Sweep, entry: Mapping[str, Any]) -> Iterator[Task]:
    """A task of each chunk that an entry's programs drew, in its batch."""
    cells = {cell.id for cell in sweep.plan.cells}
    for task in sweep.plan.tasks(cells):
        program = task.chunk.program
        for part in [task] if program.batch == entry["batch"] else task.smaller(entry["batch"]):
            key, bucket = part.program.key, part.program.key.bucket
            place = key.model, bucket.width, bucket.height, program.method.label, part.program.batch
            if place == _place(entry):
                yield part


def _place(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(entry[key] for key in _PLACE)
