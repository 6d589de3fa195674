"""Reads a recipe from YAML, names one by a hash, and says in which fields two of them differ."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ..yaml_file import Document, Place, read_yaml
from .recipe import Recipe


def read_recipe(path: str | Path) -> Recipe:
    """The recipe of the package with the fields that a YAML file gives instead, at any depth.

    Raises UserError, one line with file, line and field, for an unknown field and for a value that does not fit.
    """
    document = read_yaml(path)
    values = _overridden(document, (), dataclasses.asdict(Recipe()), document.value or {})
    try:
        return TypeAdapter(Recipe).validate_python(values)
    except ValidationError as error:
        found = error.errors()[0]
        place = [part for part in found["loc"] if not isinstance(part, str) or part.isidentifier()]
        raise document.error(place, f"{_name(place)}{_explain(found)}") from error


def recipe_values(recipe: Recipe) -> dict[str, Any]:
    """The fields that decide the weights, as JSON would give them back."""
    values = dataclasses.asdict(recipe)
    del values["upkeep"]
    return json.loads(json.dumps(values))


def autoencoder_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `recipe_values` that the first stage depends on."""
    return {name: values[name] for name in ("autoencoder", "autoencoder_stage", "autoencoder_sizes", "kl_weight")}


def binding_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `recipe_values` that the second stage depends on."""
    return {name: value for name, value in values.items() if name not in ("diffusion_stage", "pointwise")}


def recipe_hash(values: Mapping[str, Any]) -> str:
    """SHA-256 of `recipe_values` in canonical JSON."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def differences(stored: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """`field: was A, is B` for every field in which a training that goes on may not differ: all but its steps.

    A field that `stored` does not know yet was at its default.
    """
    then = {**dict(_flat(recipe_values(Recipe()))), **dict(_flat(stored))}
    return [
        f"{name}: was {then.get(name)!r}, is {value!r}"
        for name, value in _flat(now)
        if not name.endswith("_stage.steps") and then.get(name) != value
    ]


def _overridden(document: Document, place: Place, defaults: Mapping[str, Any], given: Any) -> dict[str, Any]:
    name = _name(place)
    if not isinstance(given, Mapping):
        raise document.error(place, f"{name} is {given!r}: give fields and values, such as `attention_gain: 2.5`")
    values = dict(defaults)
    for key, value in given.items():
        here = (*place, str(key))
        if key not in defaults:
            raise document.error(here, f"unknown field {key!r} of {name}: {_nearest(key, list(defaults))}")
        nested = isinstance(defaults[key], Mapping)
        values[key] = _overridden(document, here, defaults[key], value) if nested else value
    return values


def _name(place: Sequence[str | int]) -> str:
    return ".".join(map(str, place)) or "the recipe"


def _explain(found: Any) -> str:
    if found["type"] == "value_error":
        return f": {found['ctx']['error']}"
    return f" is {found['input']!r}: {found['msg']}"


def _nearest(word: object, known: list[str]) -> str:
    close = get_close_matches(str(word), known, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"it has {', '.join(known)}"


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield before + name, value
