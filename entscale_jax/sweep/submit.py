"""Hands a sweep to the cluster that its YAML describes: starts or refreshes it, runs a job there, brings the run home.

What a spec says never becomes part of a command: it travels as a file. Commands for the head node are joined with
quotes, everything else is a list of arguments that no shell reads.
"""

import contextlib
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from ..errors import UserError
from ..yaml_file import read_yaml
from .api import run_sweep
from .cluster.nodes import promised_nodes
from .cluster.ray_environment import prepare_token
from .prompts import resolve_prompts
from .run_spec import SpecDumper, check_same
from .storage.places import is_uri, open_files
from .store import RunFolder
from .sweep_file import SweepFile, read_sweep

JOBS = "http://127.0.0.1:8265"
"""Where the head node takes jobs, as seen from itself."""
SAFE = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-/~")
Call = Callable[[Sequence[str]], int]
"""Runs a command, given as a list, with its output shown, and returns its exit code."""


class Way(StrEnum):
    """Where a YAML's sweep runs."""

    HERE = "here"
    """The file has no cluster, or one of this machine alone, without a user to log in as."""
    CLUSTER = "cluster"
    """Ray's cluster launcher makes and reaches the cluster, over ssh."""
    JOB = "job"
    """A cluster that runs already takes jobs at an address."""


@dataclass(frozen=True)
class Submission:
    """What `entscale submit` was told."""

    path: Path
    out: str | None = None
    """The run folder on the head node, or a URI; `~/runs/NAME` where it is None."""
    home: Path | None = None
    """Where the run is brought to on this machine; `runs/NAME` where it is None."""
    address: str | None = None
    retry_failed: bool = False
    resume: bool = True
    max_failures: int | None = None


def submit(submission: Submission, console: Console, call: Call | None = None) -> int:
    """Runs a sweep where its YAML says, follows its log, and brings the run folder home.

    Returns the sweep's exit code. Raises UserError for mistakes in the input and where a step fails.
    """
    call = call or run_command
    if submission.out is not None and is_uri(submission.out):
        open_files(submission.out)  # a wrong one is told before a cluster is started for it
    _check_no_manifest(submission.path)
    document = read_yaml(submission.path).value
    way = choose_way(document, submission.address)
    if way is Way.HERE:
        _say(console, "no cluster but this machine: drawing here")
        return run_sweep(
            submission.path,
            out=submission.out,
            resume=submission.resume,
            retry_failed=submission.retry_failed,
            max_failures=submission.max_failures,
            console=console,
        )
    file = read_sweep(submission.path)
    spec = portable_spec(file)
    if find_spec("ray") is None:
        raise UserError("a cluster needs Ray: install entscale-jax[sweep]")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "sweep.yaml").write_text(spec, encoding="utf-8")
        if way is Way.JOB:
            return _as_job(submission, Path(folder), call)
        return _on_cluster(submission, file, promised_nodes(document), Path(folder), console, call)


def choose_way(document: object, address: str | None) -> Way:
    """The way for a YAML's content. Raises UserError for an address that takes no jobs."""
    if address is not None:
        if not address.startswith(("http://", "https://")):
            raise UserError(
                f"--address {address} takes no jobs: give the dashboard's, such as {JOBS}, or draw from here with "
                "entscale sweep --address"
            )
        return Way.JOB
    if not isinstance(document, Mapping) or not isinstance(document.get("provider"), Mapping):
        return Way.HERE
    provider, auth = document["provider"], document.get("auth")
    local = provider.get("type") == "local" and provider.get("head_ip") in ("127.0.0.1", "localhost", "::1")
    return Way.HERE if local and not (isinstance(auth, Mapping) and auth.get("ssh_user")) else Way.CLUSTER


def _check_no_manifest(path: Path) -> None:
    # Read as text: a manifest is several documents, and its own tool applies it.
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if re.search(r"^apiVersion: *ray\.io/", path.read_text(encoding="utf-8"), re.MULTILINE):
            raise UserError(f"{path} is a manifest of KubeRay: kubectl apply -f {shlex.quote(str(path))}")


def portable_spec(file: SweepFile) -> str:
    """The sweep with its captions and E_T written out, so that it reads no other file where it goes."""
    try:
        prompts = resolve_prompts(file.spec, file.folder)
    except UserError as error:
        raise file.error(error, "prompts") from error
    sweep: dict[str, Any] = {**file.spec.model_dump(mode="json", exclude_none=True), "prompts": list(prompts)}
    return yaml.dump({"sweep": sweep}, Dumper=SpecDumper, sort_keys=False, allow_unicode=True)


def run_command(command: Sequence[str]) -> int:
    """Runs a command without a shell, its output shown."""
    environment = dict(os.environ)
    prepare_token(environment)
    return subprocess.run(list(command), check=False, env=environment).returncode


