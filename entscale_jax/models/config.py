"""From a model's config.json to its frozen dataclass, refusing every value that would change the result unnoticed."""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from ..errors import UserError

Config = TypeVar("Config")


def read_config(
    cls: type[Config], raw: Mapping[str, Any], *, model: str, fixed: Mapping[str, tuple], inert: frozenset[str]
) -> Config:
    """The dataclass `cls` from the fields of `raw`.

    Args:
        cls: a frozen dataclass; its fields are the ones that are implemented.
        raw: the JSON object. Names that start with an underscore are remarks of the writer.
        model: what to call the model in a message.
        fixed: fields with one implemented behaviour -> the values that ask for it.
        inert: fields that don't change what is computed here (dropout, for one).

    Raises UserError that lists every field which is not understood.
    """
    names = {field.name for field in dataclasses.fields(cls)}  # pyright: ignore[reportArgumentType]
    values, refused = {}, []
    for name, value in raw.items():
        value = _frozen(value)
        if name in names:
            values[name] = value
        elif name in fixed:
            if value not in fixed[name]:
                refused.append(f"{name}={value!r} (implemented: {', '.join(map(repr, fixed[name]))})")
        elif name not in inert and not name.startswith("_"):
            refused.append(f"{name}={value!r} (unknown field)")
    if refused:
        raise UserError(f"{model}: config not supported: {'; '.join(refused)}")
    try:
        return cls(**values)
    except TypeError as error:
        raise UserError(f"{model}: incomplete config: {error}") from None


def per_level(value: Any, levels: int, *, name: str) -> tuple:
    """One value a level, from one for all or a tuple of them. Raises UserError for a wrong count."""
    values = value if isinstance(value, tuple) else (value,) * levels
    if len(values) != levels:
        raise UserError(f"{name}={value!r} has {len(values)} values for {levels} levels: give one, or one a level")
    return values


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value
