"""Patch-FID: pictures larger than in training judged by crops of the training size, so that nothing is resized away.

Source: Chai et al. 2022, "Any-resolution training for high-resolution image synthesis" (arXiv 2204.07156): real and
drawn pictures are cut at the same random scales and places, and FID is taken over the crops. Our choices: crops keep
the picture's own pixels (scale 1); each picture gives as many as its area holds; they tile it evenly, or a seed places
them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from jaxtyping import Float, Int, UInt8

from ..errors import UserError
from .extractor import Extractor, check_pictures
from .figure import Figure
from .frechet import fid
from .moments import Moments


class Places(StrEnum):
    """Where crops are cut."""

    GRID = "grid"
    """Evenly from edge to edge: without overlap where the size is a multiple of the crop's."""
    RANDOM = "random"
    """Uniformly, each picture by its own number and the seed."""


@dataclass(frozen=True, kw_only=True)
class Crops:
    """Crops of one size."""

    height: int
    width: int
    """In pixels."""
    places: Places = Places.GRID
    per_picture: int | None = None
    """At random; as many as the area holds if None."""
    seed: int = 0

    def __str__(self) -> str:
        how = self.places.value
        if self.places is Places.RANDOM:
            how += f" seed {self.seed}, {self.per_picture or 'area'} a picture"
        return f"{self.width}x{self.height} {how}"

    def corners(self, height: int, width: int, index: int = 0) -> Int[np.ndarray, "_crops 2"]:
        """Top and left of each crop of picture `index` of this size. Raises UserError where the picture is smaller."""
        if height < self.height or width < self.width:
            raise UserError(f"a picture of {width}x{height} has no crop of {self.width}x{self.height}: crop smaller")
        if self.places is Places.GRID:
            rows, columns = _evenly(height, self.height), _evenly(width, self.width)
            return np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1).reshape(-1, 2)
        count = self.per_picture or max(1, height * width // (self.height * self.width))
        rng = np.random.default_rng((self.seed, index))
        return rng.integers(0, (height - self.height + 1, width - self.width + 1), (count, 2))

    def cut(
        self, images: UInt8[np.ndarray, "batch _height _width 3"], *, first: int = 0
    ) -> Iterator[UInt8[np.ndarray, "_crops {self.height} {self.width} 3"]]:
        """The crops of each picture, of which the first has the number `first`."""
        check_pictures(images)
        height, width = images.shape[1:3]
        for index, image in enumerate(images, first):
            places = self.corners(height, width, index)
            yield np.stack([image[top : top + self.height, left : left + self.width] for top, left in places])


def crop_moments(
    extractor: Extractor, images: UInt8[np.ndarray, "batch _h _w 3"], crops: Crops, *, first: int = 0
) -> Moments:
    """Moments of the features of the crops of pictures, of which the first has the number `first` in its set.

    Pieces of a set merge to the whole, in any order.
    """
    return Moments.of(crop_features(extractor, images, crops, first=first), extractor=crop_identity(extractor, crops))


def crop_features(
    extractor: Extractor, images: UInt8[np.ndarray, "batch _h _w 3"], crops: Crops, *, first: int = 0
) -> Float[np.ndarray, "_crops _features"]:
    """Features of the crops of pictures, in their order; all crops are in memory at once."""
    pieces = [*crops.cut(images, first=first), np.zeros((0, crops.height, crops.width, 3), np.uint8)]
    return extractor(np.concatenate(pieces))


def crop_identity(extractor: Extractor, crops: Crops) -> str:
    """Names weights, resize and crops: features of equal identities compare."""
    return f"{extractor.identity}, crops {crops}"


def patch_fid(
    first: Moments,
    second: Moments,
    extractor: Extractor,
    crops: Crops,
    *,
    reference: str,
    pictures: int = 0,
    reference_pictures: int = 0,
) -> Figure:
    """The Frechet distance between crops of pictures (`first`) and of the reference, both by `crop_moments`.

    `pictures` and `reference_pictures` are how many the crops are of, where that is known. It has no interval: it is
    biased, and crops of one picture depend on each other. Raises UserError for moments of other extractors or crops.
    """
    name = f"{extractor.name}_patch_fid".lstrip("_")
    return Figure(
        name=name,
        value=fid(first, second),
        count=first.count,
        reference=reference,
        reference_count=second.count,
        pictures=pictures,
        reference_pictures=reference_pictures,
        resize=extractor.resize,
        crop=str(crops),
        extractor=extractor.hash,
        remark="counts are of crops",
    )


def _evenly(size: int, crop: int) -> Int[np.ndarray, "_places"]:
    """Starts of the fewest crops that cover `size`, from edge to edge."""
    count = -(-size // crop)
    return np.rint(np.linspace(0, size - crop, count)).astype(np.int64)
