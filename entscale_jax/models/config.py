"""From a model's config.json to its frozen dataclass, refusing every value that would change the result unnoticed."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from ..errors import UserError
from ..field_types import check_types

Config = TypeVar("Config")
_MAY_BE_ZERO = frozenset({"freq_shift", "eos_token_id", "dual_attention_layers"})


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

    Raises UserError that lists every field which is not understood, or whose value is of a wrong type or no count.
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
    check_types(cls, values, f"{model}: config not supported")
    _check_positive(values, model)
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


def check_groups(groups: int, widths: Iterable[int], *, model: str) -> None:
    """Raises UserError where group normalisation can't share the channels of a level."""
    for width in widths:
        if width % groups:
            raise UserError(f"{model}: {width} channels can't be shared by norm_num_groups={groups}")


def check_heads(features: int, heads: int, *, model: str) -> None:
    """Raises UserError where attention heads can't share the channels."""
    if features % heads:
        raise UserError(f"{model}: {features} channels can't be shared by {heads} attention heads")


def _check_positive(values: Mapping[str, Any], model: str) -> None:
    for name, value in values.items():
        for each in value if isinstance(value, tuple) else (value,):
            number = isinstance(each, int | float) and not isinstance(each, bool)
            if number and name not in _MAY_BE_ZERO and not 0 < each < float("inf"):
                raise UserError(f"{model}: config not supported: {name}={value!r} (only numbers above 0)")


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value
