"""One PNG of pairs from a run, for a README or a slide: a row a size, the first captions side by side by method."""

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from ..errors import UserError
from .records import Pair, Run, Sample, Size
from .run_folder import read_run


def write_picture(run: Path | str, file: Path, *, captions: int = 4) -> Path:
    """Writes pairs of the run's first `captions` captions, at every size, as a PNG.

    Raises UserError where the folder is no run, has no finished cell, or the file can't be written.
    """
    found = read_run(Path(run))
    figure = _figure(found, found.pairs[:captions])
    try:
        figure.savefig(file, dpi=110, format="png")
    except OSError as error:
        raise UserError(f"{file} can't be written: {error.strerror}") from error
    return file


def _figure(run: Run, pairs: list[Pair]) -> Figure:
    columns = [(pair, method) for pair in pairs for method in run.methods]
    heights = [size.height for size in run.sizes]
    # An inch holds as many pixels in every row, so that sizes can be compared.
    inch = max(size.width for size in run.sizes) / 1.25
    tall = sum(heights) / inch + 0.32 * len(heights) + 0.5
    figure = Figure(figsize=(1.35 * len(columns), tall), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(run.sizes), len(columns), squeeze=False, height_ratios=heights)
    for row, size in zip(grid, run.sizes, strict=True):
        for panel, (pair, method) in zip(row, columns, strict=True):
            panel.axis("off")
            sample = run.of(size, method).get(pair)
            if sample is not None and sample.image:
                panel.imshow(pixels(run, sample), interpolation="nearest")
                panel.set_title(_title(run, size, method), fontsize=7, pad=2)
    _name_captions(figure, pairs, len(run.methods))
    return figure


def _name_captions(figure: Figure, pairs: list[Pair], methods: int) -> None:
    for index, (prompt, _) in enumerate(pairs):
        x = (index + 0.5) / len(pairs)
        figure.text(x, 0.995, folded(prompt, 17 * methods), ha="center", va="top", fontsize=7.5, style="italic")
    figure.get_layout_engine().set(rect=(0, 0, 1, 1 - 0.42 / figure.get_figheight()))  # pyright: ignore[reportOptionalMemberAccess, reportCallIssue]


def folded(prompt: str, width: int) -> str:
    """A caption over several lines of so many letters."""
    words, lines = prompt.split(), [""]
    for word in words:
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)


def _title(run: Run, size: Size, method: str) -> str:
    return f"{run.label(size)} {method}"


def pixels(run: Run, sample: Sample) -> np.ndarray:
    """The picture of a cell that was drawn, uint8 [height, width, 3]."""
    with Image.open(run.folder / str(sample.image)) as image:
        return np.asarray(image.convert("RGB"))
