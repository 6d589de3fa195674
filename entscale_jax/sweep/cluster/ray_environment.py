"""Variables that Ray reads when it is imported: a cluster of one machine is closed to others and gone with its run."""

import os
import secrets
import sys
from collections.abc import MutableMapping
from pathlib import Path

LOCAL = "local"


def choose_address(address: str | None) -> str:
    """The cluster that is meant: the one named, the one that RAY_ADDRESS names, or a new one on this machine."""
    return address or os.environ.get("RAY_ADDRESS") or LOCAL


def prepare_token(environment: MutableMapping[str, str]) -> None:
    """Asks for the token of the home folder at clusters that are there already. Call it before Ray is imported.

    Ray's client and its jobs show no token where RAY_AUTH_MODE is not set, and a cluster with tokens then is silent.
    """
    path = environment.get("RAY_AUTH_TOKEN_PATH") or os.path.expanduser("~/.ray/auth_token")
    if "RAY_AUTH_MODE" not in environment and ("RAY_AUTH_TOKEN" in environment or os.path.isfile(path)):
        environment["RAY_AUTH_MODE"] = "token"


def prepare_local() -> None:
    """Sets what a cluster of this machine needs. Call it before Ray is imported: later it is too late for the token."""
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # servers listen on the loopback only
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if "RAY_AUTH_MODE" not in os.environ and "ray" not in sys.modules:
        # A token that lives as long as the run. Ray's default would be a file in the home folder, which from then on
        # turns authentication on for other clusters.
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    here = str(Path(__file__).resolve().parents[3])
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if here not in paths:  # workers import this package as the driver does, from a checkout too
        os.environ["PYTHONPATH"] = os.pathsep.join(path for path in (here, *paths) if path)
