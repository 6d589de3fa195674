"""How often the built-in model draws what its captions say, and a contact sheet to look at.

`python -m entscale_jax.scenes.evaluate docs/scenes.md docs/scenes.png` writes both into the documentation.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from ..metrics.captions import parse_caption
from ..metrics.objects import Verdict, compare
from ..pipeline import TextToImage
from .captions import balanced_captions

_BEGIN, _END = "<!-- measured -->", "<!-- end of measured -->"

Images = UInt8[np.ndarray, "batch height width 3"]


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


def evaluate(
    pipe: TextToImage,
    *,
    count: int = 128,
    steps: int = 25,
    guidance: float = 5.0,
    batch: int = 16,
    rule: str = "original",
) -> tuple[Score, list[str], Images]:
    """Draws `count` balanced captions at the training size, caption i with seed i."""
    captions = balanced_captions(count)
    drawn = []
    for start in range(0, count, batch):
        part = captions[start : start + batch]
        out = pipe(part, rule=rule, steps=steps, guidance=guidance, seed=start)
        drawn.append(out.images)
    images = np.concatenate(drawn)
    return score(captions, images), captions, images


def layer_entropy(pipe: TextToImage, *, count: int = 8) -> dict[str, tuple[float, float]]:
    """Layer -> its mean attention entropy at the training size and log T, the most that it could be, in nats."""
    out = pipe(balanced_captions(count), rule="original", steps=25, guidance=5.0, decode=False, measure_entropy=True)
    most = {name: float(np.log(pipe.info.train_tokens[level])) for name, (level, _, _) in pipe.layers.items()}
    return {name: (float(values.mean()), most[name]) for name, values in (out.entropy or {}).items()}


def score(captions: Sequence[str], images: Images) -> Score:
    """What the detector reads in each picture, against its caption."""
    verdicts = [compare(image, caption) for image, caption in zip(images, captions, strict=True)]
    by_count: dict[int, list[Verdict]] = {}
    for caption, verdict in zip(captions, verdicts, strict=True):
        by_count.setdefault(len(parse_caption(caption)), []).append(verdict)
    return Score(
        exact=_mean([verdict.exact for verdict in verdicts]),
        exact_by_count={count: _mean([v.exact for v in group]) for count, group in sorted(by_count.items())},
        missing=_mean([verdict.missing for verdict in verdicts]),
        extra=_mean([verdict.extra for verdict in verdicts]),
    )


def contact_sheet(images: Images, file: Path, *, columns: int = 16, zoom: int = 2) -> None:
    """All pictures in one PNG, row by row."""
    _, height, width, _ = images.shape
    rows = -(-len(images) // columns)
    sheet = np.full((rows * (height + 4), columns * (width + 4), 3), 255, np.uint8)
    for index, image in enumerate(images):
        top, left = index // columns * (height + 4) + 2, index % columns * (width + 4) + 2
        sheet[top : top + height, left : left + width] = image
    size = (sheet.shape[1] * zoom, sheet.shape[0] * zoom)
    Image.fromarray(sheet).resize(size, Image.Resampling.NEAREST).save(file)


def main(document: Path, sheet: Path, model: str = "scenes") -> None:
    """Draws 128 captions by `model`, replaces what stands between the two marks of `document`, and writes the sheet."""
    pipe = TextToImage.from_pretrained(model)
    found, captions, images = evaluate(pipe)
    contact_sheet(images, sheet)
    entropies = [f"| {name} | {mean:.2f} | {most:.2f} |" for name, (mean, most) in layer_entropy(pipe).items()]
    shares = [f"| {count} | {share:.0%} |" for count, share in found.exact_by_count.items()]
    lines = [
        f"Of {len(captions)} captions, equal shares of one, two and three objects, at the training size with 25 steps",
        f"and guidance 5: **{found.exact:.1%} exact**; missing {found.missing:.2f}, extra {found.extra:.2f} a picture.",
        "Made by `python -m entscale_jax.scenes.evaluate docs/scenes.md docs/scenes.png`.",
        "",
        "| objects asked for | exact |",
        "| --- | --- |",
        *shares,
        "",
        f"![{len(captions)} pictures, one a caption]({sheet.name})",
        "",
        "Mean entropy of its self-attention at the training size, over 8 captions, heads and steps, in nats:",
        "",
        "| layer | E_T | log T |",
        "| --- | --- | --- |",
        *entropies,
    ]
    before, rest = document.read_text().split(_BEGIN)
    document.write_text("\n".join([before + _BEGIN, "", *lines, "", _END + rest.split(_END)[1]]))
    print(found)


def _mean(values: Sequence[int]) -> float:
    return float(np.mean(values)) if values else float("nan")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
