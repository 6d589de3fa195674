"""What a caller may say to `adapt`, and what follows from it."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import UserError
from ..scales import Scaling
from ..weights.flax_format import Arithmetic
from .report import Tokens

Chosen = Callable[[str, Any], bool] | Iterable[str]
"""Layers, by a predicate of path and module or by their paths."""
TrainTokens = int | Mapping[str, int] | Callable[[str], int]
"""T: one for all, one a path, or a function of the path."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """The keywords of `adapt`."""

    scaling: Scaling
    train_size: tuple[int, int] | None = None
    layers: Chosen | None = None
    leave: Chosen = ()
    train_tokens: TrainTokens | None = None
    tokens: Tokens | None = None
    query: str | None = None
    inputs: tuple[Any, ...] | None = None
    arithmetic: Arithmetic | None = None
    measure_entropy: bool = False
    key: str | None = None

    def refuse(self, model: str, *names: str) -> None:
        """Raises UserError where the caller gave one of these, which mean nothing for this kind of model."""
        if given := [name for name in names if getattr(self, name) not in (None, (), False)]:
            raise UserError(f"{', '.join(given)} can't be given for a {model}: leave it out")

    def train_tokens_of(self, model: str, paths: tuple[str, ...]) -> dict[str, int]:
        """T of each layer. Raises UserError where it can't be derived."""
        given = self.train_tokens
        if given is None:
            given = self._from_size(model)
        if isinstance(given, Mapping):
            if missing := [path for path in paths if path not in given]:
                raise UserError(f"train_tokens has no T for {', '.join(missing)}: give one for each layer")
            return {path: given[path] for path in paths}
        return {path: given(path) if callable(given) else given for path in paths}

    def _from_size(self, model: str) -> int:
        if self.train_size is None or self.tokens is None:
            raise UserError(
                f"the training size of {model} can't be derived: give train_tokens=, the tokens of each layer in "
                "training, or train_size=(height, width) and tokens="
            )
        counts = tuple(self.tokens(*self.train_size))
        if len(counts) != 1:
            raise UserError(
                f"train_tokens is missing: tokens= gives {len(counts)} levels, so say which layer has which T"
            )
        return counts[0]


def choose(chosen: Chosen, found: Mapping[str, Any], what: str) -> tuple[str, ...]:
    """The paths among `found` that are chosen. Raises UserError for a path that is not there."""
    if callable(chosen):
        return tuple(path for path, module in found.items() if chosen(path, module))
    if isinstance(chosen, str):
        raise UserError(f"{what} is {chosen!r}: give a list of paths, or a predicate of path and module")
    paths = tuple(chosen)
    if unknown := sorted(set(paths) - set(found)):
        raise UserError(
            f"{what} names {', '.join(unknown)}, which the model lacks: it has {', '.join(found) or 'none'}"
        )
    return paths