def ray(*arguments: str) -> list[str]:
    """A command of the Ray that this Python has."""
    return [sys.executable, "-m", "ray.scripts.scripts", *arguments]


def job_command(spec: str, out: str, submission: Submission) -> list[str]:
    """What a job runs."""
    flags = [
        *(["--retry-failed"] if submission.retry_failed else []),
        *([] if submission.resume else ["--no-resume"]),
        *([] if submission.max_failures is None else ["--max-failures", str(submission.max_failures)]),
    ]
    return ["python", "-m", "entscale_jax.sweep", spec, "--out", out, *flags]


def _as_job(submission: Submission, folder: Path, call: Call) -> int:
    out = submission.out or ""
    if not is_uri(out) and not out.startswith(("/", "~/")):
        raise UserError("a job's working directory is thrown away: give --out a URI, or an absolute path on the head")
    command = ["job", "submit", "--address", submission.address or JOBS, "--working-dir", str(folder), "--"]
    code = call(ray(*command, *job_command("sweep.yaml", out, submission)))
    return exit_code(out, failed=code != 0) if is_uri(out) else code


def _on_cluster(submission: Submission, file: SweepFile, nodes: int, folder: Path, console: Console, call: Call) -> int:
    name, config = file.spec.name, os.path.abspath(submission.path)
    out = _checked(submission.out or f"~/runs/{name}")
    home = submission.home or Path("runs") / name
    remote = f"~/entscale-{name}.yaml"
    _check_home(home)
    # Starts what is not there. On what is there it renews `metadata` and leaves Ray and its drivers running.
    _must(call(ray("up", "-y", "--no-restart", config)), f"ray up {config}")
    _must(call(ray("rsync-up", config, str(folder / "sweep.yaml"), remote)), "copying the sweep to the head node")
    job = f"entscale-{name}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"
    start = ["ray", "job", "submit", "--address", JOBS, "--submission-id", job, "--"]
    follow = f"ray exec {shlex.quote(config)} 'ray job logs --follow {job}'"
    _say(console, f"job {job}; it goes on where this is ended: {follow}")
    # As a job, so that the driver outlives this connection.
    job_line = [*start, *job_command(remote, out, submission), "--nodes", str(nodes)]
    code = call(ray("exec", config, shlex.join(job_line)))
    if is_uri(out):
        _say(console, f"the run is in {out}: entscale fetch {shlex.quote(out)} brings it home")
        return exit_code(out, failed=code != 0)
    return _bring_home(config, out, home, folder, console, call, failed=code != 0)


def _bring_home(config: str, out: str, home: Path, folder: Path, console: Console, call: Call, *, failed: bool) -> int:
    there = folder / "spec.yaml"
    if call(ray("rsync-down", config, f"{out}/spec.yaml", str(there))) or not there.is_file():
        raise UserError("the job began no run, see its lines above")
    if (home / "spec.yaml").is_file():
        check_same(str(home), (home / "spec.yaml").read_text(encoding="utf-8"), there.read_text(encoding="utf-8"))
    home.mkdir(parents=True, exist_ok=True)
    _must(call(ray("rsync-down", config, f"{out}/", f"{home}/")), "bringing the run home")
    _say(console, f"the run is in {home}: entscale report {shlex.quote(str(home))}")
    return exit_code(home, failed=failed)


def _check_home(home: Path) -> None:
    if home.exists() and not (home / "spec.yaml").is_file() and (not home.is_dir() or any(home.iterdir())):
        raise UserError(f"{home} holds other things and no run: give another folder with --home")


def exit_code(run: Path | str, *, failed: bool) -> int:
    """The sweep's own exit code, which neither ssh nor a job hands on, from the last event of its log.

    1 where the job failed and the log can't be read from here, as a bucket whose credentials the cluster alone has.
    """
    if not failed:
        return 0
    last = None
    with contextlib.suppress(UserError):
        for event in RunFolder(run).events():
            last = event
    if last is None or last["event"] != "end":
        return 1
    if last["outcome"] == "interrupted":
        return 130
    # A job that was refused leaves the log of the run before it, which may have ended well.
    return 1 if last["outcome"] in ("done", "failures") and last["failed"] else 2


def _checked(out: str) -> str:
    # rsync's other end is a shell's word, and `ray rsync-down` quotes nothing.
    if not is_uri(out) and (not set(out) <= SAFE or not out.startswith(("/", "~/"))):
        raise UserError(
            f"--out {out!r} is no plain path on the head node: begin with / or ~/, use letters, digits, . _ -"
        )
    return out.rstrip("/")


def _must(code: int, what: str) -> None:
    if code != 0:
        raise UserError(f"{what} failed (exit code {code}), see the lines above")


def _say(console: Console, line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)
