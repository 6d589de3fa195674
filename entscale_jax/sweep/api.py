"""Runs a sweep from its file to its tables: what the command and the script for `ray submit` call."""

import contextlib
import os
import platform
import shlex
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from rich.console import Console

from ..baselines import Upscale
from ..errors import UserError
from ..weights.folder import ModelInfo, describe
from ..weights.upscaler_folder import UpscalerInfo, describe_upscaler
from .cluster.ray_environment import LOCAL, choose_address, prepare_local, prepare_token
from .dry_run import show_plan
from .events import Event, Observer, make_event, tell_all
from .executor import Executor
from .interrupts import Interrupts
from .networks import check_networks
from .plan import Plan, Task, make_plan
from .progress import RunProgress
from .prompts import resolve_prompts
from .recorder import Recorder, bucket_name
from .run_spec import check_same, describe_calibrated, dump_spec
from .runner import Runner, Stop, WorkersGone
from .spec import SpecError, SweepSpec
from .store import Outcome, RunFolder
from .sweep_file import SweepFile, read_sweep
from .tables import is_compacted, write_tables

DONE, SOME_FAILED, INTERRUPTED = 0, 1, 130

OpenExecutor = Callable[["Sweep"], AbstractContextManager[Executor]]


@dataclass(frozen=True)
class Sweep:
    """A sweep that was read and planned, and the folder of its run."""

    file: SweepFile
    prompts: tuple[str, ...]
    plan: Plan
    run: RunFolder
    nodes: int = 1
    """Nodes that the cluster has to have before the first cell is drawn."""

    @property
    def spec(self) -> SweepSpec:
        return self.file.spec

    def dump(self) -> str:
        """The text of the run folder's `spec.yaml`."""
        return dump_spec(self.spec, self.prompts, self.plan.weights, describe_calibrated(self.plan))

    def check_folder(self) -> None:
        """Raises UserError where the run folder holds another sweep."""
        if (there := self.run.spec()) is not None:
            check_same(self.run.place, there, self.dump())


def run_sweep(
    spec_path: str | Path,
    *,
    out: str | Path | None = None,
    dry_run: bool = False,
    resume: bool = True,
    retry_failed: bool = False,
    max_failures: int | None = None,
    address: str | None = None,
    nodes: int = 1,
    console: Console | None = None,
    open_executor: OpenExecutor | None = None,
) -> int:
    """Draws all that is not drawn yet of the sweep in a YAML file.

    Args:
        spec_path: the file; see `sweep_file.read_sweep`.
        out: the run folder or its URI (s3:// or gs://), `runs/NAME` where it is None. A run that is there goes on.
        dry_run: only tell what would be drawn with `resume` and `retry_failed` as they are.
        resume: False draws everything again, and first removes the results of the same sweep in the run folder.
        retry_failed: draw again the cells that failed in an earlier run.
        max_failures: begin nothing more once so many cells have failed in this run; None draws the rest all the same.
        address: a Ray cluster, as in `ray.init`; None starts one on this machine.
        nodes: wait until the cluster has so many, or as many as the file's own cluster has at least.
        console: where to write.
        open_executor: what draws; Ray where it is None.

    Returns the exit code: 0 where every cell is drawn, 1 where some failed or are missing, 130 after Ctrl-C, which
    finishes the calls in hand where it is pressed once. Raises UserError for mistakes in the input.
    """
    console = console or Console()
    if max_failures is not None and max_failures < 1:
        raise UserError(f"max_failures is {max_failures}: give a whole number from 1")
    sweep = replace(plan_sweep(spec_path, out), nodes=nodes)
    check_networks(sweep.file)
    if dry_run:
        sweep.check_folder()
        show_plan(sweep.plan, sweep.run, console, resume=resume, retry_failed=retry_failed)
        return DONE
    with sweep.run.opened() as run:
        sweep.check_folder()
        run.prepare(sweep.dump(), sweep.plan.cells)
        if not resume:
            run.forget()
        rows = run.read_outcomes(sweep.plan.cells)
        again = {key for key, row in rows.items() if row.error is not None} if retry_failed else set()
        run.forget_failures(again)
        finished = rows.keys() - again
        wanted = {cell.id for cell in sweep.plan.cells} - finished
        _say(console, _greeting(sweep, len(finished)))
        for left_out in sweep.plan.undefined:
            _say(console, str(left_out))
        failed = sum(rows[key].error is not None for key in finished)
        drawing = open_executor or _with_ray(address)
        stop = _draw(sweep, wanted, console, drawing, failed, max_failures) if wanted else None
        if stop is not None:
            _say(console, _how_to_resume(sweep, spec_path))
            return INTERRUPTED if stop is Stop.INTERRUPTED else SOME_FAILED
        return _conclude(sweep, rows, console, drew=bool(wanted))


