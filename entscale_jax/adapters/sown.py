"""What adapted models of JAX sow where they measure entropy, and reading it."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from ..errors import UserError

NAME = "attention_entropy"
"""In linen's collection `intermediates`, and as NNX's `Intermediate`."""


def read(found: Any, paths: tuple[str, ...]) -> dict[str, Array]:
    """Layer -> [calls, batch, heads], of linen's `intermediates` or a state of NNX. UserError where one has none."""
    return {path: _stacked(path, list(_sown(_below(found, path)))) for path in paths}


def _stacked(path: str, calls: list[Array]) -> Array:
    if not calls:
        raise UserError(
            f"these intermediates have no entropy of {path or 'the model itself'}: adapt(..., measure_entropy=True), "
            "and call with mutable=['intermediates'] in linen or nnx.capture(model, nnx.Intermediate) in NNX"
        )
    if len({call.shape for call in calls}) > 1:
        raise UserError(f"calls of {path or 'the model itself'} had batches of different sizes: read each by itself")
    return jnp.stack(calls)


def _below(found: Any, path: str) -> Any:
    for part in path.split("/") if path else ():
        found = next((found[name] for name in (part, int(part) if part.isdigit() else part) if name in found), {})
    return found


def _sown(found: Any) -> Iterator[Array]:
    """What was sown in a module and its parts, as an attention's operation is one."""
    for name in found:
        if name == NAME:
            sown = found[name]
            yield from sown if isinstance(sown, tuple) else sown.get_value()
        elif isinstance(found[name], Mapping):
            yield from _sown(found[name])
