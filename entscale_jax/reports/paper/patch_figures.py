"""Patch-FID of a run: its kept pictures above the training size, cut into crops of that size, beside a reference's.

Nothing of it is measured while a run is drawn, so every run that kept its pictures can have it. What was seen of them
stays below the run's `patches/`, under a name made of the extractor, the crops and the pictures' hashes.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...errors import UserError
from ...metrics.extractor import Extractor
from ...metrics.figure import Figure
from ...metrics.moments import Moments, gather
from ...metrics.patches import Crops, crop_features, crop_identity, patch_fid
from ...weights.folder import describe
from ..levels import chosen_train_size
from ..records import Run, Sample, Size
from ..run_folder import read_run
from .features import Group
from .reference_pictures import Picture, decode_picture, in_turn, open_pictures
from .references import kept_below

PATCHES = ("scenes_patch_fid", "patch_fid")
"""Metrics made of crops, as a sweep's `metrics` has them."""
FOLDER = "patches"
AT_ONCE = 16
"""Pictures that are in memory at a time, with their crops."""
_ORIGINAL = "original"


class Cut(NamedTuple):
    """What an extractor saw of the crops of some pictures."""

    name: str
    moments: Moments
    pictures: int


def patch_figures(
    run: Run, open_extractor: Callable[[], Extractor], reference: Path | None = None, column: str = "image"
) -> Mapping[Group, Figure]:
    """Patch-FID of every size and method above the training size of its model; empty where no size is.

    Args:
        run: drawn, whole or in part.
        open_extractor: called where there is something to look at.
        reference: a folder of pictures, a Parquet file, or a run; None is the run's own pictures at the training size
            by rule `original`. Its pictures are cut likewise.
        column: of a Parquet file, the one with the pictures.

    Raises UserError for a picture that is missing or is not that of its row, and a reference that does not fit.
    """
    figures: dict[Group, Figure] = {}
    for model in run.models:
        crops = training_crops(run, model)
        groups = {(size, method): _drawn(run, size, method) for size in run.sizes for method in run.methods}
        groups = {group: found for group, found in groups.items() if group[0].model == model and found}
        wanted = {group: found for group, found in groups.items() if is_above(group[0], crops)}
        if not wanted:
            continue
        extractor = open_extractor()
        against = _reference(run, model, extractor, crops, reference, column)
        for group, samples in wanted.items():
            mine = _of_samples(run, samples, extractor, crops, run.folder / FOLDER)
            figures[group] = _figure(Cut("", mine, len(samples)), against, extractor, crops)
    return figures


def training_crops(run: Run, model: str) -> Crops:
    """Crops of the model's training size, which tile a picture from edge to edge."""
    height, width = describe(model, train_size=chosen_train_size(run), weights=False).train_size
    return Crops(height=height, width=width)


def is_above(size: Size, crops: Crops) -> bool:
    """Whether a picture holds a crop and is larger than it."""
    fits = size.height >= crops.height and size.width >= crops.width
    return fits and (size.height, size.width) != (crops.height, crops.width)


def _figure(mine: Cut, against: Cut, extractor: Extractor, crops: Crops) -> Figure:
    found = patch_fid(
        mine.moments,
        against.moments,
        extractor,
        crops,
        reference=against.name,
        pictures=mine.pictures,
        reference_pictures=against.pictures,
    )
    few = min(mine.moments.count, against.moments.count) <= extractor.width
    remark = f"some figures are of no more crops than {extractor.width} features, so their bias rules" if few else ""
    return replace(found, extractor=extractor.identity.partition(", resize ")[0], remark=remark)


def _reference(run: Run, model: str, extractor: Extractor, crops: Crops, place: Path | None, column: str) -> Cut:
    cache = run.folder / FOLDER
    if place is None:
        found = _own(run, model, extractor, crops, cache)
    elif (place / "spec.yaml").is_file():
        own = _own(read_run(place), model, extractor, crops, cache)
        found = own._replace(name=f"{place.name}, {own.name}")
    else:
        found = _of_place(place, column, extractor, crops, cache)
    if found.moments.count <= extractor.width:
        raise UserError(
            f"patch-FID needs a reference of more than {extractor.width} crops, as many as there are features: "
            f"{found.name} has {found.moments.count}"
        )
    return found


