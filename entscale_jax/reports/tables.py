"""From a run to the lines of the report's tables: means with their intervals, differences of pairs, programs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..statistics import Interval, bootstrap_mean, interval
from .levels import Levels
from .records import LayerEntropy, Pair, Run, Sample, Size


@dataclass(frozen=True, kw_only=True)
class ObjectCounts:
    """What a set of images holds against its captions, or by how much two methods differ in that."""

    method: str
    exact: Interval
    """Per cent of the images; of a difference percentage points."""
    missing: Interval
    """Objects per image."""
    extra: Interval
    faults: Interval
    """Missing and extra together."""

    @property
    def reading(self) -> str:
        """Of a difference: what its intervals let one say."""
        words = (("exact", self.exact), ("missing", self.missing), ("extra", self.extra))
        shown = [f"{'more' if value.mean > 0 else 'fewer'} {name}" for name, value in words if not value.holds_zero]
        if not shown:
            return "all include 0"
        return ", ".join(shown) + ("; others include 0" if len(shown) < len(words) else "")

    @classmethod
    def of(cls, method: str, values: Sequence[tuple[float, float, float]]) -> "ObjectCounts":
        """From one (exact, missing, extra) per image."""
        columns = np.array(values, float)
        exact, missing, extra, faults = bootstrap_mean(np.column_stack([columns, columns[:, 1:].sum(axis=1)]))
        return cls(method=method, exact=exact.scaled(100.0), missing=missing, extra=extra, faults=faults)


@dataclass(frozen=True, kw_only=True)
class ObjectsTable:
    """The object counts of one size."""

    size: str
    is_control: bool
    counts: tuple[ObjectCounts, ...]
    baseline: str
    differences: tuple[ObjectCounts, ...]
    """Each other method minus the baseline, over the pairs of caption and seed that both drew."""

    def of(self, method: str) -> ObjectCounts | None:
        """The counts of a method; None where it drew nothing at this size."""
        return next((counts for counts in self.counts if counts.method == method), None)


@dataclass(frozen=True, kw_only=True)
class EntropyLine:
    """Mean entropy of a size at one level, in nats, by method."""

    size: str
    tokens: int
    train_tokens: int
    entropy: Mapping[str, float]
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    """The same with their 95% bootstrap intervals over images, where the entropy of each image is known."""

    @property
    def uniform(self) -> float:
        """log N, the entropy of attention that looks everywhere alike."""
        return math.log(self.tokens)

    @property
    def images(self) -> str:
        """How many each mean is of; from the fewest to the most where methods differ, `-` where it is not known."""
        counts = sorted({found.count for found in self.intervals.values()})
        return "-".join(str(count) for count in dict.fromkeys((counts[0], counts[-1]))) if counts else "-"

    def text(self, method: str) -> str:
        """The mean with its interval where that is known; `-` without a mean."""
        if method in self.intervals:
            return interval(self.intervals[method], 3)
        return f"{self.entropy[method]:.3f}" if method in self.entropy else "-"


@dataclass(frozen=True, kw_only=True)
class EntropyTable:
    """Mean entropy of self-attention of one model, over the layers of a level, steps and images."""

    model: str
    lines: tuple[EntropyLine, ...]

    @property
    def levels(self) -> list[int]:
        """The levels by their training tokens, finest first."""
        return sorted({line.train_tokens for line in self.lines}, reverse=True)

    @property
    def by_size(self) -> dict[str, list[EntropyLine]]:
        """The lines of each size, finest level first."""
        return {
            size: [line for line in self.lines if line.size == size]
            for size in dict.fromkeys(line.size for line in self.lines)
        }

    def at(self, train_tokens: int) -> list[EntropyLine]:
        """The lines of one level."""
        return [line for line in self.lines if line.train_tokens == train_tokens]


@dataclass(frozen=True, kw_only=True)
class ProgramLine:
    """Programs of one name, over all worker processes."""

    name: str
    needed: int | None
    """How many the drawn cells call for; None for programs that do not draw."""
    compiled: int
    cached: int
    seconds: float


def objects_tables(run: Run, levels: Mapping[Size, Levels]) -> list[ObjectsTable]:
    """A table a size; none where the run did not count objects."""
    return [table for size in run.sizes if (table := _objects_table(run, size, levels.get(size))).counts]


def entropy_tables(run: Run) -> list[EntropyTable]:
    """A table a model of which entropy was measured."""
    tables = (EntropyTable(model=model, lines=tuple(_entropy_lines(run, model))) for model in run.models)
    return [table for table in tables if table.lines]


def program_lines(run: Run) -> list[ProgramLine]:
    """Programs that workers made ready, by name; those that draw first."""
    names = {name: None for kind in ("programs", "other") for worker in run.programs for name in worker.get(kind, {})}
    return [_program_line(run, name) for name in names]


def _program_line(run: Run, name: str) -> ProgramLine:
    found = [worker.get(kind, {}).get(name) for kind in ("programs", "other") for worker in run.programs]
    counts = [count for count in found if count]
    needed = [worker["expected"][name] for worker in run.programs if name in worker.get("expected", {})]
    return ProgramLine(
        name=name,
        needed=sum(needed) if needed else None,
        compiled=sum(count["compiled"] for count in counts),
        cached=sum(count["cached"] for count in counts),
        seconds=sum(count["seconds"] for count in counts),
    )


def failed_cells(run: Run) -> list[Sample]:
    """Cells that ended in an error."""
    return [sample for sample in run.samples if sample.error is not None]


def flatten(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """A nested record as lines of name and text: `versions.jax`, `0.10.2`."""
    lines: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            lines += flatten(value, f"{prefix}{name}.")
        elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
            lines += flatten({str(index): item for index, item in enumerate(value)}, f"{prefix}{name}.")
        else:
            lines.append((prefix + name, _text(value)))
    return lines


def _objects_table(run: Run, size: Size, levels: Levels | None) -> ObjectsTable:
    counted = {method: _counted(run.of(size, method)) for method in run.methods}
    baseline, *others = run.methods
    pairs = {method: [pair for pair in counted[method] if pair in counted[baseline]] for method in others}
    differences = {
        method: [tuple(np.subtract(counted[method][pair], counted[baseline][pair])) for pair in pairs[method]]
        for method in others
    }
    return ObjectsTable(
        size=run.label(size),
        is_control=levels is not None and levels.is_control,
        counts=tuple(ObjectCounts.of(method, [*values.values()]) for method, values in counted.items() if values),
        baseline=baseline,
        differences=tuple(ObjectCounts.of(method, values) for method, values in differences.items() if values),
    )


def _counted(samples: Mapping[Pair, Sample]) -> dict[Pair, tuple[float, float, float]]:
    return {pair: sample.objects for pair, sample in samples.items() if sample.objects is not None}


def _entropy_lines(run: Run, model: str) -> list[EntropyLine]:
    layers: dict[tuple[Size, int, int], dict[str, list[LayerEntropy]]] = {}
    for record in run.entropy:
        key = record.size, record.train_tokens, record.tokens
        layers.setdefault(key, {}).setdefault(record.method, []).append(record)
    return [
        _entropy_line(str(size), tokens, train_tokens, layers[size, train_tokens, tokens])
        for size in run.sizes
        for _, train_tokens, tokens in sorted((key for key in layers if key[0] == size), reverse=True)
        if size.model == model
    ]


def _entropy_line(
    size: str, tokens: int, train_tokens: int, layers: Mapping[str, Sequence[LayerEntropy]]
) -> EntropyLine:
    """Of one level at one size; `layers` are those of each method."""
    intervals = {method: known for method, found in layers.items() if (known := _over_images(found))}
    return EntropyLine(
        size=size,
        tokens=tokens,
        train_tokens=train_tokens,
        entropy={method: float(np.mean([one.entropy for one in found])) for method, found in layers.items()},
        intervals=intervals,
    )


def _over_images(layers: Sequence[LayerEntropy]) -> Interval | None:
    """The mean over layers with its interval over the images of which all of them are known; None without any."""
    cells = [cell for cell in layers[0].images if all(cell in layer.images for layer in layers)]
    values = np.array([[np.mean([layer.images[cell] for layer in layers])] for cell in cells])
    return bootstrap_mean(values)[0] if cells else None


def _text(value: object) -> str:
    if value is None:
        return "unknown"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
