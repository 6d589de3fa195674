"""Captions of large sets of pictures, as LAION's subsets come: a sample by its seed, read a part at a time."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import UserError
from .spec import FolderPrompts, ParquetPrompts, nearest
from .spec_paths import input_path

if TYPE_CHECKING:
    import pyarrow as pa

PICTURES = (".png", ".jpg", ".jpeg", ".webp")
ROWS_AT_ONCE = 2**12


def from_parquet(prompts: ParquetPrompts, folder: Path) -> list[str]:
    """The sample, in the order of the rows. Of a column no more than a batch is in memory.

    Rows without a text do not count. Raises UserError where there are fewer than `count`, and for what is no Parquet.
    """
    files = _parquet_files(folder, prompts.parquet)
    found = sum(len(texts) for texts in _texts(files, prompts.column))
    chosen = _sample(found, prompts.count, prompts.seed, files[0] if len(files) == 1 else files[0].parent)
    captions, start = [], 0
    for texts in _texts(files, prompts.column):
        first, end = np.searchsorted(chosen, [start, start + len(texts)])
        captions += texts.take(chosen[first:end] - start).to_pylist()
        start += len(texts)
    return captions


def from_folder(prompts: FolderPrompts, folder: Path) -> list[str]:
    """The sample, in the order of the pictures' paths. Only the captions that it takes are read.

    Raises UserError where fewer than `count` pictures have a caption, and for one that is empty or no text.
    """
    root = input_path(folder, prompts.folder)
    if not root.is_dir():
        raise UserError(
            f"prompts: {root} is no folder: give one of pictures, each with its caption in a .txt beside it"
        )
    files = sorted(_caption_files(root), key=Path.as_posix)
    chosen = _sample(len(files), prompts.count, prompts.seed, root)
    return [_read(input_path(folder, str(files[index]))) for index in chosen]


def _sample(found: int, count: int, seed: int, place: Path) -> "np.ndarray":
    """`count` of the numbers below `found`, in order."""
    if count > found:
        raise UserError(f"prompts: {place} has {found} captions and count is {count}: lower count")
    return np.sort(np.random.default_rng(seed).choice(found, count, replace=False))


def _parquet_files(folder: Path, name: str) -> list[Path]:
    path = input_path(folder, name)
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.glob("*.parquet") if not file.name.startswith("."))
    if not files:
        raise UserError(f"prompts: {path} holds no .parquet file: give a file, or a folder of them")
    return [input_path(folder, str(file)) for file in files]


def _texts(files: list[Path], column: str) -> "Iterator[pa.Array]":
    """The texts of a column without space around them, a batch of rows at a time; empty ones are left out."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    for path in files:
        try:
            with pq.ParquetFile(path) as file:
                _check_column(path, file.schema_arrow, column)
                for batch in file.iter_batches(ROWS_AT_ONCE, columns=[column]):
                    texts = pc.call_function("utf8_trim_whitespace", [batch.column(0).cast(pa.large_string())])
                    lengths = pc.call_function("utf8_length", [texts])
                    yield texts.filter(pc.call_function("greater", [lengths, pa.scalar(0, lengths.type)]))
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"prompts: {path} can't be read as Parquet: {str(error).splitlines()[0]}") from error


def _check_column(path: Path, schema: "pa.Schema", column: str) -> None:
    import pyarrow as pa

    if column not in schema.names:
        raise UserError(f"prompts: {path} has no column {column!r}: {nearest(column, schema.names)}")
    kind = schema.field(column).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        raise UserError(f"prompts: column {column!r} of {path} is of {kind}: name the one that holds the captions")


def _caption_files(root: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        split = [os.path.splitext(name) for name in names if not name.startswith(".")]
        pictures = {stem for stem, suffix in split if suffix.lower() in PICTURES}
        yield from (Path(place, stem + suffix) for stem, suffix in split if suffix == ".txt" and stem in pictures)


def _read(file: Path) -> str:
    try:
        caption = " ".join(file.read_text(encoding="utf-8").split())
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"prompts: {file} can't be read ({reason}): give a text file with the caption") from error
    if not caption:
        raise UserError(f"prompts: {file} is empty: write the caption there, or take its picture out of the folder")
    return caption
