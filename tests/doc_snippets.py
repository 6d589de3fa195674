"""The code in docs/adapters.md, so that each piece is run as it stands there."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "adapters.md"
LEGACY = {"diffusers' Flax"}
"""Headings whose code runs where diffusers has Flax."""


def snippets(page: Path = PAGE) -> dict[str, str]:
    """Heading -> the code under it, of every heading that has Python code."""
    found, heading = {}, ""
    for part in re.split(r"^(#+ .*)$", page.read_text(), flags=re.MULTILINE):
        if part.startswith("#"):
            heading = part.lstrip("# ").strip()
        elif blocks := re.findall(r"^```python\n(.*?)^```$", part, flags=re.MULTILINE | re.DOTALL):
            found[heading] = "\n".join(blocks)
    return found


def run(heading: str, **names: object) -> dict[str, object]:
    """What is defined after the code under a heading has run, with `names` defined before."""
    scope = dict(names)
    exec(compile(snippets()[heading], f"{PAGE.name}: {heading}", "exec"), scope)
    return scope
