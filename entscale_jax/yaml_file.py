"""Reads YAML into plain values whose lines are remembered, so that an error can say where in the file it is."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from .errors import UserError

Place = tuple[str | int, ...]
"""Keys and positions that lead from the top of a document to a value."""


@dataclass(frozen=True)
class Document:
    """The value of a YAML file and the lines (from 1) on which its keys and items stand."""

    path: Path
    value: Any
    lines: Mapping[Place, int]

    def line(self, place: Sequence[str | int]) -> int:
        """The line of what is at `place`, or of the nearest thing around it; parts that the file lacks are skipped."""
        found: Place = ()
        for part in place:
            if (*found, part) in self.lines:
                found = (*found, part)
        return self.lines.get(found, 1)

    def error(self, place: Sequence[str | int], message: str) -> UserError:
        """The user's error at that place, in one line."""
        return UserError(f"{self.path}:{self.line(place)}: {message}")


class PlainLoader(yaml.SafeLoader):
    """YAML 1.2's plain scalars: in 1.1 a size `0x40` would be the number 64, and a caption `no` would be false."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            # PyYAML takes a tag such as `!!bool` at its word, and fails where the text is none.
            raise yaml.constructor.ConstructorError(None, None, _misread(node), node.start_mark) from error


PlainLoader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("int", r"^[-+]?(?:0|[1-9][0-9]*)$", "-+0123456789"),
    ("float", r"^[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?$", "-+.0123456789"),
    ("float", r"^(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$", "-+."),
    ("merge", r"^<<$", "<"),
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
):
    PlainLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), list(_first))


def _misread(node: yaml.Node) -> str:
    text = node.value if isinstance(node, yaml.ScalarNode) else "this"
    if text.lstrip("+-").isdecimal():  # Python reads no more than some thousand digits.
        return "a number of too many digits"
    return f"{text[:60]!r} is no !!{node.tag.rpartition(':')[2]}"


def read_yaml(path: str | Path) -> Document:
    """The document in a YAML (or JSON) file. Raises UserError where it is missing or no YAML, naming the line."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} can't be read: {reason}") from error
    try:
        loader = PlainLoader(text)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise UserError(f"{path}:{line}: this is no valid YAML: character {error.character:#x} in it") from error
    return _document(path, loader)


def _document(path: Path, loader: PlainLoader) -> Document:
    try:
        node = loader.get_single_node()
        lines: dict[Place, int] = {}
        _walk(path, node, (), lines, set())
        value = None if node is None else loader.construct_document(node)
    except yaml.YAMLError as error:
        raise _syntax_error(path, error) from error
    except RecursionError:
        raise UserError(f"{path}:1: this is no YAML of ours: it is nested too deeply") from None
    finally:
        loader.dispose()
    return Document(path, value, lines)


def _walk(path: Path, node: yaml.Node | None, place: Place, lines: dict[Place, int], seen: set[int]) -> None:
    # What an alias repeats is walked once: a few lines of aliases can stand for more than memory holds.
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines[(*place, index)] = item.start_mark.line + 1
            _walk(path, item, (*place, index), lines, seen)
    elif isinstance(node, yaml.MappingNode):
        for key, item in node.value:
            here = (*place, str(key.value))
            if here in lines:
                raise UserError(f"{path}:{key.start_mark.line + 1}: key {key.value!r} stands here twice: keep one")
            lines[here] = key.start_mark.line + 1
            _walk(path, item, here, lines, seen)


def _syntax_error(path: Path, error: yaml.YAMLError) -> UserError:
    mark = getattr(error, "problem_mark", None)
    where = f"{path}:{mark.line + 1 if mark is not None else 1}"
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    return UserError(f"{where}: this is no valid YAML: {problem}")
