"""What holds the repository together: extras, tested versions, and one command that people and CI both run."""

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
CODE_FOLDERS = ("entscale_jax", "tests", "sweeps", "benchmarks", "docs", "notebooks", ".ci", ".github")
LEGACY = {"legacy", "legacy-dev"}
"""Extras that can't be installed beside the newest diffusers, and so have an environment of their own."""
TEXT_SUFFIXES = {".py", ".md", ".yaml", ".yml", ".toml", ".j2", ".cff", ".txt", ".cfg", ".json", ".sh", ""}
# Written in two parts, so that this file does not name them either.
MACHINE_PATHS = re.compile(
    r"(?<![\w.])/(" + "|".join(("wo" + "rk", "ro" + "ot", "ho" + "me", "t" + "mp", "Us" + "ers")) + r")/\w"
)


def make_commands(target: str) -> list[str]:
    """The commands that `make target` would run, without running them."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    command = ["make", "--no-print-directory", "--dry-run", "--directory", str(ROOT), target]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.splitlines()


def pins(constraints: str = "constraints.txt") -> dict[str, str]:
    """Package -> version, from a file of constraints."""
    lines = (ROOT / constraints).read_text().splitlines()
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}


def text_files() -> list[Path]:
    """Every file that a person wrote, whether committed or not."""
    files = [path for path in ROOT.iterdir() if path.is_file()]
    for folder in CODE_FOLDERS:
        files += (path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return [path for path in files if path.suffix in TEXT_SUFFIXES]


def test_extras_are_those_that_the_install_commands_name():
    assert set(EXTRAS) == {"sweep", "cloud", "parity", "train", "report", "cuda", "tpu", "dev", "docs", "all", *LEGACY}


def test_all_holds_every_extra_that_runs_on_any_machine():
    (everything,) = (Requirement(text) for text in EXTRAS["all"])
    assert everything.name == PROJECT["name"]
    assert everything.extras == set(EXTRAS) - {"cuda", "tpu", "dev", "docs", "all"} - LEGACY


def test_core_installs_no_framework_of_an_extra():
    core = {Requirement(text).name for text in PROJECT["dependencies"]}
    assert not core & {"torch", "diffusers", "ray", "pyarrow", "optax", "matplotlib", "jinja2"}


@pytest.mark.parametrize(
    ("extra", "constraints"),
    [(extra, "constraints.txt") for extra in ["core", *sorted(set(EXTRAS) - {"cuda", "tpu", "all"} - LEGACY)]]
    + [(extra, "constraints-legacy.txt") for extra in ["core", *sorted(LEGACY)]],
)
def test_tested_versions_lie_in_the_declared_ranges(extra, constraints):
    declared = PROJECT["dependencies"] if extra == "core" else EXTRAS[extra]
    tested = pins(constraints)
    for requirement in map(Requirement, declared):
        assert requirement.specifier.contains(tested[canonicalize_name(requirement.name)]), requirement


@pytest.mark.parametrize("constraints", ["constraints.txt", "constraints-legacy.txt"])
def test_constraints_hold_plain_pins(constraints):
    lines = (ROOT / constraints).read_text().splitlines()
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []


def test_ci_runs_the_test_command_of_the_readme():
    assert re.search(r"^make check$", (ROOT / ".ci/run").read_text(), re.MULTILINE)
    assert "make test" in (ROOT / "README.md").read_text()
    tests = {line for line in make_commands("test") if "/pytest" in line}
    assert {line.split("/")[0] for line in tests} == {".venv", ".venv-legacy"}
    assert tests <= set(make_commands("check"))
    assert not tests & set(make_commands("format"))


@pytest.mark.parametrize("tool", ["ruff format --check", "ruff check", "pyright", "lint-imports"])
def test_the_gate_has_every_check(tool):
    assert any(tool in line for line in make_commands("check"))


def test_every_target_installs_first():
    targets = re.findall(r"^([a-z][a-z-]*):(.*?)##", (ROOT / "Makefile").read_text(), re.MULTILINE)
    needs_nothing = {name for name, needs in targets if "STAMP)" not in needs and name != "smoke"}  # which needs dist
    assert {"setup", "setup-legacy", "sweep", "test", "test-full", "check", "format"} <= {name for name, _ in targets}
    assert needs_nothing == {"help", "clean", "setup-browser"}


def test_ci_installs_the_browser_and_goes_on_without_it():
    lines = (ROOT / ".ci/run").read_text().splitlines()
    assert lines.index("make setup-browser") < lines.index("make check")
    nothing = {"PATH": ""}  # Neither a browser nor apt-get.
    command = [shutil.which("make"), "--directory", str(ROOT), "setup-browser", f"SHELL={shutil.which('sh')}"]
    done = subprocess.run(command, env=nothing, capture_output=True, text=True, timeout=60, check=True)
    assert "No chromium was installed: tests of pages are skipped" in done.stdout


def test_ci_script_can_be_run():
    assert os.access(ROOT / ".ci/run", os.X_OK)


def test_no_file_names_a_path_of_one_machine():
    found = [
        f"{path.relative_to(ROOT)}" for path in text_files() if MACHINE_PATHS.search(path.read_text(errors="ignore"))
    ]
    assert found == []
    assert MACHINE_PATHS.search("see " + os.sep.join(["", "wo" + "rk", "main"]))


def test_the_readme_tells_the_study_as_it_was_measured():
    rows = [line.strip("| ").split(" | ") for line in (ROOT / "README.md").read_text().splitlines()]
    told = [row for row in rows if len(row) == 6 and re.fullmatch(r"\d+x\d+", row[0])]
    measured = (ROOT / "docs" / "scenes.md").read_text()
    assert len(told) == 3
    for size, missing, extra, *differences in told:
        assert re.search(
            rf"\| {size} \| \S+ \| 1\.000 \| original \| 256 \| .* \| {missing} \(.* \| {extra} \(", measured
        )
        assert f"| {size} | 256 | {' | '.join(differences)} |" in measured


def test_no_two_tests_have_one_name():
    """pytest takes the second of them for the first where tests are in no package."""
    folder = ROOT / "tests"
    legacy = folder / "legacy"  # which are run by themselves
    names = [path.name for path in folder.rglob("test_*.py") if not path.is_relative_to(legacy)]
    assert sorted(names) == sorted(set(names))
