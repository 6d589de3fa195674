"""A long batch in groups of one size, so that one program serves them all."""

import numpy as np

from .errors import UserError


def batch_groups(count: int, most: int | None, name: str) -> list[list[int]]:
    """The pictures of a batch, by index, in groups of at most `most`; None is all at once.

    Groups are equally large, so that one program serves: the last is filled up with the last picture, again and again.
    Results put together are therefore cut to `count`. Raises UserError, which calls the limit `name`.
    """
    check_limit(most, name)
    size = max(1, count if most is None else min(count, int(most)))
    return [[min(start + index, count - 1) for index in range(size)] for start in range(0, count, size)]


def check_limit(most: int | None, name: str) -> None:
    """Raises UserError unless `most` is a whole number from 1, or None."""
    if most is not None and (isinstance(most, bool) or not isinstance(most, int | np.integer) or most < 1):
        raise UserError(f"{name} is {most!r}: give a whole number from 1, or None for no limit")
