"""What a run was made with: the commit, versions and devices that a reader needs to make it again."""

import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from .. import environment

_PACKAGES = ("entscale-jax", "jax", "jaxlib", "flax", "numpy", "pillow", "ray", "pyarrow", "transformers")


def describe_environment(devices: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The contents of `environment.json`."""
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "commit": environment.commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "command": " ".join(sys.argv),
        "versions": versions(),
        "devices": [dict(device) for device in devices],
    }


def versions() -> dict[str, str]:
    """Versions of the packages that decide what is drawn, as far as they are installed."""
    return environment.versions(_PACKAGES)
