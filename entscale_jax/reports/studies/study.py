"""The numbers of a study: what the rules and any multiplier do to the objects in scenes, beside true drawings."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

import numpy as np

from ...errors import UserError
from ...metrics.objects import compare
from ...scales import ScaleRule, Scaling
from ...scenes.draw import draw_scene
from ..levels import Levels, find_levels
from ..records import Pair, Run, Size
from ..tables import ObjectCounts

ORIGINAL, ENTROPY, CALIBRATED = (rule.value for rule in (ScaleRule.ORIGINAL, ScaleRule.ENTROPY, ScaleRule.CALIBRATED))
RULES = (ORIGINAL, ENTROPY, CALIBRATED)
TRUTH = "true drawings"

Counts = dict[Pair, tuple[float, float, float]]
"""Caption and seed -> exact (1 or 0), missing, extra."""


class Scope(StrEnum):
    """The levels of the UNet that a multiplier acts on; the others keep 1."""

    ALL = "all levels"
    FINEST = "the finest level alone"
    OTHERS = "the other levels alone"


@dataclass(frozen=True, kw_only=True)
class Curve:
    """What multipliers of `1 / sqrt(d)` do at one size, over the captions that were drawn under each of them."""

    points: Mapping[float, ObjectCounts]
    """In ascending order. Multiplier 1 is rule `original`."""
    rule: float
    """The multiplier of rule `entropy` on the levels of this curve; of several levels the finest one's."""
    entropy: ObjectCounts | None
    """Rule `entropy` over the same captions."""
    gains: Mapping[float, ObjectCounts]
    """Each multiplier but 1 less multiplier 1, by pairs."""

    @property
    def best(self) -> float:
        """The multiplier with the fewest faults, of equals the one nearest to 1."""
        return min(self.points, key=lambda value: (self.points[value].faults.mean, abs(math.log(value))))

    def at(self, multiplier: float) -> tuple[float, float, float]:
        """Exact (%), missing, extra there: between the points by a straight line over the multiplier's logarithm."""
        logs = [math.log(value) for value in self.points]
        found = [(counts.exact.mean, counts.missing.mean, counts.extra.mean) for counts in self.points.values()]
        exact, missing, extra = (
            float(np.interp(math.log(multiplier), logs, column)) for column in zip(*found, strict=True)
        )
        return exact, missing, extra


@dataclass(frozen=True, kw_only=True)
class SizeStudy:
    """What was found at one size."""

    size: Size
    levels: Levels
    rules: Mapping[str, ObjectCounts]
    """`original`, `entropy`, `calibrated` and `true drawings`, as far as they were drawn."""
    beyond_truth: Mapping[str, ObjectCounts]
    """Each rule less the true drawings of the same captions."""
    effect: ObjectCounts | None
    """`entropy` less `original`, by pairs of caption and seed."""
    of_calibrated: Mapping[str, ObjectCounts]
    """Rule `calibrated` less each of the other two, likewise, as far as they were drawn."""
    curves: Mapping[Scope, Curve]

    @property
    def area(self) -> float:
        """Tokens of the finest level now over those in training."""
        return self.levels.tokens[0] / self.levels.train_tokens[0]

    @property
    def name(self) -> str:
        """The size, and what it is to the training size."""
        named = {0.25: "half the training size", 1.0: "the training size", 4.0: "twice the training size"}
        shape = named.get(self.area)
        return f"{self.size} ({shape})" if shape else str(self.size)


@dataclass(frozen=True, kw_only=True)
class Study:
    """A merged run and what it shows at each size."""

    run: Run
    sizes: tuple[SizeStudy, ...]

    @cached_property
    def levels(self) -> int:
        """Levels of the UNet that have self-attention."""
        return len(self.sizes[0].levels.tokens)

    def at_area(self, area: float) -> SizeStudy | None:
        """The first size with so many times the tokens of training."""
        return next((found for found in self.sizes if found.area == area), None)


def make_study(run: Run) -> Study:
    """The study of a merged run of one model.

    Raises UserError where it has several models, no counted objects, or sizes whose token counts are not known.
    """
    if len(run.models) != 1:
        raise UserError(f"{run.folder} holds the models {', '.join(run.models)}: a study is of one")
    levels = find_levels(run)
    for size in run.sizes:
        if size not in levels:
            raise UserError(f"tokens of size {size} are not known: give the run that measured entropy at it, too")
    if all(sample.objects is None for sample in run.samples):
        raise UserError(f"{run.folder} has no counted objects: draw with metric objects")
    return Study(run=run, sizes=tuple(_size_study(run, size, levels[size]) for size in run.sizes))


