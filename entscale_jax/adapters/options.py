"""What a caller may say to `adapt`, checked once and handed on."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from ..errors import UserError
from ..scales import Scaling
from .report import Tokens

Chosen = Callable[[str, Any], bool] | Iterable[str]
"""Layers, by a predicate of path and module or by their paths."""
TrainTokens = int | Mapping[str, int] | Callable[[str], int]
"""T: one for all, one a path, or a function of the path."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """The keywords of `adapt`."""

    train_size: tuple[int, int] | None
    scaling: Scaling
    layers: Chosen | None
    leave: Chosen
    train_tokens: TrainTokens | None
    tokens: Tokens | None
    query: str | None
    inputs: tuple[Any, ...] | None
    torch_numerics: bool

    def refuse(self, model: str, *names: str) -> None:
        """Raises UserError where the caller gave one of these, which mean nothing for this kind of model."""
        defaults = {field.name: False if field.name == "torch_numerics" else None for field in fields(self)}
        given = [name for name in names if getattr(self, name) not in (defaults[name], ())]
        if given:
            raise UserError(f"{', '.join(given)} can't be given for {model}: its layers are known; leave it out")


def choose(chosen: Chosen, found: Mapping[str, Any], what: str) -> tuple[str, ...]:
    """The paths among `found` that are chosen. Raises UserError for a path that is not there."""
    if callable(chosen):
        return tuple(path for path, module in found.items() if chosen(path, module))
    paths = tuple(chosen)
    if unknown := sorted(set(paths) - set(found)):
        raise UserError(
            f"{what} names {', '.join(unknown)}, which the model lacks: it has {', '.join(found) or 'none'}"
        )
    return paths
