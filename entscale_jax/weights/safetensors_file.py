"""Safetensors files: their tensors, each mapped by itself so that no page stays once it has been read, and writing."""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from ..errors import UserError

FLOATS = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16}
"""What parameters may be stored as, by the format's own words."""
_DTYPES = FLOATS | {"I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_}
WORDS = {np.dtype(dtype): word for word, dtype in _DTYPES.items()}
_ALIGNMENT = 8


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that can be read."""

    file: Path
    key: str
    dtype: str
    """As safetensors spells it, such as `F32`."""
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]
    """Its values in the dtype stored, not to be written to."""


@dataclass(frozen=True)
class Header:
    """What stands before the tensors of a file."""

    text: str
    """JSON, with the spaces that fill it up."""

    @property
    def start(self) -> int:
        """The byte where the tensors begin: a length of eight bytes is before the text."""
        return 8 + len(self.text.encode())

    @cached_property
    def tensors(self) -> dict[str, dict]:
        """Key -> dtype, shape and data_offsets, in the order of the data."""
        entries = {key: entry for key, entry in json.loads(self.text).items() if key != "__metadata__"}
        return dict(sorted(entries.items(), key=lambda item: item[1]["data_offsets"]))


def open_safetensors(file: Path) -> dict[str, StoredTensor]:
    """Key -> tensor. Raises UserError where the file is none or is cut off."""
    header = read_header(file)
    return {key: _tensor(file, header.start, key, **entry) for key, entry in header.tensors.items()}


def read_header(file: Path) -> Header:
    """The header of a file. Raises UserError where the file is none or is cut off."""
    try:
        # Opening checks the header and that the file is as long as it says.
        with safe_open(file, framework="numpy"), file.open("rb") as stream:
            return Header(stream.read(int.from_bytes(stream.read(8), "little")).decode())
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} can't be read as safetensors ({error}): fetch it again") from None


def header_for(tensors: Mapping[str, StoredTensor]) -> Header:
    """A header for tensors that come from elsewhere: the widest first, so that each is aligned."""
    entries, offset = {}, 0
    widths = {key: _dtype(tensor.file, key, tensor.dtype).itemsize for key, tensor in tensors.items()}
    for key in sorted(tensors, key=lambda key: (-widths[key], key)):
        end = offset + math.prod(tensors[key].shape) * widths[key]
        entries[key] = {
            "dtype": tensors[key].dtype,
            "shape": list(tensors[key].shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps({"__metadata__": {"format": "pt"}, **entries}, separators=(",", ":"))
    return Header(text + " " * (-len(text) % _ALIGNMENT))


def file_blocks(header: Header, read: Callable[[str], np.ndarray]) -> Iterator[bytes]:
    """The bytes of a file piece by piece; `read` gives a key's values in the dtype of the header."""
    text = header.text.encode()
    yield len(text).to_bytes(8, "little")
    yield text
    for key in header.tensors:
        yield read(key).tobytes()


def _tensor(file: Path, start: int, key: str, dtype: str, shape: list[int], data_offsets: list[int]) -> StoredTensor:
    read = partial(read_mapped, file, key, dtype, start + data_offsets[0], tuple(shape))
    return StoredTensor(file, key, dtype, tuple(shape), read)


def read_mapped(file: Path, key: str, dtype: str, offset: int, shape: tuple[int, ...]) -> np.ndarray:
    """A tensor of a file from its offset, by safetensors' word for the dtype. Raises UserError for an unknown word.

    It lies as it lies in the file, at an address that need not be a multiple of its width.
    """
    return np.asarray(np.memmap(file, _dtype(file, key, dtype), "r", offset, shape))


def _dtype(file: Path, key: str, word: str) -> np.dtype:
    if word not in _DTYPES:
        raise UserError(f"{file} stores {key} as {word}: read are {', '.join(_DTYPES)}")
    return np.dtype(_DTYPES[word])
