"""Reads what a sweep left in its run folder, finished or not; the only module of the report that knows the files."""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import fsum
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from ..buckets import parse_size
from ..errors import UserError
from ..row_choice import choose_rows
from .records import BucketSeconds, LayerEntropy, Run, Sample, Size, Undefined

PART = "part"
_COSINES = ("clip", "scenes_clip")
_LAYER_COLUMNS = ["model", "width", "height", "method", "layer", "tokens", "train_tokens"]


def read_run(folder: Path) -> Run:
    """The run in `folder`. Its rows count; the tables made of them serve where the rows were removed.

    Raises UserError where there is no run, no row yet, or a broken file.
    """
    spec_file = folder / "spec.yaml"
    scheme, _, rest = str(folder).partition(":/")
    if scheme in ("s3", "gs", "gcs"):
        raise UserError(f"the run is not on this machine: bring it home with `entscale fetch {scheme}://{rest}`")
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: give the run folder that `entscale sweep` wrote")
    if not spec_file.is_file():
        raise UserError(f"{folder} holds no spec.yaml, so it is no run: give the folder that `entscale sweep` wrote")
    rows = _read_rows(folder)
    if not rows:
        raise UserError(
            f"run {folder} has no finished cell yet: go on with `entscale sweep {spec_file} --out {folder}`"
        )
    try:
        return _make_run(folder, spec_file, rows)
    except KeyError as error:
        raise UserError(
            f"{folder} holds a record without {error}: written by another version? Draw again with --no-resume"
        ) from error


def _make_run(folder: Path, spec_file: Path, rows: Sequence[Mapping[str, Any]]) -> Run:
    spec_text = spec_file.read_text(encoding="utf-8")
    spec = _read_spec(spec_file, spec_text)
    programs = _read_json(folder / "programs.json") or {}
    recorded = [entry for entry in programs.get("buckets", ()) if entry.get("memory")]
    later = _read_json(folder / "memory.json") or {}
    again = [entry for entry in later.get("buckets", ()) if entry.get("memory")]
    return Run(
        folder=folder,
        spec=spec["sweep"],
        weights=spec.get("weights", {}),
        spec_text=spec_text,
        environment=_read_json(folder / "environment.json") or {},
        samples=tuple(_sample(row) for row in rows),
        entropy=tuple(_entropy(folder, rows)),
        seconds=tuple(_bucket_seconds(entry) for entry in programs.get("buckets", ())),
        programs=tuple(programs.get("workers", ())),
        train_entropy=spec.get("train_entropy", {}),
        undefined=tuple(_undefined(entry) for entry in spec.get("undefined", ())),
        memory=(*recorded, *again),
        memory_made=later.get("made", {}) if again else {},
        parts={row["cell"]: row[PART].name for row in rows if PART in row},
    )


def _read_rows(folder: Path) -> list[Mapping[str, Any]]:
    """A row a cell, in the order of their ids; those of parts with PART, the file that they were read from."""
    # Loose rows first: a sweep that goes on gathers them into parts meanwhile, and removes them.
    loose = [_read_json(path) for path in sorted((folder / "rows").glob("*.json"))]
    rows = [{**row, PART: path} for path in _parts(folder) for row in _read_part(path)]
    rows += [row for row in loose if row is not None]
    if rows:
        chosen = choose_rows((row["cell"], row.get("error") is not None) for row in rows)
        return [rows[position] for _, position in sorted(chosen.items())]
    table = _read_table(folder / "samples.parquet")
    return [] if table is None else table.to_pylist()


def _parts(folder: Path) -> list[Path]:
    return sorted((folder / "samples").glob("part-*.parquet"))


def _read_part(path: Path) -> list[dict[str, Any]]:
    table = _read_table(path)
    return [] if table is None else table.to_pylist()


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be read ({error}): remove it and give the sweep's command again") from error


def _read_table(path: Path) -> pa.Table | None:
    try:
        return pq.read_table(path)
    except FileNotFoundError:
        return None
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} can't be read ({error}): remove it and give the sweep's command again") from error


def _read_spec(path: Path, text: str) -> Mapping[str, Any]:
    try:
        spec = yaml.safe_load(text)
        missing = {"models", "sizes", "methods", "prompts", "seeds"} - set(spec["sweep"])
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise UserError(f"{path} describes no sweep: give the folder that `entscale sweep` wrote") from error
    if missing:
        raise UserError(f"{path} lacks {', '.join(sorted(missing))}: give the folder that `entscale sweep` wrote")
    return spec


