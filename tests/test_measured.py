"""Each figure of docs/measured.md stands in the file that it is said to come from; no row is without one."""

import importlib.util
import re
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "measured.md"
NUMBER = re.compile(r"[+−-]?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?%?")
RESULTS = ROOT / "benchmarks" / "results"


@dataclass(frozen=True)
class Claim:
    text: str
    figure: str
    command: str
    machine: str
    evidence: Path

    @property
    def unfounded(self) -> list[str]:
        """Parts of the figure whose numbers do not stand together on a line of the evidence."""
        lines = [set(NUMBER.findall(line)) for line in self.evidence.read_text(encoding="utf-8").splitlines()]
        parts = [set(NUMBER.findall(part)) for part in self.figure.split(";")]
        assert all(parts), self.figure
        return [str(part) for part in parts if not any(part <= line for line in lines)]


def claims() -> list[Claim]:
    found = []
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = line.strip("| ").split(" | ")
        if line.startswith("| ") and len(cells) == 5 and cells[0] not in ("claim", "---"):
            link = re.fullmatch(r"\[.+\]\(([^#)]+)(?:#[\w-]+)?\)", cells[4])
            assert link, line
            found.append(Claim(*cells[:4], (PAGE.parent / link[1]).resolve()))
    return found


@pytest.mark.parametrize("claim", claims(), ids=lambda claim: claim.text[:60])
def test_figures_are_those_of_the_evidence(claim):
    assert claim.unfounded == []
    if claim.machine != "not noted":
        assert claim.machine in claim.evidence.read_text(encoding="utf-8")


@pytest.mark.parametrize("command", sorted({claim.command for claim in claims()}))
def test_commands_are_there(command):
    match command.strip("`").split():
        case ["make", target]:
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        case ["python", "-m", module, *_]:
            assert importlib.util.find_spec(module)
        case ["python" | "pytest", path]:
            assert (ROOT / path).exists()
        case ["entscale", "entropy", "scenes"]:
            pass  # with the options that stand beside the result
        case other:
            pytest.fail(f"{other} is no command that is known here")


def test_rows_are_read_and_another_figure_is_noticed():
    assert len(claims()) == sum(line.startswith("| ") for line in PAGE.read_text().splitlines()) - 2 * 3
    changed = [replace(claim, figure=_next(claim.figure)) for claim in claims()]
    noticed = [claim for claim in changed if claim.unfounded]
    assert len(noticed) > 0.9 * len(changed), [claim.text for claim in changed if not claim.unfounded]


def _next(figure: str) -> str:
    """The figure with another first digit that is not 0."""
    return re.sub(r"[1-9]", lambda digit: str(int(digit[0]) % 9 + 1), figure, count=1)


def test_what_was_not_measured_is_still_so():
    """A run on a device, or of the published tables, has to change the page."""
    text = PAGE.read_text().split("## What was not measured")[1]
    assert "**Nothing ran on a GPU or a TPU.**" in text
    devices = {found for file in RESULTS.glob("*.md") for found in re.findall(r"\bdevice (\w+)", file.read_text())}
    assert devices == {"cpu"}
    assert "**No person rated a picture.**" in text
    assert not list((ROOT / "docs").rglob("ratings"))
