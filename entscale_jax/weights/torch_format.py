"""Parameters of our models <-> safetensors of PyTorch diffusers and transformers: the same names, another layout."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from ..errors import UserError
from .dtypes import read_dtype
from .files import WeightFiles
from .layout import Shape, canonical_name, from_torch, in_attention, to_torch, torch_name, torch_shape
from .placement import Placement, in_threads, put
from .safetensors_file import FLOATS, StoredTensor
from .stored import read_stored


class AbstractRngs(nnx.Rngs):
    """Gives every parameter the same key: for models only traced, which a stream of keys makes ten times slower.

    Shapes don't depend on keys; a model that is run must have `nnx.Rngs`.
    """

    def __init__(self):
        super().__init__()
        self._key = jax.random.key(0)

    def params(self) -> jax.Array:
        """The key."""
        return self._key


def load_parameters(
    build: Callable[[], nnx.Module],
    files: WeightFiles | Path,
    dtype: jnp.dtype | type | str = jnp.float32,
    *,
    sharding: Placement = None,
) -> nnx.Module:
    """The module that `build` describes (it is traced, never run), with the tensors of `files` cast to `dtype`.

    Args:
        build: makes the module.
        files: what `find_weights` found, or one safetensors file.
        dtype: float32, bfloat16, float16 or float64, whatever is stored.
        sharding: where parameters are put: JAX's default device if None, one sharding for all, or a function of a
            parameter's name as in PyTorch and its shape here, HWIO for a convolution and (in, out) for a dense layer.

    A module's `unread` names keys below it that a file may hold and that nothing here needs: they are left out.

    Raises UserError listing every missing key, unused key and wrong shape at once.
    """
    match = match_parameters(build, WeightFiles((files,)) if isinstance(files, Path) else files)
    return load_match(match, dtype, sharding=sharding)


def load_match(
    match: "Match", dtype: jnp.dtype | type | str = jnp.float32, *, sharding: Placement = None
) -> nnx.Module:
    """The module of a match with its tensors; the arguments are those of `load_parameters`."""
    dtype = read_dtype(dtype)

    def place(name: str) -> jax.Array:
        return put(name, match.read(name, dtype), sharding)

    # The largest first, so that what is being read is small by the time that nearly everything is in memory.
    order = sorted(match.wanted, key=lambda name: -math.prod(match.stored[name].shape))
    arrays = dict(zip(order, in_threads(place, order), strict=True))
    flat = [(path, leaf.replace(arrays[name])) for name, (path, leaf) in match.wanted.items()]
    return nnx.merge(match.graph, nnx.from_flat_state(flat))


@dataclass(frozen=True)
class Match:
    """A module that is described only, and the stored tensor of each of its parameters."""

    graph: nnx.GraphDef
    wanted: Mapping[str, tuple[tuple, nnx.Variable]]
    """Name as in PyTorch -> path here and the parameter without its values."""
    stored: Mapping[str, StoredTensor]
    """Name -> tensor."""
    unread: Mapping[str, StoredTensor]
    """Key -> tensor, of those that no parameter needs."""

    def read(self, name: str, dtype: jnp.dtype | None = None) -> np.ndarray:
        """A parameter's values in our layout, in `dtype`, or as stored if None."""
        path, leaf = self.wanted[name]
        array = self.stored[name].read().reshape(torch_shape(path, leaf.get_value().shape))
        # Where a cast copies, it aligns; what is copied once more would count in the peak.
        cast = array if dtype is None else array.astype(dtype, copy=False)
        return from_torch(path, np.require(cast, requirements="A"))


def match_parameters(build: Callable[[], nnx.Module], files: WeightFiles) -> Match:
    """Which tensor of the files is which parameter, before any is read; raises UserError as `match_tensors` does."""
    return match_tensors(build, read_stored(files), str(files.all[0]))


def match_tensors(build: Callable[[], nnx.Module], tensors: Mapping[str, StoredTensor], where: str) -> Match:
    """Which tensor is which parameter.

    Raises UserError, which begins with `where`, listing every missing key, unused key, wrong shape and dtype that is no
    floating-point one at once.
    """
    module = nnx.eval_shape(build)
    unread, (graph, abstract) = _unread(module), nnx.split(module)
    wanted = {canonical_name(torch_name(path)): (path, leaf) for path, leaf in nnx.to_flat_state(abstract)}
    found = _by_name(tensors)
    stored = {name: tensor for name, tensor in found.items() if name not in unread}
    _check(where, {name: torch_shape(path, leaf.get_value().shape) for name, (path, leaf) in wanted.items()}, stored)
    return Match(graph, wanted, stored, {found[name].key: found[name] for name in unread & found.keys()})


def save_parameters(module: nnx.Module, file: Path, *, prefix: str = "") -> None:
    """Writes the module's parameters and buffers as PyTorch would have, each name after `prefix`."""
    tensors = {}
    for path, leaf in nnx.to_flat_state(nnx.state(module)):
        array = np.asarray(jax.device_get(leaf.get_value()))
        tensors[prefix + torch_name(path)] = np.ascontiguousarray(to_torch(path, array))
    save_file(tensors, file, metadata={"format": "pt"})


def _unread(module: nnx.Module) -> set[str]:
    keys = ((*path, key) for path, part in nnx.iter_modules(module) for key in getattr(part, "unread", ()))
    return {canonical_name(".".join(map(str, path))) for path in keys}


def _by_name(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The tensors by the present spelling of their keys. Raises UserError where two keys have the same."""
    found: dict[str, StoredTensor] = {}
    for key, tensor in tensors.items():
        name = canonical_name(key)
        if name in found:
            raise UserError(f"{tensor.file} holds {name} under two keys, {found[name].key} and {key}")
        found[name] = tensor
    return found


def _stored_shape(name: str, shape: Shape) -> Shape:
    # The UNet has 1x1 convolutions of its own, proj_in and proj_out, which stay what they are.
    return shape[:2] if in_attention(name) and len(shape) == 4 and shape[2:] == (1, 1) else shape


def _check(where: str, wanted: dict[str, Shape], stored: dict[str, StoredTensor]) -> None:
    faults = [f"missing key {name}" for name in sorted(wanted.keys() - stored.keys())]
    faults += [f"unused key {name}" for name in sorted(stored.keys() - wanted.keys())]
    for name in sorted(wanted.keys() & stored.keys()):
        found = _stored_shape(name, stored[name].shape)
        if found != wanted[name]:
            faults.append(f"wrong shape {name}: {list(found)}, the config asks for {list(wanted[name])}")
        elif stored[name].dtype not in FLOATS:
            faults.append(f"{name} is stored as {stored[name].dtype}: read are {', '.join(FLOATS)}")
    if faults:
        raise UserError(f"{where} does not fit its config.json: {'; '.join(faults)}")
