"""What a scene may hold, how large it is and how its caption says so: shared by the code that draws and that counts."""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from ..errors import UserError

COLOURS = {"red": (228, 26, 28), "green": (24, 160, 52), "blue": (36, 64, 224), "yellow": (250, 208, 16)}
SHAPES = ("circle", "square", "triangle")
BACKGROUND = (232, 232, 232)
MAX_OBJECTS = 4
TRAIN_SIZE = 128
"""Pixels along each side of a training picture."""
_RADII = (14.0, 18.0)


class Kind(NamedTuple):
    """What a caption says of one object; a caption names each kind at most once."""

    colour: str
    shape: str

    def __str__(self) -> str:
        return f"a {self.colour} {self.shape}"


KINDS = tuple(Kind(colour, shape) for colour in COLOURS for shape in SHAPES)
_PHRASES = {str(kind): kind for kind in KINDS}


def radii(height: int, width: int) -> tuple[float, float]:
    """Least and largest radius of an object at a size in pixels: of the circle of its area.

    14 to 18 pixels from the training area upwards, where a larger picture has more room and not larger objects; below
    it they shrink with the square root of the area, so that the objects of any caption fit the frame.
    """
    scale = min(1.0, math.sqrt(height * width) / TRAIN_SIZE)
    return _RADII[0] * scale, _RADII[1] * scale


def write_caption(kinds: Sequence[Kind], *, joined_by_with: bool = False) -> str:
    """The caption of `kinds`, in their order: `a red circle, a blue square and a green triangle`.

    With `joined_by_with` the first is set apart: `a red circle with a blue square and a green triangle`.
    """
    phrases = [str(kind) for kind in kinds]
    if joined_by_with and len(phrases) > 1:
        return f"{phrases[0]} with {_listed(phrases[1:])}"
    return _listed(phrases)


def parse_caption(caption: str) -> tuple[Kind, ...]:
    """The kinds that `caption` names, in its order. Case and spacing are free, as the tokenizer ignores them.

    Raises UserError for a caption outside the grammar.
    """
    phrases = re.split(r"\s*,\s*|\s+and\s+|\s+with\s+", " ".join(caption.lower().split()))
    unknown = [phrase for phrase in phrases if phrase not in _PHRASES]
    if unknown:
        raise UserError(
            f"caption {caption!r} names {unknown[0]!r}, which is no object of a scene: write `a COLOUR SHAPE` with "
            f"{', '.join(COLOURS)} and {', '.join(SHAPES)}, joined by commas, `and` or `with`"
        )
    if len(set(phrases)) < len(phrases):
        raise UserError(f"caption {caption!r} names the same object twice: name each colour and shape together once")
    if len(phrases) > MAX_OBJECTS:
        raise UserError(f"caption {caption!r} names {len(phrases)} objects: name at most {MAX_OBJECTS}")
    return tuple(_PHRASES[phrase] for phrase in phrases)


def _listed(phrases: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(phrases[:-1]), phrases[-1])))