def true_drawings(pairs: Sequence[Pair], width: int, height: int) -> Counts:
    """What the detector reads on a true drawing of each caption at a size; without captions that do not fit it."""
    found = {}
    for prompt, seed in pairs:
        try:
            image = draw_scene(prompt, np.random.default_rng((seed, width, height)), height=height, width=width)
        except UserError:
            continue
        exact, missing, extra = compare(image, prompt)
        found[prompt, seed] = float(exact), float(missing), float(extra)
    return found


def _size_study(run: Run, size: Size, levels: Levels) -> SizeStudy:
    counted = {method: _counted(run, size, method) for method in run.methods}
    rules = {rule: counted[rule] for rule in RULES if counted.get(rule)}
    pairs = list(dict.fromkeys(pair for counts in rules.values() for pair in counts))
    truth = true_drawings(pairs, size.width, size.height)
    shown = {**rules, TRUTH: truth} if truth else rules
    return SizeStudy(
        size=size,
        levels=levels,
        rules={name: ObjectCounts.of(name, [*counts.values()]) for name, counts in shown.items()},
        beyond_truth={name: less for name, counts in rules.items() if (less := _difference(name, counts, truth))},
        effect=_difference(ENTROPY, rules.get(ENTROPY, {}), rules.get(ORIGINAL, {})),
        of_calibrated={
            rule: less
            for rule in (ORIGINAL, ENTROPY)
            if (less := _difference(CALIBRATED, rules.get(CALIBRATED, {}), rules.get(rule, {})))
        },
        curves=_curves(run, counted, levels),
    )


def _counted(run: Run, size: Size, method: str) -> Counts:
    return {pair: sample.objects for pair, sample in run.of(size, method).items() if sample.objects is not None}


def _difference(name: str, counts: Counts, baseline: Counts) -> ObjectCounts | None:
    values = [tuple(np.subtract(counts[pair], baseline[pair]).tolist()) for pair in counts if pair in baseline]
    return ObjectCounts.of(name, values) if values else None


def _curves(run: Run, counted: Mapping[str, Counts], levels: Levels) -> dict[Scope, Curve]:
    drawn: dict[Scope, dict[float, Counts]] = {}
    for method, scaling in run.scalings.items():
        place = scope_of(scaling)
        if place is not None and counted.get(method):
            drawn.setdefault(place[0], {})[place[1]] = counted[method]
    original = counted.get(ORIGINAL, {})
    curves = {
        scope: _curve(scope, {1.0: original, **drawn[scope]}, counted, levels) for scope in Scope if scope in drawn
    }
    return {scope: curve for scope, curve in curves.items() if curve is not None}


def scope_of(scaling: Scaling) -> tuple[Scope, float] | None:
    """The levels that a method of rule `fixed` acts on and its multiplier there; None for any other method."""
    if scaling.rule is not ScaleRule.FIXED:
        return None
    if not isinstance(scaling.multiplier, tuple):
        return Scope.ALL, scaling.multiplier
    finest, *others = scaling.multiplier
    if len({*scaling.multiplier}) == 1:
        return Scope.ALL, finest
    if {*others} == {1.0}:
        return Scope.FINEST, finest
    return (Scope.OTHERS, others[0]) if finest == 1.0 and len({*others}) == 1 else None


def _curve(scope: Scope, drawn: dict[float, Counts], counted: Mapping[str, Counts], levels: Levels) -> Curve | None:
    if not drawn[1.0]:
        del drawn[1.0]
    shared = [pair for pair in min(drawn.values(), key=len) if all(pair in counts for counts in drawn.values())]
    if not shared:
        return None
    points = {value: {pair: drawn[value][pair] for pair in shared} for value in sorted(drawn)}
    entropy = [counted[ENTROPY][pair] for pair in shared if pair in counted.get(ENTROPY, {})]
    gains = {value: _difference(f"{value:g}", points[value], points.get(1.0, {})) for value in points if value != 1.0}
    return Curve(
        points={value: ObjectCounts.of(f"{value:g}", [*counts.values()]) for value, counts in points.items()},
        rule=_rule_multipliers(levels)[1 if scope is Scope.OTHERS else 0],
        entropy=ObjectCounts.of(ENTROPY, entropy) if len(entropy) == len(shared) else None,
        gains={value: gain for value, gain in gains.items() if gain is not None},
    )


def _rule_multipliers(levels: Levels) -> tuple[float, ...]:
    counts = enumerate(zip(levels.tokens, levels.train_tokens, strict=True))
    return tuple(Scaling().multiplier_at(level, now, then) for level, (now, then) in counts)
