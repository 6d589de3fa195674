"""What keeps the objects of a picture apart: attention, GroupNorm, convolutions, each measured by taking it away.

`python -m entscale_jax.scenes.shares docs/scenes.md` writes section `shares`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from ..marks import table
from ..pipeline import TextToImage
from ..scales import Scaling
from ..statistics import interval, signed
from .evaluate import FIRST_SEED, known_captions
from .pictures import KEPT, ORIGINAL, Drawing, Verdicts, draw, means, verdicts
from .section import write_section
from .sensitivity import UNIFORM, changed
from .windows import Grid, Part, confine

_EACH = 16
_BATCH = 8


@dataclass(frozen=True)
class Case:
    """One way of taking something away."""

    parts: tuple[Part, ...] = ()
    """Confined to windows."""
    scaling: Scaling = ORIGINAL

    def __str__(self) -> str:
        if self.scaling == UNIFORM:
            return "attention uniform"
        return f"{', '.join(self.parts)} in windows" if self.parts else "nothing"


def cases(most: int) -> list[Case]:
    """Nothing, uniform attention, and every set of up to `most` parts in windows."""
    confined = [Case(parts) for count in range(1, most + 1) for parts in combinations(Part, count)]
    return [Case(), Case(scaling=UNIFORM), *confined]


def measure(
    pipe: TextToImage, chosen: Iterable[Case], *, times: int, window: Grid, each: int = _EACH, kept: Path = KEPT
) -> dict[Case, Verdicts]:
    """Verdicts over the same captions and noise in each case.

    Args:
        pipe: the model.
        chosen: the cases.
        times: how often the training size's sides fit into those of the pictures.
        window: latent cells (h, w).
        each: captions of one, two, three and four objects.
        kept: folder of the pictures drawn so far.
    """
    captions = known_captions(each)
    height, width = (times * side for side in pipe.info.train_size)
    found = {}
    for case in chosen:
        variant = f"{'+'.join(case.parts)} in {window}" if case.parts else ""
        drawing = Drawing(
            captions=captions,
            seed=FIRST_SEED,
            size=(height, width),
            scaling=case.scaling,
            variant=variant,
            batch=_BATCH,
        )
        images = draw(_confined(pipe, case, times, window), drawing, kept, name=f"{width}x{height}: {case}")
        found[case] = verdicts(captions, images)
    return found


def section(pipe: TextToImage, kept: Path = KEPT, *, each: int = _EACH) -> list[str]:
    """The lines of section `shares`; draws what `kept` does not have."""
    whole, (height, width) = pipe.info.train_grid, pipe.info.train_size
    half = (whole[0] // 2, whole[1] // 2)
    twice = measure(pipe, cases(len(Part)), times=2, window=whole, each=each, kept=kept)
    once = measure(pipe, cases(1), times=1, window=half, each=each, kept=kept)
    return [
        f"{4 * each} training captions with the same noise in each case, rule `original`; changes are by pairs against",
        "the model as it is. In windows, a convolution sees zeros beyond its window, GroupNorm takes the window's",
        "statistics, attention its tokens; uniform attention takes the mean over all tokens.",
        "Made by `python -m entscale_jax.scenes.shares docs/scenes.md`.",
        "",
        f"At twice the training size, {2 * width}x{2 * height}, in windows of the training size. With all three in",
        "windows the picture is four pictures, each of the whole caption:",
        "",
        *_table(twice),
        "",
        f"At the training size, {width}x{height}, in windows of half its sides:",
        "",
        *_table(once),
    ]


def _confined(pipe: TextToImage, case: Case, times: int, window: Grid) -> TextToImage:
    if not case.parts:
        return pipe
    height, width = (times * cells for cells in pipe.info.train_grid)
    unet = confine(pipe.unet, case.parts, grid=(height, width), window=window)
    return pipe.with_modules(unet=unet)


def _table(found: dict[Case, Verdicts]) -> list[str]:
    before = found[Case()]
    rows = [_row(case, values, before) for case, values in found.items()]
    header = ("taken away", "exact, %", "missing", "extra", "exact, change in points", "of missing", "of extra")
    return table((*header, "verdict changes, %"), rows)


def _row(case: Case, found: Verdicts, before: Verdicts) -> tuple[str, ...]:
    exact, missing, extra = means(found)
    row = str(case), interval(exact, 1), interval(missing, 2), interval(extra, 2)
    if found is before:
        return (*row, "", "", "", "")
    points, fewer, more = means(found - before)
    return (*row, signed(points, 1), signed(fewer, 2), signed(more, 2), interval(changed(found, before), 1))


if __name__ == "__main__":
    write_section("shares", lambda pipe, _: section(pipe))
