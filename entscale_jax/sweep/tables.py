"""Makes the two tables of a run from its rows: one of images and one of the entropy of each layer and step.

The rows of entropy are hundreds to an image. They are merged from the parts, which are sorted by the plan, some cells
at a time.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..row_choice import choose_rows
from .plan import Cell
from .storage.parts import (
    ENTROPY,
    POSITION,
    SAMPLES,
    arrow_type,
    decode,
    encode,
    entropy_name,
    entropy_table,
    samples_name,
    samples_table,
)
from .store import RunFolder

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["ENTROPY", "SAMPLES", "is_compacted", "write_tables"]

CELLS_AT_ONCE = 512
"""Cells whose rows of entropy are in memory at a time."""
_LOOSE = -1
"""Stands for the rows that are in no part."""


def write_tables(run: RunFolder, cells: Sequence[Cell]) -> None:
    """Writes both tables in the order of the plan; `entropy.parquet` only where there are any rows for it."""
    loose = list(run.loose_rows(cells))
    table, sources = _all_rows(run, loose)
    failed = table["error"].is_valid().to_pylist()
    chosen = choose_rows(zip(table["cell"].to_pylist(), failed, strict=True))
    positions = [chosen[cell.id] for cell in cells if cell.id in chosen]
    source_of = np.array([sources[chosen[cell.id]] if cell.id in chosen else _LOOSE - 1 for cell in cells])
    order = {cell.id: position for position, cell in enumerate(cells)}
    _write_entropy(run, entropy_table(loose, order), source_of)
    run.files.write("samples.parquet", encode(table.take(np.array(positions, np.int64))))


def is_compacted(run: RunFolder) -> bool:
    """Whether the tables are as new as the newest row."""
    table = [entry.modified for entry in run.files.list("") if entry.name == "samples.parquet"]
    rows = chain(run.files.list("rows"), run.files.list("samples"))
    return bool(table) and table[0] >= max((entry.modified for entry in rows), default=0.0)


def _all_rows(run: RunFolder, loose: Sequence[Mapping[str, Any]]) -> tuple["pa.Table", "np.ndarray"]:
    """The rows of all parts and then the loose ones, and which of them each is of."""
    import pyarrow as pa

    numbers = run.part_numbers()
    images = run.present_images() if numbers else None
    tables, sources = [], []
    for number in numbers:
        part = decode(run.files.read(samples_name(number)) or encode(samples_table([])), tuple(SAMPLES))
        if images is not None:
            rows = zip(part["image"].to_pylist(), part["error"].to_pylist(), strict=True)
            part = part.filter(pa.array([error is not None or image in images for image, error in rows], pa.bool_()))
        tables.append(part)
        sources.append(np.full(part.num_rows, number))
    tables.append(samples_table(loose))
    sources.append(np.full(len(loose), _LOOSE))
    return pa.concat_tables(tables), np.concatenate(sources)


def _write_entropy(run: RunFolder, loose: "pa.Table", source_of: "np.ndarray") -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with tempfile.TemporaryDirectory(prefix="entscale-") as folder:
        streams = [_Sorted(_LOOSE, iter([loose]))]
        for number in run.part_numbers():
            copy = Path(folder) / f"{number}.parquet"
            if run.files.download(entropy_name(number), copy):
                streams.append(_Sorted(number, _batches(copy)))
        blocks = _merge(streams, source_of)
        first = next(blocks, None)
        if first is None:
            return
        schema = pa.schema([(name, arrow_type(kind)) for name, kind in ENTROPY.items()])
        path = Path(folder) / "entropy.parquet"
        with pq.ParquetWriter(path, schema) as writer:
            for block in chain([first], blocks):
                writer.write_table(block)
        run.files.upload(path, "entropy.parquet")


def _batches(path: Path) -> "Iterator[pa.Table]":
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=2**14):
            yield pa.Table.from_batches([batch])


class _Sorted:
    """Rows sorted by POSITION, taken from the front."""

    def __init__(self, source: int, tables: "Iterator[pa.Table]"):
        self.source = source
        self._tables = tables
        self._left: Any = None

    def take(self, end: int) -> "Iterator[pa.Table]":
        """The rows of cells before `end` that were not taken yet."""
        while True:
            if self._left is None:
                self._left = next(self._tables, None)
                if self._left is None:
                    return
            count = int(np.searchsorted(self._left[POSITION].to_numpy(), end))
            yield self._left.slice(0, count)
            if count < self._left.num_rows:
                self._left = self._left.slice(count)
                return
            self._left = None


def _merge(streams: "Sequence[_Sorted]", source_of: "np.ndarray") -> "Iterator[pa.Table]":
    """The rows that count of all streams in the order of the plan, a block at a time."""
    import pyarrow as pa

    for start in range(0, len(source_of), CELLS_AT_ONCE):
        found = []
        for stream in streams:
            for rows in stream.take(start + CELLS_AT_ONCE):
                mine = source_of[rows[POSITION].to_numpy()] == stream.source
                found.append(rows.filter(pa.array(mine)))
        block = pa.concat_tables(found) if found else None
        if block is not None and block.num_rows:
            # A cell's rows are of one stream, in their order there.
            order = np.argsort(block[POSITION].to_numpy(), kind="stable")
            yield block.take(order).select(list(ENTROPY))