def _own(run: Run, model: str, extractor: Extractor, crops: Crops, cache: Path) -> Cut:
    size = Size(model, crops.width, crops.height)
    samples = _drawn(run, size, _ORIGINAL)
    if not samples:
        raise UserError(
            f"run {run.folder} has no pictures of {model} at {size}, its training size, by rule original to compare "
            "crops with: give --reference with a folder of pictures, a Parquet file or another run"
        )
    return Cut(f"its own pictures at {size}", _of_samples(run, samples, extractor, crops, cache), len(samples))


def _drawn(run: Run, size: Size, method: str) -> list[Sample]:
    samples = run.of(size, method).values()
    return sorted((sample for sample in samples if sample.error is None), key=lambda sample: sample.cell)


def _of_samples(run: Run, samples: Sequence[Sample], extractor: Extractor, crops: Crops, cache: Path) -> Moments:
    def batch(index: int) -> np.ndarray:
        first = index * AT_ONCE
        pictures = np.stack([_picture(run, sample) for sample in samples[first : first + AT_ONCE]])
        return crop_features(extractor, pictures, crops, first=first)

    return _gathered(batch, len(samples), [sample.sha256 for sample in samples], crop_identity(extractor, crops), cache)


def _of_place(place: Path, column: str, extractor: Extractor, crops: Crops, cache: Path) -> Cut:
    pictures = open_pictures(place, column)
    turn = in_turn(pictures, AT_ONCE)

    def batch(index: int) -> np.ndarray:
        shown = enumerate(turn(index), index * AT_ONCE)
        return np.concatenate([_crops_of(one, extractor, crops, number) for number, one in shown])

    moments = _gathered(batch, len(pictures), pictures.identity, crop_identity(extractor, crops), cache)
    return Cut(f"{place.name} ({len(pictures)} pictures)", moments, len(pictures))


def _crops_of(picture: Picture, extractor: Extractor, crops: Crops, number: int) -> np.ndarray:
    height, width = picture.pixels.shape[:2]
    if height < crops.height or width < crops.width:
        raise UserError(
            f"{picture.name} is {width}x{height}, and patch-FID cuts a reference into crops of the training size, "
            f"{crops.width}x{crops.height}: take smaller pictures out of the reference"
        )
    return crop_features(extractor, picture.pixels[None], crops, first=number)


def _gathered(
    batch: Callable[[int], np.ndarray], pictures: int, contents: object, identity: str, cache: Path
) -> Moments:
    """Moments of all batches, kept below `cache` under the name of what they are of, so that a stopped look goes on."""
    key = hashlib.sha256(json.dumps([identity, contents]).encode()).hexdigest()[:32]
    with kept_below(cache):
        return gather(batch, -(-pictures // AT_ONCE), cache / f"{key}.npz", extractor=identity, every=8)


def _picture(run: Run, sample: Sample) -> np.ndarray:
    """The picture of a row, held to its hash."""
    name = f"picture {sample.image} of run {run.folder}"
    try:
        data = (run.folder / str(sample.image)).read_bytes()
    except FileNotFoundError:
        raise UserError(
            f"{name} is missing, and patch-FID needs all of them: bring them home with entscale fetch, or draw again"
        ) from None
    found = hashlib.sha256(data).hexdigest()
    if sample.sha256 is None:
        raise UserError(f"{name} has no hash in its row to be held to: draw again, or leave patch-FID out")
    if found != sample.sha256:
        raise UserError(
            f"{name} has the SHA-256 {found[:12]}, and its row tells of {sample.sha256[:12]}: it was "
            "changed after it was drawn; bring it back, or draw again"
        )
    return decode_picture(data, name)
