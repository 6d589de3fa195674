"""Parameters of our models <-> orbax checkpoints: a tree of names and arrays as `nnx.to_pure_dict` has it."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from ..errors import UserError
from .dtypes import read_dtype
from .layout import canonical_name, torch_name
from .placement import Placement, sharding_of

Tree = dict[tuple[str, ...], Any]
"""Path -> leaf; an index into a list is its digits."""
_GROUP_BYTES = 2**26
"""Stored, of what one call restores: what loading needs beside the parameters."""


def write_checkpoint(folder: Path, arrays: Mapping[tuple, np.ndarray]) -> None:
    """Writes arrays by their paths, in the dtypes that they have. Raises UserError where it can't."""
    import orbax.checkpoint as ocp

    flat = {tuple(map(str, path)): array for path, array in arrays.items()}
    # Compressed, float32 weights take 8% less on disk and twice the time to read.
    handler = ocp.PyTreeCheckpointHandler(use_compression=False)
    with _explained(folder, "written", "is the disk full?"), ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(folder.absolute(), ocp.args.PyTreeSave(unflatten_dict(flat)))


def read_checkpoint(folder: Path) -> Tree:
    """Its arrays by path, numpy's, in the dtypes stored. Raises UserError where it can't be read."""
    import orbax.checkpoint as ocp

    return _restore(folder, dict.fromkeys(_stored(folder), ocp.RestoreArgs(restore_type=np.ndarray)))


def load_checkpoint(
    build: Callable[[], nnx.Module],
    folder: Path,
    dtype: jnp.dtype | type | str = jnp.float32,
    *,
    sharding: Placement = None,
) -> nnx.Module:
    """The module that `build` describes with the parameters of a checkpoint; the arguments of `load_parameters`.

    With a sharding each device reads its own shards. Raises UserError listing every missing and unused parameter and
    wrong shape at once, and where the checkpoint can't be read.
    """
    import orbax.checkpoint as ocp

    dtype = read_dtype(dtype)
    graph, abstract = nnx.split(nnx.eval_shape(build))
    wanted = {tuple(map(str, path)): (path, leaf) for path, leaf in nnx.to_flat_state(abstract)}
    shapes = {path: leaf.get_value().shape for path, (_, leaf) in wanted.items()}
    _check(folder, shapes, {path: tuple(stored.shape) for path, stored in _stored(folder).items()})

    # Without one orbax would ask for the devices that the checkpoint was written from.
    default = jax.device_put(np.zeros(())).sharding

    def wanted_as(path: tuple[str, ...]) -> ocp.ArrayRestoreArgs:
        where = sharding_of(canonical_name(torch_name(path)), shapes[path], sharding) or default
        return ocp.ArrayRestoreArgs(dtype=dtype, sharding=where, global_shape=shapes[path])

    arrays = _restore(folder, {path: wanted_as(path) for path in wanted})
    flat = [(path, leaf.replace(arrays[key])) for key, (path, leaf) in wanted.items()]
    return nnx.merge(graph, nnx.from_flat_state(flat))


def _restore(folder: Path, wanted: Mapping[tuple[str, ...], Any]) -> Tree:
    """Arrays by path, each as orbax's arguments want it.

    Orbax holds all that one call restores as it was stored, too: a few at a time keep to the memory of the result.
    """
    import orbax.checkpoint as ocp

    arrays, stored = {}, _stored(folder)
    with _explained(folder), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        for paths in _groups({path: stored[path] for path in wanted}):
            arguments = unflatten_dict({path: wanted[path] for path in paths})
            some = ocp.args.PyTreeRestore(arguments, restore_args=arguments, partial_restore=True)
            arrays |= flatten_dict(checkpointer.restore(folder.absolute(), some))
    return arrays


def _groups(stored: Tree) -> Iterator[list[tuple[str, ...]]]:
    """Paths in their order, as many at a time as have `_GROUP_BYTES` together."""
    group, size = [], 0
    for path, array in stored.items():
        group.append(path)
        size += math.prod(array.shape) * jnp.dtype(array.dtype).itemsize
        if size > _GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _stored(folder: Path) -> Tree:
    """Path -> orbax's description of what is there."""
    import orbax.checkpoint as ocp

    with _explained(folder), ocp.StandardCheckpointer() as checkpointer:
        return flatten_dict(checkpointer.metadata(folder.absolute()).item_metadata.tree)


def _check(folder: Path, wanted: Mapping[tuple, tuple], stored: Mapping[tuple, tuple]) -> None:
    faults = [f"missing parameter {'.'.join(path)}" for path in sorted(wanted.keys() - stored.keys())]
    faults += [f"unused parameter {'.'.join(path)}" for path in sorted(stored.keys() - wanted.keys())]
    for path in sorted(wanted.keys() & stored.keys()):
        if wanted[path] != stored[path]:
            faults.append(
                f"wrong shape {'.'.join(path)}: {list(stored[path])}, the config asks for {list(wanted[path])}"
            )
    if faults:
        raise UserError(f"{folder} does not fit its config.json: {'; '.join(faults)}")


@contextmanager
def _explained(folder: Path, done: str = "read", advice: str = "convert the model again") -> Iterator[None]:
    """Any failure of orbax and tensorstore, whose errors share no class, as one line that says what to do."""
    try:
        yield
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise UserError(f"{folder} can't be {done} as an orbax checkpoint ({reason}): {advice}") from None
