"""Flax's msgpack files: a tree of arrays, each mapped by itself so that no page stays once it has been read."""

import math
import mmap
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from msgpack import Unpacker, UnpackException

from ..errors import UserError
from .layout import Shape, flax_name, to_torch, torch_shape
from .safetensors_file import WORDS, StoredTensor, read_mapped

Names = tuple[str, ...]
_DTYPES = {dtype.name: dtype for dtype in WORDS}
_MAPS = frozenset({*range(0x80, 0x90), 0xDE, 0xDF})
_SHORT = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}
"""First byte of a short extension -> its length."""
_EXTENSIONS, _BYTES = {0xC7: 1, 0xC8: 2, 0xC9: 4}, {0xC4: 1, 0xC5: 2, 0xC6: 4}
"""First byte of another extension, and of a string of bytes -> how many bytes hold its length."""
_ARRAY, _SCALAR, _CHUNKED = 1, 3, "__msgpack_chunked_array__"
"""flax.serialization's kinds of extension, and how it marks an array of more than 1 GiB."""
_WINDOW, _DEPTH = 1024, 32
"""Bytes in which a name, and what is said of an array, must end; levels that a tree may have."""


def open_msgpack(file: Path) -> dict[str, StoredTensor]:
    """Key as in PyTorch -> tensor in PyTorch's layout, a view of what is stored.

    The file is walked from header to header: values are read when they are asked for, and nothing is ever run.

    Raises UserError where the file is none, is cut off, or holds anything else than arrays by name.
    """
    try:
        with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            tensors = list(_Walk(file, data).tensors())
    except (OSError, ValueError, UnpackException) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{file} can't be read as Flax's msgpack ({reason}): fetch it again") from None
    found = {tensor.key: tensor for tensor in tensors}
    if len(found) < len(tensors):
        keys = [tensor.key for tensor in tensors]
        raise UserError(f"{file} holds {next(key for key in keys if keys.count(key) > 1)} twice: fetch it again")
    return found


class _Walk:
    """A position in a file, which goes on over what is read. Raises ValueError and msgpack's own exceptions."""

    def __init__(self, file: Path, data: mmap.mmap):
        self._file, self._data, self._at = file, data, 0

    def tensors(self) -> Iterator[StoredTensor]:
        """All of the file."""
        yield from self._map(())
        if self._at != len(self._data):
            raise ValueError(f"{len(self._data) - self._at} bytes too many")

    def _map(self, above: Names) -> Iterator[StoredTensor]:
        if len(above) > _DEPTH:
            raise ValueError(f"{'/'.join(above[:3])} has more than {_DEPTH} levels")
        for _ in range(self._small("read_map_header")):
            path = (*above, str(self._small("unpack")))
            if path[-1] == _CHUNKED:
                raise ValueError(f"{'/'.join(above)} is in chunks, as arrays of more than 1 GiB are")
            if self._first() in _MAPS:
                yield from self._map(path)
            else:
                yield self._array(path)

    def _array(self, path: Names) -> StoredTensor:
        """The tensor whose extension begins here: its shape, the name of its dtype and its bytes, C-contiguous."""
        name, end = "/".join(path), self._extension("/".join(path))
        if self._small("read_array_header") != 3:
            raise ValueError(f"{name} is no array")
        shape, dtype = self._small("unpack"), _DTYPES.get(str(self._small("unpack")))
        length, start = self._length(_BYTES), self._at
        if dtype is None or not _is_shape(shape):
            raise ValueError(f"{name} has a shape or a dtype that none of the models has")
        if length != math.prod(shape) * dtype.itemsize or start + length != end:
            raise ValueError(f"{name} has {length} bytes: not those of {shape} in {dtype}")
        self._at = end
        key, word, shape = flax_name(path), WORDS[dtype], tuple(shape)
        read = partial(_read, self._file, key, word, start, shape, path)
        return StoredTensor(self._file, key, word, torch_shape(path, shape), read)

    def _extension(self, name: str) -> int:
        """Goes into the array's extension; where that ends."""
        first = self._first()
        if first not in _SHORT and first not in _EXTENSIONS:
            raise ValueError(f"{name} is no array")
        if first in _SHORT:
            self._at += 1
        length = _SHORT[first] if first in _SHORT else self._length(_EXTENSIONS)
        kind = self._first()
        self._at += 1
        if kind not in (_ARRAY, _SCALAR):
            raise ValueError(f"{name} is no array")
        if self._at + length > len(self._data):
            raise ValueError(f"cut off in {name}")
        return self._at + length

    def _length(self, widths: dict[int, int]) -> int:
        width = widths.get(self._first())
        if width is None:
            raise ValueError("no bytes where an array's values should be")
        number = self._data[self._at + 1 : self._at + 1 + width]
        self._at += 1 + width
        return int.from_bytes(number, "big")

    def _first(self) -> int:
        if self._at >= len(self._data):
            raise ValueError("cut off")
        return self._data[self._at]

    def _small(self, method: str) -> Any:
        """What msgpack's `Unpacker` reads here by one of its methods."""
        unpacker = Unpacker()
        unpacker.feed(self._data[self._at : self._at + _WINDOW])
        value = getattr(unpacker, method)()
        self._at += unpacker.tell()
        return value


def _is_shape(shape: Any) -> bool:
    return isinstance(shape, list) and all(isinstance(size, int) and size >= 0 for size in shape)


def _read(file: Path, key: str, word: str, start: int, shape: Shape, path: Names) -> np.ndarray:
    return to_torch(path, read_mapped(file, key, word, start, shape))
