"""Chooses the best checkpoint by what a training model draws of captions that no study uses."""

from pathlib import Path

import numpy as np

from ..pipeline import TextToImage
from .captions import balanced_captions
from .evaluate import score
from .pictures import GUIDANCE, STEPS

CAPTIONS_SEED = 1_000_003
FIRST_SEED = 2_000_000_000
"""Of the noise; studies count up from 0."""


def watch(folder: Path, count: int, *, batch: int = 16) -> dict[str, float]:
    """Shares of exact pictures and faults a picture, of `count` captions at the training size by the exported model."""
    pipe = TextToImage.from_pretrained(folder)
    captions = balanced_captions(count, CAPTIONS_SEED)
    pictures = []
    for first in range(0, count, batch):
        part, seed = captions[first : first + batch], FIRST_SEED + first
        out = pipe(part, rule="original", steps=STEPS, guidance=GUIDANCE, seed=seed)
        pictures.append(out.images)
    found = score(captions, np.concatenate(pictures))
    by_count = {f"exact_{number}": share for number, share in found.exact_by_count.items()}
    return {"exact": found.exact, "missing": found.missing, "extra": found.extra, **by_count}
