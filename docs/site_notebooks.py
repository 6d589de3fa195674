"""A notebook as a page: its text, its code, what it printed and the pictures that it showed, as in the file."""

import base64
import json
import re
from typing import Any

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def to_markdown(notebook: str, name: str) -> tuple[str, dict[str, bytes]]:
    """The page of a notebook's JSON, and its pictures by their file names, which begin with `name`."""
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in json.loads(notebook)["cells"]:
        source = _text(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
        elif cell["cell_type"] == "code" and source:
            parts.append(_fenced(source, "python"))
            parts += [_output(output, name, pictures) for output in cell["outputs"]]
    return "\n\n".join(filter(None, parts)) + "\n", pictures


def heading(notebook: str) -> str:
    """Its first heading."""
    found = re.search(r"^# (.+)$", to_markdown(notebook, "")[0], re.MULTILINE)
    return found[1] if found else "Notebook"


def _output(output: dict[str, Any], name: str, pictures: dict[str, bytes]) -> str:
    data = output.get("data", {})
    if "image/png" in data:
        file = f"{name}-{len(pictures) + 1}.png"
        pictures[file] = base64.b64decode(_text(data["image/png"]))
        return f"![{_text(data.get('text/plain', 'output')).splitlines()[0]}]({file})"
    if "text/markdown" in data:
        return _text(data["text/markdown"])
    text = _COLOURS.sub("", _text(output.get("text", data.get("text/plain", "")))).rstrip()
    return _fenced(text, "") if text else ""


def _text(lines: str | list[str]) -> str:
    return lines if isinstance(lines, str) else "".join(lines)


def _fenced(text: str, language: str) -> str:
    return f"```{language}\n{text}\n```"
