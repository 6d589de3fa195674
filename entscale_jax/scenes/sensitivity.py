"""Whether the scale of attention matters at all: the same captions and noise at the training size under multipliers.

`python -m entscale_jax.scenes.sensitivity docs/scenes.md` writes section `sensitivity`.
"""

from collections.abc import Sequence
from pathlib import Path

from ..marks import table
from ..pipeline import TextToImage
from ..scales import ScaleRule, Scaling
from ..statistics import Interval, bootstrap_mean, interval, signed
from .evaluate import FIRST_SEED, known_captions
from .pictures import KEPT, ORIGINAL, Drawing, Verdicts, draw, means, verdicts
from .section import write_section

_ALMOST_0 = 1e-6
UNIFORM = Scaling(ScaleRule.FIXED, _ALMOST_0)
"""Logits of nearly 0: every token attends to all tokens alike."""
_MULTIPLIERS = (1.001, 0.8, 1.25, _ALMOST_0)
_EACH = 64


def changed(found: Verdicts, before: Verdicts) -> Interval:
    """Percent of the pictures whose verdict is another one than that of the same caption and noise before."""
    different = (found != before).any(axis=1, keepdims=True)
    return bootstrap_mean(different.astype(float))[0].scaled(100.0)


def section(
    pipe: TextToImage, kept: Path = KEPT, *, multipliers: Sequence[float] = _MULTIPLIERS, each: int = _EACH
) -> list[str]:
    """The lines of section `sensitivity`; draws what `kept` does not have."""
    captions = known_captions(each)
    # Multiplier 1 as rule `original`, whose pictures section `model` has drawn already.
    scalings = [ORIGINAL, *(Scaling(ScaleRule.FIXED, value) for value in multipliers)]
    drawings = [Drawing(captions=captions, seed=FIRST_SEED, scaling=scaling) for scaling in scalings]
    found = [verdicts(captions, draw(pipe, drawing, kept)) for drawing in drawings]
    names = ["1", *("uniform attention" if value == _ALMOST_0 else f"{value:g}" for value in multipliers)]
    rows = [_row(name, values, found[0]) for name, values in zip(names, found, strict=True)]
    header = ("multiplier", "verdict changes, %", "exact, %", "change in points", "of missing", "of extra")
    return [
        f"{len(captions)} training captions at the training size, with the same noise under each multiplier of",
        "`1 / sqrt(d)`; changes are by pairs against multiplier 1. A verdict is: exact or not, so many missing, so",
        "many extra. The control is 1.001. Made by `python -m entscale_jax.scenes.sensitivity docs/scenes.md`.",
        "",
        *table(header, rows),
    ]


def _row(name: str, found: Verdicts, before: Verdicts) -> tuple[str, ...]:
    exact = interval(means(found)[0], 1)
    if found is before:
        return name, "", exact, "", "", ""
    points, missing, extra = means(found - before)
    return name, interval(changed(found, before), 1), exact, signed(points, 1), signed(missing, 2), signed(extra, 2)


if __name__ == "__main__":
    write_section("sensitivity", lambda pipe, _: section(pipe))