def plan_sweep(spec_path: str | Path, out: str | Path | None = None) -> Sweep:
    """Reads and plans a sweep; touches no run folder, loads no weights. Raises UserError for mistakes in the input."""
    file = read_sweep(spec_path)
    with _placed(file, "prompts"):
        prompts = resolve_prompts(file.spec, file.folder)
    with _placed(file):
        plan = make_plan(file.spec, prompts, _describe_models(file), _describe_upscalers(file))
        _check_promises(file, plan)
    return Sweep(file, prompts, plan, RunFolder(out if out is not None else Path("runs") / file.spec.name))


@contextlib.contextmanager
def _placed(file: SweepFile, key: str = "") -> Iterator[None]:
    """Tells a UserError with the file and the line of the key that it is about."""
    try:
        yield
    except UserError as error:
        raise file.error(error, key) from error


def _describe_models(file: SweepFile) -> Mapping[str, ModelInfo]:
    models = {name: _describe(file, name) for name in file.spec.models}
    for name, promised in file.train_entropy.items():
        shipped = models[name].train_entropy if name in models else None
        if shipped is not None and dict(shipped.layers) != promised:
            raise file.error_at(
                ("train_entropy", name),
                f"this was made with other E_T than {name} ships now: take `train_entropy` out of the file to draw "
                "with these",
            )
    return models


def _describe(file: SweepFile, name: str) -> ModelInfo:
    size = file.spec.train_size
    try:
        return describe(name, train_size=None if size is None else (size[1], size[0]))
    except UserError as error:
        raise SpecError(str(error), "models", name) from error


def _describe_upscalers(file: SweepFile) -> Mapping[str, UpscalerInfo]:
    found: dict[str, UpscalerInfo] = {}
    for method in file.spec.methods:
        if isinstance(method, Upscale):
            try:
                found[method.upscaler] = found.get(method.upscaler) or describe_upscaler(method.upscaler)
                method.check_upscaler(found[method.upscaler])
            except UserError as error:
                raise SpecError(str(error), "methods", method) from error
    return found


def _check_promises(file: SweepFile, plan: Plan) -> None:
    """Raises UserError where a run folder's own spec was made with other weights."""
    for name, promised in file.weights.items():
        now = plan.weights.get(name, promised)
        if now != promised:
            raise file.error_at(
                ("weights", name),
                f"this was made with the weights {promised[:12]} of {name}, which now has {now[:12]}: take `weights` "
                "out of the file to draw with these",
            )


def _draw(
    sweep: Sweep,
    wanted: set[str],
    console: Console,
    open_executor: OpenExecutor,
    failed: int,
    max_failures: int | None,
) -> Stop | None:
    """Draws the wanted cells; says why where it did not come to the end.

    `failed` cells of earlier runs are left as they are.
    """
    tasks = sweep.plan.tasks(wanted)
    interrupts = Interrupts()
    _say(console, "starting workers")
    outcome = "stopped"
    with RunProgress(console) as progress:
        observers = [sweep.run.event_log(), progress]
        begun = _run_event(sweep, tasks, wanted, failed)
        tell_all(observers, begun)
        try:
            with interrupts.heard(), open_executor(sweep) as executor:
                # An executor may bring observers of its own.
                own: Sequence[Observer] = getattr(executor, "observers", ())
                tell_all(own, begun)
                with _recording(sweep.run, executor, [*observers, *own]) as recorder:
                    runner = Runner(
                        tasks,
                        executor,
                        recorder,
                        interrupts=lambda: interrupts.count,
                        max_failures=max_failures,
                        batches=recorder.batches,
                    )
                    runner.start()
                    with interrupts.patient():
                        stop = runner.run().stop
                for line in recorder.summary():
                    progress.say(line)
            outcome = "done" if stop is None else stop.value
            return stop
        except KeyboardInterrupt:
            outcome = Stop.INTERRUPTED.value
            return Stop.INTERRUPTED
        except WorkersGone as error:
            raise UserError(f"{error}. What is drawn is kept: the same command goes on from there") from error
        finally:
            tally = progress.tally
            tell_all(observers, make_event("end", outcome=outcome, finished=tally.finished, failed=tally.failed))


