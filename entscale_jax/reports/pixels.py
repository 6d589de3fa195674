"""Pictures of a run as arrays, and captions over several lines, for figures that show both."""

import numpy as np
from PIL import Image

from .records import Run, Sample


def folded(prompt: str, width: int) -> str:
    """A caption over several lines of so many letters."""
    words, lines = prompt.split(), [""]
    for word in words:
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)


def pixels(run: Run, sample: Sample) -> np.ndarray:
    """The picture of a cell that was drawn, uint8 [height, width, 3]."""
    with Image.open(run.folder / str(sample.image)) as image:
        return np.asarray(image.convert("RGB"))
