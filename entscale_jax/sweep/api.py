"""Runs a sweep from its file to its tables: what the command and the script for `ray submit` call."""

import contextlib
import os
import shlex
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from rich.console import Console

from ..errors import UserError
from ..weights.folder import ModelInfo, describe
from .dry_run import show_plan
from .executor import Executor
from .plan import Plan, make_plan
from .progress import RunProgress
from .prompts import resolve_prompts
from .ray_environment import LOCAL, choose_address, prepare_local
from .recorder import Recorder
from .run_spec import check_same, describe_calibrated, dump_spec
from .runner import Runner, WorkersGone
from .spec import SweepFile, SweepSpec, read_sweep
from .store import Outcome, RunFolder
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

    @property
    def spec(self) -> SweepSpec:
        return self.file.spec

    def dump(self) -> str:
        """The text of the run folder's `spec.yaml`."""
        weights = {name: info.weights_hash for name, info in self.plan.models.items()}
        return dump_spec(self.spec, self.prompts, weights, describe_calibrated(self.plan))

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
    address: str | None = None,
    console: Console | None = None,
    open_executor: OpenExecutor | None = None,
) -> int:
    """Draws all that is not drawn yet of the sweep in a YAML file.

    Args:
        spec_path: the file; see `spec.read_sweep`.
        out: the run folder or its URI (s3:// or gs://), `runs/NAME` where it is None. A run that is there goes on.
        dry_run: only tell what would be drawn.
        resume: False draws everything again, and first removes the results of the same sweep in the run folder.
        retry_failed: draw again the cells that failed in an earlier run.
        address: a Ray cluster, as in `ray.init`; None starts one on this machine.
        console: where to write.
        open_executor: what draws; Ray where it is None.

    Returns the exit code: 0 where every cell is drawn, 1 where some failed, 130 after Ctrl-C. Raises UserError for
    mistakes in the input.
    """
    console = console or Console()
    sweep = plan_sweep(spec_path, out)
    if dry_run:
        sweep.check_folder()
        show_plan(sweep.plan, sweep.run, console)
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
        if wanted and not _draw(sweep, wanted, console, open_executor or _with_ray(address)):
            _say(console, _how_to_resume(sweep, spec_path))
            return INTERRUPTED
        return _conclude(sweep, rows, console, drew=bool(wanted))


def plan_sweep(spec_path: str | Path, out: str | Path | None = None) -> Sweep:
    """Reads and plans a sweep; touches no run folder, loads no weights. Raises UserError for mistakes in the input."""
    file = read_sweep(spec_path)
    prompts = resolve_prompts(file.spec, file.folder)
    plan = make_plan(file.spec, prompts, _describe_models(file))
    return Sweep(file, prompts, plan, RunFolder(out if out is not None else Path("runs") / file.spec.name))


def _describe_models(file: SweepFile) -> Mapping[str, ModelInfo]:
    size = file.spec.train_size
    models = {
        name: describe(name, train_size=None if size is None else (size[1], size[0])) for name in file.spec.models
    }
    for name, promised in file.weights.items():
        if name in models and models[name].weights_hash != promised:
            raise UserError(
                f"{file.path} was made with the weights {promised[:12]} of {name}, which now has "
                f"{models[name].weights_hash[:12]}: take `weights` out of the file to draw with these"
            )
    for name, promised in file.train_entropy.items():
        shipped = models[name].train_entropy if name in models else None
        if shipped is not None and dict(shipped.layers) != promised:
            raise UserError(
                f"{file.path} was made with other E_T than {name} ships now: take `train_entropy` out of the file to "
                "draw with these"
            )
    return models


def _draw(sweep: Sweep, wanted: set[str], console: Console, open_executor: OpenExecutor) -> bool:
    """Draws the wanted cells; False where Ctrl-C ended it."""
    tasks = sweep.plan.tasks(wanted)
    total, cost = len(sweep.plan.cells), sum(task.chunk.cost for task in tasks)
    _say(console, "starting workers")
    try:
        with (
            _remembered_interrupt() as interrupted,
            open_executor(sweep) as executor,
            RunProgress(console, total, total - len(wanted), cost) as progress,
        ):
            recorder = Recorder(sweep.run, executor, progress)
            try:
                Runner(tasks, executor, recorder, interrupted=interrupted.is_set).run()
            except BaseException:
                sweep.run.files.hurry()
                with contextlib.suppress(UserError):
                    recorder.close()
                raise
            recorder.close()
            for line in recorder.summary():
                progress.say(line)
    except KeyboardInterrupt:
        return False
    except WorkersGone as error:
        raise UserError(f"{error}. What is drawn is kept: the same command goes on from there") from error
    return True


@contextlib.contextmanager
def _remembered_interrupt() -> Iterator[threading.Event]:
    """Set by Ctrl-C, which Python loses in a callback of the garbage collector, of which JAX has one."""
    seen = threading.Event()
    before = signal.getsignal(signal.SIGINT)
    # Only Python's own handler, in the thread that signals come to, is taken over.
    if threading.current_thread() is not threading.main_thread() or before is not signal.default_int_handler:
        yield seen
        return

    def interrupt(number: int, frame: Any) -> None:
        seen.set()
        signal.default_int_handler(number, frame)

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, before)


def _with_ray(address: str | None) -> OpenExecutor:
    @contextlib.contextmanager
    def open_executor(sweep: Sweep) -> Iterator[Executor]:
        platforms = os.environ.get("JAX_PLATFORMS")
        folders = {name: str(info.folder.resolve()) for name, info in sweep.plan.models.items()}
        where = choose_address(address)
        if where == LOCAL:
            prepare_local()
        with _driver_off_devices():
            try:
                from .ray_executor import RayExecutor, connected
            except ImportError as error:
                raise UserError(f"a sweep needs Ray ({error}): install entscale-jax[sweep]") from error
            with connected(where):
                store = sweep.run.place if sweep.run.remote else None
                executor = RayExecutor(sweep.spec.metrics, folders, sweep.spec.workers, platforms, store)
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
    if drew:
        rows = sweep.run.read_outcomes(sweep.plan.cells)
    sweep.run.settle()
    if drew or not is_compacted(sweep.run):
        write_tables(sweep.run, sweep.plan.cells)
    failed = sum(row.error is not None for row in rows.values())
    line = f"{len(rows) - failed} of {len(sweep.plan.cells)} cells are drawn: {sweep.run.place}/samples.parquet"
    if failed:
        line += f"\n{failed} cells failed; --retry-failed draws them again"
    _say(console, line)
    return SOME_FAILED if failed else DONE


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
