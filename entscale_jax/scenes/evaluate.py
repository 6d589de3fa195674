"""How often the built-in model draws what its captions say, and how structured its attention is.

`python -m entscale_jax.scenes.evaluate docs/scenes.md` writes section `model` and a picture.
"""

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..marks import table
from ..metrics.captions import MAX_OBJECTS, parse_caption
from ..pipeline import TextToImage
from ..statistics import interval, signed
from .captions import balanced_captions, held_out_captions, sample_captions
from .pictures import GUIDANCE, KEPT, STEPS, Drawing, Images, Verdicts, draw, means, verdicts
from .section import write_section

CAPTIONS_SEED = 2_000_003
FIRST_SEED = 3_000_000_000
"""Of the noise; studies count up from 0, the training's watch from 2,000,000,000."""
EACH = 128
_SHEET = 48
_ON_SHEET = 8  # a row
_TEXT = 38  # pixels for three lines of caption


@dataclass(frozen=True)
class Score:
    """Shares of captions drawn exactly, in all and by the number of objects asked for; faults a picture."""

    exact: float
    exact_by_count: dict[int, float]
    missing: float
    extra: float

    def __str__(self) -> str:
        parts = ", ".join(f"{count}: {share:.0%}" for count, share in self.exact_by_count.items())
        return f"exact {self.exact:.1%} ({parts}), missing {self.missing:.2f}, extra {self.extra:.2f} a picture"


@dataclass(frozen=True)
class Structure:
    """Self-attention of one layer at the training size, a mean over pictures, steps and rows, in nats."""

    most: float
    """log T, the entropy of uniform attention."""
    entropy: float
    """E_T, a mean over heads too."""
    gap: float
    """The logit gap, a mean over heads too."""
    sharpest_gap: float
    """Of the head that has the largest."""


def score(captions: Sequence[str], images: Images) -> Score:
    """What the detector reads in each picture, against its caption."""
    found = verdicts(captions, images)
    counts = _counts(captions)
    exact, missing, extra = found.mean(axis=0).tolist() if len(found) else (float("nan"),) * 3
    by_count = {int(count): float(found[counts == count, 0].mean()) for count in np.unique(counts)}
    return Score(exact, by_count, missing, extra)


def known_captions(each: int) -> tuple[str, ...]:
    """`each` training captions of one, two, three and four objects, in turn; a shorter set begins a longer one."""
    return _in_turn(sample_captions, each, fewest=1)


def new_captions(each: int) -> tuple[str, ...]:
    """`each` captions of two, three and four objects with a pair that training never showed, likewise."""
    return _in_turn(held_out_captions, each, fewest=2)


def structure(pipe: TextToImage, *, count: int = 16) -> dict[str, Structure]:
    """Each self-attention layer's structure at the training size, over `count` captions."""
    out = pipe(
        balanced_captions(count, CAPTIONS_SEED),
        rule="original",
        steps=STEPS,
        guidance=GUIDANCE,
        seed=FIRST_SEED,
        decode=False,
        measure_entropy=True,
    )
    if out.entropy is None or out.logit_gap is None:
        raise ValueError("the pipeline measured no entropy")
    found = {}
    for name, (level, _, _) in pipe.layers.items():
        gaps = out.logit_gap[name].mean(axis=(0, 1))
        most = float(np.log(pipe.info.train_tokens[level]))
        found[name] = Structure(most, float(out.entropy[name].mean()), float(gaps.mean()), float(gaps.max()))
    return found


