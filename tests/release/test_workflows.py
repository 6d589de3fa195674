"""GitHub's workflows: of the right form, running targets that there are, with pinned actions and no needless right."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
MAKEFILE = (ROOT / "Makefile").read_text()
FILES = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PINNED = re.compile(r"(?:[\w.-]+/[\w.-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+|\./\.github/workflows/[\w-]+\.yml)")


def wrong_form(*files):
    """What the schema of GitHub's workflows, as check-jsonschema brings it, has against the files; none if nothing."""
    command = [
        sys.executable,
        "-m",
        "check_jsonschema",
        "--builtin-schema",
        "vendor.github-workflows",
        *map(str, files),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def unknown_targets(text):
    """Targets that `run:` lines of a workflow name and the Makefile lacks; at least one is named."""
    jobs = yaml.safe_load(text)["jobs"].values()
    commands = [step["run"] for job in jobs for step in job.get("steps", ()) if "run" in step]
    named = {target for command in commands for target in re.findall(r"\bmake ([a-z-]+)", command)}
    assert named
    return named - set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))


def unpinned(text):
    """Actions that are used by a branch or a tag, which may be moved, rather than by a commit and its version."""
    used = re.findall(r"uses: *(.*)$", text, re.MULTILINE)
    assert used
    return [action for action in used if not PINNED.fullmatch(action.strip())]


def test_form(tmp_path):
    assert {file.stem for file in FILES} >= {"check", "weekly", "release"}
    assert wrong_form(*FILES) == ""
    wrong = tmp_path / "wrong.yml"
    wrong.write_text(FILES[0].read_text().replace("runs-on:", "run-on:"))
    assert "run-on" in wrong_form(wrong)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_targets(file):
    text = file.read_text()
    assert unknown_targets(text) == set()
    assert unknown_targets(re.sub(r"make [a-z-]+", "make no-such-target", text)) == {"no-such-target"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_actions_are_pinned(file):
    text = file.read_text()
    assert unpinned(text) == []
    assert unpinned(re.sub(r"@[0-9a-f]{40} # (v\d+)\S*", r"@\1", text))


def test_only_publishing_may_write():
    """PyPI's trust needs an identity, GitHub's release the right to write; nothing else needs more than to read."""
    rights = {}
    for file in FILES:
        workflow = yaml.safe_load(file.read_text())
        assert workflow["permissions"] == {"contents": "read"}, file
        rights |= {
            (file.stem, name): job["permissions"] for name, job in workflow["jobs"].items() if "permissions" in job
        }
    assert rights.pop(("release", "publish")) == {"id-token": "write"}
    assert rights.pop(("release", "announce")) == {"contents": "write"}
    assert set().union(*(given.values() for given in rights.values())) <= {"read"}


def test_the_gate_runs_on_every_python_that_the_package_names():
    check = yaml.safe_load((ROOT / ".github" / "workflows" / "check.yml").read_text())["jobs"]["check"]
    pythons = check["strategy"]["matrix"]["python"]
    classifiers = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["classifiers"]
    named = [text.rsplit(" ", 1)[1] for text in classifiers if re.search(r"Python :: 3\.\d+$", text)]
    (constrained,) = re.findall(r"^CONSTRAINED := (.*)$", MAKEFILE, re.MULTILINE)
    assert pythons == named == constrained.split() == ["3.11", "3.12"]
    commands = [step["run"] for step in check["steps"] if "run" in step]
    gate = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if line.startswith("make ")]
    assert [command.split(" PYTHON=")[0] for command in commands] == gate


def test_nothing_is_published_before_it_was_checked_and_used():
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text())["jobs"]
    assert jobs["publish"]["needs"] == ["check", "build"]
    assert jobs["announce"]["needs"] == "publish"
    commands = [step.get("run", "") for step in jobs["build"]["steps"]]
    assert "make smoke" in commands
    assert jobs["check"]["uses"] == "./.github/workflows/check.yml"
