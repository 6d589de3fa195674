"""The parameters of diffusers' Flax modules, as JAX holds them, in our models."""

from collections.abc import Mapping
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any, cast

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from ..errors import UserError
from ..models import FlaxUNet2DConditionConfig, UNet2DConditionModel
from .dtypes import read_dtype
from .layout import flax_name, to_torch, torch_shape
from .placement import Placement
from .safetensors_file import WORDS, StoredTensor
from .torch_format import AbstractRngs, load_match, match_tensors

_PARAMS = Path("params")
"""Stands for a file where a message names one."""


class Arithmetic(StrEnum):
    """Whose UNet is computed: they differ in the GELU of a feed-forward and in the epsilon before a transformer."""

    FLAX = "flax"
    TORCH = "torch"


def unet_from_flax(
    config: Mapping[str, Any],
    params: Mapping[str, Any],
    dtype: jnp.dtype | type | str = jnp.float32,
    *,
    arithmetic: Arithmetic = Arithmetic.FLAX,
    sharding: Placement = None,
) -> UNet2DConditionModel:
    """Our UNet with the weights of a `FlaxUNet2DConditionModel`.

    Args:
        config: the module's `config`.
        params: its tree, as `init_weights` and `from_pretrained` give it: nested mappings of arrays.
        dtype: of the result, whatever the tree holds; the tree is copied leaf by leaf, through the host.
        arithmetic: whose function; PyTorch's for weights that were trained there and only converted.
        sharding: as `load_parameters` takes it.

    Raises UserError for a config that is not implemented, and listing what of the tree does not fit it.
    """
    flax = FlaxUNet2DConditionConfig.from_json(config)
    described = flax if Arithmetic(arithmetic) is Arithmetic.FLAX else flax.in_torch

    def build() -> UNet2DConditionModel:
        return UNet2DConditionModel(described, rngs=AbstractRngs(), dtype=read_dtype(dtype))

    match = match_tensors(build, _tensors(params), "the tree of parameters")
    unet = load_match(match, dtype, sharding=sharding)
    return cast(UNet2DConditionModel, unet)


def _tensors(params: Mapping[str, Any]) -> dict[str, StoredTensor]:
    """Key as in PyTorch -> leaf."""
    tensors = [_tensor(tuple(map(str, path)), leaf) for path, leaf in flatten_dict(params).items()]
    found = {tensor.key: tensor for tensor in tensors}
    if len(found) < len(tensors):
        raise UserError("the tree of parameters holds a kernel and a scale of one layer")
    return found


def _tensor(path: tuple[str, ...], leaf: Any) -> StoredTensor:
    if not hasattr(leaf, "dtype") or not hasattr(leaf, "shape"):
        raise UserError(f"the tree of parameters holds {type(leaf).__name__} at {'/'.join(path)}, which is no array")
    word = WORDS.get(np.dtype(leaf.dtype), str(leaf.dtype))
    read = partial(_read, path, leaf)
    return StoredTensor(_PARAMS, flax_name(path), word, torch_shape(path, tuple(leaf.shape)), read)


def _read(path: tuple[str, ...], leaf: Any) -> np.ndarray:
    return to_torch(path, np.asarray(leaf))
