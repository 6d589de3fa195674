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
    """Where the run is brought to on this machine, or drawn where that is done here; `runs/NAME` where it is None."""
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
    _check_way_home(submission, way)
    if way is Way.HERE:
        _say(console, "no cluster but this machine: drawing here")
        return run_sweep(
            submission.path,
            out=submission.out or submission.home,
            resume=submission.resume,
            retry_failed=submission.retry_failed,
            max_failures=submission.max_failures,
            console=console,
        )
    file, nodes = read_sweep(submission.path), promised_nodes(document)
    spec = portable_spec(file)
    if find_spec("ray") is None:
        raise UserError("a cluster needs Ray: install entscale-jax[sweep]")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "sweep.yaml").write_text(spec, encoding="utf-8")
        if way is Way.JOB:
            return _as_job(submission, file.spec.name, nodes, Path(folder), call)
        return _on_cluster(submission, file, nodes, Path(folder), console, call)


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


def _check_way_home(submission: Submission, way: Way) -> None:
    """Raises UserError for a --home where no run is brought."""
    home, out = submission.home, submission.out
    if home is None:
        return
    if way is Way.HERE and out is not None:
        raise UserError(f"--out {out} and --home {home}: the sweep is drawn here, in one folder: give one of them")
    if out is not None and is_uri(out):
        raise UserError(
            f"--home {home}: a run at a URI stays there: leave --home out, and then "
            f"entscale fetch {shlex.quote(out)} --to {shlex.quote(str(home))}"
        )
    if way is Way.JOB:
        raise UserError(f"--home {home}: with --address a run stays on the head node: leave --home out")


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


def job_command(spec: str, out: str, submission: Submission, nodes: int) -> list[str]:
    """What a job runs, on so many nodes at least."""
    flags = [
        *(["--retry-failed"] if submission.retry_failed else []),
        *([] if submission.resume else ["--no-resume"]),
        *([] if submission.max_failures is None else ["--max-failures", str(submission.max_failures)]),
        *([] if nodes == 1 else ["--nodes", str(nodes)]),
    ]
    return ["python", "-m", "entscale_jax.sweep", spec, "--out", out, *flags]


def job_name(name: str) -> str:
    """An id for a job that draws the sweep of this name."""
    return f"entscale-{name}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"


def ask_code(python: str, address: str, job: str) -> list[str]:
    """A command that ends with the exit code of a job's driver, which is the sweep's own."""
    return [python, "-m", "entscale_jax.sweep.cluster.job_code", address, job]


def _as_job(submission: Submission, name: str, nodes: int, folder: Path, call: Call) -> int:
    out, address, job = submission.out or "", submission.address or JOBS, job_name(name)
    if not is_uri(out) and not out.startswith(("/", "~/")):
        raise UserError("a job's working directory is thrown away: give --out a URI, or an absolute path on the head")
    command = ["job", "submit", "--address", address, "--submission-id", job, "--working-dir", str(folder), "--"]
    if call(ray(*command, *job_command("sweep.yaml", out, submission, nodes))) == 0:
        return 0
    return call(ask_code(sys.executable, address, job))


def _on_cluster(submission: Submission, file: SweepFile, nodes: int, folder: Path, console: Console, call: Call) -> int:
    name, config = file.spec.name, os.path.abspath(submission.path)
    out = _checked(submission.out or f"~/runs/{name}")
    home = submission.home or Path("runs") / name
    remote = f"~/entscale-{name}.yaml"
    _check_home(home)
    # Starts what is not there. On what is there it renews `metadata` and leaves Ray and its drivers running.
    _must(call(ray("up", "-y", "--no-restart", config)), f"ray up {config}")
    _must(call(ray("rsync-up", config, str(folder / "sweep.yaml"), remote)), "copying the sweep to the head node")
    job = job_name(name)
    start = ["ray", "job", "submit", "--address", JOBS, "--submission-id", job, "--"]
    follow = f"ray exec {shlex.quote(config)} 'ray job logs --follow {job}'"
    _say(console, f"job {job}; it goes on where this is ended: {follow}")
    # As a job, so that the driver outlives this connection.
    job_line = shlex.join([*start, *job_command(remote, out, submission, nodes)])
    code = call(ray("exec", config, job_line)) and _code_on_head(config, name, job, folder, call)
    if is_uri(out):
        _say(console, f"the run is in {out}: entscale fetch {shlex.quote(out)} brings it home")
    else:
        _bring_home(config, out, home, folder, console, call)
    return code


def _code_on_head(config: str, name: str, job: str, folder: Path, call: Call) -> int:
    """The exit code of a job's driver, as a file: `ray exec` hands none on. 1 where the head tells none."""
    remote, here = f"~/entscale-{name}.code", folder / "code"
    ask = shlex.join(ask_code("python", JOBS, job))
    if call(ray("exec", config, f"{ask}; echo $? > {remote}")) or call(ray("rsync-down", config, remote, str(here))):
        return 1
    told = here.read_text(encoding="utf-8").strip()
    return int(told) if told.isdecimal() else 1


def _bring_home(config: str, out: str, home: Path, folder: Path, console: Console, call: Call) -> None:
    there = folder / "spec.yaml"
    if call(ray("rsync-down", config, f"{out}/spec.yaml", str(there))) or not there.is_file():
        raise UserError("the job began no run, see its lines above")
    if (home / "spec.yaml").is_file():
        check_same(str(home), (home / "spec.yaml").read_text(encoding="utf-8"), there.read_text(encoding="utf-8"))
    home.mkdir(parents=True, exist_ok=True)
    _must(call(ray("rsync-down", config, f"{out}/", f"{home}/")), "bringing the run home")
    _say(console, f"the run is in {home}: entscale report {shlex.quote(str(home))}")


def _check_home(home: Path) -> None:
    if home.exists() and not (home / "spec.yaml").is_file() and (not home.is_dir() or any(home.iterdir())):
        raise UserError(f"{home} holds other things and no run: give another folder with --home")


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
