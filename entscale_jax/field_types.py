"""Whether values that came from JSON, or from a caller, have the types that a dataclass declares."""

import reprlib
from collections.abc import Mapping
from functools import cache
from typing import Any, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from .errors import UserError


def check_types(cls: type, values: Mapping[str, Any], where: str) -> None:
    """Raises UserError, which names every field at once, where a value is not of its field's type in `cls`.

    A whole number passes for a float; nothing else is taken for something that it is not.
    """
    faults = [
        f"{name}={_short(value)} ({fault})" for name, value in values.items() if (fault := _fault(cls, name, value))
    ]
    if faults:
        raise UserError(f"{where}: {'; '.join(faults)}")


def _short(value: Any) -> str:
    # A thousand betas, or an array, would fill the screen.
    return " ".join(reprlib.repr(value).split())


def _fault(cls: type, name: str, value: Any) -> str | None:
    try:
        _type(cls, name).validate_python(value)
    except ValidationError as error:
        return " or ".join(dict.fromkeys(each["msg"][:1].lower() + each["msg"][1:] for each in error.errors()))
    return None


@cache
def _type(cls: type, name: str) -> TypeAdapter:
    return TypeAdapter(get_type_hints(cls)[name], config=ConfigDict(strict=True))
