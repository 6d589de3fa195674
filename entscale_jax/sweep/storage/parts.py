"""Rows as Parquet: the columns of a run's tables, and the parts into which rows are gathered while it goes on.

Part N is `samples/part-N.parquet`; where entropy was measured, `entropy/part-N.parquet` with a row a layer and step;
and where features were, `features/part-N.parquet` with a row a cell and extractor. The first is written last, so that
a part that is there is complete.
"""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

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
    "scenes_clip": "float32",
    "clip": "float32",
    "scenes_clip_scorer": "string",
    "clip_scorer": "string",
    "sha256": "string",
    "error": "string",
}
"""Columns of `samples.parquet` and their types. Null stands for what was not measured; `sha256` is of the PNG.

What named the scorer of a cosine (weights, resize and crop) is null in rows of runs that were drawn before it was kept.
"""

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

FEATURES = {"cell": "string", "extractor": "string", "features": "float32[]"}
"""Columns of parts of features: what named the extractor (weights and resize), and what it saw."""

POSITION = "position"
"""In parts of entropy alone: the place of the cell in the plan, by which the parts' rows are sorted."""
ROW_GROUP = 2**16
_OF_A_CELL = ("cell", "model", "width", "height", "method")
_OF_A_LAYER = ("layer", "tokens", "train_tokens")


def samples_name(number: int) -> str:
    """The part's file with the rows of cells."""
    return f"samples/part-{number:05d}.parquet"


def entropy_name(number: int) -> str:
    """The part's file with the rows of layers and steps."""
    return f"entropy/part-{number:05d}.parquet"


def features_name(number: int) -> str:
    """The part's file with what extractors saw."""
    return f"features/part-{number:05d}.parquet"


def part_number(name: str) -> int | None:
    """The number of a part's file; None for another file."""
    stem = name.rsplit("/", 1)[-1].removeprefix("part-").removesuffix(".parquet")
    return int(stem) if stem.isdigit() else None


def samples_table(rows: Sequence[Mapping[str, Any]]) -> "pa.Table":
    """The rows' columns of SAMPLES."""
    return _table({name: [row.get(name) for row in rows] for name in SAMPLES}, SAMPLES)


def entropy_table(rows: Sequence[Mapping[str, Any]], order: Mapping[str, int]) -> "pa.Table":
    """The entropy of rows of cells as ENTROPY with POSITION, sorted by `order`, the place of each cell in the plan."""
    values: dict[str, list[Any]] = {name: [] for name in (*_OF_A_CELL, *_OF_A_LAYER, POSITION)}
    steps: dict[str, list[Any]] = {"step": [], "entropy": [], "logit_gap": []}
    counts: list[int] = []
    for row in sorted(rows, key=lambda row: order[row["cell"]]):
        for layer in row.get("entropy_layers") or ():
            count = len(layer["entropy"])
            for name in _OF_A_CELL:
                values[name].append(row[name])
            for name in _OF_A_LAYER:
                values[name].append(layer[name])
            values[POSITION].append(order[row["cell"]])
            steps["step"].extend(range(count))
            steps["entropy"].extend(layer["entropy"])
            steps["logit_gap"].extend(layer.get("logit_gap") or [None] * count)
            counts.append(count)
    kinds = {**ENTROPY, POSITION: "int32"}
    layers = _table(values, {name: kinds[name] for name in values})
    repeated = layers.take(np.repeat(np.arange(len(counts)), counts))
    each = _table(steps, {name: kinds[name] for name in steps})
    for name in each.column_names:
        repeated = repeated.append_column(name, each[name])
    return repeated.select([*ENTROPY, POSITION])


def features_table(rows: Sequence[Mapping[str, Any]]) -> "pa.Table":
    """The features of rows of cells as FEATURES."""
    values: dict[str, list[Any]] = {name: [] for name in FEATURES}
    for row in rows:
        for extractor, features in (row.get("features") or {}).items():
            for name, value in zip(FEATURES, (row["cell"], extractor, features), strict=True):
                values[name].append(value)
    return _table(values, FEATURES)


def _table(columns: Mapping[str, Sequence[Any]], kinds: Mapping[str, str]) -> "pa.Table":
    import pyarrow as pa

    return pa.table({name: pa.array(columns[name], arrow_type(kind)) for name, kind in kinds.items()})


def arrow_type(kind: str) -> "pa.DataType":
    """The Arrow type of a kind of SAMPLES, ENTROPY or FEATURES."""
    import pyarrow as pa

    if kind.endswith("[]"):
        return pa.list_(arrow_type(kind.removesuffix("[]")))
    return pa.bool_() if kind == "bool" else pa.type_for_alias(kind)


def encode(table: "pa.Table") -> bytes:
    """The table as a Parquet file."""
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=ROW_GROUP)
    return buffer.getvalue()


def decode(data: bytes, columns: Sequence[str] | None = None) -> "pa.Table":
    """The table in a Parquet file, or some of its columns; one of SAMPLES that an older file lacks is null."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(pa.BufferReader(data)) as file:
        if columns is None:
            return file.read()
        there = file.schema_arrow.names
        table = file.read([name for name in columns if name in there])
    for name in columns:
        if name not in there:
            table = table.append_column(name, pa.nulls(table.num_rows, arrow_type(SAMPLES[name])))
    return table.select(list(columns))
