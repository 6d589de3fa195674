"""The notes of a release are its section of the changelog, where tag, build and changelog tell one version."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CHANGELOG = """# Changes

## Unreleased

- To come.

## 0.2.0 - 2026-12-01

### Added

- The second.

## 0.1.0 - 2026-11-30

- The first.

## 0.0.9 - 2026-11-29

"""


@pytest.fixture
def notes(tmp_path):
    """Calls the script for a tag, with what would be in dist/: exit code, what it complains of, the notes."""
    (tmp_path / "CHANGELOG.md").write_text(CHANGELOG)

    def call(tag, *built):
        dist = tmp_path / "dist"
        dist.mkdir()
        for name in built:
            (dist / name).touch()
        written = tmp_path / "build" / "notes.md"
        command = [sys.executable, ROOT / ".ci/release_notes.py", tag, tmp_path / "CHANGELOG.md", dist, written]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        return done.returncode, done.stderr, written.read_text() if written.exists() else None

    return call


def built(version):
    return f"entscale_jax-{version}-py3-none-any.whl", f"entscale_jax-{version}.tar.gz"


def test_the_section_of_the_tag(notes):
    assert notes("v0.2.0", *built("0.2.0")) == (0, "", "### Added\n\n- The second.\n")


@pytest.mark.parametrize(
    ("tag", "files", "said"),
    [
        ("v0.3.0", built("0.3.0"), "no heading '## 0.3.0 - YEAR-MONTH-DAY'"),
        ("v0.0.9", built("0.0.9"), "says nothing of 0.0.9"),
        ("v0.2.0", built("0.2.1.dev1+g0123456"), "the tag is v0.2.0, and"),
        ("v0.2.0", (), "holds nothing"),
        ("v0x2.0", built("0x2.0"), "no heading"),  # the dot is a dot
    ],
)
def test_what_does_not_agree_is_one_line(notes, tag, files, said):
    code, complaint, written = notes(tag, *files)
    assert (code, written) == (1, None)
    assert said in complaint
    assert len(complaint.splitlines()) == 1
