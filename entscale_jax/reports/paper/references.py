"""What a run is compared with: its own pictures at the training size, another run's, a folder's, a Parquet file's."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...errors import UserError
from ...metrics.extractor import Extractor
from ...metrics.kernel import MOST
from ...metrics.moments import Moments, gather
from ..levels import find_levels
from ..records import Run, Size
from ..run_folder import read_run
from .features import FeatureSet, Group, gather_features
from .reference_pictures import Picture, Pictures, in_turn, open_pictures

BATCH = 512
"""Pictures whose features are made between two writings of their moments."""
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


def check_large_enough(reference: Reference, metric: str) -> None:
    """Raises UserError for no more pictures than features, whose covariance would tell of the count."""
    count, width = reference.moments.count, reference.moments.width
    if count <= width:
        raise UserError(
            f"{metric} needs a reference of more than {width} pictures, as many as there are features: "
            f"{reference.name} has {count}"
        )


def picture_reference(place: Path, extractor: Extractor, cache: Path, column: str = "image") -> Reference:
    """Pictures in a folder, or in a column of a Parquet file as encoded bytes.

    Moments are of all; kernel distances read `MOST` at random, always the same of as many pictures. What was seen of
    them is kept below `cache`, so that a stopped command goes on. Raises UserError for a place without pictures, for
    one that is no picture, and where `cache` can't be written.
    """
    pictures = open_pictures(place, column)
    chosen = np.random.default_rng(0).permutation(len(pictures))[:MOST]
    told = f"{pictures.identity} {extractor.identity}, in their order by {BATCH}"
    look = _Look(pictures, extractor, cache / hashlib.sha256(told.encode()).hexdigest()[:16], np.sort(chosen))
    with kept_below(look.folder):
        moments = look.moments()
        features = np.concatenate([look.kept(index) for index in np.unique(look.rows // BATCH).tolist()])
    name = f"{place.name} ({len(pictures)} pictures)"
    return Reference(name, moments, features[np.searchsorted(look.rows, chosen)])


@contextmanager
def kept_below(folder: Path) -> Iterator[None]:
    """Makes a folder for what was seen. Raises UserError where it can't be, or what is written there can't."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise UserError(
            f"folder {folder} can't be written ({error.strerror or error}): free its place, or copy the run to where "
            "it can"
        ) from error


@dataclass(frozen=True)
class _Look:
    """At pictures, by batches in their order; features of some are kept in `folder`."""

    pictures: Pictures
    extractor: Extractor
    folder: Path
    rows: np.ndarray
    """Numbers of the pictures whose features are kept, ascending."""

    def moments(self) -> Moments:
        turn = in_turn(self.pictures, BATCH)
        batches = -(-len(self.pictures) // BATCH)
        file = self.folder / "moments.npz"
        return gather(
            lambda index: self._see(index, turn(index)), batches, file, extractor=self.extractor.identity, every=1
        )

    def kept(self, index: int) -> np.ndarray:
        """What is kept of a batch, seen again where its file is missing or broken."""
        try:
            found = np.load(self._file(index))
        except (OSError, ValueError, EOFError):
            found = None
        if isinstance(found, np.ndarray) and found.shape == (len(self._within(index)), self.extractor.width):
            return found
        return self._see(index, in_turn(self.pictures, BATCH)(index))[self._within(index)]

    def _see(self, index: int, shown: Iterator[Picture]) -> np.ndarray:
        features = np.concatenate([self.extractor(one.pixels[None], batch=1) for one in shown])
        if len(within := self._within(index)):
            part = self._file(index).with_suffix(".part.npy")
            np.save(part, features[within])
            part.replace(self._file(index))
        return features

    def _within(self, index: int) -> np.ndarray:
        """Places in a batch of the pictures whose features are kept."""
        low, high = np.searchsorted(self.rows, [index * BATCH, (index + 1) * BATCH])
        return self.rows[low:high] - index * BATCH

    def _file(self, index: int) -> Path:
        return self.folder / f"{index:05d}.npy"


def _has(sets: Mapping[str, object]) -> str:
    return f"has features of {', '.join(sets)}" if sets else "has no features"
