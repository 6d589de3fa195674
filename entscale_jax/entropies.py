"""Mean entropy of self-attention by size and rule: its line against log N, and how far a rule brings it back.

E_T is a mean at the training size under rule `original`, E_N one at another size. All in nats.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .scales import ScaleRule
from .statistics import Interval, bootstrap_mean

ORIGINAL = ScaleRule.ORIGINAL.value
SMALL_GAP = 0.01
"""Nats: of a layer whose entropy changed by less no share is told, as it would be a ratio of two noises."""
_PANEL_AREAS = (1 / 4, 9 / 4, 4)
"""Of the training size: half, one and a half and twice its sides."""

PixelSize = tuple[int, int]
"""(width, height) in pixels."""


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
    layers: tuple[float, ...]
    """Mean entropy of each layer."""
    images: Mapping[tuple[str, int], float]
    """Caption and seed -> mean entropy over layers."""
    by_image: tuple[tuple[float, ...], ...] = ()
    """Mean entropy of each layer, image by image; empty where only the means are known."""

    @property
    def finest(self) -> int:
        """N of the finest level that has self-attention."""
        return max(self.tokens)

    @property
    def label(self) -> str:
        """The size as it is written."""
        return size_text(self.size)

    @cached_property
    def mean(self) -> Interval:
        """Over layers and images, with its interval over images."""
        return bootstrap_mean(np.array([*self.images.values()])[:, None])[0]

    @cached_property
    def layer_intervals(self) -> tuple[Interval, ...]:
        """Of each layer over images; empty where only the means are known."""
        values = np.array(self.by_image)
        # A few columns at a time: thousands of images of all layers at once, resampled, would need a gigabyte.
        blocks = (values[:, start : start + 4] for start in range(0, values.shape[-1], 4))
        return tuple(found for block in blocks for found in bootstrap_mean(block)) if self.by_image else ()

    def less(self, other: "EntropyPoint") -> Interval | None:
        """The mean difference over the captions and seeds that both drew; None where there are none."""
        pairs = [pair for pair in self.images if pair in other.images]
        differences = [self.images[pair] - other.images[pair] for pair in pairs]
        return bootstrap_mean(np.array(differences)[:, None])[0] if pairs else None


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

    def gap(self, point: EntropyPoint) -> Interval | None:
        """E_N - E_T by pairs of the same caption and seed; None where E_T is not known, and for E_T itself."""
        if self.trained is None or point is self.trained:
            return None
        return point.less(self.trained)

    def share(self, point: EntropyPoint) -> float | None:
        """The share of the gap under rule `original` that the point's rule brings back.

        (E_N(original) - E_N) / (E_N(original) - E_T): 1 is all of it, above 1 it overshoots, below 0 it leads further
        away. None for rule `original` itself, and where the interval of the gap includes 0.
        """
        plain = self._plain(point)
        gap = None if plain is None else self.gap(plain)
        if plain is None or gap is None or gap.holds_zero:
            return None
        return (plain.mean.mean - point.mean.mean) / gap.mean

    def layer_share(self, point: EntropyPoint, index: int) -> float | None:
        """Likewise of one layer; None where its gap is below `SMALL_GAP`."""
        plain, trained = self._plain(point), self.trained
        if plain is None or trained is None:
            return None
        gap = plain.layers[index] - trained.layers[index]
        return (plain.layers[index] - point.layers[index]) / gap if abs(gap) >= SMALL_GAP else None

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
    logs, values = np.log(tokens), np.asarray(entropy, np.float64)
    centred = logs - logs.mean()
    slope = float(centred @ values / (centred @ centred))
    intercept = float(values.mean() - slope * logs.mean())
    spread = float(((values - values.mean()) ** 2).sum())
    residuals = values - intercept - slope * logs
    return Line(slope, intercept, 1 - float(residuals @ residuals) / spread if spread > 0 else math.nan)


def size_text(size: PixelSize) -> str:
    """`WIDTHxHEIGHT`."""
    return f"{size[0]}x{size[1]}"


def squareness(size: PixelSize) -> float:
    """0 for a square, more the longer the one side is."""
    return abs(math.log(size[0] / size[1]))


def network_order(layer: str) -> tuple[tuple[bool, int, str], ...]:
    """Sorts paths of layers as data passes them: down, middle, up, in order by their letters too; numbers by value."""
    return tuple((False, int(part), "") if part.isdigit() else (True, 0, part) for part in layer.split("/"))
