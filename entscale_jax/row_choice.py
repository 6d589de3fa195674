"""Which row of a cell counts where a run holds several, in its parts and beside them."""

from collections.abc import Iterable
from typing import TypeVar

Key = TypeVar("Key")


def choose_rows(rows: Iterable[tuple[Key, bool]]) -> dict[Key, int]:
    """The position of the row that counts, by cell, of (cell, failed) from the oldest to the newest.

    The newest counts, but none that failed against one that is drawn: a writer that was thought dead may come late.
    """
    chosen: dict[Key, int] = {}
    drawn: set[Key] = set()
    for position, (cell, failed) in enumerate(rows):
        if failed and cell in drawn:
            continue
        chosen[cell] = position
        if not failed:
            drawn.add(cell)
    return chosen
