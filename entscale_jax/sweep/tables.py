"""Compacts the rows of a run into Parquet tables, one for images and one for the entropy of each layer and step."""

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .store import RunFolder, write_whole

SAMPLES = {
    "cell": "string",
    "model": "string",
    "width": "int32",
    "height": "int32",
    "method": "string",
    "prompt": "string",
    "seed": "int64",
    "image": "string",
    "seconds": "float64",
    "device": "string",
    "objects_exact": "bool",
    "objects_missing": "int32",
    "objects_extra": "int32",
    "entropy": "float32",
    "sha256": "string",
    "error": "string",
}
"""Columns of `samples.parquet` and their types. Null stands for what was not measured; `sha256` is of the PNG."""

ENTROPY = {
    "cell": "string",
    "model": "string",
    "width": "int32",
    "height": "int32",
    "method": "string",
    "layer": "string",
    "tokens": "int32",
    "train_tokens": "int32",
    "step": "int32",
    "entropy": "float32",
    "logit_gap": "float32",
}
"""Columns of `entropy.parquet`: a row a layer and step, means over heads and tokens in nats; step 0 is the noisiest.

`logit_gap` is null in rows of runs that were drawn before it was measured.
"""


def compact(run: RunFolder, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes both tables from rows in their final order; `entropy.parquet` only where there are any."""
    entropy = list(_entropy_rows(rows))
    if entropy:
        _write(run.path / "entropy.parquet", entropy, ENTROPY)
    _write(run.path / "samples.parquet", rows, SAMPLES)


def is_compacted(run: RunFolder) -> bool:
    """Whether the tables are as new as the newest row."""
    table = run.path / "samples.parquet"
    return table.is_file() and table.stat().st_mtime_ns >= run.rows.stat().st_mtime_ns


def _entropy_rows(rows: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    for row in rows:
        shared = {name: row[name] for name in ("cell", "model", "width", "height", "method")}
        for layer in row.get("entropy_layers") or ():
            fixed = {**shared, **{name: layer[name] for name in ("layer", "tokens", "train_tokens")}}
            gaps = layer.get("logit_gap") or [None] * len(layer["entropy"])
            for step, (value, gap) in enumerate(zip(layer["entropy"], gaps, strict=True)):
                yield {**fixed, "step": step, "entropy": value, "logit_gap": gap}


def _write(path: Path, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {"bool": pa.bool_()}
    table = pa.table(
        {
            name: pa.array([row.get(name) for row in rows], types.get(kind) or pa.type_for_alias(kind))
            for name, kind in columns.items()
        }
    )
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    write_whole(path, buffer.getvalue())
