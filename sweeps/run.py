"""The script for `ray submit sweeps/aspect.yaml sweeps/run.py`: draws a cluster configuration's sweep on its cluster.

Ray copies this file alone to the head node. The sweep is in the configuration that Ray left there.
"""

import argparse
import sys
from pathlib import Path

from entscale_jax.errors import UserError
from entscale_jax.sweep import run_sweep

BOOTSTRAP = Path("~/ray_bootstrap_config.yaml")
"""The cluster's configuration as Ray resolved it. It is JSON, and `metadata` is in it as it was written."""


def main(arguments: list[str] | None = None) -> int:
    """Returns the sweep's exit code, or 2 where the input is at fault."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sweep", nargs="?", type=Path, default=BOOTSTRAP, help="YAML of the sweep, on the head node")
    parser.add_argument("--out", help="run folder on the head node, or s3:// or gs:// with one; runs/NAME if left out")
    parser.add_argument("--retry-failed", action="store_true", help="draw cells again that failed before")
    parser.add_argument("--address", default="auto", help="the Ray cluster; auto finds the one of this node")
    options = parser.parse_args(arguments)
    try:
        return run_sweep(
            options.sweep.expanduser(), out=options.out, retry_failed=options.retry_failed, address=options.address
        )
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
