"""What a run is compared with: its own pictures at the training size, another run's, a folder's, a Parquet file's."""

import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow.parquet as pq
from PIL import Image, UnidentifiedImageError

from ...errors import UserError
from ...metrics.extractor import Extractor
from ...metrics.kernel import MOST
from ...metrics.moments import Moments, gather
from ..levels import find_levels
from ..records import Run, Size
from ..run_folder import read_run
from .features import FeatureSet, Group, gather_features

BATCH = 64
"""Pictures whose features are made between two writings of their moments."""
ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_ORIGINAL = "original"


@dataclass(frozen=True)
class Reference:
    """Features of the pictures that others are compared with."""

    name: str
    moments: Moments
    features: np.ndarray
    """Those that kernel distances read, [count, width]."""
    own: Size | None = None
    """The run's own size that is the reference; what else it drew there starts from the same noise and is left out."""


def own_reference(run: Run, sets: Mapping[Group, FeatureSet], model: str) -> Reference:
    """The model's own pictures at its training size, drawn by rule `original`.

    Raises UserError where the run has none.
    """
    levels = find_levels(run)
    for group, found in sets.items():
        size, method = group
        if size.model == model and method == _ORIGINAL and size in levels and levels[size].is_control:
            return Reference(f"its own pictures at {size}", found.moments, found.features, size)
    raise UserError(
        f"run {run.folder} has no pictures of {model} at its training size by rule original to compare with: add that "
        "size to the sweep, or give --reference with a folder of pictures, a Parquet file or another run"
    )


def run_reference(folder: Path, extractor: str, model: str) -> Reference:
    """The pictures of another run at the training size by rule `original`, as `extractor` saw them.

    Raises UserError where it has none, or another extractor saw them.
    """
    run = read_run(folder)
    sets = gather_features(run)
    if extractor not in sets:
        raise UserError(
            f"reference {folder} {_has(sets)}, and the run those of {extractor}: draw both with the same one"
        )
    found = own_reference(run, sets[extractor], model)
    return Reference(f"{folder.name}, {found.name}", found.moments, found.features)


def picture_reference(place: Path, extractor: Extractor, cache: Path, column: str = "image") -> Reference:
    """Pictures in a folder, or in a column of a Parquet file as encoded bytes.

    What was seen of them is kept below `cache`, so that a stopped command goes on. Raises UserError for a place without
    pictures and for one that is no picture.
    """
    pictures = open_pictures(place, column)
    order = np.random.default_rng(0).permutation(len(pictures)).tolist()
    key = hashlib.sha256(f"{pictures.identity} {extractor.identity}".encode()).hexdigest()[:16]
    folder = cache / key
    folder.mkdir(parents=True, exist_ok=True)

    def batch(index: int) -> np.ndarray:
        file = folder / f"{index:05d}.npy"
        if file.exists():
            return np.load(file)
        chosen = order[index * BATCH : (index + 1) * BATCH]
        features = np.concatenate([extractor(picture[None], batch=1) for picture in pictures.read(chosen)])
        if index * BATCH < MOST:
            part = file.with_suffix(".part.npy")
            np.save(part, features)
            part.replace(file)
        return features

    batches = -(-len(pictures) // BATCH)
    moments = gather(batch, batches, folder / "moments.npz", extractor=extractor.identity, every=8)
    kept = [batch(index) for index in range(min(batches, -(-MOST // BATCH)))]
    return Reference(f"{place.name} ({len(pictures)} pictures)", moments, np.concatenate(kept)[:MOST])


class Pictures(Protocol):
    """Those of a folder or a Parquet file, each of its own size."""

    identity: str
    """Changes where a picture does."""

    def __len__(self) -> int: ...

    def read(self, chosen: Sequence[int]) -> Iterator[np.ndarray]:
        """uint8 [height, width, 3] each. Raises UserError for what is no picture."""
        ...


def open_pictures(place: Path, column: str) -> Pictures:
    """The pictures at a place. Raises UserError where there are none."""
    return _Parquet(place, column) if place.is_file() else _Folder(place)


def check_large_enough(reference: Reference, metric: str) -> None:
    """Raises UserError for no more pictures than features, whose covariance would tell of the count."""
    count, width = reference.moments.count, reference.moments.width
    if count <= width:
        raise UserError(
            f"{metric} needs a reference of more than {width} pictures, as many as there are features: "
            f"{reference.name} has {count}"
        )


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

    def read(self, chosen: Sequence[int]) -> Iterator[np.ndarray]:
        for index in chosen:
            yield decode_picture(self._files[index].read_bytes(), str(self._files[index]))


class _Parquet:
    def __init__(self, place: Path, column: str):
        try:
            self._file = pq.ParquetFile(place)
        except (OSError, ValueError) as error:
            raise UserError(
                f"--reference {place} is no Parquet file ({error}): give a folder, a Parquet or a run"
            ) from error
        if column not in self._file.schema_arrow.names:
            names = ", ".join(self._file.schema_arrow.names)
            raise UserError(f"--reference {place} has no column {column!r}: it has {names}")
        self._place, self._column = place, column
        counts = [self._file.metadata.row_group(index).num_rows for index in range(self._file.num_row_groups)]
        self._ends = np.cumsum(counts)
        self.identity = f"{place.stat().st_size} {place.stat().st_mtime_ns} {column} {place.name}"

    def __len__(self) -> int:
        return int(self._file.metadata.num_rows)

    def read(self, chosen: Sequence[int]) -> Iterator[np.ndarray]:
        groups = np.searchsorted(self._ends, chosen, side="right")
        columns: dict[int, list] = {}
        for index, group in zip(chosen, groups, strict=True):
            if group not in columns:
                columns[int(group)] = self._file.read_row_group(int(group), columns=[self._column])[0].to_pylist()
            start = 0 if group == 0 else int(self._ends[group - 1])
            value = columns[int(group)][int(index) - start]
            data = value.get("bytes") if isinstance(value, dict) else value
            yield decode_picture(data or b"", f"{self._place} row {index}")


def decode_picture(data: bytes, name: str) -> np.ndarray:
    """Bytes of a PNG or the like as uint8 [height, width, 3]. Raises UserError where they are none."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, UnidentifiedImageError) as error:
        raise UserError(f"{name} is no picture ({error}): remove it from what is compared") from error


def _has(sets: Mapping[str, object]) -> str:
    return f"has features of {', '.join(sets)}" if sets else "has no features"
