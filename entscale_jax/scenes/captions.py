"""The captions that the built-in model is trained with, and the balanced sets that sweeps and evaluations draw."""

from collections.abc import Iterator, Sequence
from itertools import chain, combinations, islice
from math import factorial

import numpy as np

from ..errors import UserError
from ..metrics.captions import KINDS, MAX_OBJECTS, Kind, write_caption

HELD_OUT = frozenset(
    frozenset((Kind(*first.split()), Kind(*second.split())))
    for first, second in (
        ("red circle", "blue square"),
        ("green square", "yellow triangle"),
        ("blue triangle", "red square"),
        ("yellow circle", "green triangle"),
        ("red triangle", "green circle"),
        ("blue circle", "yellow square"),
    )
)
"""Pairs of kinds that no training picture holds together; every kind is in one of them."""
_WITH = 0.25
"""Share of the training captions of several objects that say `with`."""
_CUTS = 200


def is_held_out(kinds: Sequence[Kind]) -> bool:
    """Whether `kinds` hold a pair that training never shows together."""
    return any(frozenset(pair) in HELD_OUT for pair in combinations(kinds, 2))


def sample_captions(rng: np.random.Generator, count: int, objects: int | None = None) -> list[str]:
    """`count` random training captions of `objects` objects each, or of one to four in equal shares."""
    _check(count, objects)
    numbers = rng.integers(1, MAX_OBJECTS + 1, count) if objects is None else np.full(count, objects)
    return [_sample(rng, int(number), held_out=False) for number in numbers]


def held_out_captions(rng: np.random.Generator, count: int, objects: int | None = None) -> list[str]:
    """As `sample_captions`, of two or more objects and each with a pair that training never shows."""
    _check(count, objects, fewest=2)
    numbers = rng.integers(2, MAX_OBJECTS + 1, count) if objects is None else np.full(count, objects)
    return [_sample(rng, int(number), held_out=True) for number in numbers]


def balanced_captions(count: int, seed: int = 0) -> list[str]:
    """`count` fixed captions of one, two, three, four, one, ... objects, without held-out pairs; a shorter set begins
    a longer one.

    Every kind comes once in 12 captions of one object, and nine times in the 36 others between them.
    """
    _check(count)
    return list(islice(_balanced(np.random.default_rng(seed)), count))


def count_captions() -> int:
    """How many captions differ of those that `balanced_captions` can draw."""
    groups = chain.from_iterable(combinations(KINDS, number) for number in range(1, MAX_OBJECTS + 1))
    return sum(factorial(len(group)) for group in groups if not is_held_out(group))


def _balanced(rng: np.random.Generator) -> Iterator[str]:
    singles = _shuffled_forever(rng)
    while True:
        for groups in _deal(rng):
            yield write_caption([next(singles)])
            yield from map(write_caption, groups)


def _deal(rng: np.random.Generator) -> list[list[list[Kind]]]:
    """Four times a pair, a triple and a quadruple of kinds, each kind in three of the twelve."""
    while True:
        kinds = [KINDS[i] for _ in range(3) for i in rng.permutation(len(KINDS))]
        dealt = [_cut(rng, kinds[start : start + 9]) for start in range(0, 36, 9)]
        lawful = [groups for groups in dealt if groups is not None]
        if len(lawful) == 4:
            return lawful


def _cut(rng: np.random.Generator, pool: Sequence[Kind]) -> list[list[Kind]] | None:
    """Two, three and four of nine kinds, different and allowed together; None where many cuts gave no such groups.

    Some pools have none: two kinds that are held out together and come twice each need four groups.
    """
    for _ in range(_CUTS):
        kinds = [pool[i] for i in rng.permutation(9)]
        groups = [kinds[:2], kinds[2:5], kinds[5:]]
        if not any(len(set(group)) < len(group) or is_held_out(group) for group in groups):
            return groups
    return None


def _shuffled_forever(rng: np.random.Generator) -> Iterator[Kind]:
    while True:
        yield from (KINDS[i] for i in rng.permutation(len(KINDS)))


def _sample(rng: np.random.Generator, number: int, *, held_out: bool) -> str:
    while True:
        kinds = [KINDS[i] for i in rng.permutation(len(KINDS))[:number]]
        if is_held_out(kinds) == held_out:
            return write_caption(kinds, joined_by_with=bool(rng.random() < _WITH))


def _check(count: int, objects: int | None = None, fewest: int = 1) -> None:
    if count < 0:
        raise UserError(f"{count} captions asked for: give 0 or more")
    if objects is not None and not fewest <= objects <= MAX_OBJECTS:
        raise UserError(f"captions of {objects} objects asked for: give {fewest} to {MAX_OBJECTS}")