def contact_sheet(captions: Sequence[str], images: Images, file: Path) -> None:
    """The pictures with their captions below, in red where a picture is not exact, as one PNG."""
    _, height, width, _ = images.shape
    cell = width + 8, height + _TEXT
    sheet = Image.new("RGB", (cell[0] * _ON_SHEET, cell[1] * -(-len(images) // _ON_SHEET)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=9)
    for index, (caption, image) in enumerate(zip(captions, images, strict=True)):
        left, top = index % _ON_SHEET * cell[0] + 4, index // _ON_SHEET * cell[1] + 2
        sheet.paste(Image.fromarray(image), (left, top))
        exact = verdicts([caption], image[None])[0, 0] == 1.0
        lines = textwrap.fill(caption, max(width // 5, 12))
        pen.multiline_text((left, top + height), lines, fill="black" if exact else (200, 0, 0), font=font, spacing=0)
    sheet.save(file, optimize=True)


def section(pipe: TextToImage, sheet: Path, kept: Path = KEPT, *, each: int = EACH) -> list[str]:
    """The lines of section `model`; draws what `kept` does not have, and writes the contact sheet."""
    known, new = known_captions(each), new_captions(each)
    images = draw(pipe, Drawing(captions=known, seed=FIRST_SEED), kept, name="training captions")
    found = verdicts(known, images)
    drawn = draw(pipe, Drawing(captions=new, seed=FIRST_SEED + len(known)), kept, name="held-out pairs")
    contact_sheet(known[:_SHEET], images[:_SHEET], sheet)
    height, width = pipe.info.train_size
    overall = means(found)[0]
    return [
        f"At the training size, {width}x{height} pixels, with rule `original`, {STEPS} steps and guidance {GUIDANCE:g}:"
        f" **{overall.mean:.1f}% exact** of {len(known)} training captions. 95% bootstrap intervals over captions.",
        "Made by `python -m entscale_jax.scenes.evaluate docs/scenes.md`.",
        "",
        *table(("objects asked for", "captions", "exact, %", "missing", "extra"), _by_count(known, found)),
        "",
        "Captions with a pair of objects that no training picture holds, against training captions of as many objects:",
        "",
        *_held_out(new, verdicts(new, drawn), found[_counts(known) > 1]),
        "",
        f"![{min(_SHEET, len(known))} pictures with their captions]({sheet.name})",
        "",
        "Self-attention there, a mean over 16 captions, heads, steps and rows, in nats. The logit gap is a row's",
        "largest logit less the log of the mean of `exp(logit)` over the others; last, that of the sharpest head:",
        "",
        *table(("layer", "log T", "E_T", "log T - E_T", "logit gap", "sharpest head"), _structure_rows(pipe)),
    ]


def _in_turn(sample: Callable[[np.random.Generator, int, int], list[str]], each: int, fewest: int) -> tuple[str, ...]:
    columns = [
        sample(np.random.default_rng((CAPTIONS_SEED, number)), each, number)
        for number in range(fewest, MAX_OBJECTS + 1)
    ]
    return tuple(chain.from_iterable(zip(*columns, strict=True)))


def _counts(captions: Sequence[str]) -> np.ndarray:
    return np.array([len(parse_caption(caption)) for caption in captions], int)


def _by_count(captions: Sequence[str], found: Verdicts) -> list[tuple[str, ...]]:
    counts = _counts(captions)
    rows = [_row(str(count), found[counts == count]) for count in np.unique(counts)]
    return [*rows, _row("all", found)]


def _held_out(captions: Sequence[str], found: Verdicts, reference: Verdicts) -> list[str]:
    """The reference's captions have as many objects, one by one: differences are taken in that order."""
    counts = _counts(captions)
    groups = [(str(count), counts == count) for count in np.unique(counts)] + [("all", counts > 0)]
    rows = [(*_row(name, found[group]), signed(means(found[group] - reference[group])[0], 1)) for name, group in groups]
    return table(("objects asked for", "captions", "exact, %", "missing", "extra", "exact, difference in points"), rows)


def _row(name: str, found: Verdicts) -> tuple[str, ...]:
    exact, missing, extra = means(found)
    return name, str(len(found)), interval(exact, 1), interval(missing, 2), interval(extra, 2)


def _structure_rows(pipe: TextToImage) -> list[tuple[str, ...]]:
    return [
        (name, *(f"{value:.2f}" for value in (s.most, s.entropy, s.most - s.entropy, s.gap, s.sharpest_gap)))
        for name, s in structure(pipe).items()
    ]


if __name__ == "__main__":
    write_section("model", lambda pipe, document: section(pipe, document.with_suffix(".png")))
