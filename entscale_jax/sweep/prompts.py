"""From what a sweep says about prompts to the captions themselves."""

from collections.abc import Sequence
from pathlib import Path

from ..caption_file import read_caption_file
from ..errors import UserError
from .spec import Metric, ParquetPrompts, Prompts, ScenePrompts, SweepSpec, nearest
from .spec_paths import input_path


def resolve_prompts(spec: SweepSpec, folder: Path) -> tuple[str, ...]:
    """The captions of a sweep, in order. Files are looked for in `folder`, the one of the sweep's own file.

    Raises UserError for a file that is missing or empty, for an unknown column, and for captions that the metric
    `objects` can't read.
    """
    captions = tuple(_captions(spec.prompts, folder))
    if not captions:
        raise UserError("prompts is empty: give one caption or more")
    if Metric.OBJECTS in spec.metrics:
        _check_scene_captions(captions)
    return captions


def _captions(prompts: Prompts, folder: Path) -> Sequence[str]:
    if isinstance(prompts, ScenePrompts):
        from ..scenes.captions import balanced_captions

        return balanced_captions(prompts.scenes, prompts.seed)
    if isinstance(prompts, ParquetPrompts):
        return _from_parquet(prompts, folder)
    if isinstance(prompts, str):
        return read_caption_file(input_path(folder, prompts))
    return prompts


def _from_parquet(prompts: ParquetPrompts, folder: Path) -> list[str]:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = input_path(folder, prompts.parquet)
    try:
        known = pq.read_schema(path).names
        if prompts.column not in known:
            raise UserError(f"prompts: {path} has no column {prompts.column!r}: {nearest(prompts.column, known)}")
        column = pq.read_table(path, columns=[prompts.column]).column(0).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"prompts: {path} can't be read as Parquet: {str(error).splitlines()[0]}") from error
    captions = [value.strip() for value in column if isinstance(value, str) and value.strip()]
    if prompts.count > len(captions):
        raise UserError(f"prompts: {path} has {len(captions)} captions and count is {prompts.count}: lower count")
    chosen = np.random.default_rng(prompts.seed).choice(len(captions), prompts.count, replace=False)
    return [captions[index] for index in sorted(chosen.tolist())]


def _check_scene_captions(captions: Sequence[str]) -> None:
    from ..metrics.captions import parse_caption

    for caption in captions:
        try:
            parse_caption(caption)
        except UserError as error:
            raise UserError(f"metric objects can't read the prompt {caption!r} ({error}): leave objects out") from error
