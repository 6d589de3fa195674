"""What a run was made with: the commit, versions and devices that a reader needs to make it again."""

import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = ("entscale-jax", "jax", "jaxlib", "flax", "numpy", "pillow", "ray", "pyarrow", "transformers")


def describe_environment(devices: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The contents of `environment.json`."""
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "commit": _commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "command": " ".join(sys.argv),
        "versions": versions(),
        "devices": [dict(device) for device in devices],
    }


def versions() -> dict[str, str]:
    """Versions of the packages that decide what is drawn, as far as they are installed."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _commit() -> str | None:
    package = Path(__file__).resolve().parents[1]
    # A package installed into the environment of another repository is not of that repository's commit.
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    commit = _git(package, "rev-parse", "HEAD")
    return f"{commit}, with changes" if commit and _git(package, "status", "--porcelain", "-uno") else commit


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", folder, *arguments], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
