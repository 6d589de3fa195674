"""Commands that draw sweeps, and look after their runs."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .application import app
from .options import FailFast, MaxFailures, Resume, RetryFailed


@app.command()
def sweep(
    file: Annotated[Path, typer.Argument(help="YAML with the sweep, such as sweeps/aspect.yaml.")],
    out: Annotated[
        str | None,
        typer.Option(help="Run folder, or s3:// or gs:// with one; runs/NAME if not given.", show_default=False),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be drawn, with an estimate.")] = False,
    resume: Resume = True,
    retry_failed: RetryFailed = False,
    fail_fast: FailFast = False,
    max_failures: MaxFailures = None,
    address: Annotated[
        str | None,
        typer.Option(
            help="A Ray cluster: auto for the one of this node, or ray://HOST:10001; one on this machine if not given.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Draw every size, method, caption and seed of a YAML file, and go on where it was left."""
    from ..sweep import run_sweep

    code = run_sweep(
        file,
        out=out,
        dry_run=dry_run,
        resume=resume,
        retry_failed=retry_failed,
        max_failures=1 if fail_fast else max_failures,
        address=address,
    )
    raise typer.Exit(code)


@app.command()
def submit(
    file: Annotated[Path, typer.Argument(help="YAML with the sweep and its cluster; see docs/clusters.md.")],
    out: Annotated[
        str | None,
        typer.Option(
            help="Run folder on the head node, or s3:// or gs:// with one; ~/runs/NAME if not given.",
            show_default=False,
        ),
    ] = None,
    home: Annotated[
        Path | None,
        typer.Option(
            help="Where the run is brought to from the head node's folder; runs/NAME if not given.", show_default=False
        ),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(help="A cluster that runs already: its dashboard, as http://HOST:8265.", show_default=False),
    ] = None,
    resume: Resume = True,
    retry_failed: RetryFailed = False,
    fail_fast: FailFast = False,
    max_failures: MaxFailures = None,
) -> None:
    """Draw a sweep on the cluster of its YAML: start or refresh it, follow the log, bring the run home."""
    from ..sweep.submit import Submission, submit

    job = Submission(
        file,
        out=out,
        home=home,
        address=address,
        retry_failed=retry_failed,
        resume=resume,
        max_failures=1 if fail_fast else max_failures,
    )
    raise typer.Exit(submit(job, Console()))


@app.command()
def status(
    run: Annotated[str, typer.Argument(help="Run folder of a sweep, such as runs/aspect, or its URI.", metavar="RUN")],
) -> None:
    """Tell what a sweep is at, from its run folder: while it draws, from any shell, or after it."""
    from ..sweep.status import show_status

    show_status(run, Console())


@app.command()
def fetch(
    run: Annotated[str, typer.Argument(help="Where a sweep was drawn: s3://BUCKET/FOLDER or gs://BUCKET/FOLDER.")],
    to: Annotated[
        Path | None, typer.Option(help="Folder for it; runs/ and the run's name if not given.", show_default=False)
    ] = None,
) -> None:
    """Bring a run home, finished or not; given again, only what is new."""
    from ..sweep.fetch import fetch_run

    console = Console()
    folder, fetched = fetch_run(run, to, lambda line: console.print(line, soft_wrap=True, highlight=False))
    line = f"{folder}: {fetched.brought} files brought, {fetched.kept} there already"
    console.print(line, soft_wrap=True, highlight=False)
