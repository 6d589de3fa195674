"""Where a parameter's array is put: JAX's default device, or a sharding, one for all or by a rule."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import Sharding

from ..errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")
Placement = Sharding | Callable[[str, tuple[int, ...]], Sharding] | None
"""Where parameters go: one sharding for all, a function of name and shape, or the default device."""
_THREADS = 4


def put(name: str, array: np.ndarray, sharding: Placement) -> jax.Array:
    """A copy of the array on its devices. Raises UserError where the sharding does not fit its shape."""
    # XLA's own transposition reads a transposed view several times as fast as numpy copies it.
    return jax.device_put(array, sharding_of(name, array.shape, sharding), may_alias=False).block_until_ready()


def sharding_of(name: str, shape: tuple[int, ...], placement: Placement) -> Sharding | None:
    """What a placement says of one parameter. Raises UserError where that does not fit its shape."""
    sharding = placement if placement is None or isinstance(placement, Sharding) else placement(name, shape)
    if sharding is not None:
        _check_fits(name, shape, sharding)
    return sharding


def under(part: str, sharding: Placement) -> Placement:
    """The placement of one part of a model, whose rule is told names like `unet.conv_in.weight`."""
    if sharding is None or isinstance(sharding, Sharding):
        return sharding
    return lambda name, shape: sharding(f"{part}.{name}", shape)


def in_threads(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """The function of each item, by as many threads as there are cores, at most 4: reading and copying hold no lock."""
    # JAX's contexts end at their thread: 64-bit types stay in this one, and the default device is told.
    if jax.config.jax_enable_x64:  # pyright: ignore[reportAttributeAccessIssue]
        return list(map(function, items))
    device = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]

    def run(item: Item) -> Result:
        with jax.default_device(device):
            return function(item)

    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        return list(pool.map(run, items))


def _check_fits(name: str, shape: tuple[int, ...], sharding: Sharding) -> None:
    try:
        jax.ShapeDtypeStruct(shape, np.float32, sharding=sharding)  # raises for too few axes
        sharding.shard_shape(shape)  # raises for an axis that it does not divide
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{name}, {list(shape)}, can't be placed by sharding {sharding}: {reason}") from None
