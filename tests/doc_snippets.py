"""The code in README.md and docs/, so that each piece is run as it stands there."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "adapters.md"
LEGACY = {"diffusers' Flax"}
"""Headings whose code runs where diffusers has Flax."""
_BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<why>[^\n]+) -->\n+)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)


class Block(NamedTuple):
    """A fenced piece of a page."""

    page: Path
    line: int
    language: str
    text: str
    why_not: str | None
    """What it says above it that it needs, where it can't be run."""


def pages() -> list[Path]:
    """README.md and the pages of docs/."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path, language: str | None = None) -> list[Block]:
    """The fenced pieces of a page, of one language or of all."""
    text = page.read_text(encoding="utf-8")
    found = [
        Block(page, text.count("\n", 0, match.start("text")), match["language"], match["text"], match["why"])
        for match in _BLOCK.finditer(text)
    ]
    return [block for block in found if language in (None, block.language)]


def run_page(page: Path, **names: object) -> dict[str, object]:
    """What is defined after a page's Python has run, piece by piece, with `names` defined before."""
    scope = dict(names)
    for block in blocks(page, "python"):
        if block.why_not is None:
            # Lines of a traceback are those of the page.
            exec(compile("\n" * block.line + block.text, str(page), "exec"), scope)
    return scope


def commands(page: Path) -> Iterator[tuple[str, list[str]]]:
    """Each command of a page's blocks without a language: the line as it stands, and its words."""
    for block in blocks(page, ""):
        for line in block.text.replace("\\\n", " ").splitlines():
            # What may be left out is in brackets; of what a shell would chain each part is a command.
            for part in re.sub(r"\[(--[^\]]+)\]", r"\1", line).removeprefix("$ ").split(" && "):
                try:
                    words = shlex.split(part, comments=True)
                except ValueError:  # Output of a command.
                    continue
                if words:
                    yield line, words


def snippets(page: Path = PAGE) -> dict[str, str]:
    """Heading -> the code under it, of every heading that has Python code."""
    found, heading = {}, ""
    for part in re.split(r"^(#+ .*)$", page.read_text(), flags=re.MULTILINE):
        if part.startswith("#"):
            heading = part.lstrip("# ").strip()
        elif code := re.findall(r"^```python\n(.*?)^```$", part, flags=re.MULTILINE | re.DOTALL):
            found[heading] = "\n".join(code)
    return found


def run(heading: str, **names: object) -> dict[str, object]:
    """What is defined after the code under a heading has run, with `names` defined before."""
    scope = dict(names)
    exec(compile(snippets()[heading], f"{PAGE.name}: {heading}", "exec"), scope)
    return scope
