"""A sweep as a script: what `ray submit` copies to a cluster, and `python -m entscale_jax.sweep` in a job, call."""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import UserError
from .api import INTERRUPTED, run_sweep
from .storage.places import is_uri

BOOTSTRAP = "~/ray_bootstrap_config.yaml"
"""The cluster's configuration as Ray resolved it, on the head node. It is JSON, and `metadata` is in it as written."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the sweep's exit code, 2 where the input is at fault, or 130 after Ctrl-C."""
    options = _parser().parse_args(arguments)
    try:
        return run_sweep(
            Path(options.sweep).expanduser(),
            out=run_folder(options.out, os.environ),
            resume=options.resume,
            retry_failed=options.retry_failed,
            max_failures=1 if options.fail_fast else options.max_failures,
            address=options.address,
            nodes=options.nodes,
        )
    except UserError as error:
        print(f"Error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Error: interrupted", file=sys.stderr)
        return INTERRUPTED


def run_folder(out: str | None, environment: Mapping[str, str]) -> str | None:
    """The run folder that is meant, with `~` resolved. Raises UserError for one that would be thrown away with a job.

    A job runs in a copy of its working directory; what it writes there is gone when it ends.
    """
    kept = out if out is None or is_uri(out) else str(Path(out).expanduser())
    in_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in environment
    if in_job and not (kept is not None and (is_uri(kept) or Path(kept).is_absolute())):
        said = "no --out" if out is None else f"--out {out}"
        raise UserError(
            f"{said} in a Ray job, whose working directory is thrown away: give --out an absolute path, ~/runs/NAME "
            "or a URI"
        )
    return kept


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m entscale_jax.sweep", description="Draw a sweep on the Ray cluster that this runs on."
    )
    parser.add_argument("sweep", nargs="?", default=BOOTSTRAP, help="YAML of the sweep; the cluster's own by default")
    parser.add_argument(
        "--out", help="run folder on this node, or s3:// or gs:// with one; runs/NAME where it is left out"
    )
    parser.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="keep what the run folder holds, or draw all of it again",
    )
    parser.add_argument("--retry-failed", action="store_true", help="draw cells again that failed before")
    parser.add_argument("--fail-fast", action="store_true", help="stop at the first cell that fails")
    parser.add_argument("--max-failures", type=int, help="stop at so many cells that fail; never where it is left out")
    parser.add_argument("--address", default="auto", help="the Ray cluster; auto finds the one of this node")
    parser.add_argument("--nodes", type=int, default=1, help="wait until the cluster has so many nodes")
    return parser
