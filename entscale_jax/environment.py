"""The commit and the versions that made a picture or a model: what a reader needs to make it again."""

import subprocess
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

_DISTRIBUTION = "entscale-jax"


def own_version() -> str:
    """The version of this package that was installed.

    A checkout that is used in place goes on after its installation, so the commit of that time would be told of others:
    `+checkout` stands there instead, and `commit` knows. Files that were never installed are `0+unknown`.
    """
    try:
        installed = metadata.distribution(_DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return "0+unknown"
    package = Path(__file__).resolve().parent
    if Path(str(installed.locate_file(package.name))).resolve() == package:
        return installed.version
    return f"{installed.version.partition('+')[0]}+checkout"


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of those of `packages` that are installed."""
    found = {}
    for name in packages:
        try:
            found[name] = own_version() if name == _DISTRIBUTION else metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """The commit of this package's repository, and whether its files differ from it; None outside of one."""
    package = Path(__file__).resolve().parent
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
