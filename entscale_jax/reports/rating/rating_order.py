"""Which pictures a rater is shown, and in which order: random for each rater, the two of a pair far from each other."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import zip_longest

from ...errors import UserError
from ..gallery import card_id
from ..records import Run, Sample, Size


@dataclass(frozen=True, kw_only=True)
class RatedPair:
    """The pictures of one caption and seed at one size: one of each method that draws there."""

    id: str
    samples: tuple[Sample, ...]


def rated_pairs(run: Run, count: int | None = None) -> list[RatedPair]:
    """The pairs that every rater rates, whole ones only: `count` of them, spread over the sizes, or all.

    Chosen by a hash, so the choice is the same for all raters and in every session, and a larger one holds a smaller.
    Raises UserError where there are fewer than two, as their pictures could not be kept apart, or fewer than `count`.
    """
    by_size = [_whole_pairs(run, size) for size in run.sizes]
    found = [pair for row in zip_longest(*by_size) for pair in row if pair is not None]
    if len(found) < 2:
        raise UserError(
            f"run {run.folder} has {len(found)} whole pairs, of {len(run.methods)} methods: rating needs two pairs of "
            "pictures by two methods at least"
        )
    if count is not None and not 2 <= count <= len(found):
        raise UserError(f"{count} pairs: give 2 to {len(found)}, the pairs that are whole in {run.folder}")
    return found[:count]


def rating_order(pairs: Sequence[RatedPair], rater: str) -> list[Sample]:
    """All pictures, in an order that follows from the rater's name.

    Each round shows every pair once, by a method drawn at random of those that are left, so that some other picture
    lies between two of a pair. Pairs of more methods than others begin with rounds of their own.
    """
    rng = random.Random(sha256(rater.encode()).digest())
    methods = {pair.id: rng.sample(pair.samples, len(pair.samples)) for pair in pairs}
    order: list[RatedPair] = []
    for left in range(max(len(pair.samples) for pair in pairs), 0, -1):
        turn = [pair for pair in pairs if len(pair.samples) >= left]
        rng.shuffle(turn)
        if order and order[-1] == turn[0] and len(turn) > 1:
            other = rng.randrange(1, len(turn))
            turn[0], turn[other] = turn[other], turn[0]
        order += turn
    return [methods[pair.id].pop() for pair in order]


def _whole_pairs(run: Run, size: Size) -> list[RatedPair]:
    """The pairs of a size of which every method that draws there has a picture, in the order of their hashes."""
    methods = [method for method in run.methods if run.of(size, method)]
    found = []
    for pair in run.pairs if len(methods) > 1 else ():
        samples = [run.of(size, method).get(pair) for method in methods]
        drawn = [one for one in samples if one is not None and _has_picture(run, one)]
        if len(drawn) == len(methods):
            found.append(RatedPair(id=card_id(size, pair), samples=tuple(drawn)))
    return sorted(found, key=lambda pair: pair.id)


def _has_picture(run: Run, sample: Sample) -> bool:
    return sample.error is None and sample.image is not None and (run.folder / sample.image).is_file()
