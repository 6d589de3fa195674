"""From what a sweep says about prompts to the captions themselves."""

from collections.abc import Sequence
from pathlib import Path

from ..caption_file import read_caption_file
from ..errors import UserError
from .captioned import from_folder, from_parquet
from .spec import FolderPrompts, Metric, ParquetPrompts, Prompts, ScenePrompts, SweepSpec
from .spec_paths import input_path


def resolve_prompts(spec: SweepSpec, folder: Path) -> tuple[str, ...]:
    """The captions of a sweep, in order. Files are looked for in `folder`, the one of the sweep's own file.

    Raises UserError for a file that is missing or empty, for an unknown column, for fewer captions than are asked for,
    and for captions that the metric
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
        return from_parquet(prompts, folder)
    if isinstance(prompts, FolderPrompts):
        return from_folder(prompts, folder)
    if isinstance(prompts, str):
        return read_caption_file(input_path(folder, prompts))
    return prompts


def _check_scene_captions(captions: Sequence[str]) -> None:
    from ..metrics.captions import parse_caption

    for caption in captions:
        try:
            parse_caption(caption)
        except UserError as error:
            raise UserError(f"metric objects can't read the prompt {caption!r} ({error}): leave objects out") from error
