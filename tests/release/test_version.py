"""The version: of the tag, of commits without one, of files without a repository, and of what is installed."""

import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import entscale_jax
from entscale_jax import environment

ROOT = Path(__file__).parents[2]
NEEDED = ("pyproject.toml", "README.md", "LICENSE", ".git_archival.txt", ".gitattributes")


def git(folder, *arguments):
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "init.defaultBranch=main")
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def copy(folder):
    folder.mkdir()
    for name in NEEDED:
        shutil.copy(ROOT / name, folder)
    return folder


def commit(folder, times=1):
    for _ in range(times):
        git(folder, "add", ".")
        git(folder, "commit", "--allow-empty", "-m", "a change")


def version(folder):
    """What a build of the folder would be called, without its commit."""
    command = [sys.executable, "-W", "ignore", "-m", "hatchling", "version"]
    found = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=True).stdout.strip()
    local = found.partition("+")[2]
    head = git(folder, "rev-parse", "HEAD") if local else ""
    assert not local or (local.startswith("g") and head.startswith(local[1:])), found
    return found.partition("+")[0]


@pytest.fixture
def repository(tmp_path):
    folder = copy(tmp_path / "repository")
    git(folder, "init")
    commit(folder)
    return folder


def test_of_a_repository(repository):
    commit(repository)
    assert version(repository) == "0.1.0.dev2"
    git(repository, "tag", "v0.3.0")
    assert version(repository) == "0.3.0"
    commit(repository, times=2)
    assert version(repository) == "0.3.1.dev2"
    git(repository, "tag", "v0.4.0rc1")
    assert version(repository) == "0.4.0rc1"


def test_of_a_shallow_clone_without_tags(repository, tmp_path):
    git(repository, "tag", "v0.3.0")
    commit(repository)
    git(tmp_path, "clone", "--depth", "1", "--no-tags", repository.as_uri(), "clone")
    assert version(tmp_path / "clone") == "0.1.0.dev1"


def test_of_files_without_a_repository(repository, tmp_path):
    assert version(copy(tmp_path / "files")) == "0.1.0.dev0"
    # The tags of a repository around them are not theirs.
    git(repository, "tag", "v7.0.0")
    assert version(copy(repository / "inner")) == "0.1.0.dev0"


def test_of_an_archive_as_github_makes_them(repository, tmp_path):
    git(repository, "tag", "v0.3.0")
    git(repository, "archive", "--prefix=archive/", "-o", tmp_path / "archive.zip", "HEAD")
    shutil.unpack_archive(tmp_path / "archive.zip", tmp_path)
    assert version(tmp_path / "archive") == "0.3.0"


class Installed:
    version = "0.1.0.dev7+g0123456"

    def __init__(self, place):
        self.place = place

    def locate_file(self, name):
        return self.place / name


def test_what_is_installed_knows_its_commit_and_a_checkout_does_not(monkeypatch, tmp_path):
    package = Path(entscale_jax.__file__).parent
    monkeypatch.setattr(metadata, "distribution", lambda _: Installed(package.parent))
    assert environment.own_version() == "0.1.0.dev7+g0123456"
    monkeypatch.setattr(metadata, "distribution", lambda _: Installed(tmp_path))
    assert environment.own_version() == "0.1.0.dev7+checkout"
    assert environment.versions(["entscale-jax"]) == {"entscale-jax": "0.1.0.dev7+checkout"}


def test_what_is_not_installed(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)
    assert environment.own_version() == "0+unknown"


def test_nobody_writes_the_version_by_hand():
    assert re.fullmatch(r"\d[\w.+]*", entscale_jax.__version__)
    assert not re.search(r"^version\b", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert '__version__ = "' not in (ROOT / "entscale_jax" / "__init__.py").read_text()
