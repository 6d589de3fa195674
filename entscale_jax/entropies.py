"""Mean entropy of self-attention by size and rule: its line against log N, and how far a rule brings it back.

E_T is a mean at the training size under rule `original`, E_N one at another size. All in nats.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float

from .scales import ScaleRule
from .statistics import Interval, bootstrap, bootstrap_mean

ORIGINAL = ScaleRule.ORIGINAL.value
SMALL_GAP = 0.01
"""Nats: of a layer whose entropy changed by less no share is told, as it would be a ratio of two noises."""
_PANEL_AREAS = (1 / 4, 9 / 4, 4)
"""Of the training size: half, one and a half and twice its sides."""

PixelSize = tuple[int, int]
"""(width, height) in pixels."""
Image = tuple[str, int]
"""A caption and a seed: what the images of several sizes and rules share."""


@dataclass(frozen=True)
class Line:
    """The least-squares line of mean entropy against log N."""

    slope: float
    intercept: float
    r_squared: float
    """NaN where all means are equal, so that there is nothing to explain."""

    def at(self, tokens: float) -> float:
        """Its entropy at N tokens."""
        return self.intercept + self.slope * math.log(tokens)


@dataclass(frozen=True, kw_only=True)
class EntropyPoint:
    """One size under one rule."""

    size: PixelSize
    method: str
    tokens: tuple[int, ...]
    """N of each layer."""
    images: Mapping[Image, tuple[float, ...]]
    """Mean entropy of each layer in each image; one image at least."""

    @property
    def finest(self) -> int:
        """N of the finest level that has self-attention."""
        return max(self.tokens)

    @property
    def label(self) -> str:
        """The size as it is written."""
        return size_text(self.size)

    @cached_property
    def layers(self) -> tuple[float, ...]:
        """Mean entropy of each layer over images."""
        return tuple(self.of([*self.images]).mean(axis=0).tolist())

    @cached_property
    def mean(self) -> Interval:
        """Over layers and images, with its interval over images."""
        return bootstrap_mean(self.of([*self.images]).mean(axis=1, keepdims=True))[0]

    @cached_property
    def layer_intervals(self) -> tuple[Interval, ...]:
        """Of each layer over images."""
        return bootstrap(self.of([*self.images]), lambda means: means)

    def of(self, images: Sequence[Image]) -> Float[np.ndarray, "images layers"]:
        """Mean entropy of each layer in these images."""
        return np.array([self.images[image] for image in images])


@dataclass(frozen=True, kw_only=True)
class EntropyStudy:
    """What was measured of one model."""

    model: str
    layers: tuple[str, ...]
    """In the order of the network."""
    train_tokens: tuple[int, ...]
    """T of each layer."""
    train_size: PixelSize | None
    """None where it is not known."""
    points: tuple[EntropyPoint, ...]
    undefined: frozenset[tuple[PixelSize, str]] = frozenset()
    """Sizes and methods that have no point since the rule has no value there."""

    @property
    def methods(self) -> list[str]:
        """In the order in which they were given."""
        return list(dict.fromkeys(point.method for point in self.points))

    @cached_property
    def sizes(self) -> list[PixelSize]:
        """From the fewest tokens to the most."""
        tokens = {point.size: (point.finest, point.size) for point in self.points}
        return sorted(tokens, key=lambda size: tokens[size])

    def at(self, size: PixelSize, method: str) -> EntropyPoint | None:
        """One point, if it was measured."""
        return next((point for point in self.points if (point.size, point.method) == (size, method)), None)

    def of(self, method: str) -> list[EntropyPoint]:
        """The points of a rule, in the order of `sizes`."""
        found = (self.at(size, method) for size in self.sizes)
        return [point for point in found if point is not None]

    @property
    def trained(self) -> EntropyPoint | None:
        """The point whose means are E_T, if it was measured."""
        return None if self.train_size is None else self.at(self.train_size, ORIGINAL)

    def line(self, method: str) -> Line | None:
        """Of one rule over its sizes; None for fewer than two token counts, through which no line is determined."""
        points = self.of(method)
        return fit_line([point.finest for point in points], [point.mean.mean for point in points])

    def line_intervals(self, method: str) -> tuple[Interval, Interval] | None:
        """Slope and intercept of a rule's line with their intervals over images, which all sizes share.

        None without a line, and where the sizes were not drawn of the same images.
        """
        points = self.of(method)
        images = _common(*points)
        if self.line(method) is None or any(len(point.images) > len(images) for point in points):
            return None
        tokens = [point.finest for point in points]
        values = np.stack([point.of(images).mean(axis=1) for point in points], axis=1)
        slope, intercept = bootstrap(values, lambda means: np.stack(least_squares(tokens, means), axis=-1))
        return slope, intercept

    def gap(self, point: EntropyPoint) -> Interval | None:
        """E_N - E_T by pairs of the same caption and seed; None where E_T is not known, and for E_T itself."""
        found = self._differences(point)
        return None if found is None else bootstrap_mean(found.mean(axis=1, keepdims=True))[0]

    def layer_gaps(self, point: EntropyPoint) -> tuple[Interval, ...] | None:
        """Likewise of each layer."""
        found = self._differences(point)
        return None if found is None else bootstrap(found, lambda means: means)

    def share(self, point: EntropyPoint) -> Interval | None:
        """The share of the gap under rule `original` that the point's rule brings back, over images that all drew.

        (E_N(original) - E_N) / (E_N(original) - E_T): 1 is all of it, above 1 it overshoots, below 0 it leads further
        away. None for rule `original` itself, and where the interval of the gap includes 0.
        """
        plain = self._plain(point)
        gap = None if plain is None else self.gap(plain)
        if gap is None or gap.holds_zero:
            return None
        shares = self._shares(point, lambda values: values.mean(axis=1, keepdims=True))
        return shares[0] if shares else None

    def layer_shares(self, point: EntropyPoint) -> tuple[Interval | None, ...]:
        """Likewise of each layer; None also where its gap is below `SMALL_GAP`."""
        plain = self._plain(point)
        gaps = None if plain is None else self.layer_gaps(plain)
        if gaps is None:
            return (None,) * len(self.layers)
        shares = self._shares(point, lambda values: values) or (None,) * len(gaps)
        known = [not gap.holds_zero and abs(gap.mean) >= SMALL_GAP for gap in gaps]
        return tuple(share if told else None for share, told in zip(shares, known, strict=True))

    def _differences(self, point: EntropyPoint) -> Float[np.ndarray, "images layers"] | None:
        """E_N - E_T of each layer in the images that both drew."""
        trained = self.trained
        if trained is None or point is trained:
            return None
        images = _common(point, trained)
        return point.of(images) - trained.of(images) if images else None

    def _shares(
        self, point: EntropyPoint, of: Callable[[Float[np.ndarray, "images layers"]], Float[np.ndarray, "images some"]]
    ) -> tuple[Interval, ...]:
        """Of what `of` makes of the layers; empty where no image was drawn of all three."""
        plain, trained = self._plain(point), self.trained
        images = [] if plain is None or trained is None else _common(plain, point, trained)
        if plain is None or trained is None or not images:
            return ()
        values = [of(one.of(images)) for one in (plain, point, trained)]

        def ratio(means: Float[np.ndarray, "... columns"]) -> Float[np.ndarray, "... some"]:
            now, scaled, then = np.split(means, 3, axis=-1)
            with np.errstate(divide="ignore", invalid="ignore"):
                return (now - scaled) / (now - then)

        return bootstrap(np.concatenate(values, axis=1), ratio)

    def _plain(self, point: EntropyPoint) -> EntropyPoint | None:
        return None if point.method == ORIGINAL else self.at(point.size, ORIGINAL)

    def panels(self) -> list[PixelSize]:
        """The sizes that Figure 6 shows: in tokens nearest to half, one and a half and twice the training size.

        Of equals the one nearest to a square; never a size of as many tokens as in training.
        """
        train = max(self.train_tokens)
        tokens = {point.size: point.finest for point in self.points if point.tokens != self.train_tokens}
        chosen = {
            min(tokens, key=lambda size: (abs(math.log(tokens[size] / train / area)), squareness(size)))
            for area in (_PANEL_AREAS if tokens else ())
        }
        return [size for size in self.sizes if size in chosen]


def fit_line(tokens: Sequence[int], entropy: Sequence[float]) -> Line | None:
    """The least-squares line of `entropy` against log `tokens`; None for fewer than two different counts."""
    if len(set(tokens)) < 2:
        return None
    values = np.asarray(entropy, np.float64)
    slope, intercept = map(float, least_squares(tokens, values))
    spread = float(((values - values.mean()) ** 2).sum())
    residuals = values - intercept - slope * np.log(tokens)
    return Line(slope, intercept, 1 - float(residuals @ residuals) / spread if spread > 0 else math.nan)


def least_squares(
    tokens: Sequence[int], entropy: Float[np.ndarray, "... sizes"]
) -> tuple[Float[np.ndarray, "..."], Float[np.ndarray, "..."]]:
    """Slope and intercept of each row of `entropy` against log `tokens`, of which two differ."""
    logs = np.log(tokens)
    centred = logs - logs.mean()
    slope = entropy @ centred / (centred @ centred)
    return slope, entropy.mean(axis=-1) - slope * logs.mean()


def _common(*points: EntropyPoint) -> list[Image]:
    """The images that all of them drew, in the order of the first."""
    return [image for image in points[0].images if all(image in point.images for point in points[1:])]


def size_text(size: PixelSize) -> str:
    """`WIDTHxHEIGHT`."""
    return f"{size[0]}x{size[1]}"


def squareness(size: PixelSize) -> float:
    """0 for a square, more the longer the one side is."""
    return abs(math.log(size[0] / size[1]))


def network_order(layer: str) -> tuple[tuple[bool, int, str], ...]:
    """Sorts paths of layers as data passes them: down, middle, up, in order by their letters too; numbers by value."""
    return tuple((False, int(part), "") if part.isdigit() else (True, 0, part) for part in layer.split("/"))
