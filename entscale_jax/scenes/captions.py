"""The captions that the built-in model is trained with, and the balanced sets that sweeps and evaluations draw."""

from collections.abc import Iterator
from itertools import islice

import numpy as np

from ..errors import UserError
from ..metrics.captions import KINDS, MAX_OBJECTS, write_caption

# Every round of six captions names each of the 12 kinds once.
_ROUND = (1, 2, 3, 1, 2, 3)
_TRIES = 200


def sample_captions(rng: np.random.Generator, count: int, objects: int | None = None) -> list[str]:
    """`count` random captions of `objects` objects each, or of one to three in equal shares."""
    _check(count, objects)
    numbers = rng.integers(1, MAX_OBJECTS + 1, count) if objects is None else np.full(count, objects)
    return [write_caption([KINDS[i] for i in rng.permutation(len(KINDS))[:number]]) for number in numbers]


def balanced_captions(count: int, seed: int = 0) -> list[str]:
    """`count` fixed captions of one, two, three, one, two, ... objects, every kind equally often; a shorter set begins
    a longer one.

    The 12 captions of one object recur only after all have come; the others not before most of theirs have.
    """
    _check(count)
    return list(islice(_rounds(np.random.default_rng(seed)), count))


def _rounds(rng: np.random.Generator) -> Iterator[str]:
    seen: set[str] = set()
    singles: list[int] = []
    while True:
        singles = singles or rng.permutation(len(KINDS)).tolist()
        pair = singles.pop(), singles.pop()
        rounds = [_round(*pair, rng)]
        while len(rounds) < _TRIES and not seen.isdisjoint(rounds[-1]):
            rounds.append(_round(*pair, rng))
        seen.update(caption for caption, number in zip(rounds[-1], _ROUND, strict=True) if number > 1)
        yield from rounds[-1]


def _round(first: int, second: int, rng: np.random.Generator) -> list[str]:
    others = iter(rng.permutation([i for i in range(len(KINDS)) if i not in (first, second)]))
    single = iter((first, second))
    chosen = ([next(single)] if number == 1 else islice(others, number) for number in _ROUND)
    return [write_caption([KINDS[i] for i in indices]) for indices in chosen]


def _check(count: int, objects: int | None = None) -> None:
    if count < 0:
        raise UserError(f"{count} captions asked for: give 0 or more")
    if objects is not None and not 1 <= objects <= MAX_OBJECTS:
        raise UserError(f"captions of {objects} objects asked for: give 1 to {MAX_OBJECTS}")
