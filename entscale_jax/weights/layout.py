"""Names and layouts of a parameter: ours, PyTorch's as a state dict has them, and those of Flax's linen modules."""

import re

import numpy as np

Shape = tuple[int, ...]

_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}
_OWN_NAMES = ("bias", "pos_embed", "class_embedding", "logit_scale", "running_mean", "running_var", "weight")
_LEAVES |= {name: name for name in _OWN_NAMES}
_TEXT_PREFIX = "text_model."
# The dense layers of attention in old autoencoders, which may be stored as 1x1 convolutions too.
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_ATTENTION = re.compile(rf"(\.attentions\.\d+)\.({'|'.join([*_OLD_ATTENTION, *_OLD_ATTENTION.values()])})\.")
# Linen numbers the members of a list by an underscore; `linear_1` is a name.
_LISTS = (
    *("down_blocks", "up_blocks", "resnets", "attentions", "transformer_blocks"),
    *("downsamplers", "upsamplers", "to_out", "net"),
)
_MEMBER = re.compile(rf"^({'|'.join(_LISTS)})_(\d+)$")


def torch_name(path: tuple) -> str:
    """The PyTorch key of a parameter's path: `("conv_in", "kernel")` -> `conv_in.weight`."""
    *modules, leaf = path
    return ".".join([*map(str, modules), _LEAVES[leaf]])


def flax_name(path: tuple[str, ...]) -> str:
    """The PyTorch key of a linen path such as `("down_blocks_0", "resnets_1", "norm1", "scale")`."""
    *modules, leaf = path
    return _present(".".join([*(_MEMBER.sub(r"\1.\2", module) for module in modules), _LEAVES.get(leaf, leaf)]))


def canonical_name(key: str) -> str:
    """The present spelling of a key: no `text_model.` in front, no historic names of attention."""
    return _present(key.removeprefix(_TEXT_PREFIX))


def _present(key: str) -> str:
    return _ATTENTION.sub(lambda found: f"{found[1]}.{_OLD_ATTENTION.get(found[2], found[2])}.", key)


def in_attention(name: str) -> bool:
    """Whether a name is of a dense layer that old autoencoders may store as a 1x1 convolution."""
    return _ATTENTION.search(name) is not None


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
    """PyTorch's layout of our array, which is linen's too."""
    if path[-1] != "kernel":
        return array
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