@contextlib.contextmanager
def _recording(run: RunFolder, executor: Executor, observers: Sequence[Observer]) -> Iterator[Recorder]:
    """The recorder of a run; what it holds back is written in the end, and after an error tried once."""
    recorder = Recorder(run, executor, observers)
    try:
        yield recorder
    except BaseException:
        run.files.hurry()
        with contextlib.suppress(UserError):
            recorder.close()
        raise
    recorder.close()


def _run_event(sweep: Sweep, tasks: Sequence[Task], wanted: Collection[str], failed: int) -> Event:
    buckets: dict[str, dict[str, Any]] = {}
    for task in tasks:
        name = bucket_name(task.chunk.program.key)
        entry = buckets.setdefault(name, {"bucket": name, "cells": 0, "cost": 0.0})
        entry["cells"] += len(task.wanted_cells)
        entry["cost"] += task.cost
    cells = len(sweep.plan.cells)
    return make_event(
        "run",
        cells=cells,
        finished=cells - len(wanted),
        failed=failed,
        chunks=len(tasks),
        buckets=list(buckets.values()),
        host=platform.node(),
        pid=os.getpid(),
    )


def _with_ray(address: str | None, **options: Any) -> OpenExecutor:
    @contextlib.contextmanager
    def open_executor(sweep: Sweep) -> Iterator[Executor]:
        platforms = os.environ.get("JAX_PLATFORMS")
        folders = sweep.plan.folders
        where = choose_address(address)
        if where == LOCAL:
            prepare_local()
        else:
            prepare_token(os.environ)
        with _driver_off_devices():
            try:
                from .cluster.ray_executor import RayExecutor, connected
                from .cluster.ray_nodes import await_nodes
            except ImportError as error:
                raise UserError(f"a sweep needs Ray ({error}): install entscale-jax[sweep]") from error
            with connected(where):
                if where != LOCAL:
                    await_nodes(max(sweep.nodes, sweep.file.nodes), Console())
                store = sweep.run.place if sweep.run.remote else None
                executor = RayExecutor(sweep.spec, folders, platforms, store=store, **options)
                try:
                    yield executor
                finally:
                    executor.close()

    return open_executor


@contextlib.contextmanager
def _driver_off_devices() -> Iterator[None]:
    # A driver that took a GPU would keep its memory from the workers; Ray itself no longer hides devices from it.
    import jax

    before = cast(Any, jax.config).jax_platforms
    jax.config.update("jax_platforms", "cpu")
    try:
        yield
    finally:
        jax.config.update("jax_platforms", before)


def _conclude(sweep: Sweep, rows: Mapping[str, Outcome], console: Console, *, drew: bool) -> int:
    sweep.run.settle()
    if drew:
        rows = sweep.run.read_outcomes(sweep.plan.cells)
    if drew or not is_compacted(sweep.run):
        write_tables(sweep.run, sweep.plan.cells)
    failed = sum(row.error is not None for row in rows.values())
    missing = len(sweep.plan.cells) - len(rows)
    line = f"{len(rows) - failed} of {len(sweep.plan.cells)} cells are drawn: {sweep.run.place}/samples.parquet"
    if failed:
        line += f"\n{failed} cells failed; --retry-failed draws them again"
    if missing:
        line += f"\n{missing} cells are missing; the same command draws them"
    _say(console, line)
    return SOME_FAILED if failed or missing else DONE


def _say(console: Console, line: str) -> None:
    # Paths and captions are no markup, and a line that is to be copied is not broken.
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def _greeting(sweep: Sweep, finished: int) -> str:
    total = len(sweep.plan.cells)
    start = f"{sweep.spec.name}: {total} cells in {sweep.run.place}"
    if finished == total:
        return f"{start}, all of them finished before: drawing nothing"
    return f"{start}, {finished} of them finished before" if finished else start


def _how_to_resume(sweep: Sweep, spec_path: str | Path) -> str:
    drawn = len(sweep.run.read_outcomes(sweep.plan.cells))
    return (
        f"Stopped with {drawn} of {len(sweep.plan.cells)} cells finished. This goes on from there:\n"
        f"  entscale sweep {shlex.quote(str(spec_path))} --out {shlex.quote(sweep.run.place)}"
    )
