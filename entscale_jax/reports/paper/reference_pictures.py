"""Pictures to compare a run with, in a folder or a Parquet file, read one after another in their order."""

import io
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from ...errors import UserError

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
AT_ONCE = 16
"""Rows of a Parquet file that are taken at a time."""
_BUFFER = 2**20
"""Bytes of a row group that are read at a time, as a file may be one group; without it groups are read whole."""


class Picture(NamedTuple):
    """One of a reference's."""

    name: str
    """Its file, or its row."""
    pixels: np.ndarray
    """uint8 [height, width, 3]"""


class Pictures(Protocol):
    """Those of a folder or a Parquet file, each of its own size."""

    identity: str
    """Changes where a picture does."""

    def __len__(self) -> int: ...

    def since(self, first: int) -> Iterator[Picture]:
        """All from number `first` on. Raises UserError for what is no picture."""
        ...


def open_pictures(place: Path, column: str) -> Pictures:
    """The pictures at a place. Raises UserError where there are none."""
    return _Parquet(place, column) if place.is_file() else _Folder(place)


def in_turn(pictures: Pictures, size: int) -> Callable[[int], Iterator[Picture]]:
    """Number of a batch -> its pictures, for batches asked for one after another, so that nothing is read twice."""
    coming: Iterator[Picture] | None = None

    def batch(index: int) -> Iterator[Picture]:
        nonlocal coming
        coming = coming or pictures.since(index * size)
        return islice(coming, size)

    return batch


class _Folder:
    def __init__(self, place: Path):
        if not place.is_dir():
            raise UserError(f"--reference {place} is neither a folder of pictures, a Parquet file nor a run")
        self._files = sorted(path for path in place.rglob("*") if path.suffix.lower() in ENDINGS)
        if not self._files:
            raise UserError(f"--reference {place} holds no pictures ({', '.join(ENDINGS)})")
        stats = [(str(path.relative_to(place)), path.stat().st_size, path.stat().st_mtime_ns) for path in self._files]
        self.identity = repr(stats)

    def __len__(self) -> int:
        return len(self._files)

    def since(self, first: int) -> Iterator[Picture]:
        for file in self._files[first:]:
            try:
                data = file.read_bytes()
            except OSError as error:
                raise UserError(f"picture {file} can't be read: {error.strerror}") from error
            yield Picture(str(file), decode_picture(data, str(file)))


class _Parquet:
    def __init__(self, place: Path, column: str):
        try:
            self._file = pq.ParquetFile(place, buffer_size=_BUFFER, pre_buffer=False)
        except (OSError, pa.ArrowException) as error:
            raise UserError(
                f"--reference {place} is no Parquet file ({error}): give a folder, a Parquet or a run"
            ) from error
        _check_column(place, self._file.schema_arrow, column)
        self._place, self._column = place, column
        metadata = self._file.metadata
        if not metadata.num_rows:
            raise UserError(f"--reference {place} holds no pictures: it has no rows")
        self._ends = np.cumsum([metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)])
        self.identity = f"{place.stat().st_size} {place.stat().st_mtime_ns} {column} {place.name}"

    def __len__(self) -> int:
        return int(self._file.metadata.num_rows)

    def since(self, first: int) -> Iterator[Picture]:
        group = int(np.searchsorted(self._ends, first, side="right"))
        start = int(self._ends[group - 1]) if group else 0
        for row, value in enumerate(islice(self._values(group), first - start, None), first):
            found = value.as_py()
            data = found.get("bytes") if isinstance(found, dict) else found
            name = f"{self._place} row {row}"
            yield Picture(name, decode_picture(data or b"", name))

    def _values(self, group: int) -> Iterator[pa.Scalar]:
        """Of the rows from a row group on."""
        groups = range(group, len(self._ends))
        try:
            for batch in self._file.iter_batches(AT_ONCE, row_groups=groups, columns=[self._column]):
                yield from batch.column(0)
        except (OSError, pa.ArrowException) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"--reference {self._place} can't be read as Parquet: {reason}") from error


def _check_column(place: Path, schema: pa.Schema, column: str) -> None:
    if column not in schema.names:
        raise UserError(f"--reference {place} has no column {column!r}: it has {', '.join(schema.names)}")
    kind = schema.field(column).type
    data = kind.field("bytes").type if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 else kind
    if not (pa.types.is_binary(data) or pa.types.is_large_binary(data) or pa.types.is_binary_view(data)):
        raise UserError(
            f"--reference {place}: column {column!r} is of {kind} and holds no encoded pictures: name the one that does"
        )


def decode_picture(data: bytes, name: str) -> np.ndarray:
    """Bytes of a PNG or the like as uint8 [height, width, 3]. Raises UserError where they are none."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{name} is no picture ({error}): remove it from what is compared") from error
