"""Draws many captions, keeping each batch on disk: a measurement that was stopped goes on where it was."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from rich.progress import Progress

from ..metrics.objects import compare
from ..pipeline import TextToImage
from ..scales import ScaleRule, Scaling
from ..statistics import Interval, bootstrap_mean
from ..weights.folder import BUILT_IN_GUIDANCE

KEPT = Path("runs/scenes-measure")
STEPS, GUIDANCE = 25, BUILT_IN_GUIDANCE

Images = UInt8[np.ndarray, "batch height width 3"]
Verdicts = Float[np.ndarray, "batch 3"]
"""A row a picture: 1.0 where it is exact, else 0.0; objects missing; objects extra."""


ORIGINAL = Scaling(ScaleRule.ORIGINAL)


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """What is drawn. The noise of caption i has the seed `seed + i`, whatever the batch."""

    captions: tuple[str, ...]
    seed: int
    size: tuple[int, int] | None = None
    """(height, width) in pixels; the training size if None."""
    scaling: Scaling = ORIGINAL
    variant: str = ""
    """Names what was changed in the model, since the hash of its weights does not know."""
    batch: int = 16


def draw(pipe: TextToImage, drawing: Drawing, kept: Path = KEPT, *, name: str = "") -> Images:
    """The pictures of `drawing`: those batches read that `kept` has, the others drawn and kept.

    A batch is known by the hash of the weights and of `drawing`, not by the code: empty the folder where that changed.
    """
    kept.mkdir(parents=True, exist_ok=True)
    images = []
    with Progress(transient=True) as progress:
        bar = progress.add_task(name or drawing.variant or drawing.scaling.label, total=len(drawing.captions))
        for first in range(0, len(drawing.captions), drawing.batch):
            file = kept / f"{_key(pipe.info.weights_hash, drawing, first)}.npy"
            images.append(_kept(file, lambda first=first: _draw(pipe, drawing, first)))
            progress.advance(bar, len(images[-1]))
    return np.concatenate(images)


def verdicts(captions: Sequence[str], images: Images) -> Verdicts:
    """What the detector reads in each picture, against its caption."""
    return np.array([compare(image, caption) for image, caption in zip(images, captions, strict=True)], np.float64)


def means(values: Verdicts) -> tuple[Interval, Interval, Interval]:
    """Exact in percent, missing and extra a picture (or differences of them), with bootstrap intervals."""
    exact, missing, extra = bootstrap_mean(values)
    return exact.scaled(100.0), missing, extra


def _draw(pipe: TextToImage, drawing: Drawing, first: int) -> Images:
    height, width = drawing.size or (None, None)
    out = pipe(
        drawing.captions[first : first + drawing.batch],
        height=height,
        width=width,
        rule=drawing.scaling,
        sampler="ddim",
        steps=STEPS,
        guidance=GUIDANCE,
        seed=drawing.seed + first,
    )
    if out.images is None:
        raise ValueError("the pipeline returned no images")
    return out.images


def _kept(file: Path, make: Callable[[], Images]) -> Images:
    if not file.is_file():
        part = file.with_suffix(".part")
        with part.open("wb") as stream:
            np.save(stream, make())
        part.replace(file)
    return np.load(file)


def _key(weights: str, drawing: Drawing, first: int) -> str:
    captions = drawing.captions[first : first + drawing.batch]
    what = {**asdict(drawing), "captions": captions, "first": first, "steps": STEPS, "guidance": GUIDANCE}
    return hashlib.sha256(f"{weights} {json.dumps(what)}".encode()).hexdigest()[:24]