def _undefined(entry: Mapping[str, Any]) -> Undefined:
    size = Size(entry["model"], *parse_size(entry["size"]))
    return Undefined(size=size, method=entry["method"], reason=entry["reason"])


def _size(row: Mapping[str, Any]) -> Size:
    return Size(row["model"], row["width"], row["height"])


def _sample(row: Mapping[str, Any]) -> Sample:
    exact = row.get("objects_exact")
    counted = (float(exact), float(row["objects_missing"]), float(row["objects_extra"])) if exact is not None else None
    return Sample(
        cell=row["cell"],
        size=_size(row),
        method=row["method"],
        prompt=row["prompt"],
        seed=row["seed"],
        image=row.get("image"),
        objects=counted,
        entropy=row.get("entropy"),
        error=row.get("error"),
        seconds=row.get("seconds"),
        clip={name: row[name] for name in _COSINES if row.get(name) is not None},
        scorers={name: scorer for name in _COSINES if (scorer := row.get(f"{name}_scorer")) is not None},
        sha256=row.get("sha256"),
    )


_LayerKey = tuple[Size, str, str, int, int]
"""Size, method, layer, tokens, and tokens at the training size."""


@dataclass
class _Sums:
    """Of a layer's entropies and gaps, and of the entropies of each cell with their count."""

    gap: float = 0.0
    gaps: int = 0
    cells: dict[str, tuple[float, int]] = field(default_factory=dict)

    def add(self, cell: str, entropy: float, entropies: int, gap: float | None, gaps: int) -> None:
        self.gap += gap or 0.0
        self.gaps += gaps
        self.cells[cell] = entropy, entropies

    @property
    def entropy(self) -> float:
        return fsum(total for total, _ in self.cells.values()) / sum(count for _, count in self.cells.values())


def _entropy(folder: Path, rows: Sequence[Mapping[str, Any]]) -> Iterator[LayerEntropy]:
    """The means over images and steps: of rows and parts where there are any with entropy, else of the run's table."""
    sums: dict[_LayerKey, _Sums] = defaultdict(_Sums)
    _add_rows(sums, rows)
    cells: dict[Path, list[str]] = defaultdict(list)
    for row in rows:
        if PART in row:
            cells[row[PART]].append(row["cell"])
    for part, mine in cells.items():
        _add_table(sums, _read_table(folder / "entropy" / part.name), mine)
    if not sums:
        _add_table(sums, _read_table(folder / "entropy.parquet"))
    for (size, method, layer, tokens, train_tokens), found in sums.items():
        yield LayerEntropy(
            size=size,
            method=method,
            layer=layer,
            tokens=tokens,
            train_tokens=train_tokens,
            entropy=found.entropy,
            logit_gap=found.gap / found.gaps if found.gaps else None,
            images={cell: total / count for cell, (total, count) in found.cells.items()},
        )


def _add_rows(sums: dict[_LayerKey, _Sums], rows: Sequence[Mapping[str, Any]]) -> None:
    for row in rows:
        for layer in row.get("entropy_layers") or ():
            key = _size(row), row["method"], layer["layer"], layer["tokens"], layer["train_tokens"]
            gaps = layer.get("logit_gap", ())
            sums[key].add(row["cell"], fsum(layer["entropy"]), len(layer["entropy"]), fsum(gaps), len(gaps))


def _add_table(sums: dict[_LayerKey, _Sums], table: pa.Table | None, cells: Sequence[str] | None = None) -> None:
    """Adds a table's layers, of all its cells or of some."""
    if table is None:
        return
    known = table
    if "logit_gap" not in known.column_names:
        known = known.append_column("logit_gap", pa.nulls(known.num_rows, pa.float32()))
    if cells is not None:
        known = known.filter(cast(Any, pc).is_in(known["cell"], value_set=pa.array(cells, pa.string())))
    wanted = [(name, how) for name in ("entropy", "logit_gap") for how in ("sum", "count")]
    for row in known.group_by([*_LAYER_COLUMNS, "cell"], use_threads=False).aggregate(wanted).to_pylist():
        key = _size(row), row["method"], row["layer"], row["tokens"], row["train_tokens"]
        sums[key].add(
            row["cell"], row["entropy_sum"], row["entropy_count"], row["logit_gap_sum"], row["logit_gap_count"]
        )


def _bucket_seconds(entry: Mapping[str, Any]) -> BucketSeconds:
    return BucketSeconds(
        size=_size(entry),
        method=entry["method"],
        batch=entry["batch"],
        images=entry["images"],
        compile_seconds=entry["compile_seconds"],
        steady_seconds=entry["steady_seconds"],
    )
