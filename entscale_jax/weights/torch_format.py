"""Parameters of our models <-> safetensors of PyTorch diffusers and transformers: the same names, another layout."""

import re
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ..errors import UserError

Shape = tuple[int, ...]

_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}
_TEXT_PREFIX = "text_model."
# The dense layers of attention in old autoencoders, which may be stored as 1x1 convolutions too.
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_ATTENTION = re.compile(rf"(\.attentions\.\d+)\.({'|'.join([*_OLD_ATTENTION, *_OLD_ATTENTION.values()])})\.")


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


def load_parameters(build: Callable[[], nnx.Module], file: Path, dtype: jnp.dtype | type = jnp.float32) -> nnx.Module:
    """The module that `build` describes (it is traced, never run), with the tensors of `file` cast to `dtype`.

    A module's `unread` names keys below it that a file may hold and that nothing here needs: they are left out.

    Raises UserError listing every missing key, unused key and wrong shape at once.
    """
    module = nnx.eval_shape(build)
    unread, (graph, abstract) = _unread(module), nnx.split(module)
    wanted = {canonical_name(torch_name(path)): (path, leaf) for path, leaf in nnx.to_flat_state(abstract)}
    shapes = {name: torch_shape(path, leaf.get_value().shape) for name, (path, leaf) in wanted.items()}
    flat = []
    try:
        with safe_open(file, framework="numpy") as tensors:
            stored = {canonical_name(key): key for key in tensors.keys()}  # noqa: SIM118
            stored = {name: key for name, key in stored.items() if name not in unread}
            found = {name: _stored_shape(name, tensors.get_slice(key).get_shape()) for name, key in stored.items()}
            _check(file, shapes, found)
            for name, (path, leaf) in wanted.items():
                array = tensors.get_tensor(stored[name]).reshape(shapes[name])
                flat.append((path, leaf.replace(jnp.asarray(from_torch(path, array), dtype=dtype))))
    except SafetensorError as error:
        raise UserError(f"{file} can't be read as safetensors ({error}): fetch it again") from None
    return nnx.merge(graph, nnx.from_flat_state(flat))


def save_parameters(module: nnx.Module, file: Path, *, prefix: str = "") -> None:
    """Writes the module's parameters as PyTorch would have, each name after `prefix`."""
    tensors = {}
    for path, leaf in nnx.to_flat_state(nnx.state(module, nnx.Param)):
        array = np.asarray(jax.device_get(leaf.get_value()))
        tensors[prefix + torch_name(path)] = np.ascontiguousarray(to_torch(path, array))
    save_file(tensors, file, metadata={"format": "pt"})


def torch_name(path: tuple) -> str:
    """The PyTorch key of a parameter's path: `("conv_in", "kernel")` -> `conv_in.weight`."""
    *modules, leaf = path
    return ".".join([*map(str, modules), _LEAVES[leaf]])


def canonical_name(key: str) -> str:
    """The present spelling of a key: no `text_model.` in front, no historic names of attention."""
    key = key.removeprefix(_TEXT_PREFIX)
    return _ATTENTION.sub(lambda found: f"{found[1]}.{_OLD_ATTENTION.get(found[2], found[2])}.", key)


def torch_shape(path: tuple, shape: Shape) -> Shape:
    """The shape that PyTorch gives to our parameter of `shape`: OIHW for HWIO, (out, in) for (in, out)."""
    if path[-1] != "kernel":
        return shape
    return (shape[3], shape[2], shape[0], shape[1]) if len(shape) == 4 else shape[::-1]


def from_torch(path: tuple, array: np.ndarray) -> np.ndarray:
    """Our layout of PyTorch's array."""
    if path[-1] != "kernel":
        return array
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def to_torch(path: tuple, array: np.ndarray) -> np.ndarray:
    """PyTorch's layout of our array."""
    if path[-1] != "kernel":
        return array
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T


def _unread(module: nnx.Module) -> set[str]:
    keys = ((*path, key) for path, part in nnx.iter_modules(module) for key in getattr(part, "unread", ()))
    return {canonical_name(".".join(map(str, path))) for path in keys}


def _stored_shape(name: str, shape: list[int]) -> Shape:
    # The UNet has 1x1 convolutions of its own, proj_in and proj_out, which stay what they are.
    if _ATTENTION.search(name) and len(shape) == 4 and shape[2:] == [1, 1]:
        return tuple(shape[:2])
    return tuple(shape)


def _check(file: Path, wanted: dict[str, Shape], found: dict[str, Shape]) -> None:
    faults = [f"missing key {name}" for name in sorted(wanted.keys() - found.keys())]
    faults += [f"unused key {name}" for name in sorted(found.keys() - wanted.keys())]
    for name in sorted(wanted.keys() & found.keys()):
        if wanted[name] != found[name]:
            faults.append(f"wrong shape {name}: {list(found[name])}, the config asks for {list(wanted[name])}")
    if faults:
        raise UserError(f"{file} does not fit its config.json: {'; '.join(faults)}")
