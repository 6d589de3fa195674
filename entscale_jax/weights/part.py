"""One part of a model opened by itself, by the class that its config.json names."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp

from ..errors import UserError
from .families import KINDS
from .files import find_weights
from .folder import read_json
from .placement import Placement
from .torch_format import AbstractRngs, load_parameters


def open_part(
    folder: str | Path,
    dtype: jnp.dtype | type | str = jnp.float32,
    *,
    variant: str | None = None,
    allow_pickle: bool = False,
    sharding: Placement = None,
) -> Any:
    """The module of a folder with a config.json and weights, such as `transformer` of a Stable Diffusion 3 folder.

    Args:
        folder: of the part, as diffusers' `save_pretrained` writes it.
        dtype: as in `load_parameters`.
        variant: of the weights, such as `fp16`.
        allow_pickle: lets weights be read from PyTorch's `.bin`.
        sharding: as in `load_parameters`.

    Raises UserError for a class that is not implemented, and for whatever is wrong with config or weights.
    """
    folder = Path(folder)
    raw = read_json(folder / "config.json", str(folder))
    name = raw.get("_class_name")
    if not isinstance(name, str) or name not in KINDS:
        raise UserError(f"{folder / 'config.json'} is of class {name!r}: implemented are {', '.join(KINDS)}")
    kind = KINDS[name]
    config = kind.config(raw)
    files = find_weights(folder, kind.weights, variant=variant, allow_pickle=allow_pickle)
    return load_parameters(
        lambda: kind.module(config, rngs=AbstractRngs(), dtype=dtype), files, dtype, sharding=sharding
    )
