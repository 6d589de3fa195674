"""Reads what a sweep left in its run folder, finished or not; the only module of the report that knows the files."""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from ..buckets import parse_size
from ..errors import UserError
from .records import BucketSeconds, LayerEntropy, Run, Sample, Size, Undefined


def read_run(folder: Path) -> Run:
    """The run in `folder`. Its rows count; the tables made of them serve where the rows were removed.

    Raises UserError where there is no run, no row yet, or a broken file.
    """
    spec_file = folder / "spec.yaml"
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
    return Run(
        folder=folder,
        spec=spec["sweep"],
        weights=spec.get("weights", {}),
        spec_text=spec_text,
        environment=_read_json(folder / "environment.json") or {},
        samples=tuple(_sample(row) for row in rows),
        entropy=tuple(_layer_entropy(rows)) or tuple(_layer_entropy_of_table(folder / "entropy.parquet")),
        seconds=tuple(_bucket_seconds(entry) for entry in programs.get("buckets", ())),
        programs=tuple(programs.get("workers", ())),
        train_entropy=spec.get("train_entropy", {}),
        undefined=tuple(_undefined(entry) for entry in spec.get("undefined", ())),
    )


def _read_rows(folder: Path) -> list[Mapping[str, Any]]:
    rows = [_read_json(path) for path in sorted((folder / "rows").glob("*.json"))]
    if rows:
        return rows
    table = _read_table(folder / "samples.parquet")
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
    )


def _layer_entropy(rows: Sequence[Mapping[str, Any]]) -> Iterator[LayerEntropy]:
    """The means over images and steps that the run's tables would give."""
    entropies: dict[tuple[Size, str, str, int, int], list[float]] = defaultdict(list)
    gaps: dict[tuple[Size, str, str, int, int], list[float]] = defaultdict(list)
    for row in rows:
        for layer in row.get("entropy_layers") or ():
            key = _size(row), row["method"], layer["layer"], layer["tokens"], layer["train_tokens"]
            entropies[key].extend(layer["entropy"])
            gaps[key].extend(layer.get("logit_gap", ()))
    for key, found in entropies.items():
        size, method, layer, tokens, train_tokens = key
        yield LayerEntropy(
            size=size,
            method=method,
            layer=layer,
            tokens=tokens,
            train_tokens=train_tokens,
            entropy=fmean(found),
            logit_gap=fmean(gaps[key]) if gaps[key] else None,
        )


def _layer_entropy_of_table(path: Path) -> Iterator[LayerEntropy]:
    keys = ["model", "width", "height", "method", "layer", "tokens", "train_tokens"]
    table = _read_table(path)
    if table is None:
        return
    if "logit_gap" not in table.column_names:
        table = table.append_column("logit_gap", pa.nulls(table.num_rows, pa.float32()))
    for row in table.group_by(keys).aggregate([("entropy", "mean"), ("logit_gap", "mean")]).to_pylist():
        yield LayerEntropy(
            size=_size(row),
            method=row["method"],
            layer=row["layer"],
            tokens=row["tokens"],
            train_tokens=row["train_tokens"],
            entropy=row["entropy_mean"],
            logit_gap=row["logit_gap_mean"],
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
