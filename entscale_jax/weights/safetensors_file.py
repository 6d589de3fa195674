"""Tensors of a safetensors file, each mapped by itself: no page stays in memory once its tensor has been read."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from ..errors import UserError

_DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that can be read."""

    file: Path
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]
    """Its values in the dtype stored, not to be written to."""


def open_safetensors(file: Path) -> dict[str, StoredTensor]:
    """Key -> tensor. Raises UserError where the file is none or is cut off."""
    try:
        # Opening checks the header and that the file is as long as it says.
        with safe_open(file, framework="numpy"), file.open("rb") as stream:
            start = 8 + int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(start - 8))
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} can't be read as safetensors ({error}): fetch it again") from None
    header.pop("__metadata__", None)
    return {
        key: StoredTensor(
            file,
            tuple(entry["shape"]),
            partial(_read, file, key, entry["dtype"], start + entry["data_offsets"][0], tuple(entry["shape"])),
        )
        for key, entry in header.items()
    }


def _read(file: Path, key: str, dtype: str, offset: int, shape: tuple[int, ...]) -> np.ndarray:
    if dtype not in _DTYPES:
        raise UserError(f"{file} stores {key} as {dtype}: read are {', '.join(_DTYPES)}")
    mapped = np.memmap(file, _DTYPES[dtype], "r", offset, shape)
    return np.require(np.asarray(mapped), requirements="A")
